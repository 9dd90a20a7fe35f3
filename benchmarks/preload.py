"""An epoch of input with and without --preload, on one core: processor seconds.

python benchmarks/preload.py --data_dir FOLDER [--turns 3]

Two views of 224 pixels of every image, before what the device does; the two take turns, and medians are compared.
"""

from pathlib import Path

import ssl

ssl.__path__ = [str(Path(__file__).resolve().parents[1] / "ssl")]  # see ssl/__init__.py

import argparse
import statistics
import time

import torch
from measure import machine

from ssl.augment import View
from ssl.data import preload
from ssl.data.loader import training_batches
from ssl.data.order import Order
from ssl.errors import UserError, one_line_errors
from ssl.sources import datasets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="folder of images")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(torch.device("cpu")))
    plain = datasets.load("folder", options.data_dir, "unlabelled")
    if plain.resident is not None:
        raise UserError(f"data_dir: {options.data_dir} has images of at most {datasets.SMALL} pixels; expected larger")
    began = time.process_time()
    held = preload.hold(plain, 224)
    decoding = time.process_time() - began
    order = Order(len(plain), 16, 1, 1, 0)
    spent: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(options.turns):
        for name, data in (("without", plain), ("with", held)):
            began = time.process_time()
            for _ in training_batches(data, [View()] * 2, order, 0, order.steps_per_epoch, 0, torch.device("cpu")):
                pass
            spent[name].append(time.process_time() - began)
    without, with_it = (statistics.median(times) for times in spent.values())
    print(
        f"{len(plain)} images, {len(held.held.bytes) / 1e6:.0f} MB decoded in {decoding:.2f} s; an epoch takes "
        f"{without:.2f} s without and {with_it:.2f} s with --preload: {without / with_it:.2f} times as fast"
    )


if __name__ == "__main__":
    with one_line_errors("preload.py"):
        main()
