"""The images that `finetune.py --predict` names, all of them in one sequence. Folders are no classes and no splits."""

import os
from pathlib import Path

import torch

from ssl.data.images import Images
from ssl.data.tables import read_table
from ssl.errors import UserError
from ssl.settings.shared import DATA, ImageSettings
from ssl.sources import arrays, datasets
from ssl.sources.folders import images_below
from ssl.sources.identity import require_same_images
from ssl.sources.lookup import find_images


def take(settings) -> None:
    """Make the images of --predict the data set of finetune.py's `settings`.

    Raises `UserError` where these name no model, or other images, or labels.
    """
    if settings.model_path is None:
        raise UserError("predict: needs --model_path, the run folder of a fine-tuning or its best.pt")
    if settings.test_only or settings.init is not None:
        raise UserError("predict: goes without --test_only and --init; --model_path names the model")
    for name in DATA:
        if getattr(settings, name) is not None and name not in ("csv", "image_column"):
            raise UserError(
                f"{name}: does not go with --predict, which names the images and takes all of them, without labels; "
                "leave it out, or score against labels with --test_only"
            )
    settings.data_dir = settings.predict
    datasets.resolve(settings)


def load(settings: ImageSettings) -> Images:
    """All images below the folder, in byte order of their paths; or those of the table; or one file; or an array.

    They have no labels and no classes. All ranks call it. Raises `UserError` where there is no image, or where ranks
    find others.
    """
    data = _listed(settings)
    require_same_images({"predict": data}, settings.data_dir)
    return data


def _listed(settings: ImageSettings) -> Images:
    path = Path(settings.data_dir)
    if settings.dataset == "array":
        return _array(path, settings)
    if settings.csv is not None and path.is_dir():
        rows = read_table(settings.csv, [settings.image_column or "image"])
        found = sorted(find_images(path, [name for (name,) in rows]), key=os.fsencode)
    elif settings.csv is None and path.is_file():
        found = [str(path)]
    elif path.is_dir():
        found = [str(path / file) for file in images_below(path, "predict")]
    else:
        expected = "a folder" if settings.csv is not None else "a folder, an image or an array (.npy, .npz)"
        raise UserError(f"predict: {path} is not {expected}")
    return Images.of_files(found)


def _array(path: Path, settings: ImageSettings) -> Images:
    if settings.csv is not None:
        raise UserError("csv: names files in a folder; leave it out to predict the images of an array")
    if not path.is_file():
        raise UserError(f"predict: {path} is not there")
    stored, _, _, is_split = arrays.read(path, "unlabelled", settings.value_range, needed=False)
    if is_split:
        raise UserError(f"predict: {path} has splits; save the images to predict as a .npy, or as `images` of a .npz")
    return Images("array", torch.full((len(stored),), -1), [], stored=stored)
