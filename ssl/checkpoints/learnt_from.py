"""What weights have learnt from: written beside them, carried from run to run, and never what judges them.

Before its first step a run writes `trained_on.pt` into its folder: keys (ssl/data/keys.py) of its images, how it uses
them, and what the weights it began with (`--init`) had learnt from. The scripts compare with that whatever they judge
the weights on. Files elsewhere (exported, other people's) have no such record; of them nothing is known, and that is
said.
"""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

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
MOST_FILES = 200_000  # of a data set that are opened; of more the name and the size is the key
MOST_BYTES = 4 << 30  # of an array without labels, of which more is not read
USES = ("labels", "pixels", "choice")  # learnt from with labels; without; an epoch was chosen on them
# What keys are of. By its name below data_dir alone an image is suspected, by any other key it is recognised.
KINDS = ("name", "file", "source", "size", "pixels", "id", "group")
ALIKE = {"file": ("file", "source"), "source": ("file", "source")}  # a file may be what another was made of


@dataclass
class Part:
    """The images that a run used in one of USES: {kind: sorted keys}.

    `shared` are those that the run's own splits have on both sides, as published sets do (ssl/data/leaks.py tells).
    """

    use: str
    keys: dict[str, np.ndarray]
    shared: dict[str, np.ndarray]


@dataclass
class Record:
    """`unknown` names the weights among the ancestors of which nothing is recorded."""

    parts: list[Part] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


# Written --------------------------------------------------------------------------------


def write(
    folder: Path, before: str | Path | None, used: Iterable[tuple[Images, str]], apart: Iterable[Images], root
) -> None:
    """Rank 0 writes the record of `folder`: that of the weights at `before`, and the images `used` in one of USES.

    `before` is the file or run folder that the run begins with, or `folder` where it goes on; None: untrained. `apart`
    are the splits that the run does not learn from. `root` is data_dir. Raises `UserError`.
    """
    if not is_main():
        return
    record = Record() if before is None else read(before)
    others = [_keys(data, root) for data in apart]
    for data, use in used:
        own = _keys(data, root)
        if not {"file", "pixels"} & set(own) and data.pool is None:
            how = "by their names and sizes" if "size" in own else "nowhere"
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


def begun_with(folder: Path, state: dict | None, settings) -> str | Path | None:
    """The weights that a run begins with, or goes on with where there is a `state` of it; None: untrained ones."""
    if state is None:
        return settings.init
    return folder if torch_file.kept(folder) else settings.resume


def set_apart(load: Callable[[str], Images | None]) -> list[Images]:
    """The splits that are not for training, as far as the data set has them. All ranks call it."""
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
    """{kind: (N,) uint64, 0 where an image has none} of images below `root`; of these `kinds`, or as they are recorded.

    An id or a group that is a mere number says nothing about another data set, and has no key.
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
    """(N,) uint64, of the files that images of a folder made by `ssl.data.prepare` were made of; 0 where unknown."""
    content = torch_file.load(path)
    try:
        of_name = dict(zip(*(_as_arrays(content)[kind].tolist() for kind in ("name", "file"))))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        raise UserError(f"{path}: is not what ssl.data.prepare writes; remove it") from None
    return np.array([of_name.get(name, 0) for name in names.tolist()], np.uint64)


def _of_ids(words: Iterable[str | None]) -> np.ndarray:
    words = [word or "" for word in words]
    return np.where([word.isdecimal() or not word for word in words], np.uint64(0), keys.of_words(words))


# Read -----------------------------------------------------------------------------------


def read(weights: str | Path) -> Record:
    """The record beside weights, a file or a run folder; of one of several fine-tunings it is in the folder above.

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
        raise UserError(
            f"{file}: is no record of what weights have learnt from; put back the file that the run wrote"
        ) from None


def _as_arrays(found: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    if not all(kind in KINDS and keys.dtype == torch.int64 and keys.ndim == 1 for kind, keys in found.items()):
        raise ValueError
    return {kind: keys.numpy().view(np.uint64) for kind, keys in found.items()}


# Compared -------------------------------------------------------------------------------


def check(
    weights: str | Path, judges: Images, root: str | Path | None, split: str = "test", chooses: Images | None = None
) -> None:
    """Raise `UserError` if weights, a file or run folder, have learnt with labels from an image that `judges` them.

    Of images that only choose an epoch (`chooses`) that is said. Said, with the count, is also what the weights have
    seen without labels, what chose an epoch of theirs, and what has only the name of something they learnt from. All
    ranks call it; rank 0 looks. `root` is data_dir; `split` is test or, of a training that is judged, validation.
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


def _compare(record: Record, weights, data: Images, root, split: str, tell: Callable[[str], None]) -> None:
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
            "show the same (made smaller, converted), they cannot judge"
        )
    if (choice & ~labels).any():
        _warn(f"{(choice & ~labels).sum()} {of} chose the best epoch of {weights}; numbers on them flatter it")
    if (pixels & ~labels).any():
        say(f"learnt      {(pixels & ~labels).sum()} {of} were pre-trained on, without labels")


TO_DO = {
    "test": "Take them out, or name other images (evaluate.py and --test_only take the run's own test split where no "
    "--data_dir is given)",
    "validation": "Leave --eval_every and --ssl_val_interval away, and judge by evaluate.py",
}


def _stop(split: str, words: str) -> None:
    raise UserError(f"leak: {words}; what was learnt from cannot judge. {TO_DO[split]}")


def _flatters(words: str) -> None:
    _warn(f"{words}; the numbers of the validation flatter, those of the test do not")


def _known(record: Record, own: dict[str, np.ndarray], count: int, use: str, shared: bool = False) -> np.ndarray:
    """Mask (count,) of the images that a run used so; those that its own splits share are left out, or are alone."""
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
    found = np.zeros(count, bool)
    for part in record.parts:
        if part.use == "labels" and {"name"} <= own.keys() & part.keys.keys():
            found |= np.isin(own["name"], part.keys["name"])
    return found


def _tell_unknown(weights: str) -> None:
    """A run of ours that has no record is older than the records."""
    run = {}
    with contextlib.suppress(UserError):  # an ancestor may be gone
        run = config.read_yaml(torch_file.find_encoder(weights).with_name("config.yaml"))
    if run.get("method") == "supcon" or run.get("balanced") or "freeze" in run:
        _warn(
            f"{weights} learnt from labels and has no {FILE}: whether it knows these images cannot be told; runs of "
            "before cut by their seed what comes without splits"
        )
    else:
        say(f"learnt      nothing is recorded of what {one_line(weights)} learnt from")


def _warn(words: str) -> None:
    say(f"learnt      *** {one_line(words)} ***")
