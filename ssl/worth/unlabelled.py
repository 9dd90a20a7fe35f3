"""More images to pre-train on, without labels: which they are, and a folder of links to them."""

import os
import re
from pathlib import Path

import numpy as np

from ssl.checkpoints import image_keys
from ssl.console import counted, say, some_of
from ssl.data.images import Images
from ssl.errors import UserError
from ssl.settings.shared import ImageSettings
from ssl.sources import datasets
from ssl.sources.folders import images_below


def find(settings: ImageSettings, folder: str, judges: list[Images]) -> Images:
    """All training images and those of `folder`, as files without labels.

    Images that are among `judges`, byte for byte, are left out, and those that are training images are not taken twice.
    Raises `UserError` where the images are no files, or nothing is left.
    """
    train = datasets.load_as(settings, "unlabelled")
    if train.paths is None:
        raise UserError("unlabelled: goes with images in files; those of an array or a known data set have none")
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"unlabelled: {folder} is not a folder; expected one with images, nested or not")
    more = Images.of_files([str(root.resolve() / path) for path in images_below(root, "unlabelled")])
    keys, of_train, *of_judges = (image_keys.find(one, "", ["file"])["file"] for one in (more, train, *judges))
    judging, in_train = (np.isin(keys, known[known > 0]) for known in (np.concatenate(of_judges), of_train))
    _, first = np.unique(keys, return_index=True)
    new = np.zeros(len(keys), bool)
    new[first] = True
    new |= keys == 0  # not readable now: train.py says so
    taken = [path for path, takes in zip(more.paths, new & ~judging & ~in_train) if takes]
    if judging.any():
        count = counted(int(judging.sum()), "image")
        say(f"unlabelled  *** left out: {count} of {folder} that test or validation has, too ***")
    if not taken:
        raise UserError(f"unlabelled: all {len(more)} images of {folder} are among the images with labels already")
    say(f"unlabelled  {len(taken)} of {len(more)} images of {folder} join {len(train)} in pre-training")
    return Images.of_files([*train.paths, *taken])


def link(data: Images, place: Path) -> None:
    """Make `place` a folder of links to exactly these images; other links of an earlier start are removed.

    Raises `UserError` where it holds anything else.
    """
    place.mkdir(parents=True, exist_ok=True)
    there = {old.name: os.readlink(old) if old.is_symlink() else None for old in place.iterdir()}
    if others := [name for name, target in there.items() if target is None or not re.match(r"\d{8}(\.|$)", name)]:
        raise UserError(
            f"output_dir: {place} is for links to images and holds other files: {some_of(others)}; choose an empty "
            "or a new folder"
        )
    targets = {f"{number:08}{os.path.splitext(path)[1]}": path for number, path in enumerate(data.paths)}
    for name, target in there.items():
        if targets.get(name) != target:
            (place / name).unlink()
    for name in targets.keys() - set(os.listdir(place)):
        (place / name).symlink_to(targets[name])
