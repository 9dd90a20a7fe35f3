"""Record which images weights have learnt from, and refuse to judge the weights on these.

Before its first step a run writes `trained_on.pt` into its folder: keys (ssl/data/keys.py) of its images, how it uses
them, and the record of the weights it began with (`--init`). The scripts compare every image that judges the weights
with that record. Weights without it (exported files, other people's) are judged, and a line says that nothing is known.
"""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssl.checkpoints import torch_file
from ssl.console import say
from ssl.data import keys
from ssl.data.images import Images
from ssl.data.tables import first_few
from ssl.distributed import barrier, is_main
from ssl.errors import UserError, one_line
from ssl.settings import config
from ssl.sources.leaks import ids

FILE = "trained_on.pt"
MOST_FILES = 200_000  # of a larger data set no file is opened: the key is its name and size
MOST_BYTES = 4 << 30  # an unlabelled array that is larger is not read
USES = ("labels", "pixels", "choice")  # learnt from with labels; without; an epoch was chosen on them
# Kinds of keys. An image with a known name (below data_dir) is suspected; any other known key recognises it.
KINDS = ("name", "file", "source", "size", "pixels", "id", "group")
ALIKE = {"file": ("file", "source"), "source": ("file", "source")}  # another file may have been made of a file


@dataclass
class Part:
    """The images that a run used in one way of USES: {kind: sorted keys}.

    `shared` are keys that the run's own splits have on both sides, as some published sets do (`sources.leaks`).
    """

    use: str
    keys: dict[str, np.ndarray]
    shared: dict[str, np.ndarray]


@dataclass
class Record:
    """What weights have learnt from. `unknown`: weights that they began with, and that have no record."""

    parts: list[Part] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


# Written --------------------------------------------------------------------------------


def write(
    folder: Path,
    before: str | Path | None,
    used: Iterable[tuple[Images, str]],
    apart: Iterable[Images],
    root: str | Path | None,
) -> None:
    """Write the record of `folder`, on rank 0: the record of the weights at `before`, and the images `used`.

    `before` is the file or run folder that the run begins with, or `folder` if it continues; None: untrained weights.
    `used` are (images, one of USES); `apart` are the splits that the run does not learn from; `root` is data_dir.
    Raises `UserError` where the file cannot be written.
    """
    if not is_main():
        return
    record = Record() if before is None else read(before)
    others = [_keys(data, root) for data in apart]
    for data, use in used:
        own = _keys(data, root)
        if not {"file", "pixels"} & set(own) and data.pool is None:
            how = "by their names and sizes" if "size" in own else "not at all"
            say(f"learnt      {len(data):,} images are recorded {how}: they are too many to read now")
        own = {kind: np.setdiff1d(found, [0]) for kind, found in own.items()}  # sorted, once each; 0 is no key
        beside = {kind: np.concatenate([_NONE, *(other.get(kind, _NONE) for other in others)]) for kind in own}
        both = {kind: np.intersect1d(own[kind], beside[kind]) for kind in own} if use == "labels" else {}
        part = Part(use, own, both)
        if not any(_same(part, other) for other in record.parts):
            record.parts.append(part)
    content = {
        "unknown": record.unknown,
        "parts": [
            {"use": part.use, "keys": _as_tensors(part.keys), "shared": _as_tensors(part.shared)}
            for part in record.parts
        ],
    }
    try:
        torch_file.save(content, folder / FILE)
    except (OSError, RuntimeError) as error:
        raise UserError(f"output_dir: cannot write {folder / FILE} ({error})") from None


def begun_with(folder: Path, state: dict | None, settings: Any) -> str | Path | None:
    """The weights that a run begins with or, if there is a `state`, continues with; None: untrained weights."""
    if state is None:
        return settings.init
    return folder if torch_file.kept(folder) else settings.resume


def set_apart(load: Callable[[str], Images | None]) -> list[Images]:
    """The splits val and test, if the data set has them. `load` takes the name of a split. All ranks call it."""
    found = []
    for split in ("val", "test"):
        with contextlib.suppress(UserError):
            found.append(load(split))
    return [data for data in found if data is not None]


_NONE = np.empty(0, np.uint64)


def _same(one: Part, other: Part) -> bool:
    return one.use == other.use and all(
        here.keys() == there.keys() and all(np.array_equal(here[kind], there[kind]) for kind in here)
        for here, there in ((one.keys, other.keys), (one.shared, other.shared))
    )


def _as_tensors(found: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {kind: torch.from_numpy(values.view(np.int64)) for kind, values in found.items()}


def _keys(data: Images, root: str | Path | None, kinds: set[str] | None = None) -> dict[str, np.ndarray]:
    """{kind: (N,) uint64} of N images below `root`; 0 where an image has no key. Unset `kinds`: those to record.

    An id or a group that is only a number has no key: in another data set it may be another image.
    """
    found = {}
    if data.paths is not None:
        root = Path(root or "").expanduser()
        found["name"] = keys.of_words(keys.names(data.paths, root))
        few = len(data) <= MOST_FILES
        if {"file", "source"} & kinds if kinds else few:
            found["file"] = keys.of_files(data.paths)
        if "size" in kinds if kinds else not few:
            found["size"] = keys.of_sizes(data.paths)
        if (root / keys.SOURCES).is_file():
            found["source"] = _sources(root / keys.SOURCES, found["name"])
        if data.named:
            found["id"] = _of_ids(ids(data))
    held = data.resident if data.stored is None else data.stored
    readable = held is not None and (data.classes or np.prod(held.shape, dtype=np.int64) <= MOST_BYTES)
    if readable and (not kinds or "pixels" in kinds):
        found["pixels"] = keys.of_pixels(data)
    if data.groups is not None:
        found["group"] = _of_ids(data.groups)
    return found


def _sources(path: Path, names: np.ndarray) -> np.ndarray:
    """(N,) uint64: keys of the files from which `ssl.data.prepare` made the images of a folder; 0 where unknown."""
    content = torch_file.load(path)
    try:
        of_name = dict(zip(*(_as_arrays(content)[kind].tolist() for kind in ("name", "file"))))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        raise UserError(f"{path}: was not written by ssl.data.prepare; remove it") from None
    return np.array([of_name.get(name, 0) for name in names.tolist()], np.uint64)


def _of_ids(words: Iterable[str | None]) -> np.ndarray:
    words = [word or "" for word in words]
    return np.where([word.isdecimal() or not word for word in words], np.uint64(0), keys.of_words(words))


# Read -----------------------------------------------------------------------------------


def read(weights: str | Path) -> Record:
    """The record beside `weights`, a file or a run folder. With finetune.py --runs it is one folder above.

    Raises `UserError` for a file that is no record.
    """
    path = torch_file.find_encoder(weights)
    beside = [path.with_name(FILE), *([path.parent.parent / FILE] if path.parent.name.startswith("seed_") else [])]
    file = next((file for file in beside if file.is_file()), None)
    if file is None:
        return Record(unknown=[str(weights)])
    content = torch_file.load(file)
    try:
        parts = [Part(part["use"], _as_arrays(part["keys"]), _as_arrays(part["shared"])) for part in content["parts"]]
        if not all(part.use in USES for part in parts):
            raise ValueError
        return Record(parts, [str(words) for words in content["unknown"]])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        raise UserError(f"{file}: is no record of what weights have learnt from; put the run's own file back") from None


def _as_arrays(found: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    if not all(kind in KINDS and keys.dtype == torch.int64 and keys.ndim == 1 for kind, keys in found.items()):
        raise ValueError
    return {kind: keys.numpy().view(np.uint64) for kind, keys in found.items()}


# Compared -------------------------------------------------------------------------------


def check(
    weights: str | Path, judges: Images, root: str | Path | None, split: str = "test", chooses: Images | None = None
) -> None:
    """Raise `UserError` if `weights`, a file or run folder, have learnt with labels from images that `judges` holds.

    A line is printed, with a count, for images of `judges` that were seen without labels, that chose an epoch, or that
    have only the name of a training image; and for images of `chooses`, which only choose an epoch, that were learnt
    from. `root` is data_dir. `split` is test, or validation if a training is judged. All ranks call it.
    """
    if is_main():
        record = read(weights)
        for other in record.unknown[:5]:
            _tell_unknown(other)
        if record.parts:
            _compare(record, weights, judges, root, split, partial(_stop, split))
            if chooses is not None:
                _compare(record, weights, chooses, root, "validation", _flatters)
    barrier()


def _compare(
    record: Record,
    weights: str | Path,
    data: Images,
    root: str | Path | None,
    split: str,
    tell: Callable[[str], None],
) -> None:
    """`check` for one set of images. `tell` gets the sentence about images that were learnt from with labels."""
    own = _keys(data, root, {kind for part in record.parts for kind in part.keys})
    labels, pixels, choice = (_known(record, own, len(data), use) for use in USES)
    shared = _known(record, own, len(data), "labels", shared=True) & ~labels
    named = _named(record, own, len(data)) & ~labels & ~shared
    of = f"of the {len(data)} {split} images"
    if labels.any():
        some = first_few([data.sample_name(index) for index in labels.nonzero()[0][:4].tolist()])
        also = "" if data.groups is None else ", or of their patients, lesions or slides"
        tell(f"{labels.sum()} {of} are among those that {weights} learnt from, with labels{also}: {some}")
    if shared.any():
        _warn(
            f"{shared.sum()} {of} are equal to images that {weights} learnt from, or of the same patient, lesion or "
            "slide: that run's own splits have them on both sides"
        )
    if named.any():
        _warn(
            f"{named.sum()} {of} have the names of images that {weights} learnt from, and other content; if they "
            "show the same (resized, converted), they cannot judge"
        )
    if (choice & ~labels).any():
        _warn(f"{(choice & ~labels).sum()} {of} chose the best epoch of {weights}; numbers on them are too good")
    if (pixels & ~labels).any():
        say(f"learnt      {(pixels & ~labels).sum()} {of} were pre-trained on, without labels")


TO_DO = {
    "test": "Remove them, or name other images (evaluate.py and --test_only take the run's own test split where no "
    "--data_dir is given)",
    "validation": "Leave --eval_every and --ssl_val_interval out, and judge with evaluate.py",
}


def _stop(split: str, words: str) -> None:
    raise UserError(f"leak: {words}; images that weights learnt from cannot judge them. {TO_DO[split]}")


def _flatters(words: str) -> None:
    _warn(f"{words}; validation numbers will be too good, test numbers will not")


def _known(record: Record, own: dict[str, np.ndarray], count: int, use: str, shared: bool = False) -> np.ndarray:
    """Mask (count,) of the images that a run used in the way `use`.

    Without `shared`, images that the run's own splits share are left out; with it, only they are found.
    """
    found = np.zeros(count, bool)
    no_proof = {"name"} if use == "labels" else {"name", "group"}
    for part in record.parts:
        for kind in own.keys() - no_proof if part.use == use else ():
            known, both = (
                np.isin(own[kind], np.concatenate([there.get(other, _NONE) for other in ALIKE.get(kind, (kind,))]))
                for there in (part.keys, part.shared)
            )
            found |= both if shared else known & ~both
    return found


def _named(record: Record, own: dict[str, np.ndarray], count: int) -> np.ndarray:
    """Mask (count,) of the images that have the name of an image learnt from with labels."""
    found = np.zeros(count, bool)
    for part in record.parts:
        if part.use == "labels" and {"name"} <= own.keys() & part.keys.keys():
            found |= np.isin(own["name"], part.keys["name"])
    return found


def _tell_unknown(weights: str) -> None:
    """Say that nothing is known of `weights`. A run of ours without a record is older than the records."""
    run = {}
    with contextlib.suppress(UserError):  # an ancestor may be gone
        run = config.read_yaml(torch_file.find_encoder(weights).with_name("config.yaml"))
    if run.get("method") == "supcon" or run.get("balanced") or "freeze" in run:
        _warn(
            f"{weights} learnt from labels and has no {FILE}: it may have seen these images: older runs divided "
            "data without splits by their seed"
        )
    else:
        say(f"learnt      nothing is recorded of what {one_line(weights)} learnt from")


def _warn(words: str) -> None:
    say(f"learnt      *** {one_line(words)} ***")
