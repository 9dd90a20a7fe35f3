"""Whole training steps, and what they wait for: ours on real and on no input, beside the plain published loop.

python benchmarks/step.py --data_dir IMAGES [--steps 8] [--turns 3] [--json] [any setting of train.py]
python benchmarks/step.py --data_dir IMAGES --epochs 15              and train both, and compare their k-NN
python benchmarks/step.py --dataset fake --image_size 224           noise: the way of files without decoding

Ours is what train.py does: its loader, views, model, loss, precision and optimizer. `same batch` gives it
one finished batch again and again: how fast it would be if input cost nothing. The published loop is
written here from the paper: PIL pipeline in loader workers, two forwards, the D×D loss, LARS parameter by
parameter, float32 (fp16 on a GPU); same images, same model. It needs files, so it is left out for data made in memory.
All take turns in one run, and medians over the turns are compared. With `--epochs` both are then trained
for so many, an epoch of one after an epoch of the other, from the same weights by the same recipe (a tenth of
the epochs is warm-up, unless set), and their encoders are judged by k-NN on the folder's test split.
Without further settings: ResNet-18, projector 2048-2048-2048, batch 256, views of 32 pixels.
`--json` ends the output with one line of numbers.
"""

import sys
from pathlib import Path

import ssl

ROOT = Path(__file__).resolve().parents[1]
ssl.__path__ = [str(ROOT / "ssl")]  # see ssl/__init__.py
sys.path.append(str(ROOT))  # for train.py

import argparse
import json
import time

import torch
from loops import Loop, loader_workers, our_loop, published_loop
from measure import machine
from turns import endless, summary, take_turn, turns_table

import evaluate
import train
from ssl import distributed
from ssl.console import table
from ssl.data.images import Images
from ssl.data.order import Order
from ssl.errors import UserError, one_line_errors
from ssl.evaluation.probes import knn
from ssl.settings import auto, config
from ssl.sources import datasets
from ssl.training import by_machine, checks

DEFAULTS = {"image_size": "32", "encoder": "resnet18", "projector": "2048-2048-2048", "batch_size": "256"}


# Training ----------------------------------------------------------------------------


def train_in_turn(loops: dict[str, Loop], settings: train.Settings, steps_per_epoch: int) -> dict[str, float]:
    """Train each loop for all epochs, an epoch of one after an epoch of the other; samples per second of each."""
    seconds = dict.fromkeys(loops, 0.0)
    for epoch in range(settings.epochs):
        start, stop = epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch
        for name, loop in loops.items():
            began = time.perf_counter()
            for step, batch in zip(range(start, stop), loop.batches(start, stop)):
                loop.step(loop.prepare(batch), train.lr_factor(settings, step, steps_per_epoch))
            seconds[name] += time.perf_counter() - began
        print(f"epoch {epoch + 1}/{settings.epochs}", file=sys.stderr, flush=True)
    samples = settings.epochs * steps_per_epoch * settings.batch_size
    return {name: samples / own for name, own in seconds.items()}


def judge(loop: Loop, splits: list[Images], settings: train.Settings, device: torch.device) -> float:
    """k-NN accuracy on the test split of the encoder that a loop has trained."""
    mean, std = datasets.normalisation(splits[0], settings.mean, settings.std)
    options = evaluate.Settings(image_size=settings.image_size, mean=mean, std=std, workers=loader_workers(settings))
    encoder = loop.model.encoder.eval()
    read = [evaluate.extract(encoder, split, options, device, split.name) for split in splits]
    pairs = [(features, split.labels.to(device)) for features, split in read]
    return knn(*pairs, len(splits[0].classes))["acc1"]


def compare_trained(settings: train.Settings, data: Images, splits: list[Images], device: torch.device) -> dict:
    loops = {"ours": our_loop(settings, data, device), "published": published_loop(settings, data, device)}
    before = judge(loops["ours"], splits, settings, device)
    loops["ours"].model.train()
    rates = train_in_turn(loops, settings, len(data) // settings.batch_size)
    found = {
        name: dict(samples_per_second=rates[name], knn=judge(loop, splits, settings, device))
        for name, loop in loops.items()
    }
    rows = [["", "samples/s", "k-NN"], ["untrained", "", f"{before:.1%}"]]
    rows += [[name, f"{own['samples_per_second']:.1f}", f"{own['knn']:.1%}"] for name, own in found.items()]
    print(f"\n{settings.epochs} epochs of {len(data)} images, judged on {len(splits[1])}\n\n{table(rows)}")
    ratio = rates["ours"] / rates["published"]
    print(f"\nours / published: {ratio:.2f}× the speed at {found['ours']['knn'] - found['published']['knn']:+.1%} k-NN")
    return dict(
        epochs=settings.epochs,
        trained_ratio=ratio,
        knn=found["ours"]["knn"],
        published_knn=found["published"]["knn"],
        untrained_knn=before,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8, help="timed steps a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="also train both, and compare their k-NN")
    parser.add_argument("--json", action="store_true", help="end with one line of numbers")
    options, settings = parser.parse_known_args()
    if min(options.steps, options.turns) < 1:
        raise UserError("steps, turns: each must be at least 1")
    for name, value in DEFAULTS.items():
        if f"--{name}" not in settings:
            settings += [f"--{name}", value]
    if options.epochs is not None:
        settings += ["--epochs", str(options.epochs)]
        if "--warmup_epochs" not in settings:
            settings += ["--warmup_epochs", str(options.epochs / 10)]
    of_gpu = lambda asked: train.find_recipe(asked | {"device": "cuda"})  # noqa: E731, one recipe on any device
    settings, _ = config.parse(train.Settings, settings, recipe=of_gpu)
    datasets.resolve(settings)
    checks.check(settings)
    if settings.method != "barlow_twins":
        raise UserError(f"method: the published loop is Barlow Twins, not {settings.method}")
    if settings.views != 2:
        raise UserError(f"views: the published loop has 2, not {settings.views}")
    device = distributed.join(settings.device)
    torch.backends.cudnn.benchmark = True

    names = ("unlabelled", "train", "test") if options.epochs is not None else ("unlabelled",)
    data, *splits = (datasets.load_as(settings, name) for name in names)
    if splits and (data.paths is None or not data.classes):
        raise UserError("epochs: the loops can be compared on class folders of image files; pass --data_dir FOLDER")
    by_machine.settle(settings, data, train.Model, device)
    checks.require_whole_batches(settings, Order(len(data), settings.batch_size, 1, 1, settings.seed))
    auto.settle(settings, settings.batch_size, len(data))
    ours = our_loop(settings, data, device)
    finished = ours.prepare(next(ours.batches(0, 1)))
    contenders = {
        "ours": ours,
        "ours, same batch": Loop(ours.model, ours.optimizer, lambda *steps: endless(finished), lambda x: x, ours.step),
    }
    if data.paths is not None:
        contenders["published"] = published_loop(settings, data, device)

    turns = {name: [] for name in contenders}
    for turn in range(options.turns):
        for name, loop in contenders.items():
            turns[name].append(take_turn(loop, turn, options.steps, device.type))
    results = {name: summary(own, options.steps * settings.batch_size) for name, own in turns.items()}

    where = "in memory" if data.resident is not None else f"{loader_workers(settings)} workers"
    print(machine(device.type))
    print(f"{len(data)} images of {settings.dataset}, ours {where}, {settings.views} views of {settings.image_size} px")
    print(f"{settings.encoder}, projector {settings.projector}, batch {settings.batch_size}")
    print(f"{options.turns} turns of {options.steps} steps\n")
    print(turns_table(results))
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
    if options.epochs is not None:
        numbers |= compare_trained(settings, data, splits, device)
    if options.json:
        print(json.dumps({key: round(v, 4) if isinstance(v, float) else v for key, v in numbers.items()}))


if __name__ == "__main__":
    with one_line_errors("step.py"):
        main()
