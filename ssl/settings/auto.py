"""The values that `auto` stands for.

Some follow the batch, the images' size and their number, as published runs do (`resolve`). Sources: the authors' table
of learning rates for 300 epochs of Barlow Twins on ImageNet (facebookresearch/barlowtwins, issue 7), and solo-learn's
published settings for smaller sets. Others follow the machine (the functions at the end, which `training.by_machine`
calls). Each value comes with its reason.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssl.errors import UserError

# Global batch: learning rate before scaling with batch / 256.
BARLOW_TWINS_LR = ((128, 0.7), (256, 0.4), (512, 0.3), (1024, 0.25), (2048, 0.2), (4096, 0.2))
# Number of images: epochs. CIFAR, ImageNet-100, and ImageNet with its short schedule.
EPOCHS = ((50_000, 1000), (126_689, 400), (1_281_167, 100))
WARMUP = 10  # epochs, in the published runs of 100 epochs and more
LARGE_SET = 400_000  # images, midway (as a factor) between ImageNet-100 and ImageNet
SMALL_IMAGE = 64  # pixels: views of at most this size are not blurred
BLUR = {"simclr": [0.5, 0.5], "supcon": [0.0, 0.0]}  # in turn; other methods: as BYOL, [1.0, 0.1]


def interpolate(x: float, points: Sequence[tuple[float, float]]) -> float:
    """The value at `x` > 0 between `points` (x, y), linear in log x; outside them the value of the nearest one."""
    known, values = np.array(points).T
    return float(np.interp(math.log(x), np.log(known), values))


def learning_rate(global_batch: int) -> float:
    """Barlow Twins' learning rate for a global batch, before scaling with batch / 256."""
    return float(f"{interpolate(global_batch, BARLOW_TWINS_LR):.3g}")


def epochs(images: int) -> int:
    """Passes over so many images, rounded to tens, as in published runs on sets of that size."""
    return 10 * round(math.exp(interpolate(images, [(n, math.log(length)) for n, length in EPOCHS])) / 10)


def projector(method: str, images: int) -> str:
    if method == "barlow_twins":
        return "8192-8192-8192" if images >= LARGE_SET else "2048-2048-2048"
    return "2048-128" if images >= LARGE_SET else "512-128"


def blur_prob(method: str, image_size: int) -> list[float]:
    """The probabilities, which the views take in turn."""
    return [0.0, 0.0] if image_size <= SMALL_IMAGE else BLUR.get(method, [1.0, 0.1])


def warmup(asked: float | str, epochs: int, schedule: str) -> float:
    """Epochs of warm-up: `asked`, or for auto a tenth of the run, at most WARMUP."""
    if asked != "auto":
        return asked
    tenth = min(epochs / 10, WARMUP)
    return float(round(tenth)) if schedule == "cosine_by_epoch" else tenth


def shorten_warmup(settings, origin: dict[str, str]) -> None:
    """Set the warm-up to auto if it is not shorter than the run, and the file that set the epochs did not set it.

    A warm-up from the command line stays.
    """
    length, ramp = settings.epochs, settings.warmup_epochs
    deliberate = origin["warmup_epochs"] in ("command line", origin["epochs"])
    if "auto" not in (length, ramp) and 0 < length <= ramp and not deliberate:
        settings.warmup_epochs = "auto"


def settle(settings, global_batch: int, images: int) -> dict[str, tuple[object, str]]:
    """Set what `resolve` finds in `settings`, and return it."""
    found = resolve(vars(settings), global_batch, images)
    for name, (value, _) in found.items():
        setattr(settings, name, value)
    return found


def resolve(settings: dict, global_batch: int, images: int) -> dict[str, tuple[object, str]]:
    """{name: (value, reason)} of the settings that are 'auto'.

    Raises `UserError` if the learning rate is auto, and it is not known for this method and optimizer.
    """
    method, size = settings["method"], settings["image_size"]
    known = (method, settings["optimizer"], settings["lr_scaling"]) == ("barlow_twins", "lars", "linear")
    if settings["lr"] == "auto" and not known:
        raise UserError(
            "lr: auto is known only for method barlow_twins with optimizer lars and lr_scaling linear, and the recipe "
            "or the command line asks for it with others; pass --lr"
        )
    found: dict[str, tuple[object, str]] = {}
    if settings["lr"] == "auto":
        why = f"global batch {global_batch}; the authors' table: 0.7 up to 128, 0.4 at 256, 0.2 from 2048 on"
        found["lr"] = learning_rate(global_batch), why
    if settings["epochs"] == "auto":
        why = f"{images} images; published: 1000 on CIFAR, 400 on ImageNet-100, 100 on ImageNet"
        found["epochs"] = epochs(images), why
    if settings["warmup_epochs"] == "auto":
        length = found["epochs"][0] if "epochs" in found else settings["epochs"]
        found["warmup_epochs"] = warmup("auto", length, settings["schedule"]), f"a tenth of the run, {WARMUP} at most"
    if settings["projector"] == "auto":
        why = f"{images} images; larger from {LARGE_SET} on"
        found["projector"] = projector(method, images), why
    if settings["blur_prob"] == "auto":
        found["blur_prob"] = blur_prob(method, size), f"views of {size} pixels; none up to {SMALL_IMAGE}"
    return found


# What follows the machine ---------------------------------------------------------

CPU_ENCODER, CPU_KWARGS = "ssl.encoders.SmallConvNet", {"width": 16, "stages": 4, "grid": 2}
CPU_SIZES = {"auto": (48,), "own": (96, 224)}  # pixels of a view, for that encoder, and for one that the user names
LEAST_SIZE = 16  # pixels of a view, which smaller images are enlarged to where the encoder does not read them
SECONDS = 300  # of training on a CPU: half of ten minutes, as reading the images and judging need the other half
CORE_FLOPS = 80e9  # a second, in float32, of one core with AVX-512; one with AVX2 has about half of it
PIXEL_SECONDS = 3e-7  # of one core, for a pixel of a view: crop, colours, normalisation
LEAST_EPOCHS, MOST_EPOCHS = 5, 300  # on a CPU
BATCH = {"cpu": 32, "cuda": 256}  # images a step and process
BACKWARD = 1.2  # times the memory that the forward pass keeps
GPU_ITSELF = 1e9  # bytes: context, libraries, workspace


@dataclass(frozen=True)
class Machine:
    """`kind` is cpu or cuda. `memory` in bytes: all of the GPU's, or what a process may take of the machine's."""

    kind: str
    cores: int  # of all processes
    memory: int


@dataclass(frozen=True)
class ViewCost:
    """Of a view through encoder and projector: operations of the forward pass, bytes that it keeps for backward."""

    flops: float
    memory: float
    parameters: int


def short_side(images: int, image_size: int, machine: Machine) -> int | None:
    """Twice the views' side, if so many images of 3 : 4 take a quarter of the memory at most; else None."""
    side = 2 * image_size
    return side if 4 * side**2 * images <= machine.memory / 4 else None


def batch(images: int, processes: int, machine: Machine, cost: ViewCost, views: int = 2) -> tuple[int, int]:
    """(batch_size, accumulate): BATCH images a step and process, or fewer where there are few images.

    They are cut into as many micro-batches as the memory for their views asks for. On a CPU an epoch has eight steps,
    if it can.
    """
    own = images // processes
    most = min(BATCH[machine.kind], own if machine.kind == "cuda" else max(own // 8, min(own, 16)))
    total = 2 ** int(math.log2(max(most, 2)))
    room = 0.9 * machine.memory - GPU_ITSELF if machine.kind == "cuda" else machine.memory / 2
    size, room = total, room - 16 * cost.parameters  # weights, gradients, the optimizer's two
    while size > 2 and BACKWARD * views * cost.memory * size > room:
        size //= 2
    return size, total // size


def epochs_on_cpu(images: int, image_size: int, machine: Machine, cost: ViewCost, views: int = 2) -> int:
    """As many as SECONDS allow; backward takes twice as long as forward."""
    seconds = views * (3 * cost.flops / CORE_FLOPS + PIXEL_SECONDS * image_size**2)
    return round(min(max(SECONDS * machine.cores / seconds / images, LEAST_EPOCHS), MOST_EPOCHS))
