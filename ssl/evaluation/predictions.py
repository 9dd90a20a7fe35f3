"""predictions.csv: the prediction for every image, for a spreadsheet or pandas."""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ssl.distributed import is_main
from ssl.errors import UserError
from ssl.files import PARTIAL, make_folder, remove_abandoned, replacing, write_text

# A spreadsheet runs a cell that begins with one of these (the wide ones in some languages). Names of files and classes
# may be hostile.
RUN_BY_SPREADSHEETS = tuple("=+-@\t\r\n＝＋－＠")
PLAIN_NUMBER = re.compile(r"[+-]([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")  # is not run: -1 is no formula


def write_predictions(path: Path, names: Iterable[str], labels: Tensor, scores: Tensor, classes: list[str]) -> None:
    """Write a row for each image: name, label, predicted, and `score_CLASS` for every class.

    `labels` (N,) are -1 where unknown; the cell is then empty. `scores` (N, C) read back as the same numbers; the class
    of the largest is predicted. A cell that begins like a formula and is no plain number gets an apostrophe in front.
    Bytes of a name that are no UTF-8 become \\udcNN. Raises OSError where it cannot be written; an earlier file is then
    unchanged.
    """
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow(["name", "label", "predicted", *(f"score_{cell(name)}" for name in classes)])
    shown = [cell(name) for name in classes]
    predicted = scores.argmax(1).tolist()
    for name, label, best, row in zip(names, labels.tolist(), predicted, scores.tolist(), strict=True):
        rows.writerow([cell(name), shown[label] if label >= 0 else "", shown[best], *row])
    write_text(text.getvalue(), path)


def new_file(folder: str | Path) -> Path:
    """Make `folder`, and return where predictions.csv goes. Raises `UserError` where there is one already.

    What a killed process left unfinished is removed.
    """
    path = make_folder(Path(folder)) / "predictions.csv"
    if is_main():
        if os.path.lexists(path):
            raise UserError(f"output_dir: {path} is there already; name another folder with --output_dir, or remove it")
        remove_abandoned(path.parent.glob(f"{PARTIAL}*"))
    return path


class Row(NamedTuple):
    """An image to predict: its name, and the probability of every class; or, without these, why it cannot be read."""

    name: str
    scores: list[float] | None
    unread: str = ""


def write_rows(path: Path, rows: Iterable[Row], root: str, classes: list[str]) -> Counter:
    """Write `rows` as they come; return how many images each class is predicted for, by its name.

    The cells: name below `root`, predicted, its probability, `score_CLASS` for every class, and `unread`. Names are
    written as `write_predictions` does. If anything is raised, there is no file, or an earlier one is unchanged.
    """
    shown = [cell(name) for name in classes]
    counts: Counter = Counter()
    with replacing(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "predicted", "probability", *(f"score_{name}" for name in shown), "unread"])
        for name, scores, unread in rows:
            name = cell(name.removeprefix(root))
            if scores is None:
                table.writerow([name, "", "", *[""] * len(classes), cell(unread)])
                continue
            best = max(range(len(classes)), key=scores.__getitem__)  # the first of equals, as argmax
            counts[classes[best]] += 1
            table.writerow([name, shown[best], scores[best], *scores, ""])
    return counts


def cell(word: str) -> str:
    """`word` as a cell that no spreadsheet runs: one that begins like a formula gets an apostrophe in front."""
    word = word.encode("utf-8", "backslashreplace").decode()
    is_run = word.startswith(RUN_BY_SPREADSHEETS) and not PLAIN_NUMBER.fullmatch(word)
    return f"'{word}" if is_run else word
