"""The names of splits: in folders, cells of a table and arrays."""

import re
from pathlib import Path
from typing import TypeVar

from ssl.console import say_once
from ssl.data.listing import holds_images, is_junk
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
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not is_junk(path.name)):
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

    They seem to be splits if every folder with images has the word of a split in its name, one of them train and one
    another split.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not is_junk(path.name))
    meant = {path: _split_in(path.name) for path in folders}
    if "train" not in meant.values() or not {"val", "test"} & set(meant.values()):
        return []
    if any(split is None and holds_images(path) for path, split in meant.items()):
        return []
    return [path.name for path, split in meant.items() if split]


def val_as_test(found: dict[str, T], where: str) -> dict[str, T]:
    """`found` in the order train, val, test. If it has no test, its val is the test, as wherever splits are judged."""
    if "test" not in found and "val" in found:
        say_once(f"test        the split 'val' of {where}; there is no split 'test'")
        found = {"test" if split == "val" else split: data for split, data in found.items()}
    return {split: found[split] for split in SPLITS if split in found}


def _split_in(name: str) -> str | None:
    """The split whose word is in `name`, also with s or set at its end: 'test' for tests, test-images, test2017."""
    words = re.sub(r"[\W\d_]+", " ", name.lower()).split()
    return next(filter(None, (split_of(re.sub("(s|set)$", "", word)) for word in words)), None)
