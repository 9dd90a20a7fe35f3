"""How fast this machine is with an encoder: a short run of train.py, and a few batches forward and back.

Where jobs will run side by side, the other cores are busy meanwhile: python -m ssl.worth.measure keeps one busy.
"""

import contextlib
import os
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ssl import files
from ssl.data.cores import auto_workers, usable_cores
from ssl.data.decode import BadImage
from ssl.data.images import Images, evenly_spaced
from ssl.data.memory import free_memory
from ssl.encoders import build_encoder
from ssl.errors import UserError
from ssl.settings import config
from ssl.training.precision import autocast, choose_precision
from ssl.worth.jobs import Job, start_python

BATCH = 32  # images of a step of fine-tuning
TIMED = 1.0  # seconds at least, of batches
READ = 12  # images that are read to time it
AT_ONCE = 4  # jobs at most: more would leave few cores for pre-training, which the verdict waits for
JOB = 2 << 30  # bytes of memory of a job, besides its images
SIDE = 96  # pixels of training at most, where none are named; a job holds images of twice this side in memory


@dataclass(frozen=True)
class Speed:
    """Seconds with one network on this machine."""

    begin: float  # of a run of train.py until its first step, with images that it holds in memory
    start: float  # the same without these; other scripts take about as long
    epoch: float  # of pre-training
    train: float  # an image forward and back, at the size of training
    check: float  # an image forward, at the size of training
    judge: float  # an image forward, at the size of judging
    read: float  # an image from its file, with all loader processes of a job
    hold: float  # an image from its file, reduced as it is held in memory; 0 where none is held


@dataclass(frozen=True)
class ShortRun:
    """Of a few steps of train.py: the settings that it has settled, seconds until its first step and of an epoch."""

    settled: dict
    begin: float
    epoch: float
    images: float  # about so many


def jobs_at_once(device: torch.device, images: list[Images], size: int | None, preload: bool) -> int:
    """How many jobs run side by side: on a GPU one; on a CPU AT_ONCE, if cores and memory reach.

    A second core makes the training of a small network a tenth faster; a second training beside it doubles what is done
    (docs/results.md). `size`: pixels of training, if they are named. With `preload` each job holds whole images: one.
    """
    if device.type != "cpu" or preload:
        return 1
    each = 4 * (2 * (size or SIDE)) ** 2
    held = sum(data.resident.nbytes if data.resident is not None else each * len(data) for data in images)
    free, _ = free_memory()
    return max(1, min(AT_ONCE, usable_cores(), free // (JOB + held)))


@contextlib.contextmanager
def beside(others: int, threads: int | None, log: Path) -> Iterator[None]:
    """In the block this process computes with so many threads, and `others` such processes are busy beside it."""
    before, busy = torch.get_num_threads(), []
    try:
        torch.set_num_threads(threads or before)
        log.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(others):
            busy.append(start_python(["-m", "ssl.worth.measure"], log, threads))
        yield
        if any(process.poll() is not None for process in busy):
            raise UserError(f"measuring: a process that kept a core busy has ended; its output is {log}")
    finally:
        for process in busy:
            process.kill()
            process.wait()
        torch.set_num_threads(before)


def keep_busy() -> None:
    """Train a small network until the parent ends."""
    parent, (encoder, _) = os.getppid(), build_encoder("ssl.encoders.SmallConvNet", 48)
    while os.getppid() == parent:
        seconds_per_image(encoder, 3, 48, torch.device("cpu"), training=True)


def short_run(job: Job) -> ShortRun:
    """Make the few steps."""
    shutil.rmtree(job.folder, ignore_errors=True)  # of a measuring that was stopped
    took = job.run()
    lines = [line for line in files.json_lines(job.folder / "metrics.jsonl") if line.get("samples_per_second")]
    rates = [line["samples_per_second"] for line in lines]
    about = files.json_object(job.folder / "about.json")
    rate = statistics.median(rates[len(rates) // 2 :])
    stepping = sum(about["global_batch"] / one for one in rates)
    images = lines[-1]["step"] / lines[-1]["epoch"] * about["global_batch"]
    settled = config.read_yaml(job.folder / "config.yaml")
    return ShortRun(settled, max(took - stepping, 1.0), images / rate, images)


def seconds_per_image(encoder: nn.Module, channels: int, size: int, device: torch.device, training: bool) -> float:
    """Of a batch forward, or forward and back. The first batch only warms up; the median of others counts."""
    encoder = encoder.to(device, memory_format=torch.channels_last).train(training)
    x = torch.zeros(BATCH, channels, size, size, device=device).to(memory_format=torch.channels_last)
    dtype = choose_precision("auto", device) if training else None
    took: list[float] = []
    while len(took) < 2 or sum(took[1:]) < TIMED:
        began = time.perf_counter()
        with torch.set_grad_enabled(training), autocast(dtype, device):
            h = encoder(x)
        if training:
            h.float().square().sum().backward()
            encoder.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:]) / len(x)


def seconds_to_read(data: Images, workers: int | None) -> float:
    """Of an image from its file, with so many loader processes; None: as a job settles them. 0 for images in memory."""
    if data.resident is not None:
        return 0.0
    chosen, began = list(evenly_spaced(len(data), READ)), time.perf_counter()
    for index in chosen:
        try:
            data.pixels(index)
        except BadImage:
            continue
    return (time.perf_counter() - began) / len(chosen) / max(1, auto_workers() if workers is None else workers)


if __name__ == "__main__":
    keep_busy()
