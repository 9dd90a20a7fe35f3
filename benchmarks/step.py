"""Whole training steps, and what they wait for: ours on real and on no input, beside the plain published loop.

python benchmarks/step.py --data_dir IMAGES [--steps 8] [--turns 3] [--json] [any setting of train.py]
python benchmarks/step.py --dataset fake --image_size 224           noise: the way of files without decoding

Ours is what train.py does: its loader, views, model, loss, precision and optimizer. `same batch` gives it
one finished batch again and again: how fast it would be if input cost nothing. The published loop is
written here from the paper: PIL pipeline in loader workers, two forwards, the D×D loss, LARS parameter by
parameter, float32; same images, same model. It needs files, so it is left out for data made in memory.
All take turns in one run, and medians over the turns are compared. Without further settings: ResNet-18,
projector 2048-2048-2048, batch 256, views of 32 pixels. `--json` ends the output with one line of numbers.
"""

import sys
from pathlib import Path

import ssl

ROOT = Path(__file__).resolve().parents[1]
ssl.__path__ = [str(ROOT / "ssl")]  # see ssl/__init__.py
sys.path.append(str(ROOT))  # for train.py

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from input import published
from losses import plain_barlow
from measure import machine
from optimizers import plain_lars
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import train
from ssl import config, distributed
from ssl.augment import View
from ssl.data import datasets
from ssl.data.loader import auto_workers, finish, training_batches
from ssl.data.order import Order
from ssl.errors import UserError, one_line_errors
from ssl.report import table

WARM_UP = 2  # steps at the start of each turn that are not counted: workers start, queues fill
DEFAULTS = {"image_size": "32", "encoder": "resnet18", "projector": "2048-2048-2048", "batch_size": "256"}
PARTS = {"wait": "waiting for data", "views": "the views' pixels", "model": "the model"}


# Contenders ---------------------------------------------------------------------------
# Each is a triple: a turn's batches from its number; the step's inputs from a batch; the step from its inputs.


def our_loop(settings: train.Settings, data: datasets.Images, steps: int, device: torch.device) -> tuple:
    views, workers = train.make_views(settings), loader_workers(settings)
    order = Order(len(data), settings.batch_size, 1, 1, settings.seed)
    train.require_whole_batches(settings, order)
    statistics = datasets.normalisation(data, settings.mean, settings.std)
    mean, std = (torch.tensor(values, device=device) for values in statistics)
    torch.manual_seed(settings.seed)
    model = train.Model(settings, data.channels).to(device, memory_format=torch.channels_last)
    runner = torch.compile(model) if settings.compile else model
    criterion = train.make_criterion(settings)
    optimizer = train.make_optimizer(settings, model, train.lr_scale(settings, order.global_batch))
    dtype = train.choose_precision(settings.amp, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def batches(turn: int) -> Iterator:
        start = turn * (WARM_UP + steps)
        return training_batches(data, views, order, start, start + WARM_UP + steps, workers, device)

    def step(x: list[Tensor]) -> None:
        with torch.autocast(device.type, dtype or torch.float32, enabled=dtype is not None):
            z = runner(*x)
        scaler.scale(criterion(*z)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return batches, lambda batch: finish(batch, views, mean, std), step


class PublishedFiles(Dataset):
    """Images by the published pipeline: (view 1, view 2)."""

    def __init__(self, paths: list[str], views: list[View]):
        self.paths, self.pipelines = paths, [list(published(view).values()) for view in views]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB")
        shown = []
        for pipeline in self.pipelines:
            view = image
            for transform in pipeline:
                view = transform(view)
            shown.append(view)
        return tuple(shown)


def published_loop(settings: train.Settings, paths: list[str], device: torch.device) -> tuple:
    files = PublishedFiles(paths, train.make_views(settings))
    loader = DataLoader(
        files, settings.batch_size, shuffle=True, drop_last=True,
        num_workers=loader_workers(settings), pin_memory=device.type == "cuda",
    )  # fmt: skip
    torch.manual_seed(settings.seed)
    model = train.Model(settings).to(device)
    params = list(model.parameters())
    momenta = [torch.zeros_like(p) for p in params]

    def batches(turn: int) -> Iterator:
        while True:
            yield from loader

    def step(x: list[Tensor]) -> None:
        (z1,), (z2,) = model(x[0]), model(x[1])
        for p in params:
            p.grad = None
        plain_barlow(z1, z2, None).backward()
        plain_lars(params, momenta)

    return batches, lambda batch: [view.to(device, non_blocking=True) for view in batch], step


def loader_workers(settings: train.Settings) -> int:
    return auto_workers() if settings.workers is None else settings.workers


# Measuring ---------------------------------------------------------------------------


def take_turn(batches: Iterator, prepare: Callable, step: Callable, steps: int, device: torch.device) -> dict:
    """Seconds of `steps` steps by part, those of the warm-up left out."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    seconds = dict.fromkeys(PARTS, 0.0)
    for i in range(WARM_UP + steps):
        marks = [now()]
        batch = next(batches)
        marks.append(now())
        x = prepare(batch)
        marks.append(now())
        step(x)
        marks.append(now())
        if i >= WARM_UP:
            for part, begin, end in zip(PARTS, marks, marks[1:]):
                seconds[part] += end - begin
    return seconds


def endless(batch) -> Iterator:
    while True:
        yield batch


def summary(turns: list[dict], samples: int) -> dict:
    """Of the turn in the middle: samples per second, each part's share, and the largest in words."""
    turns = sorted(turns, key=lambda seconds: sum(seconds.values()))
    total = statistics.median_low(sum(seconds.values()) for seconds in turns)
    middle = turns[(len(turns) - 1) // 2]
    shares = {part: seconds / total for part, seconds in middle.items()}
    largest = max(shares, key=shares.get)
    return dict(samples_per_second=samples / total, data_wait=shares["wait"], shares=shares, bottleneck=PARTS[largest])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="timed steps a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="end with one line of numbers")
    options, settings = parser.parse_known_args()
    if min(options.steps, options.turns) < 1:
        raise UserError("steps, turns: each must be at least 1")
    for name, value in DEFAULTS.items():
        if f"--{name}" not in settings:
            settings += [f"--{name}", value]
    settings, _ = config.parse(train.Settings, settings, recipe=train.find_recipe)
    settings.dataset = datasets.resolve_name(settings.dataset, settings.data_dir)
    train.check(settings)
    if settings.method != "barlow_twins":
        raise UserError(f"method: the published loop is Barlow Twins, not {settings.method}")
    device = distributed.join(settings.device)
    torch.backends.cudnn.benchmark = True

    data = datasets.load(settings.dataset, settings.data_dir, "unlabelled", image_size=settings.image_size,
                         class_list=settings.class_list, seed=settings.seed)  # fmt: skip
    batches, prepare, step = our_loop(settings, data, options.steps, device)
    finished = prepare(next(batches(0)))
    contenders = {
        "ours": (batches, prepare, step),
        "ours, same batch": (lambda turn: endless(finished), lambda x: x, step),
    }
    if data.paths is not None:
        contenders["published"] = published_loop(settings, data.paths, device)

    turns = {name: [] for name in contenders}
    for turn in range(options.turns):
        for name, (batches, *rest) in contenders.items():
            turns[name].append(take_turn(batches(turn), *rest, options.steps, device))
    results = {name: summary(own, options.steps * settings.batch_size) for name, own in turns.items()}

    where = "in memory" if data.resident is not None else f"{loader_workers(settings)} workers"
    print(machine(device.type))
    print(f"{len(data)} images of {settings.dataset}, ours {where}, views of {settings.image_size} px")
    print(f"{settings.encoder}, projector {settings.projector}, batch {settings.batch_size}")
    print(f"{options.turns} turns of {options.steps} steps\n")
    rows = [["", "samples/s", *PARTS.values(), "bottleneck"]]
    for name, found in results.items():
        shares = [f"{share:.1%}" for share in found["shares"].values()]
        rows.append([name, f"{found['samples_per_second']:.1f}", *shares, found["bottleneck"]])
    print(table(rows))
    rate = {name: found["samples_per_second"] for name, found in results.items()}
    numbers = dict(
        samples_per_second=rate["ours"],
        data_wait=results["ours"]["data_wait"],
        bottleneck=results["ours"]["bottleneck"],
        of_free_input=rate["ours"] / rate["ours, same batch"],
    )
    print(f"\nours reaches {numbers['of_free_input']:.0%} of what it would if input cost nothing")
    if "published" in rate:
        numbers |= dict(published_samples_per_second=rate["published"], ratio=rate["ours"] / rate["published"])
        print(f"ours / published: {numbers['ratio']:.2f}×")
    if options.json:
        print(json.dumps({key: round(v, 4) if isinstance(v, float) else v for key, v in numbers.items()}))


if __name__ == "__main__":
    with one_line_errors("step.py"):
        main()
