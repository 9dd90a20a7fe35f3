"""Small images of one size (at most 64 pixels, as in CIFAR) in memory, as one tensor `Images.resident`.

Their batches are cropped and resized on the training device, without workers. They are judged whole, all others by
their central square; the splits of one comparison are `shown_alike`.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ssl.console import say
from ssl.data.blocks import in_threads
from ssl.data.decode import BadImage, Range
from ssl.data.images import Images
from ssl.data.stack import Stack
from ssl.distributed import gather_objects
from ssl.errors import UserError

SMALL = 64  # pixels: an image of at most this size is small
MOST = 4 << 30  # bytes of such a tensor


def make_resident(data: Images, value_range: Range | None) -> Images:
    """Hold files in memory if their images are small and all of one size; files that cannot be read are left out."""
    data = replace(data, value_range=value_range)
    if data.resident is not None:
        return data
    first = _first_readable(data)
    if max(first.shape[1:]) > SMALL or len(data) * first.nbytes > MOST:
        return data
    resident = torch.empty(len(data), *first.shape, dtype=first.dtype)
    bad: dict[int, tuple[str, str]] = {}

    def read(index: int) -> bool:
        """Whether the image can be held, or cannot be read."""
        try:
            pixels = data.pixels(index)
        except BadImage as error:
            bad[index] = error.path, error.reason
            return True
        if pixels.shape != first.shape:
            return False
        resident[index] = pixels
        return True

    if not all(in_threads(read, range(len(data)), 8)):  # Pillow decodes outside Python's lock
        return data
    rows = None if data.stored is None else data.stored.rows
    data = replace(data, resident=resident, stored=None, rows=rows, bad=tuple(bad[index] for index in sorted(bad)))
    if not bad:
        return data
    good = torch.ones(len(data), dtype=torch.bool)
    good[list(bad)] = False
    return data.subset(good.nonzero()[:, 0])


def shown_alike(splits: dict[str, Images | None]) -> dict[str, Images | None]:
    """The splits of one comparison, {name: images}: all of them resident, or none.

    Where one is not, be it on one rank, all are read one by one, and a line says so. All ranks call it.
    """
    whole = {name: data.resident is not None for name, data in splits.items() if data is not None}
    on_ranks = gather_objects(whole)
    others = [name for name in whole if not all(found[name] for found in on_ranks)]
    if not others or not any(any(found.values()) for found in on_ranks):
        return splits
    say(
        f"shown       the central square of every image, in all splits alike: those of {', '.join(others)} are not of "
        f"one size up to {SMALL} pixels, or over {MOST >> 30} GiB together"
    )
    return {name: None if data is None else read_one_by_one(data) for name, data in splits.items()}


def read_one_by_one(data: Images) -> Images:
    """The same images, not resident: they are read from their files, or from the tensor as from an array."""
    if data.resident is None:
        return data
    if data.paths is not None:
        return replace(data, resident=None)
    array = data.resident.permute(0, 2, 3, 1).numpy()  # a view: no pixel is copied
    return replace(data, resident=None, stored=Stack(array, np.arange(len(data))))


def _first_readable(data: Images) -> Tensor:
    for index in range(len(data)):
        try:
            return data.pixels(index)
        except BadImage as error:
            if index == min(len(data) - 1, 100):
                raise UserError(f"data_dir: none of the first {index + 1} images can be read; {error}") from None
    raise AssertionError("a data set has images")
