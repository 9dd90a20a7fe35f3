"""Check that features are of the encoder and the images that the user names: those judged, and those written over."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ssl.checkpoints import image_keys, source_run, torch_file
from ssl.checkpoints.restore import restore
from ssl.data.images import Images, evenly_spaced
from ssl.errors import UserError, one_line
from ssl.evaluation.features import Features, Split, encoder_checksum
from ssl.settings.kinds import coerce
from ssl.sources import datasets, every_image, labels


def require(found: Features, settings) -> None:
    """Raise `UserError` unless the features are of the encoder and the images that `settings` of evaluate.py name."""
    if settings.model_path:
        built = settings.encoder, settings.encoder_kwargs, settings.stem, settings.image_size
        encoder, _, _ = restore(settings.model_path, *built, settings.init_format)
        require_encoder(found, encoder, settings.features, settings.model_path)
    if settings.dataset or settings.data_dir:
        datasets.resolve(settings)
        size, judged_at = datasets.drawn_at(settings), found.settings.get("image_size")
        own = found.settings.get("drawn_at", judged_at)  # older files do not say it
        if size and found.settings.get("dataset") == settings.dataset and size != own:
            raise UserError(
                f"features: {settings.features} is of {settings.dataset} drawn at {own} pixels, which are other images "
                f"than at {size}; pass --image_size {own}, or leave --dataset out"
            )
        images = every_image.load(replace(settings, leave_out=found.settings.get("leave_out")))
        if images.keys() != found.splits.keys():
            here, there = (", ".join(splits) for splits in (images, found.splits))
            raise UserError(
                f"features: {settings.features} is of another data set: its splits are {there}, those of the images "
                f"{here}. Leave --dataset and --data_dir out, or name the images that the features are of"
            )
        require_images(found, images, settings.features, settings.data_dir)


def choose(found: Features, settings) -> Split:
    """The training samples whose labels may be used, as `settings` of evaluate.py say. Fills the seed.

    A file of an older version may hold the chosen ones alone; `settings` then say so, too. Raises `UserError` for a
    second choice.
    """
    if settings.seed is None:
        settings.seed = coerce(found.settings.get("seed", 0), int, "features: seed")
    percent, files = found.settings.get("train_percent", 100), found.settings.get("train_files")
    if percent == 100 and not files:
        return labels.choose(found.splits["train"], settings.train_percent, settings.train_files, settings.seed)
    asked = settings.train_percent, settings.train_files
    if asked not in ((100, None), (percent, files)):
        raise UserError(
            f"features: {settings.features} holds only the images of train_percent {percent}, train_files {files}, so "
            "no others can be chosen; write the features again, and choose then"
        )
    settings.train_percent, settings.train_files = percent, files
    return found.splits["train"]


def own_folder(folder: Path, settings) -> Path:
    """The folder, in that of a run, for features of other images than the run's: it is called after the images.

    Raises `UserError` if it holds features of other images of that name.
    """
    path = folder / f"features_{datasets.called(settings)}" / "features.pt"
    content = torch_file.load(path, mmap=True) if path.is_file() else None
    there = content.get("settings") if isinstance(content, dict) else None
    if isinstance(there, dict) and "dataset" in there and source_run.has_other_place(there, settings):
        images = there.get("csv") or there.get("data_dir") or there["dataset"]
        raise UserError(
            f"output_dir: {path.parent} holds the features of {images}, other images of the same name; set "
            "--output_dir, or rename that folder"
        )
    return path.parent


def require_encoder(found: Features, encoder: nn.Module, path: str, model_path: str) -> None:
    """Raise `UserError` unless the features are of this encoder."""
    own = encoder_checksum(encoder)
    if found.encoder != own:
        told = "which does not say" if found.encoder is None else f"with weights {found.encoder[:12]}"
        raise UserError(
            f"features: {path} is of another encoder, {told}, than model_path {model_path}, with weights {own[:12]}; "
            "leave --model_path out, or write its features with --protocol features"
        )


def require_images(found: Features, splits: dict[str, Images], path: str, root: str | None) -> None:
    """Raise `UserError` unless all features are of these images: same names below `root`, classes, and some keys."""
    for name, data in splits.items():
        own = found.splits[name]
        numbered = enumerate(data.labels.tolist())
        theirs = {_below(data.sample_name(i), root): _class(data.classes, y) for i, y in numbered}
        for sample, label in zip(own.paths, own.labels.tolist()):
            short, there = _below(sample, found.settings.get("data_dir")), _class(own.classes, label)
            if theirs.get(short) != there:
                why = f"{there!r} there, {theirs[short]!r} here" if short in theirs else "is not here"
                raise UserError(
                    f"features: {path} is of another data set: {one_line(short)}, in {name}, {why}. Leave --dataset "
                    "and --data_dir out, or name the images that the features are of"
                )
        known = found.settings.get("image_keys", {}).get(name, {})
        named = [i for i in range(len(data)) if _below(data.sample_name(i), root) in known]
        here = _keys(data, named, root)
        if other := next((sample for sample, key in here.items() if known[sample] != key), None):
            raise UserError(
                f"features: {path} is of other images: {one_line(other)}, in {name}, has another content. Leave "
                "--dataset and --data_dir out, or name the images that the features are of"
            )


def some_keys(splits: dict[str, Images], root: str | None) -> dict:
    """What features.pt keeps for `require_images`: {image_keys: {split: {name: key}}}, of at most 50 images of each."""
    return {"image_keys": {name: _keys(data, evenly_spaced(len(data), 50), root) for name, data in splits.items()}}


def _keys(data: Images, index: Iterable[int], root: str | None) -> dict[str, str]:
    """{name below `root`: key} of images: of their files, or of pixels in memory."""
    some, kind = data.subset(torch.tensor(list(index), dtype=torch.int64)), "pixels" if data.paths is None else "file"
    keys = image_keys.find(some, root, [kind]).get(kind, np.empty(0))
    return {_below(some.sample_name(i), root): f"{key:x}" for i, key in enumerate(keys.tolist()) if key}


def _class(classes: list[str], label: int) -> str:
    return classes[label] if label >= 0 else "no label"


def _below(name: str, root) -> str:
    return name.removeprefix(str(root)).lstrip("/") if root else name
