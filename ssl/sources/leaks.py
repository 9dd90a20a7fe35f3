"""Leaks: images that are in two splits, so that a model would be judged on what it has learnt from.

The same file, the same patient, lesion or slide, and the same name in a table with the same content in two splits are
errors. The same bytes under two names are a warning: published data sets have such pairs, and a published split cannot
be changed. For the same reason a lesion in two of ISIC 2019's published splits is a warning. The same name with other
content is a warning, too: another hospital may have counted alike. Mere numbers are no names. Those of the published
lesion sets are ids, of which a smaller copy is the same image.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

from ssl.console import say, some_of
from ssl.data import keys
from ssl.data.images import Images
from ssl.distributed import is_main
from ssl.errors import UserError, one_line
from ssl.sources.lesions import SMALLER, TABLES

MOST_READ = 256 << 20  # bytes that are read to find equal files


def check(splits: dict[str, Images | None]) -> None:
    """Raise `UserError` if two of the splits ('train', 'val', 'test') share images or groups; warn of equal files.

    Only rank 0 checks. Of images that are no files only the groups are compared.
    """
    if not is_main():
        return
    present = {name: data for name, data in splits.items() if data is not None}
    with_files = {name: data for name, data in present.items() if data.paths is not None}
    found = {name: _files(data) for name, data in with_files.items()}
    _compare(
        {name: {file: path for file, (_, path) in files.items()} for name, files in found.items()}, "images", _stop
    )
    published = any(data.name in TABLES for data in present.values())
    _compare_names({name: _names(data) for name, data in with_files.items() if data.named}, published)
    groups = {name: {group: group for group in data.groups if group} for name, data in present.items() if data.groups}
    _compare(groups, "patients, lesions or slides", _warn if published else _stop)
    _compare(_equal_files(found), "images, byte for byte,", _warn)


def _compare(things: dict[str, dict], what: str, tell: Callable[[str], None]) -> None:
    """Call `tell` for every two splits that share `things`: {split: {identity: its name}}."""
    for here, there in combinations(things, 2):
        shared = things[here].keys() & things[there].keys()
        if shared:
            words = sorted(things[there][thing] for thing in shared)
            tell(f"{len(shared)} {what} of {there} are in {here} too: {some_of(words)}")


def _compare_names(names: dict[str, dict[str, str]], are_ids: bool) -> None:
    """The same for {split: {name in the table: path}}, whose files are read where two splits have the name."""
    shared = {name for here, there in combinations(names.values(), 2) for name in here.keys() & there.keys()}
    names = {split: {name: path for name, path in paths.items() if name in shared} for split, paths in names.items()}
    contents = {split: keys.of_files(list(paths.values())).tolist() for split, paths in names.items()}
    same = {
        split: {(name, key): path for (name, path), key in zip(paths.items(), contents[split]) if key}  # 0: unreadable
        for split, paths in names.items()
    }
    _compare(same, "images, by name,", _stop)
    words = {split: {name: paths[name] for name in paths if not name.isdecimal()} for split, paths in names.items()}
    _compare(words, "images, by name alone,", _stop if are_ids else _warn)


def _stop(words: str) -> None:
    raise UserError(f"leak: {words}. Remove them from one of the two: a model cannot be judged on what it learns from")


def _warn(words: str) -> None:
    say(f"leak        *** {one_line(words)} ***")


def _files(data: Images) -> dict[tuple, tuple[int, str]]:
    """{(device, inode): (size, path)}, so that a link to a file is that file."""
    found = {}
    for path in data.paths:
        try:
            status = os.stat(path)
        except OSError:  # a file that cannot be read is left out later, and counted
            continue
        found[status.st_dev, status.st_ino] = status.st_size, path
    return found


def ids(data: Images) -> list[str | None]:
    """The names of files; all None if a name occurs twice, as 0001.jpg in several folders: then names are no ids."""
    names = [Path(path).stem.removesuffix(SMALLER) for path in data.paths]
    return names if Counter(names).most_common(1)[0][1] == 1 else [None] * len(names)


def _names(data: Images) -> dict[str, str]:
    return {name: path for name, path in zip(ids(data), data.paths) if name is not None}


def _equal_files(found: dict[str, dict[tuple, tuple[int, str]]]) -> dict[str, dict[tuple, str]]:
    """For every split {(size, checksum): path} of the files whose size another split has, too.

    At most MOST_READ bytes are read, the sizes with the fewest bytes first. A line says so if that was not all.
    """
    of_size: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for split, files in found.items():
        for size, path in files.values():
            of_size[size].append((split, path))
    sizes = [size for size, files in of_size.items() if len({split for split, _ in files}) > 1]
    equal: dict[str, dict[tuple, str]] = {split: {} for split in found}
    read = 0
    for size in sorted(sizes, key=lambda size: (size * len(of_size[size]), size)):
        read += size * len(of_size[size])
        if read > MOST_READ:
            say(f"leak        only {MOST_READ >> 20} MiB of the files of equal size were compared")
            break
        for split, path in of_size[size]:
            try:
                checksum = hashlib.blake2b(Path(path).read_bytes()).digest()
            except OSError:
                continue
            equal[split][size, checksum] = path
    return equal
