"""How good a frozen encoder is with few labels: the mean over several draws of them, with an interval.

Draw d of seed s takes the first images of every class in the order that seed s + d gives. So all encoders are judged on
the same images, and the images of one shot are among those of five.
"""

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from ssl.evaluation import intervals, logistic, metrics
from ssl.evaluation.feature_rows import Samples, subset

DRAWS = 5


def over_draws(name: str, values: Sequence[float]) -> dict:
    """{name, name_interval}: the mean of two or more shares, and its 95 % interval over the draws (Student's t).

    The interval says how much the choice of the labels matters. It does not hold how much the choice of the test images
    does.
    """
    mean = statistics.fmean(values)
    half = intervals.student_95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return {name: mean, f"{name}_interval": [max(0.0, mean - half), min(1.0, mean + half)]}


def accuracies(train: Samples, test: Samples, classes: int, draws: list[Tensor], mean: Tensor) -> dict:
    """Accuracies on `test` of the heads that learn from the `draws` of `train`, each (features (N, F), labels (N,)).

    Returns n (test images), labels (how many a draw has), acc1 and balanced_accuracy over the draws with their
    intervals, and acc1 of each draw. Where all draws have the same labels there is no interval. `mean` (F,) is that of
    all features of train.
    """
    found = []
    for index in draws:
        index = index.to(train[1].device)
        part = (subset(train[0], index), train[1][index])
        found.append(metrics.accuracy(test[1], logistic.learn(part, classes, mean).hits(test)))
    differ = any(not torch.equal(index, draws[0]) for index in draws)
    over: dict = {}
    for name in ("acc1", "balanced_accuracy"):
        over |= over_draws(name, [one[name] for one in found]) if differ else {name: found[0][name]}
    return {
        "n": len(test[1]),
        "labels": len(draws[0]),
        **over,
        "acc1_of_draws": [one["acc1"] for one in found],
    }


def smaller_classes(labels: Tensor, shots: int, classes: Sequence[str]) -> list[str]:
    """The names of the classes that have fewer than `shots` images."""
    counts = torch.bincount(labels.cpu(), minlength=len(classes)).tolist()
    return [name for name, count in zip(classes, counts) if count < shots]
