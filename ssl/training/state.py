"""The state of a training, which a checkpoint holds: all that a step of train.py changes."""

from dataclasses import dataclass

import torch
from torch import nn

from ssl.checkpoints import resume
from ssl.settings import shared
from ssl.training.guard import Guard
from ssl.training.health import Health
from ssl.training.judging import Judge

# Settings of train.py that may differ between a run and its continuation: they do not change what is learnt.
FREE_TO_CHANGE = shared.FREE_TO_CHANGE | set(
    """
    label_column max_steps save_steps save_epochs log_every health_every init_format accumulate max_bad_steps
    eval_every eval_head eval_at_start evaluate_after ssl_val_interval linear_epochs linear_batch linear_lr
    linear_weight_decay linear_momentum
    """.split()
)
CHECKPOINT = resume.Kind(
    "train.py",
    dict.fromkeys(("model", "optimizer", "scaler", "guard", "bad_images", "settings", "identity", "versions"), dict)
    | {"step": int, "retries": int},
    FREE_TO_CHANGE,
)


@dataclass
class TrainState:
    """Random numbers have no state: order, views and dropout are drawn by counters.

    `model` has an `encoder`. `step` is the number of steps made, `retries` how often the run went back to a checkpoint.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    guard: Guard
    health: Health
    judge: Judge
    step: int = 0
    retries: int = 0

    def state_dict(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "retries": self.retries,
            "guard": self.guard.state_dict(),
            "health": self.health.state_dict(),
            "judge": self.judge.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state`. Raises `UserError` as `resume.load_state`."""
        resume.load_state(state, self.model, self.optimizer, self.scaler, guard=self.guard, health=self.health)
        self.judge.load_state_dict(state.get("judge", {}))
        self.step, self.retries = state["step"], state["retries"]
