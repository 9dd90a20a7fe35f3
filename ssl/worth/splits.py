"""Draws of labels: 1, 5, 20 or all of every class, by a seed; each draw is a part of the larger ones of its seed.

A part of a draw is held out to choose settings on. It is the part that finetune.py holds out of the same images, so a
frozen encoder and a fine-tuned one learn from the same labels and are validated on the same images.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ssl import files
from ssl.data.hold_out import few_of_classes, split_validation
from ssl.data.images import Images

HELD = 0.2  # of every class of a draw
COUNTS = (1, 5, 20)  # labels a class, besides all
ALL = 0  # stands for all labels, or for as many of each class as the minutes are enough for
DISTINCT = 0.75  # a draw with a larger share of all labels is not made: it would say what all labels say


@dataclass(frozen=True)
class Draw:
    """Indices of the training images: the labels that may be used, in two parts. `held` may have no image."""

    count: int  # labels a class, or ALL
    seed: int
    fit: Tensor
    held: Tensor

    @property
    def chosen(self) -> Tensor:
        return torch.cat([self.fit, self.held]).sort().values


def called(count: int) -> str:
    """A number of labels a class in words and file names: '5', or 'all'."""
    return "all" if count == ALL else str(count)


def counts_for(labels: Tensor, most: int | None = None) -> list[int]:
    """The numbers of labels a class that are worth measuring: those that are clearly fewer than all, and ALL, which is
    `most` of each class if that is set."""
    per_class = torch.bincount(labels).clamp(max=most or len(labels))
    few = [count for count in COUNTS if int(per_class.clamp(max=count).sum()) <= DISTINCT * int(per_class.sum())]
    return [*few, ALL]


def draw(train: Images, count: int, seed: int, own_validation: bool, most: int | None = None) -> Draw:
    """`count` images of every class, or all that it has; of ALL at most `most` of each class.

    Nothing is held out where there is a validation split.
    """
    chosen = few_of_classes(train.labels, count or most or len(train), seed)
    if own_validation:
        return Draw(count, seed, chosen, chosen[:0])
    groups = None if train.groups is None else [train.groups[i] for i in chosen.tolist()]
    fit, held = split_validation(train.labels[chosen], HELD, seed, groups)
    return Draw(count, seed, chosen[fit], chosen[held])


def can_tune(draw: Draw, labels: Tensor, own_validation: bool) -> bool:
    """Whether finetune.py takes the draw: it needs two labels of every class, and something to validate on."""
    per_class = torch.bincount(labels[draw.chosen], minlength=int(labels.max()) + 1)
    return own_validation or (int(per_class.min()) >= 2 and len(draw.held) > 0)


def write_list(names: Iterable[str], path: Path) -> Path:
    """The file of --train_files. Names are whole paths without their first /, so none is the end of another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes("".join(f"{name.lstrip('/')}\n" for name in names).encode("utf-8", "surrogateescape"), path)
    return path
