"""Write what finetune.py logs: for each epoch a line of metrics.jsonl and of the terminal."""

import time
from pathlib import Path

from ssl.console import Progress
from ssl.training.fit import Fit
from ssl.training.log import Metrics


class EpochLog:
    """metrics.jsonl in `folder`, continued at the step of `fit`, and the progress up to step `last`.

    The clock runs while the run trains: from `start_clock` to `write`. Raises `UserError` as `Metrics`.
    """

    def __init__(self, folder: Path, fit: Fit, last: int):
        self.metrics, self.progress = Metrics(folder / "metrics.jsonl", fit.step), Progress(last, fit.step)
        self.start_clock(fit)

    def start_clock(self, fit: Fit) -> None:
        self.began, self.first = time.monotonic(), fit.step

    def images_per_second(self, fit: Fit, global_batch: int) -> float:
        """The speed since `start_clock`."""
        return (fit.step - self.first) * global_batch / (time.monotonic() - self.began)

    def write(self, fit: Fit, speed: float, bad_images: int) -> None:
        """The last epoch of `fit`, which was trained at `speed` images a second."""
        epoch = fit.history[-1]
        lrs = {f"lr_{group['name']}": group["lr"] for group in fit.optimizer.param_groups}
        self.metrics.write(step=fit.step, **epoch, **lrs, samples_per_second=speed, bad_images=bad_images)
        words = f"epoch {epoch['epoch']}  loss {epoch['train_loss']:.4g}  {_validation(epoch)}lr {lrs['lr_head']:.3g}"
        self.progress.update(fit.step, words)

    def close(self) -> None:
        self.progress.close()
        self.metrics.close()


def _validation(epoch: dict) -> str:
    """What the line says of the validation images; nothing, if the epoch was not validated."""
    if "val_loss" not in epoch:
        return ""
    auc = epoch["val_auc"] if isinstance(epoch["val_auc"], str) else f"{epoch['val_auc']:.3f}"
    low, high = epoch["val_acc1_interval"]
    return f"val loss {epoch['val_loss']:.4g}  auc {auc}  acc {epoch['val_acc1']:.3f} ({low:.2f}–{high:.2f})  "
