"""What the benchmarks share: options, turns, laps, peak memory, numbers on disk, and the machine's name."""

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def part_parser(description: str) -> argparse.ArgumentParser:
    """The options of every part of gpu.sh."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, help="write the numbers to this file")
    parser.add_argument("--tiny", action="store_true", help="small sizes, on a GPU too: says whether it runs")
    return parser


def is_tiny(options: argparse.Namespace) -> bool:
    return options.tiny or not torch.cuda.is_available()


def medians(contenders: list[Callable], device: str, seconds: float = 6.0, most: int = 30) -> list[float]:
    """Median seconds of each contender, taking turns until `seconds` each or `most` turns; at least 3.

    On one thread of a CPU it is the processor's time, so it does not count what else the machine does.
    """
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter

    def timed(function: Callable) -> float:
        synchronise(device)
        start = clock()
        function()
        synchronise(device)
        return clock() - start

    for function in contenders:
        timed(function)
    times: list[list[float]] = [[] for _ in contenders]
    while len(times[0]) < 3 or (len(times[0]) < most and sum(map(sum, times)) < seconds * len(contenders)):
        for function, own in zip(contenders, times):
            own.append(timed(function))
    return [statistics.median(own) for own in times]


def synchronise(device: str) -> None:
    """Wait until a GPU has done what it was asked to."""
    if device == "cuda":
        torch.cuda.synchronize()


class Laps:
    """Seconds by part of what is done again and again: `lap(part)` ends a part that began at the lap before.

    On a GPU by its own clock: events in its stream, for which nobody waits before the end. A part in
    which the host comes too late is then as long as the GPU has stood still for it.
    """

    def __init__(self, device: str):
        self.device, self.parts = device, []
        self.marks = [self._mark()]

    def _mark(self):
        if self.device != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def __call__(self, part: str) -> None:
        self.parts.append(part)
        self.marks.append(self._mark())

    def seconds(self) -> dict[str, float]:
        synchronise(self.device)
        found: dict[str, float] = {}
        for part, begin, end in zip(self.parts, self.marks, self.marks[1:]):
            took = begin.elapsed_time(end) / 1e3 if self.device == "cuda" else end - begin
            found[part] = found.get(part, 0.0) + took
        return found


def reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: str) -> int:
    """Bytes: on a GPU the most that was allocated since `reset_peak`; on a CPU the most this process ever held."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def own_memory(key: str) -> int:
    """Bytes of this process, from /proc/self/status: VmRSS, its peak VmHWM, or RssAnon, without pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


def write_json(path: str | Path, results: dict) -> None:
    """Write it whole or not at all: whoever is stopped in between leaves what was measured before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(rounded(results), indent=2) + "\n")
    os.replace(partial, path)


def rounded(value):
    """Five digits of every float: more were not measured."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def machine(device: str) -> str:
    """Processor or GPU, threads, and versions, for beside the numbers."""
    if device == "cuda":
        name = f"{torch.cuda.get_device_name()}, {len(os.sched_getaffinity(0))} cores"
        name += f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    else:
        cpuinfo = Path("/proc/cpuinfo")
        models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
        name = models[0].split(":")[1].strip() if models else platform.processor()
        name += f", {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"
