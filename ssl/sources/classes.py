"""Names of classes: cells of a table as labels, and checks that every name is one class."""

import re
import unicodedata
from collections import Counter
from decimal import Decimal

import numpy as np

from ssl.console import say_once, some_of
from ssl.errors import UserError

# Cells without a value: those of pandas, and two signs. "None" is not among them, as it may be the name of a class.
MISSING = {""} | set("? - NaN nan NAN -NaN -nan NA N/A n/a <NA> #N/A #NA null NULL Null".split())
UNKNOWN = {"unknown", "unlabelled", "unlabeled", "undefined", "not available"}  # in lower case; may be classes, too
# What may be one value in several spellings: also 7,0 and 1E+05. But 7,000 may be seven thousand, and 12e3 a name.
NUMBER = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30}|,(?![0-9]{3}\b)[0-9]{1,30})?([eE][+-][0-9]{1,3})?")
# Also .5, 1e-05 and, as some spreadsheets write it, 0,5. Some names are like them, such as 12e3.
QUANTITY = re.compile(r"[+-]?([0-9]{1,30}([.,][0-9]{0,30})?|[.,][0-9]{1,30})([eE][+-]?[0-9]{1,3})?")


def values(cells: list[str], column: str, without: str) -> list[str | None]:
    """The cells of a column, None where there is no value. Equal numbers, 1 and 1.0, all get the shortest form.

    A line reports both, and another one words that may mean no value. `without` says what happens to rows without a
    value.
    """
    missing = Counter(cell for cell in cells if cell in MISSING)
    if missing:
        kinds = ", ".join(f"{count} {cell or 'empty'}" for cell, count in missing.most_common())
        say_once(f"table       {missing.total()} of {len(cells)} rows have no {column!r} ({kinds}): {without}")
    for word in sorted({cell for cell in cells if cell.lower() in UNKNOWN}):
        say_once(
            f"table       {cells.count(word)} of {len(cells)} rows have {word!r} as {column!r}: it counts as a value; "
            "leave the cell empty for no value"
        )
    one = one_form(cells, repr(column))
    return [None if cell in MISSING else one.get(cell, cell) for cell in cells]


def one_form(cells: list[str], where: str) -> dict[str, str]:
    """{cell: the shortest of its spellings} of numbers that `cells` write in several ways. A line says so."""
    spellings: dict[Decimal, list[str]] = {}
    for cell in sorted(set(cells)):
        if NUMBER.fullmatch(cell):
            spellings.setdefault(Decimal(cell.replace(",", ".")), []).append(cell)
    several = sorted(found for found in spellings.values() if len(found) > 1)
    if several:
        example = ", ".join(map(repr, several[0]))
        say_once(
            f"values      {len(several)} values of {where} are written in several ways, such as {example}: "
            "equal numbers are one value"
        )
    return {cell: min(found, key=len) for found in several for cell in found}


def require_names(classes: list[str], where: str, setting: str, expected: str) -> None:
    """Raise `UserError`, which begins with `setting`, unless labels as text are one class each; warn of two alike."""
    one_label_each(classes, where, setting)
    refuse_quantities_as_text(classes, f"{setting}: the labels in {where}", expected)
    tell_alike(classes, where)


def refuse_quantities(numbers: np.ndarray, where: str, expected: str, largest: float = np.inf) -> None:
    """Raise `UserError`, which begins with `where`, if a number is not whole: then they are no classes."""
    broken = numbers[(numbers != np.floor(numbers)) | (abs(numbers) > largest)]
    if len(broken):
        raise UserError(f"{where} hold quantities such as {broken[0]:g}, no classes; {expected}")


def refuse_quantities_as_text(labels: list[str], where: str, expected: str) -> None:
    """The same for labels as text. If one is no number, they are names."""
    if labels and all(QUANTITY.fullmatch(label) for label in labels):
        refuse_quantities(np.array([float(label.replace(",", ".")) for label in labels]), where, expected)


def one_label_each(labels: list[str], where: str, setting: str) -> None:
    """Raise `UserError`, which begins with `setting`, if a label joins others, as 'ants|bees' beside 'ants' does.

    A label with | or ; or in the form of a list joins others if one of its parts is a label or is in another such
    label. A label with , + & / joins others if all its parts are labels. If only some are, as of 'cat, domestic' beside
    'cat', a warning names it.
    """
    known = set(labels)
    doubtful = []
    for separator in ("[]", *"|;,+&/"):
        joint = {label: parts for label in sorted(known) if (parts := _parts(label, separator))}
        times = Counter(part for parts in joint.values() for part in set(parts))
        for label, parts in joint.items():
            alone = [part in known for part in parts]
            if separator in ("[]", "|", ";"):
                joins = any(alone) or any(times[part] > 1 for part in parts)
            else:
                joins = all(alone)
            if joins and len(parts) > 1:
                raise UserError(
                    f"{setting}: {label!r} in {where} joins the labels {', '.join(map(repr, parts))}: several labels "
                    "an image (multi-label) are not read. Leave such images out, or give one label each"
                )
            if any(alone) and len(parts) > 1:
                doubtful.append(label)
    if doubtful:
        say_once(
            f"classes     *** {some_of(doubtful)} of {where} may join several labels; each is taken as one class ***"
        )


def _parts(label: str, separator: str) -> list[str]:
    """The parts of a label between `separator`, stripped of blanks; for '[]' the items of a list, unquoted."""
    if separator == "[]":
        listed = re.fullmatch(r"[\[{(](.*)[)}\]]", label, re.DOTALL)
        parts = [part.strip().strip("'\"") for part in listed[1].split(",")] if listed else []
    else:
        parts = label.split(separator) if separator in label else []
    return [part.strip() for part in parts if part.strip()]


def tell_alike(names: list[str], where: str, what: str = "classes") -> None:
    """Warn of two classes (or groups) that differ only in case, blanks or Unicode form, such as Cat and cat."""
    first: dict[str, str] = {}
    pairs = []
    for name in names:
        key = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        other = first.setdefault(key, name)
        if other != name:
            pairs.append(f"{other!r} and {name!r}")
    if pairs:
        more = f", and so are {len(pairs) - 1} more pairs" if len(pairs) > 1 else ""
        say_once(f"{what:<11} *** {pairs[0]} of {where} are two {what}{more}; should they be one? ***")


def distinct(names: list[str], ids: list[str]) -> list[str]:
    """The names; a name of several classes gets the id of its class, as 'crane (n02012849)'."""
    times = Counter(names)
    return [f"{name} ({id_})" if times[name] > 1 else name for name, id_ in zip(names, ids)]


def require_distinct(classes: list[str], dataset: str) -> None:
    """Raise `UserError` if two classes have the same name: results by class would mix them."""
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise UserError(
            f"dataset: {dataset} has several classes called {twice[0]!r}; give every class a name of its own"
        )
