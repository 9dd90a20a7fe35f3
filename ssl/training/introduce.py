"""Print the first lines of a run: what runs, on which device and data, and with which settings."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch

from ssl.checkpoints.pretrained import Source
from ssl.console import counted, say
from ssl.data.images import Images
from ssl.data.order import Order
from ssl.data.values import tell_values
from ssl.distributed import describe, world_size
from ssl.encoders import SMALL_IMAGE, has_own_stem, short_name, stem_for
from ssl.errors import one_line
from ssl.settings.shared import TrainingSettings
from ssl.sources.recipe import FOR_CPU, OWN_IMAGES
from ssl.sources.validation import Validation, validation_order
from ssl.training.precision import name_of

FEW = 100  # images


def tell_start(script: str, settings: TrainingSettings, origin: dict[str, str], device: torch.device) -> None:
    """Which files the settings are from, later ones win (`origin` as of `config.parse`); the device; the precision."""
    files = [where for where in dict.fromkeys(origin.values()) if where not in ("default", "command line")]
    say(f"recipe      {' < '.join([f'the defaults of {script}', *map(os.path.relpath, files)])}")
    say(f"device      {describe(device, settings.device)}")
    say(f"precision   {name_of(settings.amp, device)}")


def tell_choice(settings, origin: dict[str, str], device: torch.device) -> None:
    """What train.py has chosen where the user has not: the embedded images, the recipe for a CPU or for a GPU."""
    if settings.dataset == "shapes" and origin["dataset"] == "default":
        say("*** No --dataset, no --data_dir: training on the EMBEDDED demonstration set `shapes`, not ImageNet. ***")
    recipes = [os.path.basename(where) for where in origin.values() if where.endswith(".yaml")]
    if settings.config or settings.dataset not in OWN_IMAGES or not recipes:
        return
    for_cpu = any(name.endswith(FOR_CPU) for name in recipes)
    if for_cpu != (device.type == "cpu"):
        say(f"chosen      {recipes[-1]}, as this run began; another --output_dir takes the one for this device")
    elif for_cpu:
        say(
            f"chosen      {recipes[-1]}, the recipe without a GPU: some ten minutes for up to 2,000 images on two cores"
        )
        if settings.method == "barlow_twins" and origin["image_size"].endswith(FOR_CPU):
            say("            the recipe for a GPU: --config configs/barlow_twins_folder.yaml (on a CPU it takes days)")


def tell_auto(settings, found: dict[str, tuple[object, str]]) -> None:
    """What `auto` became, and why. `found` is as of `auto.settle`."""
    for name, (value, why) in found.items():
        say(f"auto        {name} {value} ({why})")
    if settings.stem == "auto" and "." not in short_name(settings.encoder) and not has_own_stem(settings.encoder):
        stem = stem_for(settings.image_size)
        say(f"auto        stem {stem} (views of {settings.image_size} pixels; small up to {SMALL_IMAGE})")


def tell_images(settings, data: Images, learns_labels: bool) -> None:
    """The images that train.py learns from."""
    where = "of noise, never read" if data.pool is not None else "from files" if data.paths else "from one file"
    where = "in memory" if data.resident is not None or data.held is not None else where
    views = f"{settings.views} views of {settings.image_size} px"
    say(f"data        {settings.dataset}: {counted(len(data), 'image')} {where}, {views}")
    tell_values(data)
    if len(data) < FEW:
        say(f"*** {len(data)} images are very few to learn from; docs/own-data.md says what to do with few images ***")
    if learns_labels:
        balanced = ", every class shown as often" if settings.balanced else ""
        say(f"labels      of {int((data.labels >= 0).sum())} images, {len(data.classes)} classes{balanced}")
    if data.channels != 3:
        say(f"views       {counted(data.channels, 'channel')}: saturation, hue and grey are left out")


def tell_training(settings, order: Order, lr_scale: float) -> None:
    """Model, batch, learning rates and length of a training by train.py."""
    bias_lr = settings.lr if settings.bias_lr is None else settings.bias_lr
    why = {
        "linear": f"{settings.lr:g} × global batch {order.global_batch} / 256",
        "sqrt": f"{settings.lr:g} × √{order.global_batch}",
        "none": "as set",
    }[settings.lr_scaling]
    say(f"model       {settings.encoder} {settings.encoder_kwargs or ''} + projector {settings.projector}")
    say(
        f"batch       {settings.batch_size} per process × {world_size()} × accumulate {settings.accumulate} = "
        f"{order.global_batch} (global)"
    )
    say(f"lr          weights {settings.lr * lr_scale:g}, biases and norms {bias_lr * lr_scale:g} ({why})")
    length = f"{counted(settings.epochs, 'epoch')} of {counted(order.steps_per_epoch, 'step')}"
    say(f"length      {length}, {settings.warmup_epochs:g} of warm-up")


def tell_judging(settings, validation: Validation, order: Order) -> None:
    """How often train.py judges its encoder, by what, and on which images."""
    where = "a tenth of train, by seed" if len(validation.parts) == 1 else "the validation split"
    where += "; training, too, sees these images, without labels" if validation.seen else ""
    if settings.eval_every:
        train, held_out = (len(rows) for rows in validation.split())
        head = "evaluate.py's probe"
        if settings.eval_head == "fixed":
            head = "the SimCLR study's fixed head (which finds less than evaluate.py's probe)"
        say(f"judge       {_every(settings.eval_every)}: k-NN and {head}, of {train} images on {held_out}, {where}")
    if settings.ssl_val_interval:
        count = len(validation.images)
        batch = validation_order(settings, count, order).global_batch
        fewer = f" (no more than the {count} images allow)" if batch < order.global_batch else ""
        say(f"val loss    {_every(settings.ssl_val_interval)}: in global batches of {batch}{fewer}, of {where}")


def _every(epochs: int) -> str:
    return "every epoch" if epochs == 1 else f"every {epochs} epochs"


def tell_fine_tuning(settings, source: Source | None, splits: dict[str, Images | None], order: Order) -> None:
    """Weights, images, batch, learning rates and length of a fine-tuning by finetune.py."""
    say(f"init        {source or '*** untrained: no --init ***'}")
    say(f"model       {settings.encoder} {settings.encoder_kwargs or ''}" + (", frozen" if settings.freeze else ""))
    for split, data in splits.items():
        held_out = f"{settings.val_fraction:.0%} of every class of train, by seed"
        say(f"{split:<12}" + (held_out if data is None else class_counts(data)))
    tell_values(splits["train"])
    if settings.train_files or settings.train_percent != 100:
        say(f"labels      {settings.train_files or f'{settings.train_percent:g} % of every class, by seed'}")
    say(f"views       {settings.image_size} px")
    balanced = ", every class equally often" if settings.balanced else ""
    say(f"batch       {order.batch_size} per process × {world_size()} = {order.global_batch} (global){balanced}")
    lr_backbone = settings.lr if settings.lr_backbone is None else settings.lr_backbone
    backbone = "none, frozen" if settings.freeze else f"{lr_backbone:g}"
    say(f"lr          head {settings.lr:g}, backbone {backbone}, {settings.schedule}")
    warmup = f", {settings.warmup_epochs:g} of warm-up" if settings.warmup_epochs else ""
    runs = f", {settings.runs} runs" if settings.runs > 1 else ""
    length = f"{counted(settings.epochs, 'epoch')} of {counted(order.steps_per_epoch, 'step')}"
    say(f"length      at most {length}{warmup}{runs}")


def tell_model(paths: Iterable[Path], settings, device: torch.device) -> None:
    """The models, at the `paths` of their best.pt, that finetune.py tests or predicts with."""
    say(f"model       {', '.join(map(str, paths))}: {settings.encoder}, views of {settings.image_size} px")
    say(f"precision   {name_of(settings.amp, device)}")


def class_counts(data: Images) -> str:
    """'98 images (akiec 7, bcc 10, ...)': of the first ten classes."""
    counts = torch.bincount(data.labels, minlength=len(data.classes)).tolist()
    each = ", ".join(f"{name} {count}" for name, count in zip(data.classes[:10], counts))
    return one_line(f"{len(data)} images ({each}{', ...' if len(counts) > 10 else ''})")
