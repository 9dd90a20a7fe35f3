"""Choose the number of threads of a process: its number of cores, or fewer where other programs use the cores.

An operation on several threads ends with the slowest of them. If another program slows one thread down, all wait for
it: on two cores that other programs use too, two threads are five to ten times slower than one.
"""

import os
import statistics
import time

import torch

from ssl.console import say
from ssl.data.cores import core_share
from ssl.distributed import gather_objects

FASTER = 0.8  # half as many threads are taken if they need less than this share of the time
TIMINGS = 5  # at most
ENOUGH = 0.2  # seconds; after so much time no further timing begins


def settle_threads(kept: int | None = None) -> None:
    """Set the number of threads, the same on all ranks; all ranks call it. OMP_NUM_THREADS wins over it.

    The last bits of a result depend on this number. So a continued run takes the number it had, `kept`, if the process
    has so many cores. A new run takes the number that a timing of a few hundredths of a second finds.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    cores = min(torch.get_num_threads(), core_share())
    known = kept is not None and kept <= cores
    threads = min(gather_objects(kept if known else fastest(cores)))
    torch.set_num_threads(threads)
    if threads < cores:
        why = "as the run had" if known else "other programs use the cores, and more would wait for each other"
        say(f"threads     {threads} for {cores} cores: {why}; OMP_NUM_THREADS sets another number")


def fastest(cores: int) -> int:
    """The first of cores, cores / 2, …, 1 threads that half as many do not clearly beat."""
    threads, took = cores, seconds(cores, cores)
    while threads > 1 and (less := seconds(threads // 2, cores)) < FASTER * took:
        threads, took = threads // 2, less
    return threads


@torch.no_grad()
def seconds(threads: int, cores: int) -> float:
    """How long a few convolutions of 4 × `cores` images take on so many threads: the median of some timings."""
    torch.set_num_threads(threads)
    images, weight = torch.ones(4 * cores, 16, 32, 32), torch.ones(16, 16, 3, 3)
    took = []
    while len(took) < 2 or (len(took) <= TIMINGS and sum(took) < ENOUGH):  # the first starts the threads
        began = time.perf_counter()
        for _ in range(4):
            torch.conv2d(images, weight, padding=1).relu_()
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:])
