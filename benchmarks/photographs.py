"""JPEGs like photographs, where none are at hand: 500×375 pixels, about as large in bytes, as smooth and as rough."""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

SIDES = (500, 375)


def photograph(seed: int, sides: tuple[int, int] = SIDES) -> Image.Image:
    """Noise of all sizes, the coarser the stronger (natural images' spectrum, 1 / frequency), tinted."""
    random = np.random.default_rng(seed)
    total = np.zeros((sides[1], sides[0], 3), np.float32)
    cells = 2
    while cells < max(sides):
        coarse = random.normal(size=(cells, cells, 1)) + 0.4 * random.normal(size=(cells, cells, 3))
        for channel in range(3):
            layer = Image.fromarray(coarse[:, :, channel].astype(np.float32))
            total[:, :, channel] += np.asarray(layer.resize(sides, Image.Resampling.BICUBIC)) / cells**0.55
        cells *= 2
    total = (total - total.mean()) / total.std()
    return Image.fromarray((128 + 55 * total + random.normal(0, 4, total.shape)).clip(0, 255).astype(np.uint8))


def write(folder: Path, seed: int) -> None:
    photograph(seed).save(folder / f"{seed:05}.jpg", quality=90)


def make_photographs(folder: Path, count: int) -> Path:
    """`count` of them in `folder`, written by all cores; those that are there already stay."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [seed for seed in range(count) if not (folder / f"{seed:05}.jpg").exists()]
    if missing:
        with ProcessPoolExecutor(min(len(missing), len(os.sched_getaffinity(0)))) as pool:
            list(pool.map(partial(write, folder), missing, chunksize=8))
    return folder
