"""Part `kernels` of gpu.sh: losses and optimizers beside their plain forms: time, peak memory, launches.

python benchmarks/gpu_kernels.py --json FILE

Barlow Twins at D = 8192, N = 256 to 4096; InfoNCE at 2N = 65,536, D = 128, whose plain form holds the 2N×2N
matrix several times and may not fit; LARS and LAMB on ResNet-50 with its 8192-8192-8192 projector. Forward and
backward in float32. Peak memory is what the allocator held beyond inputs and their gradients. Without a GPU
everything is tiny, and launches are not counted.
"""

from pathlib import Path

import ssl

ssl.__path__ = [str(Path(__file__).resolve().parents[1] / "ssl")]  # see ssl/__init__.py

import math
from collections.abc import Callable
from functools import partial

import torch
from losses import PLAIN, inputs, ours, step
from measure import is_tiny, machine, medians, part_parser, peak_memory, reset_peak, write_json
from optimizers import contenders, launches, network

from ssl.console import table

LOSSES = [("barlow", n, 8192) for n in (256, 1024, 2048, 4096)] + [("info_nce", 32768, 128)]
TINY_LOSSES = [("barlow", 16, 64), ("info_nce", 32, 16)]


def beyond(function: Callable, data: tuple, kind: str) -> float | None:
    """Bytes that forward and backward need beyond inputs and their gradients; None where they do not fit.

    Not known, NaN, on a CPU, where a process of its own would have to be looked at (losses.py does).
    """
    for z in data[:2]:
        z.grad = torch.zeros_like(z)
    try:
        if kind != "cuda":
            function(*data).backward()
            return math.nan
        reset_peak(kind)
        before = torch.cuda.memory_allocated()
        function(*data).backward()
        torch.cuda.synchronize()
        return peak_memory(kind) - before
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        for z in data[:2]:
            z.grad = None


def compare_loss(loss: str, n: int, d: int, kind: str) -> dict:
    """Ours and plain, in turns; where the plain form does not fit, ours alone, and its row says so."""
    step(partial(ours, loss), *inputs(8, 16, kind))  # loads libraries, which would count as memory
    data = inputs(n, d, kind)
    forms = {"ours": partial(ours, loss), "plain": PLAIN[loss]}
    memory = {name: beyond(form, data, kind) for name, form in forms.items()}
    if kind == "cuda":
        torch.cuda.empty_cache()
    fits = [name for name in forms if memory[name] is not None]
    steps = [partial(step, forms[name], *data) for name in fits]
    seconds = dict(zip(fits, medians(steps, kind, seconds=1.0)))
    row = dict(
        name=loss,
        n=n,
        d=d,
        fits=dict.fromkeys(forms, False) | dict.fromkeys(fits, True),
        seconds=seconds,
        peak_mb={name: memory[name] / 1e6 for name in fits if kind == "cuda"},
    )
    if kind == "cuda":
        row["launches"] = {name: launches(function) for name, function in zip(fits, steps)}
    return row


def compare_optimizer(name: str, model: torch.nn.Module, kind: str) -> dict:
    """Ours as it is by default, and the loop over parameters."""
    one_by_one, at_once, loop = contenders(name, model)
    steps = {"ours": at_once if kind == "cuda" else one_by_one, "plain": loop}
    seconds = dict(zip(steps, medians(list(steps.values()), kind, seconds=1.0)))
    row = dict(name=name, n=None, d=None, fits=dict.fromkeys(steps, True), seconds=seconds, peak_mb={})
    for form, function in steps.items() if kind == "cuda" else ():
        reset_peak(kind)
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        row["peak_mb"][form] = (peak_memory(kind) - before) / 1e6
        row.setdefault("launches", {})[form] = launches(function)
    return row


def show(results: dict) -> str:
    rows = [["", "N", "D", "ours", "plain", "faster", "peak ours", "plain", "launches ours", "plain"]]
    for row in results["rows"]:
        seconds, plain = row["seconds"], row["fits"]["plain"]
        both = [f"{1e3 * seconds[name]:.2f} ms" if name in seconds else "does not fit" for name in ("ours", "plain")]
        faster = f"{seconds['plain'] / seconds['ours']:.1f}×" if plain and row["fits"]["ours"] else ""
        memory = [f"{row['peak_mb'][name]:.0f} MB" if name in row["peak_mb"] else "" for name in ("ours", "plain")]
        counts = [str(row.get("launches", {}).get(name, "")) for name in ("ours", "plain")]
        rows.append([row["name"], str(row["n"] or ""), str(row["d"] or ""), *both, faster, *memory, *counts])
    return table(rows)


def main() -> None:
    options = part_parser(__doc__).parse_args()
    tiny = is_tiny(options)
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    results = dict(machine=machine(kind), tiny=tiny, rows=[])
    for case in TINY_LOSSES if tiny else LOSSES:
        results["rows"].append(compare_loss(*case, kind))
        write_json(options.json, results)
    model = network("ssl.encoders.SmallResNet", "64-64", kind) if tiny else network("resnet50", "8192-8192-8192", kind)
    for name in ("LARS", "LAMB"):
        results["rows"].append(compare_optimizer(name, model, kind))
        write_json(options.json, results)
    print(f"{results['machine']}\n{show(results)}")


if __name__ == "__main__":
    main()
