"""How many threads of a process compute: as many as it has cores, fewer where other programs use them.

Every operation on several threads waits for the last. Where another program has put one aside, all wait
for that: on two cores that others use too, two threads are five to ten times as slow as one.
"""

import os
import statistics
import time

import torch

from ssl.console import say
from ssl.data.cores import auto_workers
from ssl.distributed import gather_objects

CLEARLY = 0.8  # of the time: what fewer threads must save before they are taken
TURNS = 5
LONG = 0.2  # seconds after which the turns that were are enough


def settle_threads(kept: int | None = None) -> None:
    """Set the number of threads, the same on all ranks, which all call this. OMP_NUM_THREADS has the last word.

    The last bits of a result depend on the number. So a run that continues takes the number it had, `kept`,
    as long as the process has so many cores; a new one takes what a timing of a few hundredths of a second finds.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    cores = min(torch.get_num_threads(), auto_workers())
    known = kept is not None and kept <= cores
    threads = min(gather_objects(kept if known else unhindered(cores)))
    torch.set_num_threads(threads)
    if threads < cores:
        why = "as the run had" if known else "other programs use the cores, and more would wait for each other"
        say(f"threads     {threads} for {cores} cores: {why}; OMP_NUM_THREADS sets another number")


def unhindered(cores: int) -> int:
    """The first of cores, cores / 2, … 1 threads that half of them do not clearly outrun."""
    threads, took = cores, seconds(cores, cores)
    while threads > 1 and (less := seconds(threads // 2, cores)) < CLEARLY * took:
        threads, took = threads // 2, less
    return threads


@torch.no_grad()
def seconds(threads: int, cores: int) -> float:
    """What a few convolutions take on so many threads: their number of images is that of the cores, times four."""
    torch.set_num_threads(threads)
    images, weight = torch.ones(4 * cores, 16, 32, 32), torch.ones(16, 16, 3, 3)
    took = []
    while len(took) < 2 or (len(took) <= TURNS and sum(took) < LONG):  # the first starts the threads
        began = time.perf_counter()
        for _ in range(4):
            torch.conv2d(images, weight, padding=1).relu_()
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:])
