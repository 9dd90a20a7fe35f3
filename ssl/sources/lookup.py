"""The image files that belong to the names in a table."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TypeVar

from ssl.console import say_once, some_of
from ssl.data.listing import images_in, list_images
from ssl.errors import UserError

T = TypeVar("T")


def find_images(root: Path, names: list[str]) -> list[str]:
    """The image files below `root` that a table's names mean, in their order.

    A name is a path relative to `root`. The extension may be missing if only one image fits. If no image fits, folders
    may be missing, the case or Unicode form may differ, and \\ may separate folders, as long as only one image fits.
    Raises `UserError` for a name that leads out of `root`, for one that fits no image or several, and for two names of
    one image.
    """
    places = [_inside(root, name) for name in names]
    folders = {folder: by_name(root / folder) for folder in {place.parent for place in places}}
    found = [folders[place.parent].get(place.name, []) for place in places]
    missing = [name for name, files in zip(names, found) if not files]
    elsewhere = _elsewhere(root, missing)
    paths, first_row = [], {}
    for row, (name, place, files) in enumerate(zip(names, places, found), 1):
        fitting = [str(place.parent / file) for file in files] or elsewhere[name]
        if len(fitting) > 1:
            raise UserError(
                f"csv: {name!r} could be {' or '.join(sorted(fitting)[:3])}; write the folder and the extension"
            )
        if not fitting:
            continue
        path = str(root / fitting[0])
        if path in first_row:
            raise UserError(f"csv: {name!r} is in rows {first_row[path]} and {row}; an image may be there only once")
        first_row[path] = row
        paths.append(path)
    lost = [name for name in missing if not elsewhere[name]]
    if lost:
        raise UserError(
            f"csv: {len(lost)} of {len(names)} images are not in {root}: {some_of(lost)}; {_advice(root, lost)}"
        )
    if missing:
        example = f"{missing[0]!r} as {elsewhere[missing[0]][0]!r}"
        say_once(
            f"table       {len(missing)} of {len(names)} images were found in {root} in another folder, case or "
            f"Unicode form, such as {example}"
        )
    return paths


def _advice(root: Path, lost: list[str]) -> str:
    """What to do about names that fit no image below `root`. They may fit without their folders or their extension.

    This is only advice, as a name without its folders may fit another image: test/1.png that of train/1.png.
    """
    last = [re.split(r"[/\\]", name)[-1] for name in lost]
    fitting = _elsewhere(root, last)
    paths = {path for files in fitting.values() for path in files}
    if len(paths) == len(lost) and all(len(files) == 1 for files in fitting.values()):
        folders = sorted({name.removesuffix(end) for name, end in zip(lost, last)})
        places = sorted({str((root / path).parent) for path in paths})
        return (
            f"without {some_of(folders)} each is one image in {some_of(places)}: if these are meant, remove the "
            "folders from the names, or pass the --data_dir that the names are relative to"
        )
    without_extension = os.path.splitext(lost[0])[0]
    other = _elsewhere(root, [without_extension])[without_extension]
    return f"there is {other[0]!r}" if other else "is --data_dir the folder that the names are relative to?"


def by_name(folder: Path) -> dict[str, list[str]]:
    """{name, with and without extension: the image files of that name in a folder}."""
    files = images_in(folder)
    names: dict[str, list[str]] = defaultdict(list)
    for file in files:
        names[os.path.splitext(file)[0]].append(file)
    return {**names, **{file: [file] for file in files}}


def _inside(root: Path, name: str) -> PurePosixPath:
    place = PurePosixPath(os.path.normpath(name))
    if not name.strip():
        raise UserError("csv: a row names no image; fill in the cell, or remove the row")
    if place.is_absolute():
        raise UserError(f"csv: {name!r} is a whole path; write names relative to --data_dir, {root}")
    if ".." in place.parts:
        raise UserError(f"csv: {name!r} leads out of {root}; names are relative to --data_dir and stay in it")
    return place


def _elsewhere(root: Path, names: list[str]) -> dict[str, list[str]]:
    """{name: the images anywhere below `root` whose path ends with it}, in any case and Unicode form."""
    images = map(str, list_images(root) if names else [])
    ends = ((end, path) for path in images for end in {_compared(path), _compared(os.path.splitext(path)[0])})
    wanted = {name: _compared(os.path.normpath(name.replace("\\", "/"))) for name in names}
    found = {end: sorted(set(paths)) for end, paths in by_ending(wanted.values(), ends).items()}
    return {name: found[end] for name, end in wanted.items()}


def by_ending(endings: Iterable[str], paths: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    """{ending: the values of the paths that end with it}, of pairs (path, value). An ending begins at a folder's name.

    A path is looked up by each number of its last parts that an ending has, so the time is that of a list however often
    a name is repeated in other folders.
    """
    found: dict[str, list[T]] = {ending: [] for ending in endings}
    lengths = {ending.count("/") for ending in found}
    for path, value in paths:
        start = len(path)
        for length in range(path.count("/") + 1):
            start = path.rfind("/", 0, start)
            if length in lengths and path[start + 1 :] in found:
                found[path[start + 1 :]].append(value)
    return found


def _compared(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()
