"""How sure a difference is: its 95 % interval over test images and seeds, and the smallest that could be seen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from ssl.evaluation.intervals import over_groups, student_95
from ssl.worth.scores import Judges, Score

# The least deviation between draws and trainings that is assumed: one seed does not show it. With few labels a draw
# matters more: it is what the frozen encoders show, which have more draws than the fine-tuned ones.
BETWEEN_SEEDS = 0.015
POWER = 0.8416  # 80 % of a normal distribution lie below it


@dataclass(frozen=True)
class Estimate:
    """A share, or a difference of two, with its interval of 95 %. `seen`: the smallest difference that four of five
    such experiments would find."""

    value: float
    low: float
    high: float
    seen: float
    chance: float  # that it is above 0, where before the experiment nothing was known
    seeds: int
    images: int
    of_seeds: float = 0.0  # the share of the variance that is between seeds, and not over images


def level(score: Score, test: Judges, beside: Score | None = None) -> Estimate:
    """The accuracy of a score; of the seeds alone that the score `beside` has, too."""
    seeds = sorted(score.right.keys() & (beside or score).right.keys())
    found = mean([score.right[seed].astype(float) for seed in seeds], test, list(score.draws.values()))
    return replace(found, low=max(found.low, 0.0), high=min(found.high, 1.0))


def difference(one: Score, other: Score, test: Judges) -> Estimate:
    """By how much `one` is better than `other`, on the same images and the seeds that both have.

    Two uses of one start have the same frozen draws: these show what a draw does to each, and not to the difference.
    """
    draws = list(one.draws.values()) if one.draws is other.draws else _apart(one.draws, other.draws)
    return mean(_apart(one.right, other.right), test, draws)


def _apart(one: dict[int, np.ndarray], other: dict[int, np.ndarray]) -> list[np.ndarray]:
    return [one[seed].astype(float) - other[seed] for seed in sorted(one.keys() & other.keys())]


def beyond(one: Score, other: Score, test: Judges) -> Estimate:
    """As `difference`, of scores with different draws of labels: each seed of `one` against the mean of `other`."""
    others = np.stack(list(other.right.values())).astype(float)
    between = max(_variance(others, test), BETWEEN_SEEDS**2) / len(others)
    differences = [right - others.mean(0) for right in one.right.values()]
    return mean(differences, test, list(one.draws.values()), between)


def _variance(of_seeds: Sequence[np.ndarray], test: Judges) -> float:
    """Between seeds, of the means of numbers (N,); 0 of one seed."""
    return float(np.var([values @ test.weights() for values in of_seeds], ddof=1)) if len(of_seeds) > 1 else 0.0


def mean(
    of_seeds: Sequence[np.ndarray], test: Judges, draws: Sequence[np.ndarray] = (), besides: float = 0.0
) -> Estimate:
    """The mean of numbers (N,) in -1..1 of the test images, one array for each seed.

    Its variance is that over images (whole groups), as if there were other test images, and that over seeds, as if
    there were other draws of labels and other trainings; at least BETWEEN_SEEDS is assumed, or what the same numbers of
    `draws` show. `besides` is added. That over groups is that of `over_groups`; of one group nothing is known.
    As in Agresti and Min's interval for paired shares (2005) one image more in favour and one against are imagined,
    each a half: without them, ten images that all agree would be sure. Satterthwaite's degrees of freedom, of what was
    measured, make the interval wide where groups are few, or few seeds differ much.
    """
    values, weight = np.stack(of_seeds), test.weights()
    value = float(values.mean(0) @ weight)
    seeds, (of_groups, of_others) = len(values), over_groups(values.mean(0), weight, test.groups)
    if math.isinf(of_groups):
        return Estimate(value, -1.0, 1.0, 1.0, 0.5, seeds, int(values.shape[1]))
    alike = 1 / float((weight**2).sum())  # the number of images, if all weighed alike
    shrunk = alike / (alike + 2)
    of_images = of_groups * shrunk**2 + 1 / (alike + 2) ** 2
    least = BETWEEN_SEEDS**2
    shown = max(_variance(draws, test) - least, 0.0)  # by the draws, besides the least
    more = max(_variance(of_seeds, test) - least - shown, 0.0)
    between = (least + shown + more) / seeds + besides
    variance = of_images + between
    of_shown = ((least + shown) / seeds) ** 2 / (len(draws) - 1) if shown else 0.0  # all of it was estimated
    of_more = (more / seeds) ** 2 / max(seeds - 1, 1)
    freedom = variance**2 / (of_images**2 / of_others + of_shown + of_more)
    deviations, error = student_95(freedom), math.sqrt(variance)
    middle, half = value * shrunk, deviations * error
    low, high = max(min(middle - half, value), -1.0), min(max(middle + half, value), 1.0)
    chance = NormalDist().cdf(1.96 / deviations * middle / error)  # as sure as the interval
    seen = (deviations + POWER) * error
    return Estimate(value, low, high, seen, chance, seeds, int(values.shape[1]), between / variance)
