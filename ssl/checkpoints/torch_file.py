"""Save and load files of tensors: written whole or not at all, read without running their code."""

import errno
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from ssl import failures, files
from ssl.checkpoints import pickle_check, published, standins
from ssl.errors import UserError, first_line


def save(value: object, path: str | Path, before: Callable[[], None] = lambda: None) -> None:
    """Write `value` (tensors and plain values) so that `path` is always a whole file, old or new.

    `before` is called when the new file is complete but does not have its name yet. Raises OSError, or RuntimeError
    from PyTorch, where it cannot be written, and TypeError for what `load` would refuse; the old file is then
    unchanged.
    """
    path = Path(path)
    with files.replacing(path) as partial:
        with open(partial, "wb") as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
        try:
            pickle_check.check_pickle(partial)
        except pickle_check.NotPlainData as error:
            raise TypeError(f"{path}: {error} is neither a tensor nor a plain value; it could not be loaded") from None
        except (ValueError, zipfile.BadZipFile) as error:
            raise OSError(f"{path}: what was written cannot be read back ({error}); is the disk sound?") from None
        before()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name, too, survives a power cut
    finally:
        os.close(folder)


def kept(folder: Path) -> list[Path]:
    """The checkpoints in the folder of a run, newest first."""
    numbers = {path: files.CHECKPOINT.fullmatch(path.name) for path in folder.glob("checkpoint*.pt")}
    return sorted(filter(numbers.get, numbers), key=lambda path: int(numbers[path][1] or 0))


def rotate(value: object, folder: Path, keep: int) -> None:
    """`save` as checkpoint.pt; the old one becomes checkpoint.1.pt, and so on. `keep` of them stay.

    The new file is on the disk and has been read back before an old one moves. checkpoint.pt is there at every moment,
    for those who read it while the run goes on (where the file system knows hard links).
    """
    names = [folder / "checkpoint.pt", *(folder / f"checkpoint.{i}.pt" for i in range(1, keep))]

    def make_room() -> None:
        def is_free(i: int) -> bool:  # a kill in the midst of this leaves a gap, or one file with two names
            return not names[i].exists() or (i > 0 and names[i].samefile(names[i - 1]))

        free = next(filter(is_free, range(keep)), keep - 1)
        for i in range(free, 1, -1):
            os.replace(names[i - 1], names[i])
        if free:
            try:
                with files.replacing(names[1]) as second_name:
                    os.link(names[0], second_name)
            except OSError:
                os.replace(names[0], names[1])

    save(value, names[0], make_room)
    for older in kept(folder)[keep:]:  # from a time when more were kept
        older.unlink()


class Refused(UserError):
    """A file holds more than tensors and plain values."""


class Unreadable(UserError):
    """The system does not let a file be read; the file may be whole."""


def load(path: str | Path, mmap: bool = False):
    """Load what `save` wrote, on the CPU. With `mmap` tensors stay in the file until they are used.

    Raises `UserError` for a file that is missing, damaged or holds code.
    """

    def read(path: Path):
        pickle_check.check_pickle(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)

    return _read(Path(path), read)


def load_foreign(path: str | Path) -> tuple[object, list[str]]:
    """(content of any PyTorch file, on the CPU; names in it that were replaced, see `standins`).

    No code of the file is run. Raises `UserError` as `load`.
    """
    names: list[str] = []

    def read(path: Path):
        pickle_check.check_pickle(path, any_names=True)
        value, found = standins.read(path)
        names.extend(found)
        return value

    try:
        return load(path), []
    except Refused:
        return _read(Path(path), read), names


def _read(path: Path, read: Callable[[Path], object]):
    """`read` the file at `path` and check the value. Every error becomes a `UserError`."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        value = read(path)
        pickle_check.check_value(value, path.stat().st_size)
        return value
    except (pickle_check.NotPlainData, pickle.UnpicklingError) as error:
        known = isinstance(error, pickle_check.NotPlainData)
        what = f"it holds {error}," if known else "it is no PyTorch file, or holds what is"
        raise Refused(
            f"{path}: refused: {what} neither a tensor nor a plain value, and reading it could run code. Expected a "
            "file of tensors and plain values (torch.save of a state_dict)"
        ) from None
    except Exception as error:  # a damaged file makes torch.load raise nearly anything
        if isinstance(error, MemoryError) or (failures.memory_of(error) and zipfile.is_zipfile(path)):
            # a zip file claims no more than it holds; an old file may claim any size
            raise Unreadable(f"{path}: too little memory to read it now; it may be whole. Free some memory") from None
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # a seek to a wrong offset
            raise Unreadable(f"{path}: cannot be read ({error.strerror}); check disk and permissions") from None
        raise UserError(
            f"{path}: damaged, or not a PyTorch file ({first_line(error)}). Expected a file written by torch.save"
        ) from None


def find_encoder(path: str | Path) -> Path:
    """The file of weights at `path`: the file itself, or the first of encoder.pt, best.pt, checkpoint.pt in a folder.

    Raises `UserError` where there is none.
    """
    path = Path(path)
    if path.is_dir():
        for name in ("encoder.pt", "best.pt", "checkpoint.pt"):
            if (path / name).is_file():
                return path / name
        name = str(path)
        hides = f" It hides the published weights {name!r}: to use these, rename it" if name in published.NAMES else ""
        raise UserError(
            f"{path}: holds neither encoder.pt, best.pt nor checkpoint.pt; is it the output_dir of a run?{hides}"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such file or run folder, nor published weights ({', '.join(published.NAMES)})")
    return path
