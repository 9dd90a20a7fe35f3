"""What train.py refuses before it trains: settings and images that cannot work."""

from torch import Tensor

from ssl.data.images import Images
from ssl.data.order import Order
from ssl.distributed import world_size
from ssl.errors import UserError
from ssl.evaluation import fixed_head
from ssl.losses.inputs import MOST_VIEWS
from ssl.settings import ranges
from ssl.settings.shared import OF_A_VIEW


def check(settings) -> None:
    """Raise `UserError` for settings that cannot work, before any process waits for another."""
    ranges.check(settings)
    ranges.check_training(settings)
    if not 2 <= settings.views <= MOST_VIEWS:
        raise UserError(f"views: {settings.views} is not in 2..{MOST_VIEWS}: a loss compares views of one image")
    for name in OF_A_VIEW:
        values = getattr(settings, name)
        if values != "auto" and len(values) not in (1, 2, settings.views):
            each = f", or {settings.views}, one for each view" if settings.views > 2 else ""
            raise UserError(
                f"{name}: expected one value for all views, two that the views take in turn{each}; got "
                f"{len(values)}: {values}"
            )
    if settings.blur_kernel % 2 == 0 or settings.blur_kernel < 1:
        raise UserError(f"blur_kernel: {settings.blur_kernel} must be odd")
    changed = [name for name, default in vars(fixed_head.HeadSettings()).items() if getattr(settings, name) != default]
    if changed and settings.eval_head != "fixed":
        raise UserError(f"{changed[0]}: only the fixed head has it; set --eval_head fixed, or leave {changed[0]} out")
    if settings.init is None and settings.init_format:
        raise UserError("init_format says how to read a file; name it with --init")
    if settings.schedule == "step" and not settings.decay_epochs:
        raise UserError("decay_epochs: schedule step needs the epochs after which lr drops, e.g. --decay_epochs 60 80")


def learns_from_labels(settings) -> bool:
    """Whether labels decide what is learnt."""
    return settings.method == "supcon" or settings.balanced


def require_labels(settings, data: Images) -> Tensor:
    """The images' labels (N,), or `UserError` where nothing can be learnt from them.

    For supcon some may be -1: such an image has no other image of its class (`losses.sup_con`).
    """
    if not (data.labels >= 0).any():
        what = "balanced" if settings.balanced else "method supcon"
        raise UserError(
            f"{what}: needs labels, and {data.name} has none here; pass class folders, an array file with labels, or "
            "--csv FILE --label_column NAME"
        )
    if settings.method == "supcon" and len(data.labels.unique()) == 1:
        raise UserError(
            f"method supcon: all {len(data)} images are of one class, {data.classes[int(data.labels[0])]!r}: each is a "
            "positive of every other, and nothing can be learnt. Give two classes or more, or take --method simclr"
        )
    return data.labels


def require_whole_batches(settings, order: Order) -> None:
    """Raise `UserError` where there are fewer images than a global batch."""
    if order.steps_per_epoch == 0:
        largest = order.count // (world_size() * settings.accumulate)
        to_do = f"--batch_size {largest} is the largest" if largest > 1 else "use fewer processes, or more images"
        raise UserError(
            f"batch_size: the global batch, {settings.batch_size} per process × {world_size()} processes × accumulate "
            f"{settings.accumulate} = {order.global_batch}, is larger than the data set ({order.count} images); {to_do}"
        )
