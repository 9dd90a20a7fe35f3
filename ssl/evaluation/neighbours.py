"""The nearest images by the cosine of their features: for k-NN, retrieval, groups and a picture of a report."""

from typing import NamedTuple

import torch
from torch import Tensor

from ssl.evaluation.feature_rows import Rows, block_size, unit_length

QUERIES = 1024  # that are compared with a block of the bank at a time


class Near(NamedTuple):
    """The k nearest rows of each of Q queries, the nearest first."""

    cosines: Tensor  # (Q, k)
    places: Tensor  # (Q, k), their numbers


@torch.no_grad()
def nearest(bank: Tensor | Rows, queries: Tensor | Rows, k: int, own: Tensor | None = None) -> Near:
    """The k rows of `bank` (N, F) with the highest cosine to each of `queries` (Q, F); all rows where N is below k.

    `own` (Q,): the numbers of the queries, where they are rows of the bank themselves. A query is then no neighbour of
    itself, and k must be below N. The bank is read once, a block at a time.
    """
    found = [
        Near(x.new_empty(len(x), 0), torch.empty(len(x), 0, dtype=torch.long, device=x.device))
        for x in queries.split(QUERIES)
    ]
    start = 0
    for rows in bank.split(block_size(bank)):
        rows, numbers = unit_length(rows), torch.arange(start, start + len(rows), device=rows.device)
        for part, x in enumerate(queries.split(QUERIES)):
            cosines = unit_length(x) @ rows.T
            if own is not None:
                cosines.masked_fill_(own.split(QUERIES)[part][:, None] == numbers, -2)  # itself
            cosines, places = cosines.topk(min(k, len(rows)), dim=1)
            cosines, places = (torch.cat(pair, dim=1) for pair in zip(found[part], (cosines, numbers[places])))
            cosines, best = cosines.topk(min(k, cosines.shape[1]), dim=1)
            found[part] = Near(cosines, places.gather(1, best))
        start += len(rows)
    return Near(*map(torch.cat, zip(*found)))
