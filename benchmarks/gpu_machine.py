"""Part `machine` of gpu.sh: what the GPU is and how fast it copies and multiplies; a run under torchrun.

python benchmarks/gpu_machine.py --json FILE

Bandwidths are bytes moved by a second; a copy on the device reads and writes them. The run is train.py on one
process of a group (NCCL starts; there is nobody to send to), stopped at a third and continued. Without a GPU
everything is tiny, and the group is gloo's.
"""

from pathlib import Path

import ssl

ssl.__path__ = [str(Path(__file__).resolve().parents[1] / "ssl")]  # see ssl/__init__.py

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import torch
from measure import is_tiny, machine, medians, part_parser, write_json

from ssl.console import table
from ssl.faultcheck.small_run import STEPS, SmallRun, make_images


def driver() -> str:
    """What nvidia-smi says of the GPU: name, driver, memory, power limit. Empty without it."""
    if not shutil.which("nvidia-smi"):
        return ""
    query = "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm"
    return subprocess.run(["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True).stdout.strip()


def speeds(kind: str, tiny: bool) -> Iterator[dict]:
    """Copies, in GB/s, and matrix products, in TFLOP/s: medians."""
    size, side = (2**20, 64) if tiny else (2**30, 8192)
    there = torch.empty(size, dtype=torch.uint8, device=kind)
    other, here = torch.empty_like(there), torch.empty(size, dtype=torch.uint8)
    pinned = here.pin_memory() if kind == "cuda" else here.clone()
    copies = {
        "copy on the device, read and write": (2, lambda: other.copy_(there)),
        "from pinned memory to the device": (1, lambda: there.copy_(pinned, non_blocking=True)),
        "from other memory to the device": (1, lambda: there.copy_(here)),
        "from the device to pinned memory": (1, lambda: pinned.copy_(there, non_blocking=True)),
    }
    for name, (times, copy) in copies.items():
        (seconds,) = medians([copy], kind, seconds=1.0)
        yield dict(name=name, speed=times * size / seconds / 1e9, unit="GB/s")
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        a = torch.ones(side, side, dtype=dtype, device=kind)
        (seconds,) = medians([lambda a=a: a @ a], kind, seconds=1.0)
        name = f"matrix product, {str(dtype).removeprefix('torch.')}"
        yield dict(name=name, speed=2 * side**3 / seconds / 1e12, unit="TFLOP/s")


def stopped_and_continued(kind: str, tiny: bool) -> dict:
    """A run under torchrun that is continued, and one that is not: whether they end in the same bits."""
    device = "cpu" if tiny else kind
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as where:
        images = make_images(Path(where, "images"))
        options = {"device": device, "amp": "off" if tiny else "auto"}
        launcher = ["--max_restarts=0"]  # with arguments for it, one process runs under torchrun, too
        whole, stopped = (SmallRun(Path(where, n), images, 1, dict(options), launcher) for n in ("whole", "stopped"))
        whole.finished()
        stopped.options["max_steps"] = STEPS // 3
        stopped.finished()
        del stopped.options["max_steps"]
        stopped.finished()
        return dict(
            backend="nccl" if device == "cuda" else "gloo",
            resumed_at=STEPS // 3,
            same_bits=whole.digest() == stopped.digest(),
            seconds=time.monotonic() - began,
        )


def main() -> None:
    options = part_parser(__doc__).parse_args()
    tiny, kind = is_tiny(options), "cuda" if torch.cuda.is_available() else "cpu"
    results = dict(machine=machine(kind), driver=driver(), tiny=tiny, rows=[])
    for row in speeds(kind, tiny):
        results["rows"].append(row)
        write_json(options.json, results)
    rows = [["", "speed", ""], *([row["name"], f"{row['speed']:.4g}", row["unit"]] for row in results["rows"])]
    print(f"{results['machine']}\n{results['driver']}\n{table(rows)}", flush=True)
    results["torchrun"] = run = stopped_and_continued(kind, tiny)
    write_json(options.json, results)
    print(f"torchrun, {run['backend']}, stopped and continued: {'same' if run['same_bits'] else 'OTHER'} bits")
    sys.exit(not run["same_bits"])


if __name__ == "__main__":
    main()
