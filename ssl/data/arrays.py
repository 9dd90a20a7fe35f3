"""Images in one file of numpy arrays: .npz as MedMNIST's, or a .npy of images alone.

A .npz holds {train,val,test}_images and {train,val,test}_labels, or `images` and `labels`; labels may be left
out. Images are (N, H, W) or (N, H, W, C), uint8 or uint16, with 1 to 16 channels; labels are class numbers,
(N,) or (N, 1), negative where there is none.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssl.errors import UserError

SUFFIXES = (".npz", ".npy")
CHANNELS = 16  # at most


@dataclass(frozen=True)
class Stack:
    """Images (N, C, H, W): the `rows` of an array (…, H, W, C), which may lie on the disk."""

    array: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(np.array(self.array[self.rows[index]])).permute(2, 0, 1)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        height, width, channels = self.array.shape[1:]
        return len(self), channels, height, width

    def subset(self, indices: np.ndarray) -> "Stack":
        return Stack(self.array, self.rows[indices])

    def __reduce__(self):
        """A process that is sent this maps the file for itself instead of being sent its content."""
        if isinstance(self.array, np.memmap):
            return _mapped_rows, (str(self.array.filename), self.rows)
        return Stack, (self.array, self.rows)


def _mapped_rows(path: str, rows: np.ndarray) -> Stack:
    return Stack(_mapped(Path(path)), rows)


def read(path: Path, split: str) -> tuple[Stack, Tensor, list[str], bool] | None:
    """(images, labels (N,), class names, whether they are a split of their own) for a split of `datasets.load`.

    None for 'val' where there are not both val and test. Labels are -1, and there are no
    classes, where the file does not have one class number an image. Raises `UserError` for a
    file that is not as described above.
    """
    if path.suffix.lower() == ".npy":
        if split == "val":
            return None
        images = _mapped(path)
        return _stack(images), torch.full((len(images),), -1), [], False
    with _readable(path):
        file = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise UserError(f"data_dir: {path} is one array, not a .npz of several; name it .npy")
    with file:
        if split == "val" and ("images" in file.files or not {"val_images", "test_images"} <= set(file.files)):
            return None
        prefix = _prefix(path, file.files, split)
        images = _images(_member(path, file, f"{prefix}images"), f"{prefix}images in {path}")
        labels, classes = _labels(path, file, prefix, len(images))
    return _stack(images), labels, classes, prefix != ""


@contextlib.contextmanager
def _readable(path: Path):
    """Make one `UserError` of the many errors that numpy and zipfile have for damaged files and Python objects."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"data_dir: {path} cannot be read as numpy arrays ({type(error).__name__}: {reason})") from None


def _mapped(path: Path) -> np.ndarray:
    with _readable(path):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    return _images(array, str(path))


def _stack(images: np.ndarray) -> Stack:
    return Stack(images, np.arange(len(images)))


def _prefix(path: Path, names: list[str], split: str) -> str:
    """How the names of this split's arrays begin: nothing where the file is not split."""
    if "images" in names:
        return ""
    wanted = {"test": ("test_", "val_"), "val": ("val_",)}.get(split, ("train_",))
    for prefix in wanted:
        if f"{prefix}images" in names:
            return prefix
    raise UserError(
        f"data_dir: {path} has neither images nor {wanted[0]}images, but {', '.join(names) or 'nothing'}; expected "
        "arrays named train_images, train_labels, test_images, test_labels, or images, labels"
    )


def _member(path: Path, file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """An array of a .npz, which has to be unpacked into memory."""
    size = sum(member.file_size for member in file.zip.infolist() if member.filename == f"{name}.npy")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise UserError(
            f"data_dir: {name} in {path} takes {size / 2**30:.0f} GiB, and this machine has {memory / 2**30:.0f}; "
            "save the images alone as a .npy, which is read from the disk"
        )
    with _readable(path):
        return np.asarray(file[name])  # a member that is no array comes as bytes, and is refused by its type


def _images(array: np.ndarray, where: str) -> np.ndarray:
    """The array as (N, H, W, C), once it can only be that."""
    if array.dtype not in (np.uint8, np.uint16):
        raise UserError(f"data_dir: {where} has numbers of type {array.dtype}; expected uint8 or uint16")
    images = array[..., None] if array.ndim == 3 else array
    if images.ndim != 4 or images.shape[-1] > CHANNELS or 0 in images.shape:
        raise UserError(
            f"data_dir: {where} has shape {array.shape}; expected images (N, H, W), or (N, H, W, C) with at most "
            f"{CHANNELS} channels C in last place. Volumes are not read: save their slices as images"
        )
    return images


def _labels(path: Path, file: np.lib.npyio.NpzFile, prefix: str, count: int) -> tuple[Tensor, list[str]]:
    """(labels (N,), names of the classes): every number that stands in any split is a class."""
    unlabelled = torch.full((count,), -1)
    if f"{prefix}labels" not in file.files:
        return unlabelled, []
    found = {}
    for name in file.files:
        if name.endswith("labels"):
            numbers = _member(path, file, name)
            if numbers.dtype.kind not in "iu" or numbers.ndim == 0 or numbers.size != len(numbers):
                return unlabelled, []  # several labels an image, or quantities: nothing the judges could use
            found[name] = numbers.reshape(-1).astype(np.int64)
    own, classes = found[f"{prefix}labels"], np.unique(np.concatenate(list(found.values())))
    if len(own) != count:
        raise UserError(f"data_dir: {path} has {count} {prefix}images but {len(own)} {prefix}labels")
    classes = classes[classes >= 0]
    labels = np.where(own < 0, -1, np.searchsorted(classes, own))
    return torch.from_numpy(labels), [str(number) for number in classes]
