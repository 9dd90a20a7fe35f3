"""Outputs of a network for all images of a data set, each image once, on any number of processes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssl.augment import View
from ssl.console import Progress
from ssl.data.bad_images import tell_left_out
from ssl.data.images import Images
from ssl.data.loader import finish, plain_batches, training_batches
from ssl.data.order import FixedOrder
from ssl.distributed import gather_objects, gather_rows, world_size
from ssl.encoders import reads
from ssl.errors import UserError, one_line


class NotFinite(UserError):
    """The network gives NaN or Inf. All ranks raise it, of the same outputs."""


Net = nn.Module | Callable[[Tensor], Tensor]  # maps normalised pixels (n, C, size, size) to outputs (n, F)


@dataclass(frozen=True)
class Reading:
    """How images are read, and the device of the network. Batches and workers change no output."""

    size: int  # pixels of a side
    batch_size: int  # images per process
    workers: int  # loader processes per process
    mean: list[float]  # of normalisation, one a channel
    std: list[float]
    device: torch.device

    @classmethod
    def of(cls, settings: Any, device: torch.device) -> "Reading":
        """As the settings of a script say."""
        mean, std = settings.mean, settings.std
        return cls(settings.image_size, settings.batch_size, settings.workers, mean, std, device)

    def statistics(self) -> list[Tensor]:
        """[mean, std], each (C,), on the device."""
        return [torch.tensor(values, device=self.device) for values in (self.mean, self.std)]


@dataclass(frozen=True)
class Copies:
    """Test-time augmentation: an output is the mean over `count` random views of the image."""

    count: int
    view: View
    seed: int


@torch.no_grad()
def outputs(net: Net, data: Images, how: Reading, title: str | None = None) -> tuple[Tensor, Tensor, dict[str, str]]:
    """Outputs (N, F), in float32 or wider, of all images, not augmented, in order, on every rank.

    Returns (outputs, read, bad). `bad` {path: reason} are the files that could not be read, on every rank; `read` (N,)
    is false for them, and their outputs mean nothing. `title` names the progress bar; None: there is none. Raises
    `NotFinite`, on every rank, for outputs that are NaN or Inf.
    """
    found, read, unread, done = None, torch.zeros(len(data), dtype=torch.bool), {}, 0
    for h, own, bad in stream(net, data, how, title):
        if found is None:  # one tensor from the start: joining parts at the end would need twice the memory
            found, read = h.new_empty(len(data), h.shape[1]), read.to(h.device)
        found[done : done + len(h)], read[done : done + len(h)] = h, own
        unread |= bad
        done += len(h)
    return found, read, from_all_ranks(unread)


@torch.no_grad()
def stream(
    net: Net, data: Images, how: Reading, title: str | None = None
) -> Iterator[tuple[Tensor, Tensor, dict[str, str]]]:
    """`outputs` a batch at a time: (outputs (n, F), read (n,), bad), in order.

    Outputs are those of all ranks, on every rank. Every rank must take all batches. `bad` {path: reason} are the files
    that this rank could not read; `from_all_ranks` joins them.
    """
    mean, std = (values.view(-1, 1, 1) for values in how.statistics())
    done, unchecked = 0, None
    batches = plain_batches(data, how.size, how.batch_size, how.workers, how.device)
    for pixels, counts, bad in shown(batches, len(data), how.batch_size * world_size(), "image", title):
        x = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
        # The last batch may have no image for this rank: one of zeros shows the shape of an output.
        h = _wide(net(x) if len(x) else net(x.new_zeros(1, *x.shape[1:]))[:0])
        read = torch.ones(len(h), dtype=torch.bool, device=h.device)
        for row in bad:
            read[row] = False
        h, read = gather_rows(h, counts), gather_rows(read, counts)
        # The check waits for the device. It checks the batch before, so that the device has work meanwhile.
        if unchecked:
            _require_finite(*unchecked)
        unchecked = h, read, data, done
        yield h, read, dict(bad.values())
        done += sum(counts)
    if unchecked:
        _require_finite(*unchecked)


def shown(batches: Iterator, total: int, each: int, unit: str, title: str | None) -> Iterator:
    """`batches` of `each` of `total` units, beside a progress bar; without one if `title` is None."""
    progress = Progress(total, 0, unit) if title else None
    for number, batch in enumerate(batches, 1):
        yield batch
        if progress:
            progress.update(min(number * each, total), title)
    if progress:
        progress.close()


@torch.no_grad()
def mean_over_views(
    net: Net,
    data: Images,
    copies: Copies,
    how: Reading,
    title: str | None = None,
    rows: range | None = None,
) -> tuple[Tensor, Tensor, dict[str, str]]:
    """As `outputs`, but the mean of `net` over random views of every image. The view gives the size.

    View c of image i is drawn from (seed, c, i): batches and processes change nothing. `rows`: of these consecutive
    images alone.
    """
    rows = range(len(data)) if rows is None else rows
    batch_size = min(how.batch_size, -(-len(rows) // world_size()))
    order = FixedOrder(torch.arange(rows.start, rows.stop), batch_size, world_size(), copies.seed)
    statistics = how.statistics()
    steps = copies.count * order.steps_per_epoch
    parts, index, unread = [], [], {}
    batches = training_batches(data, [copies.view], order, 0, steps, workers=how.workers, device=how.device)
    for batch in shown(batches, steps, 1, "batch", title):
        (x,) = finish(batch, [copies.view], *statistics)
        counts = [len(x)] * world_size()
        parts.append(gather_rows(_wide(net(x)), counts))
        index.append(gather_rows(batch.index.to(how.device), counts))
        unread |= dict(batch.bad)
    found = torch.cat(parts).view(copies.count, -1, parts[0].shape[1])[:, : len(rows)]
    index = torch.cat(index).view(copies.count, -1)[:, : len(rows)]
    # The loader shows another image in place of a file that cannot be read.
    read = (index == torch.arange(rows.start, rows.stop, device=how.device)).all(0)
    found = found.mean(0)
    _require_finite(found, read, data, rows.start)
    return found, read, from_all_ranks(unread)


def readable(data: Images, read: Tensor, bad: dict[str, str], max_bad_fraction: float) -> Images:
    """The images that could be read, by `read` (N,). Prints the others.

    Raises `UserError` where these are too many, or all.
    """
    tell_left_out(bad, len(data), max_bad_fraction)
    if bad and not read.any():
        raise UserError(f"none of the {len(data)} images to judge can be read; the first is {next(iter(bad))}")
    return data.subset(read.nonzero()[:, 0].cpu()) if bad else data


def judged_size(encoder: nn.Module, data: Images, trained: int) -> int:
    """The size in pixels at which images are judged.

    Small images in memory keep their own size, unless the encoder cannot read it (a ViT reads one size). All others
    get the size at which the encoder was `trained`.
    """
    if data.resident is None:
        return trained
    own = min(data.resident.shape[2:])
    return own if own == trained or reads(encoder, own, data.channels) else trained


def _require_finite(outputs: Tensor, read: Tensor, data: Images, start: int) -> None:
    """Raise `NotFinite`, on every rank, for NaN or Inf in outputs (n, F) of the images from number `start` on.

    Images that could not be read, by `read` (n,), do not count.
    """
    bad = read & ~outputs.isfinite().all(1)
    if bad.any():
        first, count = start + int(bad.nonzero()[0]), int(bad.sum())
        raise NotFinite(
            f"the network gives NaN or Inf for {count} of {len(outputs)} images, first for "
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
