"""The keys by which an image is recognised: of its name, its file, its pixels, its patient, lesion or slide."""

from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import torch

from ssl.checkpoints import torch_file
from ssl.data import keys
from ssl.data.images import Images
from ssl.errors import UserError
from ssl.sources.leaks import ids

MOST_FILES = 200_000  # files of a larger data set are not opened: their key is of name and size
MOST_BYTES = 4 << 30  # an unlabelled array that is larger is not read
KINDS = ("name", "file", "source", "size", "pixels", "id", "group")


def find(data: Images, root: str | Path | None, kinds: Collection[str] = ()) -> dict[str, np.ndarray]:
    """{kind: (N,) uint64} of N images below `root`; 0 where an image has no key.

    Without `kinds`, every kind is found that is worth its time. With `kinds`, files and pixels are read only if one of
    `kinds` needs them. Raises `UserError` where the folder's list of sources cannot be read.
    """
    found = {}
    if data.paths is not None:
        root = Path(root or "").expanduser()
        found["name"] = keys.of_words(keys.names(data.paths, root))
        few = len(data) <= MOST_FILES
        if {"file", "source"} & set(kinds) if kinds else few:
            found["file"] = keys.of_files(data.paths)
        if "size" in kinds if kinds else not few:
            found["size"] = keys.of_sizes(data.paths)
        if (root / keys.SOURCES).is_file():
            found["source"] = _sources(root / keys.SOURCES, found["name"])
        if data.named:
            found["id"] = _of_ids(ids(data))
    held = data.resident if data.stored is None else data.stored
    readable = held is not None and (data.classes or np.prod(held.shape, dtype=np.int64) <= MOST_BYTES)
    if readable and (not kinds or "pixels" in kinds):
        found["pixels"] = keys.of_pixels(data)
    if data.groups is not None:
        found["group"] = _of_ids(data.groups)
    return found


def _sources(path: Path, names: np.ndarray) -> np.ndarray:
    """(N,) uint64: keys of the files of which `ssl.data.prepare` made the images of a folder; 0 where unknown."""
    content = torch_file.load(path)
    try:
        of_name = dict(zip(*(from_tensors(content)[kind].tolist() for kind in ("name", "file"))))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        raise UserError(f"{path}: was not written by ssl.data.prepare; remove it") from None
    return np.array([of_name.get(name, 0) for name in names.tolist()], np.uint64)


def _of_ids(words: Iterable[str | None]) -> np.ndarray:
    """Keys of ids. One that is only a number has none: in another data set it may be of another image."""
    words = [word or "" for word in words]
    return np.where([word.isdecimal() or not word for word in words], np.uint64(0), keys.of_words(words))


def to_tensors(found: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Keys as they are saved. Old versions of PyTorch cannot save uint64."""
    return {kind: torch.from_numpy(values.view(np.int64)) for kind, values in found.items()}


def from_tensors(found: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """What `to_tensors` was given. Raises nearly anything for other content."""
    if not all(kind in KINDS and keys.dtype == torch.int64 and keys.ndim == 1 for kind, keys in found.items()):
        raise ValueError
    return {kind: keys.numpy().view(np.uint64) for kind, keys in found.items()}
