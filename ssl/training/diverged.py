"""What is said of a run whose steps, several in a row, had no finite gradient."""

from functools import partial

from torch import Tensor, nn

from ssl.data.worker import Batch
from ssl.training.first_fault import first_fault
from ssl.training.forward import Embed, whole_loss
from ssl.training.state import TrainState


class Diverged(Exception):
    """So many steps in a row had no finite gradient that the run has to go back. Says what was not finite first."""


def diverged(state: TrainState, embed: Embed, criterion: nn.Module, micro_batches: list[Batch]) -> Diverged:
    """`micro_batches` are this rank's of the last of these steps; they are computed once more. All ranks call it."""

    def loss(batch: Batch) -> Tensor:
        return whole_loss(embed, criterion, state.model, [batch])[0]

    found = (first_fault(state.model, lambda: criterion.parts, partial(loss, batch)) for batch in micro_batches)
    first = next(filter(None, found), "nothing, when computed once more: suspect the machine")
    return Diverged(
        f"{state.guard.row} steps in a row, up to step {state.step}, had no finite gradient; first not finite: {first}"
    )
