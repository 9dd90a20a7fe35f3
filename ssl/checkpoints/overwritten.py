"""Refuse to write into a folder that holds what would be lost."""

from collections.abc import Iterable
from pathlib import Path

from ssl import files
from ssl.checkpoints import torch_file
from ssl.console import some_of
from ssl.distributed import is_main
from ssl.errors import UserError
from ssl.settings import config

WEIGHTS = ("encoder.pt", "encoder_best.pt", "best.pt")


def require_no_weights(folder: Path) -> None:
    """Raise `UserError` where a run would begin in `folder` over the weights of another.

    A run that has saved no checkpoint yet may have left some: it begins again over them.
    """
    there = [name for name in WEIGHTS if (folder / name).is_file()]
    begun = files.json_object(folder / "status.json").get("saved_step", 0) is None
    if there and not begun and not any(folder.glob("checkpoint*.pt*")):
        raise UserError(
            f"output_dir: {folder} holds {' and '.join(there)} and no checkpoint to continue from, and a run would "
            "write over them; name another folder with --output_dir"
        )


def require_no_run(places: Iterable[Path]) -> None:
    """Raise `UserError`, on rank 0, where one of the folders holds a run: a test would write over its files."""
    for folder in places if is_main() else ():
        path = folder / "config.yaml"
        of_run = path.is_file() and not config.read_yaml(path).get("test_only")
        weights = any((folder / name).is_file() for name in WEIGHTS)
        if of_run or weights or torch_file.kept(folder):
            raise UserError(
                f"output_dir: {folder} holds a run, and a test would write over its files; name another folder with "
                "--output_dir"
            )


def require_replaceable(path: Path, source: Path, own: Iterable[str]) -> None:
    """Raise `UserError` where an export to `path` would remove `source`, which was read, or what is no export.

    A folder at `path` is an earlier export if it holds the files `own` alone.
    """
    there = list(path.iterdir()) if path.is_dir() else [path]
    if any(source.exists() and file.exists() and file.samefile(source) for file in there):
        raise UserError(f"output_dir: {path} would replace {source}, which was read; name another folder")
    others = [file.name for file in there if path.is_dir() and file.name not in own]
    if others:
        raise UserError(f"output_dir: {path} holds {some_of(others)}, which no export has written; name another folder")
