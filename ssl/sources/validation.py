"""The images on which an encoder is judged during training: a validation split, or labels held out of train."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl.data.hold_out import held_out
from ssl.data.images import Images
from ssl.data.order import Order
from ssl.distributed import barrier, world_size
from ssl.errors import UserError
from ssl.sources import datasets, labels, leaks

OTHER_DRAWS = 1 << 63  # added to the seed, so that validation views differ from training views; seeds are smaller


@dataclass(frozen=True)
class Validation:
    """`parts`: labelled images, one part after another. Those in the mask `judges` (N,) are scored; a head learns from
    the others. `images`: the validation images, labelled or not. `seen`: training sees them, too, without their labels.
    """

    parts: list[Images]
    judges: Tensor
    images: Images
    seen: bool

    def split(self, read: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(rows that a head learns from, rows that are scored), both labelled, and in the mask `read` (N,) if given."""
        known = self.labels() >= 0
        known = known if read is None else known & read
        return (known & ~self.judges).nonzero()[:, 0], (known & self.judges).nonzero()[:, 0]

    def labels(self) -> Tensor:
        return torch.cat([part.labels for part in self.parts])

    def groups(self, rows: Tensor) -> list[str | None] | None:
        """The groups of such rows, which are all of one part; None where it has none."""
        first = len(self.parts[0])
        part, start = (self.parts[-1], first) if len(rows) and rows[0] >= first else (self.parts[0], 0)
        return None if part.groups is None else [part.groups[i] for i in (rows - start).tolist()]


def find_validation(settings, data: Images, load: Callable[[str], Images | None], learns: bool) -> Validation | None:
    """The images to judge on while training learns from `data`; None if the settings do not ask for it.

    All ranks call it. It is the validation split if there is one, else a tenth of every class by seed, in whole groups
    where they are known. In that case training still sees these images, but not their labels. The test split is never
    used. `load` reads a split; `learns`: training learns from labels. Raises `UserError` if judging is impossible.
    """
    if not (settings.eval_every or settings.ssl_val_interval):
        if settings.eval_at_start:
            raise UserError("eval_at_start: needs --eval_every; set that, too")
        return None
    name = "eval_every" if settings.eval_every else "ssl_val_interval"
    train = data if data.classes else load("train")
    own = load("val")
    if settings.eval_every:
        for part in [train, *([] if own is None else [own])]:
            _require_classes(part)
    if own is None and learns:
        raise UserError(
            f"{name}: this run learns from the labels of all its images, so it cannot be judged on them; give it a "
            "validation split (val/ beside train/ and test/, or --split_column), or judge it only with evaluate.py"
        )
    if own is None:
        _, held = held_out(train, 0.1, settings.seed)
        judges = torch.zeros(len(train), dtype=torch.bool).index_fill_(0, held, True)
        _require_two_of_a_class(settings, train.labels[~judges])
        return Validation([train], judges, train.subset(held), True)
    labels.require_like(own, train, f"{name}: the validation split")
    _require_two_of_a_class(settings, train.labels)
    leaks.check({"train": train, "val": own})
    barrier()
    judges = torch.arange(len(train) + len(own)) >= len(train)
    # Pre-training on slides uses those of the validation, too.
    seen = data is not train and None not in (data.paths, own.paths) and own.paths[0] in data.paths
    train, own = datasets.shown_alike(settings, {"train": train, "val": own}).values()
    return Validation([train, own], judges, own, seen)


def _require_classes(images: Images) -> None:
    if not (images.labels >= 0).any():
        raise UserError(
            f"eval_every: needs labels, and {images.name} has none here; pass class folders, an array file with "
            "labels, or --csv FILE --label_column NAME"
        )
    if len(images.classes) < 2:
        raise UserError(f"eval_every: {images.name} has images of only one class, {images.classes[0]!r}")


def _require_two_of_a_class(settings, labels: Tensor) -> None:
    """Raise `UserError` unless a class has two images: the probe chooses its learning rate by held-out images."""
    labels = labels[labels >= 0]
    if settings.eval_every and settings.eval_head == "probe" and int(torch.bincount(labels).max()) < 2:
        raise UserError(
            f"eval_every: of the {len(labels)} labelled training images no two are of one class; the probe needs two "
            "to choose its learning rate. Add images, or leave --eval_every out"
        )


def validation_order(settings, count: int, order: Order) -> Order:
    """Global batches of `count` validation images, as large as those of training, or smaller if there are too few.

    With `accumulate_mode` split the loss is of a micro-batch, and so it is here. Raises `UserError` if there are fewer
    than two images, or fewer than one for each micro-batch of a global batch.
    """
    accumulate = 1 if settings.accumulate_mode == "split" else order.accumulate
    share = count // (world_size() * accumulate)
    if share < 1 or count < 2:
        raise UserError(
            f"ssl_val_interval: {count} validation images are too few for {world_size()} processes × accumulate "
            f"{accumulate}; leave it out, or add images"
        )
    return Order(count, min(order.batch_size, share), accumulate, world_size(), settings.seed + OTHER_DRAWS)
