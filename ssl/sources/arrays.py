"""Images in a file of numpy arrays: a .npz like those of MedMNIST, or a .npy of images without labels.

A .npz holds {train,val,test}_images and {train,val,test}_labels, or `images` and `labels`; labels may be left
out. Images are (N, H, W) or (N, H, W, C), with 1 to 16 channels, uint8 or uint16; with a value range also other
integers and floating-point numbers, of at most 64 bits. Labels are read by `array_labels.one_class_each`. A line names
the other arrays of the file, which are not read.
"""

import contextlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssl.console import say_once, some_of
from ssl.data.decode import Range, require_fitting
from ssl.data.images import Images
from ssl.data.memory import free_memory
from ssl.data.stack import Stack
from ssl.errors import UserError, nearest
from ssl.sources.array_labels import EXPECTED, one_class_each, refuse_signs
from ssl.sources.classes import one_form, require_names
from ssl.sources.splits import as_judged, part, split_of
from ssl.sources.unsplit import cut_if_labelled, unsplit, with_labels

SUFFIXES = (".npz", ".npy")
INSTEAD = "train_images and test_images would be splits of your own"
CHANNELS = 16  # at most


def load(data_dir: str | None, split: str, value_range: Range | None) -> Images | None:
    """A split of a .npz or .npy file."""
    path = _file(data_dir)
    found = read(path, split, value_range, split != "unlabelled")
    if found is None:
        return None
    stored, labels, classes, is_split = found
    data = Images("array", labels, classes, stored=stored)
    missing = int((labels < 0).sum()) if classes else 0
    if missing:
        say_once(
            f"labels      {missing} of {len(data)} images of {path} have none (a negative number or an empty "
            "text): judging and fine-tuning leave them out"
        )
    if is_split:
        return data if split == "unlabelled" else with_labels(data, f"the split {split!r} of {path}")
    return unsplit(data, split, None, str(path), INSTEAD, f"data_dir: {path} holds images without labels")


def by_split(data_dir: str | None, value_range: Range | None) -> dict[str, Images]:
    """{split: all its images} of a .npz or .npy file, with labels or without."""
    path, found = _file(data_dir), {}
    for split in _splits(path):
        stored, labels, classes, is_split = read(path, split, value_range, False)
        found[split] = Images("array", labels, classes, stored=stored)
    return found if is_split else cut_if_labelled(found["unlabelled"], None, str(path), INSTEAD)


def _file(data_dir: str | None) -> Path:
    path = Path(data_dir or "").expanduser()
    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        raise UserError(f"data_dir: {data_dir} is not a file; dataset array is read from a .npz or .npy file")
    return path


def _splits(path: Path) -> list[str]:
    """What `read` finds in a file: its splits, or 'unlabelled' for all images of a file without splits."""
    if path.suffix.lower() == ".npy":
        return ["unlabelled"]
    with _readable(path), np.load(path, allow_pickle=False) as file:
        names = file.files
    prefixes = _prefixes(path, names)
    return list(as_judged(prefixes, str(path))) or ["unlabelled"]


def read(
    path: Path, split: str, value_range: Range | None = None, needed: bool = True
) -> tuple[Stack, Tensor, list[str], bool] | None:
    """(images, labels (N,), class names, whether the file has splits) for a split of `datasets.load_as`.

    None for 'val' unless the file has both val and test. If the file has no labels, they are -1, and there are no
    classes; the same if the labels are not `needed`, and are not one class for every image. Raises `UserError` for a
    file that is not as described above.
    """
    if path.suffix.lower() == ".npy":
        if split == "val":
            return None
        with _readable(path):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        images = _images(array, str(path), value_range)
        return _stack(images, value_range), torch.full((len(images),), -1), [], False
    with _readable(path):
        file = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise UserError(f"data_dir: {path} is one array, not a .npz of several; name it .npy")
    with file:
        prefixes = _prefixes(path, file.files)
        name = "" if "" in prefixes and split != "val" else part(prefixes, split, str(path))
        if name is None:
            return None
        if name not in prefixes:
            raise UserError(
                f"data_dir: {path} has neither images nor {name}_images, but {', '.join(file.files) or 'nothing'}; "
                "expected arrays named train_images, train_labels, test_images, test_labels, or images, labels"
            )
        prefix = prefixes[name]
        images = _images(_member(path, file, f"{prefix}images"), f"{prefix}images in {path}", value_range)
        labels, classes = _labels(path, file, prefix, list(prefixes.values()), len(images), needed)
    return _stack(images, value_range), labels, classes, prefix != ""


@contextlib.contextmanager
def _readable(path: Path):
    """Raise the many errors that numpy and zipfile have for damaged files and Python objects as `UserError`."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        advice = "; save text with .astype(str)" if "allow_pickle" in reason else ""
        raise UserError(
            f"data_dir: {path} cannot be read as numpy arrays ({type(error).__name__}: {reason}){advice}"
        ) from None


def _stack(images: np.ndarray, value_range: Range | None) -> Stack:
    return Stack(images, np.arange(len(images)), value_range)


def _prefixes(path: Path, names: list[str]) -> dict[str, str]:
    """{split: the beginning of its arrays' names}; {'': ''} if the file has no splits."""
    found = {}
    for name in ["images"] if "images" in names else names:
        prefix = name.removesuffix("images")
        split = split_of(prefix.removesuffix("_")) if prefix else ""
        if not name.endswith("images") or split is None:
            continue
        if split in found:
            raise UserError(f"data_dir: {path} has {found[split]}images and {name}, both the split {split!r}; keep one")
        found[split] = prefix
    read = [f"{prefix}{kind}" for prefix in found.values() for kind in ("images", "labels")]
    unread = [name for name in names if name not in read]
    if found and unread:
        absent = [name for name in read if name not in names]
        hint = next(filter(None, (nearest(name, absent) for name in unread)), "")
        say_once(f"data        arrays of {path} that are not read: {some_of(unread)}{hint}")
    return found


def _member(path: Path, file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """An array of a .npz, unpacked into memory."""
    size = sum(member.file_size for member in file.zip.infolist() if member.filename == f"{name}.npy")
    free, whose = free_memory()
    if size > free:
        raise UserError(
            f"data_dir: {name} in {path} takes {size / 2**30:.1f} GiB, and {whose} has {free / 2**30:.1f} GiB free; "
            "save the images alone as a .npy, which is read from the disk"
        )
    with _readable(path):
        return np.asarray(file[name])  # a member that is no array comes as bytes; later checks refuse that type


def _images(array: np.ndarray, where: str, value_range: Range | None) -> np.ndarray:
    """The array as (N, H, W, C). Raises `UserError` for another shape or type."""
    whole = array.dtype.newbyteorder("=") in (np.uint8, np.uint16)
    if not whole and (array.dtype.kind not in "iuf" or array.dtype.itemsize > 8):
        raise UserError(f"data_dir: {where} has numbers of type {array.dtype}; expected uint8 or uint16")
    if not whole and value_range is None:
        raise UserError(
            f"data_dir: {where} has numbers of type {array.dtype}; expected uint8 or uint16, or --value_range BLACK "
            "WHITE, which says what part of their range is used"
        )
    if value_range is not None:
        try:
            require_fitting(f"numbers of type {array.dtype}", np.iinfo(array.dtype).max if whole else None, value_range)
        except ValueError as error:
            raise UserError(f"data_dir: {where} {error}") from None
    images = array[..., None] if array.ndim == 3 else array
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[2] == images.shape[3] not in (1, 3):
        raise UserError(
            f"data_dir: {where} has shape {array.shape}, like images (N, C, H, W); expected (N, H, W, C), channels C "
            "in last place: save images.transpose(0, 2, 3, 1)"
        )
    if images.ndim != 4 or images.shape[-1] > CHANNELS or 0 in images.shape:
        raise UserError(
            f"data_dir: {where} has shape {array.shape}; expected images (N, H, W), or (N, H, W, C) with at most "
            f"{CHANNELS} channels C in last place. Volumes are not read: save their slices as images"
        )
    return images


def _labels(
    path: Path, file: np.lib.npyio.NpzFile, prefix: str, prefixes: list[str], count: int, needed: bool
) -> tuple[Tensor, list[str]]:
    """(labels (N,), names of the classes). The labels of all splits together are the classes."""
    unlabelled = torch.full((count,), -1)
    if f"{prefix}labels" not in file.files:
        return unlabelled, []
    names = [f"{part}labels" for part in prefixes if f"{part}labels" in file.files]
    found = {name: _member(path, file, name) for name in names}
    own = found[f"{prefix}labels"]
    if own.ndim == 0 or len(own) != count:
        raise UserError(f"data_dir: {path} has {count} {prefix}images but {own.size} {prefix}labels")
    try:
        raw, found = found, {name: one_class_each(array, f"{name} in {path}") for name, array in found.items()}
        if len({array.dtype.kind for array in found.values()}) > 1:
            raise UserError(f"data_dir: of {', '.join(names)} in {path} some are text, others numbers; choose one")
        refuse_signs(list(raw.values()), f"{', '.join(names)} in {path}")
        classes = np.unique(np.concatenate(list(found.values())))
        if classes.dtype.kind == "U":
            one = one_form(classes.tolist(), f"the labels of {path}")
            found = {name: np.array([one.get(word, word) for word in words], str) for name, words in found.items()}
            classes = np.unique(np.concatenate(list(found.values())))
            require_names(classes[classes != ""].tolist(), str(path), "data_dir", EXPECTED)
    except UserError as error:
        if needed:
            raise
        say_once(f"labels      not used: {str(error).removeprefix('data_dir: ')}")
        return unlabelled, []
    classes = classes[(classes != "") if classes.dtype.kind == "U" else (classes >= 0)]
    own = found[f"{prefix}labels"]
    labels = np.where(np.isin(own, classes), np.searchsorted(classes, own), -1)
    return torch.from_numpy(labels), [str(name) for name in classes]
