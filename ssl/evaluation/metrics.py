"""Metrics of predictions, as scikit-learn defines them. A metric without a value is never 0.

`UNDEFINED`: these images give the metric no value, as the AUC of a class that has no images or all of them, or the
recall of a class without images. None: the metric does not apply.
"""

import math
import statistics

import torch
from torch import Tensor

from ssl.errors import UserError
from ssl.evaluation.intervals import Groups, around, count_of, widening, wilson

UNDEFINED = "undefined"


def hits(scores: Tensor, labels: Tensor, k: int = 1) -> Tensor:
    """Whether each of the labels (N,) is among the k best classes of scores (N, C); (N,) bool.

    Of several best classes the first is the best.
    """
    if k == 1:
        return scores.argmax(1) == labels
    return (scores.topk(min(k, scores.shape[1]), dim=1).indices == labels[:, None]).any(1)


def share(name: str, right: int, count: int, wider: float = 1.0) -> dict:
    """{name, name_interval}: `right` / `count`, in 0..1, and its 95 % interval, as of `wilson`."""
    return {name: right / count, f"{name}_interval": wilson(right, count, wider)}


def share_of(name: str, correct: Tensor, groups: Groups | None = None) -> dict:
    """`share` of the images (N,) that are correct, with groups (N,)."""
    return share(name, int(correct.sum()), len(correct), widening(correct, groups))


def balanced(right: list[int], counts: list[int], wider: float = 1.0) -> dict:
    """balanced_accuracy: the mean recall of the classes that have images; and its 95 % interval.

    Of class c, `right[c]` of `counts[c]` images are right. The interval is made of the Wilson intervals of the classes
    (MOVER, Zou and Donner 2008), and then made wider by `wider`, as of `widening`.
    """
    of_classes = [(r / count, wilson(r, count)) for r, count in zip(right, counts) if count]
    mean = statistics.fmean(recall for recall, _ in of_classes)
    below, above = (
        math.sqrt(sum((recall - limits[side]) ** 2 for recall, limits in of_classes)) / len(of_classes)
        for side in (0, 1)
    )
    return {"balanced_accuracy": mean, "balanced_accuracy_interval": around(mean, below, above, wider)}


def accuracy(labels: Tensor, correct: Tensor, groups: Groups | None = None) -> dict:
    """n, acc1 and balanced_accuracy with their intervals, from labels (N,) and whether each was the best class (N,).

    With groups (N,) the intervals are over groups, whose number stands beside n.
    """
    labels, correct = labels.cpu(), correct.cpu()
    counts = torch.bincount(labels)
    right = torch.bincount(labels[correct], minlength=len(counts)).tolist()
    found = {"n": len(labels)} | count_of(groups) | share_of("acc1", correct, groups)
    return found | balanced(right, counts.tolist(), widening(correct, groups, labels))


def acc5(among_five: Tensor, classes: int, groups: Groups | None = None) -> dict:
    """acc5 and its interval, from whether each label is among the five best classes (N,). Undefined for up to five."""
    return share_of("acc5", among_five, groups) if classes > 5 else {"acc5": UNDEFINED}


def percent(found: dict, name: str) -> str:
    """'79.1 % (77.2–80.8)': the share `name` and its interval."""
    low, high = found[f"{name}_interval"]
    return f"{100 * found[name]:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


def of_epoch(scores: Tensor, labels: Tensor, classes: list[str], groups: Groups | None = None) -> dict:
    """Those metrics of `classification` that finetune.py takes in every epoch. The others take more time and memory."""
    return _measured(scores.detach().cpu(), labels.cpu(), classes, groups)[0]


def classification(scores: Tensor, labels: Tensor, classes: list[str], groups: Groups | None = None) -> dict:
    """The metrics that finetune.py reports, ready for JSON, from scores (N, C), larger = likelier, and labels (N,).

    The class with the largest score is predicted; of several, the first. All values are in 0..1, `mcc` in -1..1.

    - acc1, acc2: the label is the best class, among the two best (None for fewer than three classes).
    - balanced_accuracy: the mean recall of the classes that have images.
    - acc1_interval, acc2_interval, balanced_accuracy_interval: [low, high], 95 %; with groups (N,) over `groups` of
      them.
    - auc: of class 1 of two (None for other numbers of classes).
    - auc_micro, auc_macro, auc_weighted: each class against the rest; all N·C decisions pooled, the mean over the
      classes (undefined if one is), the mean weighted by the images of the classes (a class without images counts 0).
    - mcc: Matthews' correlation, undefined where all labels or all predictions are one class.
    - sensitivity, specificity: the recall of class 1 and of class 0 of two (None for other numbers of classes).
    - recall, count: the recall and the number of images of each class.
    - confusion: counts, row = label, column = prediction; confusion_normalised: rows divided by their sums.

    Raises `ValueError` for shapes that do not fit, labels outside 0..C-1 and no images, `UserError` for scores that are
    not finite.
    """
    scores, labels = scores.detach().cpu(), labels.cpu()
    found, aucs, confusion = _measured(scores, labels, classes, groups)
    first = scores.argmax(1)
    second = scores.scatter(1, first[:, None], -math.inf).argmax(1)
    among_two = (first == labels) | (second == labels)
    counts = [sum(row) for row in confusion]
    recall = [row[i] / count if count else UNDEFINED for i, (row, count) in enumerate(zip(confusion, counts))]
    one_hot = labels[:, None] == torch.arange(len(classes))
    binary = len(classes) == 2
    return found | {
        **({"acc2": None} if len(classes) < 3 else share_of("acc2", among_two, groups)),
        "auc_micro": auc(scores.flatten(), one_hot.flatten()),
        "auc_weighted": _weighted(aucs, counts),
        "sensitivity": recall[1] if binary else None,
        "specificity": recall[0] if binary else None,
        "recall": dict(zip(classes, recall)),
        "count": dict(zip(classes, counts)),
        "confusion": confusion,
        "confusion_normalised": [
            [value / count if count else UNDEFINED for value in row] for row, count in zip(confusion, counts)
        ],
    }


def _measured(
    scores: Tensor, labels: Tensor, classes: list[str], groups: Groups | None
) -> tuple[dict, list[float | str], list[list[int]]]:
    """(metrics of every epoch, the AUC of each class, confusion) of scores (N, C) and labels (N,)."""
    _require_fitting(scores, labels, classes)
    first = scores.argmax(1)
    pairs = torch.bincount(labels * len(classes) + first, minlength=len(classes) ** 2)
    confusion = pairs.reshape(len(classes), -1).tolist()
    right, counts = [row[i] for i, row in enumerate(confusion)], [sum(row) for row in confusion]
    aucs = [auc(column, labels == i) for i, column in enumerate(scores.T.contiguous())]
    correct = first == labels
    found = {
        **count_of(groups),
        **share_of("acc1", correct, groups),
        **balanced(right, counts, widening(correct, groups, labels)),
        "auc": aucs[1] if len(classes) == 2 else None,
        "auc_macro": UNDEFINED if UNDEFINED in aucs else statistics.fmean(aucs),
        "mcc": _mcc(confusion),
    }
    return found, aucs, confusion


def _require_fitting(scores: Tensor, labels: Tensor, classes: list[str]) -> None:
    if scores.shape != (len(labels), len(classes)) or labels.dim() != 1:
        raise ValueError(
            f"expected scores (N, {len(classes)}), a column a class, and labels (N,), "
            f"got {tuple(scores.shape)} and {tuple(labels.shape)}"
        )
    if not len(labels):
        raise ValueError("no images: there is nothing to measure")
    if len(set(classes)) < len(classes):
        raise ValueError(f"two classes have the same name: {', '.join(classes)}")
    if labels.is_floating_point() or not 0 <= labels.min() <= labels.max() < len(classes):
        found = labels.unique().tolist()[:10]
        raise ValueError(f"labels: expected class numbers in 0..{len(classes) - 1}, got {found}")
    bad = (~scores.isfinite()).any(1).sum().item()
    if bad:
        raise UserError(
            f"scores: {bad} of {len(scores)} images have NaN or Inf; did the training diverge? Try a lower --lr"
        )


def auc(scores: Tensor, positive: Tensor) -> float | str:
    """Area under the ROC curve of scores (N,) for positive (N,) bool.

    It is the share of (positive, negative) pairs in the right order; a tie counts half. Pairs are counted in whole
    numbers, so the result is exact.
    """
    pos, neg = scores[positive], scores[~positive].sort().values
    if not len(pos) or not len(neg):
        return UNDEFINED
    halves = sum(torch.searchsorted(neg, pos, side=side).sum().item() for side in ("left", "right"))
    return halves / (2 * len(pos) * len(neg))


def roc_curve(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """(false positive rate, true positive rate), both (T + 1,) from 0 to 1, at each of the T different scores of (N,).

    `positive` (N,) bool must have both values.
    """
    order = scores.argsort(descending=True)
    scores, positive = scores[order], positive[order]
    last = torch.cat([scores[1:] != scores[:-1], torch.tensor([True])])  # images with one score pass together
    rates = []
    for kind in (~positive, positive):
        passed = kind.cumsum(0)[last].double() / kind.sum()
        rates.append(torch.cat([torch.zeros(1, dtype=torch.float64), passed]))
    return rates[0], rates[1]


def _weighted(aucs: list[float | str], counts: list[int]) -> float | str:
    of_classes = [(value, count) for value, count in zip(aucs, counts) if count]
    if any(value == UNDEFINED for value, _ in of_classes):  # one class has all images
        return UNDEFINED
    return math.fsum(value * count for value, count in of_classes) / sum(counts)


def _mcc(confusion: list[list[int]]) -> float | str:
    """Gorodkin's R_K (2004), Matthews' correlation of any number of classes; in whole numbers up to the last step,
    so that it is never beyond -1 or 1."""
    labelled, predicted = [sum(row) for row in confusion], [sum(column) for column in zip(*confusion)]
    total, right = sum(labelled), sum(row[i] for i, row in enumerate(confusion))
    spread = [total**2 - sum(count**2 for count in counts) for counts in (labelled, predicted)]
    if 0 in spread:
        return UNDEFINED
    covariance = total * right - sum(a * b for a, b in zip(labelled, predicted))
    return (covariance << 64) / math.isqrt(spread[0] * spread[1] << 128)


def over_runs(results: list[dict]) -> dict:
    """{name: {mean, std, values, undefined}} over the results of several runs, for every name of the first.

    `undefined` counts the runs without a finite number; mean and std are of the others, and the mean of none is
    "undefined". `std` divides by n - 1 and is None for one number. A dict in the results gives such a dict. Names that
    are a number or "undefined" in no run, as those of lists, are left out.
    """
    summary: dict = {}
    for name, first in results[0].items():
        values = [result.get(name) for result in results]
        if isinstance(first, dict):
            summary[name] = over_runs(values)
        elif any(_is_number(value) or value == UNDEFINED for value in values):
            numbers = [value for value in values if _is_number(value)]
            summary[name] = {
                "mean": statistics.fmean(numbers) if numbers else UNDEFINED,
                "std": statistics.stdev(numbers) if len(numbers) > 1 else None,
                "values": [value if _is_number(value) else UNDEFINED for value in values],
                "undefined": len(values) - len(numbers),
            }
    return summary


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
