"""Decode an image reduced to a short side, the same pixels whether it is then held in memory or used at once."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl.data.decode import Range, decode, reduction_to


def reduced_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) with a short side of at most `short_side`, rounded as torchvision's Resize does."""
    shorter = min(height, width)
    return (height, width) if shorter <= short_side else (short_side * height // shorter, short_side * width // shorter)


def decode_reduced(path: str | Path, short_side: int, value_range: Range | None) -> Tensor:
    """(3, H, W) as of `decode`, reduced to `short_side` if it is larger. Raises `BadImage`.

    A JPEG is decoded at twice that size at least, as far as it can be; antialiased bicubic does the rest.
    """
    full: list[int] = []

    def reduction(height: int, width: int) -> int:
        full.extend([height, width])
        return reduction_to(min(height, width) / (2 * short_side))

    pixels = decode(path, reduction, value_range=value_range)
    size = reduced_size(*full, short_side)
    if pixels.shape[1:] == size:
        return pixels
    deep = pixels.dtype == torch.uint16
    x = (pixels.float() if deep else pixels)[None]
    x = F.interpolate(x, size, mode="bicubic", antialias=True)[0]
    return x.round().clamp(0, 65535).to(torch.uint16) if deep else x
