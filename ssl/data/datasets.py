"""Data sets by name. All look alike: `len`, `pixels(index)`, labels and class names.

A data set small enough (images of at most 64 pixels, as CIFAR) is held as one tensor,
`resident`; batches of it are cut and resized on the training device without workers.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ssl.augment import to_unit
from ssl.data import arrays
from ssl.data.folders import folder, imagenet
from ssl.data.images import BadImage, Images, Paths, cut, spread
from ssl.data.shapes import CLASSES as SHAPE_CLASSES
from ssl.data.shapes import shapes
from ssl.data.tables import labelled_images
from ssl.distributed import barrier, is_main
from ssl.errors import UserError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# name: (image size, mean, std). Statistics of the training pixels, in 0..1; None: measured.
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
}
SMALL = 64  # pixels: up to here an image counts as small
RESIDENT_BYTES = 4 << 30


def resolve_name(dataset: str | None, data_dir: str | None) -> str:
    """The data set that is meant where only one of the two settings, or none, was given."""
    if dataset is None:
        is_array = data_dir is not None and data_dir.lower().endswith(arrays.SUFFIXES)
        return "array" if is_array else "folder" if data_dir else "shapes"
    if dataset not in KNOWN:
        lower = {name.lower(): name for name in KNOWN}
        hint = f"; did you mean {lower[dataset.lower()]}?" if dataset.lower() in lower else ""
        raise UserError(f"dataset: {dataset!r} is none of {', '.join(KNOWN)}{hint}")
    if dataset in ("shapes", "fake") and data_dir:
        raise UserError(f"data_dir: {dataset} is made, not read; leave --data_dir away, or use --dataset folder")
    return dataset


def load(
    name: str,
    data_dir: str | None,
    split: str,
    *,
    image_size: int | None = None,
    download: bool = False,
    class_list: str | None = None,
    csv: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
) -> Images:
    """Split 'train', 'test' or 'unlabelled' (what to pre-train on) of a data set.

    'unlabelled' is train except where a data set has more images without labels (STL10). A
    class folder without splits, or a table, is cut 90/10 by `seed`. Raises `UserError` where the data is not
    there or not what it should be.
    """
    if csv is not None and name != "folder":
        raise UserError("csv: names images of your own; pass their folder as --data_dir, and leave --dataset away")
    if csv is None and label_column is not None:
        raise UserError("label_column: is of a table; pass it as --csv FILE")
    if name == "shapes":
        pixels, labels = shapes("test" if split == "test" else "train", image_size or 32)
        return Images(name, labels, list(SHAPE_CLASSES), resident=pixels)
    if name == "fake":
        return _fake(split, image_size or KNOWN[name][0], seed)
    if name == "folder":
        root = _existing(data_dir, name)
        table = csv, image_column or "image", label_column
        data = folder(root, split, seed) if csv is None else _table(root, *table, split, seed)
    elif name == "array":
        data = _array(data_dir, split, seed)
    elif name.startswith("ImageNet"):
        data = imagenet(_existing(data_dir, name), name, split, class_list)
    else:
        if download and is_main():
            _torchvision(name, data_dir or "data", split, download)
        barrier()  # the others read what rank 0 fetched
        data = _torchvision(name, data_dir or "data", split, False)
    return _make_resident(data)


def normalisation(data: Images, mean: list[float] | None, std: list[float] | None) -> tuple[list[float], list[float]]:
    """(mean, std) by channel of pixels in 0..1: as given, or as known of the data set, or else measured.

    Measured on 1000 images, evenly spread; a channel that is the same everywhere has std 1. Raises
    `UserError` unless what is given has one value a channel.
    """
    for name, given in (("mean", mean), ("std", std)):
        if given is not None and len(given) != data.channels:
            raise UserError(f"{name}: expected {data.channels} values, one a channel of {data.name}, got {given}")
    _, known_mean, known_std = KNOWN[data.name]
    if known_mean is None and (mean is None or std is None):
        sample = [to_unit(data.pixels(index)).double().flatten(1) for index in spread(len(data), 1000)]
        known_mean = torch.stack([x.mean(1) for x in sample]).mean(0)
        variance = torch.stack([((x - known_mean[:, None]) ** 2).mean(1) for x in sample]).mean(0)
        known_std = torch.where(variance > 1e-12, variance.sqrt(), 1.0).tolist()
        known_mean = known_mean.tolist()
    return list(mean or known_mean), list(std or known_std)


def _existing(data_dir: str | None, name: str) -> Path:
    if data_dir is None:
        raise UserError(f"data_dir: {name} has to be read from somewhere; pass --data_dir FOLDER")
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise UserError(f"data_dir: {data_dir} is not a folder{' (it is a file)' if folder.exists() else ''}")
    return folder


# Tables -----------------------------------------------------------------------


def _table(root: Path, csv: str, image_column: str, label_column: str | None, split: str, seed: int) -> Images:
    """The images below ROOT that a table names, of the classes that one of its columns holds."""
    paths, labels = zip(*labelled_images(root, csv, image_column, label_column))
    classes = sorted(set(labels) - {None})
    number = {name: label for label, name in enumerate(classes)}
    numbers = torch.tensor([number.get(label, -1) for label in labels])
    everything = Images("folder", numbers, classes, paths=Paths(paths))
    return cut(everything, split, seed, f"label_column: is not set, so the images of {csv} have no classes")


# Others -----------------------------------------------------------------------


def _array(data_dir: str | None, split: str, seed: int) -> Images:
    """A .npz or .npy file, with or without splits of its own."""
    path = Path(data_dir or "").expanduser()
    if not path.is_file() or path.suffix.lower() not in arrays.SUFFIXES:
        raise UserError(f"data_dir: {data_dir} is not a file; dataset array is read from a .npz or .npy file")
    stored, labels, classes, is_split = arrays.read(path, split)
    data = Images("array", labels, classes, stored=stored)
    return data if is_split else cut(data, split, seed, f"data_dir: {path} holds images without labels")


def _fake(split: str, image_size: int, seed: int) -> Images:
    """Noise with random labels, for measuring throughput: as many images as CIFAR-10 or, if large, ImageNet has.

    Small ones are resident. Large ones are a pool of 64, a little larger than the views as
    stored photographs are, and take the way of files without being read or decoded.
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


def _make_resident(data: Images) -> Images:
    """Hold a file data set in memory if its images are small and all of one size; without those that cannot be read."""
    if data.resident is not None:
        return data
    first = _first_readable(data)
    if max(first.shape[1:]) > SMALL or len(data) * first.numel() > RESIDENT_BYTES:
        return data
    resident = torch.empty(len(data), *first.shape, dtype=first.dtype)
    bad: dict[int, tuple[str, str]] = {}

    def read(index: int) -> bool:
        try:
            pixels = data.pixels(index)
        except BadImage as error:
            bad[index] = error.path, error.reason
            return True
        if pixels.shape != first.shape:
            return False
        resident[index] = pixels
        return True

    with ThreadPoolExecutor(8) as pool:  # Pillow decodes outside the interpreter lock
        same = all(pool.map(read, range(len(data)), chunksize=256))
    if not same:
        return data
    data = replace(data, resident=resident, stored=None, bad=tuple(bad[index] for index in sorted(bad)))
    if not bad:
        return data
    good = torch.ones(len(data), dtype=torch.bool)
    good[list(bad)] = False
    return data.subset(good.nonzero()[:, 0])


def _first_readable(data: Images) -> Tensor:
    for index in range(len(data)):
        try:
            return data.pixels(index)
        except BadImage as error:
            if index == min(len(data) - 1, 100):
                raise UserError(f"data_dir: none of the first {index + 1} images can be read; {error}") from None
    raise AssertionError("a data set has images")
