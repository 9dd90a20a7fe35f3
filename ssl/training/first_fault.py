"""Find what was not finite first in a bad step: an input, a layer's output, a term of the loss, or a gradient."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ssl.distributed import gather_objects, world_size

Fault = tuple[int, int, str]  # kind, place among those of its kind, words; the smallest of them came first
FORWARD, TERM, LOSS, GRADIENT = range(4)  # the kinds, in the order in which a step computes them


def first_fault(model: nn.Module, compute: Callable[[], tuple[Tensor, dict[str, Tensor]]]) -> str:
    """In words, what is not finite first when the loss is computed once more, and on which ranks; '' if nothing is.

    `compute()` runs `model` on this rank's batch and returns the loss, and its terms by name. All ranks call it. A bad
    step changes no weight, so the same batch gives the same fault again.
    """
    faults, hooks = _watch(model)
    loss, terms = compute()
    for hook in hooks:
        hook.remove()
    faults += [(TERM, 0, f"the term {name} of the loss") for name, value in terms.items() if not _is_finite(value)]
    faults += [] if _is_finite(loss) else [(LOSS, 0, "the loss")]
    faults += _bad_gradients(model, loss)
    everyone = gather_objects(min(faults, default=None))
    first = min((fault for fault in everyone if fault), default=None)
    if first is None:
        return ""
    ranks = [str(rank) for rank, fault in enumerate(everyone) if fault == first]
    where = f" on rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)}" if world_size() > 1 else ""
    return f"{first[2]}{where}"


def _watch(model: nn.Module) -> tuple[list[Fault], list]:
    """(faults, hooks): as long as the hooks stay, faults of the layers of `model` are added to the list."""
    faults: list[Fault] = []
    calls = itertools.count()

    def look(name: str) -> Callable:
        def hook(module: nn.Module, inputs, output) -> None:
            place = 2 * next(calls)
            if not _is_finite(inputs):
                faults.append((FORWARD, place, f"the input of {name}"))
            if not _is_finite(output):
                faults.append((FORWARD, place + 1, f"the output of {name}"))

        return hook

    layers = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    return faults, [module.register_forward_hook(look(name)) for name, module in layers]


def _bad_gradients(model: nn.Module, loss: Tensor) -> list[Fault]:
    """Backward begins at the last parameter, so that of the bad ones the last came first."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    pairs = enumerate(zip(named, grads))
    return [(GRADIENT, -i, f"the gradient of {name}") for i, ((name, _), grad) in pairs if not _is_finite(grad)]


def _is_finite(value) -> bool:
    """Whether all tensors in `value`, which may be nested, are finite."""
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    return all(map(_is_finite, value)) if isinstance(value, list | tuple) else True
