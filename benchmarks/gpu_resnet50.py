"""Part `resnet50` of gpu.sh: ResNet-50, 224 px, projector 8192-8192-8192, batch 256, one GPU: samples per second.

python benchmarks/gpu_resnet50.py --json FILE [--data_dir PHOTOGRAPHS]

Ours (bf16, channels_last) on the same batch again and again, eager and compiled, and on JPEGs through its loader;
then the plain published loop (PIL pipeline, two forwards, D×D loss, LARS parameter by parameter, fp16) on the
same files with as many workers. Without --data_dir the JPEGs are drawn (photographs.py), and just written, so in
the page cache; with it the disk counts, too. A sample is an image, which is two views.

Without a GPU everything is tiny: that says whether it runs, not how fast.
"""

import sys
from pathlib import Path

import ssl

ROOT = Path(__file__).resolve().parents[1]
ssl.__path__ = [str(ROOT / "ssl")]  # see ssl/__init__.py
sys.path.append(str(ROOT))  # for train.py

import argparse
import gc
import tempfile
from dataclasses import replace

import torch
from loops import Loop, loader_workers, our_loop, published_loop
from measure import machine, peak_memory, reset_peak, write_json
from photographs import make_photographs
from throughput import input_rate, synthetic
from turns import summary, take_turn, turns_table

import train
from ssl import distributed
from ssl.errors import one_line_errors
from ssl.settings import auto, config
from ssl.sources import datasets

IMAGES = 2048  # drawn, where there are none: 8 batches an epoch
AIMS = {"of_synthetic": 0.97, "of_published": 2.5, "samples_per_second": 1300}
TINY = [
    "--image_size",
    "96",
    "--encoder",
    "ssl.encoders.SmallResNet",
    "--encoder_kwargs",
    "{width: 16, stages: 2}",
    "--projector",
    "64-64",
    "--batch_size",
    "8",
    "--workers",
    "1",
]


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


def measure(settings: train.Settings, device: torch.device, tiny: bool, note) -> dict:
    """`note(results)` after each of the measurements, so that a time limit loses only what is left."""
    kind, batch = device.type, settings.batch_size
    data = datasets.load("folder", settings.data_dir, "unlabelled")
    auto.settle(settings, settings.batch_size, len(data))
    workers = loader_workers(settings)
    steps = 2 if tiny else 30
    # As many batches as workers have ready when nobody asks; then long enough for each worker to bring some.
    drain, long = 2 * workers, 3 if tiny else max(steps, 4 * workers)
    found: dict = {}
    results = dict(
        machine=machine(kind),
        tiny=tiny,
        workers=workers,
        images=len(data),
        batch_size=batch,
        encoder=settings.encoder,
        projector=settings.projector,
        rows=found,
        missed=[],
    )

    loop = our_loop(settings, data, device)
    free = synthetic(loop)
    found["synthetic"] = timed(free, steps, 0, batch, kind)
    note(results)
    found["real JPEGs"] = timed(loop, long, drain, batch, kind)
    results["of_synthetic"] = rate(found, "real JPEGs") / rate(found, "synthetic")
    note(results)
    results["input_samples_per_second"] = input_rate(loop, long, drain, batch, kind)
    note(results)
    del loop, free
    forget(kind)

    published = published_loop(settings, data, device)
    found["published, real JPEGs"] = timed(published, 3 if tiny else workers, drain, batch, kind)
    results["of_published"] = rate(found, "real JPEGs") / rate(found, "published, real JPEGs")
    note(results)
    del published
    forget(kind)

    small = replace(settings, batch_size=max(2, batch // 4))  # a 32nd of the published 2048, on each of 32 GPUs
    found[f"synthetic, batch {small.batch_size}"] = timed(
        synthetic(our_loop(small, data, device)), steps, 0, small.batch_size, kind
    )
    note(results)
    forget(kind)

    if tiny:
        results["left_out"] = "compiled and fp16: without a GPU they take minutes"
    else:
        half = our_loop(replace(settings, amp="fp16"), data, device)
        found["synthetic, fp16"] = timed(synthetic(half), steps, 0, batch, kind)
        note(results)
        del half
        forget(kind)
        compiled = our_loop(replace(settings, compile=True), data, device)
        found["synthetic, compiled"] = timed(synthetic(compiled), steps, 0, batch, kind)
        note(results)
        found["real JPEGs, compiled"] = timed(compiled, long, drain, batch, kind)
        results["of_synthetic_compiled"] = rate(found, "real JPEGs, compiled") / rate(found, "synthetic, compiled")
    best = max(rate(found, name) for name in found if name.startswith("real"))
    reached = {
        "of_synthetic": results["of_synthetic"],
        "of_published": results["of_published"],
        "samples_per_second": best,
    }
    results["missed"] = [
        f"{name} {value:.4g}, aim {AIMS[name]}" for name, value in reached.items() if value < AIMS[name]
    ]
    note(results)
    return results


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
        "of_synthetic_compiled": "compiled, real input reaches {:.1%} of synthetic",
        "input_samples_per_second": "the loader alone brings {:.0f} samples/s",
    }
    lines += [text.format(results[name]) for name, text in words.items() if name in results]
    lines += [f"missed: {aim}" for aim in results["missed"] if not results["tiny"]]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, help="write the numbers to this file")
    parser.add_argument("--data_dir", help="folder of photographs; unset: they are drawn")
    options = parser.parse_args()
    tiny = not torch.cuda.is_available()
    device = distributed.join("auto")
    torch.backends.cudnn.benchmark = True
    with tempfile.TemporaryDirectory() as folder:
        drawn = options.data_dir is None
        where = str(make_photographs(Path(folder), 16 if tiny else IMAGES)) if drawn else options.data_dir
        settings = parse(where, tiny)
        measured = measure(settings, device, tiny, lambda results: write_json(options.json, results | {"drawn": drawn}))
    print(f"{measured['machine']}\n{show(measured)}")


if __name__ == "__main__":
    with one_line_errors("gpu_resnet50.py"):
        main()
