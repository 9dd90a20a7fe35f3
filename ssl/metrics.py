"""How good predictions are. Definitions are scikit-learn's; what has no value is called so, never 0.

`UNDEFINED` stands where a metric applies but these images give it no value: an AUC where a class
has no images or all of them, the recall of a class without images. None stands where it does not apply.
"""

import math
import statistics

import torch
from torch import Tensor

from ssl.errors import UserError

UNDEFINED = "undefined"


def correct_at(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """How many of the labels (N,) are among the k best classes of scores (N, C); a scalar tensor."""
    top = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return (top == labels[:, None]).any(1).sum()


def accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Share, in 0..1, of labels (N,) among the k best classes of scores (N, C)."""
    return (correct_at(scores, labels, k) / torch.tensor(len(labels), dtype=torch.float64)).item()


def classification(scores: Tensor, labels: Tensor, classes: list[str]) -> dict:
    """Everything `finetune.py` reports of scores (N, C), the larger the likelier, and labels (N,); ready for JSON.

    The predicted class is the best one; of several best, the first. Values are in 0..1 but for `mcc`, in -1..1.
    acc1, acc2: the label is the best class, among the two best (None for fewer than three classes).
    balanced_accuracy: the mean recall of the classes that have images.
    auc: of class 1 of two (None for other numbers). One class against the rest: auc_micro pools all N·C
    decisions; auc_macro is the mean over classes, undefined if it is for one; auc_weighted weighs
    classes by their images, so that one without images does not count.
    mcc: Matthews' correlation, undefined where all labels or all predictions are one class.
    sensitivity, specificity: the recall of class 1 and of class 0 of two, at threshold 0.5 (None for other numbers).
    recall, count: by class, of its images. confusion: row = label, column = prediction; `_normalised`
    divides a row by its sum.

    Raises `ValueError` for shapes that do not fit, labels outside 0..C-1 and no images at all,
    `UserError` for scores that are not finite.
    """
    scores, labels = scores.detach().cpu(), labels.cpu()
    _require_fitting(scores, labels, classes)
    first = scores.argmax(1)
    second = scores.scatter(1, first[:, None], -math.inf).argmax(1)
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    pairs = torch.bincount(labels * len(classes) + first, minlength=len(classes) ** 2)
    confusion = pairs.reshape(len(classes), -1).tolist()
    recall = [row[i] / count if count else UNDEFINED for i, (row, count) in enumerate(zip(confusion, counts))]
    binary = len(classes) == 2
    aucs = [auc(column, labels == i) for i, column in enumerate(scores.T.contiguous())]
    one_hot = labels[:, None] == torch.arange(len(classes))
    return {
        "acc1": sum(row[i] for i, row in enumerate(confusion)) / len(labels),
        "acc2": None if len(classes) < 3 else ((first == labels) | (second == labels)).sum().item() / len(labels),
        "balanced_accuracy": statistics.fmean(value for value in recall if value != UNDEFINED),
        "auc": aucs[1] if binary else None,
        "auc_micro": auc(scores.flatten(), one_hot.flatten()),
        "auc_macro": UNDEFINED if UNDEFINED in aucs else statistics.fmean(aucs),
        "auc_weighted": _weighted(aucs, counts),
        "mcc": _mcc(confusion),
        "sensitivity": recall[1] if binary else None,
        "specificity": recall[0] if binary else None,
        "recall": dict(zip(classes, recall)),
        "count": dict(zip(classes, counts)),
        "confusion": confusion,
        "confusion_normalised": [
            [value / count if count else UNDEFINED for value in row] for row, count in zip(confusion, counts)
        ],
    }


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
    """Area under the ROC curve of scores (N,) for positive (N,) bool: the share of (positive, negative) pairs in
    the right order, a tie counting half. Exact: pairs are counted, in whole numbers, after one sort."""
    pos, neg = scores[positive], scores[~positive].sort().values
    if not len(pos) or not len(neg):
        return UNDEFINED
    halves = sum(torch.searchsorted(neg, pos, side=side).sum().item() for side in ("left", "right"))
    return halves / (2 * len(pos) * len(neg))


def roc_curve(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """(false positive rate, true positive rate), both (T + 1,) from 0 to 1, at every one of T different scores (N,).

    There must be both kinds of images.
    """
    order = scores.argsort(descending=True)
    scores, positive = scores[order], positive[order]
    last = torch.cat([scores[1:] != scores[:-1], torch.tensor([True])])  # images of one score pass together
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
    """Gorodkin's R_K for any number of classes, in whole numbers up to the last step."""
    labelled, predicted = [sum(row) for row in confusion], [sum(column) for column in zip(*confusion)]
    total, right = sum(labelled), sum(row[i] for i, row in enumerate(confusion))
    spread = [total**2 - sum(count**2 for count in counts) for counts in (labelled, predicted)]
    if 0 in spread:
        return UNDEFINED
    covariance = total * right - sum(a * b for a, b in zip(labelled, predicted))
    return covariance / math.sqrt(spread[0]) / math.sqrt(spread[1])


def over_runs(results: list[dict]) -> dict:
    """{name: {mean, std, values, undefined}} of the numbers in several runs' results, for every name of the first.

    `std` has n - 1 in its denominator and is None for a single number. `undefined` is how many
    runs have no (finite) number there: mean and std are of the others, and the mean is
    "undefined" where there are none. A dict within gives a dict; names without a number in any run, lists and None,
    are left out, unless a run says "undefined".
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
