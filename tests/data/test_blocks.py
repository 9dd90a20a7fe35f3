"""Work on many images in threads: results in order, few tasks, and an end as soon as the caller has enough."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from ssl.data import blocks, keys, preload, resident
from ssl.data.images import Images, Paths


@pytest.mark.parametrize("count, threads", [(0, 3), (1, 3), (7, 3), (100, 1), (5000, 2)])
@pytest.mark.parametrize("start, step", [(0, 1), (3, 4)])
def test_every_result_comes_once_and_in_order(count, threads, start, step):
    indices = range(start, start + count * step, step)
    assert list(blocks.in_threads(lambda index: index * index, indices, threads)) == [index**2 for index in indices]


def test_every_thread_has_work_where_images_are_few():
    together = threading.Barrier(4, timeout=60)
    assert len(list(blocks.in_threads(lambda index: together.wait(), range(4), 4))) == 4


def test_what_the_caller_does_not_wait_for_is_not_begun():
    begun = []

    def work(index: int) -> bool:
        begun.append(index)
        time.sleep(0.001)
        return False

    assert not all(blocks.in_threads(work, range(100_000), 2))
    assert len(begun) < 50_000


def test_an_error_is_raised():
    with pytest.raises(ZeroDivisionError):
        list(blocks.in_threads(lambda index: 1 // (index - 50), range(100), 2))


@pytest.fixture
def tasks(monkeypatch) -> list:
    """The tasks that thread pools are given."""
    given, submit = [], ThreadPoolExecutor.submit
    monkeypatch.setattr(ThreadPoolExecutor, "submit", lambda *some: given.append(some) or submit(*some))
    return given


@pytest.mark.parametrize("work", ["keys", "preload", "resident"])
def test_many_images_are_few_tasks(tasks, work, tmp_path, monkeypatch):
    """A task for each of a million images would take gigabytes."""
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    paths = Paths([str(tmp_path / "a.png")] * 3000)
    data = Images("folder", torch.full((3000,), -1), [], paths=paths)
    monkeypatch.setattr(preload, "core_share", lambda: 2)
    pools = 2 if work == "preload" else 1
    if work == "keys":
        assert len(set(keys.of_files(paths).tolist())) == 1
    elif work == "preload":
        assert preload.hold(data, 16).held.table[:, 1].tolist() == [1200] * 3000
    else:
        assert resident.make_resident(data, None).resident.shape == (3000, 3, 20, 20)
    assert len(tasks) <= pools * 150
