"""Two views of every sample, of any kind: what a batch of them may be, and where batches come from."""

import contextlib
import random
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from ssl.data.order import Order, hash32
from ssl.distributed import rank, world_size
from ssl.errors import UserError


def split(batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """(X1, X2, y) of a batch `[X1, X2]` or `([X1, X2], y)`; y is None where there is none.

    Raises ValueError for another structure, shapes that differ, a y that is no tensor or has other rows, TypeError for
    views that are none.
    """
    views, y = batch, None
    if isinstance(batch, list | tuple) and len(batch) == 2 and isinstance(batch[0], list | tuple):
        views, y = batch
        if not isinstance(y, Tensor):
            raise ValueError(f"batch should be `[X1, X2]` or `([X1, X2], y)` with a tensor y, got {describe(batch)}")
    if not isinstance(views, list | tuple) or len(views) != 2:
        raise ValueError(f"batch should be `[X1, X2]` or `([X1, X2], y)`, got {describe(batch)}")
    if not all(isinstance(view, Tensor) for view in views):
        raise TypeError(f"X1 and X2 should be tensors, got {describe(batch)}")
    if views[0].shape != views[1].shape:
        raise ValueError(f"X1 and X2 should have the same shape, got {describe(batch)}")
    if y is not None and y.shape[:1] != views[0].shape[:1]:
        raise ValueError(f"y should have a row for each of X1, got {describe(batch)}")
    return *views, y


def describe(value) -> str:
    if isinstance(value, Tensor):
        return f"Tensor {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        inside = ", ".join(map(describe, value[:4])) + (", …" if len(value) > 4 else "")
        return f"{type(value).__name__} of {len(value)} [{inside}]"
    return type(value).__name__


@contextlib.contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """What torch (CPU), numpy and random draw comes from `seed`; afterwards they go on as if nothing had been."""
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])


def are_samples(data) -> bool:
    """Whether `data` are samples, not a loader of batches. Raises TypeError for what is neither."""
    if isinstance(data, Tensor | np.ndarray | list) or (isinstance(data, Dataset) and hasattr(data, "__len__")):
        return True
    if isinstance(data, Dataset) or not hasattr(data, "__iter__"):
        raise TypeError(f"expected a DataLoader, a tensor, an array or a Dataset with a length, got {type(data)}")
    return False


class Samples(Dataset):
    """Samples by number, as `views` and encoders are given them: of tensors and arrays float32, a copy each time.

    `alone`: of a Dataset's (sample, label, ...) the sample.
    """

    def __init__(self, data, alone: bool = True):
        self.data, self.alone = data, alone

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int):
        item = self.data[index]
        if isinstance(self.data, Dataset):
            return item[0] if self.alone and isinstance(item, list | tuple) else item
        return torch.as_tensor(item).to(torch.float32, copy=True)


class _Views(Dataset):
    """((epoch, index)) -> [view 1, view 2], drawn from (seed, epoch, index) and the number of the stream."""

    def __init__(self, data, views: Callable, seed: int, streams: tuple[int, int]):
        self.samples, self.views, self.seed, self.streams = Samples(data), views, seed, streams

    def __getitem__(self, key: tuple[int, int]) -> list[Tensor]:
        out = []
        for stream in self.streams:
            with drawn_from(hash32(self.seed, *key, stream)):
                view = self.views(self.samples[key[1]])
            if not isinstance(view, Tensor | np.ndarray):
                raise TypeError(f"views: expected it to return a tensor or an array, got {type(view)}")
            view = torch.as_tensor(view)
            out.append(view.float() if view.dtype == torch.float64 else view)  # numpy's, as samples are
        return out


def _stack(items: list[list[Tensor]]) -> list[Tensor]:
    shapes = {tuple(view.shape) for item in items for view in item}
    if len(shapes) > 1:
        raise UserError(f"views: expected all views of a batch to have one shape, got {sorted(shapes)[:4]}")
    return [torch.stack(views) for views in zip(*items)]


def limited(batches: int, limit: int | float | None) -> int:
    """How many of `batches` an epoch has: at most `limit`, or this share of them, but one."""
    if limit is None:
        return batches
    return min(batches, max(1, int(batches * limit)) if isinstance(limit, float) else int(limit))


class FromSamples:
    """Batches of views of samples. Which samples and which views depends on (seed, epoch, index) alone."""

    def __init__(
        self, data, views: Callable | None, batch_size: int, workers: int, seed: int, limit: int | float | None = None
    ):
        if not callable(views):
            raise UserError(
                "views: samples need a callable, sample -> view, which is called twice for each; pass views=…, or a "
                "DataLoader of `[X1, X2]`"
            )
        self.data, self.views, self.workers, self.seed = data, views, workers, seed
        self.order = Order(len(data), batch_size, 1, world_size(), seed)
        self.steps_per_epoch = limited(self.order.steps_per_epoch, limit)

    def require_steps(self) -> None:
        if self.steps_per_epoch == 0:
            raise UserError(
                f"batch_size: the global batch, {self.order.batch_size} per process × {world_size()} processes, is "
                f"larger than the data ({len(self.data)} samples)"
            )

    def epoch(self, epoch: int, first: int) -> Iterator[list[Tensor]]:
        """The batches of this rank in an epoch, from number `first` on; the last, incomplete one is left out."""
        begin = epoch * self.order.steps_per_epoch
        steps = range(begin + first, begin + self.steps_per_epoch)
        places = [self.order.indices(step, 0, rank())[1].tolist() for step in steps]
        return self._read([[(epoch, i) for i in indices] for indices in places], (0, 1))

    def once(self) -> Iterator[list[Tensor]]:
        """All samples in order, in the same views each time: what a validation compares between epochs."""
        parts = torch.arange(len(self.data)).split(self.order.global_batch)
        shares = [part.tensor_split(world_size())[rank()] for part in parts if len(part) >= max(2, world_size())]
        return self._read([[(0, i) for i in share.tolist()] for share in shares], (2, 3))

    def _read(self, keys: list, streams: tuple[int, int]) -> Iterator[list[Tensor]]:
        views = _Views(self.data, self.views, self.seed, streams)
        return iter(DataLoader(views, batch_sampler=keys, num_workers=self.workers, collate_fn=_stack))


class FromLoader:
    """Batches of the user's loader. What it draws from torch, numpy and random comes from (seed, epoch, rank)."""

    def __init__(self, loader, seed: int, limit: int | float | None = None):
        self.loader, self.seed = loader, seed
        try:
            self.steps_per_epoch = limited(len(loader), limit)
        except TypeError:
            raise UserError(
                "the loader needs a length, the number of its batches; give its IterableDataset a __len__"
            ) from None
        if isinstance(loader, DataLoader) and world_size() == 1 and _ends_in_one(loader):
            raise UserError("the loader's last batch is one sample, alone; give the DataLoader drop_last=True")
        alike = type(getattr(loader, "sampler", None)) in (RandomSampler, SequentialSampler)
        if world_size() > 1 and alike:
            raise UserError(
                "train: every process would train on the same batches; give the loader a "
                "torch.utils.data.DistributedSampler, or pass samples and views instead of a loader"
            )

    def require_steps(self) -> None:
        if self.steps_per_epoch == 0:
            raise UserError("train: the loader gives no batch; is its batch_size larger than its data?")

    def epoch(self, epoch: int, first: int) -> Iterator:
        """As `FromSamples.epoch`; those before `first` are read and left out."""
        sampler = getattr(self.loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        return islice(self._drawn(epoch), first, self.steps_per_epoch)

    def once(self) -> Iterator:
        return self._drawn(0)

    def _drawn(self, epoch: int) -> Iterator:
        torch.default_generator.manual_seed(hash32(self.seed, epoch, rank(), 4))
        np.random.seed(hash32(self.seed, epoch, rank(), 5))
        random.seed(hash32(self.seed, epoch, rank(), 6))
        return iter(self.loader)


def _ends_in_one(loader: DataLoader) -> bool:
    """Whether the last batch has one sample, as far as one can tell: losses and batch norm are between samples."""
    sized = loader.batch_size and hasattr(loader.sampler, "__len__")
    return bool(sized) and not loader.drop_last and len(loader.sampler) % loader.batch_size == 1


def in_order(data, batch_size: int, workers: int, targets: bool):
    """A loader of all of `data` in order, on every rank: of X, or with `targets` of (X, y).

    Raises `UserError` for a loader that parts the data among ranks, or has another order.
    """
    if are_samples(data):
        return DataLoader(Samples(data, alone=not targets), batch_size, num_workers=workers)
    if problem := _disorder(data, any_order=targets and world_size() == 1):
        raise UserError(f"transform: the loader {problem}")
    return data


# What a loader's sampler does to the rows, and what to pass.
DISORDER = {
    RandomSampler: "shuffles, so nobody could tell whose features these are; pass shuffle=False",
    SubsetRandomSampler: "shuffles a part of the rows; pass a loader of torch.utils.data.Subset(data, indices)",
    WeightedRandomSampler: "shuffles and repeats rows; pass shuffle=False and no sampler",
    DistributedSampler: "changes the order and pads by a DistributedSampler; pass an ordinary one, of which the "
    "processes share the work by themselves",
}


def _disorder(loader, any_order: bool) -> str | None:
    """What makes batches of `loader` other than all rows in their order, as far as one can tell, and what to pass."""
    batches, sampler = (getattr(loader, name, None) for name in ("batch_sampler", "sampler"))
    if isinstance(sampler, BatchSampler):  # with batch_size=None
        batches = sampler
    stream = isinstance(getattr(loader, "dataset", None), IterableDataset)
    sized = not stream and isinstance(batches, BatchSampler)
    lost = not sized or len(batches) * batches.batch_size != len(batches.sampler)
    if getattr(batches, "drop_last", False) and lost:
        return "leaves the last rows out by its drop_last; pass drop_last=False"
    if any_order or stream:
        return None
    if type(batches) not in (BatchSampler, type(None)):
        return f"may change the order by its {type(batches).__name__}; pass batch_size and no batch_sampler"
    sampler = sampler if batches is None else batches.sampler
    for kind, words in DISORDER.items():
        if isinstance(sampler, kind):
            return words
    if type(sampler) not in (SequentialSampler, type(None)):
        kind = type(sampler).__name__
        return f"may change the order or leave rows out by its {kind}; pass none, or the loader of a Subset for a part"
    return None
