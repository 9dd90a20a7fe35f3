"""Features as one .npz of numpy arrays: {train,val,test}_{features,labels,names}, classes, encoder, settings.

Written a block at a time and without compression; to be read, it has to fit into memory.
"""

import json
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from ssl.errors import UserError
from ssl.evaluation.feature_rows import at_a_time

AT_MOST = 50  # arrays; ours has twelve


def write(found, path: Path) -> None:
    """Write `found`, a `features.Features`, so that `path` is always a whole file, old or new.

    Raises OSError where it cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            with zipfile.ZipFile(file, "w", allowZip64=True) as members:
                for name, split in found.splits.items():
                    rows, names = split.rows, [_plain(word) for word in split.paths]
                    blocks = (block.cpu().numpy() for block in rows.split(at_a_time(rows)))
                    kind = rows.parts[0][:0].numpy(force=True).dtype
                    _add(members, f"{name}_features", blocks, rows.shape, kind)
                    _add(members, f"{name}_labels", [split.labels.numpy()], split.labels.shape, np.dtype(np.int64))
                    kind = np.dtype(f"<U{max(map(len, names))}")
                    pieces = (np.array(names[i : i + 10_000], kind) for i in range(0, len(names), 10_000))
                    _add(members, f"{name}_names", pieces, (len(names),), kind)
                words = {"classes": [_plain(word) for word in found.classes], "encoder": found.encoder or ""}
                for name, value in (words | {"settings": json.dumps(found.settings)}).items():
                    _add(members, name, [np.array(value)], np.shape(value), np.array(value).dtype)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _plain(word: str) -> str:
    """Bytes of a name that are no UTF-8 as \\udcNN: numpy refuses to give such a character back."""
    return word.encode("utf-8", "backslashreplace").decode()


def _add(members: zipfile.ZipFile, name: str, blocks: Iterable[np.ndarray], shape: tuple, kind: np.dtype) -> None:
    # A fixed date: the same features are the same bytes.
    with members.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_2_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, kind).tobytes())


def read(path: Path) -> dict:
    """The content of a .npz as that of a features.pt. Raises `UserError` for what cannot be read, or holds objects."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            size = sum(member.file_size for member in file.zip.infolist())
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            if size > memory or len(file.files) > AT_MOST:
                raise UserError(
                    f"features: {path} unpacks to {size / 2**30:.0f} GiB in {len(file.files)} arrays, and this machine "
                    f"has {memory / 2**30:.0f} GiB; features.pt is read from the disk as needed"
                )
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except (MemoryError, UserError):
        raise
    except Exception as error:  # numpy and zipfile have many for damaged files and Python objects
        reason = " ".join(str(error).split())
        raise UserError(
            f"features: {path} cannot be read as numpy arrays ({type(error).__name__}: {reason}); expected numbers and "
            "text, as evaluate.py --npz writes them"
        ) from None
    names = [name.removesuffix("_features") for name in arrays if name.endswith("_features")]
    splits = {name: _entry(arrays, name) for name in names}
    rest = {name: arrays[name].tolist() for name in ("classes", "encoder") if name in arrays}
    if not splits:
        rest = dict.fromkeys(arrays)  # for the error
    try:
        if splits and "settings" in arrays:
            rest["settings"] = json.loads(str(arrays["settings"]))
    except (ValueError, RecursionError):
        raise UserError(f"features: the settings in {path} are no JSON; write the features again") from None
    return splits | rest


def _entry(arrays: dict[str, np.ndarray], split: str) -> dict:
    entry = {}
    for key in ("features", "labels"):
        array = arrays.get(f"{split}_{key}")
        kinds = "iu" if key == "labels" else "f"
        if array is not None and array.dtype.kind in kinds and array.dtype.isnative and array.itemsize <= 8:
            entry[key] = torch.from_numpy(array.astype(np.int64) if key == "labels" else array)
    names = arrays.get(f"{split}_names")
    return entry if names is None else entry | {"names": names.tolist()}
