"""Which test images each start gets right, frozen and fine-tuned, and how good it is on validation images."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssl import files
from ssl.data.images import Images
from ssl.evaluation import features, intervals, logistic, metrics, predictions, probes
from ssl.evaluation.feature_rows import Rows, Samples, statistics
from ssl.evaluation.intervals import Groups
from ssl.worth.splits import ALL, Draw


@dataclass
class Score:
    """One start in one use, with one number of labels. By seed: which test images are right, (N,) bool, and shares."""

    right: dict[int, np.ndarray] = field(default_factory=dict)
    validation: dict[int, float] = field(default_factory=dict)  # accuracy on the validation images
    interval: dict[int, list[float]] = field(default_factory=dict)  # of `validation`, 95 %
    held: int = 0  # validation images of a seed
    knn: dict[int, float] = field(default_factory=dict)  # accuracy of k-NN on the test images
    draws: dict[int, np.ndarray] = field(default_factory=dict)  # with few labels: `right` of the frozen encoder


@dataclass(frozen=True)
class Judges:
    """The test images that can be read: their labels and groups, (N,); and whether every class counts alike."""

    labels: np.ndarray
    groups: np.ndarray  # numbers; an image without a group is a group of its own
    balanced: bool

    def __len__(self) -> int:
        return len(self.labels)

    def weights(self) -> np.ndarray:
        return weights(self.labels, self.balanced)

    @property
    def count(self) -> int:
        """Of groups."""
        return len(np.unique(self.groups))

    @property
    def alike(self) -> float:
        """How many groups there would be, if all weighed alike. A patient who has all images of a class weighs much."""
        return 1 / float((np.bincount(self.groups, self.weights()) ** 2).sum())

    @property
    def equal(self) -> str:
        """The words for it where it is another number: ' (as many as 3.7 of equal weight)'."""
        shown = f"{self.alike:.{0 if self.alike >= 10 else 1}f}"
        return f" (as many as {shown} of equal weight)" if self.alike < 0.95 * self.count else ""

    def subset(self, rows: np.ndarray) -> "Judges":
        return Judges(self.labels[rows], self.groups[rows], self.balanced)


def weights(labels: np.ndarray, balanced: bool) -> np.ndarray:
    """(N,) of images, with the sum 1. Their sum over right images is accuracy, or balanced accuracy."""
    if not balanced:
        return np.full(len(labels), 1 / len(labels))
    counts = np.bincount(labels)
    return 1 / (counts[labels] * (counts > 0).sum())


@dataclass(frozen=True)
class Features:
    """Features of a start: rows and labels of the labelled images of each split, and rows by name of train's."""

    train: Rows
    mean: Tensor  # of train, (F,)
    place: dict[str, int]
    validation: tuple[Samples, Groups | None] | None
    test: Samples

    @classmethod
    def load(
        cls, path: Path, splits: dict[str, Images | None], copies: frozenset[str], device: torch.device
    ) -> "Features":
        """Those at `path`, without the test images that are `copies`."""
        found = features.load(path, device)

        def labelled(name: str) -> tuple[Samples, Groups | None]:
            """A split's images that can be read, in the order of the split, and their groups."""
            at = {path: row for row, path in enumerate(found.splits[name].paths)}
            data = splits[name]
            known = at.keys() - copies if name == "test" else at.keys()
            index = [i for i in range(len(data)) if data.sample_name(i) in known]
            rows = torch.tensor([at[data.sample_name(i)] for i in index])
            return (found.splits[name].rows.subset(rows), data.labels[index].to(device)), _groups(data, index)

        place = {name: row for row, name in enumerate(found.splits["train"].paths)}
        validation = labelled("val") if splits["val"] is not None else None
        rows = found.splits["train"].rows
        return cls(rows, statistics(rows)[0], place, validation, labelled("test")[0])


def judges_of(test: Images, index: list[int], balanced: bool) -> Judges:
    """The test images `index`. One without a group is a group of its own."""
    groups = intervals.numbered([(test.groups and test.groups[i]) or None for i in index])
    return Judges(test.labels[index].numpy(), groups, balanced)


def readable_test(path: Path, test: Images, balanced: bool, copies: frozenset[str]) -> tuple[Judges, np.ndarray]:
    """The test images that have features at `path`, and which of them count, (N,) bool: those that are no `copies`."""
    known = set(features.load(path).splits["test"].paths)
    index = [i for i in range(len(test)) if test.sample_name(i) in known]
    return judges_of(test, index, balanced), np.array([test.sample_name(i) not in copies for i in index])


# Frozen -----------------------------------------------------------------------------------


def judge_frozen(found: Features, draw: Draw, train: Images, balanced: bool) -> dict:
    """Of a draw: its count and seed, test images that the head gets right ('0110…'), validation with its interval, and
    k-NN.

    The head is `ssl.evaluation.logistic`: it has no settings to choose, so validation images judge it fairly.
    """
    fit, _ = _samples(found, draw.fit, train)
    held, groups = found.validation or _samples(found, draw.held, train)
    head = logistic.learn(fit, len(train.classes), found.mean, balanced)
    name, judged = _called(balanced), {}
    if len(held[1]):
        judged = metrics.accuracy(held[1], head.hits(held), groups)
    knn = probes.knn(fit, found.test, len(train.classes))[name]
    right = "".join(map(str, head.hits(found.test).int().tolist()))
    words = {"right": right, "validation": judged.get(name), "interval": judged.get(f"{name}_interval")}
    return {"count": draw.count, "seed": draw.seed, **words, "held": len(held[1]), "knn": knn}


def _called(balanced: bool) -> str:
    return "balanced_accuracy" if balanced else "acc1"


def _samples(found: Features, chosen: Tensor, train: Images) -> tuple[Samples, Groups | None]:
    """The chosen training images that can be read, and their groups."""
    index = [i for i in chosen.tolist() if train.sample_name(i) in found.place]
    rows = torch.tensor([found.place[train.sample_name(i)] for i in index], dtype=torch.long)
    return (found.train.subset(rows), train.labels[index].to(found.train.device)), _groups(train, index)


def _groups(data: Images, index: list[int]) -> Groups | None:
    return None if data.groups is None else [data.groups[i] for i in index]


# Fine-tuned -------------------------------------------------------------------------------


def judge_tuned(folder: Path, count: int, seed: int, test: Judges, counts: np.ndarray, classes: list[str]) -> dict:
    """As `judge_frozen`, from the files of a run of finetune.py. `counts`: (N,) bool, the test images that do."""
    with open(folder / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if [row["label"] for row in rows] != [predictions.cell(classes[label]) for label in test.labels]:
        raise RuntimeError(f"{folder}: its test images are not those of the frozen encoders")
    best = files.json_object(folder / "results.json")["best"]
    right = "".join(str(int(row["label"] == row["predicted"])) for row, does in zip(rows, counts) if does)
    name = f"val_{_called(test.balanced)}"
    words = {"right": right, "validation": best[name], "interval": best[f"{name}_interval"]}
    return {"count": count, "seed": seed, **words, "held": best["val_n"]}


# Together ---------------------------------------------------------------------------------


def gather(judged: list[dict], frozen: dict[int, Score] | None = None, all_drawn: bool = False) -> dict[int, Score]:
    """{labels a class: Score} of the draws of one start, used in one way. `frozen`: its scores if that is another.

    `all_drawn`: `all` stands for a part of the labels, so that it is a draw, too.
    """
    found: dict[int, Score] = {}
    for one in judged:
        score = found.setdefault(one["count"], Score())
        score.right[one["seed"]] = np.frombuffer(one["right"].encode(), np.uint8) == ord("1")
        if one["validation"] is not None:
            score.validation[one["seed"]] = one["validation"]
            score.interval[one["seed"]] = one["interval"]
            score.held = max(score.held, one["held"])
        if one.get("knn") is not None:
            score.knn[one["seed"]] = one["knn"]
    for count in found.keys() - (set() if all_drawn else {ALL}):
        found[count].draws = (frozen or found)[count].right
    return found
