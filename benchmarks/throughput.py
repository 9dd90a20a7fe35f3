"""Where a run's time goes, before it is started: any recipe, any data, any number of processes.

python benchmarks/throughput.py --config configs/barlow_twins_imagenet.yaml --data_dir DIR
torchrun --nproc_per_node 8 benchmarks/throughput.py --data_dir DIR [any setting of train.py]
More: --steps 20 (timed, a turn)  --turns 3  --json FILE

What train.py does, with its pieces: `real` reads the data set, `synthetic` takes the same batch again and
again (its views are still made anew), as if reading cost nothing. They take turns, and turns in the middle
are compared. On several processes the gradients' exchange is measured by leaving it out: what it costs
beyond what backward hides. Other collectives (batch norm, the loss) are within forward, loss and backward.

It begins with the estimate of train.py, from steps with few images, which takes some seconds whatever the
settings are. Memory that is too small ends it there. Then it says how long the turns take, and prints each.
"""

import sys
from pathlib import Path

import ssl

ROOT = Path(__file__).resolve().parents[1]
ssl.__path__ = [str(ROOT / "ssl")]  # see ssl/__init__.py
sys.path.append(str(ROOT))  # for train.py

import argparse
import time
from dataclasses import replace

import torch
from loops import Loop, loader_workers, our_loop
from measure import machine, peak_memory, reset_peak, synchronise, write_json
from torch import Tensor
from turns import WARM_UP, endless, summary, take_turn, turns_table

import train
from ssl import distributed
from ssl.console import say
from ssl.data import preload
from ssl.data.cores import auto_workers
from ssl.data.images import Images
from ssl.data.order import Order
from ssl.distributed import gather_objects, world_size
from ssl.errors import UserError, one_line_errors
from ssl.settings import auto, config, ranges
from ssl.sources import datasets
from ssl.training import by_machine, checks, estimate
from ssl.training.precision import autocast, choose_precision
from ssl.training.threads import settle_threads

SERIOUS = 0.05  # a share of the time from which on it is worth doing something about


def synthetic(loop: Loop) -> Loop:
    """The same loop on its first batch again and again."""
    batches = loop.batches(0, 1)
    batch = next(batches)
    batches.close()
    return replace(loop, batches=lambda start, stop: endless(batch))


def input_rate(loop: Loop, steps: int, drain: int, samples: int, device: str) -> float:
    """Samples per second of this process that the loader brings while nobody trains."""
    batches = loop.batches(0, drain + steps)
    for _ in range(drain):
        next(batches)
    synchronise(device)
    began = time.perf_counter()
    for _ in range(steps):
        next(batches)
    synchronise(device)
    rate = samples * steps / (time.perf_counter() - began)
    batches.close()
    return rate


def first_look(settings: train.Settings, data: Images, order: Order, device: torch.device) -> float:
    """Print the estimate of train.py, and return the seconds of a step; every process calls it."""
    loop = our_loop(settings, data, device)
    dtype = choose_precision(settings.amp, device)

    def outputs(x: list[Tensor]) -> tuple[Tensor, ...]:
        with autocast(dtype, device):
            return loop.model(*x)

    views, workers = train.make_views(settings), loader_workers(settings)
    of_loop = loop.model, loop.optimizer, lambda batch: loop.prepare(batch)[0], outputs
    work = estimate.Work(*of_loop, data, views, order, workers, settings.accumulate_mode)
    return estimate.tell(work, settings.epochs * order.steps_per_epoch)


def measure(settings: train.Settings, data: Images, device: torch.device, steps: int, turns: int) -> dict:
    """Numbers of this process; every process calls it."""
    kind, batch = device.type, settings.batch_size
    workers = 0 if data.resident is not None else loader_workers(settings)
    loop = our_loop(settings, data, device)
    free = synthetic(loop)
    take_turn(free, 0, 1, kind)  # compiling and choosing kernels is not the training's peak
    reset_peak(kind)
    taken: dict[str, list] = {"real": [], "synthetic": []}
    if world_size() > 1:
        taken["synthetic, gradients not exchanged"] = []
    for turn in range(turns):
        for name, own in taken.items():
            real = name == "real"
            drain = 2 * workers if real else 0
            own.append(take_turn(loop if real else free, turn, steps, kind, drain, quiet="not exchanged" in name))
            rate = steps * batch / sum(own[-1].values())
            say(f"turn {turn + 1} of {turns}  {name}: {rate:.3g} samples/s per process")
    found = {name: summary(own, steps * batch) for name, own in taken.items()}
    numbers = dict(
        parts=found,
        peak_memory_mb=peak_memory(kind) / 1e6,
        workers=workers,
        resident=data.resident is not None,
        of_synthetic=found["real"]["samples_per_second"] / found["synthetic"]["samples_per_second"],
        communication=0.0,
    )
    if data.resident is None:
        numbers["input_samples_per_second"] = input_rate(loop, steps, 2 * workers, batch, kind)
    if world_size() > 1:
        alone = found["synthetic, gradients not exchanged"]["samples_per_second"]
        numbers["communication"] = max(0.0, 1 - found["synthetic"]["samples_per_second"] / alone)
    return numbers


def bottleneck(numbers: dict, device: str, most: int, compiled: bool) -> str:
    """What a run waits for, and what can be done about it. `most`: the workers that it has cores for."""
    real, rate = numbers["parts"]["real"], numbers["parts"]["synthetic"]["samples_per_second"]
    who, wait = "the GPU" if device == "cuda" else "the processor", real["data_wait"]
    shares = {part: share for part, share in real["shares"].items() if part != "wait"}
    if wait >= SERIOUS and not numbers["resident"]:
        brings, workers = numbers["input_samples_per_second"], numbers["workers"]
        words = (
            f"input: {who} waits {wait:.0%} of the time for images; {workers} workers bring {brings:.0f} samples/s, "
            f"training without waiting takes {rate:.0f}. "
        )
        if workers < most:
            return words + f"Pass --workers {most}: this process has cores for them"
        if brings > rate:
            return words + "Alone they are fast enough: training and they want the same cores. Give the job more cores"
        needed = -(-workers * rate // brings)
        return words + (f"{needed:.0f} workers on as many cores would do, or smaller files: python -m ssl.data.prepare")
    if wait >= SERIOUS:
        return f"input: cutting views from memory takes {wait:.0%} of the time" + (
            ", for which the GPU waits: a larger batch_size, or more cores" if device == "cuda" else ""
        )
    if numbers["communication"] > max(SERIOUS, shares["optimizer"], shares["loss"]):
        return (
            f"communication: exchanging gradients takes {numbers['communication']:.0%} of a step beyond what backward "
            "hides. A larger batch_size per process exchanges less often"
        )
    if shares["forward"] + shares["backward"] >= 0.5:
        words = f"the model: forward and backward are {shares['forward'] + shares['backward']:.0%} of a step"
        return words + (", try --compile true" if device == "cuda" and not compiled else ", as they should be")
    largest = max(shares, key=shares.get)
    return f"{largest}: {shares[largest]:.0%} of a step; a larger batch_size spreads what every step costs"


def parse() -> tuple[argparse.Namespace, train.Settings]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="timed steps a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", help="write the numbers to this file")
    options, rest = parser.parse_known_args()
    if min(options.steps, options.turns) < 1:
        raise UserError("steps, turns: each must be at least 1")
    settings, _ = config.parse(train.Settings, rest, recipe=train.find_recipe)
    datasets.resolve(settings)
    checks.check(settings)
    if settings.accumulate not in (1, "auto"):
        raise UserError("accumulate: micro-batches cost the same each; measure one, with --accumulate 1")
    return options, settings


def load(settings: train.Settings, device: torch.device) -> Images:
    data = datasets.load_as(settings, "train" if checks.learns_from_labels(settings) else "unlabelled")
    by_machine.settle(settings, data, train.Model, device)
    settings.accumulate = 1
    return preload.as_asked(settings, data)


def main() -> None:
    options, settings = parse()
    device = distributed.start(settings.gpus, settings.device)
    torch.backends.cudnn.benchmark = True
    settle_threads()
    say(f"{machine(device.type)}, {world_size()} process{'es' if world_size() > 1 else ''}")
    data = load(settings, device)
    order = Order(len(data), settings.batch_size, 1, world_size(), settings.seed)
    checks.require_whole_batches(settings, order)
    auto.settle(settings, order.global_batch, len(data))
    ranges.check_training(settings)
    where = "in memory" if data.resident is not None or data.held is not None else "from files"
    say(f"{len(data)} images of {settings.dataset}, {where}, {settings.views} views of {settings.image_size} px")
    say(f"{settings.encoder}, projector {settings.projector}, batch {settings.batch_size} per process\n")
    seconds = first_look(settings, data, order, device)
    kinds = 2 if world_size() == 1 else 3
    count = options.turns * kinds * (WARM_UP + options.steps)
    say(f"measuring   {count} steps, {estimate.duration(count * seconds)}: --steps, --turns, --batch_size change it")
    numbers = measure(settings, data, device, options.steps, options.turns)

    everyone = gather_objects(numbers)
    rates = [own["parts"]["real"]["samples_per_second"] for own in everyone]
    waiting = max(everyone, key=lambda own: own["parts"]["real"]["data_wait"])
    images = settings.epochs * order.steps_per_epoch * order.global_batch
    results = dict(
        machine=machine(device.type),
        processes=world_size(),
        dataset=settings.dataset,
        images=len(data),
        encoder=settings.encoder,
        projector=settings.projector,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        compile=settings.compile,
        samples_per_second_per_process=rates,
        samples_per_second=sum(rates),
        data_wait=waiting["parts"]["real"]["data_wait"],
        hours=images / sum(rates) / 3600,
        bottleneck=bottleneck(waiting, device.type, auto_workers(), settings.compile),
        **waiting,
    )
    workers = "" if data.resident is not None else f", {results['workers']} workers each"
    say(f"\n{options.turns} turns of {options.steps} steps{workers}; of the process that waits the longest\n")
    say(turns_table(results["parts"]))
    say(f"\nreal reaches {results['of_synthetic']:.0%} of synthetic; peak memory {results['peak_memory_mb']:.0f} MB")
    if world_size() > 1:
        say(f"exchanging gradients: {results['communication']:.0%} of a step beyond what backward hides")
    hours = results["hours"]
    length = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
    say(f"all processes: {sum(rates):.1f} samples/s; {settings.epochs} epochs would take {length}")
    say(f"bottleneck: {results['bottleneck']}")
    if options.json and distributed.is_main():
        write_json(options.json, results)
    distributed.leave()


if __name__ == "__main__":
    with one_line_errors("throughput.py"):
        main()
