"""The names of splits: in folders, cells of a table and arrays."""

import re
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

from ssl.console import say_once
from ssl.data.listing import folders_in, holds_images
from ssl.errors import UserError

NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
SPLITS = tuple(NAMES)
T = TypeVar("T")


def split_of(name: str) -> str | None:
    """The split that `name` means, in upper or lower case: 'val' for Validation. None for other words."""
    return next((split for split, names in NAMES.items() if name.lower() in names), None)


def split_folders(root: Path) -> dict[str, Path]:
    """{split: its folder in `root`}. Raises `UserError` if two folders are the same split."""
    found: dict[str, Path] = {}
    for folder in folders_in(root):
        split = split_of(folder.name)
        if split in found:
            raise UserError(
                f"data_dir: {found[split]} and {folder.name}/ beside it are both the split {split!r}; put all their "
                "images into one of them, or rename one"
            )
        if split:
            found[split] = folder
    return found


def seeming_splits(root: Path) -> list[str]:
    """The folders in `root` if they seem to be splits with other names, such as training_set and test_set; else [].

    The word of a split is in their names, and one is train and one another split. They seem to be splits if no other
    folder has images, or else if their names are the same without that word: train2017 and val2017 beside extra.
    """
    meant = {path: _split_in(path.name) for path in folders_in(root)}
    named = {path: found for path, found in meant.items() if found}
    if not _are_splits({split for split, _ in named.values()}):
        return []
    if all(found or not holds_images(path) for path, found in meant.items()):
        return [path.name for path in named]
    splits = defaultdict(set)  # the other words of a name -> the splits that are called so
    for path, (split, others) in named.items():
        if holds_images(path):
            splits[others].add(split)
    return [path.name for path, (_, others) in named.items() if _are_splits(splits[others])]


def part(found: Collection[str], split: str, where: str) -> str | None:
    """The name of the split in `found` that is `split` of `datasets.load_as`; perhaps it is not there.

    If there is no test, val is the test, which a line says, and there is no split 'val', None.
    """
    if split == "val":
        return "val" if "val" in found and "test" in found else None
    if split not in ("test", "all"):
        return "train"
    if "test" in found or "val" not in found:
        return "test"
    say_once(f"test        the split 'val' of {where}; there is no split 'test'")
    return "val"


def as_judged(found: dict[str, T], where: str) -> dict[str, T]:
    """`found` in the order train, val, test, each as `part` finds it."""
    names = {split: part(found, split, where) for split in SPLITS}
    return {split: found[name] for split, name in names.items() if name in found}


def _split_in(name: str) -> tuple[str, str] | None:
    """(the split whose word is in `name`, the other words). The word may end with s or set, as in tests and trainset;
    signs and digits do not count: ('test', 'images') for Test-images-2."""
    words = re.sub(r"[\W\d_]+", " ", name.lower()).split()
    for place, word in enumerate(words):
        if split := split_of(re.sub("(s|set)$", "", word)):
            return split, " ".join(words[:place] + words[place + 1 :])
    return None


def _are_splits(found: set[str]) -> bool:
    return "train" in found and len(found) > 1
