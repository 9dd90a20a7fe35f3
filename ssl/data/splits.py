"""The splits of a data set, and what folders, cells of a table and arrays call them."""

from pathlib import Path

from ssl.data.listing import is_junk
from ssl.errors import UserError

NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
SPLITS = tuple(NAMES)


def split_of(name: str) -> str | None:
    """The split that `name` means, in upper or lower case: 'val' for Validation. None for other words."""
    return next((split for split, names in NAMES.items() if name.lower() in names), None)


def split_folders(root: Path) -> dict[str, Path]:
    """{split: its folder in `root`}. Raises `UserError` where two folders are the same split."""
    found: dict[str, Path] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not is_junk(path.name)):
        split = split_of(folder.name)
        if split in found:
            raise UserError(
                f"data_dir: {found[split]} and {folder.name}/ beside it both mean the split {split!r}; put their "
                "images into one of them, or rename one"
            )
        if split:
            found[split] = folder
    return found
