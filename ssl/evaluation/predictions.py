"""predictions.csv: the prediction for every image, for a spreadsheet or pandas."""

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from ssl.files import write_text

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
    rows.writerow(["name", "label", "predicted", *(f"score_{_cell(name)}" for name in classes)])
    shown = [_cell(name) for name in classes]
    predicted = scores.argmax(1).tolist()
    for name, label, best, row in zip(names, labels.tolist(), predicted, scores.tolist(), strict=True):
        rows.writerow([_cell(name), shown[label] if label >= 0 else "", shown[best], *row])
    write_text(text.getvalue(), path)


def _cell(word: str) -> str:
    word = word.encode("utf-8", "backslashreplace").decode()
    is_run = word.startswith(RUN_BY_SPREADSHEETS) and not PLAIN_NUMBER.fullmatch(word)
    return f"'{word}" if is_run else word
