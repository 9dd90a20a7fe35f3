"""Images that are held out of training for validation: a part of every class, chosen by the seed.

The images of one group (a patient, a lesion, a slide) all stay or are all held out.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ssl.console import say_once, some_of
from ssl.data.images import Images
from ssl.errors import UserError


def held_out(data: Images, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (of the images that are left, of those held out): `fraction` of every class, at random by `seed`.

    Whole groups are held out where `data` has groups. Names the classes of which none can be. Raises `UserError` where
    no image can be held out.
    """
    train, held = split_validation(data.labels, fraction, seed, data.groups)
    if not len(held):
        raise UserError(
            f"no image of the {len(train)} can be held out for validation: every class has one image, or is in one "
            "group (patient, lesion, slide). Give more of them, or a validation split"
        )
    absent = sorted(set(data.labels.tolist()) - set(data.labels[held].tolist()))
    if names := [data.classes[label] for label in absent if label >= 0]:
        say_once(
            f"*** validation: no image of {len(names)} of {len(data.classes)} classes, {some_of(names)}: each has "
            "one image, or is in one group (patient, lesion, slide). Nothing is validated of them ***"
        )
    return train, held


def hold_out(data: Images, fraction: float, seed: int) -> tuple[Images, Images]:
    """As `held_out`, but the images themselves."""
    train, held = held_out(data, fraction, seed)
    return data.subset(train), data.subset(held)


def split_validation(
    labels: Tensor, fraction: float, seed: int, groups: Sequence[str | None] | None = None
) -> tuple[Tensor, Tensor]:
    """Indices (train, validation): `fraction` of every class, at random by `seed`; at least one image of every class
    that has two, and one always stays.

    With `groups`, whole groups are taken, which come as near to the fraction as they can.
    """
    if groups is None:
        held = first_of_classes(labels, seed, lambda count: min(max(1, round(count * fraction)), count - 1))
    else:
        held = hold_out_groups(labels, groups, fraction, seed)
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def first_of_classes(labels: Tensor, seed: int, count: Callable[[int], int]) -> Tensor:
    """Mask (N,) of `count(n)` of the n images of every class, the first ones of an order that `seed` gives."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    sizes = labels.unique(return_counts=True)[1].tolist()
    for of_class in order[labels[order].argsort(stable=True)].split(sizes):
        chosen[of_class[: count(len(of_class))]] = True
    return chosen


def few_of_classes(labels: Tensor, count: int, seed: int) -> Tensor:
    """Indices of `count` images of every class, the first ones as in `first_of_classes`; of a smaller class, all."""
    return first_of_classes(labels, seed, lambda size: min(size, count)).nonzero()[:, 0]


def hold_out_groups(labels: Tensor, groups: Sequence[str | None], fraction: float, seed: int) -> Tensor:
    """Mask (N,) of the images to hold out: whole groups, at random by `seed`, about `fraction` of every class.

    An image whose group is None is a group of its own. The rarest class is served first. A group is taken if it brings
    the class nearer to its fraction. At least one image of a class is held out if its groups allow it, and at least
    one always stays.
    """
    members: dict[str | int, Counter] = {}
    for index, (group, label) in enumerate(zip(groups, labels.tolist())):
        members.setdefault(index if group is None else group, Counter())[label] += 1
    names = list(members)
    of_class = defaultdict(list)
    for place in torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist():
        for label in members[names[place]]:
            of_class[label].append(names[place])
    left, taken, held = Counter(labels.tolist()), Counter(), set()
    for label, total in sorted(left.items(), key=lambda item: (item[1], item[0])):
        share = max(1, round(total * fraction))
        smallest_first = sorted(of_class[label], key=lambda group: members[group].total())
        # First the groups in random order. If none of them is taken, the smallest that can be.
        tries = [(group, False) for group in of_class[label]] + [(group, True) for group in smallest_first]
        for group, is_last_try in tries:
            is_nearer = abs(taken[label] + members[group][label] - share) < abs(taken[label] - share)
            is_wanted = not taken[label] if is_last_try else is_nearer
            some_stay = all(left[other] > count for other, count in members[group].items())
            if is_wanted and some_stay and group not in held:
                held.add(group)
                taken.update(members[group])
                left.subtract(members[group])
    return torch.tensor([(index if group is None else group) in held for index, group in enumerate(groups)])
