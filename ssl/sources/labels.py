"""The labels that training may use: all, a share of every class, or those on a list; and checks that they suffice."""

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from ssl.console import counted, say_once, some_of
from ssl.data.hold_out import first_of_classes
from ssl.data.images import Images
from ssl.data.tables import read_lines, shown
from ssl.errors import UserError, nearest
from ssl.settings.command import flags, quoted
from ssl.sources.cut import NO_LABELS
from ssl.sources.lookup import by_ending


def check_choice(percent: float, files: str | None) -> None:
    """Raise `UserError` for impossible settings train_percent and train_files."""
    if not 0 < percent <= 100:
        raise UserError(f"train_percent: {percent:g} is not a share of the labels; expected more than 0, at most 100")
    if files and percent != 100:
        raise UserError("train_files and train_percent both choose the labels; set one of them")


def choose(train: Images, percent: float, files: str | None, seed: int) -> Images:
    """The images of `train` whose labels may be used: all, `percent` of every class, or those on the list `files`."""
    if files:
        return train.subset(listed(train, files))
    return train if percent == 100 else train.subset(stratified(train.labels, percent, seed))


def without(data: Images, names: list[str] | None, split: str) -> Images | None:
    """The images of a split of `datasets.load_as` that are of none of the classes `names`; a line tells of the others.

    Images without a label stay. None for a 'val' that has no other classes, as if there were none. Raises `UserError`
    for another split where no image stays, and for a name that is no class of train.
    """
    if not names or (split == "unlabelled" and not data.classes and data.name not in ("folder", "array")):
        return data  # slides without their labels: pre-training sees all of them
    if split in ("train", "unlabelled"):
        require_named("leave_out", names, data.classes)
    names = set(names)
    left = [name for name in data.classes if name in names]
    stay = [name for name in data.classes if name not in names]
    number = {name: label for label, name in enumerate(stay)}
    labels = torch.tensor([*(number.get(name, -2) for name in data.classes), -1])[data.labels]  # the last: no label
    kept = (labels != -2).nonzero()[:, 0]
    if len(kept) < len(data):
        say_once(f"left out    {split}: {counted(len(data) - len(kept), 'image')} of {len(data)}, of {some_of(left)}")
    if not len(kept) and split != "val":
        raise UserError(f"leave_out: no image of the split {split!r} is left without {some_of(left)}")
    left_out = (*data.left_out, *left)
    return replace(data.subset(kept), labels=labels[kept], classes=stay, left_out=left_out) if len(kept) else None


def stratified(labels: Tensor, percent: float, seed: int) -> Tensor:
    """Indices of `percent` (0 to 100] of every class, rounded, at least one. With the same seed, a smaller share is a
    part of a larger one."""
    return first_of_classes(labels, seed, lambda count: max(1, round(count * percent / 100))).nonzero()[:, 0]


def listed(data: Images, path: str) -> Tensor:
    """Indices of the images that the file `path` names, one in a line: a file name, or the end of a path.

    The name of an image of an array is its place in the array.
    """
    images = data.paths if data.paths is not None else [data.sample_name(i) for i in range(len(data))]
    names = read_lines(path, "train_files")
    places = by_ending((name.removeprefix("./") for name in names), ((image, i) for i, image in enumerate(images)))
    found, missing = set(), []
    for name in names:
        matches = places[name.removeprefix("./")]
        if len(matches) > 1:
            raise UserError(
                f"train_files: {name!r} in {path} is the name of {len(matches)} images; "
                "write it with its class folder, CLASS/NAME"
            )
        found.update(matches)
        missing += [] if matches else [name]
    if missing or not names:
        raise UserError(
            f"train_files: {len(missing)} of the {len(names)} names in {path} are not in the training split"
            + (f": {some_of(missing)}" if missing else "")
        )
    return torch.tensor(sorted(found))


def require_classes(data: Images, data_dir: str | None) -> None:
    """Raise `UserError` unless every image has one of at least two classes."""
    if not data.classes or bool((data.labels < 0).any()):
        raise UserError(
            f"data_dir: {data_dir} has images without labels; judging needs class folders, a table's --label_column, "
            f"or a class number for every image of an array file: {NO_LABELS}"
        )
    if len(data.classes) < 2:
        raise UserError(f"data_dir: {data_dir} has images of one class, {data.classes[0]!r}; there is nothing to tell")


def require_like(data: Images, train: Images, words: str) -> None:
    """Raise `UserError`, which begins with `words`, unless `data` has the channels and classes of `train`."""
    if (data.channels, data.classes) != (train.channels, train.classes):
        raise UserError(
            f"{words} has images of {data.channels} channels and the classes {', '.join(data.classes)}, train of "
            f"{train.channels} channels and {', '.join(train.classes)}"
        )


def require_each(data: Images, least: int, why: str) -> None:
    """Raise `UserError` if a class has fewer than `least` training images; `why` is said of that."""
    counts = torch.bincount(data.labels, minlength=len(data.classes)).tolist()
    few = {name: count for name, count in zip(data.classes, counts) if count < least}
    absent = [name for name, count in few.items() if not count]
    if absent:
        which = f"{len(absent)} of {len(data.classes)} classes have no training images: {some_of(absent)}"
    elif few:
        name, *others = few
        more = f" (and {len(others)} more have too few: {some_of(others)})" if others else ""
        which = f"class {name!r} has {few[name]} training images to use{more}; {why}"
    else:
        return
    others = ", or choose other splits" if absent else ""
    if isinstance(data, Images) and len(data.classes) - len(few) > 1:  # features in a file stay as they are
        words = flags({"leave_out": [*data.left_out, *few]}) if len(few) <= 10 else ["--leave_out"]
        others += f", or leave classes out, {' '.join(map(quoted, words))}"
    raise UserError(f"{which}. Add images{others}")


def require_named(setting: str, names: list[str] | None, classes: Collection[str]) -> None:
    """Raise `UserError` where a setting names a class that there is not."""
    for name in names or []:
        if name not in classes:
            known = f" ({shown(sorted(classes))})" if classes else "; the images have none"
            raise UserError(f"{setting}: {name!r} is none of the classes{nearest(name, classes)}{known}")
