"""Lists and tables that name images. What is wrong in one is said, with its line, before anything is made."""

import csv
import os
from pathlib import Path, PurePosixPath

from ssl.data.images import EXTENSIONS
from ssl.errors import UserError

LARGEST_TABLE = 1 << 30  # bytes


def read_lines(path: str | Path, setting: str) -> list[str]:
    """The lines of a list, without the empty ones and without blanks at their ends.

    Bytes that are no UTF-8 are taken as they are, as in file names. Raises `UserError`, which begins with `setting`.
    """
    path = Path(path)
    _check_size(path, setting)
    try:
        text = os.fsdecode(path.read_bytes()).removeprefix("\ufeff")
    except OSError as error:
        raise UserError(f"{setting}: cannot read {path} ({error})") from None
    lines = text.split("\n")  # not splitlines: a name may hold U+2028 or a form feed
    return [line.strip() for line in lines if line.strip()]


def _check_size(path: Path, setting: str) -> None:
    if not path.is_file():  # a pipe would be waited for
        raise UserError(f"{setting}: cannot read {path}: it is not there, or no ordinary file")
    if path.stat().st_size > LARGEST_TABLE:
        raise UserError(f"{setting}: {path} has {path.stat().st_size:,} bytes, more than the {LARGEST_TABLE:,} read")


def read_table(path: str | Path, columns: list[str]) -> list[tuple[str, ...]]:
    """The cells of `columns`, a tuple a row, as text.

    UTF-8 (with or without a byte-order mark), comma-separated, with a header; lines may end as
    on any system; empty lines are left out. Raises `UserError` for what the standard csv module
    refuses when strict (and for a cell of more than its 131,072 characters), for a row that is
    longer or shorter than the header, for NUL, and for a column that is not there or there twice.
    """
    path = Path(path)
    _check_size(path, "csv")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return _cells(path, csv.reader(file, strict=True), columns)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"csv: cannot read {path} as comma-separated UTF-8 ({error})") from None


def _cells(path: Path, reader, columns: list[str]) -> list[tuple[str, ...]]:
    header = next(reader, [])
    for column in columns:
        if header.count(column) != 1:
            wrong = "twice" if column in header else "not"
            raise UserError(f"csv: {column!r} is {wrong} among the columns of {path}: {_shown(header)}")
    places, rows = [header.index(column) for column in columns], []
    try:
        for row in reader:
            if row and len(row) != len(header):
                raise UserError(f"csv: {path} line {reader.line_num} has {len(row)} cells, the header {len(header)}")
            if any("\0" in cell for cell in row):
                raise UserError(f"csv: {path} line {reader.line_num} holds NUL; is it really a text file?")
            if row:
                rows.append(tuple(row[place] for place in places))
    except csv.Error as error:
        raise UserError(f"csv: {path} line {reader.line_num}: {error}") from None
    return rows


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    return (", ".join(repr(name[:50]) for name in names[:30]) or "none at all") + more


def labelled_images(root: Path, csv: str, image_column: str, label_column: str | None) -> list[tuple[str, str | None]]:
    """(path, label) of every image that the table `csv` names below `root`, in byte order of the paths.

    The label is None where there is no `label_column`. Raises `UserError` as `read_table` and
    `find_images` do, and for rows without a label.
    """
    rows = read_table(csv, [image_column] if label_column is None else [image_column, label_column])
    if not rows:
        raise UserError(f"csv: {csv} has a header and no rows")
    unlabelled = [number for number, row in enumerate(rows, 1) if not row[-1].strip()]
    if label_column is not None and unlabelled:
        raise UserError(
            f"csv: {len(unlabelled)} of {len(rows)} rows have no {label_column!r}, such as row {_first(unlabelled)} "
            "(after the header); fill it in, or remove them"
        )
    paths = find_images(root, [row[0] for row in rows])
    labels = [None if label_column is None else row[1].strip() for row in rows]
    return sorted(zip(paths, labels), key=lambda pair: os.fsencode(pair[0]))


def find_images(root: Path, names: list[str]) -> list[str]:
    """The files below `root` that a table's names stand for, in their order.

    A name is a path relative to `root`; it may lack the extension if there is one such image.
    Raises `UserError` for names that lead out of `root`, for images that are not there, or stand
    for two files, and for two names of one image.
    """
    places = [_inside(root, name) for name in names]
    folders = {folder: _images_in(root / folder) for folder in {place.parent for place in places}}
    found, missing, first_row = [], [], {}
    for row, (name, place) in enumerate(zip(names, places), 1):
        files = folders[place.parent].get(place.name, [])
        if len(files) > 1:
            raise UserError(f"csv: {name!r} could be {' or '.join(sorted(files))}; write the extension")
        if not files:
            missing.append(name)
            continue
        path = str(root / place.parent / files[0])
        if path in first_row:
            raise UserError(f"csv: {name!r} stands in rows {first_row[path]} and {row}; an image may stand there once")
        first_row[path] = row
        found.append(path)
    if missing:
        raise UserError(
            f"csv: {len(missing)} of {len(names)} images are not in {root}: {_first(missing)}; is --data_dir "
            "the folder that the names are relative to?"
        )
    return found


def _first(names: list) -> str:
    return ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")


def _inside(root: Path, name: str) -> PurePosixPath:
    place = PurePosixPath(os.path.normpath(name))
    if not name.strip():
        raise UserError("csv: a row names no image; fill in the cell, or remove the row")
    if place.is_absolute() or ".." in place.parts:
        raise UserError(f"csv: {name!r} leads out of {root}; names are relative to --data_dir and stay in it")
    return place


def _images_in(folder: Path) -> dict[str, list[str]]:
    """Name, with and without its extension -> the image files of that name in a folder."""
    entries = os.scandir(folder) if folder.is_dir() else ()
    files = [entry.name for entry in entries if _extension(entry.name) in EXTENSIONS and entry.is_file()]
    names: dict[str, list[str]] = {}
    for file in files:
        names.setdefault(os.path.splitext(file)[0], []).append(file)
    return names | {file: [file] for file in files}


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()
