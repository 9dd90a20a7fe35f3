"""Every image of a data set, with labels or without, for what needs no labels: features and near duplicates."""

from dataclasses import replace

import torch

from ssl.data.bad_images import tell_left_out
from ssl.data.images import Images
from ssl.data.resident import make_resident, shown_alike
from ssl.errors import UserError
from ssl.settings.shared import LabelSettings
from ssl.sources import arrays, datasets, folders, table_images
from ssl.sources.classes import require_distinct
from ssl.sources.identity import require_same_images
from ssl.sources.labels import require_named, without


def load(settings: LabelSettings) -> dict[str, Images]:
    """{'train', 'val', 'test': the images} as the data set has these splits; {'all'} without splits and labels.

    An image without a label has the label -1. All splits have the same classes, and are `shown_alike`. With a
    `short_side` files are reduced as they are read, so they need no memory. Prints which images cannot be read, and
    raises `UserError` where these are too many, or the data is not as `datasets.load_as` expects it.
    """
    found = _alike(_by_split(settings))
    chosen = "train_files" if settings.train_files else "train_percent" if settings.train_percent != 100 else None
    if chosen and not ("train" in found and found["train"].classes):
        raise UserError(
            f"{chosen}: chooses training images by their labels, and there are none with labels; leave it out"
        )
    require_named("leave_out", settings.leave_out, next(iter(found.values())).classes)  # of all splits together
    found = {name: without(data, settings.leave_out, name) for name, data in found.items()}
    found = {name: data for name, data in found.items() if data is not None}
    for name, data in found.items():
        require_distinct(data.classes, data.name)
        found[name] = data = make_resident(data, settings.value_range)
        tell_left_out(dict(data.bad), len(data) + len(data.bad), settings.max_bad_fraction)
    require_same_images(found, settings.data_dir)
    return {name: replace(data, short_side=settings.short_side) for name, data in shown_alike(found).items()}


def can_judge(splits: dict[str, Images]) -> bool:
    """Whether `splits` can judge an encoder: some images of train and of test have labels."""
    return all(name in splits and bool((splits[name].labels >= 0).any()) for name in ("train", "test"))


def _by_split(settings: LabelSettings) -> dict[str, Images]:
    datasets.require_fitting(settings)
    if settings.dataset == "array":
        return arrays.by_split(settings.data_dir, settings.value_range)
    if settings.dataset == "folder":
        root = datasets.existing(settings.data_dir, "folder")
        return folders.by_split(root) if settings.csv is None else table_images.by_split(root, settings)
    every = replace(settings, leave_out=None)
    found = {split: datasets.load_as(every, split) for split in ("train", "val", "test")}  # all have labels
    return {split: data for split, data in found.items() if data is not None}


def _alike(found: dict[str, Images]) -> dict[str, Images]:
    """`found` with the classes of all splits together."""
    classes = sorted({name for data in found.values() for name in data.classes})
    if all(data.classes == next(iter(found.values())).classes for data in found.values()):
        return found
    number = {name: label for label, name in enumerate(classes)}
    for split, data in found.items():
        numbers = torch.tensor([*(number[name] for name in data.classes), -1])  # the last is that of label -1
        found[split] = replace(data, labels=numbers[data.labels], classes=classes)
    return found
