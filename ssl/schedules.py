"""Learning rates as closed forms of the step: nothing to save, nothing to drift on resume."""

import math


def warmup_cosine(step: int, total: int, warmup: int, floor: float = 1e-3) -> float:
    """Factor of the base learning rate at optimizer step `step` of 0..total-1.

    Linear from 0 over `warmup` steps, then a half cosine down to `floor` (Barlow Twins'
    schedule). Raises ValueError where warm-up would never end.
    """
    if not 0 <= warmup < total:
        raise ValueError(f"warm-up ({warmup} steps) must be shorter than the run ({total} steps)")
    if step < warmup:
        return step / warmup
    progress = min((step - warmup) / (total - warmup), 1.0)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return cosine + floor * (1 - cosine)


def set_lr(optimizer, factor: float) -> None:
    """Set every group's learning rate to `factor` times its `base_lr`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
