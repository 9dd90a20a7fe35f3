"""Images that are rows of one numpy array, in memory or mapped from a file."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssl.data.decode import BadImage, Range, scaled


@dataclass(frozen=True)
class Stack:
    """Images (N, C, H, W): the `rows` of an array (…, H, W, C), which may lie on the disk.

    With a `value_range` (low, high) an image is uint16: low becomes 0 and high 65535. An image with numbers outside
    raises `BadImage`.
    """

    array: np.ndarray
    rows: np.ndarray
    value_range: Range | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        pixels = self.numbers(index)
        if self.value_range is not None:
            try:
                pixels = scaled(pixels, self.value_range)
            except ValueError as error:
                raise BadImage(f"array/{self.rows[index]}", str(error)) from None
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def numbers(self, index: int) -> np.ndarray:
        """Image `index` as (H, W, C): the numbers of the array, in this machine's byte order."""
        return np.array(self.array[self.rows[index]], self.array.dtype.newbyteorder("="))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        height, width, channels = self.array.shape[1:]
        return len(self), channels, height, width

    def subset(self, indices: np.ndarray) -> "Stack":
        return Stack(self.array, self.rows[indices], self.value_range)

    def __reduce__(self):
        """A process that this is sent to maps the file itself; the content is not sent."""
        if isinstance(self.array, np.memmap):
            return _mapped, (str(self.array.filename), self.array.shape, self.rows, self.value_range)
        return Stack, (self.array, self.rows, self.value_range)


def _mapped(path: str, shape: tuple[int, ...], rows: np.ndarray, value_range: Range | None) -> Stack:
    return Stack(np.load(path, mmap_mode="r", allow_pickle=False).reshape(shape), rows, value_range)
