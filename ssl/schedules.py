"""Learning rates as functions of the step, or of the losses so far. They have no state, so nothing is saved.

Each function gives a factor of the base learning rate. The schedules of known recipes:

    Barlow Twins, by step             warmup_cosine(step, total, warmup)
    WarmUpCosine (histopathology)     warmup_cosine(step, total, warmup, floor=0)
    SimCLR, by epoch (dal-toolbox)    warmup_cosine(epoch, epochs, 10, floor=0, start=0.01)
    warmup_cosine (nidl)              warmup_cosine(step, total, warmup, floor=min_lr / lr, start=1e-6 / lr, hold=1)
    step decay (SupContrast)          step_decay(epoch, [30, 55, 80], 0.1)
    plateau (skin lesions)            plateau(validation_losses, factor=0.1, patience=10)
"""

import math
from collections.abc import Sequence


def warmup_cosine(step: int, total: int, warmup: int, floor: float = 1e-3, start: float = 0.0, hold: int = 0) -> float:
    """Linear from `start` to 1 over `warmup` steps, then a half cosine down to `floor`, for step 0..total-1.

    The defaults are Barlow Twins' schedule. The last `hold` steps of the warm-up are at 1. From `total` on the factor
    is `floor`. Raises ValueError if the warm-up is not shorter than the run.
    """
    if not 0 <= warmup < total:
        raise ValueError(f"warm-up ({warmup} steps) must be shorter than the run ({total} steps)")
    if step < warmup:
        ramp = warmup - hold
        return start + (1 - start) * min(step / ramp, 1) if ramp > 0 else 1.0
    progress = min((step - warmup) / (total - warmup), 1.0)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return cosine + floor * (1 - cosine)


def step_decay(step: int, milestones: Sequence[int], rate: float = 0.1) -> float:
    """`rate` once for every milestone that `step` has reached."""
    return rate ** sum(step >= milestone for milestone in milestones)


def plateau(values: Sequence[float], factor: float = 0.1, patience: int = 10, floor: float = 0.0) -> float:
    """`factor` for each time that `values`, one an epoch, had no new best for more than `patience` epochs.

    A value is a new best if it is less than the old one by a share of 1e-4, as in
    `torch.optim.lr_scheduler.ReduceLROnPlateau`. The result is at least `floor`. NaN is never a best.
    """
    best, bad, result = math.inf, 0, 1.0
    for value in values:
        best, bad = (value, 0) if value < best * (1 - 1e-4) else (best, bad + 1)
        if bad > patience:
            result, bad = max(result * factor, floor), 0
    return result


def set_lr(optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times its `base_lr`, which is `lr` at the first call if unset."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("base_lr", group["lr"]) * factor
