"""Record which images weights have learnt from, and refuse to judge the weights on these.

Before its first step a run writes `trained_on.pt` into its folder: keys of its images (`image_keys`), how it uses them,
and the record of the weights it began with (`--init`). The scripts compare every image that judges the weights with
that record. Weights without it (exported files, other people's) are judged, and a line says that nothing is known.
"""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ssl.checkpoints import image_keys, published, torch_file
from ssl.checkpoints.image_keys import from_tensors, to_tensors
from ssl.console import say, some_of
from ssl.data.images import Images
from ssl.distributed import barrier, is_main
from ssl.errors import UserError, one_line
from ssl.settings import config
from ssl.sources.identity import OtherImages
from ssl.sources.lesions import TABLES

FILE = "trained_on.pt"
USES = ("labels", "pixels", "choice")  # learnt from with labels; without; an epoch was chosen on them
ALIKE = {"file": ("file", "source"), "source": ("file", "source")}  # another file may have been made of a file
TO_DO = {
    "test": "Remove them, or name other images (evaluate.py and --test_only take the run's own test split where no "
    "--data_dir is given)",
    "validation": "Leave --eval_every and --ssl_val_interval out, and judge with evaluate.py",
}
NONE = np.empty(0, np.uint64)


@dataclass
class Part:
    """The images that a run used in one way of USES: {kind: sorted keys}.

    `shared` are keys that the run's own splits have on both sides, as in some published sets (`sources.leaks`).
    """

    use: str
    keys: dict[str, np.ndarray]
    shared: dict[str, np.ndarray]


@dataclass
class Record:
    """What weights have learnt from. `unknown`: weights without a record that they began with."""

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

    `before` is the file, run folder or published weights that the run begins with, or `folder` if it continues; None:
    untrained weights.
    `used` are (images, one of USES); `apart` are the splits that the run does not learn from; `root` is data_dir.
    Raises `UserError` where the file cannot be written.
    """
    if not is_main():
        return
    record = Record() if before is None else read(before)
    others = [image_keys.find(data, root) for data in apart]
    for data, use in used:
        own = image_keys.find(data, root)
        if not {"file", "pixels"} & set(own) and data.pool is None:
            how = "by their names and sizes" if "size" in own else "not at all"
            say(f"learnt      {len(data):,} images are recorded {how}: they are too many to read now")
        part = _part(use, own, others)
        if not any(_same(part, other) for other in record.parts):
            record.parts.append(part)
    parts = [
        {"use": part.use, "keys": to_tensors(part.keys), "shared": to_tensors(part.shared)} for part in record.parts
    ]
    try:
        torch_file.save({"unknown": record.unknown, "parts": parts}, folder / FILE)
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
        try:
            found.append(load(split))
        except OtherImages:
            raise
        except UserError:  # there is no such split
            continue
    return [data for data in found if data is not None]


def _part(use: str, found: dict[str, np.ndarray], others: list[dict[str, np.ndarray]]) -> Part:
    """Images with the keys `found`. `others` are the keys of the splits that the run does not learn from."""
    own = {kind: np.setdiff1d(values, [0]) for kind, values in found.items()}  # sorted, once each; 0 is no key
    shared = {}
    if use == "labels":
        beside = {kind: np.concatenate([NONE, *(other.get(kind, NONE) for other in others)]) for kind in own}
        shared = {kind: np.intersect1d(own[kind], beside[kind]) for kind in own}
    return Part(use, own, shared)


def _same(one: Part, other: Part) -> bool:
    return one.use == other.use and all(
        here.keys() == there.keys() and all(np.array_equal(here[kind], there[kind]) for kind in here)
        for here, there in ((one.keys, other.keys), (one.shared, other.shared))
    )


# Read -----------------------------------------------------------------------------------


def read(weights: str | Path) -> Record:
    """The record beside `weights`, a file or a run folder. With finetune.py --runs it is one folder above.

    Raises `UserError` for a file that is no record.
    """
    if published.is_name(weights):
        return Record(unknown=[str(weights)])
    path = torch_file.find_encoder(weights)
    beside = [path.with_name(FILE), *([path.parent.parent / FILE] if path.parent.name.startswith("seed_") else [])]
    file = next((file for file in beside if file.is_file()), None)
    if file is None:
        return Record(unknown=[str(weights)])
    content = torch_file.load(file)
    try:
        parts = [
            Part(part["use"], from_tensors(part["keys"]), from_tensors(part["shared"])) for part in content["parts"]
        ]
        if not all(part.use in USES for part in parts):
            raise ValueError
        return Record(parts, [str(words) for words in content["unknown"]])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        raise UserError(f"{file}: is no record of what weights have learnt from; put the run's own file back") from None


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
        if words := _compare(record, weights, judges, root, split):
            raise UserError(f"leak: {words}; images that weights learnt from cannot judge them. {TO_DO[split]}")
        if chooses is not None and (words := _compare(record, weights, chooses, root, "validation")):
            _warn(f"{words}; validation numbers will be too good, test numbers will not")
    barrier()


def uses(weights: str | Path, data: Images | None, root: str | Path | None) -> set[str]:
    """In which ways of USES the weights have used images of `data`, as far as it is recorded."""
    record = read(weights)
    if data is None or not record.parts:
        return set()
    own = image_keys.find(data, root, {kind for part in record.parts for kind in part.keys})
    return {use for use in USES if _seen(record, own, data, use)[0].any()}


def _compare(record: Record, weights: str | Path, data: Images, root: str | Path | None, split: str) -> str | None:
    """Say which images of `data` the weights have seen. Returns words on those that they learnt from with labels."""
    if not record.parts:
        return None
    own = image_keys.find(data, root, {kind for part in record.parts for kind in part.keys})
    (labels, shared), (pixels, _), (choice, _) = (_seen(record, own, data, use) for use in USES)
    shared &= ~labels
    named = _named(record, own, len(data)) & ~labels & ~shared
    of = f"of the {len(data)} {split} images"
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
    if not labels.any():
        return None
    some = some_of([data.sample_name(index) for index in labels.nonzero()[0][:3].tolist()])
    also = "" if data.groups is None else ", or of their patients, lesions or slides"
    return f"{labels.sum()} {of} are among those that {weights} learnt from, with labels{also}: {some}"


def _seen(record: Record, own: dict[str, np.ndarray], data: Images, use: str) -> tuple[np.ndarray, np.ndarray]:
    """Masks (N,) of the images that a run used in the way `use`, and of those that its own splits share."""
    seen, shared = np.zeros(len(data), bool), np.zeros(len(data), bool)
    no_proof = {"name"} if use == "labels" else {"name", "group"}
    no_proof |= set() if data.name in TABLES else {"id"}  # in a table of your own, two hospitals may count alike
    for part in record.parts:
        for kind in own.keys() - no_proof if part.use == use else ():
            alike = ALIKE.get(kind, (kind,))
            known, both = (
                np.isin(own[kind], np.concatenate([there.get(other, NONE) for other in alike]))
                for there in (part.keys, part.shared)
            )
            seen |= known & ~both
            shared |= both
    return seen, shared


def _named(record: Record, own: dict[str, np.ndarray], count: int) -> np.ndarray:
    """Mask (count,) of the images that have the name, path or name in a table, of one learnt from with labels."""
    named = np.zeros(count, bool)
    for kind in own.keys() & {"name", "id"}:
        learnt = [part.keys.get(kind, NONE) for part in record.parts if part.use == "labels"]
        named |= np.isin(own[kind], np.concatenate([NONE, *learnt]))
    return named


def _tell_unknown(weights: str) -> None:
    """Say that nothing is known of `weights`. A run of ours without a record is older than the records."""
    if published.is_name(weights):
        say(f"learnt      {weights}: {published.saw(weights)}; these are not compared with your images")
        return
    run = {}
    with contextlib.suppress(UserError, OSError):  # the weights may be gone, or the record name what is no path
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
