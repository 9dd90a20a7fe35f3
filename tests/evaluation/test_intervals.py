"""Intervals hold the truth, also where images of a group are alike; and are those of plain references."""

import numpy as np
import pytest
import torch
from scipy import stats

from ssl.evaluation.intervals import NORMAL_95, STUDENT_95, student_95, wilson
from ssl.evaluation.metrics import accuracy, balanced, classification, over_runs


def test_student_95_is_the_quantile_and_between_the_table_s_rows_within_one_in_a_thousand():
    for freedom in [*(row for row, _ in STUDENT_95), 5.5, 12, 25, 45, 300]:
        assert student_95(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-3)
    assert student_95(0.5) == student_95(1)


@pytest.mark.parametrize("right, count", [(0, 10), (1, 10), (10, 10), (81, 263), (791, 1000), (1, 1)])
def test_the_interval_is_wilsons(right, count):
    expected = stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson(right, count) == pytest.approx([expected.low, expected.high], abs=1e-12)


def test_the_interval_of_one_class_is_wilsons_and_that_of_several_holds_the_truth():
    assert balanced([7, 0], [20, 0])["balanced_accuracy_interval"] == pytest.approx(wilson(7, 20), abs=1e-12)
    generator = np.random.default_rng(0)
    counts, recalls = [20, 60, 200], [0.5, 0.8, 0.95]
    inside = 0
    for _ in range(2000):
        low, high = balanced(generator.binomial(counts, recalls).tolist(), counts)["balanced_accuracy_interval"]
        assert 0 <= low <= high <= 1
        inside += low <= np.mean(recalls) <= high
    assert 0.93 < inside / 2000 < 0.97


def test_classification_says_its_intervals():
    scores, labels = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 2, 2])
    found = classification(scores, labels, ["a", "b", "c"])
    assert found["acc1_interval"] == wilson(3, 4) and found["acc2_interval"] == wilson(3, 4)
    assert found["balanced_accuracy_interval"] == balanced([1, 1, 1], [1, 1, 2])["balanced_accuracy_interval"]
    assert "acc2_interval" not in classification(torch.eye(2), torch.tensor([0, 1]), ["a", "b"])
    assert set(over_runs([found, found])) & {"acc1_interval", "acc2_interval"} == set()  # the spread stands for them


# Intervals over groups


def drawn(generator, sizes, alike, share=0.7):
    """(correct (N,), groups (N,)): images of a group are right with a chance of its own; the correlation is `alike`."""
    chances = generator.beta(share * (1 / alike - 1), (1 - share) * (1 / alike - 1), len(sizes))
    correct = generator.random(sum(sizes)) < chances.repeat(sizes)
    return torch.from_numpy(correct), [f"patient {i}" for i in np.arange(len(sizes)).repeat(sizes)]


@pytest.mark.parametrize("sizes", [[20] * 20, [100] * 8, [60, 30, 20, 20, 10, 10, 5, 5, 5, 5] * 2])
def test_intervals_over_groups_hold_the_truth(sizes):
    """Classes lie within groups, as tissue in patients. The control: those of independent images do not hold it."""
    generator = np.random.default_rng(0)
    labels = torch.arange(sum(sizes)) % 2
    inside = np.zeros(3)
    for _ in range(400):
        correct, groups = drawn(generator, sizes, 0.4)
        found, plain = accuracy(labels, correct, groups), accuracy(labels, correct)
        assert found | plain == plain | {"groups": len(sizes)}
        limits = (found["acc1_interval"], found["balanced_accuracy_interval"], plain["acc1_interval"])
        inside += [low <= 0.7 <= high for low, high in limits]
    assert all(0.92 < held / 400 < 0.985 for held in inside[:2]) and inside[2] / 400 < 0.55


def test_the_interval_over_groups_is_wilsons_with_the_jackknife_s_variance():
    """Beside each share without one group, by hand, and the roots of Wilson's equation with Student's t."""
    sizes = [40, 25, 25, 10, 30]
    correct, groups = drawn(np.random.default_rng(1), sizes, 0.4)
    right, group, n = correct.double().numpy(), np.array(groups), sum(sizes)
    without = np.array([right[group != one].mean() for one in dict.fromkeys(groups)])
    variance = 4 / 5 * ((without - right.mean()) ** 2).sum()
    share, alike = right.mean(), n**2 / sum(size**2 for size in sizes)
    squared = (student_95(alike - 1) ** 2) * variance / (share * (1 - share))
    assert squared > 3 * NORMAL_95**2 / n  # these images are alike
    expected = sorted(np.roots([1 + squared, -(2 * share + squared), share**2]))
    assert accuracy(torch.zeros(n, dtype=torch.long), correct, groups)["acc1_interval"] == pytest.approx(expected)


def test_groups_of_one_image_have_the_interval_of_images():
    labels, correct = torch.arange(400) % 3, torch.arange(400) % 5 > 0
    plain = accuracy(labels, correct)
    for groups in ([str(i) for i in range(400)], [None] * 400):
        found = accuracy(labels, correct, groups)
        assert found["groups"] == 400
        for name in ("acc1_interval", "balanced_accuracy_interval"):
            assert found[name] == pytest.approx(plain[name], abs=1e-3)


def test_of_one_group_nothing_is_known_and_perfect_groups_are_no_error():
    labels, correct = torch.arange(40) % 2, torch.ones(40, dtype=torch.bool)
    one = accuracy(labels, correct, ["a"] * 40)
    assert one["acc1_interval"] == one["balanced_accuracy_interval"] == [0, 1] and one["groups"] == 1
    several = accuracy(labels, correct, ["a", "b", "c", None] * 10)
    low, high = several["acc1_interval"]
    assert high == 1 and 0.5 < low < wilson(40, 40)[0] and several["groups"] == 13


@pytest.mark.parametrize("right", [0, 20, 40])
def test_intervals_are_plain_numbers_that_a_checkpoint_can_hold(right):
    found = accuracy(torch.arange(40) % 2, torch.arange(40) < right, ["a", "b", "c", None] * 10)
    ends = [end for name, limits in found.items() if name.endswith("_interval") for end in limits]
    assert len(ends) == 4 and {type(end) for end in ends} == {float}


def test_classification_has_the_intervals_over_groups_of_accuracy():
    scores = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    labels, groups = torch.arange(60) % 3, [str(i // 10) for i in range(60)]
    found = classification(scores, labels, ["a", "b", "c"], groups)
    expected = accuracy(labels, scores.argmax(1) == labels, groups)
    assert all(found[name] == value for name, value in expected.items() if name != "n")
    among_two = scores.argmin(1) != labels
    assert found["acc2_interval"] == accuracy(labels, among_two, groups)["acc1_interval"]
