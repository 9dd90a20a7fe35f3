"""Which image is at which place of which global batch. It depends on (seed, epoch), and on the labels if balanced."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ssl.augment import uniforms
from ssl.data.images import Images
from ssl.errors import UserError


@dataclass(frozen=True)
class Order:
    """The sequence of global batches. Every epoch is a permutation of `count` images; an incomplete batch is dropped.

    With `labels` (count,) an epoch is balanced: `count` draws with replacement, in which every class is equally likely,
    and so is every image of a class. Raises `UserError` if an image has no label (-1).

    A step takes world_size × accumulate micro-batches of `batch_size` images. Rank r reads those with the numbers
    r · accumulate to (r + 1) · accumulate - 1. So W processes read the same as one process with `accumulate` = W.
    """

    count: int
    batch_size: int
    accumulate: int
    world_size: int
    seed: int
    labels: Tensor | None = None

    def __post_init__(self):
        missing = 0 if self.labels is None else int((self.labels < 0).sum())
        if missing:
            raise UserError(f"balanced: {missing} of {self.count} images have no label; leave them out, or --balanced")

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.accumulate * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        return self.count // self.global_batch

    def indices(self, step: int, micro: int, rank: int) -> tuple[int, Tensor, Tensor]:
        """(epoch, indices, repeats) of micro-batch `micro` of optimizer step `step`; the last two (batch_size,).

        `repeats` is how often the epoch has shown that image before; 0 in a permutation. `augment.draw` uses it, so
        that the image is shown in another view.
        """
        epoch, batch = divmod(step, self.steps_per_epoch)
        start = batch * self.global_batch + (rank * self.accumulate + micro) * self.batch_size
        mine = slice(start, start + self.batch_size)
        if self.labels is None:
            index = permutation(self.count, self.seed, epoch)[mine]
            return epoch, index, torch.zeros_like(index)
        index, repeats = balanced(self.labels, self.seed, epoch)
        return epoch, index[mine], repeats[mine]

    def names(self, data: Images, step: int) -> list[str]:
        """The names of the images of a step, of all ranks."""
        micro_batches = range(self.accumulate * self.world_size)
        places = [self.indices(step, m % self.accumulate, m // self.accumulate)[1].tolist() for m in micro_batches]
        return [data.sample_name(index) for rows in places for index in rows]


@dataclass(frozen=True)
class FixedOrder:
    """The images `index` (n,) in this order, once an epoch. The first of them fill up the last batch.

    Global batch b of an epoch holds those at the places b · G to (b + 1) · G - 1 of `index`, rank by rank.
    """

    index: Tensor
    batch_size: int
    world_size: int
    seed: int
    accumulate: int = 1

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.index) // (self.batch_size * self.world_size))

    def indices(self, step: int, micro: int, rank: int) -> tuple[int, Tensor, Tensor]:
        """(epoch, indices, repeats) of `step`, as in `Order`. An image that fills up the last batch looks the same."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        start = (batch * self.world_size + rank) * self.batch_size
        index = self.index[torch.arange(start, start + self.batch_size) % len(self.index)]
        return epoch, index, torch.zeros_like(index)


@dataclass(frozen=True)
class Shares:
    """The global batches of `whole`, an `Order` of one process, divided equally among `world_size` processes.

    The first images of a batch fill up the last parts. They do not count.
    """

    whole: Order
    world_size: int
    accumulate: int = 1

    @property
    def seed(self) -> int:
        return self.whole.seed

    def counts(self, rank: int) -> Tensor:
        """(n,) bool: which images of a rank's part count."""
        return self._places(rank) < self.whole.global_batch

    def _places(self, rank: int) -> Tensor:
        size = -(-self.whole.global_batch // self.world_size)
        return torch.arange(rank * size, (rank + 1) * size)

    def indices(self, step: int, micro: int, rank: int) -> tuple[int, Tensor, Tensor]:
        """(epoch, indices, repeats) of a rank's part of `step`, as in `Order`."""
        epoch, index, repeats = self.whole.indices(step, 0, 0)
        places = self._places(rank) % len(index)
        return epoch, index[places], repeats[places]


def batch_seed(order: Order | FixedOrder | Shares, step: int, micro: int, rank: int) -> int:
    """The seed of what a model draws (dropout) on this micro-batch, the same on any rank and after any resume."""
    return hash32(order.seed, step, rank * order.accumulate + micro, 0xFFFE)


def hash32(seed: int, epoch: int, index: int, stream: int) -> int:
    """A random 32-bit number of these four (`epoch` may be a step); a CPU generator uses no more bits of its seed."""
    return int(uniforms(seed, epoch, torch.tensor([index]), stream, 1).item() * 2**32)


@lru_cache(maxsize=2)
def permutation(count: int, seed: int, epoch: int) -> Tensor:
    """The order of `count` images in an epoch."""
    key = hash32(seed, epoch, count, 0xFFFF)
    return torch.randperm(count, generator=torch.Generator().manual_seed(key))


@lru_cache(maxsize=2)
def balanced(labels: Tensor, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """An epoch of as many draws as labels: (indices, how often each has been drawn before), both (N,)."""
    generator = torch.Generator().manual_seed(hash32(seed, epoch, len(labels), 0xFFFC))
    _, sizes = labels.unique(return_counts=True)
    drawn = torch.randint(len(sizes), (len(labels),), generator=generator)
    place = (torch.rand(len(labels), generator=generator, dtype=torch.float64) * sizes[drawn]).long()
    index = labels.argsort(stable=True)[sizes.cumsum(0)[drawn] - sizes[drawn] + place]
    _, times = index.unique(return_counts=True)
    repeats = torch.empty_like(index)
    runs = torch.arange(len(index)) - (times.cumsum(0) - times).repeat_interleave(times)
    repeats[index.argsort(stable=True)] = runs
    return index, repeats


def stand_in(index: int, attempt: int, count: int, seed: int) -> int:
    """The image to show for `index`, of `count` images: itself at `attempt` 0, then others, chosen by the seed."""
    return index if attempt == 0 else (hash32(seed, attempt, index, 0xFFFD) * count) >> 32
