"""Data sets by name. All look alike: `len`, `pixels(index)`, labels and class names.

A data set small enough (images of at most 64 pixels, as CIFAR) is held as one uint8 tensor,
`resident`; batches of it are cut and resized on the training device without workers.
"""

import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ssl.augment import to_unit
from ssl.data import arrays
from ssl.data.images import EXTENSIONS, BadImage, decode, list_images
from ssl.data.shapes import CLASSES as SHAPE_CLASSES
from ssl.data.shapes import shapes
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


@dataclass(frozen=True)
class Images:
    """N images: `resident` (N, C, H, W), or `paths`, or `stored` in a file (N, C, H, W), or a `pool` (P, C, H, W)
    shown over and over. Those from an array file may be uint16, all others are uint8.

    labels (N,) int64, -1 unlabelled. `bad` holds (path, reason) of files that were left out since
    they cannot be read.
    """

    name: str
    labels: Tensor
    classes: list[str]
    resident: Tensor | None = None
    paths: list[str] | None = None
    stored: arrays.Stack | None = None
    pool: Tensor | None = None
    bad: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Of every image. Files of images are decoded to RGB."""
        held = next((held for held in (self.resident, self.stored, self.pool) if held is not None), None)
        return 3 if held is None else held.shape[1]

    def pixels(self, index: int, reduction: Callable[[int, int], int] | None = None) -> Tensor:
        """Image `index` as (C, H, W); `reduction` as in `images.decode`. Raises `BadImage`."""
        if self.paths is not None:
            return decode(self.paths[index], reduction)
        held = self.resident if self.stored is None else self.stored
        pixels = held[index] if self.pool is None else self.pool[index % len(self.pool)]
        if reduction is not None:
            reduction(*pixels.shape[1:])  # whoever asks learns the size by this; these pixels stay as they are
        return pixels

    def sample_name(self, index: int) -> str:
        return self.paths[index] if self.paths is not None else f"{self.name}/{index}"

    def fingerprint(self, root: str | None) -> str:
        """Which images these are: number and checksum, of names below `root` or else of labels and some pixels."""
        if self.paths is None:
            seen = zlib.crc32(self.labels.numpy().tobytes())
            for index in spread(len(self), 50):
                seen = zlib.crc32(self.pixels(index).numpy().tobytes(), seen)
            return f"{len(self)} images, labels and pixels {seen:08x}"
        names = "\n".join(path.removeprefix(str(root)) for path in self.paths)
        return f"{len(self)} images, names {zlib.crc32(os.fsencode(names)):08x}"

    def subset(self, indices: Tensor) -> "Images":
        return replace(
            self,
            labels=self.labels[indices],
            resident=None if self.resident is None else self.resident.index_select(0, indices),
            paths=None if self.paths is None else [self.paths[i] for i in indices.tolist()],
            stored=None if self.stored is None else self.stored.subset(indices.numpy()),
        )


def spread(count: int, most: int) -> range:
    """At most `most` of `count` indices, evenly spread."""
    return range(0, count, max(1, -(-count // most)))


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
    seed: int = 0,
) -> Images:
    """Split 'train', 'test' or 'unlabelled' (what to pre-train on) of a data set.

    'unlabelled' is train except where a data set has more images without labels (STL10). A
    class folder without splits is cut 90/10 by `seed`. Raises `UserError` where the data is not
    there or not what it should be.
    """
    if name == "shapes":
        pixels, labels = shapes("test" if split == "test" else "train", image_size or 32)
        return Images(name, labels, list(SHAPE_CLASSES), resident=pixels)
    if name == "fake":
        return _fake(split, image_size or KNOWN[name][0], seed)
    if name == "folder":
        data = _folder(_existing(data_dir, name), split, seed)
    elif name == "array":
        data = _array(data_dir, split, seed)
    elif name.startswith("ImageNet"):
        data = _imagenet(_existing(data_dir, name), name, split, class_list)
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


def split_validation(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (train, validation): `fraction` of every class, at random by `seed`, at least one where it has two."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        of_class = order[labels[order] == label]
        count = round(len(of_class) * fraction) or int(len(of_class) > 1)
        held[of_class[:count]] = True
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def _existing(data_dir: str | None, name: str) -> Path:
    if data_dir is None:
        raise UserError(f"data_dir: {name} has to be read from somewhere; pass --data_dir FOLDER")
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise UserError(f"data_dir: {data_dir} is not a folder{' (it is a file)' if folder.exists() else ''}")
    return folder


# Folders ----------------------------------------------------------------------


def _folder(root: Path, split: str, seed: int) -> Images:
    """ROOT/{train,val|test}/CLASS/*, or ROOT/CLASS/*, or images without classes."""
    if (root / "train").is_dir():
        train = _tree(root / "train")
        if split != "test":
            return train
        other = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
        if other is None:
            raise UserError(f"data_dir: {root} has train/ but neither test/ nor val/ to judge on")
        test = _tree(other)
        _same_classes(train, test, root / "train", other)
        return test
    return _cut(_tree(root), split, seed, f"{root} holds images without class folders")


def _cut(everything: Images, split: str, seed: int, unlabelled: str) -> Images:
    """`split` of images that come without splits: nine tenths or the last tenth of every class, all if without."""
    if not everything.classes:
        if split == "test":
            raise UserError(f"data_dir: {unlabelled}; without labels there is nothing to judge")
        return everything
    train, test = split_validation(everything.labels, 0.1, seed)
    return everything.subset(test if split == "test" else train)


def _tree(folder: Path) -> Images:
    """All images below a folder; the first folder below it is the class, if every image is in one."""
    files = list_images(folder)
    if not files:
        raise UserError(f"data_dir: {folder} has no images (looked for {', '.join(sorted(EXTENSIONS))})")
    paths = [str(folder / path) for path in files]
    if any(len(path.parts) == 1 for path in files):
        return Images("folder", torch.full((len(files),), -1), [], paths=paths)
    classes = sorted({path.parts[0] for path in files})
    number = {name: label for label, name in enumerate(classes)}
    empty = [entry.name for entry in folder.iterdir()
             if entry.is_dir() and not entry.name.startswith(".") and entry.name not in number]  # fmt: skip
    if empty:
        raise UserError(f"data_dir: class folder {folder / sorted(empty)[0]} has no images; fill or remove it")
    return Images("folder", torch.tensor([number[path.parts[0]] for path in files]), classes, paths=paths)


def _same_classes(train: Images, test: Images, train_dir: Path, test_dir: Path) -> None:
    for here, there, where in ((train, test, test_dir), (test, train, train_dir)):
        missing = sorted(set(here.classes) - set(there.classes))
        if missing:
            raise UserError(
                f"data_dir: class {missing[0]!r} is not in {where}"
                + (f" (nor are {len(missing) - 1} more)" if len(missing) > 1 else "")
                + "; both splits need the same class folders"
            )


def _imagenet(root: Path, name: str, split: str, class_list: str | None) -> Images:
    """ROOT/{train,val}/wnid/*.JPEG; for a subset only the classes of `class_list`, in its order."""
    folder = root / ("val" if split == "test" else "train")
    if not folder.is_dir():
        raise UserError(f"data_dir: {root} is not ImageNet: there is no {folder.name}/ of class folders in it")
    if name == "ImageNet":
        if class_list:
            raise UserError("class_list: goes with ImageNet50, ImageNet100 or ImageNet200")
        data = replace(_tree(folder), name=name)
        if len(data.classes) != 1000:
            raise UserError(
                f"data_dir: {root} is not ImageNet: {folder.name}/ has {len(data.classes)} class folders, not 1000. "
                "For images of your own leave --dataset away"
            )
        return data
    if class_list is None:
        raise UserError(f"class_list: {name} needs a file with a line 'wnid name' for each class")
    wnids, names = read_class_list(class_list)
    expected = int(name.removeprefix("ImageNet"))
    if len(wnids) != expected:
        raise UserError(f"class_list: {class_list} lists {len(wnids)} classes, {name} has {expected}")
    paths, labels = [], []
    for label, wnid in enumerate(wnids):
        files = list_images(folder / wnid) if (folder / wnid).is_dir() else []
        if not files:
            raise UserError(f"data_dir: {folder / wnid} has no images, but {class_list} lists {wnid}")
        paths += [str(folder / wnid / file) for file in files]
        labels += [label] * len(files)
    return Images(name, torch.tensor(labels), names, paths=paths)


def read_class_list(path: str) -> tuple[list[str], list[str]]:
    """Lines 'wnid name' -> (wnids, names); a class's label is its line number from 0."""
    try:
        lines = [line.split(maxsplit=1) for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"class_list: cannot read {path} ({error})") from None
    wnids = [line[0] for line in lines]
    for wnid in wnids:
        if "/" in wnid or wnid in (".", "..") or wnids.count(wnid) > 1:
            raise UserError(f"class_list: {wnid!r} in {path} is no class folder's name, or stands there twice")
    return wnids, [line[-1].strip() for line in lines]


# Others -----------------------------------------------------------------------


def _array(data_dir: str | None, split: str, seed: int) -> Images:
    """A .npz or .npy file, with or without splits of its own."""
    path = Path(data_dir or "").expanduser()
    if not path.is_file() or path.suffix.lower() not in arrays.SUFFIXES:
        raise UserError(f"data_dir: {data_dir} is not a file; dataset array is read from a .npz or .npy file")
    stored, labels, classes, is_split = arrays.read(path, split)
    data = Images("array", labels, classes, stored=stored)
    return data if is_split else _cut(data, split, seed, f"{path} holds images without labels")


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
