"""Small images in one tensor: each in its place, if all are of one size and not too many."""

import numpy as np
import pytest
import torch

from ssl.data import resident
from ssl.data.images import Images
from ssl.data.stack import Stack


@pytest.mark.parametrize("outside", [(), (0, 255, 256, 999)])
def test_many_images_keep_their_places(outside):
    pixels = np.random.default_rng(0).integers(0, 100, (1000, 8, 8, 3)).astype(np.uint16)
    pixels[list(outside)] = 101
    stored = Stack(pixels, np.arange(1000), (0, 100))
    data = resident.make_resident(Images("array", torch.arange(1000), [], stored=stored), (0, 100))
    kept = [index for index in range(1000) if index not in outside]
    assert data.labels.tolist() == kept == data.rows.tolist()
    assert [path for path, _ in data.bad] == [f"array/{index}" for index in outside]
    for place in (0, 300, len(kept) - 1):
        assert torch.equal(data.resident[place], stored[kept[place]])


@pytest.mark.parametrize("dtype, size", [(np.uint8, 1), (np.uint16, 2)])
def test_the_limit_counts_bytes(dtype, size, monkeypatch):
    pixels = np.zeros((10, 8, 8, 3), dtype)
    data = Images("array", torch.arange(10), [], stored=Stack(pixels, np.arange(10)))
    monkeypatch.setattr(resident, "MOST", 10 * 8 * 8 * 3 * size)
    assert resident.make_resident(data, None).resident is not None
    monkeypatch.setattr(resident, "MOST", 10 * 8 * 8 * 3 * size - 1)
    assert resident.make_resident(data, None).resident is None


def test_images_of_several_sizes_stay_files():
    sizes = [(8, 8)] * 700 + [(8, 9)] + [(8, 8)] * 700
    pool = [torch.zeros(3, *size, dtype=torch.uint8) for size in sizes]

    class Files(Images):
        def pixels(self, index, reduction=None):
            return pool[index]

    data = Files("folder", torch.zeros(len(sizes)), [], paths=[str(index) for index in range(len(sizes))])
    assert resident.make_resident(data, None).resident is None
