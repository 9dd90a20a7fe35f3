"""The image files below a folder, and the number of the other files. A folder that cannot be read is an error."""

import contextlib
import errno
import heapq
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ssl.errors import UserError, one_line

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
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)  # of a path, or of what a link leads to


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden, such as ._1.jpg, or one of JUNK."""
    return name.startswith(".") or name.lower() in JUNK


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image, by its extension."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not is_junk(name)


@contextlib.contextmanager
def listing(folder: Path) -> Iterator[None]:
    """Raise an OSError in the block as `UserError`: what cannot be listed must not be left out in silence."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} cannot be listed ({error.strerror or error}); make it readable, or take it "
            "out of the folder of images"
        ) from None


def folders_in(folder: Path) -> list[Path]:
    """The folders in `folder` and the links to folders, in order, without junk. Raises `UserError`."""
    with listing(folder), os.scandir(folder) as entries:
        return sorted(
            Path(entry.path)
            for entry in entries
            if not is_junk(entry.name)
            and (entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and stat.S_ISDIR(_mode(entry.path))))
        )


def images_in(folder: Path) -> list[str]:
    """The names of the image files in `folder` itself; none if there is no such folder. Raises `UserError`."""
    with listing(folder):
        if not stat.S_ISDIR(_mode(folder)):
            return []
        with os.scandir(folder) as entries:
            return [
                entry.name
                for entry in entries
                if is_image(entry.name)
                and (entry.is_file(follow_symlinks=False) or (entry.is_symlink() and stat.S_ISREG(_mode(entry.path))))
            ]


def _mode(path: str | Path) -> int:
    """The mode of what is at `path`, or at the end of its link; 0 if nothing is there."""
    try:
        return os.stat(path).st_mode
    except OSError as error:
        if error.errno in NOT_THERE:
            return 0
        raise


def list_images(folder: Path) -> list[Path]:
    """Every image file below `folder`, relative to it, in byte order. A folder is read once, whatever links to it."""
    return list_files(folder)[0]


def list_files(folder: Path) -> tuple[list[Path], Counter]:
    """(`list_images`, number of other files by kind). Junk is in neither."""
    images, others = [], Counter()
    with listing(folder):
        for path in _files(folder):
            if not is_image(path.name):
                others[_kind(path.name)] += 1
            elif stat.S_ISREG(_mode(folder / path)):
                images.append(path)
            else:  # a broken link, a pipe or a device
                others[f"{path.suffix.lower()} that are no ordinary files"] += 1
    return sorted(images, key=os.fsencode), others


def no_images(folder: Path) -> str:
    """The message for a folder without images."""
    return f"{folder} has no images (looked for {', '.join(sorted(EXTENSIONS))})"


def holds_images(folder: Path) -> bool:
    with listing(folder):
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
    """The files below `folder` but junk. Linked folders come last, so that an image is found in its own folder first.

    Raises OSError, where os.walk would leave a folder out.
    """

    def refuse(error: OSError) -> None:
        raise error

    visited, links = set(), [folder]  # a heap: each link is as if walked at its place in the order
    while links:
        for parent, folders, files in os.walk(heapq.heappop(links), onerror=refuse):
            status = os.stat(parent)
            if (status.st_dev, status.st_ino) in visited:
                folders.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not is_junk(name))
            for path in (Path(parent, name) for name in folders if os.path.islink(os.path.join(parent, name))):
                heapq.heappush(links, path)
            below = Path(parent).relative_to(folder)
            yield from (below / name for name in files if not is_junk(name))


def _kind(name: str) -> str:
    extension = os.path.splitext(name)[1].lower()
    return one_line(extension[:10]) if extension else "without extension"
