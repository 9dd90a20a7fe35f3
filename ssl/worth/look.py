"""Read the user's images and labels, draw labels, and refuse what cannot be answered, before anything is computed."""

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ssl.checkpoints import image_keys
from ssl.console import counted, say, some_of
from ssl.data.hold_out import held_out
from ssl.data.images import Images
from ssl.errors import UserError
from ssl.evaluation import few_shot
from ssl.settings.shared import ImageSettings
from ssl.sources import datasets, labels, leaks
from ssl.sources.identity import groups_checksum, identity_of
from ssl.worth.plan import DRAWS, Sizes
from ssl.worth.scores import judges_of
from ssl.worth.splits import ALL, HELD, Draw, called, can_tune, counts_for, draw

FEW_TEST = 30  # test images, if all weigh alike, below which hardly any difference can be seen
FEW_GROUPS = 5  # the same of their groups
UNEQUAL = 3  # times as many images of one class as of another: then every class counts alike


@dataclass(frozen=True)
class Look:
    """The splits with labels, the draws of labels, and what follows from them."""

    splits: dict[str, Images | None]
    draws: list[Draw]  # of frozen encoders; the first ones of each count are those of fine-tuning
    tunable: set[tuple[int, int]]  # (count, seed) that finetune.py takes
    balanced: bool
    seen: bool  # pre-training sees the validation images, without their labels
    copies: frozenset[str] = frozenset()  # test images that are training or validation images, too: they do not count
    seeds: int = 1  # of fine-tunings, at most

    @property
    def train(self) -> Images:
        return self.splits["train"]

    def draw(self, count: int, seed: int) -> Draw:
        return next(one for one in self.draws if (one.count, one.seed) == (count, seed))

    def labels(self) -> dict[int, int]:
        """{labels a class: labels together}, few first, as the first seed has them."""
        return {one.count: len(one.chosen) for one in self.draws if one.seed == 0}

    def limited(self, most: int | None) -> "Look":
        """With at most so many labels of each class, which ALL then stands for; None: with all."""
        return replace(self, **_draws(self.train, self.seeds, self.splits["val"] is not None, most))

    def sizes(self) -> Sizes:
        train, val, test = (self.splits[name] for name in ("train", "val", "test"))
        of_draw = {one.count: (len(one.fit), len(one.held)) for one in self.draws if one.seed == 0}
        return Sizes(len(train), 0 if val is None else len(val), len(test), len(train.classes), of_draw)


def look(settings: ImageSettings, seeds: int) -> Look:
    """Sets `leave_out` where classes have too few images.

    Raises `UserError` for images that no start can be judged on.
    """
    splits = {name: datasets.load_labelled(settings, name) for name in ("train", "val", "test")}
    for name, data in splits.items():
        if data is not None:
            labels.require_like(data, splits["train"], f"data_dir: {name}")
    splits = _without_small(settings, splits)
    train, val = splits["train"], splits["val"]
    leaks.check(splits)
    if val is None:
        held_out(train, HELD, 0)  # raises where groups and classes are the same
    per_class = torch.bincount(train.labels)
    balanced = bool(per_class.max() > UNEQUAL * per_class.min())
    copies, sees = _copies(splits, settings.data_dir), _pretraining_sees(settings, val)
    alike = datasets.shown_alike(settings, splits)
    drawn = _draws(train, seeds, val is not None)
    found = Look(alike, balanced=balanced, seen=sees, copies=copies, seeds=seeds, **drawn)
    if len(found.copies) == len(splits["test"]):
        raise UserError("data_dir: all test images are copies of training or validation images: none can judge")
    _tell(found)
    return found


def _without_small(settings: ImageSettings, splits: dict[str, Images | None]) -> dict[str, Images | None]:
    """The splits without the classes of fewer than two training images, which `leave_out` then names for all jobs."""
    train, why = splits["train"], "one to learn from and one to choose settings with"
    small = few_shot.smaller_classes(train.labels, 2, train.classes)
    if not small:
        return splits
    others = len(train.classes) - len(small)
    if others < 2:
        labels.require_each(train, 2, why)  # raises
    say(
        f"classes     *** {len(small)} of {len(train.classes)} have fewer than two training images ({why}) and are "
        f"left out: {some_of(small)}. The answer is of the other {others} ***"
    )
    settings.leave_out = [*(settings.leave_out or []), *small]
    return {name: datasets.load_labelled(settings, name) for name in splits}  # as the jobs read them


def _draws(train: Images, seeds: int, own_validation: bool, most: int | None = None) -> dict:
    """The fields `draws` and `tunable` of a `Look`."""
    draws = [
        draw(train, count, seed, own_validation, most)
        for count in counts_for(train.labels, most)
        for seed in range(seeds if count == ALL else max(seeds, DRAWS))
    ]
    tunable = {(one.count, one.seed) for one in draws if can_tune(one, train.labels, own_validation)}
    return {"draws": draws, "tunable": tunable}


def _pretraining_sees(settings: ImageSettings, val: Images | None) -> bool:
    """Whether train.py learns from the validation images: a part of train, or a split that it does not keep apart."""
    if val is None or val.paths is None:
        return val is None
    return not set(val.paths).isdisjoint(datasets.load_as(settings, "unlabelled").paths or ())


def _copies(splits: dict[str, Images | None], root: str | None) -> frozenset[str]:
    """The test images that are in another split, too: files byte for byte, images of arrays pixel for pixel."""
    present = {name: data for name, data in splits.items() if data is not None}
    if max(map(len, present.values())) > image_keys.MOST_FILES:
        say(f"test        over {image_keys.MOST_FILES:,} images: copies of other splits' images are not looked for")
        return frozenset()
    keys = {name: image_keys.find(data, root, ("file", "pixels")) for name, data in present.items()}
    test, found = keys.pop("test"), np.zeros(len(present["test"]), bool)
    for kind in ("file", "pixels"):
        for other in keys.values():
            if kind in test and kind in other:
                found |= np.isin(test[kind], other[kind][other[kind] > 0])
    return frozenset(present["test"].sample_name(index) for index in found.nonzero()[0].tolist())


def _tell(found: Look) -> None:
    train, val, test = found.train, found.splits["val"], found.splits["test"]
    held = f"{100 * HELD:.0f} % of each draw of labels" if val is None else counted(len(val), "image")
    counts = f"{len(train)} training and {len(test)} test images of {len(train.classes)} classes"
    say(f"data        {counts}; validation: {held}")
    if found.balanced:
        say(f"measure     balanced accuracy: the largest class has over {UNEQUAL} times the images of the smallest")
    if found.copies:
        say(f"test        *** not counted: {counted(len(found.copies), 'image')} that other splits have, too ***")
    index = [i for i in range(len(test)) if test.sample_name(i) not in found.copies]
    judges = judges_of(test, index, found.balanced)
    counts_of = torch.bincount(test.labels, minlength=len(test.classes)).tolist()
    untested = [name for name, count in zip(test.classes, counts_of) if not count]
    if untested:
        say(f"test        *** no test image of {some_of(untested)}: the answer is of the other classes ***")
    if test.groups is not None:
        say(f"groups      kept whole; the test images are of {judges.count}, and the intervals count these, not images")
    elif shared := sorted(_inner_folders(train) & _inner_folders(test)):
        say(
            f"*** training and test images share {counted(len(shared), 'folder')} below the classes, as {shared[0]}. "
            "If these are videos, patients or slides, all starts look better than they are: name them in a table, by "
            "--csv and --group_column ***"
        )
    thing, few = ("image", FEW_TEST) if test.groups is None else ("group", FEW_GROUPS)
    if judges.alike < few:
        count = f"{counted(judges.count, f'test {thing}')}{judges.equal}"
        say(f"*** very few: {count}. Only large differences can be seen ***")
    tuned = {1} | {count for count, _ in found.tunable}  # of 1 label a class none can be held out: that is clear
    if missing := ", ".join(called(count) for count in found.labels() if count not in tuned):
        say(f"labels      with {missing} a class none can be held out: encoders are judged frozen only")


def _inner_folders(data: Images) -> set[str]:
    """The folders below those of the classes that images are in: CLASS/FOLDER."""
    found = set()
    for path, label in zip(data.paths or (), data.labels.tolist()):
        folders, name = Path(path).parts[:-1], data.classes[label]
        if name in folders[:-1]:
            found.add("/".join(folders[folders.index(name) :]))
    return found


def identity(found: Look, root: str | None) -> dict[str, str]:
    """Which images, labels and groups these are."""
    present = {name: data for name, data in found.splits.items() if data is not None}
    groupings = {f"grouping of {name}": groups_checksum(data) for name, data in present.items() if data.groups}
    return {name: identity_of(data, root) for name, data in present.items()} | groupings


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
