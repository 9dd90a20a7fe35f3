"""Lists and tables that name images. What is wrong in one is said, with its line, before anything is made."""

import csv
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from ssl.data.cut import cut
from ssl.data.images import EXTENSIONS, Images, Paths
from ssl.errors import UserError, nearest

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


def read_table(path: str | Path, columns: list[str], delimiter: str = ",") -> list[tuple[str, ...]]:
    """The cells of `columns`, a tuple a row, as text.

    UTF-8 (with or without a byte-order mark), separated by `delimiter`, with a header; lines may end as
    on any system; empty lines are left out. Raises `UserError` for what the standard csv module
    refuses when strict (and for a cell of more than its 131,072 characters), for a row that is
    longer or shorter than the header, for NUL, and for a column that is not there or there twice.
    """
    path = Path(path)
    _check_size(path, "csv")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return _cells(path, csv.reader(file, strict=True, delimiter=delimiter), columns)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        separated = {",": "comma", ";": "semicolon"}[delimiter]
        raise UserError(f"csv: cannot read {path} as {separated}-separated UTF-8 ({error})") from None


def _cells(path: Path, reader, columns: list[str]) -> list[tuple[str, ...]]:
    header = next(reader, [])
    for column in columns:
        if header.count(column) != 1:
            wrong = "twice" if column in header else "not"
            hint = nearest(column, header) if wrong == "not" else ""
            raise UserError(f"csv: {column!r} is {wrong} among the columns of {path}: {_shown(header)}{hint}")
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


# As a data set ------------------------------------------------------------------------

SPLITS = ("train", "val", "test")
BINARY = ["negative", "positive"]


@dataclass(frozen=True)
class Columns:
    """What a table's columns are called. `positive` are the labels of class 1, where all others are class 0."""

    image: str = "image"
    label: str | None = None
    positive: list[str] | None = None
    group: str | None = None
    split: str | None = None


def table(root: Path, csv: str, columns: Columns, split: str) -> Images | None:
    """The images below `root` that a table names, in byte order of their paths.

    Splits are the table's own, or else cut by the names (ssl/data/cut.py), whole groups together; where it has no
    test rows, its val rows judge. Raises `UserError` as `read_table` and `find_images` do, and
    for rows without a label or with an unknown split.
    """
    names = [columns.image, columns.label, columns.group, columns.split]
    rows = read_table(csv, [name for name in names if name is not None])
    if not rows:
        raise UserError(f"csv: {csv} has a header and no rows")
    cells = iter([[cell.strip() for cell in column] for column in zip(*rows)])
    next(cells)  # a file's name may begin or end with a blank
    labels, groups, splits = (None if name is None else next(cells) for name in names[1:])
    paths = find_images(root, [row[0] for row in rows])
    order = sorted(range(len(rows)), key=lambda row: os.fsencode(paths[row]))
    numbers, classes = _classes(csv, labels, columns, len(rows))
    everything = Images(
        "folder",
        torch.tensor(numbers)[order],
        classes,
        paths=Paths(paths[row] for row in order),
        groups=None if groups is None else [groups[row] or None for row in order],
        named=True,
    )
    unlabelled = f"label_column: is not set, so the images of {csv} have no classes"
    if splits is None:
        return cut(everything, split, str(root), unlabelled)
    part = _part(csv, splits, columns.split, "test" if split == "all" else split)
    if part in ("test", "val") and not classes:
        raise UserError(f"{unlabelled}; without labels there is nothing to judge")
    return part and everything.subset(torch.tensor([at for at, row in enumerate(order) if splits[row] == part]))


def _classes(csv: str, labels: list[str] | None, columns: Columns, count: int) -> tuple[list[int], list[str]]:
    """(class number of every row, names of the classes)."""
    if labels is None:
        return [-1] * count, []
    unlabelled = [number for number, label in enumerate(labels, 1) if not label]
    if unlabelled:
        raise UserError(
            f"csv: {len(unlabelled)} of {len(labels)} rows have no {columns.label!r}, such as row "
            f"{first_few(unlabelled)} (after the header); fill it in, or remove them"
        )
    found = sorted(set(labels))
    if columns.positive is None:
        number = {name: label for label, name in enumerate(found)}
        return [number[label] for label in labels], found
    for value in columns.positive:
        if value not in found:
            raise UserError(
                f"positive: {value!r} is none of the labels in column {columns.label!r} of {csv}: "
                f"{_shown(found)}{nearest(value, found)}"
            )
    if len(set(columns.positive)) == len(found):
        raise UserError(f"positive: all labels in column {columns.label!r} of {csv} are named, so none is negative")
    return [int(label in columns.positive) for label in labels], BINARY


def _part(csv: str, splits: list[str], column: str | None, split: str) -> str | None:
    """The value of the split column whose rows are asked for; None for 'val' where there is none, or it judges."""
    unknown = [(row, value) for row, value in enumerate(splits, 1) if value not in SPLITS]
    if unknown:
        row, value = unknown[0]
        raise UserError(
            f"split_column: {len(unknown)} of {len(splits)} rows have none of {', '.join(SPLITS)} in {column!r}; "
            f"the first is row {row} (after the header): {value!r}{nearest(value, SPLITS)}"
        )
    judging = [part for part in ("test", "val") if part in splits]
    if split == "val":
        return "val" if len(judging) == 2 else None
    part = (judging or ["test"])[0] if split == "test" else "train"
    if part not in splits:
        raise UserError(f"split_column: no row of {csv} has {part!r} in {column!r}")
    return part


# Finding the images -------------------------------------------------------------------


def find_images(root: Path, names: list[str]) -> list[str]:
    """The files below `root` that a table's names stand for, in their order.

    A name is a path relative to `root`; it may lack the extension if there is one such image.
    Raises `UserError` for names that lead out of `root`, for images that are not there, or stand
    for two files, and for two names of one image.
    """
    places = [_inside(root, name) for name in names]
    folders = {folder: images_in(root / folder) for folder in {place.parent for place in places}}
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
            f"csv: {len(missing)} of {len(names)} images are not in {root}: {first_few(missing)}; is --data_dir "
            "the folder that the names are relative to?"
        )
    return found


def first_few(names: list) -> str:
    """The first three, for an error."""
    return ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")


def _inside(root: Path, name: str) -> PurePosixPath:
    place = PurePosixPath(os.path.normpath(name))
    if not name.strip():
        raise UserError("csv: a row names no image; fill in the cell, or remove the row")
    if place.is_absolute() or ".." in place.parts:
        raise UserError(f"csv: {name!r} leads out of {root}; names are relative to --data_dir and stay in it")
    return place


def images_in(folder: Path) -> dict[str, list[str]]:
    """Name, with and without its extension -> the image files of that name in a folder."""
    entries = os.scandir(folder) if folder.is_dir() else ()
    files = [entry.name for entry in entries if _extension(entry.name) in EXTENSIONS and entry.is_file()]
    names: dict[str, list[str]] = {}
    for file in files:
        names.setdefault(os.path.splitext(file)[0], []).append(file)
    return names | {file: [file] for file in files}


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()
