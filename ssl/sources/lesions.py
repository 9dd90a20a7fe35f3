"""Data sets of skin lesions, melanoma (positive) or not, with the tables published with them.

`data_dir` is the folder of the image files. ISIC 2019 is read by the split files in `splits_folder`. The others are
only tests, each read by one table, `csv`:

| data set | table | positive | images (positive) |
|---|---|---|---|
| isic2019 | {train,val,test}_split_1.csv | MEL; not NV BKL AK DF VASC | 14,805 (3,121), 1,931 (224), 3,863 (396) |
| isic2020 | isic2020-subset-test.csv | label 1 | 1,743 (581) |
| derm7pt-clinical, derm7pt-dermoscopic | semicolons; image, diagnosis | 3.2…; negative 1.… | 839 (248), 872 (252) |
| pad-ufes-20 | pad-ufes-20-labels.csv | label 1 | 1,261 (52) |
"""

import contextlib
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from ssl.console import say, some_of
from ssl.data.images import Images, Paths
from ssl.data.tables import read_table
from ssl.errors import UserError
from ssl.sources.lookup import by_name, find_images
from ssl.sources.splits import SPLITS
from ssl.sources.table_images import BINARY

# Name: (column of the label, (pattern of class 0, of class 1)).
_ISIC = ("label", ("0", "1"))
_DERM7PT = ("diagnosis", ("1.*", "3.2*"))
TABLES = {
    "isic2019": _ISIC,
    "isic2020": _ISIC,
    "derm7pt-clinical": _DERM7PT,
    "derm7pt-dermoscopic": _DERM7PT,
    "pad-ufes-20": _ISIC,
}
OTHER_NAMES = {  # in the published code and its description
    "isic": "isic2019",
    "isic20": "isic2020",
    "atlas-clinical": "derm7pt-clinical",
    "atlas-dermato": "derm7pt-dermoscopic",
    "derm7pt-dermato": "derm7pt-dermoscopic",
}
METADATA = "ISIC_2019_Training_Metadata.csv"  # the lesion of every image
PREFIX = "ISIC_2019_Training_Input/"
SMALLER = "_downsampled"  # the end of the names of some files of ISIC 2019


def load(name: str, root: Path, split: str, csv: str | None, splits_folder: str | None) -> Images:
    """A split of one of TABLES, in its table's order. Raises `UserError` for what is missing or not as published."""
    if name == "isic2019":
        if splits_folder is None or csv is not None:
            raise UserError(
                "splits_folder: isic2019 is read by train_split_1.csv, val_split_1.csv and test_split_1.csv; pass the "
                "folder they are in as --splits_folder, and no --csv"
            )
        part = split if split in SPLITS else "train"
        file = Path(splits_folder).expanduser() / f"{part}_split_1.csv"
        if part == "train":
            tell_twins(file)
    elif split != "test":
        raise UserError(
            f"dataset: {name} is a test set and has no split {split!r} to learn from; it is for --test_only"
        )
    elif csv is None:
        raise UserError(f"csv: {name} is read by the table published with it; pass it as --csv FILE")
    else:
        file = Path(csv).expanduser()
    names, labels = zip(*read_labels(name, file))
    there = by_name(root)
    files = [image if image in there or image + SMALLER not in there else image + SMALLER for image in names]
    paths = find_images(root, files)
    groups = lesions_of(names, root, file.parent) if name == "isic2019" else None
    return Images(name, torch.tensor(labels), BINARY, paths=Paths(paths), groups=groups, named=True)


def read_labels(name: str, file: Path) -> list[tuple[str, int]]:
    """(image, 1 for melanoma or 0) of every row of a table of the data set `name`."""
    column, patterns = TABLES[name]
    rows = read_table(file, ["image", column])
    known = {cell: [fnmatchcase(cell, pattern) for pattern in patterns] for _, cell in rows}
    wrong = sorted(cell for cell, matches in known.items() if not any(matches))
    if wrong:
        raise UserError(
            f"csv: column {column!r} of {file} holds labels outside the classes: {some_of(wrong)}; expected "
            f"{patterns[0]} (negative) or {patterns[1]} (positive), as published"
        )
    return [(image.removeprefix(PREFIX), known[cell].index(True)) for image, cell in rows]


def tell_twins(file: Path) -> list[str]:
    """Warn of the folders beside it whose train file has the same images; return them. They are no independent runs."""
    names, twins = {image for image, _ in read_labels("isic2019", file)}, []
    for other in sorted(file.parent.absolute().parent.glob(f"*/{file.name}")):
        with contextlib.suppress(UserError, OSError):  # an error in another folder does not concern this run
            if not other.samefile(file) and {image for image, _ in read_labels("isic2019", other)} == names:
                twins.append(other.parent.name)
    if twins:
        say(
            f"splits      *** {file} has the same {len(names):,} images as {', '.join(twins)}: "
            "results on them are no independent repetitions ***"
        )
    return twins


def lesions_of(names: tuple[str, ...], *folders: Path) -> list[str | None] | None:
    """The lesion of each image, by METADATA in one of the folders; None if it is in none of them."""
    file = next((folder / METADATA for folder in folders if (folder / METADATA).is_file()), None)
    if file is None:
        return None
    lesion = {image.removesuffix(SMALLER): cell for image, cell in read_table(file, ["image", "lesion_id"]) if cell}
    return [lesion.get(image.removesuffix(SMALLER)) for image in names]
