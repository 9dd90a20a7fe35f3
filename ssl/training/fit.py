"""The state of a fine-tuning, which a checkpoint holds: weights, optimizer, steps and epochs."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ssl.checkpoints import resume
from ssl.distributed import is_main, sum_over_ranks, world_size
from ssl.settings import shared

# Settings of finetune.py that may differ between a run and its continuation: they do not change what is learnt.
FREE_TO_CHANGE = shared.FREE_TO_CHANGE | {"runs", "test_only", "predict", "model_path"}
CHECKPOINT = resume.Kind(
    "finetune.py",
    dict.fromkeys(("model", "best", "optimizer", "scaler", "bad_images", "settings", "identity", "versions"), dict)
    | {"step": int, "step_of_run": int, "number": int, "history": list},
    FREE_TO_CHANGE,
)


@dataclass
class Fit:
    """Run `number`, from 0 on, of a fine-tuning: one for each seed.

    `steps_before` is the number of steps of all runs before this one. `history` has a dict for each epoch: its training
    loss, and what the validation gave. `best` is the content of best.pt, empty until the first epoch has ended.
    `loss_sum` is the sum, in float64, of the losses of this rank's images in this epoch, and `loss_images` the number
    of these images on all ranks.
    """

    number: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    steps_before: int = 0
    step: int = 0
    history: list[dict] = field(default_factory=list)
    best: dict = field(default_factory=dict)
    loss_images: int = 0

    def __post_init__(self):
        self.device = next(self.model.parameters()).device
        # In float64 the order in which float32 numbers are added does not matter.
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)

    def total_step(self) -> int:
        """The steps of all runs until now."""
        return self.steps_before + self.step

    def count_step(self, loss: Tensor, images: int) -> None:
        """One step more is made. `loss` is the mean of this rank's `images`, a scalar."""
        self.loss_sum += loss.detach().double() * images
        self.loss_images += images * world_size()
        self.step += 1

    def end_epoch(self) -> float:
        """The mean loss of the epoch's images, on all ranks. All ranks call it."""
        loss = sum_over_ranks(self.loss_sum).item() / self.loss_images
        self.loss_sum, self.loss_images = torch.zeros_like(self.loss_sum), 0
        return loss

    def share_loss(self) -> None:
        """Before a save: rank 0, which saves, takes over the losses of all ranks. All ranks call it."""
        sum_over_ranks(self.loss_sum)
        if not is_main():
            self.loss_sum.zero_()

    def state_dict(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "number": self.number,
            "step": self.total_step(),
            "step_of_run": self.step,
            "history": list(self.history),
            "best": self.best,
            "loss_sum": self.loss_sum.item(),
            "loss_images": self.loss_images,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a checkpoint. Raises `UserError` as `resume.load_state`."""
        if "loss_sum" in state:  # a checkpoint of an earlier version has none
            self.loss_sum.fill_(state["loss_sum"] if is_main() else 0.0)
            self.loss_images = state["loss_images"]
        self.step, self.history, self.best = state["step_of_run"], state["history"], state["best"]
        resume.load_state(state, self.model, self.optimizer, self.scaler)
