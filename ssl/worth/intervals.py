"""How sure a difference is: its 95 % interval over test images and seeds, and the smallest that could be seen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssl.evaluation.metrics import student_95
from ssl.worth.scores import Judges, Score

BETWEEN_SEEDS = 0.015  # the least deviation between draws and trainings that is assumed: one seed does not show it
POWER = 0.8416  # 80 % of a normal distribution lie below it


@dataclass(frozen=True)
class Estimate:
    """A share, or a difference of two, with its interval of 95 %. `seen`: the smallest difference that four of five
    such experiments would find."""

    value: float
    low: float
    high: float
    seen: float
    seeds: int
    images: int


def level(score: Score, test: Judges, beside: Score | None = None) -> Estimate:
    """The accuracy of a score; of the seeds alone that the score `beside` has, too."""
    seeds = sorted(score.right.keys() & (beside or score).right.keys())
    found = mean([score.right[seed].astype(float) for seed in seeds], test)
    return Estimate(found.value, max(found.low, 0.0), min(found.high, 1.0), found.seen, found.seeds, found.images)


def difference(one: Score, other: Score, test: Judges) -> Estimate:
    """By how much `one` is better than `other`, on the same images and the seeds that both have."""
    seeds = sorted(one.right.keys() & other.right.keys())
    return mean([one.right[seed].astype(float) - other.right[seed] for seed in seeds], test)


def mean(of_seeds: Sequence[np.ndarray], test: Judges) -> Estimate:
    """The mean of numbers (N,) in -1..1 of the test images, one array for each seed.

    Its variance is that over images (whole groups), as if there were other test images, and that over seeds, as if
    there were other draws of labels and other trainings; at least BETWEEN_SEEDS is assumed for that. As in Agresti and
    Min's interval for paired shares (2005) one image more in favour and one against are imagined, each a half: without
    them, ten images that all agree would be sure. Satterthwaite's degrees of freedom make the interval wide where few
    seeds differ much.
    """
    values, weight = np.stack(of_seeds), test.weights()
    value = float(values.mean(0) @ weight)
    size = np.bincount(test.groups, weight)
    spread = np.bincount(test.groups, weight * (values.mean(0) - value))
    effective = 1 / float((size**2).sum())  # images, or groups, if all weighed alike
    shrunk = effective / (effective + 2)
    of_images = float((spread**2).sum()) * shrunk**2 + 1 / (effective + 2) ** 2
    measured = float((values @ weight).var(ddof=1)) if len(values) > 1 else 0.0
    of_seed = max(measured, BETWEEN_SEEDS**2) / len(values)
    freedom = math.inf
    if measured > BETWEEN_SEEDS**2:
        freedom = (of_images + of_seed) ** 2 / (of_images**2 / max(len(size) - 1, 1) + of_seed**2 / (len(values) - 1))
    error = math.sqrt(of_images + of_seed)
    deviations = student_95(freedom)
    half = deviations * error
    middle = value * shrunk
    low, high = min(middle - half, value), max(middle + half, value)
    seen = (deviations + POWER) * error
    return Estimate(value, max(low, -1.0), min(high, 1.0), seen, len(values), int(values.shape[1]))
