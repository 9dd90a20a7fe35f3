"""Check PyTorch files before `torch.load` unpickles them, and the values that come out.

`weights_only=True` runs no code of a file. But a file of a hundred bytes may still ask for gigabytes, a compressed
record may grow a thousandfold, and a list may contain itself. Files of ours hold tensors and plain values in
uncompressed records; that can be checked without loading them.
"""

import os
import pickletools
import re
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import BinaryIO

import torch

from ssl.checkpoints import pickle_calls
from ssl.checkpoints.pickle_calls import NotPlainData

LARGEST_PICKLE = 100_000_000  # bytes of the file's structure; the numbers of the tensors are stored elsewhere
MOST_VALUES = 10_000_000
DEEPEST = 100  # levels of lists in lists
# The names in the pickle of a state_dict. Any other name is code, or can take memory in other ways.
PLAIN = re.compile(
    r"collections (OrderedDict|Counter)|torch (Size|device|\w+Storage)|torch\.storage (Untyped|Typed)Storage"
    r"|torch\._utils (_rebuild_tensor_v[23]|_rebuild_parameter)|(builtins|__builtin__) set"
)


def check_pickle(path: Path, any_names: bool = False) -> None:
    """Raise ValueError unless `torch.save` can have written the file from tensors and plain values.

    With `any_names` the file may name other objects, too: the reader replaces them (`standins`).
    """
    with open(path, "rb") as file:
        if file.read(4) != b"PK\3\4":  # as torch.load tells the formats apart
            if _is_tar(path):
                raise ValueError("it has the format of before 2018; load it and save it again with an old PyTorch")
            file.seek(0)
            for _ in range(5):  # the format before 2020 is five pickles; the fourth holds the tensors
                _check_names(file, any_names)
            return
    with zipfile.ZipFile(path) as records:
        _require_one_list(records.fp)
        entries = records.infolist()
        names = [entry.orig_filename.lower() for entry in entries]  # upper and lower case are the same to torch
        if any(name.endswith("constants.pkl") for name in names):
            raise ValueError("it is a TorchScript program; save the state_dict() of its module")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its records are compressed; torch.save compresses nothing")
        larger = sum(entry.file_size for entry in entries) > os.path.getsize(path)
        if larger or min((entry.header_offset for entry in entries), default=1):
            raise ValueError("its records are larger than the file, or begin elsewhere")
        if any(entry.external_attr for entry in entries):  # bit 4 means "a folder", which torch does not read
            raise ValueError("its list of contents is damaged")
        damaged = records.testzip()  # torch.load ignores the checksums
        if damaged:
            raise ValueError(f"the checksum of {damaged} does not match")
        for name, entry in zip(names, entries):
            if name.endswith("/data.pkl"):
                with records.open(entry) as file:
                    _check_names(file, any_names)


def _require_one_list(file: BinaryIO) -> None:
    """Raise ValueError unless the end of a zip file leads Python and torch to the same list of contents."""
    begins = file.seek(-22, os.SEEK_END)  # the last record, which says where the list is
    end = file.read()
    length, start = struct.unpack("<2I", end[12:20])
    file.seek(max(begins - 76, 0))
    large = file.read(76)  # the records before it, for files beyond 4 GiB; torch.save always writes them
    found = True
    if large[56:60] == b"PK\6\7":
        begins -= 76
        length, start = struct.unpack("<2Q", large[40:56])
        found = large[:4] == b"PK\6\6" and large[64:72] == struct.pack("<Q", begins)
    if not (found and end[:4] == b"PK\5\6" and end[20:] == b"\0\0" and start + length == begins):
        raise ValueError("its list of contents is not where its end says, or something follows it")


def _is_tar(path: Path) -> bool:
    try:
        tarfile.open(path, "r:").close()
    except (tarfile.TarError, ValueError):
        return False
    return True


def _check_names(file: BinaryIO, any_names: bool) -> None:
    """Read past one pickle without building objects. ValueError if it is too long, or does what plain data never do.

    With `any_names` the reader looks at names and calls.
    """
    stacks, kept = [[]], {}
    try:
        for opcode, argument, position in pickletools.genops(file):
            if position > LARGEST_PICKLE:
                raise ValueError(f"its list of contents is longer than {LARGEST_PICKLE:,} bytes")
            if opcode.name == "FRAME" and argument > LARGEST_PICKLE:  # a frame is read into memory at once
                raise ValueError("it claims to be larger than it is")
            if any_names:
                continue
            if opcode.name in ("GLOBAL", "INST") and not (PLAIN.fullmatch(argument) or _is_type_of_number(argument)):
                raise NotPlainData(argument.replace(" ", "."))
            pickle_calls.follow(opcode, argument, stacks, kept)
    except (MemoryError, OverflowError):  # little memory is needed here, so the file lies about a size
        raise ValueError("it claims to be larger than memory") from None


def _is_type_of_number(name: str) -> bool:
    module, _, attribute = name.partition(" ")
    return module == "torch" and isinstance(getattr(torch, attribute, None), torch.dtype)


def check_value(value: object, size: int) -> None:
    """Raise ValueError if `value`, loaded from a file of `size` bytes, is larger than it, too deep, or not plain."""
    storages: dict[int, int] = {}
    pending, seen = [(value, 0)], 0
    while pending:
        item, depth = pending.pop()
        seen += 1
        if depth > DEEPEST or seen > min(MOST_VALUES, 4 * size):  # a value takes at least a byte; some are shared
            raise ValueError("it is nested too deeply, or holds itself")
        if isinstance(item, torch.Tensor):
            if item.layout != torch.strided or item.numel() * item.element_size() > size:
                raise ValueError(f"it holds a tensor of shape {tuple(item.shape)}, which is larger than the file")
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
        elif isinstance(item, dict):
            if set(getattr(item, "__dict__", {})) - {"_metadata"}:  # an attribute "items" would hide the method
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
