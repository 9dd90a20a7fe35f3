"""Write files whole or not at all, and read small ones even if they are cut short."""

import contextlib
import itertools
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from ssl.distributed import is_main
from ssl.errors import UserError, on_failure

PARTIAL = ".partial-"  # names of unfinished files begin so; they are hidden, so they do not count as images
CHECKPOINT = re.compile(r"checkpoint(?:\.([1-9]\d*))?\.pt", re.ASCII)  # the newest of a run, and older ones by number
ABANDONED = 3600  # seconds; a partial file that is older was left by a process that was killed


def make_folder(folder: Path) -> Path:
    """Make `folder` on rank 0, if it is not there; if the script fails, it is removed again, unless it holds something.

    Raises `UserError`, on rank 0, where it cannot be written to.
    """
    if is_main():
        made = missing_folders(folder)
        on_failure(lambda reason: remove_empty(made))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output_dir: cannot make {folder} ({error})") from None
        if not os.access(folder, os.W_OK):
            raise UserError(f"output_dir: {folder} cannot be written to; set --output_dir")
    return folder


def missing_folders(folder: Path) -> list[Path]:
    """`folder` and the folders above it, inner first, as far as they are not there."""
    return list(itertools.takewhile(lambda path: not path.exists(), (folder, *folder.parents)))


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of the folders, inner first, that are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def remove_start(folder: Path, names: tuple[str, ...]) -> bool:
    """Remove the files `names`, in this order, if `folder` holds nothing else; whether it did."""
    try:
        if not set(os.listdir(folder)) <= set(names):
            return False
        for name in names:
            (folder / name).unlink(missing_ok=True)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path` to write to. At the end it takes the place of `path`; after an error it is removed.

    An OSError of the system then names `path`.
    """
    partial = path.with_name(PARTIAL + secrets.token_hex(8))
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.errno and error.filename in (None, str(partial)):  # a full disk names no file
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_text(text: str, path: str | Path) -> None:
    """Write `text` so that `path` is always a whole file, old or new. Raises OSError where it cannot be written."""
    write_bytes(text.encode(), path)


def write_bytes(content: bytes, path: str | Path) -> None:
    """As `write_text`."""
    with replacing(Path(path)) as partial:
        partial.write_bytes(content)


def remove_abandoned(partial: Iterable[Path]) -> None:
    """Remove those of the `partial` files that a killed process left. Another process may be writing the others."""
    for path in partial:
        with contextlib.suppress(FileNotFoundError):  # another process may remove it, too
            if time.time() - path.lstat().st_ctime > ABANDONED:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def holds(path: Path, text: str) -> bool:
    """Whether the file at `path` holds just `text`. Another kind of file, or one of another size, is not read."""
    content = text.encode()
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def json_object(path: Path) -> dict:
    """The JSON object that a file of ours holds; {} where there is none, or it cannot be read."""
    try:
        return parsed(path.read_text("utf-8")) or {}
    except (OSError, ValueError):
        return {}


def json_lines(path: Path) -> list[dict]:
    """The JSON objects of a file with one in each line; none where there is no file. A line cut short is left out."""
    lines = path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []
    return [value for value in map(parsed, lines) if value is not None]


def parsed(text: str | bytes) -> dict | None:
    """The JSON object that `text` is; None where it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def json_text(value) -> str:
    """JSON for people: indented, but a list of plain values, such as a row of a matrix, on one line."""
    text = json.dumps(value, indent=2)  # its line breaks are layout: within words they are written \\n
    return re.sub(r'\[\n([^][{}"]*)\n *\]', lambda row: f"[{' '.join(row[1].split())}]", text) + "\n"
