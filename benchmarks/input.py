"""The way of an image, beside the published PIL pipeline: samples per second and core.

python benchmarks/input.py --data_dir FOLDER_OF_PHOTOGRAPHS [--turns 5] [--json]

One process, one thread, processor time: what else the machine does matters little. Both read the
same files and make two views of each; they take turns, and medians over the turns are compared.
Without --data_dir: photos/ in the folder that SSL_TEST_DATA names.
`--json` ends the output with one line of the three ratios.
"""

from pathlib import Path

import ssl

ssl.__path__ = [str(Path(__file__).resolve().parents[1] / "ssl")]  # see ssl/__init__.py

import argparse
import json
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from measure import machine
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import to_pil_image

from ssl.augment import View, draw
from ssl.console import table
from ssl.data.images import Images
from ssl.data.loader import finish, training_batches
from ssl.data.order import Order
from ssl.data.worker import TrainingFiles
from ssl.errors import UserError, one_line_errors
from ssl.sources import datasets

CPU = torch.device("cpu")
BATCH = 64
SMALL_BATCH = 256
MEAN, STD = datasets.IMAGENET
PHOTOGRAPH_VIEWS = [View(), View(blur_prob=0.1, solarize_prob=0.2)]
SMALL_VIEWS = [View(size=32, crop_scale=(0.2, 1.0), blur_prob=0.0, solarize_prob=p) for p in (0.0, 0.2)]


# The published pipeline, from the paper's description --------------------------------


class Blur:
    def __init__(self, probability: float):
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() < self.probability:
            return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
        return image


class Solarize:
    def __init__(self, probability: float):
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.solarize(image) if random.random() < self.probability else image


def published(view: View) -> dict[str, Callable]:
    """The transforms of one view, by stage; applied one after the other they are the published pipeline."""
    jitter = transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)
    crop = transforms.RandomResizedCrop(view.size, scale=view.crop_scale, interpolation=InterpolationMode.BICUBIC)
    stages = {
        "crop": [crop, transforms.RandomHorizontalFlip(0.5)],
        "colour": [transforms.RandomApply([jitter], 0.8), transforms.RandomGrayscale(0.2)],
        "blur": [Blur(view.blur_prob), Solarize(view.solarize_prob)],
        "tensor": [transforms.ToTensor(), transforms.Normalize(MEAN, STD)],
    }
    return {name: transforms.Compose(steps) for name, steps in stages.items()}


# Contenders: seconds by stage for one batch -------------------------------------------


class Clock(Counter):
    """Seconds of processor time by stage: `lap(stage)` adds what has passed since the last lap."""

    def __init__(self):
        super().__init__()
        self.last = time.process_time()

    def lap(self, stage: str) -> None:
        now = time.process_time()
        self[stage] += now - self.last
        self.last = now


def published_batch(images: list, views: list[View]) -> Clock:
    """`images`: paths, or PIL images in memory."""
    pipelines = [published(view) for view in views]
    clock = Clock()
    shown = [[] for _ in views]
    for image in images:
        if isinstance(image, str):
            with Image.open(image) as file:
                image = file.convert("RGB")
            clock.lap("decode")
        for pipeline, own in zip(pipelines, shown):
            view = image
            for stage, transform in pipeline.items():
                view = transform(view)
                clock.lap(stage)
            own.append(view)
    for own in shown:
        torch.stack(own)
    clock.lap("tensor")
    return clock


class TimedFiles:
    """What a worker sees of a data set; decoding is timed apart from what it does besides."""

    def __init__(self, data: Images, clock: Clock):
        self.data, self.labels, self.clock = data, data.labels, clock

    def __len__(self) -> int:
        return len(self.data)

    def pixels(self, index: int, reduction: Callable[[int, int], int]) -> Tensor:
        def boxes(height: int, width: int) -> int:
            self.clock.lap("decode")
            factor = reduction(height, width)
            self.clock.lap("crop")
            return factor

        self.clock.lap("crop")
        pixels = self.data.pixels(index, boxes)
        self.clock.lap("decode")
        return pixels


def our_batch(data: Images, views: list[View], order: Order, step: int, mean: Tensor, std: Tensor) -> Clock:
    """What a worker does, by its own code, then what the training process does."""
    clock = Clock()
    batch = TrainingFiles(TimedFiles(data, clock), views, order, 0)[step]
    clock.lap("crop")
    draw_apart(clock, views, order, *order.indices(step, 0, 0))
    finish(batch, views, mean, std)
    clock.lap("apply")
    return clock


def our_resident_batch(data: Images, views: list[View], order: Order, step: int, mean: Tensor, std: Tensor) -> Clock:
    clock = Clock()
    (batch,) = training_batches(data, views, order, step, step + 1, 0, CPU)
    clock.lap("crop")
    draw_apart(clock, views, order, *order.indices(step, 0, 0))
    finish(batch, views, mean, std)
    clock.lap("apply")
    return clock


def draw_apart(clock: Clock, views: list[View], order: Order, epoch: int, index: Tensor, repeats: Tensor) -> None:
    """Drawing was timed with the crops: do it once more and move its time to a line of its own."""
    for number, view in enumerate(views):
        draw(order.seed, epoch, index, number, view, repeats)
    clock.lap("draw")
    clock["crop"] -= clock["draw"]


# Measuring ---------------------------------------------------------------------------


def take_turns(contenders: list[Callable[[int], Clock]], turns: int, batch: int) -> list[dict[str, float]]:
    """Median milliseconds a sample, by stage, of each contender; a first turn is not counted."""
    clocks = [[function(turn) for function in contenders] for turn in range(turns + 1)][1:]
    return [
        {stage: 1e3 * statistics.median(clock[stage] for clock in own) / batch for stage in own[0]}
        for own in zip(*clocks)
    ]


def photographs(data_dir: str | None) -> Images:
    if data_dir is None and "SSL_TEST_DATA" not in os.environ:
        raise UserError("data_dir: pass --data_dir FOLDER with photographs (JPEG files of about 500×375 pixels)")
    data = datasets.load("folder", data_dir or os.path.join(os.environ["SSL_TEST_DATA"], "photos"), "unlabelled")
    if data.resident is not None:
        raise UserError(f"data_dir: {data_dir} has images of at most {datasets.SMALL} pixels; expected photographs")
    return data


def columns(ours: dict, theirs: dict, stages: list[str]) -> Iterator[list[str]]:
    """Rows of a table: milliseconds by stage, ours and published."""
    for stage in stages:
        yield [stage, *(f"{side[stage]:.3f}" if stage in side else "" for side in (ours, theirs))]


def total(stages: dict[str, float], *left_out: str) -> float:
    return sum(ms for stage, ms in stages.items() if stage not in left_out)


def comparison(name: str, ours: float, theirs: float) -> list[str]:
    return [name, f"{1e3 / ours:.0f}", f"{1e3 / theirs:.0f}", f"{theirs / ours:.1f}×"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="folder of photographs")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="end with one line of the three ratios")
    options = parser.parse_args()
    if options.turns < 1:
        raise UserError("turns: must be at least 1")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)

    data = photographs(options.data_dir)
    batch = min(BATCH, len(data))
    order = Order(len(data), batch, 1, 1, seed=0)
    ours, theirs = take_turns(
        [
            lambda turn: our_batch(data, PHOTOGRAPH_VIEWS, order, turn, mean, std),
            lambda turn: published_batch(
                [data.paths[i] for i in order.indices(turn, 0, 0)[1].tolist()], PHOTOGRAPH_VIEWS
            ),
        ],
        options.turns,
        batch,
    )

    thumbnails = [data.pixels(i % len(data)) for i in range(SMALL_BATCH)]
    small = torch.stack([transforms.functional.resize(image, [32, 32], antialias=True) for image in thumbnails])
    held = Images("thumbnails", torch.zeros(len(small), dtype=torch.long), [], resident=small)
    pictures = [to_pil_image(image) for image in small]
    small_order = Order(len(held), SMALL_BATCH, 1, 1, seed=0)
    our_small, their_small = take_turns(
        [
            lambda turn: our_resident_batch(held, SMALL_VIEWS, small_order, turn, mean, std),
            lambda turn: published_batch(pictures, SMALL_VIEWS),
        ],
        options.turns,
        SMALL_BATCH,
    )

    print(f"{machine('cpu')}\n{len(data)} photographs, batches of {batch} and {SMALL_BATCH}, {options.turns} turns\n")
    stages = ["decode", "draw", "crop", "apply", "colour", "blur", "tensor"]
    print(table([["photographs, 224 px: ms a sample", "ours", "published"], *columns(ours, theirs, stages)]))
    stages.remove("decode")
    print()
    print(table([["in memory, 32 px: ms a sample", "ours", "published"], *columns(our_small, their_small, stages)]))
    print()
    rows = [
        comparison("worker, decoded already", total(ours, "decode", "apply"), total(theirs, "decode")),
        comparison("worker, with decoding", total(ours, "apply"), total(theirs)),
        comparison("everything on the CPU", total(ours), total(theirs)),
        comparison("in memory, 32 px", total(our_small), total(their_small)),
    ]
    print(table([["samples per second and core", "ours", "published", "ratio"], *rows]))
    if options.json:
        ratios = {
            "ratio_worker": total(theirs, "decode") / total(ours, "decode", "apply"),
            "ratio_cpu": total(theirs) / total(ours),
            "ratio_in_memory": total(their_small) / total(our_small),
        }
        print(json.dumps({name: round(ratio, 2) for name, ratio in ratios.items()}))


if __name__ == "__main__":
    with one_line_errors("input.py"):
        main()
