"""The networks of the starts: their encoders, image sizes and speed on this machine."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from ssl.checkpoints import restore
from ssl.data.images import Images
from ssl.data.resident import SMALL
from ssl.encoders import build_encoder, reads
from ssl.settings.command import ROOT
from ssl.sources.recipe import OWN_IMAGES
from ssl.worth import measure
from ssl.worth.measure import Speed
from ssl.worth.plan import Network
from ssl.worth.starts import OWN, Public
from ssl.worth.work import Work

# The best recipe for a CPU on CIFAR-10.
CIFAR_ON_CPU = ROOT / "configs" / "simclr_cifar10_cpu.yaml"
LIKE_CIFAR = ("CIFAR10", "CIFAR100", "SVHN")  # they use that recipe, too
BY_SIMCLR = (*OWN_IMAGES, "shapes")  # on a CPU
PUBLIC_SIZE = {"cpu": 96, "cuda": 224}  # pixels, of training with public weights: as train.py's recipes have it
JUDGED = (224, 160, 128, 96)  # pixels of the images that they are judged on, frozen: the first that time allows
JUDGING = 0.05  # of the time is allowed for features of all images


@dataclass(frozen=True)
class Machine:
    device: torch.device
    at_once: int  # jobs that run side by side
    seconds: float  # that there are
    workers: int | None  # loader processes of a job; None: as it settles itself
    read: float  # seconds to read an image, with all of these

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"


def own(work: Work, image_size: int | None, train: Images, machine: Machine) -> Network:
    """The network of train.py's recipe for these images on this machine."""
    recipe = _method(work, machine) | {"image_size": image_size}
    if machine.on_cpu and work.data["dataset"] in LIKE_CIFAR:
        recipe["config"] = str(CIFAR_ON_CPU)
    run = measure.short_run(work.short_run(OWN, recipe, steps=10))
    encoder, kwargs, stem = restore.architecture(run.settled)
    settings = {"encoder": encoder, "encoder_kwargs": kwargs or None, "stem": stem or "auto"}
    size = run.settled["image_size"]
    whole = min(train.resident.shape[2:]) if train.resident is not None else size
    size = whole if size < whole <= SMALL else size  # views of CIFAR-10 are smaller than its images
    return _network(OWN, None, settings, recipe, (size, size), run, train, machine)


def public(work: Work, one: Public, image_size: int | None, train: Images, images: int, machine: Machine) -> Network:
    """The network of published weights, to judge so many images.

    Raises `UserError` where the weights do not fit the images.
    """
    size = image_size or PUBLIC_SIZE[machine.device.type]
    encoder = one.build(size, train.channels)
    judged = image_size or next(side for side in JUDGED if _fast(encoder, side, images, train.channels, machine))
    recipe = _method(work, machine) | one.settings() | {"init": one.weights, "image_size": size}
    run = measure.short_run(work.short_run(one.name, recipe, steps=4))
    network = _network(one.name, one.weights, one.settings(), recipe, (size, judged), run, train, machine)
    return replace(network, seen=one.seen, saw_test=one.saw_test)


def _method(work: Work, machine: Machine) -> dict:
    """The method of pre-training: train.py's, or SimCLR where its recipe for a CPU brought more (docs/ledger.md)."""
    return {"method": "simclr"} if machine.on_cpu and work.data["dataset"] in BY_SIMCLR else {}


def _fast(encoder: nn.Module, side: int, images: int, channels: int, machine: Machine) -> bool:
    """Whether features at this size take a small part of the time; the last size is taken anyway."""
    if side == JUDGED[-1]:
        return True
    if not reads(encoder, side, channels):
        return False
    each = measure.seconds_per_image(encoder, channels, side, machine.device, training=False)
    return images * (each + machine.read) < JUDGING * machine.seconds


def _network(
    name: str,
    weights: str | None,
    settings: dict,
    recipe: dict,
    sizes: tuple[int, int],
    run: measure.ShortRun,
    train: Images,
    machine: Machine,
) -> Network:
    """`sizes`: pixels of training and of judging."""
    size, judged = sizes
    built = settings["encoder"], size, settings["stem"], settings["encoder_kwargs"], train.channels
    encoder, width = build_encoder(*built)
    timed = [
        measure.seconds_per_image(encoder, train.channels, side, machine.device, training)
        for side, training in ((size, True), (size, False), (judged, False))
    ]
    lr, epochs, short_side = (run.settled[key] for key in ("lr", "epochs", "short_side"))
    hold = measure.seconds_to_read(replace(train, short_side=short_side), machine.workers) if short_side else 0.0
    start = max(run.begin - run.images * hold, min(run.begin, 1.0))
    speed = Speed(run.begin, start, run.epoch, *timed, machine.read, hold)
    return Network(name, weights, settings, recipe, size, judged, width, lr, epochs, short_side, speed)
