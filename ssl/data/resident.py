"""Small images of one size (at most 64 pixels, as in CIFAR) in memory, as one tensor `Images.resident`.

Their batches are cropped and resized on the training device, without workers.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from ssl.data.decode import BadImage, Range
from ssl.data.images import Images
from ssl.errors import UserError

SMALL = 64  # pixels: an image of at most this size is small
MOST = 4 << 30  # bytes of such a tensor


def make_resident(data: Images, value_range: Range | None) -> Images:
    """Hold files in memory if their images are small and all of one size; files that cannot be read are left out."""
    data = replace(data, value_range=value_range)
    if data.resident is not None:
        return data
    first = _first_readable(data)
    if max(first.shape[1:]) > SMALL or len(data) * first.numel() > MOST:
        return data
    resident = torch.empty(len(data), *first.shape, dtype=first.dtype)
    bad: dict[int, tuple[str, str]] = {}

    def read(rows: range) -> bool:
        for index in rows:
            try:
                pixels = data.pixels(index)
            except BadImage as error:
                bad[index] = error.path, error.reason
                continue
            if pixels.shape != first.shape:
                return False
            resident[index] = pixels
        return True

    blocks = (range(start, min(start + 256, len(data))) for start in range(0, len(data), 256))
    with ThreadPoolExecutor(8) as pool:  # Pillow decodes outside Python's lock
        same = all(pool.map(read, blocks))  # a block at a time: a million tasks would take gigabytes
    if not same:
        return data
    rows = None if data.stored is None else data.stored.rows
    data = replace(data, resident=resident, stored=None, rows=rows, bad=tuple(bad[index] for index in sorted(bad)))
    if not bad:
        return data
    good = torch.ones(len(data), dtype=torch.bool)
    good[list(bad)] = False
    return data.subset(good.nonzero()[:, 0])


def _first_readable(data: Images) -> Tensor:
    for index in range(len(data)):
        try:
            return data.pixels(index)
        except BadImage as error:
            if index == min(len(data) - 1, 100):
                raise UserError(f"data_dir: none of the first {index + 1} images can be read; {error}") from None
    raise AssertionError("a data set has images")
