"""Features as one .npz of numpy arrays: {train,val,test}_{features,labels,names,groups}, classes, encoder, settings.

All features must fit into memory, to be written and to be read.
"""

import json
from pathlib import Path

import numpy as np
import torch

from ssl.data.memory import free_memory
from ssl.errors import UserError
from ssl.files import replacing

AT_MOST = 50  # arrays; ours have fifteen


def write(found, path: Path) -> None:
    """Write `found`, a `features.Features`. Raises OSError if that fails; an earlier file is then unchanged."""
    arrays = {
        "classes": [_plain(word) for word in found.classes],
        "encoder": found.encoder or "",
        "settings": json.dumps(found.settings),
    }
    for name, split in found.splits.items():
        arrays[f"{name}_features"] = split.rows[torch.arange(len(split))].numpy(force=True)
        arrays[f"{name}_labels"] = split.labels.numpy()
        arrays[f"{name}_names"] = [_plain(word) for word in split.paths]
        if split.groups:
            arrays[f"{name}_groups"] = [_plain(word or "") for word in split.groups]
    with replacing(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)


def require_memory(samples: int, width: int) -> None:
    """Raise `UserError` where `samples` features of `width` numbers of float32 need more memory than is free."""
    free, whose = free_memory()
    if 4 * samples * width > free:
        raise UserError(
            f"npz: {samples:,} features of {width} numbers take {4 * samples * width / 2**30:.1f} GiB, and {whose} has "
            f"{free / 2**30:.1f} GiB free; leave --npz out: features.pt and --csv_features need little memory"
        )


def _plain(word: str) -> str:
    """`word` with bytes that are no UTF-8 written as \\udcNN, as numpy cannot read such characters back."""
    return word.encode("utf-8", "backslashreplace").decode()


def read(path: Path) -> dict:
    """Read a .npz into what a features.pt holds. Raises `UserError` if it cannot be read, or holds Python objects."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            size = sum(member.file_size for member in file.zip.infolist())
            free, whose = free_memory()
            if size > free or len(file.files) > AT_MOST:
                raise UserError(
                    f"features: {path} unpacks to {size / 2**30:.1f} GiB in {len(file.files)} arrays, and {whose} has "
                    f"{free / 2**30:.1f} GiB free; features.pt is read from the disk as needed"
                )
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except (MemoryError, UserError):
        raise
    except Exception as error:  # numpy and zipfile raise many kinds for damaged files
        reason = " ".join(str(error).split())
        raise UserError(
            f"features: {path} cannot be read as numpy arrays ({type(error).__name__}: {reason}); expected numbers and "
            "text, as evaluate.py --npz writes them"
        ) from None
    names = [name.removesuffix("_features") for name in arrays if name.endswith("_features")]
    splits = {name: _entry(arrays, name) for name in names}
    if not splits:
        return dict.fromkeys(arrays)  # `features.load` names them in its error
    rest = {name: arrays[name].tolist() for name in ("classes", "encoder") if name in arrays}
    try:
        if "settings" in arrays:
            rest["settings"] = json.loads(str(arrays["settings"]))
    except (ValueError, RecursionError):
        raise UserError(f"features: the settings in {path} are no JSON; write the features again") from None
    return splits | rest


def _entry(arrays: dict[str, np.ndarray], split: str) -> dict:
    """The entry of a split in features.pt, without arrays of other types: `features.load` then refuses the file."""
    entry = {}
    for key, kinds in (("features", "f"), ("labels", "iu")):
        array = arrays.get(f"{split}_{key}")
        if array is not None and array.dtype.kind in kinds and array.dtype.isnative and array.itemsize <= 8:
            entry[key] = torch.from_numpy(array.astype(np.int64) if key == "labels" else array)
    words = {key: arrays.get(f"{split}_{key}") for key in ("names", "groups")}
    return entry | {key: array.tolist() for key, array in words.items() if array is not None}
