"""What features know of the group of an image (hospital, scanner, patient) instead of its class.

`group_accuracy`: how well a head tells the group, beside what the class alone tells. `robustness_index`: what decides
who the nearest neighbours are, the class or the group. Both are of the images of one split: a head cannot know the
groups of another, and splits keep groups apart.

groups are numbers (N,), -1 for none. Images without a group are left out of both. What these images cannot say is None,
and the reason is beside it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssl.data.hold_out import few_of_classes, first_of_classes
from ssl.evaluation import intervals, logistic, metrics
from ssl.evaluation.feature_rows import Rows, subset
from ssl.evaluation.neighbours import nearest

MOST_GROUPS, MOST_OF_GROUP = 200, 200  # that a head tells apart: the largest; images of each of them
MOST_QUERIES = 10_000  # images whose neighbours are looked at; the neighbours are among all


def by_name(groups: Sequence[str | None]) -> Tensor:
    """Numbers (N,) of the groups, in the order of their names; -1 for none."""
    number = {name: place for place, name in enumerate(sorted({name for name in groups if name is not None}))}
    return torch.tensor([-1 if name is None else number[name] for name in groups], dtype=torch.long)


# The robustness index -------------------------------------------------------------------


@torch.no_grad()
def robustness_index(features: Tensor | Rows, labels: Tensor, groups: Tensor, k: int = 20, seed: int = 0) -> dict:
    """The robustness index of features (N, F) with labels (N,) and groups (N,): SO / (SO + OS), 0 to 1.

    Of the k nearest other images of each image, by cosine, SO counts those of the same class and another group, OS
    those of another class and the same group. 1: only the class decides. 0: only the group does. Both counts are sums
    over all images; with more than MOST_QUERIES images, over so many of them, drawn by `seed`.

    From Kömen, de Jong et al., "Towards Robust Foundation Models for Digital Pathology" (PathoROB), 2025,
    arXiv:2507.17845. De Jong, Marcus and Teuwen, 2025, arXiv:2501.18055, had it as a ratio, without an upper end.
    PathoROB also leaves out neighbours of the same slide; here a group is all that is known.

    PathoROB chooses k for each data set and draws equally many images of every pair of a class and a group. Here k is
    given and all images count, so values do not compare with those of its tables.

    Returns index, index_interval (95 %, images as independent), n, k, of_all (the index if all other images were
    neighbours: that of features that know nothing), smallest_class (its images that have a group), and the shares of
    the four kinds of neighbours (`neighbours`). Where the groups allow no SO or no OS, or all other images are
    neighbours, the index would be the same for any features: it is None, with `index_why`.
    """
    known = (groups >= 0).nonzero()[:, 0].to(labels.device)
    labels, groups = labels[known], groups.to(labels.device)[known]
    n, k = len(known), min(k, max(len(known) - 1, 0))
    pairs = _pairs(labels, groups)
    result = {"n": min(n, MOST_QUERIES), "k": k, "groups": len(groups.unique())}
    if why := _why_undefined(labels, groups, pairs, k):
        return {"index": None, "index_why": why, **result}
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    queries = order[:MOST_QUERIES].sort().values.to(known.device)
    features = subset(features, known)
    near = nearest(features, subset(features, queries), k, own=queries).places
    same_class = labels[near] == labels[queries, None]
    same_group = groups[near] == groups[queries, None]
    so, os = (same_class & ~same_group).sum(1).double(), (~same_class & same_group).sum(1).double()
    kinds = {"SS": same_class & same_group, "SO": so, "OS": os, "OO": ~same_class & ~same_group}
    result["neighbours"] = {kind: float(found.sum()) / near.numel() for kind, found in kinds.items()}
    result["of_all"] = pairs["SO"] / (pairs["SO"] + pairs["OS"])
    result["smallest_class"] = int(labels.unique(return_counts=True)[1].min())
    total = float((so + os).sum())
    if not total:
        why = f"none of the {k} nearest neighbours is of the same class and another group, or of another class and "
        return {"index": None, "index_why": f"{why}the same group", **result}
    index = float(so.sum()) / total
    half = intervals.NORMAL_95 * float((so - index * (so + os)).square().sum().sqrt()) / total  # of a ratio of sums
    return {"index": index, "index_interval": [max(0.0, index - half), min(1.0, index + half)], **result}


def _pairs(labels: Tensor, groups: Tensor) -> dict[str, int]:
    """How many ordered pairs of images are of the same class and another group (SO), and the other way round (OS)."""
    squares = {
        name: sum(count * count for count in counts.tolist())
        for name, counts in (
            ("class", torch.bincount(labels)),
            ("group", torch.bincount(groups)),
            ("both", torch.stack([labels, groups]).unique(dim=1, return_counts=True)[1]),
        )
    }
    return {"SO": squares["class"] - squares["both"], "OS": squares["group"] - squares["both"]}


def _why_undefined(labels: Tensor, groups: Tensor, pairs: dict[str, int], k: int) -> str | None:
    """Why the index says nothing of these images; None where it says something."""
    if not len(groups):
        return "no image has a group"
    if len(labels.unique()) < 2:
        return "all images with a group are of one class"
    if len(groups.unique()) < 2:
        return "all images are of one group"
    if len(groups.unique()) == len(groups):
        return "every group is a single image"
    if not pairs["SO"] and not pairs["OS"]:
        return "groups and classes coincide, so a neighbour that shares one of them shares both"
    if not pairs["SO"]:
        return "every class is in one group, so the index would be 0 for any features"
    if not pairs["OS"]:
        return "every group has images of one class, so the index would be 1 for any features"
    if k == len(groups) - 1:
        return f"all {k} other images are neighbours, so the index is the same for any features; lower --k"
    return None


# The group of an image ------------------------------------------------------------------


@torch.no_grad()
def group_accuracy(features: Tensor | Rows, labels: Tensor, groups: Tensor, seed: int = 0) -> dict:
    """How often a logistic regression tells the group of an image, from features (N, F), labels (N,), groups (N,).

    Half of the images of every group, drawn by `seed`, teach the head; the others are judged. Groups of one image are
    left out, of more than MOST_GROUPS groups all but the largest, and of a group all but MOST_OF_GROUP images.

    Returns acc1 and balanced_accuracy with their intervals, n, groups, and what does not need the features: `chance`
    (always the group with most images) and `from_class` (of each class the group with most of its images). If
    from_class is as good as acc1, the features need not know more of the group than the class tells. Where there are
    fewer than two such groups, acc1 is None, with `acc1_why`.
    """
    groups = groups.cpu()
    counts = torch.bincount(groups[groups >= 0])
    largest = counts.argsort(descending=True, stable=True)[:MOST_GROUPS]
    largest = largest[counts[largest] > 1]
    if len(largest) < 2:
        named = "one group has" if len(largest) else "no group has"
        return {"acc1": None, "acc1_why": f"{named} two images or more; it takes two such groups to tell them apart"}
    number = torch.full((len(counts) + 1,), -1)  # the last is that of -1
    number[largest] = torch.arange(len(largest))
    groups = number[groups]
    used = (groups >= 0).nonzero()[:, 0]
    used = used[few_of_classes(groups[used], MOST_OF_GROUP, seed)]
    learns = first_of_classes(groups[used], seed, lambda count: count // 2)
    parts = [index.to(labels.device) for index in (used[learns], used[~learns])]
    (x, own, y), (test_x, test_own, test_y) = (
        (features[index], groups.to(labels.device)[index], labels[index]) for index in parts
    )
    right = logistic.learn((x, own), len(largest), x.mean(0)).hits((test_x, test_own))
    table = torch.zeros(int(labels.max()) + 1, len(largest), device=labels.device)
    table.index_put_((y, own), torch.ones(len(y), device=labels.device), accumulate=True)
    from_class = table.argmax(1)[test_y]
    return {
        **metrics.accuracy(test_own, right),
        "groups": len(largest),
        "chance": float((test_own == table.sum(0).argmax()).float().mean()),
        "from_class": float((from_class == test_own).float().mean()),
    }
