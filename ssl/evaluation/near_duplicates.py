"""Pairs of images whose features are nearly alike, within a split and across splits.

The features of two images are compared by their cosine, after each dimension is standardised over all images: without
that, some encoders give any two images a cosine of 0.99. They are compared a block at a time, so neither the features
nor their N × N cosines need fit into memory. Float32 finds candidates; what counts is their cosine in float64, so the
size of the blocks changes nothing. (Of more than KEPT pairs, those that are equal to the lowest that is kept, to
rounding, may be others.)
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl.console import Progress
from ssl.errors import UserError
from ssl.evaluation.feature_rows import block_size, varying
from ssl.evaluation.features import Features
from ssl.evaluation.predictions import cell
from ssl.files import replacing

KEPT = 100_000  # pairs within splits, and as many across splits
TOO_MANY = 100 * KEPT  # pairs, after which the search ends with an error
BLOCK = 4096  # images that are compared with as many others at a time
MARGIN = 1e-4  # a cosine in float32 is nearer than that to the one in float64


@dataclass(frozen=True)
class Pairs:
    """Pairs of images, the highest cosine first. Image i is number i of all splits, one split after the other."""

    first: Tensor  # (P,)
    second: Tensor  # (P,), each larger than that of `first`
    cosine: Tensor  # (P,), float64
    total: int  # pairs that were found; the highest KEPT of them are here

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class Found:
    """The pairs of images of different splits, and those of images of one split."""

    across: Pairs
    within: Pairs


@torch.no_grad()
def find(found: Features, threshold: float, device: torch.device, block: int = BLOCK) -> Found:
    """All pairs of images whose standardised features have a cosine above `threshold`, 0 to 1; KEPT of more.

    Computes on `device`. Raises `UserError` for fewer than three images, where all have the same features, and where
    more than TOO_MANY pairs are found.
    """
    across, within = Best(threshold), Best(threshold)
    mean, deviation = (values.to(device) for values in _spread(found))
    blocks = list(_blocks(found, block))

    def read(one: Block) -> Tensor:
        x = found.splits[one.split].rows[one.index].to(device, torch.double)
        return F.normalize((x - mean) / deviation)

    progress, done = Progress(len(blocks) * (len(blocks) + 1) // 2, 0, "block"), 0
    for place, one in enumerate(blocks):
        x = read(one)
        for other in blocks[place:]:
            best = within if one.split == other.split else across
            best.add(x, x if other is one else read(other), one.start, other.start)
            if across.total + within.total > TOO_MANY:
                raise _too_many(across, within, threshold)
            done += 1
            progress.update(done, "near duplicates")
    progress.close()
    return Found(across.pairs(), within.pairs())


def _spread(found: Features) -> tuple[Tensor, Tensor]:
    """(mean, deviation), each (F,) in float64, over the images of all splits. That of a constant dimension is inf."""

    def blocks() -> Iterator[Tensor]:
        for split in found.splits.values():
            yield from (block.double() for block in split.rows.split(block_size(split.rows) // 4 or 1))

    count = sum(map(len, found.splits.values()))
    if count < 3:
        raise UserError(
            f"near_duplicates: features are compared by how they differ between images; {count} are too few"
        )
    mean = sum(block.sum(0) for block in blocks()) / count
    deviation = varying(mean, (sum((block - mean).square_().sum(0) for block in blocks()) / count).sqrt())
    if deviation.isinf().all():
        raise UserError(
            f"near_duplicates: all {count} images have the same features: the images are equal, or the encoder has "
            "collapsed; look at health.jsonl of its training"
        )
    return mean, deviation


@dataclass(frozen=True)
class Block:
    """Images of a split. `start` is the number of the first of them among the images of all splits."""

    split: str
    start: int
    index: Tensor  # their places in the split


def _blocks(found: Features, size: int) -> Iterator[Block]:
    before = 0
    for name, split in found.splits.items():
        for index in torch.arange(len(split)).split(size):
            yield Block(name, before + int(index[0]), index)
        before += len(split)


class Best:
    """The pairs of the highest cosines above a threshold, at most KEPT, and the number of all above it."""

    def __init__(self, threshold: float):
        self.threshold = self.floor = threshold  # `floor`: lower cosines are not kept any more
        self.total = 0
        self.first = self.second = torch.empty(0, dtype=torch.long)
        self.cosine = torch.empty(0, dtype=torch.double)

    def add(self, x: Tensor, y: Tensor, start_x: int, start_y: int) -> None:
        """Compare images from number `start_x` on with those from `start_y` on, or with themselves: `y` is then `x`.

        x (n, F) and y (m, F) are their features, in float64 and of length 1.
        """
        cosine = x.float() @ y.float().T
        if x is y:  # each pair counts once
            cosine.masked_fill_(torch.ones_like(cosine, dtype=torch.bool).tril_(), -2)
        near = cosine > self.floor - MARGIN
        many = int(near.sum()) > KEPT
        counted = many or self.floor > self.threshold  # in float32, as not all of them are computed again
        if counted:
            self.total += int((cosine > self.threshold).sum())
        near = cosine.flatten().topk(KEPT).indices if many else near.flatten().nonzero()[:, 0]
        for part in near.split(BLOCK):
            i, j = part // len(y), part % len(y)
            exact = (x[i] * y[j]).sum(1)
            keep = exact > self.floor
            if not counted:
                self.total += int((exact > self.threshold).sum())
            self._merge((start_x + i)[keep].cpu(), (start_y + j)[keep].cpu(), exact[keep].cpu())

    def _merge(self, first: Tensor, second: Tensor, cosine: Tensor) -> None:
        first, second = torch.cat([self.first, first]), torch.cat([self.second, second])
        cosine = torch.cat([self.cosine, cosine])
        if len(cosine) > KEPT:
            best = cosine.topk(KEPT)
            self.floor = float(best.values[-1])
            first, second, cosine = first[best.indices], second[best.indices], best.values
        self.first, self.second, self.cosine = first, second, cosine

    def pairs(self) -> Pairs:
        order = torch.from_numpy(np.lexsort((self.second, self.first, -self.cosine)))
        return Pairs(self.first[order], self.second[order], self.cosine[order], self.total)


def _too_many(across: Best, within: Best, threshold: float) -> UserError:
    floor = max(across.floor, within.floor)
    return UserError(
        f"near_duplicates: more than {TOO_MANY:,} pairs have a cosine above {threshold:g}; pass a higher value. "
        f"{KEPT:,} of them are above {floor:.6f}; where that is nearly 1, the encoder tells too little of the images"
    )


def write(pairs: Found, found: Features, path: Path) -> None:
    """Write a row for each pair, first those across splits. Raises OSError; an earlier file is then unchanged."""
    with replacing(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image_a", "split_a", "image_b", "split_b", "cosine"])
        for part in (pairs.across, pairs.within):
            for both, cosine in zip(zip(part.first.tolist(), part.second.tolist()), part.cosine.tolist()):
                (one, a), (other, b) = (place(found, number) for number in both)
                rows.writerow([cell(found.name_of(one, a)), one, cell(found.name_of(other, b)), other, f"{cosine:.6f}"])


def place(found: Features, number: int) -> tuple[str, int]:
    """(split, place in the split) of image `number` of all splits."""
    for name, split in found.splits.items():
        if number < len(split):
            return name, number
        number -= len(split)
    raise IndexError(number)
