"""The image files below a folder, and the number of the other files."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ssl.errors import one_line

# The extensions of decode.FORMATS.
EXTENSIONS = set(
    """
    .jpg .jpeg .jpe .jfif .png .apng .tif .tiff .webp .gif .bmp .ppm .pgm .pbm .pnm .pfm
    """.split()
)
# Names, in lower case, of files and folders that operating systems and programs leave among images.
JUNK = {"system volume information"} | set(
    """
    @eadir #recycle __macosx $recycle.bin lost+found thumbs.db desktop.ini
    """.split()
)
MOST_KINDS = 5  # kinds of other files that one line names


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden, such as ._1.jpg, or one of JUNK."""
    return name.startswith(".") or name.lower() in JUNK


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image, by its extension."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not is_junk(name)


def list_images(folder: Path) -> list[Path]:
    """Every image file below `folder`, relative to it, in byte order. Linked folders are followed once."""
    return list_files(folder)[0]


def list_files(folder: Path) -> tuple[list[Path], Counter]:
    """(`list_images`, number of other files by kind). Junk is in neither."""
    images, others = [], Counter()
    for path in _files(folder):
        if not is_image(path.name):
            others[_kind(path.name)] += 1
        elif (folder / path).is_file():
            images.append(path)
        else:  # a broken link, a pipe or a device
            others[f"{path.suffix.lower()} that are no ordinary files"] += 1
    return sorted(images, key=os.fsencode), others


def no_images(folder: Path) -> str:
    """The message for a folder without images."""
    return f"{folder} has no images (looked for {', '.join(sorted(EXTENSIONS))})"


def holds_images(folder: Path) -> bool:
    return any(is_image(path.name) for path in _files(folder))


def not_read(others: Counter) -> str:
    """'412 files were not read: 400 .heic, 12 without extension'; '' if there are none."""
    if not others:
        return ""
    ranked = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    kinds = ", ".join(f"{count} {kind}" for kind, count in ranked[:MOST_KINDS])
    more = f", and {len(others) - MOST_KINDS} more kinds" if len(others) > MOST_KINDS else ""
    return f"{others.total()} files were not read: {kinds}{more}"


def _files(folder: Path) -> Iterator[Path]:
    visited = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not is_junk(name))
        below = Path(parent).relative_to(folder)
        yield from (below / name for name in files if not is_junk(name))


def _kind(name: str) -> str:
    extension = os.path.splitext(name)[1].lower()
    return one_line(extension[:10]) if extension else "without extension"
