"""Batches: which image stands where, and its pixels on the training device.

Which index is at which place of which global batch depends on (seed, epoch) alone; how a
view looks, on (seed, epoch, index, view) alone. So processes, workers, batch size and a
resume change nothing a model could notice.
"""

import atexit
import contextlib
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode

from ssl.augment import View, alike, apply, crop_boxes, crop_resize, draw, to_unit, uniforms
from ssl.data.datasets import Images
from ssl.data.images import BadImage
from ssl.distributed import rank, world_size
from ssl.errors import UserError
from ssl.stopping import begin_worker


def auto_workers() -> int:
    """Loader workers for this process: the cores it may use, shared among the machine's processes."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores this process and its siblings may keep busy: by affinity, by its container's quota, by Slurm's grant."""
    cores = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()]
    with contextlib.suppress(OSError, ValueError):  # version 2: 'max 100000' or '200000 100000'
        quota, period = (cgroups / "cpu.max").read_text().split()
        cores.append(int(quota) // int(period))
    with contextlib.suppress(OSError, ValueError):  # version 1: -1 is no quota
        quota, period = (int((cgroups / f"cpu/cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        cores.append(quota // period if quota > 0 else cores[0])
    with contextlib.suppress(KeyError, ValueError):
        cores.append(int(os.environ["SLURM_CPUS_PER_TASK"]))
    return max(1, min(cores))


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

    `seed` is for whatever the model draws. `bad` holds (path, reason) of files that others stand in for.
    """

    views: list[tuple[Tensor, Tensor]]
    index: Tensor
    labels: Tensor
    seed: int
    bad: list[tuple[str, str]] = field(default_factory=list)

    def to(self, device: torch.device) -> "Batch":
        move = lambda x: x.to(device, non_blocking=True)  # noqa: E731
        views = [(move(pixels), move(params)) for pixels, params in self.views]
        return replace(self, views=views, index=move(self.index), labels=move(self.labels))

    def pin_memory(self) -> "Batch":
        views = [(pixels.pin_memory(), params.pin_memory()) for pixels, params in self.views]
        return replace(self, views=views, index=self.index.pin_memory(), labels=self.labels.pin_memory())


def training_batches(
    data: Images, views: list[View], order: Order, start: int, stop: int, workers: int, device: torch.device
) -> Iterator[Batch]:
    """This rank's micro-batches of optimizer steps start..stop-1, `order.accumulate` to a step.

    One iterator for the whole run: workers are started once. A file that cannot be shown is
    replaced by another (`stand_in`). Raises `UserError` where a dozen in a row cannot be.
    """
    if data.resident is not None:
        yield from _resident_batches(data, views, order, start, stop, device)
        return
    keys = [(step, micro) for step in range(start, stop) for micro in range(order.accumulate)]
    batches = _worker_batches(_TrainingFiles(data, views, order, rank()), keys, workers, device)
    yield from _copied_ahead(batches, device) if device.type == "cuda" else batches


def _copied_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on the GPU, each copied on a stream of its own while the step before it computes."""
    stream = torch.cuda.Stream(device)
    ahead = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = batch.to(device), stream.record_event()
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = copied
    if ahead is not None:
        yield _arrived(*ahead)


def _arrived(batch: Batch, event: torch.cuda.Event) -> Batch:
    """Let the current stream wait for the copy, and keep the copy's memory until that stream is done with it."""
    current = torch.cuda.current_stream()
    current.wait_event(event)
    for tensor in [batch.index, batch.labels, *(part for view in batch.views for part in view)]:
        tensor.record_stream(current)
    return batch


def _resident_batches(data, views, order, start, stop, device) -> Iterator[Batch]:
    pixels = data.resident.to(device)
    side = torch.tensor(pixels.shape[2:])
    for step in range(start, stop):
        for micro in range(order.accumulate):
            epoch, index = order.indices(step, micro, rank())
            # index_select: on a CPU ten times as fast as pixels[index]
            chosen = pixels.index_select(0, index.to(device, non_blocking=True))
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

    def __getitem__(self, key: tuple[int, int]) -> Batch | UserError:
        epoch, index = self.order.indices(*key, self.rank)
        index = index.clone()
        draws = [draw(self.order.seed, epoch, index, number, view) for number, view in enumerate(self.views)]
        shown = [[] for _ in self.views]
        bad: list[tuple[str, str]] = []
        for row, i in enumerate(index.tolist()):
            try:
                index[row], crops = self._readable(i, [crop[row : row + 1] for crop, _ in draws], bad)
            except UserError as error:
                return error
            for crop, of_view in zip(crops, shown):
                of_view.append(crop)
        pairs = [(torch.stack(of_view), params) for of_view, (_, params) in zip(shown, draws)]
        return Batch(pairs, index, self.data.labels[index], self.order.batch_seed(*key, self.rank), bad)

    def _readable(self, index: int, draws: list[Tensor], bad: list[tuple[str, str]]) -> tuple[int, list[Tensor]]:
        """(index, crops) of an image, or of the first of its stand-ins that can be read; the others go to `bad`."""
        for attempt in range(13):
            chosen = stand_in(index, attempt, len(self.data), self.order.seed)
            try:
                return chosen, self._crops(chosen, draws)
            except BadImage as error:
                bad.append((error.path, error.reason))
        last = ": ".join(bad[-1])
        raise UserError(f"a dozen images in a row cannot be read; is the data still there? The last was {last}")

    def _crops(self, index: int, draws: list[Tensor]) -> list[Tensor]:
        """The image's crop (C, size, size) for every view, from the uniforms (1, 22) of each."""
        boxes: list[list[int]] = []
        full = []

        def reduction(height: int, width: int) -> int:
            full.append(height)
            sides = torch.tensor([[height], [width]])
            boxes.extend(crop_boxes(crop, *sides, view)[0].tolist() for crop, view in zip(draws, self.views))
            # As small as leaves every crop at least twice its final size: the rest is for a better filter.
            spare = min(min(box[2:]) / (2 * view.size) for box, view in zip(boxes, self.views))
            return max(factor for factor in (1, 2, 4, 8) if factor == 1 or factor <= spare)

        pixels = self.data.pixels(index, reduction)
        factor = round(full[0] / pixels.shape[1])
        return [resized_crop(pixels, box, view.size, factor) for box, view in zip(boxes, self.views)]


def stand_in(index: int, attempt: int, count: int, seed: int) -> int:
    """Which of `count` images to show for `index`: itself at first, then others, the same wherever and whenever."""
    return index if attempt == 0 else (_counted(seed, attempt, index, 0xFFFD) * count) >> 32


def resized_crop(pixels: Tensor, box: list[int], size: int, factor: int = 1) -> Tensor:
    """Crop pixels (C, H, W) uint8 to `box` (top, left, height, width) and resize to (C, size, size), bicubic.

    `pixels` may be a reduced image: `box` is in units of one `factor` times as large.
    """
    if factor == 1:
        return TF.resized_crop(pixels, *box, [size, size], InterpolationMode.BICUBIC, antialias=True)
    top, left, height, width = (side / factor for side in box)  # Pillow takes boxes that end inside a pixel
    limit = left + width, top + height
    corners = left, top, min(limit[0], pixels.shape[2]), min(limit[1], pixels.shape[1])
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BICUBIC, corners)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _worker_batches(files: Dataset, keys: list, workers: int, device: torch.device) -> Iterator[Batch]:
    """The items of `files` at `keys`, in order. Workers that were killed are started again where they stood."""
    done, restarts = 0, 0
    while done < len(keys):
        loader = DataLoader(
            files,
            batch_size=None,  # an item is a batch already
            sampler=keys[done:],
            num_workers=workers,
            pin_memory=device.type == "cuda",
            prefetch_factor=2 if workers else None,
            worker_init_fn=begin_worker,
        )
        batches = iter(loader)
        processes = getattr(batches, "_workers", [])

        def end_workers(processes=processes) -> None:
            for process in processes:  # deaf to the SIGTERM that PyTorch and multiprocessing would send, then wait for
                process.kill()

        atexit.register(end_workers)
        if workers and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would raise wherever the trainer is
        try:
            for batch in batches:
                if isinstance(batch, UserError):
                    raise batch
                done += 1
                yield batch
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            # A worker's connections break a moment before it can be seen to be dead.
            dead = multiprocessing.connection.wait([process.sentinel for process in processes], timeout=1)
            if not dead:
                raise
            restarts += 1
            if restarts > RESTARTS:
                raise UserError(
                    f"workers: loader processes were killed {restarts} times ({str(error).splitlines()[0]}); most "
                    "often there is too little memory, or too little of it in /dev/shm. Pass fewer --workers, then the "
                    "same command"
                ) from None
            print(
                f"*** rank {rank()}: {len(dead)} of {workers} loader workers died, and are started again ***",
                flush=True,
            )
        finally:
            end_workers()
            atexit.unregister(end_workers)


RESTARTS = 3  # a worker killed once in a while is bad luck, more often it is too little memory


# Judging ------------------------------------------------------------------------


def plain_batches(
    data: Images, size: int, batch_size: int, workers: int, device: torch.device
) -> Iterator[tuple[Tensor, list[int], dict[int, tuple[str, str]]]]:
    """Every image once, in order, un-augmented: (this rank's pixels (n, C, size, size) in 0..1, all ranks' n, bad).

    A file that cannot be shown is black, and `bad` names it: {row: (path, reason)}.

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
            yield (to_unit(pixels) if same else crop_resize(pixels, box.expand(len(pixels), 4), size)), count, {}
        return
    batches = _worker_batches(_PlainFiles(data, size), slices, workers, device)
    for (pixels, bad), count in zip(batches, counts):
        yield to_unit(pixels.to(device, non_blocking=True)), count, bad


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

    def __getitem__(self, where: slice) -> tuple[Tensor, dict[int, tuple[str, str]]]:
        pixels = torch.zeros(where.stop - where.start, 3, self.size, self.size, dtype=torch.uint8)
        bad = {}
        for row, index in enumerate(range(where.start, where.stop)):
            try:
                pixels[row] = self._central(self.data.pixels(index))
            except BadImage as error:
                bad[row] = error.path, error.reason
        return pixels, bad

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
