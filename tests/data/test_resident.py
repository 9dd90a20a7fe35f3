"""Small images in one tensor: each in its place, with few tasks for many images."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ssl.data import resident
from ssl.data.images import Images
from ssl.data.stack import Stack


@pytest.mark.parametrize("outside", [(), (0, 255, 256, 999)])
def test_many_images_are_few_tasks_and_keep_their_places(outside, monkeypatch):
    """A task for each of a million images would take gigabytes."""
    tasks = []

    class Counting(ThreadPoolExecutor):
        def submit(self, *arguments):
            tasks.append(arguments)
            return super().submit(*arguments)

    monkeypatch.setattr(resident, "ThreadPoolExecutor", Counting)
    pixels = np.random.default_rng(0).integers(0, 100, (1000, 8, 8, 3)).astype(np.uint16)
    pixels[list(outside)] = 101
    stored = Stack(pixels, np.arange(1000), (0, 100))
    data = resident.make_resident(Images("array", torch.arange(1000), [], stored=stored), (0, 100))
    kept = [index for index in range(1000) if index not in outside]
    assert data.labels.tolist() == kept == data.rows.tolist() and len(tasks) == 4
    assert [path for path, _ in data.bad] == [f"array/{index}" for index in outside]
    for place in (0, 300, len(kept) - 1):
        assert torch.equal(data.resident[place], stored[kept[place]])
