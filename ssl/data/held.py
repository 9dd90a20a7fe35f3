"""The images of a data set in memory that all processes and workers of a machine share."""

import mmap
import os
import warnings

import numpy as np
import torch
from torch import Tensor

from ssl.data.decode import Range, Reduction, decode


class Held:
    """Images in a shared file: first a table (N, 4) of start, bytes, height, width, then the bytes.

    An image is (height, width, 3) pixels, uint16 if the data set has a `value_range`. Where the height is 0, the bytes
    are its file. An image without bytes is read from its path. `rows` (N,) are the rows in the table of this data set's
    images.
    """

    def __init__(self, fd: int, total: int, rows: np.ndarray, value_range: Range | None = None):
        self.fd, self.total, self.rows, self.value_range = fd, total, rows, value_range
        shared = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is read-only, which is meant
            self.bytes = torch.frombuffer(shared, dtype=torch.uint8)
        self.table = np.frombuffer(shared, np.int64, 4 * total).reshape(total, 4)

    def __reduce__(self):
        """A worker that is spawned opens the file of the process that starts it."""
        return _reopened, (path_of(self.fd), self.total, self.rows, self.value_range)

    def subset(self, indices: np.ndarray) -> "Held":
        return Held(self.fd, self.total, self.rows[indices], self.value_range)

    def pixels(self, index: int, path: str, reduction: Reduction | None) -> Tensor:
        """As `decode` of `path`."""
        start, size, height, width = self.table[self.rows[index]].tolist()
        if not size:
            return decode(path, reduction, value_range=self.value_range)
        held = self.bytes[start : start + size]
        if not height:
            return decode(path, reduction, held.numpy().tobytes(), self.value_range)
        if reduction is not None:
            reduction(height, width)  # tells the caller the size
        held = held if self.value_range is None else held.view(torch.uint16)
        return held.view(height, width, 3).permute(2, 0, 1)


def path_of(fd: int) -> str:
    """The path under which another process of this machine can open the file."""
    return f"/proc/{os.getpid()}/fd/{fd}"


def _reopened(path: str, *rest) -> Held:
    return Held(os.open(path, os.O_RDONLY), *rest)
