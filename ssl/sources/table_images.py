"""A data set given by a table (CSV): its images, labels, groups and splits."""

import os
from pathlib import Path

import torch

from ssl.data.images import Images, Paths
from ssl.data.tables import read_table, shown
from ssl.errors import UserError, nearest
from ssl.settings.shared import DataSettings
from ssl.sources.classes import require_names, tell_alike, values
from ssl.sources.cut import NO_LABELS
from ssl.sources.lookup import find_images
from ssl.sources.splits import SPLITS, as_judged, part, split_of
from ssl.sources.unsplit import cut_if_labelled, unsplit, with_labels

INSTEAD = "--split_column names splits of your own"
BINARY = ["negative", "positive"]


def table(root: Path, settings: DataSettings, split: str) -> Images | None:
    """The images below `root` that the table `settings.csv` names, in byte order of their paths.

    Splits are those of the table, or chosen by the names (`cut.cut`), whole groups together. If the table has no test
    rows, its val rows are the test. Images without a label are only in the split 'unlabelled', as -1. Raises
    `UserError` as `read_table` and `find_images` do, and for an unknown split, several labels in a cell, labels that
    are quantities, and a split without images.
    """
    csv = settings.csv
    all_images, splits = _read(root, settings)
    unlabelled = f"label_column: is not set, so the images of {csv} have no classes"
    if splits is None:
        return unsplit(all_images, split, str(root), csv, INSTEAD, unlabelled)
    name = part(splits, split, csv)
    if name is None:
        return None
    if name not in splits:
        raise UserError(f"split_column: no row of {csv} has {name!r} in {settings.split_column!r}")
    if name in ("test", "val") and not all_images.classes:
        raise UserError(f"{unlabelled}; {NO_LABELS}")
    own = _of_split(all_images, splits, name)
    return own if split == "unlabelled" else with_labels(own, f"the split {name!r} of {csv}")


def by_split(root: Path, settings: DataSettings) -> dict[str, Images]:
    """{split: all its images} of a table as `table` reads it, with labels or without."""
    all_images, splits = _read(root, settings)
    if splits is None:
        return cut_if_labelled(all_images, str(root), settings.csv, INSTEAD)
    return as_judged({name: _of_split(all_images, splits, name) for name in set(splits)}, settings.csv)


def _read(root: Path, settings: DataSettings) -> tuple[Images, list[str] | None]:
    """(all images of the table, the split of each of them; None without a column of splits)."""
    csv = settings.csv
    names = [settings.image_column or "image", settings.label_column, settings.group_column, settings.split_column]
    rows = read_table(csv, [name for name in names if name is not None])
    cells = iter([[cell.strip() for cell in column] for column in zip(*rows)])
    next(cells)  # names of files stay as they are: they may begin or end with a blank
    labels, groups, splits = (None if name is None else next(cells) for name in names[1:])
    paths = find_images(root, [row[0] for row in rows])
    order = sorted(range(len(rows)), key=lambda row: os.fsencode(paths[row]))
    numbers, classes = _classes(settings, labels, len(rows))
    if groups is not None:
        groups = values(groups, settings.group_column, "each is a group of its own")
        tell_alike(sorted(set(groups) - {None}), f"column {settings.group_column!r} of {csv}", "groups")
    all_images = Images(
        "folder",
        torch.tensor(numbers)[order],
        classes,
        paths=Paths(paths[row] for row in order),
        groups=None if groups is None else [groups[row] for row in order],
        named=True,
    )
    if splits is None:
        return all_images, None
    _require_known(splits, settings.split_column)
    return all_images, [split_of(splits[row]) for row in order]


def _of_split(all_images: Images, splits: list[str], name: str) -> Images:
    return all_images.subset(torch.tensor([at for at, split in enumerate(splits) if split == name]))


def _classes(settings: DataSettings, labels: list[str] | None, count: int) -> tuple[list[int], list[str]]:
    """(class number of every row, -1 for none; names of the classes)."""
    if labels is None:
        return [-1] * count, []
    where = f"column {settings.label_column!r} of {settings.csv}"
    labels = values(labels, settings.label_column, "judging and fine-tuning leave them out")
    found = sorted({label for label in labels if label is not None})
    if not found:
        raise UserError(f"label_column: no row has a label in {where}")
    expected = "expected names or whole numbers; leave --label_column out to pre-train without labels"
    require_names(found, where, "csv", expected)
    if settings.positive is None:
        number = {name: label for label, name in enumerate(found)}
        return [-1 if label is None else number[label] for label in labels], found
    for value in settings.positive:
        if value not in found:
            raise UserError(
                f"positive: {value!r} is none of the labels in {where}: {shown(found)}{nearest(value, found)}"
            )
    if len(set(settings.positive)) == len(found):
        raise UserError(f"positive: names all labels in {where}, so no label is negative")
    return [-1 if label is None else int(label in settings.positive) for label in labels], BINARY


def _require_known(splits: list[str], column: str | None) -> None:
    """Raise `UserError` for a cell that names no split."""
    unknown = [(row, value) for row, value in enumerate(splits, 1) if split_of(value) is None]
    if unknown:
        row, value = unknown[0]
        raise UserError(
            f"split_column: {len(unknown)} of {len(splits)} rows have none of {', '.join(SPLITS)} in {column!r}; "
            f"the first is row {row} (after the header): {value!r}{nearest(value, SPLITS)}"
        )
