"""What the benchmarks share: turns, medians, and the machine's name."""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def medians(contenders: list[Callable], device: str, seconds: float = 6.0, most: int = 30) -> list[float]:
    """Median seconds of each contender, taking turns until `seconds` each or `most` turns; at least 3."""

    def timed(function: Callable) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for function in contenders:
        timed(function)
    times: list[list[float]] = [[] for _ in contenders]
    while len(times[0]) < 3 or (len(times[0]) < most and sum(map(sum, times)) < seconds * len(contenders)):
        for function, own in zip(contenders, times):
            own.append(timed(function))
    return [statistics.median(own) for own in times]


def machine(device: str) -> str:
    """Processor or GPU, threads, and versions, for beside the numbers."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        cpuinfo = Path("/proc/cpuinfo")
        models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
        name = models[0].split(":")[1].strip() if models else platform.processor()
        name += f", {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"
