"""Image retrieval: does the gallery, the training images, have images of the query's class first? No head is fitted."""

import math

import numpy as np
import torch
from torch import Tensor

from ssl.evaluation import intervals, metrics
from ssl.evaluation.feature_rows import Samples, block_size, unit_length

PAIRS = 1 << 28  # of a query and an image of the gallery: 1 GiB of cosines
SORTED = 1 << 22  # cosines that are sorted at a time


def keyed(count: int, most: int, seed: int) -> Tensor:
    """`most` of `count` indices, drawn by `seed`, in order; all of them where there are no more."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].sort().values


@torch.no_grad()
def retrieve(
    gallery: Samples, test: Samples, first: Tensor, seed: int = 0, groups: intervals.Groups | None = None
) -> dict:
    """Mean average precision and recall at 1, with 95 % intervals, of `test` images as queries against `gallery`.

    Both are (features (N, F), labels (N,)); every class has images in the gallery, which is ranked by cosine. `first`
    (N,): the number of the first image of each test image. An image of the query's class is right. With groups (N,) of
    the test images the intervals are over groups.

    recall_at_1: how often the first image is right. map: the mean over queries of the average precision of the whole
    ranking, as scikit-learn defines it (equal cosines count as one place). With more than PAIRS pairs it is of some of
    the queries, drawn by `seed`. The map of one query has no interval. Also returns the numbers of images: gallery,
    recall_at_1_queries and map_queries.
    """
    bank, labels = gallery
    chosen = keyed(len(test[1]), max(1, PAIRS // len(labels)), seed).to(labels.device)
    queries, own = unit_length(test[0][chosen]), test[1][chosen]
    cosines = torch.cat([queries @ unit_length(rows).T for rows in bank.split(block_size(bank))], 1)
    precisions = cosines.new_empty(len(own), dtype=torch.float64)
    for label in own.unique():
        of_class = (own == label).nonzero()[:, 0]
        for part in of_class.split(max(1, SORTED // len(labels))):
            precisions[part] = average_precision(cosines[part], labels == label)
    mean = float(precisions.mean())
    found: dict = {"map": mean}
    if len(own) > 1:
        half = intervals.NORMAL_95 * float(precisions.std(correction=0)) / math.sqrt(len(own))
        own_groups = groups and [groups[i] for i in chosen.tolist()]
        found["map_interval"] = intervals.around(mean, half, half, intervals.widening(precisions, own_groups))
    return {
        **found,
        "map_queries": len(own),
        **metrics.share_of("recall_at_1", labels[first] == test[1], groups),
        "recall_at_1_queries": len(first),
        **intervals.count_of(groups),
        "gallery": len(labels),
    }


def average_precision(scores: Tensor, wanted: Tensor) -> Tensor:
    """The average precision (Q,), float64, of each row of scores (Q, G), where the images `wanted` (G,) are right.

    It is the mean, over the wanted images, of the share of wanted ones among all that have at least their score.
    """
    own, every = (_sorted(x) for x in (scores[:, wanted], scores))
    right, shown = (x.shape[1] - torch.searchsorted(x, own) for x in (own, every))
    return (right.double() / shown).mean(1)


def _sorted(x: Tensor) -> Tensor:
    """Rows in rising order. On a CPU numpy takes a fraction of torch's time, which also finds the places."""
    return x.sort(dim=1).values if x.is_cuda else torch.from_numpy(np.sort(x.numpy(), axis=1))
