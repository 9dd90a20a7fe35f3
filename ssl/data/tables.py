"""Lists and tables (CSV) that name images. An error names the file and the line."""

import contextlib
import csv
import itertools
import os
import re
from pathlib import Path

from ssl.console import some_of
from ssl.errors import UserError, nearest

LARGEST_TABLE = 1 << 30  # bytes
ZERO_ONE = {"0", "1", "0.0", "1.0"}
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}


def read_lines(path: str | Path, setting: str) -> list[str]:
    """The lines of a list, without empty lines and without blanks at the ends of lines.

    Bytes that are not UTF-8 are kept, as in file names. Raises `UserError`, which begins with `setting`.
    """
    path = Path(path)
    _check_size(path, setting)
    try:
        text = os.fsdecode(path.read_bytes()).removeprefix("\ufeff")
    except OSError as error:
        raise UserError(f"{setting}: cannot read {path} ({error})") from None
    lines = text.split("\n")  # not splitlines: a name may contain U+2028 or a form feed
    return [line.strip() for line in lines if line.strip()]


def _check_size(path: Path, setting: str) -> None:
    if not path.is_file():  # reading a pipe would wait for its writer
        raise UserError(f"{setting}: cannot read {path}: it is not there, or no ordinary file")
    if path.stat().st_size > LARGEST_TABLE:
        raise UserError(f"{setting}: {path} has {path.stat().st_size:,} bytes, more than the {LARGEST_TABLE:,} read")


def read_table(path: str | Path, columns: list[str]) -> list[tuple[str, ...]]:
    """The cells of `columns` as text, a tuple for every row.

    The file is UTF-8 (with or without a byte-order mark) and has a header. Cells are separated by commas, semicolons
    or tabs: by the one that makes the header contain all `columns`. Lines may end as on any system; empty lines are
    left out. Raises `UserError` for what the standard csv module refuses when strict (also a cell of more than 131,072
    characters), for a table without rows, for a row that is longer or shorter than the header, for NUL, for a cell
    that begins with a blank and a quote, and for a column that the header has not or has twice.
    """
    path = Path(path)
    _check_size(path, "csv")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            delimiter = _delimiter(path, file, columns)
            file.seek(0)
            rows = _cells(path, csv.reader(file, strict=True, delimiter=delimiter), columns)
    except UnicodeDecodeError as error:
        raise UserError(f"csv: cannot read {path} as UTF-8 ({error}); save it as CSV in UTF-8") from None
    except (OSError, csv.Error) as error:
        raise UserError(f"csv: cannot read {path} as a table ({error})") from None
    if not rows:
        raise UserError(f"csv: {path} has a header and no rows")
    return rows


def _delimiter(path: Path, file, columns: list[str]) -> str:
    """The one of DELIMITERS that makes the header contain all `columns`; a comma if none does."""
    headers = {}
    for delimiter in DELIMITERS:
        file.seek(0)
        with contextlib.suppress(csv.Error):
            header = next(csv.reader(file, strict=True, delimiter=delimiter), [])
            if all(header.count(column) == 1 for column in columns):
                headers[delimiter] = header
    if len({tuple(header) for header in headers.values()}) > 1:
        names = " or ".join(DELIMITERS[delimiter] for delimiter in headers)
        raise UserError(f"csv: the header of {path} may be separated by {names}; quote its names, or rename columns")
    return next(iter(headers), ",")


def _cells(path: Path, reader, columns: list[str]) -> list[tuple[str, ...]]:
    header = next(reader, [])
    _refuse_nul(path, 1, header)
    for column in columns:
        if header.count(column) != 1:
            wrong = "twice" if column in header else "not"
            hint = nearest(column, header) if wrong == "not" else ""
            header_shown = shown(header) + _one_hot_hint(header, reader)
            raise UserError(f"csv: {column!r} is {wrong} among the columns of {path}: {header_shown}{hint}")
    places, rows = [header.index(column) for column in columns], []
    try:
        for row in reader:
            if row and len(row) != len(header):
                raise UserError(f"csv: {path} line {reader.line_num} has {len(row)} cells, the header {len(header)}")
            _refuse_nul(path, reader.line_num, row)
            if row:
                rows.append(tuple(row[place] for place in places))
                _refuse_late_quotes(path, reader.line_num, rows[-1])
    except csv.Error as error:
        raise UserError(f"csv: {path} line {reader.line_num}: {error}") from None
    return rows


def _refuse_nul(path: Path, line: int, row: list[str]) -> None:
    if any("\0" in cell for cell in row):
        raise UserError(f"csv: {path} line {line} holds NUL: is it UTF-16, or no text? Save it as CSV in UTF-8")


def _refuse_late_quotes(path: Path, line: int, cells: tuple[str, ...]) -> None:
    """A quote after a blank would be a part of the cell, and ` "a"` another class than `a`."""
    if late := [cell for cell in cells if re.match(r'\s+"', cell)]:
        raise UserError(f"csv: {path} line {line}: {late[0]!r} has a blank before its quote; remove the blank")


def _one_hot_hint(header: list[str], reader) -> str:
    """What to do, in brackets, if two columns or more have only 0 and 1 in the first 1000 rows; else ''."""
    with contextlib.suppress(csv.Error):
        cells = zip(*itertools.islice((row for row in reader if row), 1000))
        binary = [name for name, column in zip(header, cells) if {cell.strip() for cell in column} <= ZERO_ONE]
        if len(binary) > 1:
            return f" ({some_of(binary)} look one-hot: write the class's name into one column)"
    return ""


def shown(names: list[str]) -> str:
    """The first thirty names, each cut to 50 characters, for an error about a name that is not among them."""
    more = f" and {len(names) - 30} more" if len(names) > 30 else ""
    return (", ".join(repr(name[:50]) for name in names[:30]) or "none at all") + more
