"""Warm-up and cosine decay."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl.schedules import plateau, set_lr, step_decay, warmup_cosine


def published(step, total, warmup):
    """The original's adjust_learning_rate, as a factor of the base rate."""
    base = 1.0
    if step < warmup:
        return base * step / warmup
    step -= warmup
    total -= warmup
    q = 0.5 * (1 + math.cos(math.pi * step / total))
    end = base * 0.001
    return base * q + end * (1 - q)


@pytest.mark.parametrize("total, warmup", [(1, 0), (2, 1), (50, 0), (50, 1), (50, 10), (50, 49), (1000, 100)])
def test_equals_the_published_formula(total, warmup):
    for step in range(total):
        assert warmup_cosine(step, total, warmup) == pytest.approx(published(step, total, warmup), abs=1e-12)


def test_endpoints():
    assert warmup_cosine(0, 100, 10) == 0
    assert warmup_cosine(5, 100, 10) == 0.5
    assert warmup_cosine(10, 100, 10) == 1
    assert warmup_cosine(55, 100, 10) == pytest.approx((1 + 1e-3) / 2)
    assert warmup_cosine(100, 100, 10) == pytest.approx(1e-3)
    assert warmup_cosine(100, 100, 10, floor=0.0) == pytest.approx(0)


def test_rises_through_warmup_then_falls():
    factors = [warmup_cosine(step, 200, 40) for step in range(201)]
    assert all(a < b for a, b in zip(factors[:40], factors[1:41]))
    assert all(a > b for a, b in zip(factors[40:-1], factors[41:]))
    assert max(factors) == factors[40] == 1


def test_no_warmup_starts_at_the_top():
    assert warmup_cosine(0, 10, 0) == 1


def test_a_warmup_of_one_step_starts_at_zero():
    assert [warmup_cosine(step, 10, 1) for step in (0, 1)] == [0, 1]


def test_a_run_of_one_step():
    assert warmup_cosine(0, 1, 0) == 1


def test_past_the_end_it_stays_on_the_floor():
    assert warmup_cosine(150, 100, 10) == warmup_cosine(100, 100, 10)


@pytest.mark.parametrize("total, warmup", [(10, 10), (10, 11), (1, 1), (10, -1)])
def test_a_warmup_that_never_ends_is_refused(total, warmup):
    with pytest.raises(ValueError, match=rf"warm-up \({warmup} steps\).*run \({total} steps\)"):
        warmup_cosine(0, total, warmup)


def test_set_lr_multiplies_each_groups_base():
    weight, bias = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD(
        [dict(params=[weight], lr=0.2, base_lr=0.2), dict(params=[bias], lr=0.01, base_lr=0.01)]
    )
    set_lr(optimizer, 0.5)
    set_lr(optimizer, 0.25)  # of the base, not of the last
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.0025])


# The schedules of the systems this project grew from, as they define them --------


@pytest.mark.parametrize("total, warmup, start", [(50, 5, 0.0), (50, 5, 0.2), (50, 0, 0.0), (9, 8, 0.0)])
def test_warm_up_cosine_of_the_histopathology_recipe(total, warmup, start):
    base = 0.03
    for t in range(total + 5):
        if t < warmup:
            expected = (base - start * base) / warmup * t + start * base
        elif t <= total:
            expected = 0.5 * base * (1 + math.cos(math.pi * (t - warmup) / (total - warmup)))
        else:
            expected = 0.0
        assert base * warmup_cosine(t, total, warmup, floor=0.0, start=start) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("epochs", [11, 100, 801])
def test_simclr_by_epoch(epochs):
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    ramp = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, 1.0, total_iters=10)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs - 10)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [ramp, decay], milestones=[10])
    for epoch in range(epochs):
        ours = warmup_cosine(epoch, epochs, 10, floor=0.0, start=0.01)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("total, warmup", [(50, 10), (50, 2), (50, 0), (50, 1)])
def test_nidl_reaches_the_peak_one_step_before_the_cosine(total, warmup):
    base, first, least = 0.2, 1e-6, 1e-3
    for t in range(total):
        if t < warmup:
            expected = base if warmup == 1 else first + t * (base - first) / (warmup - 1)
        else:
            expected = least + 0.5 * (base - least) * (1 + math.cos(math.pi * (t - warmup) / (total - warmup)))
        ours = base * warmup_cosine(t, total, warmup, floor=least / base, start=first / base, hold=1)
        assert ours == pytest.approx(expected, abs=1e-12)


def test_step_decay_is_multi_step_lr():
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5, 5, 9], gamma=0.1)
    for step in range(12):
        assert step_decay(step, [3, 5, 5, 9], 0.1) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


@given(
    values=st.lists(st.one_of(st.floats(0, 10), st.sampled_from([1.0, 0.5, float("nan")])), max_size=60),
    patience=st.integers(0, 5),
    factor=st.sampled_from([0.1, 0.2, 0.5]),
)
@settings(deadline=None)
def test_plateau_is_reduce_lr_on_plateau_at_every_epoch(values, patience, factor):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    options = dict(factor=factor, patience=patience)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=1e-3, eps=0.0, **options)
    for epoch, value in enumerate(values):
        scheduler.step(value)
        expected = optimizer.param_groups[0]["lr"]
        assert plateau(values[: epoch + 1], floor=1e-3, **options) == pytest.approx(expected, rel=1e-9)


def test_plateau_of_nothing_is_one():
    assert plateau([]) == 1.0


def test_a_group_without_a_base_rate_keeps_the_one_it_had():
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.4)
    for factor, expected in ((0.5, 0.2), (0.25, 0.1), (1.0, 0.4)):
        set_lr(optimizer, factor)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
