"""The `transform` of an estimator: representations of all rows, in their order, on every process."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from ssl import distributed
from ssl.distributed import gather_rows, rank, world_size
from ssl.errors import UserError
from ssl.estimators.batch import describe
from ssl.estimators.network import to_device
from ssl.estimators.samples import Samples, are_samples, how_to_read

AT_ONCE = 1 << 26  # numbers (256 MiB) that go from the device to the CPU together: the host waits for each copy


def encode(model, data, targets: bool) -> tuple[Tensor, Tensor | None]:
    """(representations (N, d), targets (N, ...)) of the estimator `model`; without `targets` of the loader, None."""
    if model.step == 0:
        raise RuntimeError(
            f"This {type(model).__name__} instance is not fitted yet. Call 'fit' with appropriate arguments before "
            "using this estimator."
        )
    device = distributed.join(model.device)
    distributed.share_buffers(to_device(model.net, device).eval())
    reading = how_to_read(model.num_workers, device)
    parts, on_device, seen = [], [], []
    for batch in in_order(data, model.batch_size, targets, **reading):
        if targets:
            batch, y = _split_targets(batch)
            seen.append(y.cpu())
        on_device.append(_encode_batch(model, batch))
        if sum(h.numel() for h in on_device) >= AT_ONCE:
            parts.append(torch.cat(on_device).cpu())
            on_device = []
    if on_device:
        parts.append(torch.cat(on_device).cpu())
    if not parts:
        raise ValueError("transform: there are no samples")
    return torch.cat(parts), torch.cat(seen) if targets else None


def _split_targets(batch) -> tuple[Tensor, Tensor]:
    if not (isinstance(batch, list | tuple) and len(batch) == 2):
        raise ValueError(f"transform_with_targets: expected batches (X, y), got {describe(batch)}")
    x, y = batch[0], torch.as_tensor(batch[1])
    if isinstance(x, Tensor) and y.shape[:1] != x.shape[:1]:
        raise ValueError(f"transform_with_targets: y should have a row for each of X, got {describe([x, y])}")
    return x, y


def _encode_batch(model, batch) -> Tensor:
    """Representations of all rows of a batch that every rank has; each rank computes its share of the rows."""
    if not isinstance(batch, Tensor):
        return model.transform_step(batch).float()  # raises an error, unless a subclass takes such batches
    batch = batch.float() if batch.dtype == torch.float64 else batch  # as views: numpy computes in float64
    shares = batch.tensor_split(world_size())
    own = shares[rank()]
    if len(own):
        h = model.transform_step(own).float()
    else:  # encoders may refuse a batch without rows
        h = model.transform_step(batch.new_zeros(1, *batch.shape[1:])).float()[:0]
    return gather_rows(h, [len(share) for share in shares])


def in_order(data, batch_size: int, targets: bool, **reading) -> Iterable:
    """A loader of all of `data` in order, on every rank: of X, or with `targets` of (X, y).

    `reading`: num_workers and pin_memory of the DataLoader of samples.
    Raises `UserError` for a loader that splits the data among the ranks, changes the order or leaves out rows.
    """
    if are_samples(data):
        return DataLoader(Samples(data, alone=not targets), int(batch_size), **reading)  # it may be numpy's
    if problem := _disorder(data, any_order=targets and world_size() == 1):
        raise UserError(f"transform: the loader {problem}")
    return data


# What a sampler does to the rows, and what to pass instead.
DISORDER = {
    RandomSampler: "shuffles, and the features would be in another order than the data; pass shuffle=False",
    SubsetRandomSampler: "shuffles a part of the rows; pass a loader of torch.utils.data.Subset(data, indices)",
    WeightedRandomSampler: "shuffles and repeats rows; pass shuffle=False and no sampler",
    DistributedSampler: "changes the order and pads by a DistributedSampler; pass a loader without it, each process "
    "takes its share of every batch",
}


def _disorder(loader, any_order: bool) -> str | None:
    """Why batches of `loader` may not be all rows in their order, and what to pass instead; None: no reason is seen."""
    batches, sampler = (getattr(loader, name, None) for name in ("batch_sampler", "sampler"))
    if isinstance(sampler, BatchSampler):  # with batch_size=None
        batches = sampler
    stream = isinstance(getattr(loader, "dataset", None), IterableDataset)
    sized = not stream and isinstance(batches, BatchSampler)
    loses_rows = not sized or len(batches) * batches.batch_size != len(batches.sampler)
    if getattr(batches, "drop_last", False) and loses_rows:
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
