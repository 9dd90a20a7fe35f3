"""Part `compiled` of gpu.sh: what torch.compile gains: encoder and projector, then the views' pixels too.

python benchmarks/gpu_compiled.py --json FILE [--data_dir PHOTOGRAPHS]

ResNet-50 as in part `resnet50`, on the same batch again and again and on JPEGs. Seconds to compile are those of the
first step. The first loss is compared with the eager one's. Without a GPU everything is tiny, and the backend of the
compiler is `eager`: that says whether it runs, not how fast.
"""

import sys
from pathlib import Path

import ssl

ROOT = Path(__file__).resolve().parents[1]
ssl.__path__ = [str(ROOT / "ssl")]  # see ssl/__init__.py
sys.path.append(str(ROOT))  # for train.py

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from unittest import mock

import torch
from gpu_resnet50 import forget, rate, run_part, timed
from loops import Loop, loader_workers, our_loop
from measure import machine, synchronise
from throughput import synthetic
from turns import turns_table

import train
from ssl.errors import one_line_errors
from ssl.settings import auto
from ssl.sources import datasets

AIM = 1500  # samples per second
TOLERANCE = 0.02  # of the first loss: compiled kernels add in another order, in bf16


def first_loss(loop: Loop, kind: str) -> tuple[float, float]:
    """The loss of the first batch, with a learning rate of 0, and the seconds it took."""
    batches = loop.batches(0, 1)
    ready = loop.prepare(next(batches))
    batches.close()
    synchronise(kind)
    began = time.monotonic()
    loss = loop.step(ready, 0.0).item()
    return loss, time.monotonic() - began


def measure(settings: train.Settings, device: torch.device, tiny: bool, note: Callable[[dict], None]) -> None:
    compiler = partial(torch.compile, backend="eager") if tiny else torch.compile
    with mock.patch.object(torch, "compile", compiler):
        compare(settings, device, tiny, note)


def compare(settings: train.Settings, device: torch.device, tiny: bool, note: Callable[[dict], None]) -> None:
    """Eager, then compiled; `note(results)` after each measurement."""
    kind, batch, steps = device.type, settings.batch_size, 2 if tiny else 30
    data = datasets.load("folder", settings.data_dir, "unlabelled")
    auto.settle(settings, batch, len(data))
    drain = 2 * loader_workers(settings)
    found: dict = {}
    results = dict(machine=machine(kind), tiny=tiny, batch_size=batch, rows=found)
    eager = our_loop(settings, data, device)
    expected, _ = first_loss(eager, kind)
    found["synthetic, eager"] = timed(synthetic(eager), steps, 0, batch, kind)
    note(results)
    del eager
    forget(kind)

    loop = our_loop(replace(settings, compile=True), data, device)
    loss, results["seconds_to_compile"] = first_loss(loop, kind)
    results["loss_apart"] = abs(loss - expected) / abs(expected)
    note(results)
    found["synthetic, compiled"] = timed(synthetic(loop), steps, 0, batch, kind)
    note(results)
    found["real JPEGs, compiled"] = timed(loop, 3 if tiny else max(steps, 2 * drain), drain, batch, kind)
    results["of_synthetic"] = rate(found, "real JPEGs, compiled") / rate(found, "synthetic, compiled")
    results["missed"] = [] if rate(found, "real JPEGs, compiled") >= AIM else [f"samples_per_second, aim {AIM}"]
    note(results)


def show(results: dict) -> str:
    lines = [turns_table(results["rows"])]
    lines += [f"{name}: peak memory {row['peak_memory_mb']:.0f} MB" for name, row in results["rows"].items()]
    lines.append(f"the first step compiled {results['seconds_to_compile']:.0f} s")
    lines.append(f"first loss: {results['loss_apart']:.2g} from the eager one's, {TOLERANCE} allowed")
    lines += [f"missed: {aim}" for aim in results["missed"] if not results["tiny"]]
    return "\n".join(lines)


def main() -> None:
    latest = run_part(__doc__, measure)
    print(f"{latest['machine']}\n{show(latest)}")
    sys.exit(not latest["loss_apart"] <= TOLERANCE)


if __name__ == "__main__":
    with one_line_errors("gpu_compiled.py"):
        main()
