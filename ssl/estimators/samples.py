"""Where batches come from: samples of any kind and a callable that makes views of them, or the user's loader."""

import contextlib
import random
from collections.abc import Callable, Iterator
from itertools import islice
from numbers import Number

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from ssl.data.order import Order, hash32
from ssl.distributed import rank, world_size
from ssl.errors import UserError


@contextlib.contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Within, torch, numpy and random draw from `seed`. Afterwards their states are as they were before."""
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    on_gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    try:
        torch.default_generator.manual_seed(seed)
        if on_gpu is not None:
            torch.cuda.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        yield
    finally:
        torch.set_rng_state(kept[0])
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu)
        np.random.set_state(kept[1])
        random.setstate(kept[2])


def are_samples(data) -> bool:
    """Whether `data` are samples; else they are a loader of batches. Raises TypeError for anything else."""
    if isinstance(data, Tensor | np.ndarray | list) or (isinstance(data, Dataset) and hasattr(data, "__len__")):
        return True
    if isinstance(data, Dataset) or not hasattr(data, "__iter__"):
        raise TypeError(f"expected a DataLoader, a tensor, an array or a Dataset with a length, got {type(data)}")
    return False


def readable(value):
    """`value`; an array that torch does not read, with negative strides or in another byte order, as a copy."""
    if isinstance(value, np.ndarray) and (min(value.strides, default=0) < 0 or not value.dtype.isnative):
        return np.array(value, value.dtype.newbyteorder("="))
    return value


NUMBERS = Tensor | np.ndarray | Number | list | tuple


class Samples(Dataset):
    """Samples by number, as `views` and encoders get them. Those of tensors, arrays and lists are copies, in float32;
    what a list holds that is no number, such as paths, is passed on.

    `alone`: where a Dataset gives (sample, label, ...), give the sample alone.
    """

    def __init__(self, data, alone: bool = True):
        self.data, self.alone = data, alone

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int):
        item = self.data[index]
        if isinstance(item, NUMBERS) and not isinstance(self.data, Dataset):
            return torch.as_tensor(readable(item)).to(torch.float32, copy=True)
        if isinstance(item, list | tuple):
            return readable(item[0]) if self.alone else [readable(part) for part in item]
        return readable(item)


# Numbers that keep the random numbers of views apart, one for each view. `FromLoader` uses 4 to 6.
TRAINING, VALIDATION = (0, 1, *range(16, 30)), (2, 3, *range(32, 46))


class _Views(Dataset):
    """(epoch, index) -> a view for each of `streams`. Its random numbers depend on seed, epoch, index, stream."""

    def __init__(self, data, views: Callable, seed: int, streams: tuple[int, ...]):
        self.samples, self.views, self.seed, self.streams = Samples(data), views, seed, streams

    def __getitem__(self, key: tuple[int, int]) -> list[Tensor]:
        out = []
        for stream in self.streams:
            with drawn_from(hash32(self.seed, *key, stream)):
                view = self.views(self.samples[key[1]])
            if not isinstance(view, Tensor | np.ndarray):
                raise TypeError(f"views: expected it to return a tensor or an array, got {type(view)}")
            view = torch.as_tensor(readable(view))
            out.append(view.float() if view.dtype == torch.float64 else view)  # numpy computes in float64
        return out


def _stack(items: list[list[Tensor]]) -> list[Tensor]:
    shapes = {tuple(view.shape) for item in items for view in item}
    if len(shapes) > 1:
        raise UserError(f"views: expected all views of a batch to have one shape, got {sorted(shapes)[:4]}")
    return [torch.stack(views) for views in zip(*items)]


def limited(batches: int, limit: int | float | None) -> int:
    """How many of `batches` an epoch has: at most `limit`; if that is a share in 0..1, this share, at least one."""
    if limit is None:
        return batches
    return min(batches, max(1, int(batches * limit)) if isinstance(limit, float) else int(limit))


def how_to_read(workers: int, device: torch.device) -> dict:
    """Arguments of a DataLoader of samples. What is on the GPU already cannot be pinned; no worker sends such."""
    return dict(num_workers=workers, pin_memory=device.type == "cuda" and workers > 0)


class FromSamples:
    """Batches of views of samples. The order depends on (seed, epoch) alone, a view on (seed, epoch, index) alone.

    `reading`: `how_to_read`.
    """

    def __init__(
        self,
        data,
        views: Callable | None,
        num_views: int,
        batch_size: int,
        seed: int,
        limit: int | float | None = None,
        **reading,
    ):
        if not callable(views):
            raise UserError(
                "views: samples need a callable, sample -> view, that is called for each view of a sample; pass "
                "views=…, or a DataLoader of `[X1, X2]`"
            )
        self.data, self.views, self.num_views, self.seed, self.reading = data, views, num_views, seed, reading
        self.workers = reading.get("num_workers", 0)
        self.order = Order(len(data), batch_size, 1, world_size(), seed)
        self.steps_per_epoch = limited(self.order.steps_per_epoch, limit)

    def require_steps(self) -> None:
        if self.steps_per_epoch == 0:
            raise UserError(
                f"batch_size: the global batch, {self.order.batch_size} per process × {world_size()} processes, is "
                f"larger than the data ({len(self.data)} samples)"
            )

    def epoch(self, epoch: int, first: int) -> Iterator[list[Tensor]]:
        """This rank's batches of an epoch, from number `first` on, without the last one if it is incomplete."""
        begin = epoch * self.order.steps_per_epoch
        steps = range(begin + first, begin + self.steps_per_epoch)
        places = [self.order.indices(step, 0, rank())[1].tolist() for step in steps]
        return self._read([[(epoch, i) for i in indices] for indices in places], TRAINING)

    def once(self) -> Iterator[list[Tensor]]:
        """All samples in order, in the same views every time: for validations, which are compared between epochs."""
        parts = torch.arange(len(self.data)).split(self.order.global_batch)
        shares = [part.tensor_split(world_size())[rank()] for part in parts if len(part) >= max(2, world_size())]
        return self._read([[(0, i) for i in share.tolist()] for share in shares], VALIDATION)

    def _read(self, keys: list, streams: tuple[int, ...]) -> Iterator[list[Tensor]]:
        views = _Views(self.data, self.views, self.seed, streams[: self.num_views])
        return iter(DataLoader(views, batch_sampler=keys, collate_fn=_stack, **self.reading))


class FromLoader:
    """Batches of the user's loader. Its draws from torch, numpy and random depend on (seed, epoch, rank) alone."""

    def __init__(self, loader, seed: int, limit: int | float | None = None):
        self.loader, self.seed, self.workers = loader, seed, getattr(loader, "num_workers", None)
        try:
            self.steps_per_epoch = limited(len(loader), limit)
        except TypeError:
            raise UserError(
                "the loader needs a length, the number of its batches; give its IterableDataset a __len__"
            ) from None
        if isinstance(loader, DataLoader) and world_size() == 1 and _ends_in_one(loader):
            raise UserError("the loader's last batch is one sample; give the DataLoader drop_last=True")
        plain = (BatchSampler, RandomSampler, SequentialSampler)  # others may give every process its own share
        if world_size() > 1 and all(type(sampler) in plain for sampler in self._samplers()):
            raise UserError(
                "train: every process would train on the same batches; give the loader a "
                "torch.utils.data.DistributedSampler, or pass samples and views instead of a loader"
            )

    def require_steps(self) -> None:
        if self.steps_per_epoch == 0:
            raise UserError("train: the loader gives no batch; is its batch_size larger than its data?")

    def epoch(self, epoch: int, first: int) -> Iterator:
        """As `FromSamples.epoch`. The batches before number `first` are read and dropped."""
        for sampler in self._samplers():
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        return islice(self._batches(epoch), first, self.steps_per_epoch)

    def once(self) -> Iterator:
        return self._batches(0)

    def _samplers(self) -> list:
        """What says which samples the loader reads: the batch sampler, if it has one, and what is within.

        A DataLoader that was given a batch sampler also has a `sampler`, which it does not ask.
        """
        batches = getattr(self.loader, "batch_sampler", None)
        found = [getattr(self.loader, "sampler", None) if batches is None else batches]
        while isinstance(found[-1], BatchSampler):
            found.append(getattr(found[-1], "sampler", None))  # a class of the user may have none
        return found

    def _batches(self, epoch: int) -> Iterator:
        torch.default_generator.manual_seed(hash32(self.seed, epoch, rank(), 4))
        np.random.seed(hash32(self.seed, epoch, rank(), 5))
        random.seed(hash32(self.seed, epoch, rank(), 6))
        if getattr(self.loader, "persistent_workers", False):
            self.loader._iterator = None  # new workers draw from the seed; those of before would go on as they left off
        return iter(self.loader)


def _ends_in_one(loader: DataLoader) -> bool:
    """Whether the last batch surely has one sample only: losses and batch norm compare samples."""
    sized = loader.batch_size and hasattr(loader.sampler, "__len__")
    return bool(sized) and not loader.drop_last and len(loader.sampler) % loader.batch_size == 1
