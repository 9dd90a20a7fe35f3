"""Part `resnet50` of gpu.sh: ResNet-50, 224 px, projector 8192-8192-8192, batch 256, one GPU: samples per second.

python benchmarks/gpu_resnet50.py --json FILE [--data_dir PHOTOGRAPHS]

Ours (channels_last) on the same batch again and again: in bf16, in fp16, at a quarter of the batch, and the longest
kernels of three steps. On JPEGs through its loader, with a worker for each core and with two fewer. Then the plain
published loop (PIL pipeline, two forwards, D×D loss, LARS parameter by parameter, fp16) on the same files. Without
--data_dir the JPEGs are drawn (photographs.py), and just written, so in the page cache; with it the disk counts, too.
A sample is an image, which is two views.

Without a GPU everything is tiny: that says whether it runs, not how fast.
"""

import sys
from pathlib import Path

import ssl

ROOT = Path(__file__).resolve().parents[1]
ssl.__path__ = [str(ROOT / "ssl")]  # see ssl/__init__.py
sys.path.append(str(ROOT))  # for train.py

import gc
import itertools
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import replace

import torch
from loops import Loop, our_loop, published_loop
from measure import is_tiny, machine, part_parser, peak_memory, reset_peak, synchronise, write_json
from photographs import make_photographs
from throughput import input_rate, synthetic
from turns import summary, take_turn, turns_table

import train
from ssl import distributed
from ssl.data.cores import usable_cores
from ssl.errors import one_line_errors
from ssl.settings import auto, config
from ssl.sources import datasets

IMAGES = 2048  # drawn, where there are none: 8 batches an epoch
AIMS = {"of_synthetic": 0.97, "of_published": 2.5, "samples_per_second": 1250}
PROFILED = 3
TINY = shlex.split("--image_size 96 --encoder ssl.encoders.SmallResNet --encoder_kwargs '{width: 16, stages: 2}'")
TINY += shlex.split("--projector 64-64 --batch_size 8 --workers 1")


def parse(data_dir: str, tiny: bool) -> train.Settings:
    recipe = str(train.ROOT / "configs" / "barlow_twins_imagenet.yaml")
    own = ["--config", recipe, "--data_dir", data_dir, "--dataset", "folder", *(TINY if tiny else [])]
    settings, _ = config.parse(train.Settings, own, recipe=train.find_recipe)
    return settings


def timed(loop: Loop, steps: int, drain: int, batch: int, kind: str) -> dict:
    """One turn, its peak memory with it; the first two steps, which compile and choose kernels, are not counted."""
    take_turn(loop, 0, 1, kind)
    reset_peak(kind)
    found = summary([take_turn(loop, 1, steps, kind, drain)], steps * batch)
    return found | {"peak_memory_mb": peak_memory(kind) / 1e6}


def longest_kernels(loop: Loop, kind: str) -> list[dict]:
    """Of three steps: the 30 operations that take the device the longest, with calls and milliseconds of a step."""
    batches = loop.batches(0, PROFILED)
    attribute = "self_device_time_total" if kind == "cuda" else "self_cpu_time_total"
    with torch.profiler.profile(activities=torch.profiler.supported_activities()) as profile:
        for batch in itertools.islice(batches, PROFILED):
            loop.step(loop.prepare(batch), 1.0)
        synchronise(kind)
    batches.close()
    events = sorted(profile.key_averages(), key=lambda event: -getattr(event, attribute))[:30]
    return [
        dict(
            name=event.key[:100],
            calls=event.count / PROFILED,
            milliseconds=getattr(event, attribute) / 1e3 / PROFILED,
        )
        for event in events
    ]


def measure(settings: train.Settings, device: torch.device, tiny: bool, note) -> None:
    """`note(results)` after each of the measurements, so that a time limit loses only what is left."""
    kind, batch = device.type, settings.batch_size
    data = datasets.load("folder", settings.data_dir, "unlabelled")
    auto.settle(settings, settings.batch_size, len(data))
    steps = 2 if tiny else 30
    found: dict = {}
    results = dict(
        machine=machine(kind),
        tiny=tiny,
        images=len(data),
        batch_size=batch,
        encoder=settings.encoder,
        projector=settings.projector,
        rows=found,
        missed=[],
    )

    def without_input(name: str, **changed) -> None:
        own = replace(settings, **changed)
        loop = synthetic(our_loop(own, data, device))
        found[name] = timed(loop, steps, 0, own.batch_size, kind)
        note(results)
        if not changed:
            results["longest"] = longest_kernels(loop, kind)
            note(results)
        forget(kind)

    without_input("synthetic")
    if kind == "cuda":  # a CPU imitates float16
        without_input("synthetic, fp16", amp="fp16")
    small = max(2, batch // 4)  # the published 2048, on each of 32 GPUs
    without_input(f"synthetic, batch {small}", batch_size=small)

    for workers in [1] if tiny else [usable_cores(), max(1, usable_cores() - 2)]:
        name = f"real JPEGs, {workers} workers"
        # As many batches as workers have ready when nobody asks; then long enough for each worker to bring some.
        drain, long = 2 * workers, 3 if tiny else max(steps, 4 * workers)
        loop = our_loop(replace(settings, workers=workers), data, device)
        found[name] = timed(loop, long, drain, batch, kind)
        note(results)
    results["of_synthetic"] = max(rates(found, "real")) / rate(found, "synthetic")
    results["input_samples_per_second"] = input_rate(loop, long, drain, batch, kind)
    note(results)
    del loop
    forget(kind)

    published = published_loop(replace(settings, workers=workers), data, device)
    found["published, JPEGs"] = timed(published, 3 if tiny else workers, drain, batch, kind)
    results["of_published"] = max(rates(found, "real")) / rate(found, "published, JPEGs")
    reached = results | {"samples_per_second": max(rates(found, "real"))}
    results["missed"] = [f"{name} {reached[name]:.4g}, aim {aim}" for name, aim in AIMS.items() if reached[name] < aim]
    note(results)


def rates(found: dict, kind: str) -> list[float]:
    return [row["samples_per_second"] for name, row in found.items() if name.startswith(kind)]


def rate(found: dict, name: str) -> float:
    return found[name]["samples_per_second"]


def forget(kind: str) -> None:
    """Give the memory of a loop that is no longer used back."""
    gc.collect()
    if kind == "cuda":
        torch.cuda.empty_cache()


def show(results: dict) -> str:
    lines = [turns_table(results["rows"])]
    lines += [f"{name}: peak memory {row['peak_memory_mb']:.0f} MB" for name, row in results["rows"].items()]
    words = {
        "of_synthetic": "real input reaches {:.1%} of synthetic",
        "of_published": "ours / published loop: {:.2f}×",
        "input_samples_per_second": "the loader alone brings {:.0f} samples/s",
    }
    lines += [text.format(results[name]) for name, text in words.items() if name in results]
    lines += [f"missed: {aim}" for aim in results["missed"] if not results["tiny"]]
    return "\n".join(lines)


def run_part(description: str, measure: Callable) -> dict:
    """A part of gpu.sh on photographs: read the command line, call `measure`, write what it notes; the last of that."""
    parser = part_parser(description)
    parser.add_argument("--data_dir", help="folder of photographs; unset: they are drawn")
    options = parser.parse_args()
    tiny = is_tiny(options)
    device = distributed.join("auto")
    torch.backends.cudnn.benchmark = True
    latest: dict = {}

    def note(results: dict) -> None:
        latest.update(results)
        write_json(options.json, latest)

    with tempfile.TemporaryDirectory() as folder:
        latest["drawn"] = options.data_dir is None
        where = str(make_photographs(Path(folder), 16 if tiny else IMAGES)) if latest["drawn"] else options.data_dir
        measure(parse(where, tiny), device, tiny, note)
    return latest


def main() -> None:
    latest = run_part(__doc__, measure)
    print(f"{latest['machine']}\n{show(latest)}")


if __name__ == "__main__":
    with one_line_errors("gpu_resnet50.py"):
        main()
