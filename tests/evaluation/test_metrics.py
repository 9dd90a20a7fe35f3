"""Metrics are scikit-learn's, to twelve digits, and what has no value is said to have none."""

import json
import math
import operator
import statistics
import warnings
from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from sklearn.exceptions import UndefinedMetricWarning

from ssl.errors import UserError
from ssl.evaluation import metrics
from ssl.evaluation.metrics import (
    UNDEFINED,
    _mcc,
    auc,
    classification,
    over_runs,
    roc_curve,
)

CLOSE = dict(rel=1e-12, abs=1e-12)


@st.composite
def predictions(draw, most=12):
    """(scores, labels, C): few levels, so that there are ties; few images, so that classes are absent; or extremes."""
    count, width = draw(st.integers(1, 40)), draw(st.integers(2, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["ties", "softmax", "extreme", "constant"]))
    if kind == "ties":
        scores = rng.integers(0, 4, (count, width)) / 4
    elif kind == "softmax":
        scores = torch.from_numpy(rng.normal(size=(count, width)) * 10).softmax(1).numpy()
    elif kind == "extreme":
        scores = rng.choice([0.0, -0.0, 5e-324, 1e-308, 1e-17, 0.5, 1 - 2**-53, 1.0, 1e308], (count, width))
    else:
        scores = np.full((count, width), 0.5)
    present = rng.choice(width, draw(st.integers(1, width)), replace=False)
    return scores, rng.choice(present, count), width


@st.composite
def tables(draw):
    """Counts of images, row = label, column = prediction."""
    width = draw(st.integers(2, 6))
    row = st.lists(st.integers(0, 10**10), min_size=width, max_size=width)
    return draw(st.lists(row, min_size=width, max_size=width))


def ours(scores, labels, width):
    names = [f"c{i}" for i in range(width)]
    return classification(torch.from_numpy(scores), torch.from_numpy(labels), names), names


def expected_auc(onehot, scores, average):
    """scikit-learn's; NaN, with a warning, where it has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        value = reference.roc_auc_score(onehot, scores, average=average)
    return UNDEFINED if math.isnan(value) else pytest.approx(value, **CLOSE)


@settings(max_examples=300, deadline=None, report_multiple_bugs=False)  # one AssertionError, for the control below
@given(predictions())
def test_every_metric_is_scikit_learns(case):
    scores, labels, width = case
    found, names = ours(*case)
    predicted = scores.argmax(1)
    onehot = np.eye(width)[labels]

    confusion = reference.confusion_matrix(labels, predicted, labels=range(width))
    assert found["confusion"] == confusion.tolist()
    assert found["acc1"] == pytest.approx(reference.accuracy_score(labels, predicted), **CLOSE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # predictions of classes without images
        balanced = reference.balanced_accuracy_score(labels, predicted)
    assert found["balanced_accuracy"] == pytest.approx(balanced, **CLOSE)

    if width == 2:
        assert found["acc2"] is None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndefinedMetricWarning)
            value = reference.roc_auc_score(labels, scores[:, 1])
        assert found["auc"] == (UNDEFINED if math.isnan(value) else pytest.approx(value, **CLOSE))
    else:
        assert found["auc"] is found["sensitivity"] is found["specificity"] is None
        in_order = np.argsort(-scores, axis=1, kind="stable")[:, :2]  # top_k_accuracy_score takes the last of a tie
        assert found["acc2"] == pytest.approx((in_order == labels[:, None]).any(1).mean(), **CLOSE)
    for average in ("micro", "macro", "weighted"):
        whole = average == "weighted" and len(set(labels)) == 1  # scikit-learn gives NaN here, too
        assert found[f"auc_{average}"] == (UNDEFINED if whole else expected_auc(onehot, scores, average))

    if len(set(labels)) > 1 and len(set(predicted)) > 1:
        assert found["mcc"] == pytest.approx(reference.matthews_corrcoef(labels, predicted), **CLOSE)
    else:
        assert found["mcc"] == UNDEFINED
    recall = reference.recall_score(labels, predicted, labels=range(width), average=None, zero_division=np.nan)
    for name, value, row, total in zip(names, recall, found["confusion_normalised"], confusion.sum(1)):
        assert found["count"][name] == total
        assert found["recall"][name] == (pytest.approx(value, **CLOSE) if total else UNDEFINED)
        if not total:
            assert row == [UNDEFINED] * width
    shares = reference.confusion_matrix(labels, predicted, labels=range(width), normalize="true")
    for row, wanted, total in zip(found["confusion_normalised"], shares, confusion.sum(1)):
        assert not total or row == pytest.approx(wanted.tolist(), **CLOSE)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@settings(max_examples=100, deadline=None)
@given(predictions(most=2))
def test_two_classes(case):
    scores, labels, _ = case
    found, _ = ours(*case)
    chosen = scores[:, 1] > scores[:, 0]
    for name, kind, right in (("sensitivity", labels == 1, chosen), ("specificity", labels == 0, ~chosen)):
        assert found[name] == (pytest.approx(right[kind].mean(), **CLOSE) if kind.any() else UNDEFINED)


@settings(max_examples=200, deadline=None)
@given(predictions(most=2))
def test_auc_is_the_share_of_pairs_in_the_right_order(case):
    scores, labels, _ = case
    pos, neg = scores[labels == 1, 1], scores[labels == 0, 1]
    found = auc(torch.from_numpy(scores[:, 1]), torch.from_numpy(labels == 1))
    if len(pos) and len(neg):
        pairs = (pos[:, None] > neg).astype(float) + 0.5 * (pos[:, None] == neg)
        assert found == pytest.approx(pairs.mean(), **CLOSE)
        fpr, tpr = roc_curve(torch.from_numpy(scores[:, 1]), torch.from_numpy(labels == 1))
        assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
        assert torch.trapezoid(tpr, fpr).item() == pytest.approx(found, **CLOSE)
        wanted = reference.roc_curve(labels, scores[:, 1], drop_intermediate=False)
        assert fpr.tolist() == pytest.approx(wanted[0].tolist()) and tpr.tolist() == pytest.approx(wanted[1].tolist())
    else:
        assert found == UNDEFINED


@pytest.mark.parametrize("sides", [("left", "left"), ("right", "right")], ids=["ties lose", "ties win"])
def test_control_without_midranks_ties_are_found_out(sides, monkeypatch):
    scores, positive = torch.tensor([0.2, 0.5, 0.5, 0.9]), torch.tensor([False, True, False, True])
    assert auc(scores, positive) == 3.5 / 4
    search, order = torch.searchsorted, iter(sides)
    monkeypatch.setattr(torch, "searchsorted", lambda *args, side: search(*args, side=next(order)))
    assert auc(scores, positive) == {"left": 3 / 4, "right": 4 / 4}[sides[0]]
    with pytest.raises(AssertionError):
        monkeypatch.setattr(torch, "searchsorted", lambda *args, side: search(*args, side=sides[0]))
        test_every_metric_is_scikit_learns()


def test_thresholds_are_the_scores_themselves():
    """Two thousand fixed thresholds, as some libraries take, see no difference below 0.0005."""
    scores = torch.tensor([1e-9, 2e-9, 3e-9, 4e-9], dtype=torch.float64)
    assert auc(scores, torch.tensor([False, False, True, True])) == 1.0


def test_many_images_are_not_compared_pair_by_pair():
    count = 300_000  # a matrix of pairs would take 90 GB
    scores = torch.rand(count, generator=torch.Generator().manual_seed(0)).round(decimals=3)
    positive = torch.rand(count, generator=torch.Generator().manual_seed(1)) < 0.2 + 0.3 * scores
    assert auc(scores, positive) == pytest.approx(reference.roc_auc_score(positive, scores), **CLOSE)


def test_one_class_only_is_undefined_and_never_nought():
    found, _ = ours(np.array([[0.1, 0.9], [0.6, 0.4]]), np.array([1, 1]), 2)
    assert (found["auc"], found["auc_macro"], found["auc_weighted"], found["mcc"]) == (UNDEFINED,) * 4
    assert found["recall"] == {"c0": UNDEFINED, "c1": 0.5} and found["balanced_accuracy"] == 0.5
    assert found["specificity"] == UNDEFINED and found["sensitivity"] == 0.5
    assert found["confusion_normalised"] == [[UNDEFINED, UNDEFINED], [0.5, 0.5]]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 10**12), min_size=2, max_size=8))
def test_matthews_correlation_of_all_right_is_one_and_of_two_classes_swapped_minus_one(counts):
    assert _mcc(np.diag(np.array(counts, object)).tolist()) == 1
    assert _mcc([[0, counts[0]], [counts[1], 0]]) == -1


@settings(max_examples=200, deadline=None)
@given(tables())
def test_matthews_correlation_is_its_formula_and_within_its_bounds(confusion):
    labelled, predicted = [sum(row) for row in confusion], [sum(column) for column in zip(*confusion)]
    count, right = sum(labelled), sum(row[i] for i, row in enumerate(confusion))
    spread = [count**2 - sum(c**2 for c in counts) for counts in (labelled, predicted)]
    if 0 in spread:
        assert _mcc(confusion) == UNDEFINED
        return
    covariance = count * right - sum(map(operator.mul, labelled, predicted))
    with localcontext() as digits:
        digits.prec = 80
        expected = Decimal(covariance) / Decimal(spread[0] * spread[1]).sqrt()
    assert -1 <= _mcc(confusion) <= 1 and _mcc(confusion) == pytest.approx(float(expected), rel=1e-15, abs=1e-18)


def test_an_epoch_takes_some_of_the_metrics_and_no_auc_of_all_decisions_pooled(monkeypatch):
    scores = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)).softmax(1)
    labels, groups = torch.arange(200) % 5, [str(i % 20) for i in range(200)]
    every = classification(scores, labels, list("abcde"), groups)
    sizes, plain = [], metrics.auc
    monkeypatch.setattr(metrics, "auc", lambda x, positive: sizes.append(len(x)) or plain(x, positive))
    found = metrics.of_epoch(scores, labels, list("abcde"), groups)
    assert found == {name: every[name] for name in found} and sizes == [200] * 5
    names = {"acc1", "acc1_interval", "balanced_accuracy", "balanced_accuracy_interval", "auc", "auc_macro", "mcc"}
    assert set(found) == names | {"groups"}


def test_float32_scores_are_compared_as_they_are():
    scores = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)).softmax(1)
    labels = torch.randint(5, (200,), generator=torch.Generator().manual_seed(1))
    names = list("abcde")
    assert classification(scores, labels, names) == classification(scores.double(), labels, names)


@pytest.mark.parametrize(
    "scores, labels, classes, kind, words",
    [
        ([[0.5, math.nan]], [0], "ab", UserError, "1 of 1 images have NaN"),
        ([[0.5, math.inf], [0.5, 0.5]], [0, 1], "ab", UserError, "1 of 2"),
        ([[0.5, 0.5]], [2], "ab", ValueError, "labels"),
        ([[0.5, 0.5]], [-1], "ab", ValueError, "labels"),
        ([[0.5, 0.5]], [1.0], "ab", ValueError, "labels"),
        ([[0.5, 0.5]], [0, 1], "ab", ValueError, r"\(1, 2\) and \(2,\)"),
        ([[0.5, 0.5]], [0], "abc", ValueError, "a column a class"),
        ([[0.5, 0.5]], [0], "aa", ValueError, "same name"),
    ],
)
def test_what_cannot_be_measured_is_refused(scores, labels, classes, kind, words):
    with pytest.raises(kind, match=words):
        classification(torch.tensor(scores), torch.tensor(labels), list(classes))


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no images"):
        classification(torch.empty(0, 2), torch.empty(0, dtype=torch.long), ["a", "b"])


# several runs


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8))
def test_mean_and_standard_deviation(numbers):
    found = over_runs([{"auc": value} for value in numbers])["auc"]
    assert found["mean"] == pytest.approx(np.mean(numbers), abs=1e-9)
    assert found["std"] == pytest.approx(np.std(numbers, ddof=1), abs=1e-9)
    assert found["values"] == numbers and found["undefined"] == 0


def test_one_run_has_no_standard_deviation():
    assert over_runs([{"acc1": 0.5}]) == {"acc1": {"mean": 0.5, "std": None, "values": [0.5], "undefined": 0}}


def test_undefined_runs_are_left_out_and_counted():
    found = over_runs([{"auc": 0.5}, {"auc": UNDEFINED}, {"auc": 0.75}, {"auc": math.nan}])["auc"]
    assert found == {
        "mean": 0.625,
        "std": statistics.stdev([0.5, 0.75]),
        "values": [0.5, UNDEFINED, 0.75, UNDEFINED],
        "undefined": 2,
    }
    nowhere = over_runs([{"auc": UNDEFINED}, {"auc": UNDEFINED}])["auc"]
    assert (nowhere["mean"], nowhere["std"], nowhere["undefined"]) == (UNDEFINED, None, 2)


def test_results_of_classification_are_summed_up():
    rng = np.random.default_rng(0)
    runs = [ours(rng.random((30, 3)), rng.integers(0, 3, 30), 3)[0] for _ in range(4)]
    found = over_runs(runs)
    assert found["recall"]["c1"]["mean"] == pytest.approx(np.mean([run["recall"]["c1"] for run in runs]))
    assert found["mcc"]["values"] == [run["mcc"] for run in runs]
    assert "auc" not in found and "confusion" not in found  # of two classes only; no number
    json.dumps(found, allow_nan=False)
