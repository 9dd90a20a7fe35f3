"""Turns of a loop (see loops.py): seconds by part of a step, and what they say."""

import statistics
from collections.abc import Iterator

from loops import Loop
from measure import Laps

from ssl.console import table

WARM_UP = 2  # steps at the start of each turn that are not counted: workers start, queues fill
PARTS = {
    "wait": "waiting for data",
    "views": "the views' pixels",
    "forward": "forward",
    "loss": "the loss",
    "backward": "backward",
    "optimizer": "the optimizer",
}


def take_turn(loop: Loop, turn: int, steps: int, device: str, drain: int = 0, quiet: bool = False) -> dict[str, float]:
    """Seconds of `steps` steps by part, after a warm-up.

    `drain`: so many batches are first taken and thrown away, those that workers have got ready while nobody
    asked. `quiet`: gradients stay on their rank, so the other parts' time without that exchange.
    """
    start, length = turn * (drain + WARM_UP + steps), drain + WARM_UP + steps
    batches = loop.batches(start, start + length)
    for _ in range(drain):
        next(batches)
    laps = None
    for i in range(WARM_UP + steps):
        if i == WARM_UP:
            laps = Laps(device)
        lap = laps or (lambda part: None)
        batch = next(batches)
        lap("wait")
        ready = loop.prepare(batch)
        lap("views")
        if quiet:
            with loop.quiet():
                loop.step(ready, 1.0, lap)
        else:
            loop.step(ready, 1.0, lap)
    seconds = laps.seconds()
    batches.close()
    return seconds


def endless(batch) -> Iterator:
    while True:
        yield batch


def summary(turns: list[dict], samples: int) -> dict:
    """Of the turn in the middle: samples per second, each part's share, and the largest in words."""
    turns = sorted(turns, key=lambda seconds: sum(seconds.values()))
    total = statistics.median_low(sum(seconds.values()) for seconds in turns)
    middle = turns[(len(turns) - 1) // 2]
    shares = {part: seconds / total for part, seconds in middle.items()}
    largest = max(shares, key=shares.get)
    return dict(samples_per_second=samples / total, data_wait=shares["wait"], shares=shares, bottleneck=PARTS[largest])


def turns_table(results: dict[str, dict]) -> str:
    """Rows of `summary`s: samples per second, and the share of each part."""
    rows = [["", "samples/s", *PARTS.values()]]
    for name, found in results.items():
        shares = [f"{found['shares'][part]:.1%}" for part in PARTS]
        rows.append([name, f"{found['samples_per_second']:.1f}", *shares])
    return table(rows)
