"""Find the best epoch of a fine-tuning, and when to stop.

An epoch is a dict: its number from 1 on (`epoch`), its `train_loss`, and, if it was validated, `val_loss`, `val_auc`,
... of the validation images. Settings `watch`, `patience` and `epochs` are those of finetune.py.
"""

import math

from ssl.checkpoints.run_folder import DIVERGED
from ssl.errors import UserError

VALIDATIONS = 20  # about so many in a run that chooses nothing by them


def is_validated(epoch: int, settings) -> bool:
    """Whether the validation images are scored after this epoch: where they choose the epoch or the learning rate after
    each, else after some and the last."""
    every = validated_every(settings.epochs) if settings.watch == "last" else 1
    return epoch % every == 0 or epoch == settings.epochs


def validated_every(epochs: int) -> int:
    """After so many epochs, in a run of `epochs` that chooses nothing by validation."""
    return max(1, epochs // VALIDATIONS)


def require_finite(epoch: dict) -> None:
    """Raise `UserError` where a loss of this epoch is NaN or Inf."""
    if not (math.isfinite(epoch["train_loss"]) and math.isfinite(epoch.get("val_loss", 0.0))):
        raise UserError(f"the loss is not finite in epoch {epoch['epoch']}; {DIVERGED}")


def watched(epoch: dict, settings) -> float:
    """What `watch` names; less is better, of "last" a later epoch, and infinite where an epoch was not validated.

    Raises `UserError` where it is undefined.
    """
    if settings.watch == "last":
        return -epoch["epoch"]
    value = epoch.get(f"val_{settings.watch}", math.inf if settings.watch == "loss" else -math.inf)
    if isinstance(value, str):
        raise UserError(f"watch: the {settings.watch} of the validation images is undefined; they need every class")
    return value if settings.watch == "loss" else 1 - value


def best_of(history: list[dict], settings) -> dict:
    """The best epoch; the first of several equals."""
    return min(history, key=lambda epoch: watched(epoch, settings))


def keeps_newest(history: list[dict], settings) -> bool:
    """Whether the model of the newest epoch is kept: it is the best so far, or with "last" the last."""
    if settings.watch == "last":
        return len(history) >= settings.epochs
    return best_of(history, settings) is history[-1]


def require_kept(history: list[dict], best: dict, settings) -> None:
    """Raise `UserError` where `best`, the content of best.pt, is of another epoch than these settings choose.

    --resume_force may change what chooses; weights of other epochs are gone.
    """
    if not history or (settings.watch == "last" and len(history) < settings.epochs):
        return
    chosen = best_of(history, settings)["epoch"]
    if best.get("best", {}).get("epoch") != chosen:
        raise UserError(
            f"watch: {settings.watch} chooses epoch {chosen} of the {len(history)} that are made, whose weights were "
            "not kept; leave --watch and --epochs as they were, or choose another --output_dir"
        )


def finished(history: list[dict], settings) -> bool:
    """Whether all epochs are over, or the last `patience` of them were not better than the best before."""
    if not history or len(history) >= settings.epochs:  # more than `epochs`: --resume_force has set fewer
        return bool(history)
    return history[-1]["epoch"] - best_of(history, settings)["epoch"] >= settings.patience
