"""The `runs` of finetune.py: the same training from seed, seed + 1, ..., each with its images and their order."""

from dataclasses import dataclass
from pathlib import Path

from ssl.data.images import Images
from ssl.data.order import Order
from ssl.distributed import world_size
from ssl.errors import UserError
from ssl.sources.labelled import choose_labels


@dataclass(frozen=True)
class Trial:
    """One of the `runs`, from number 0 on: its seed, the folder of its files, its images and their order."""

    number: int
    seed: int
    folder: Path
    train: Images
    val: Images
    order: Order


def make(settings, folder: Path, splits: dict[str, Images | None], number: int) -> Trial:
    """The trial of this number; `splits` as of `load_splits`. Raises `UserError` where it would have too few images."""
    seed = settings.seed + number
    try:
        train, val = choose_labels(settings, splits, seed)
        return Trial(number, seed, folder_of(settings, folder, number), train, val, _order(settings, train, seed))
    except UserError as error:
        raise UserError(f"seed {seed}: {error}" if settings.runs > 1 else str(error)) from None


def longest_epoch(first: Trial, settings, folder: Path, splits: dict[str, Images | None]) -> int:
    """Steps of an epoch of the longest trial. Where one cannot be made, this raises before any is trained."""
    later = (make(settings, folder, splits, number).order for number in range(1, settings.runs))
    return max([first.order.steps_per_epoch, *(order.steps_per_epoch for order in later)])


def folder_of(settings, folder: Path, number: int) -> Path:
    """Where the files of a run go: the run folder, or one in it for each of several runs."""
    return folder if settings.runs == 1 else folder / f"seed_{settings.seed + number}"


def _order(settings, train: Images, seed: int) -> Order:
    """Batches of `batch_size`, or of all images where there are fewer than a global batch."""
    batch_size = min(settings.batch_size, len(train) // world_size())
    if batch_size < 2:
        raise UserError(f"batch_size: {len(train)} training images are too few for {world_size()} processes")
    return Order(len(train), batch_size, 1, world_size(), seed, labels=train.labels if settings.balanced else None)
