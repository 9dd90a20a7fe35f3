"""The safetensors layout: tensors by name in one file that holds no code.

8 bytes, little-endian: the length of the header. The header, JSON: name -> {dtype, shape, data_offsets: [begin, end]}
counted from the header's end, and perhaps `__metadata__`, words by words. Then the numbers, row by row, little-endian,
without gaps (https://github.com/huggingface/safetensors, "Format").
"""

import contextlib
import json
import math
import sys
from pathlib import Path

import torch
from torch import Tensor

from ssl.errors import UserError

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
LARGEST_HEADER = 25_000_000  # bytes; a name takes about a hundred
MOST_DIMENSIONS = 64


def write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write `tensors` as `path`. Raises OSError where it cannot be written."""
    assert sys.byteorder == "little"
    names = {dtype: name for name, dtype in DTYPES.items()}
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # the widest first: all aligned
    header, end = {"__metadata__": metadata}, 0
    for name in order:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(_bytes(tensors[name].detach().cpu()).numpy().tobytes())


def _bytes(tensor: Tensor) -> Tensor:
    """The tensor's memory, row by row: (bytes,), uint8."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU. Raises `UserError` for whatever breaks the layout."""
    return _read(path)[0]


def normalisation(path: Path) -> dict[str, list[float]]:
    """{mean, std} as far as they stand beside the tensors, as lists in JSON. Raises as `read`."""
    found = {}
    for name in ("mean", "std"):
        with contextlib.suppress(ValueError):
            found[name] = json.loads(_read(path)[1].get(name, ""))
    return found


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    assert sys.byteorder == "little"
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, LARGEST_HEADER):
                raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
            header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_once)
            places, words = _places(header, size - 8 - length)
            tensors = {}
            for name, (dtype, shape, begin, end) in places.items():
                file.seek(8 + length + begin)
                numbers = bytearray(file.read(end - begin))
                flat = torch.frombuffer(numbers, dtype=dtype) if numbers else torch.empty(0, dtype=dtype)
                tensors[name] = flat.reshape(shape)
        return tensors, words
    except (OSError, ValueError, RuntimeError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{path}: damaged, or not a safetensors file ({reason})") from None


def _once(pairs: list) -> dict:
    """A JSON object in which no name stands twice: readers differ on which would count."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in the header")
    return found


def _places(header, size: int) -> tuple[dict[str, tuple[torch.dtype, list[int], int, int]], dict[str, str]]:
    """(name -> (dtype, shape, begin, end), which cover all `size` bytes, each once; metadata). Raises ValueError."""
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ is not words by words")
    places, spans = {}, []
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"{name!r} is not described by dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ValueError(f"{name!r} is of dtype {dtype!r}, none of {', '.join(DTYPES)}")
        if not _counts(shape) or len(shape) > MOST_DIMENSIONS or not _counts(offsets) or len(offsets) != 2:
            raise ValueError(f"shape or data_offsets of {name!r} are not whole numbers from 0 on")
        begin, end = offsets
        if end - begin != math.prod(shape) * DTYPES[dtype].itemsize or not end <= size:
            raise ValueError(f"{name!r} of shape {shape} does not lie in bytes {begin} to {end} of {size}")
        places[name] = DTYPES[dtype], shape, begin, end
        spans.append((begin, end))
    covered = 0
    for begin, end in sorted(spans):
        if begin != covered:
            raise ValueError(f"byte {min(begin, covered)} of the numbers is used twice or not at all")
        covered = end
    if covered != size:
        raise ValueError(f"{size - covered} bytes behind the numbers")
    return places, metadata


def _counts(value) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)
