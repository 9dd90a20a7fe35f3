"""Read the user's images and labels, draw labels, and refuse what cannot be answered, before anything is computed."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ssl.checkpoints import image_keys
from ssl.console import counted, say
from ssl.data.hold_out import held_out
from ssl.data.images import Images, Paths
from ssl.errors import UserError
from ssl.settings.shared import ImageSettings
from ssl.sources import datasets, labels, leaks
from ssl.sources.folders import images_below
from ssl.worth.plan import DRAWS, Sizes
from ssl.worth.splits import ALL, HELD, Draw, called, can_tune, counts_for, draw

FEW_TEST = 30  # test images, below which hardly any difference can be seen
UNEQUAL = 3  # times as many images of one class as of another: then every class counts alike


@dataclass(frozen=True)
class Look:
    """The splits with labels, the draws of labels, and what follows from them."""

    splits: dict[str, Images | None]
    draws: list[Draw]  # of frozen encoders; the first ones of each count are those of fine-tuning
    tunable: set[tuple[int, int]]  # (count, seed) that finetune.py takes
    balanced: bool

    @property
    def train(self) -> Images:
        return self.splits["train"]

    def draw(self, count: int, seed: int) -> Draw:
        return next(one for one in self.draws if (one.count, one.seed) == (count, seed))

    def labels(self) -> dict[int, int]:
        """{labels a class: labels together}, few first, as the first seed has them."""
        return {one.count: len(one.chosen) for one in self.draws if one.seed == 0}

    def sizes(self) -> Sizes:
        train, val, test = (self.splits[name] for name in ("train", "val", "test"))
        of_draw = {one.count: (len(one.fit), len(one.held)) for one in self.draws if one.seed == 0}
        return Sizes(len(train), 0 if val is None else len(val), len(test), len(train.classes), of_draw)


def look(settings: ImageSettings, seeds: int) -> Look:
    """Raises `UserError` for images that no start can be judged on."""
    splits = {name: datasets.load_labelled(settings, name) for name in ("train", "val", "test")}
    train, val = splits["train"], splits["val"]
    for name, data in splits.items():
        if data is not None:
            labels.require_like(data, train, f"data_dir: {name}")
    labels.require_each(train, 2, "one to learn from and one to choose settings with. Add images, or leave it out")
    leaks.check(splits)
    if val is None:
        held_out(train, HELD, 0)  # raises where groups and classes are the same
    per_class = torch.bincount(train.labels)
    balanced = bool(per_class.max() > UNEQUAL * per_class.min())
    draws = [
        draw(train, count, seed, val is not None)
        for count in counts_for(train.labels)
        for seed in range(seeds if count == ALL else max(seeds, DRAWS))
    ]
    tunable = {(one.count, one.seed) for one in draws if can_tune(one, train.labels, val is not None)}
    found = Look(splits, draws, tunable, balanced)
    _tell(found)
    return found


def _tell(found: Look) -> None:
    train, val, test = found.train, found.splits["val"], found.splits["test"]
    held = f"{100 * HELD:.0f} % of each draw of labels" if val is None else counted(len(val), "image")
    counts = f"{len(train)} training and {len(test)} test images of {len(train.classes)} classes"
    say(f"data        {counts}; validation: {held}")
    if found.balanced:
        say(f"measure     balanced accuracy: the largest class has over {UNEQUAL} times the images of the smallest")
    if len(test) < FEW_TEST:
        say(f"*** {len(test)} test images are very few: only large differences can be seen ***")
    if test.groups is not None:
        count = len({group for group in test.groups if group})
        say(f"groups      kept whole; the test images are of {count}, and the intervals count these, not images")
    tuned = {1} | {count for count, _ in found.tunable}  # with 1 label a class none is
    if missing := ", ".join(called(count) for count in found.labels() if count not in tuned):
        say(f"labels      with {missing} a class none can be held out: encoders are judged frozen only")


def identity(found: Look, root: str | None) -> dict[str, str]:
    """Which images and labels these are."""
    return {
        name: f"{data.fingerprint(root)}, labels {data.label_checksum()}"
        for name, data in found.splits.items()
        if data is not None
    }


# Images without labels ------------------------------------------------------------------------


def find_unlabelled(settings: ImageSettings, folder: str, test: Images) -> Images:
    """All training images and those of `folder`, as files without labels.

    Images that are test images, byte for byte, are left out, and those that are training images are not taken twice.
    Raises `UserError` where the images are no files, or nothing is left.
    """
    train = datasets.load_as(settings, "unlabelled")
    if train.paths is None:
        raise UserError("unlabelled: goes with images in files; those of an array or a known data set have none")
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"unlabelled: {folder} is not a folder; expected one with images, nested or not")
    more = _of_files([str(root.resolve() / path) for path in images_below(root, "unlabelled")])
    keys, of_test, of_train = (image_keys.find(one, "", ["file"])["file"] for one in (more, test, train))
    in_test, in_train = (np.isin(keys, known[known > 0]) for known in (of_test, of_train))
    _, first = np.unique(keys, return_index=True)
    new = np.zeros(len(keys), bool)
    new[first] = True
    new |= keys == 0  # not readable now: train.py says so
    taken = [path for path, takes in zip(more.paths, new & ~in_test & ~in_train) if takes]
    if in_test.any():
        say(f"unlabelled  *** {counted(int(in_test.sum()), 'image')} of {folder} are test images: left out ***")
    if not taken:
        raise UserError(f"unlabelled: all {len(more)} images of {folder} are training or test images already")
    say(f"unlabelled  {len(taken)} of {len(more)} images of {folder} join {len(train)} in pre-training")
    return _of_files([*train.paths, *taken])


def _of_files(paths: list[str]) -> Images:
    return Images("folder", torch.full((len(paths),), -1), [], paths=Paths(paths))


def link(data: Images, place: Path) -> None:
    """Make `place` a folder of links to exactly these images; other links of an earlier start are removed."""
    place.mkdir(parents=True, exist_ok=True)
    targets = {f"{number:08}{os.path.splitext(path)[1]}": path for number, path in enumerate(data.paths)}
    for old in place.iterdir():
        if old.name not in targets or os.readlink(old) != targets[old.name]:
            old.unlink()
    for name in targets.keys() - set(os.listdir(place)):
        (place / name).symlink_to(targets[name])


OF_FILES = {"value_range", "mean", "std", "max_bad_fraction", "preload", "short_side", "seed"}  # settings, of any files


def passed_on(settings: ImageSettings, names: set[str] | None = None) -> dict[str, object]:
    """The settings of images that the user has set, for another script."""
    fields = [field for field in dataclasses.fields(ImageSettings) if field.name != "image_size"]
    given = {field.name: getattr(settings, field.name) for field in fields}
    defaults = {field.name: field.default for field in fields}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in given.items()
        if value != defaults[name] and (names is None or name in names)
    }
