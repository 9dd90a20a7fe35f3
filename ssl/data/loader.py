"""Batches: which image stands where, and its pixels on the training device.

Which index is at which place of which global batch depends on (seed, epoch) alone; how a
view looks, on (seed, epoch, index, view) alone. So processes, workers, batch size and a
resume change nothing a model could notice.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torchvision.transforms.v2.functional as TF
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode

from ssl.augment import View, alike, apply, crop_boxes, crop_resize, draw, to_unit, uniforms
from ssl.data.datasets import Images
from ssl.data.images import BadImage
from ssl.distributed import rank, world_size


def auto_workers() -> int:
    """Loader workers for this process: the cores it may use, shared among the machine's processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@dataclass(frozen=True)
class Order:
    """The sequence of global batches: every epoch its own permutation of `count` images, the rest dropped.

    A step takes world_size × accumulate micro-batches of `batch_size`; this rank reads those
    numbered rank · accumulate .. + accumulate - 1, so W processes and `accumulate` = W read alike.
    """

    count: int
    batch_size: int
    accumulate: int
    world_size: int
    seed: int

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.accumulate * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        return self.count // self.global_batch

    def indices(self, step: int, micro: int, rank: int) -> tuple[int, Tensor]:
        """(epoch, indices (batch_size,)) of micro-batch `micro` of optimizer step `step`."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        start = batch * self.global_batch + (rank * self.accumulate + micro) * self.batch_size
        return epoch, permutation(self.count, self.seed, epoch)[start : start + self.batch_size]

    def batch_seed(self, step: int, micro: int, rank: int) -> int:
        """What a model that draws (dropout) draws from on this micro-batch, whoever computes it and whenever."""
        return _counted(self.seed, step, rank * self.accumulate + micro, 0xFFFE)


def _counted(*counter: int) -> int:
    """A 32-bit number drawn from (seed, epoch or step, index, stream): as much as a CPU generator's seed keeps."""
    seed, epoch, index, stream = counter
    return int(uniforms(seed, epoch, torch.tensor([index]), stream, 1).item() * 2**32)


@lru_cache(maxsize=2)
def permutation(count: int, seed: int, epoch: int) -> Tensor:
    """The order of `count` images in an epoch."""
    key = _counted(seed, epoch, count, 0xFFFF)
    return torch.randperm(count, generator=torch.Generator().manual_seed(key))


@dataclass
class Batch:
    """`views`: one (pixels, parameters) pair a view, for `augment.apply`; `index` (N,) into the data set.

    `seed` is for whatever the model draws.
    """

    views: list[tuple[Tensor, Tensor]]
    index: Tensor
    labels: Tensor
    seed: int

    def to(self, device: torch.device) -> "Batch":
        move = lambda x: x.to(device, non_blocking=True)  # noqa: E731
        views = [(move(pixels), move(params)) for pixels, params in self.views]
        return Batch(views, move(self.index), move(self.labels), self.seed)

    def pin_memory(self) -> "Batch":
        views = [(pixels.pin_memory(), params.pin_memory()) for pixels, params in self.views]
        return Batch(views, self.index.pin_memory(), self.labels.pin_memory(), self.seed)


def training_batches(
    data: Images, views: list[View], order: Order, start: int, stop: int, workers: int, device: torch.device
) -> Iterator[Batch]:
    """This rank's micro-batches of optimizer steps start..stop-1, `order.accumulate` to a step.

    One iterator for the whole run: workers are started once. Raises `BadImage` for a file that
    cannot be shown.
    """
    if data.resident is not None:
        yield from _resident_batches(data, views, order, start, stop, device)
        return
    keys = [(step, micro) for step in range(start, stop) for micro in range(order.accumulate)]
    for batch in _worker_batches(_TrainingFiles(data, views, order, rank()), keys, workers, device):
        yield batch.to(device)


def _resident_batches(data, views, order, start, stop, device) -> Iterator[Batch]:
    pixels = data.resident.to(device)
    side = torch.tensor(pixels.shape[2:])
    for step in range(start, stop):
        for micro in range(order.accumulate):
            epoch, index = order.indices(step, micro, rank())
            chosen = pixels.index_select(0, index.to(device))  # on a CPU ten times as fast as pixels[index]
            shown = []
            for number, view in enumerate(views):
                crop, params = draw(order.seed, epoch, index, number, view)
                height, width = side.expand(len(index), 2).unbind(1)
                boxes = crop_boxes(crop, height, width, view)
                most = _at_a_time(chosen[0].numel(), device)
                parts = [crop_resize(*part, view.size) for part in zip(chosen.split(most), boxes.split(most))]
                shown.append((torch.cat(parts), params))
            yield Batch(shown, index, data.labels[index], order.batch_seed(step, micro, rank())).to(device)


class _TrainingFiles(Dataset):
    """Whole micro-batches, by (step, micro): decoded, cropped and resized, still uint8."""

    def __init__(self, data: Images, views: list[View], order: Order, rank: int):
        self.data, self.views, self.order, self.rank = data, views, order, rank

    def __getitem__(self, key: tuple[int, int]) -> Batch | BadImage:
        epoch, index = self.order.indices(*key, self.rank)
        draws = [draw(self.order.seed, epoch, index, number, view) for number, view in enumerate(self.views)]
        shown = [[] for _ in self.views]
        try:
            for row, i in enumerate(index.tolist()):
                pixels = self.data.pixels(i)
                height, width = torch.tensor(pixels.shape[1:]).view(2, 1)
                for view, (crop, _), crops in zip(self.views, draws, shown):
                    box = crop_boxes(crop[row : row + 1], height, width, view)[0].tolist()
                    crops.append(_resized_crop(pixels, box, view.size))
        except BadImage as error:
            return error
        pairs = [(torch.stack(crops), params) for crops, (_, params) in zip(shown, draws)]
        return Batch(pairs, index, self.data.labels[index], self.order.batch_seed(*key, self.rank))


def _resized_crop(pixels: Tensor, box: list[int], size: int) -> Tensor:
    return TF.resized_crop(pixels, *box, [size, size], InterpolationMode.BICUBIC, antialias=True)


def _worker_batches(files: Dataset, keys: list, workers: int, device: torch.device) -> Iterator[Batch]:
    loader = DataLoader(
        files,
        batch_size=None,  # an item is a batch already
        sampler=keys,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=2 if workers else None,
    )
    for batch in loader:
        if isinstance(batch, BadImage):
            raise batch
        yield batch


# Judging ------------------------------------------------------------------------


def plain_batches(
    data: Images, size: int, batch_size: int, workers: int, device: torch.device
) -> Iterator[tuple[Tensor, list[int]]]:
    """Every image once, in order, un-augmented: (this rank's pixels (n, C, size, size) in 0..1, all ranks' n).

    A batch is `batch_size` × world size consecutive images; at the end ranks may hold fewer, or
    none. Large images: short side to size · 256/224, then the central square (the published
    protocol); small ones: resized whole.
    """
    slices, counts = _even_slices(len(data), batch_size)
    if data.resident is not None:
        height, width = data.resident.shape[2:]
        side = min(height, width)
        box = torch.tensor([[(height - side) // 2, (width - side) // 2, side, side]])
        for mine, count in zip(slices, counts):
            pixels = data.resident[mine].to(device)
            same = pixels.shape[2:] == (size, size)
            yield (to_unit(pixels) if same else crop_resize(pixels, box.expand(len(pixels), 4), size)), count
        return
    batches = _worker_batches(_PlainFiles(data, size), slices, workers, device)
    for pixels, count in zip(batches, counts):
        yield to_unit(pixels.to(device, non_blocking=True)), count


def _even_slices(total: int, batch_size: int) -> tuple[list[slice], list[list[int]]]:
    """Consecutive slices of 0..total-1 for this rank, and each batch's row counts on all ranks."""
    slices, counts = [], []
    for start in range(0, total, batch_size * world_size()):
        edges = [min(start + r * batch_size, total) for r in range(world_size() + 1)]
        slices.append(slice(edges[rank()], edges[rank() + 1]))
        counts.append([stop - begin for begin, stop in zip(edges, edges[1:])])
    return slices, counts


class _PlainFiles(Dataset):
    """Batches of un-augmented images by slice, uint8."""

    def __init__(self, data: Images, size: int):
        self.data, self.size = data, size

    def __getitem__(self, where: slice) -> Tensor | BadImage:
        indices = range(where.start, where.stop)
        try:
            images = [self._central(self.data.pixels(index)) for index in indices]
        except BadImage as error:
            return error
        return torch.stack(images) if images else torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)

    def _central(self, pixels: Tensor) -> Tensor:
        pixels = TF.resize(pixels, [round(self.size * 256 / 224)], InterpolationMode.BILINEAR, antialias=True)
        return TF.center_crop(pixels, [self.size, self.size])


def _at_a_time(numbers: int, device: torch.device) -> int:
    """How many images of so many numbers to take through an operation's many steps at once.

    On a CPU 2 MiB of floats: near the cache, and memory that the allocator keeps from step to step
    instead of giving it back to the system, which costs as much as the steps. A GPU takes all.
    """
    return 1 << 40 if device.type == "cuda" else max(1, (2 << 20) // (4 * numbers))


def finish(batch: Batch, views: list[View], mean: Tensor, std: Tensor) -> list[Tensor]:
    """The batch's views as the encoder reads them: normalised floats (N, C, size, size), channels last.

    On a CPU in small groups of images that need the same operations. A GPU
    takes the batch whole: to look at its parameters, the CPU would have to wait for it.
    """
    return [_finish(pixels, params, view, mean, std) for (pixels, params), view in zip(batch.views, views)]


def _finish(pixels: Tensor, params: Tensor, view: View, mean: Tensor, std: Tensor) -> Tensor:
    if pixels.is_cuda:
        return apply(pixels, params, view, mean, std).contiguous(memory_format=torch.channels_last)
    x = torch.empty(pixels.shape, memory_format=torch.channels_last)
    for rows, needed, hue_place in alike(params, view, _at_a_time(pixels[0].numel(), pixels.device)):
        piece = apply(pixels.index_select(0, rows), params[rows], needed, mean, std, hue_place)
        for row, image in zip(rows.tolist(), piece):  # on a CPU `x[rows] = piece` takes five times as long
            x[row] = image
    return x
