"""Data sets by name. `load_as` reads a split of one as an `Images`."""

import contextlib
import os
from pathlib import Path

import torch

from ssl.augment import to_unit
from ssl.console import say_once
from ssl.data import preload, resident
from ssl.data.bad_images import tell_left_out
from ssl.data.decode import BadImage
from ssl.data.images import Images, evenly_spaced
from ssl.data.resident import SMALL, make_resident
from ssl.distributed import barrier, is_main
from ssl.errors import UserError
from ssl.settings.shared import DataSettings, ImageSettings, LabelSettings
from ssl.sources import arrays, lesions
from ssl.sources.classes import require_distinct
from ssl.sources.folders import SUBSETS, folder, imagenet
from ssl.sources.identity import require_same_images
from ssl.sources.labels import require_classes, without
from ssl.sources.shapes import CLASSES as SHAPE_CLASSES
from ssl.sources.shapes import shapes
from ssl.sources.slides import FOLDERS as SLIDES
from ssl.sources.slides import slides
from ssl.sources.table_images import table

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Name: (image size, mean, std of the training pixels in 0..1). None: they are measured.
KNOWN = {
    "shapes": (32, *IMAGENET),
    "CIFAR10": (32, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR100": (32, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "SVHN": (32, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "STL10": (96, (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
    "ImageNet": (224, *IMAGENET),
    "ImageNet50": (224, *IMAGENET),
    "ImageNet100": (224, *IMAGENET),
    "ImageNet200": (224, *IMAGENET),
    "folder": (224, *IMAGENET),
    "array": (224, None, None),
    "fake": (224, *IMAGENET),
    **dict.fromkeys([*lesions.TABLES, *SLIDES], (224, *IMAGENET)),
}
MADE = ("shapes", "fake")
EIGHT_BITS = (*MADE, "CIFAR10", "CIFAR100", "SVHN", "STL10")  # always 8 bits, so without a value range


def resolve_name(dataset: str | None, data_dir: str | None) -> str:
    """The name of the data set, from its name, perhaps another one, and the folder or file; both may be unset."""
    if dataset is None:
        is_array = data_dir is not None and data_dir.lower().endswith(arrays.SUFFIXES)
        return "array" if is_array else "folder" if data_dir else "shapes"
    dataset = lesions.OTHER_NAMES.get(dataset, dataset)
    if dataset not in KNOWN:
        lower = {name.lower(): name for name in KNOWN} | lesions.OTHER_NAMES
        hint = f"; did you mean {lower[dataset.lower()]}?" if dataset.lower() in lower else ""
        raise UserError(f"dataset: {dataset!r} is none of {', '.join(KNOWN)}{hint}")
    if dataset in MADE and data_dir:
        raise UserError(f"data_dir: {dataset} is made, not read; leave --data_dir out, or use --dataset folder")
    return dataset


def resolve(settings: DataSettings) -> None:
    """Set the name of the data set (`resolve_name`) and make paths absolute: config.yaml is read from any folder."""
    settings.dataset = resolve_name(settings.dataset, settings.data_dir)
    for name in ("data_dir", "csv", "class_list", "splits_folder"):
        if (path := getattr(settings, name)) is not None:
            setattr(settings, name, os.path.abspath(os.path.expanduser(path)))


def called(settings: ImageSettings) -> str:
    """What a folder of results is called after the images: their table, folder or file, else the data set."""
    if named := settings.csv or settings.data_dir if settings.dataset in ("folder", "array") else None:
        return os.path.basename(os.path.abspath(os.path.expanduser(named))) or "root"  # of /
    size = drawn_at(settings)
    return settings.dataset if size in (None, KNOWN[settings.dataset][0]) else f"{settings.dataset}_{size}"


def drawn_at(settings: ImageSettings) -> int | None:
    """The image size of a data set that is made: at another size it has other images. None of one that is read."""
    if settings.dataset not in MADE:
        return None
    return KNOWN[settings.dataset][0] if settings.image_size in (None, "auto") else settings.image_size


def load(name: str, data_dir: str | None, split: str, **others) -> Images | None:
    """`load_as` of a data set by its name and place; `others` are other fields of `ImageSettings`."""
    return load_as(ImageSettings(name, data_dir, **others), split)


def load_as(settings: ImageSettings, split: str) -> Images | None:
    """A split of the data set that `settings` name: 'train', 'val', 'test', 'all' or 'unlabelled'.

    'val' is None if the data set has no validation split of its own. 'unlabelled' is what to pre-train on: train, and
    images without labels where there are some (STL10). 'all' is what to test a model on that has learnt from none of
    the images: the test split, or all images if there are no splits. Images without splits are divided 90/10
    (`cut.cut`). With a `short_side` image files are then held in memory. All ranks call it. Raises `UserError` if the
    data is not there or not as expected, or if a rank finds other images than the first.
    """
    require_fitting(settings)
    data = problem = None
    try:
        data = _read(settings, split)
        if data is not None:
            require_distinct(data.classes, data.name)
            data = without(data, settings.leave_out, split)
        if data is not None:
            data = make_resident(data, settings.value_range)
    except UserError as error:  # perhaps on this rank alone
        problem = error
    require_same_images({split: problem or data}, settings.data_dir)
    return None if data is None else _held(data, settings)


def shown_alike(settings: ImageSettings, splits: dict[str, Images | None]) -> dict[str, Images | None]:
    """`resident.shown_alike` of splits that `load_as` has read. With a `short_side`, files are held as there."""
    alike = resident.shown_alike(splits)
    return {name: data if data is splits[name] else _held(data, settings) for name, data in alike.items()}


def _held(data: Images, settings: ImageSettings) -> Images:
    short_side = settings.short_side
    if short_side in (None, "auto"):
        return data
    if settings.image_size not in (None, "auto") and short_side < settings.image_size:
        say_once(
            f"data        *** short_side {short_side} is below image_size {settings.image_size}: images are reduced "
            "and then enlarged ***"
        )
    return preload.hold(data, short_side, short_side)


def _read(settings: ImageSettings, split: str) -> Images | None:
    name, data_dir = settings.dataset, settings.data_dir
    if name == "folder":
        root = existing(data_dir, name)
        return folder(root, split, settings.leave_out) if settings.csv is None else table(root, settings, split)
    if name == "array":
        return arrays.load(data_dir, split, settings.value_range)
    split = "test" if split == "all" else split
    if name in lesions.TABLES:
        return lesions.load(name, existing(data_dir, name), split, settings.csv, settings.splits_folder)
    if name in SLIDES:
        return slides(name, existing(data_dir, name), split, settings.csv, settings.test_slides)
    if split == "val":
        return None
    if name == "shapes":
        return _shapes(split, drawn_at(settings))
    if name == "fake":
        return _fake(split, drawn_at(settings), settings.seed or 0)
    if name.startswith("ImageNet"):
        return imagenet(existing(data_dir, name), name, split, settings.class_list)
    try:
        if settings.download and is_main():
            _torchvision(name, data_dir or "data", split, download=True)
    finally:  # also where that fails: the other ranks wait, and `load_as` tells all of them why
        barrier()  # they read what rank 0 has downloaded
    return _torchvision(name, data_dir or "data", split, download=False)


def load_labelled(settings: LabelSettings, split: str) -> Images | None:
    """`load_as`, and print which images cannot be read.

    Raises `UserError` where these are too many, and unless every image has one of at least two classes.
    """
    data = load_as(settings, split)
    if data is not None:
        tell_left_out(dict(data.bad), len(data) + len(data.bad), settings.max_bad_fraction)
        require_classes(data, settings.data_dir)
    return data


def normalisation(data: Images, mean: list[float] | None, std: list[float] | None) -> tuple[list[float], list[float]]:
    """(mean, std) of pixels in 0..1, a value for each channel: as given, or as known of the data set, or measured.

    They are measured on 1000 images, evenly spaced, and rounded to six digits, so that all machines agree. A constant
    channel gets std 1. Raises `UserError` if a given list does not have a value for each channel.
    """
    for name, given in (("mean", mean), ("std", std)):
        if given is not None and len(given) != data.channels:
            raise UserError(f"{name}: expected {data.channels} values, one a channel of {data.name}, got {given}")
    _, known_mean, known_std = KNOWN[data.name]
    if known_mean is None and (mean is None or std is None):
        moments = []
        for index in evenly_spaced(len(data), 1000):
            with contextlib.suppress(BadImage):  # an array's numbers outside its value range
                x = to_unit(data.pixels(index)).double().flatten(1)
                moments.append(torch.stack([x.mean(1), x.square().mean(1)]))
        mean_of_all, square = torch.stack(moments).mean(0)
        variance = square - mean_of_all.square()
        known_std = torch.where(variance > 1e-12, variance.sqrt(), 1.0)
        known_mean, known_std = ([float(f"{x:.6g}") for x in values.tolist()] for values in (mean_of_all, known_std))
    return list(mean or known_mean), list(std or known_std)


def require_fitting(settings: ImageSettings) -> None:
    """Raise `UserError` for settings of a table without a table, and for settings that the data set does not have."""
    name, with_table = settings.dataset, settings.csv is not None
    if settings.value_range is not None and name in EIGHT_BITS:
        raise UserError(f"value_range: is for image files and arrays; {name} uses the whole range of 8 bits")
    if with_table and name not in ("folder", *lesions.TABLES, *SLIDES):
        raise UserError("csv: names images of your own; pass their folder as --data_dir, and leave --dataset out")
    for setting in ("label_column", "positive", "group_column", "split_column"):
        if getattr(settings, setting) is not None and not (with_table and name == "folder"):
            known = f"; those of {name} are known" if name in (*lesions.TABLES, *SLIDES) else "; pass it as --csv FILE"
            raise UserError(f"{setting}: is for a table{known}")
    if settings.positive is not None and settings.label_column is None:
        raise UserError("positive: says which labels count as positive; pass their column as --label_column")
    if settings.image_column not in (None, "image") and not with_table:
        raise UserError("image_column: is for a table; pass it as --csv FILE")
    if settings.class_list is not None and name not in SUBSETS:
        raise UserError(f"class_list: goes with --dataset {', '.join(SUBSETS)}; this is {name}")
    if settings.splits_folder is not None and name != "isic2019":
        raise UserError("splits_folder: is for isic2019; name the splits of your own table with --split_column")
    if settings.test_slides is not None and name not in SLIDES:
        raise UserError(f"test_slides: is for data sets whose images are named after slides: {', '.join(SLIDES)}")


def existing(data_dir: str | None, name: str) -> Path:
    if data_dir is None:
        raise UserError(f"data_dir: {name} has to be read from somewhere; pass --data_dir FOLDER")
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise UserError(f"data_dir: {data_dir} is not a folder{' (it is a file)' if folder.exists() else ''}")
    return folder


# Made and downloaded data sets --------------------------------------------------


def _shapes(split: str, image_size: int) -> Images:
    if image_size > 2 * SMALL:
        raise UserError(
            f"image_size: to draw the built-in data set `shapes` at {image_size} pixels would take minutes and "
            "gigabytes; name your images with --data_dir or --dataset, or pass --image_size 32"
        )
    if image_size != KNOWN["shapes"][0]:
        say_once(f"drawn       `shapes` at {image_size} pixels: other images than at {KNOWN['shapes'][0]}")
    pixels, labels = shapes("test" if split == "test" else "train", image_size)
    return Images("shapes", labels, list(SHAPE_CLASSES), resident=pixels)


def _fake(split: str, image_size: int, seed: int) -> Images:
    """Noise with random labels, to measure throughput: as many images as CIFAR-10 has, or, if they are large, ImageNet.

    Small images are resident. Large ones are a pool of 64, a little larger than the views, as photographs are. Workers
    handle them like files, without reading or decoding.
    """
    small = image_size <= SMALL
    count = {True: (50_000, 10_000), False: (1_281_167, 50_000)}[small][split == "test"]
    side = image_size if small else round(image_size * 256 / 224)
    generator = torch.Generator().manual_seed(2 * (seed % 2**62) + (split == "test"))
    labels = torch.randint(10, (count,), generator=generator)
    shape = (count if small else 64, 3, side, side)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return Images("fake", labels, [str(i) for i in range(10)], **{"resident" if small else "pool": pixels})


def _torchvision(name: str, data_dir: str, split: str, download: bool) -> Images:
    from torchvision import datasets

    cls = getattr(datasets, name)
    if name in ("CIFAR10", "CIFAR100"):
        options = {"train": split != "test"}
    elif name == "STL10" and split == "unlabelled":
        options = {"split": "train+unlabeled"}
    else:
        options = {"split": "test" if split == "test" else "train"}
    try:
        data = cls(data_dir, download=download, **options)
    except ImportError as error:  # SVHN's files are MATLAB's
        raise UserError(f"dataset: torchvision reads {name} with a package that is not installed ({error})") from None
    except RuntimeError as error:
        raise UserError(
            f"data_dir: {name} is not in {data_dir} ({error}); pass --download, or the right --data_dir"
        ) from None
    except OSError as error:
        raise UserError(f"data_dir: {name} could not be read or downloaded ({error})") from None
    pixels = torch.from_numpy(data.data)
    if pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2).contiguous()
    labels = torch.as_tensor(data.targets if hasattr(data, "targets") else data.labels).long()
    return Images(name, labels, list(getattr(data, "classes", map(str, range(10)))), resident=pixels)
