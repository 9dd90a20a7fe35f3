"""Memory of writing and of judging features that are larger than it: mapped, and loaded whole for comparison.

python benchmarks/features.py --rows 200000 --width 512
"""

from pathlib import Path

import ssl

ssl.__path__ = [str(Path(__file__).resolve().parents[1] / "ssl")]  # see ssl/__init__.py

import argparse
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import torch
from measure import own_memory

from ssl.data.images import Images
from ssl.evaluation import features, probes

CLASSES, TEST = 10, 1000


def write(folder: Path, rows: int, width: int, shard: int) -> None:
    """Features file of noise around ten centres."""

    def made(count: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, count, 500):
            labels = torch.arange(start, min(start + 500, count)) % CLASSES
            x = torch.randn(len(labels), width, generator=generator)
            x[torch.arange(len(labels)), labels] += 2
            yield x, torch.ones(len(labels), dtype=torch.bool)

    names, splits = [str(i) for i in range(CLASSES)], {}
    for seed, (split, count) in enumerate({"train": rows, "test": TEST}.items()):
        data = Images("noise", torch.arange(count) % CLASSES, names, paths=[f"/{split}/{i}" for i in range(count)])
        writer = features.SplitWriter(folder, split, data, shard)
        for rows_read in made(count, seed):
            writer.add(*rows_read)
        splits[split] = writer.finish()
    features.finish(folder, splits, names, "", {})


def judge(folder: Path, whole: bool) -> None:
    """One head for one epoch, and k-NN."""
    found = features.load(folder)
    (x, y), test = (found.splits[split].pair() for split in ("train", "test"))
    x = torch.cat(x.parts) if whole else x
    probes.fit_heads(x, y, CLASSES, [(0.1, 0.0)], 1, 256, 0)
    probes.knn((x, y), test, CLASSES)


def measured(name: str, function: Callable, *arguments) -> None:
    """Run and print the peak of this process's own memory above that at the beginning, and its processor time."""
    torch.set_num_threads(1)
    start, peak, over = own_memory("RssAnon"), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.005):
            peak = max(peak, own_memory("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.process_time()
    function(*arguments)
    over.set()
    watcher.join()
    print(f"{name:<34} {(peak - start) / 2**20:7.0f} MiB of its own  {time.process_time() - began:6.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--shard", type=int, default=64, help="MiB of a shard")
    options = parser.parse_args()
    size = options.rows * options.width * 4 / 2**20
    print(f"{options.rows} × {options.width} features, {size:.0f} MiB, shards of {options.shard} MiB", flush=True)
    processes = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, function, arguments in (
            ("written", write, (folder, options.rows, options.width, options.shard << 20)),
            ("a head and k-NN, mapped", judge, (folder, False)),
            ("a head and k-NN, loaded whole", judge, (folder, True)),
        ):
            process = processes.Process(target=measured, args=(title, function, *arguments))
            process.start()
            process.join()


if __name__ == "__main__":
    main()
