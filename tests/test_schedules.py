"""Warm-up and cosine decay."""

import math

import pytest
import torch

from ssl.schedules import set_lr, warmup_cosine


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
