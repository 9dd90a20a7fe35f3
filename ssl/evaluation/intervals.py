"""Intervals of 95 % around what test images show: around shares, and around means over groups of images.

Images of a patient, lesion or slide are alike. Where groups are known, an interval is over groups, not over images.
"""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

Groups = Sequence[str | None]  # of images (N,): patients, lesions, slides; an image of None is one of its own

NORMAL_95 = 1.959963984540054  # 95 % of a normal distribution lie within so many deviations
STUDENT_95 = (  # degrees of freedom: the number that takes the place of NORMAL_95
    (1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (6, 2.447), (7, 2.365), (8, 2.306), (9, 2.262),
    (10, 2.228), (15, 2.131), (20, 2.086), (30, 2.042), (60, 2.0), (120, 1.98), (math.inf, NORMAL_95),
)  # fmt: skip


def student_95(freedom: float) -> float:
    """How many deviations of Student's t hold 95 %, for so many degrees of freedom, between those of the table."""
    xs = [1 / known for known, _ in STUDENT_95][::-1]
    return float(np.interp(1 / max(freedom, 1.0), xs, [value for _, value in STUDENT_95][::-1]))


def over_groups(values: np.ndarray, weight: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """(variance, degrees of freedom) that a mean of values (N,) with weights (N,) has if other groups (N,) are drawn.

    The variance is the jackknife's (Tukey 1958), which holds for groups of unequal size; of one group it is inf. The
    degrees of freedom are the number of groups, if all weighed alike, besides one.
    """
    numbers, groups = np.unique(groups, return_inverse=True)
    of_group = np.bincount(groups, weight)
    if len(numbers) < 2:
        return math.inf, 1.0
    spread = np.bincount(groups, weight * (values - values @ weight)) / (1 - of_group)  # what leaving it out changes
    variance = float((spread**2).sum()) * (len(numbers) - 1) / len(numbers)
    return variance, max(1 / float((of_group**2).sum()) - 1, 1.0)


def numbered(groups: Groups) -> np.ndarray:
    """Numbers (N,) of the groups; an image without a group is a group of its own."""
    number: dict = {}
    names = (place if group is None else group for place, group in enumerate(groups))
    return np.array([number.setdefault(name, len(number)) for name in names])


def count_of(groups: Groups | None) -> dict:
    """{groups: their number}; {} where none are known."""
    return {} if groups is None else {"groups": len(set(numbered(groups)))}


def widening(values: Tensor, groups: Groups | None, classes: Tensor | None = None) -> float:
    """By what the square of an interval's width must be multiplied, as images of a group are alike. 1 without groups.

    The interval is of the mean of values (N,); with `classes` (N,), of the mean over classes of their means. The factor
    is the design effect, the variance over groups beside that of independent images, at least 1 (where all values are
    equal, images count as their groups); and Student's t, as groups are few. A Wilson interval with the number of
    images divided by it is Korn and Graubard's (1998). Of one group nothing is known: inf.
    """
    if groups is None:
        return 1.0
    values = values.cpu().double().numpy()
    of = np.zeros(len(values), int) if classes is None else classes.cpu().numpy()
    counts = np.maximum(np.bincount(of), 1)
    apart = values - (np.bincount(of, values) / counts)[of]
    weight = 1 / (counts[of] * len(np.unique(of)))
    number = numbered(groups)
    variance, freedom = over_groups(apart, weight, number)
    alone = float(((weight * apart) ** 2).sum())
    effect = max(1.0, variance / alone) if alone else len(values) / (int(number.max()) + 1)
    return math.inf if math.isinf(variance) else effect * (student_95(freedom) / NORMAL_95) ** 2


def around(value: float, below: float, above: float, wider: float) -> list[float]:
    """[low, high] in 0..1, `below` and `above` a value, when the square of the width is multiplied by `wider`."""
    if math.isinf(wider):
        return [0.0, 1.0]
    return [max(0.0, value - math.sqrt(wider) * below), min(1.0, value + math.sqrt(wider) * above)]


def wilson(right: int, count: int, wider: float = 1.0) -> list[float]:
    """[low, high]: the 95 % interval (Wilson 1927) of a share, in 0..1, when `right` of `count` images are right.

    It is that of `count` / `wider` images, `wider` as of `widening`.
    """
    if math.isinf(wider):
        return [0.0, 1.0]
    share, spare = right / count, NORMAL_95**2 * wider / count
    half = NORMAL_95 * math.sqrt(share * (1 - share) * wider / count + spare * wider / (4 * count))
    low, high = ((share + spare / 2 + side * half) / (1 + spare) for side in (-1, 1))
    return [low if right else 0.0, high if right < count else 1.0]
