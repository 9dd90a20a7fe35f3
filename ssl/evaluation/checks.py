"""What evaluate.py is asked for, and what it refuses; and that the frozen encoder stayed as it was."""

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ssl.checkpoints import published
from ssl.data.images import Images
from ssl.errors import UserError
from ssl.evaluation.features import Split
from ssl.settings import ranges
from ssl.sources import labels


def protocols_of(settings, origin: dict[str, str]) -> list[str]:
    """What `settings` ask for, in the order in which it is done: a card needs probe and k-NN, files alone need none."""
    protocols = list(dict.fromkeys(settings.protocol + ["probe", "knn"] * ("card" in settings.protocol)))
    if "all" in protocols:
        every = ["probe", "knn"] if settings.features else ["linear", "probe", "knn", "features"]
        protocols = every + [name for name in protocols if name not in ("all", *every)]
    files_only = settings.near_duplicates is not None or (settings.features and settings.csv_features)
    if files_only and origin["protocol"] == "default":
        protocols = [] if settings.features else ["features"]
    return protocols


def check(settings, protocols: list[str], origin: dict[str, str]) -> None:
    """Raise `UserError` for settings that cannot work, before any process waits for another."""
    if not settings.protocol:
        raise UserError("protocol: the list names none; name some, or leave it out for probe and knn")
    if settings.features:
        if not set(protocols) <= {"probe", "knn", "card", "fixed"}:
            names = " ".join(protocols)
            raise UserError(f"protocol: {names} needs images; --features has enough for probe, knn, card and fixed")
        if settings.random_init or settings.raw_pixels or settings.npz:
            raise UserError("random_init, raw_pixels and npz need images; leave them out with --features")
        if origin.get("leave_out", "default") != "default":
            raise UserError("leave_out: a features file is judged whole; write another one with --leave_out")
        if int(os.environ.get("WORLD_SIZE") or settings.gpus or 1) > 1:
            raise UserError("features: one process judges a features file; leave out torchrun and --gpus")
    elif settings.model_path is None:
        raise UserError(
            "model_path: nothing is named that is to be judged; name it with --model_path: a run folder, a file, or "
            f"published weights, which are downloaded ({', '.join(published.NAMES)})"
        )
    if not settings.features and "features" not in protocols:
        for name in ("npz", "csv_features", "near_duplicates"):
            if getattr(settings, name):
                raise UserError(f"{name}: features are written by --protocol features; add it")
    of_linear = [name for name in origin if name.startswith("linear_") and origin[name] != "default"]
    if of_linear and "linear" not in protocols:
        raise UserError(f"{of_linear[0]}: only protocol linear has it; protocol fixed takes its settings from the run")
    if origin.get("corrupted_images", "default") != "default" and "card" not in protocols:
        raise UserError("corrupted_images: only protocol card has it; add --protocol card")
    ranges.check(settings)
    if settings.batch_size < 1:
        raise UserError(f"batch_size: {settings.batch_size} must be at least 1")
    labels.check_choice(settings.train_percent, settings.train_files)
    if protocols == ["features"] and (settings.random_init or settings.raw_pixels):
        raise UserError("random_init and raw_pixels are judged; add a protocol that judges, such as probe")
    if settings.near_duplicates is not None and not 0 < settings.near_duplicates < 1:
        raise UserError(f"near_duplicates: {settings.near_duplicates:g} is no cosine between 0 and 1, such as 0.95")
    if settings.standardize and not {"probe", "knn"} & set(protocols):
        raise UserError("standardize is for probe and knn; other protocols take features as the encoder gives them")


def require_channels(splits: Mapping[str, Images]) -> None:
    """Raise `UserError` unless the images of all splits have as many channels."""
    start, first = next(iter(splits.items()))
    for name, data in splits.items():
        if data.channels != first.channels:
            raise UserError(f"data_dir: {start} has images of {first.channels} channels, {name} of {data.channels}")


def require_enough(splits: Mapping[str, Images | Split], protocols: list[str]) -> None:
    """Raise `UserError` unless every class has the training samples that the protocols need.

    Features alone need none. A card leaves the probe out where a class has one, so it needs no second.
    """
    if protocols == ["features"]:
        return
    least = 2 if "probe" in protocols and "card" not in protocols else 1
    why = "protocol probe needs at least 2 of every class, 1 of them held out, the others 1"
    labels.require_each(splits["train"], least, why)


def require_unchanged(encoder: nn.Module, before: dict[str, Tensor]) -> None:
    """Raise if judging changed the encoder."""
    changed = [key for key, value in encoder.state_dict().items() if not torch.equal(value, before[key])]
    if changed:
        raise RuntimeError(f"judging changed the frozen encoder: {', '.join(changed[:3])}")
