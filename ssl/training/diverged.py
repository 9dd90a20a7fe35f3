"""The error of a run in which several steps in a row had no finite gradient."""

from functools import partial

from torch import nn

from ssl.data.worker import Batch
from ssl.training.first_fault import first_fault
from ssl.training.forward import Embed, whole_loss
from ssl.training.state import TrainState


class Diverged(Exception):
    """So many steps in a row had no finite gradient that the run must go back. Says what was not finite first."""


def diverged(state: TrainState, embed: Embed, criterion: nn.Module, micro_batches: list[Batch]) -> Diverged:
    """Computes `micro_batches`, this rank's of the last of these steps, once more. All ranks call it."""
    again = (partial(whole_loss, embed, criterion, state.model, [batch]) for batch in micro_batches)
    faults = (first_fault(state.model, compute) for compute in again)
    first = next(filter(None, faults), "nothing, when computed once more: suspect the machine")
    return Diverged(
        f"{state.guard.bad_in_a_row} steps in a row, up to step {state.step}, had no finite gradient; "
        f"first not finite: {first}"
    )
