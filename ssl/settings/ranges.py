"""The ranges of the numbers among the settings. A name means the same in every script."""

import os

from ssl.errors import UserError

AT_LEAST_1 = """
    image_size short_side accumulate epochs max_steps log_every save_steps save_epochs max_bad_steps k probe_epochs
    linear_epochs linear_batch patience plateau_patience runs copies health_every
""".split()
AT_LEAST_0 = """
    bias_lr lr_backbone weight_decay linear_weight_decay momentum linear_momentum warmup_epochs final_lr min_lr
    decay_rate lambd color_distortion_strength jitter workers seed eval_every ssl_val_interval corrupted_images
""".split()
POSITIVE = """
    temperature base_temperature knn_temperature linear_lr loss_scale clip_grad save_minutes timeout_minutes
    retry_lr blur_sigma std
""".split()
SHARES = """
    flip vertical_flip grayscale stain_jitter warmup_start plateau_factor max_bad_fraction solarize_threshold
""".split()  # and names that end in _prob
SPANS = ("crop_scale", "crop_ratio", "blur_sigma")


def check(settings) -> None:
    """Raise `UserError` for a number outside its range. Unset numbers pass."""
    probabilities = [name for name in vars(settings) if name.endswith("_prob")]
    for names, holds, expected in (
        (AT_LEAST_1, lambda value: value >= 1, "must be at least 1"),
        (("lr", *AT_LEAST_0), lambda value: value >= 0, "must not be negative"),
        (POSITIVE, lambda value: value > 0, "must be positive"),
        ([*SHARES, *probabilities], lambda value: 0 <= value <= 1, "is not in 0..1"),
        (["mean", "std"], lambda value: 0 <= value <= 1, "is not in 0..1: pixels are; divide numbers of 0..255 by 255"),
        (["rotation"], lambda degrees: 0 <= degrees <= 180, "degrees is not in 0..180"),
        (["momentum", "linear_momentum"], lambda value: value < 1, "must be below 1, or steps grow without end"),
        (["val_fraction"], lambda share: 0 < share < 1, "is not between 0 and 1"),
        (["seed"], lambda value: value < 2**63, "is too large; it must be below 2^63"),
        (["keep_checkpoints"], lambda count: count >= 2, "must be at least 2: a dying machine may damage the newest"),
    ):
        for name in names:
            if not all(holds(value) for value in _values(settings, name)):
                raise UserError(f"{name}: {getattr(settings, name)} {expected}")
    for name in SPANS:
        if values := _values(settings, name):
            low, high = values
            if not 0 < low <= high or (name == "crop_scale" and high > 1):
                limit = " <= 1" if name == "crop_scale" else ""
                raise UserError(f"{name}: expected 0 < smallest <= largest{limit}, got {low:g} and {high:g}")
    if (values := _values(settings, "value_range")) and not values[0] < values[1]:
        raise UserError(f"value_range: expected black < white, got {values[0]:g} and {values[1]:g}")


def check_training(settings) -> None:
    """Raise `UserError` for settings that no training can use: a batch of one image, a warm-up as long as the run."""
    if settings.batch_size != "auto" and settings.batch_size < 2:
        raise UserError(
            f"batch_size: {settings.batch_size} is too small; batch norm needs at least 2 images per process"
        )
    if settings.gpus is not None and settings.gpus != int(os.environ.get("WORLD_SIZE") or settings.gpus):
        raise UserError(f"gpus: {settings.gpus}, but torchrun started {os.environ['WORLD_SIZE']} processes; set one")
    if settings.warmup_epochs == "auto":
        return
    if settings.schedule == "cosine_by_epoch" and settings.warmup_epochs != round(settings.warmup_epochs):
        raise UserError(f"warmup_epochs: {settings.warmup_epochs} must be whole with schedule cosine_by_epoch")
    if settings.epochs != "auto" and settings.warmup_epochs >= settings.epochs:
        raise UserError(
            f"warmup_epochs: {settings.warmup_epochs} must be fewer than epochs ({settings.epochs}), or the learning "
            "rate would never come down; set --warmup_epochs"
        )


def check_fine_tuning(settings) -> None:
    """Raise `UserError` for settings of finetune.py that do not go together, and for too much hue."""
    if settings.warmup_epochs and settings.schedule == "plateau":
        raise UserError("warmup_epochs: schedule plateau has no warm-up; set --schedule cosine, or no warm-up")
    if settings.watch == "last" and settings.schedule == "plateau":
        raise UserError("watch: last compares no epochs, and schedule plateau has to; set --schedule cosine")
    if settings.jitter[3] > 0.5:
        raise UserError(f"jitter: {settings.jitter[3]:g} is too much hue; at most 0.5, half the circle")


def check_channels(settings, channels: int) -> None:
    """Raise `UserError` for an operation of the views that images of so many channels cannot have."""
    if any(settings.stain_jitter) and channels != 3:
        raise UserError(
            f"stain_jitter: it reads the stains from red, green and blue, and these images have {channels} "
            f"channel{'s' if channels > 1 else ''}; leave it out"
        )


def _values(settings, name: str) -> list:
    """The numbers of a setting: none where it is unset or `auto`, or where this script does not have it."""
    value = getattr(settings, name, None)
    return [] if value in (None, "auto") else list(value) if isinstance(value, list | tuple) else [value]
