"""Batches of views on the training device, made from files by workers, or from images in memory.

Which images a global batch holds, and in which order, depends only on (seed, epoch). A view depends only on (seed,
epoch, index, view). So a model sees the same on any number of processes and workers, and after a resume.
"""

import atexit
import functools
import multiprocessing.connection
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl.augment import View, apply, crop_boxes, crop_resize, draw, same_operations, to_unit
from ssl.data.images import Images
from ssl.data.order import Order, batch_seed
from ssl.data.worker import Batch, PlainFiles, TrainingFiles
from ssl.distributed import rank, world_size
from ssl.errors import UserError, first_line, tell
from ssl.signals import begin_worker, signals_held

RESTARTS = 3  # how often killed workers are replaced in a run


def training_batches(
    data: Images, views: list[View], order: Order, start: int, stop: int, workers: int, device: torch.device
) -> Iterator[Batch]:
    """This rank's micro-batches of optimizer steps start..stop-1, `order.accumulate` for each step.

    One iterator serves the whole run, so workers are started once. Another image replaces a file that cannot be read
    (`stand_in`). Raises `UserError` if a dozen replacements in a row cannot be read.
    """
    if data.resident is not None:
        yield from _resident_batches(data, views, order, start, stop, device)
        return
    numbers = range(start * order.accumulate, stop * order.accumulate)
    batches = _worker_batches(TrainingFiles(data, views, order, rank()), numbers, workers, device)
    yield from _copied_ahead(batches, device) if device.type == "cuda" else batches


def _copied_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on the GPU. Each is copied on a second stream while the step before it computes."""
    stream = torch.cuda.Stream(device)
    ahead = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = batch.to(device), stream.record_event()
        if ahead is not None:
            yield _when_copied(*ahead)
        ahead = copied
    if ahead is not None:
        yield _when_copied(*ahead)


def _when_copied(batch: Batch, event: torch.cuda.Event) -> Batch:
    """The batch, once the current stream has waited for the copy. Its memory is kept until that stream has used it."""
    current = torch.cuda.current_stream()
    current.wait_event(event)
    for tensor in [batch.index, batch.labels, *(part for view in batch.views for part in view)]:
        tensor.record_stream(current)
    return batch


def _resident_batches(
    data: Images, views: list[View], order: Order, start: int, stop: int, device: torch.device
) -> Iterator[Batch]:
    pixels, kind = data.resident.to(device), data.resident.dtype
    if kind == torch.uint16:
        pixels = pixels.view(torch.int16)  # which index_select takes on every device
    side = torch.tensor(pixels.shape[2:])
    for step in range(start, stop):
        for micro in range(order.accumulate):
            epoch, index, repeats = order.indices(step, micro, rank())
            # index_select: on a CPU ten times as fast as pixels[index]
            chosen = pixels.index_select(0, sent(index, device)).view(kind)
            shown = []
            for number, view in enumerate(views):
                crop, params = draw(order.seed, epoch, index, number, view, repeats)
                height, width = side.expand(len(index), 2).unbind(1)
                boxes = sent(crop_boxes(crop, height, width, view), device)
                most = _images_at_once(chosen[0].numel(), device)
                parts = [crop_resize(*part, view.size) for part in zip(chosen.split(most), boxes.split(most))]
                shown.append((torch.cat(parts), sent(params, device)))
            labels = sent(data.labels[index], device)
            yield Batch(shown, sent(index, device), labels, batch_seed(order, step, micro, rank()))


def sent(x: Tensor, device: torch.device) -> Tensor:
    """`x` on the device. It is pinned first: a copy from other memory waits until the GPU has done all earlier work."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x


def _worker_batches(files: Dataset, keys: Sequence, workers: int, device: torch.device) -> Iterator[Batch]:
    """The items of `files` at `keys`, in order. If a worker is killed, new workers continue at the next item."""
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
        with signals_held():
            batches = iter(loader)
            processes = getattr(batches, "_workers", [])
            end_workers = functools.partial(_kill, processes)
            atexit.register(end_workers)
            if workers and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises in the midst of the training
        try:
            for batch in batches:
                if isinstance(batch, UserError):
                    raise batch
                done += 1
                yield batch
        except (RuntimeError, ConnectionError, EOFError, FileNotFoundError) as error:
            # The connections of a worker break shortly before its process has ended.
            dead = multiprocessing.connection.wait([process.sentinel for process in processes], timeout=1)
            if not dead:
                raise
            restarts += 1
            if restarts > RESTARTS:
                raise UserError(
                    f"workers: loader processes were killed {restarts} times ({first_line(error)}); the usual "
                    "reason is too little memory, or too little space in /dev/shm. Run the same command with fewer "
                    "--workers"
                ) from None
            tell(f"*** rank {rank()}: {len(dead)} of {workers} loader workers died; new ones are started ***")
        finally:
            end_workers()
            atexit.unregister(end_workers)


def _kill(processes: list) -> None:
    for process in processes:  # PyTorch and multiprocessing would send SIGTERM, which workers ignore, and wait
        process.kill()


def finish(
    batch: Batch,
    views: list[View],
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype | None = None,
    compile_views: bool = False,
) -> list[Tensor]:
    """The batch's views as the encoder reads them: normalised floats (N, C, size, size), channels last.

    A CPU takes small groups of images that need the same operations. A GPU takes the whole batch: to group images, the
    host would have to wait for the parameters. For a GPU alone: `dtype` of the result, None for float32, and whether
    torch.compile makes one graph of all views.
    """
    if not batch.views[0][0].is_cuda:
        return [_in_groups(pixels, params, view, mean, std) for (pixels, params), view in zip(batch.views, views)]
    if compile_views:
        first_of_kind = [views.index(view) for view in views]
        return compiled_batch()(batch.views, views, mean, std, dtype, first_of_kind)
    return whole_batch(batch.views, views, mean, std, dtype)


def whole_batch(
    shown: list[tuple[Tensor, Tensor]], views: list[View], mean: Tensor, std: Tensor, dtype: torch.dtype | None
) -> list[Tensor]:
    """`shown`: of each view the cropped pixels and parameters of all images."""
    how = {"dtype": dtype or torch.float32, "memory_format": torch.channels_last}
    return [apply(pixels, params, view, mean, std).to(**how) for (pixels, params), view in zip(shown, views)]


@functools.cache
def compiled_batch() -> Callable[..., list[Tensor]]:
    # Not fullgraph: what cannot be compiled runs as it is. Not dynamic: a batch of another size, of validation, has a
    # graph of its own, and that of training stays.
    return torch.compile(batch_by_kind, dynamic=False)


def batch_by_kind(
    shown: list[tuple[Tensor, Tensor]],
    views: list[View],
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype | None,
    first_of_kind: list[int],
) -> list[Tensor]:
    """`whole_batch` with all views of a kind as one batch: a kind is compiled once, however many views are of it.

    first_of_kind: for each view the place of the first view that is equal to it.
    """
    finished: list = [None] * len(views)
    for first in sorted(set(first_of_kind)):
        places = [place for place, kind in enumerate(first_of_kind) if kind == first]
        pixels, params = (torch.cat(parts) for parts in zip(*(shown[place] for place in places)))
        (x,) = whole_batch([(pixels, params)], [views[first]], mean, std, dtype)
        for place, view in zip(places, x.chunk(len(places))):
            finished[place] = view
    return finished


def _in_groups(pixels: Tensor, params: Tensor, view: View, mean: Tensor, std: Tensor) -> Tensor:
    x = torch.empty(pixels.shape, memory_format=torch.channels_last)
    for rows, needed, hue_place in same_operations(params, view, _images_at_once(pixels[0].numel(), pixels.device)):
        piece = apply(pixels.index_select(0, rows), params[rows], needed, mean, std, hue_place)
        for row, image in zip(rows.tolist(), piece):  # on a CPU `x[rows] = piece` takes five times as long
            x[row] = image
    return x


def _images_at_once(numbers: int, device: torch.device) -> int:
    """How many images of `numbers` values an operation takes at once. A GPU takes all.

    A CPU takes 2 MiB of floats: they stay near the cache, and the allocator keeps the memory between steps. (To give it
    back to the system costs as much as the steps.)
    """
    return 1 << 40 if device.type == "cuda" else max(1, (2 << 20) // (4 * numbers))


# Judging ------------------------------------------------------------------------


def plain_batches(
    data: Images, size: int, batch_size: int, workers: int, device: torch.device
) -> Iterator[tuple[Tensor, list[int], dict[int, tuple[str, str]]]]:
    """Every image once, in order, not augmented: (this rank's pixels (n, C, size, size) in 0..1, n of all ranks, bad).

    A file that cannot be read is black, and `bad` names it: {row: (path, reason)}.

    A batch is `batch_size` × world size consecutive images; at the end ranks may hold fewer, or none. Of large images
    the short side is resized to size · 256/224, and the central square is cut out (the published protocol). Small
    images in memory are resized whole.
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
    batches = _worker_batches(PlainFiles(data, size), slices, workers, device)
    for (pixels, bad), count in zip(batches, counts):
        yield to_unit(pixels.to(device, non_blocking=True)), count, bad


def _even_slices(total: int, batch_size: int) -> tuple[list[slice], list[list[int]]]:
    """(this rank's slice of 0..total-1, numbers of rows on all ranks) of every batch."""
    slices, counts = [], []
    for start in range(0, total, batch_size * world_size()):
        edges = [min(start + r * batch_size, total) for r in range(world_size() + 1)]
        slices.append(slice(edges[rank()], edges[rank() + 1]))
        counts.append([stop - begin for begin, stop in zip(edges, edges[1:])])
    return slices, counts
