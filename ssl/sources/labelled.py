"""Images with labels in splits: one to learn from, one to choose the best epoch with, one to test with."""

from ssl.data import preload
from ssl.data.hold_out import hold_out
from ssl.data.images import Images
from ssl.distributed import barrier
from ssl.errors import UserError
from ssl.sources import datasets, labels, leaks


def load_splits(settings) -> dict[str, Images | None]:
    """Train, val and test of the data set, `shown_alike`; val is None where it has none of its own. All ranks call it.

    Raises `UserError` where the splits do not fit together, or share images.
    """
    splits = {split: datasets.load_labelled(settings, split) for split in ("train", "val", "test")}
    first = splits["train"]
    for name, data in splits.items():
        if data is not None:
            labels.require_like(data, first, f"data_dir: {name}")
    labels.require_named("major", settings.major, first.classes)
    leaks.check(splits)
    barrier()
    splits = datasets.shown_alike(settings, splits)
    for name in ("train", "val") if settings.preload else ():
        splits[name] = splits[name] and preload.hold(splits[name], settings.image_size)
    return splits


def choose_labels(settings, splits: dict[str, Images | None], seed: int) -> tuple[Images, Images]:
    """(train, val) of one run: the training images whose labels may be used, and the validation images.

    Where the data set has no validation split, a share of every class of train is held out by `seed`. Raises
    `UserError` where a class has too few images.
    """
    train = labels.choose(splits["train"], settings.train_percent, settings.train_files, seed)
    labels.require_each(train, 1 if splits["val"] is not None else 2, "one to learn from and one to validate with")
    val = splits["val"]
    if val is None:
        train, val = hold_out(train, settings.val_fraction, seed)
    if settings.watch == "auc" and len(val.labels.unique()) < len(val.classes):
        raise UserError("watch: auc needs validation images of every class; watch the loss, or choose other splits")
    return train, val
