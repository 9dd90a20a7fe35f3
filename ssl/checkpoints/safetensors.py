"""Files in the safetensors format: tensors by name, without code. Needs the package `safetensors`."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from ssl.errors import UserError


def write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write `tensors` as `path`. Raises OSError where it cannot be written."""
    path.write_bytes(_package().torch.save({name: t.contiguous() for name, t in tensors.items()}, metadata))


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU. Raises `UserError` for a damaged file."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict


def normalisation(path: Path) -> dict[str, list[float]]:
    """{mean, std} from the file's metadata, where they stand as lists in JSON. Raises as `read`."""
    with _opened(path) as file:
        metadata = file.metadata() or {}
    found = {}
    for name in ("mean", "std"):
        with contextlib.suppress(ValueError, RecursionError):
            found[name] = json.loads(metadata.get(name, ""))
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator:
    package = _package()
    try:
        with package.safe_open(path, "pt") as file:
            yield file
    except Exception as error:  # of the package's own types, or of torch's
        raise UserError(f"{path}: damaged, or not a safetensors file ({error})") from None


def _package():
    try:
        import safetensors.torch
    except ImportError:
        raise UserError("safetensors files need a package that is not installed: pip install safetensors") from None
    return safetensors
