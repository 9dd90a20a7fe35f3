"""`--preload`: image files are decoded once, into memory that all processes and workers of a machine share.

The memory is a file without a name (memfd): nothing is left behind, however the run ends, and the size of /dev/shm does
not matter. Each process maps it read-only. A batch has the same bits as one that is read from the files.
"""

import contextlib
import mmap
import os
import stat
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from ssl.console import say
from ssl.data.blocks import in_threads
from ssl.data.cores import core_share
from ssl.data.decode import FORMATS, LARGEST_FILE, LARGEST_IMAGE, BadImage, Range, content
from ssl.data.held import Held, path_of
from ssl.data.images import Images
from ssl.data.memory import free_memory
from ssl.data.reduced import reduced_size
from ssl.distributed import gather_objects, rank, world_size
from ssl.errors import UserError, one_line

SHARE = 0.9  # of the free memory: at most this much is taken


def hold(data: Images, size: int, short_side: int | None = None) -> Images:
    """`data` with its images in memory, for views of `size` pixels. Unchanged if they are in memory or not in files.

    With `short_side`, larger images are reduced to it, as `ssl.data.prepare` does it on a disk; if they do not fit into
    memory, they are reduced each time they are read. Without it, `UserError` is raised on all ranks before anything is
    decoded. All ranks call it.
    """
    if data.paths is None or data.resident is not None or data.held is not None:
        return data
    began, data = time.monotonic(), replace(data, short_side=short_side or data.short_side)
    table = _measure(data, size)
    table[:, 0] = table.nbytes + np.concatenate([[0], table[:-1, 1].cumsum()])
    need = int(table.nbytes + table[:, 1].sum())
    local = int(os.environ.get("LOCAL_RANK") or 0)  # the ranks of a machine have consecutive numbers
    reduced = f", short side {data.short_side} pixels at most" if data.short_side else ""
    say(f"preload     decoding {len(data)} images{reduced}, {need / 1e9:.2g} GB, into memory")
    fd, trouble = -1, shortage(need)
    if trouble is None and local == 0:
        fd, trouble = _created(need)
    if words := _trouble_of_any(trouble):
        return _unheld(data, fd, words)
    path = gather_objects(path_of(fd))[rank() - local]
    try:
        fd = fd if local == 0 else os.open(path, os.O_RDWR)
        _fill(mmap.mmap(fd, need), table, data)
    except (OSError, MemoryError) as error:
        trouble = f"the images could not be held in memory ({type(error).__name__}: {one_line(error)})"
    if words := _trouble_of_any(trouble):
        return _unheld(data, fd, words)
    held = Held(fd, len(data), np.arange(len(data)), data.value_range)
    files = int(((held.table[:, 2] == 0) & (held.table[:, 1] > 0)).sum())
    large = f"; {files} JPEGs of at least {4 * size} pixels are held as files: ssl.data.prepare makes them small"
    say(f"preload     done in {time.monotonic() - began:.0f} s{large if files else ''}")
    return replace(data, held=held)


def as_asked(settings, data: Images) -> Images:
    """`data`, held as the settings `preload` and `short_side` ask for it."""
    if settings.preload or settings.short_side:
        return hold(data, settings.image_size, settings.short_side)
    return data


def _trouble_of_any(trouble: str | None) -> str | None:
    """The trouble of the first rank that has some, the same on all ranks."""
    return next(filter(None, gather_objects(trouble)), None)


def _unheld(data: Images, fd: int, words: str) -> Images:
    """`data` as it is, if its images are reduced as they are read; else raise `UserError`."""
    if fd >= 0:
        os.close(fd)
    if data.short_side is None:
        raise UserError(f"preload: {words}; leave --preload out")
    say(f"*** preload: {words}; each image is now decoded every time it is read, which takes longer ***")
    return data


def _created(need: int) -> tuple[int, str | None]:
    """(descriptor of a file of `need` bytes in memory, None), or (-1, what is wrong)."""
    if not hasattr(os, "memfd_create"):
        return -1, "needs Linux"
    try:
        fd = os.memfd_create("preload")
        os.ftruncate(fd, need)
        return fd, None
    except OSError as error:
        return -1, f"no memory to share can be had here ({one_line(error)})"


def _measure(data: Images, size: int) -> np.ndarray:
    """Table (N, 4) of 0, bytes, height (0: held as a file), width, from the headers alone. Ranks share the work."""
    mine = range(rank(), len(data), world_size())
    table = np.zeros((len(data), 4), np.int64)

    def measure(index: int) -> None:
        table[index, 1:] = _size(data.paths[index], size, data.short_side, data.value_range)

    for _ in in_threads(measure, mine, core_share()):
        pass
    for other, part in enumerate(gather_objects(table[rank() :: world_size()])):
        table[other :: world_size()] = part
    return table


def _size(path: str, size: int, short_side: int | None, value_range: Range | None) -> tuple[int, int, int]:
    """(bytes, height, width) of the image as it will be held; zeros if it cannot be held.

    A JPEG of at least four times the size of the views is held as its file (height 0), without `short_side` and
    `value_range`: training then decodes it at a reduced size if the crops allow it, and the reduced image has other
    pixels than the whole one.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_FILE:
            return 0, 0, 0
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > LARGEST_IMAGE:
                return 0, 0, 0
            if short_side:
                height, width = reduced_size(height, width, short_side)
            elif value_range is None and isinstance(image, JpegImageFile) and min(width, height) >= 4 * size:
                return status.st_size, 0, 0
            return 3 * width * height * (1 if value_range is None else 2), height, width
    except Exception:  # what is wrong with it is reported when training reads it
        return 0, 0, 0


def _fill(shared: mmap.mmap, table: np.ndarray, data: Images) -> None:
    """Write this process's share of the images, and their rows of the table. Pillow decodes outside Python's lock."""
    rows = np.frombuffer(shared, np.int64, table.size).reshape(table.shape)
    memory = np.frombuffer(shared, np.uint8)

    def read(index: int) -> None:
        start, size, height, width = table[index].tolist()
        if not size:
            return
        with contextlib.suppress(BadImage):
            if height:
                pixels = data.pixels(index).permute(1, 2, 0)
                height, width = pixels.shape[:2]  # upright
                held = pixels.numpy().reshape(-1).view(np.uint8)
            else:
                held = np.frombuffer(content(data.paths[index]), np.uint8)
            if len(held) == size:  # else the file has changed
                memory[start : start + size] = held
                rows[index] = start, size, height, width

    local, count = int(os.environ.get("LOCAL_RANK") or 0), int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    for _ in in_threads(read, range(local, len(data), count), core_share()):
        pass


# Does it fit? -----------------------------------------------------------------


def shortage(need: int, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> str | None:
    """The error if `need` bytes are too much for this machine, this job or this container; else None."""
    free, whose = free_memory(proc, cgroups)
    if need <= SHARE * free:
        return None
    return (
        f"the decoded images take {need / 1e9:.1f} GB; they may take {SHARE:.0%} of the {free / 1e9:.1f} GB that "
        f"{whose} has free; python -m ssl.data.prepare makes them smaller"
    )
