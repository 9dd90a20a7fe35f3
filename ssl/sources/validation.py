"""On which images an encoder is judged while it learns: a validation split, or labels held out of train."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl.data.hold_out import held_out
from ssl.data.images import Images
from ssl.data.order import Order
from ssl.distributed import barrier, world_size
from ssl.errors import UserError
from ssl.sources import leaks

OTHER_DRAWS = 1 << 63  # added to the seed of validation views: a training's seed is smaller


@dataclass(frozen=True)
class Validation:
    """Labelled images of `parts`, end to end; those in the mask `judges` (N,) are scored, a head learns the others.

    `images` are the validation images, labelled or not; `seen`: training, too, sees them, though not their labels.
    """

    parts: list[Images]
    judges: Tensor
    images: Images
    seen: bool

    def split(self, read: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows that a head learns from, and rows that are scored; of those in the mask `read` (N,), if given."""
        known = self.labels() >= 0
        known = known if read is None else known & read
        return (known & ~self.judges).nonzero()[:, 0], (known & self.judges).nonzero()[:, 0]

    def labels(self) -> Tensor:
        return torch.cat([part.labels for part in self.parts])


def find_validation(settings, data: Images, load: Callable[[str], Images | None], learns: bool) -> Validation | None:
    """What to judge on while `data` is trained on; None where the settings ask for nothing. All ranks call it.

    The validation split if there is one, else a tenth of every class by seed, whole groups where they are
    known: training, which reads no labels, goes on seeing those images. Never the test split. `load` reads a split;
    `learns` says that training learns from labels. Raises `UserError` for what cannot be judged.
    """
    if not (settings.eval_every or settings.ssl_val_interval):
        if settings.eval_at_start:
            raise UserError("eval_at_start: is the first of the evaluations of --eval_every; set that, too")
        return None
    name = "eval_every" if settings.eval_every else "ssl_val_interval"
    train = data if data.classes else load("train")
    own = load("val")
    if settings.eval_every:
        for part in [train, *([] if own is None else [own])]:
            _require_classes(part)
    if own is None and learns:
        raise UserError(
            f"{name}: this run learns from the labels of all its images, so none of them can judge it; give it a "
            "validation split (val/ beside train/ and test/, or --split_column), or judge it by evaluate.py alone"
        )
    if own is None:
        _, held = held_out(train, 0.1, settings.seed)
        judges = torch.zeros(len(train), dtype=torch.bool).index_fill_(0, held, True)
        _require_two_of_a_class(settings, train.labels[~judges])
        return Validation([train], judges, train.subset(held), True)
    if (own.channels, own.classes) != (train.channels, train.classes):
        raise UserError(
            f"{name}: the validation split has images of {own.channels} channels and the classes "
            f"{', '.join(own.classes)}, train of {train.channels} channels and {', '.join(train.classes)}"
        )
    _require_two_of_a_class(settings, train.labels)
    leaks.check({"train": train, "val": own})
    barrier()
    judges = torch.arange(len(train) + len(own)) >= len(train)
    # Slides of the validation are pre-trained on.
    seen = data is not train and None not in (data.paths, own.paths) and own.paths[0] in data.paths
    return Validation([train, own], judges, own, seen)


def _require_classes(images: Images) -> None:
    if not (images.labels >= 0).any():
        raise UserError(
            f"eval_every: needs labels, and {images.name} has none here; pass class folders, an array file with "
            "labels, or --csv FILE --label_column NAME"
        )
    if len(images.classes) < 2:
        raise UserError(f"eval_every: {images.name} has images of one class, {images.classes[0]!r}: nothing to tell")


def _require_two_of_a_class(settings, labels: Tensor) -> None:
    """What the probe of `eval_every` needs: it chooses its rates by images that its heads have not learnt."""
    labels = labels[labels >= 0]
    if settings.eval_every and settings.eval_head == "probe" and int(torch.bincount(labels).max()) < 2:
        raise UserError(
            f"eval_every: of the {len(labels)} labelled training images no two are of one class; the probe needs them "
            "to choose its rates by. Add images, or leave --eval_every away"
        )


def validation_order(settings, count: int, order: Order) -> Order:
    """Global batches of `count` validation images, as large as those of training or as there are images.

    Raises `UserError` where they are not enough for two a global batch.
    """
    share = count // (world_size() * order.accumulate)
    if share < 1 or count < 2:
        raise UserError(
            f"ssl_val_interval: {count} validation images are too few for {world_size()} processes × accumulate "
            f"{order.accumulate}; leave it away, or add images"
        )
    return Order(count, min(order.batch_size, share), order.accumulate, world_size(), settings.seed + OTHER_DRAWS)
