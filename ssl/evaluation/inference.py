"""Outputs of a network for all images of a data set, each image once, on any number of processes."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ssl.augment import View
from ssl.console import Progress
from ssl.data.images import Images
from ssl.data.loader import finish, plain_batches, training_batches
from ssl.data.order import SequentialOrder
from ssl.distributed import gather_objects, gather_rows, world_size
from ssl.encoders import reads
from ssl.errors import UserError, one_line


def reading(settings: Any, device: torch.device) -> dict[str, Any]:
    """How the `settings` of a script say that images are read: arguments of the functions below."""
    return {name: getattr(settings, name) for name in ("batch_size", "workers", "mean", "std")} | {"device": device}


@torch.no_grad()
def outputs(
    net: nn.Module | Callable[[Tensor], Tensor],
    data: Images,
    **reading,
) -> tuple[Tensor, Tensor, dict[str, str]]:
    """Outputs (N, F), in float32 or wider, of all un-augmented images, in order, on every rank.

    `net` maps normalised pixels (n, C, size, size) to (n, F); `reading` as of `stream`. Returns (outputs, read, bad):
    `bad` {path: reason} are the files that could not be read, on every rank; `read` (N,) is false for them, and their
    outputs mean nothing. Raises `UserError`, on every rank, for outputs that are NaN or Inf.
    """
    found, read, unread, done = None, torch.zeros(len(data), dtype=torch.bool), {}, 0
    for h, own, bad in stream(net, data, **reading):
        if found is None:  # one tensor from the start: joining parts at the end would need twice the memory
            found, read = h.new_empty(len(data), h.shape[1]), read.to(h.device)
        found[done : done + len(h)], read[done : done + len(h)] = h, own
        unread |= bad
        done += len(h)
    return found, read, from_all_ranks(unread)


@torch.no_grad()
def stream(
    net: nn.Module | Callable[[Tensor], Tensor],
    data: Images,
    *,
    size: int,
    batch_size: int,
    workers: int,
    device: torch.device,
    mean: list[float],
    std: list[float],
    title: str | None,
) -> Iterator[tuple[Tensor, Tensor, dict[str, str]]]:
    """`outputs` a batch at a time: (outputs (n, F), read (n,), bad), in order.

    Outputs are those of all ranks, on every rank; every rank must take all batches. `bad` {path: reason} are the files
    that this rank could not read; `from_all_ranks` joins them.
    """
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))
    done = 0
    progress = Progress(len(data), 0, "image") if title else None
    for pixels, counts, bad in plain_batches(data, size, batch_size, workers, device):
        x = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
        # The last batch may have no image for this rank: one of zeros shows the shape of an output.
        h = _wide(net(x) if len(x) else net(x.new_zeros(1, *x.shape[1:]))[:0])
        read = torch.ones(len(h), dtype=torch.bool, device=h.device)
        read[list(bad)] = False
        h, read = gather_rows(h, counts), gather_rows(read, counts)
        _require_finite(h, read, data, done)
        yield h, read, dict(bad.values())
        done += sum(counts)
        if progress:
            progress.update(done, title)
    if progress:
        progress.close()


def judged_size(encoder: nn.Module, data: Images, trained: int) -> int:
    """The size in pixels at which images are judged: small ones as they are, others as the encoder was `trained`.

    An encoder that reads one size only, such as a ViT, gets all images at that size.
    """
    if data.resident is None:
        return trained
    own = min(data.resident.shape[2:])
    return own if own == trained or reads(encoder, own, data.channels) else trained


@torch.no_grad()
def mean_over_views(
    net: nn.Module | Callable[[Tensor], Tensor],
    data: Images,
    view: View,
    copies: int,
    *,
    seed: int,
    batch_size: int,
    workers: int,
    device: torch.device,
    mean: list[float],
    std: list[float],
    title: str | None,
) -> tuple[Tensor, Tensor, dict[str, str]]:
    """As `outputs`, but the mean of `net` over `copies` random views of every image (test-time augmentation).

    View c of image i is drawn from (seed, c, i), so the result does not depend on batches or processes.
    """
    order = SequentialOrder(len(data), min(batch_size, -(-len(data) // world_size())), world_size(), seed)
    statistics = [torch.tensor(values, device=device) for values in (mean, std)]
    steps = copies * order.steps_per_epoch
    parts, shown, unread = [], [], {}
    progress = Progress(steps, 0, "batch") if title else None
    for step, batch in enumerate(training_batches(data, [view], order, 0, steps, workers, device)):
        (x,) = finish(batch, [view], *statistics)
        counts = [len(x)] * world_size()
        parts.append(gather_rows(_wide(net(x)), counts))
        shown.append(gather_rows(batch.index.to(device), counts))
        unread |= dict(batch.bad)
        if progress:
            progress.update(step + 1, title)
    if progress:
        progress.close()
    found = torch.cat(parts).view(copies, -1, parts[0].shape[1])[:, : len(data)]
    index = torch.cat(shown).view(copies, -1)[:, : len(data)]
    # In place of a file that cannot be read, the loader shows another image.
    read = (index == torch.arange(len(data), device=device)).all(0)
    found = found.mean(0)
    _require_finite(found, read, data, 0)
    return found, read, from_all_ranks(unread)


def _require_finite(rows: Tensor, read: Tensor, data: Images, start: int) -> None:
    """Raise `UserError`, on every rank, for NaN or Inf in outputs (n, F) of the images from number `start` on.

    Images that could not be read do not count: `read` (n,).
    """
    bad = read & ~rows.isfinite().all(1)
    if bad.any():
        first, count = start + int(bad.nonzero()[0]), int(bad.sum())
        raise UserError(
            f"the network gives NaN or Inf for {count} of {len(rows)} images, first for "
            f"{one_line(data.sample_name(first))}; such outputs cannot be judged. Most likely the training diverged: "
            "look at the loss in metrics.jsonl, and take an earlier checkpoint. Or mean and std are not those of the "
            "training, or half precision overflows (--amp off)"
        )


def _wide(h: Tensor) -> Tensor:
    """`h` in float32, or in float64 if it is."""
    return h.to(torch.promote_types(h.dtype, torch.float32))


def from_all_ranks(bad: dict[str, str]) -> dict[str, str]:
    """{path: reason} of every rank, on every rank."""
    return {path: reason for found in gather_objects(bad) for path, reason in found.items()}
