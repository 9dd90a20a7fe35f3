"""How fast this machine is with an encoder: a short run of train.py, and a few batches forward and back."""

import shutil
import statistics
import time
from dataclasses import dataclass

import torch
from torch import nn

from ssl import files
from ssl.data.decode import BadImage
from ssl.data.images import Images, evenly_spaced
from ssl.settings import config
from ssl.training.precision import autocast, choose_precision
from ssl.worth.jobs import Job

BATCH = {"cpu": 8, "cuda": 64}  # images
READ = 12  # images that are read to time it


@dataclass(frozen=True)
class Speed:
    """Seconds with one network on this machine."""

    start: float  # of a run of train.py until its first step; other scripts take about as long
    epoch: float  # of pre-training
    train: float  # an image forward and back, at the size of training
    check: float  # an image forward, at the size of training
    judge: float  # an image forward, at the size of judging
    read: float  # an image from its file


@dataclass(frozen=True)
class ShortRun:
    """Of a few steps of train.py: the settings that it has settled, seconds until its first step and of an epoch."""

    settled: dict
    start: float
    epoch: float


def short_run(job: Job) -> ShortRun:
    """Make the few steps."""
    shutil.rmtree(job.folder, ignore_errors=True)  # of a measuring that was stopped
    took = job.run()
    lines = [line for line in files.json_lines(job.folder / "metrics.jsonl") if line.get("samples_per_second")]
    rates = [line["samples_per_second"] for line in lines]
    about = files.json_object(job.folder / "about.json")
    rate = statistics.median(rates[len(rates) // 2 :])
    stepping = sum(about["global_batch"] / one for one in rates)
    epoch = lines[-1]["step"] / lines[-1]["epoch"] * about["global_batch"] / rate
    return ShortRun(config.read_yaml(job.folder / "config.yaml"), max(took - stepping, 1.0), epoch)


def seconds_per_image(encoder: nn.Module, channels: int, size: int, device: torch.device, training: bool) -> float:
    """Of a batch forward, or forward and back. The first batch only warms up; the faster of two others counts."""
    encoder = encoder.to(device, memory_format=torch.channels_last).train(training)
    x = torch.zeros(BATCH[device.type], channels, size, size, device=device).to(memory_format=torch.channels_last)
    dtype = choose_precision("auto", device) if training else None
    took = []
    for _ in range(3):
        began = time.perf_counter()
        with torch.set_grad_enabled(training), autocast(dtype, device):
            h = encoder(x)
        if training:
            h.float().square().sum().backward()
            encoder.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return min(took[1:]) / len(x)


def seconds_to_read(data: Images) -> float:
    """Of an image from its file; 0 for images in memory."""
    if data.resident is not None:
        return 0.0
    chosen, began = list(evenly_spaced(len(data), READ)), time.perf_counter()
    for index in chosen:
        try:
            data.pixels(index)
        except BadImage:
            continue
    return (time.perf_counter() - began) / len(chosen)
