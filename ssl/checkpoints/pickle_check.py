"""PyTorch files, looked through before `torch.load` unpickles them and after.

`weights_only=True` keeps code from running. It does not keep a file of a hundred bytes from asking for gigabytes, a
compressed record from growing a thousandfold, or lists from holding themselves. Ours hold tensors and plain values in
records that are stored as they are, which can be told without reading them in.
"""

import os
import pickletools
import re
import tarfile
import zipfile
from pathlib import Path

import torch

LARGEST_PICKLE = 100_000_000  # bytes that say what is in the file; the numbers themselves stand elsewhere
MOST_VALUES = 10_000_000
DEEPEST = 100  # lists in lists
# What the pickle of a state_dict names. Everything else is code, or has another way to take memory.
PLAIN = re.compile(
    r"collections (OrderedDict|Counter)|torch (Size|device|\w+Storage)|torch\.storage (Untyped|Typed)Storage"
    r"|torch\._utils (_rebuild_tensor_v[23]|_rebuild_parameter)|(builtins|__builtin__) set"
)


def look_before(path: Path, any_names: bool = False) -> None:
    """Raise ValueError with the reason if the file is not what `torch.save` writes of tensors and plain values.

    With `any_names` it may name other objects, too: whoever reads it has stand-ins for them.
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":  # what torch.load goes by
            if _is_tar(path):
                raise ValueError("its format is that of before 2018; load and save it with an old PyTorch")
            file.seek(0)
            for _ in range(5):  # the format before 2020: pickles, the fourth of which is the one of interest
                _names(file, any_names)
            return
    with zipfile.ZipFile(path) as records:
        entries = records.infolist()
        if any(entry.filename.endswith("constants.pkl") for entry in entries):
            raise ValueError("it is a TorchScript program; save the state_dict() of its module")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its records are compressed; torch.save compresses nothing")
        larger = sum(entry.file_size for entry in entries) > os.path.getsize(path)
        if larger or min((entry.header_offset for entry in entries), default=1):
            raise ValueError("its records are larger than the file, or begin elsewhere")
        if any(entry.external_attr for entry in entries):  # bit 4 says "a folder", and of that torch reads nothing
            raise ValueError("its list of contents is damaged")
        damaged = records.testzip()  # torch.load does not look at the checksums
        if damaged:
            raise ValueError(f"the checksum of {damaged} does not match")
        for entry in entries:
            if entry.filename.endswith("/data.pkl"):
                with records.open(entry) as file:
                    _names(file, any_names)


def _is_tar(path: Path) -> bool:
    try:
        tarfile.open(path, "r:").close()
    except (tarfile.TarError, ValueError):
        return False
    return True


def _names(file, any_names: bool) -> None:
    """Read past one pickle, making nothing of it; ValueError if it is too long or names what is not plain."""
    try:
        for opcode, argument, position in pickletools.genops(file):
            if position > LARGEST_PICKLE:
                raise ValueError(f"its list of contents is longer than {LARGEST_PICKLE:,} bytes")
            if opcode.name == "FRAME" and argument > LARGEST_PICKLE:  # read at once, whatever it says
                raise ValueError("it claims to be larger than it is")
            if any_names or opcode.name not in ("GLOBAL", "INST"):
                continue
            if not (PLAIN.fullmatch(argument) or _is_type_of_number(argument)):
                raise Unplain(argument.replace(" ", "."))
    except (MemoryError, OverflowError):  # nothing here needs much, so this is what the file claims to hold
        raise ValueError("it claims to be larger than memory") from None


class Unplain(ValueError):
    """The name of something in a pickle that is neither a tensor nor a plain value."""


def _is_type_of_number(name: str) -> bool:
    module, _, attribute = name.partition(" ")
    return module == "torch" and isinstance(getattr(torch, attribute, None), torch.dtype)


def look_after(value, size: int) -> None:
    """Raise ValueError if what a file of `size` bytes gave is larger than the file, tangled, or no plain value."""
    storages: dict[int, int] = {}
    pending, seen = [(value, 0)], 0
    while pending:
        item, depth = pending.pop()
        seen += 1
        if depth > DEEPEST or seen > min(MOST_VALUES, 4 * size):  # a value takes a byte at least; some are shared
            raise ValueError("it is nested too deeply, or holds itself")
        if isinstance(item, torch.Tensor):
            if item.layout != torch.strided or item.numel() * item.element_size() > size:
                raise ValueError(f"it holds a tensor of shape {tuple(item.shape)}, which is larger than the file")
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, dict):
            if set(getattr(item, "__dict__", {})) - {"_metadata"}:  # else {"items": 1} would hide the method
                raise ValueError("it holds a mapping with attributes")
            pending += [(part, depth + 1) for pair in dict.items(item) for part in pair]
        elif isinstance(item, list | tuple | set | frozenset):
            pending += [(part, depth + 1) for part in item]
        elif isinstance(item, int) and item.bit_length() > 64:
            raise ValueError(f"it holds an integer of {item.bit_length()} bits")
        elif not isinstance(item, str | int | float | complex | bytes | torch.dtype | torch.device | None):
            raise ValueError(f"it holds a {type(item).__name__}")
    if sum(storages.values()) > size:
        raise ValueError("its tensors claim more numbers than the file has")
