"""Holding out whole groups: the images of one patient, lesion or slide are never on both sides of a cut."""

from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor


def hold_out_groups(labels: Tensor, groups: Sequence[str | None], fraction: float, seed: int) -> Tensor:
    """Mask (N,) of the images to hold out: whole groups at random by `seed`, about `fraction` of every class.

    An image whose group is None is a group of its own. A group is taken if that brings the
    class nearer to its share; the rarest class comes first. Where a class is in more than one group, at least one image
    is held out if it can be, and some always stay.
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

    def can_go(group) -> bool:
        return group not in held and all(left[label] > count for label, count in members[group].items())

    def take(group) -> None:
        held.add(group)
        taken.update(members[group])
        left.subtract(members[group])

    for label, total in sorted(left.items(), key=lambda item: (item[1], item[0])):
        share = max(1, round(total * fraction))
        for group in of_class[label]:
            count = members[group][label]
            if can_go(group) and abs(taken[label] + count - share) < abs(taken[label] - share):
                take(group)
        possible = [group for group in of_class[label] if can_go(group)]
        if not taken[label] and possible:
            take(min(possible, key=lambda group: members[group].total()))
    return torch.tensor([(index if group is None else group) in held for index, group in enumerate(groups)])
