"""Work on many images in threads, a block of them at a time: a million tasks would take gigabytes."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

BLOCK = 256  # images, at most
Found = TypeVar("Found")


def in_threads(work: Callable[[int], Found], indices: range, threads: int) -> Iterator[Found]:
    """What `work` returns for each of `indices`, in order. What the caller does not wait for is not begun."""
    size = max(1, min(BLOCK, len(indices) // (8 * threads)))  # small where images are few: no thread is without work
    blocks = (indices[start : start + size] for start in range(0, len(indices), size))
    pool = ThreadPoolExecutor(threads)
    try:
        for found in pool.map(lambda block: [work(index) for index in block], blocks):
            yield from found
    finally:
        pool.shutdown(cancel_futures=True)
