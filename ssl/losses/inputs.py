"""What a loss accepts: embeddings that fit together, on this rank and between ranks."""

from typing import NamedTuple

import torch
from torch import Tensor

from ssl.distributed import gather_objects, gather_rows, world_size

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class _Input(NamedTuple):
    """What ranks tell each other about their input, as integers. If it cannot be used, only the first is not zero."""

    unusable: int
    rows: int = 0
    width: int = 0
    dtype: int = 0  # place in FLOATS
    requires_grad: int = 0  # 1: z1, 2: z2, 3: both
    form: int = 0
    labels: int = 0


# What must be the same on all ranks, and its name in an error.
SAME = {"width": "width D", "dtype": "type", "requires_grad": "requires_grad", "form": "form", "labels": "labels"}


def agree(
    z1: Tensor, z2: Tensor, labels: Tensor | None, check: bool, problem: str | None = None, form: int = 0
) -> list[int]:
    """How many rows each rank holds. All ranks call it, before any other collective of the loss.

    Raises ValueError, with the same words on all ranks, for input that no loss can use on any of them, for input that
    differs between ranks, and for a `problem` that the loss has found in its other arguments.

    With `check` the values are checked, which waits for the device, and ranks exchange a few numbers. Without it only
    the shapes and types on this rank are checked, and every rank is assumed to hold as many rows as this one. That is
    for a training loop: it makes equal batches, and looks at the loss.
    """
    problem = problem or _problem(z1, z2, labels) or (_not_finite(z1, z2) if check else None)
    if not check or world_size() == 1:
        raise_problem(problem)
        counts = [z1.shape[0]] * world_size()
    else:
        counts = _compare(_Input(1) if problem else _describe(z1, z2, labels, form), problem, z1.device)
    if sum(counts) < 2:
        raise ValueError(f"a loss between samples needs a global batch of at least 2, got {sum(counts)}")
    return counts


def raise_problem(problem: str | None) -> None:
    if problem:
        raise ValueError(problem)


def _describe(z1: Tensor, z2: Tensor, labels: Tensor | None, form: int) -> _Input:
    requires_grad = z1.requires_grad + 2 * z2.requires_grad
    return _Input(0, *z1.shape, FLOATS.index(z1.dtype), requires_grad, form, labels is not None)


def _compare(own: _Input, problem: str | None, device: torch.device) -> list[int]:
    """Exchange what each rank holds, raise where it differs, and return how many rows each rank has."""
    own = torch.tensor([own], dtype=torch.int64, device=device)
    everyone = [_Input(*row) for row in gather_rows(own, [1] * world_size()).tolist()]
    if any(about.unusable for about in everyone):
        problems = gather_objects(problem)
        raise ValueError("; ".join(f"rank {r}: {words}" for r, words in enumerate(problems) if words))
    for field, name in SAME.items():
        values = [getattr(about, field) for about in everyone]
        if len(set(values)) > 1:
            raise ValueError(f"all ranks must pass the same {name}, got {values} on ranks 0, 1, …")
    return [about.rows for about in everyone]


def _problem(z1: Tensor, z2: Tensor, labels: Tensor | None) -> str | None:
    """In words, why no loss can use these shapes and types; None: it can. Does not look at values."""
    for name, z in (("z1", z1), ("z2", z2)):
        if z.ndim != 2 or z.shape[1] == 0:
            return f"{name} must be embeddings (N, D) with D > 0, got shape {tuple(z.shape)}"
        if not z.is_floating_point():
            return f"{name} must be floating point, got {z.dtype}"
    if z1.shape != z2.shape:
        return f"z1 and z2 must have one shape, got {tuple(z1.shape)} and {tuple(z2.shape)}"
    if z1.dtype != z2.dtype:
        return f"z1 and z2 must have one type, got {z1.dtype} and {z2.dtype}"
    if labels is not None and (labels.shape != z1.shape[:1] or labels.dtype not in INTEGERS):
        return f"labels must be {z1.shape[0]} integers, one a row of z1, got {tuple(labels.shape)} of {labels.dtype}"
    return None


def _not_finite(z1: Tensor, z2: Tensor) -> str | None:
    for name, z in (("z1", z1), ("z2", z2)):
        # The sum of finite numbers is nearly always finite: one pass over z, without a mask.
        wide = torch.promote_types(z.dtype, torch.float32)
        if not bool(z.detach().sum(dtype=wide).isfinite()) and not bool(z.isfinite().all()):
            row, column = (~z.isfinite()).nonzero()[0].tolist()
            return f"{name} is not finite: {z[row, column].item()} at row {row}, column {column}"
    return None


# Inside a loss ------------------------------------------------------------------


def at_least_float32(z: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return z if z.dtype == torch.float64 else z.float()


def refuse_second_derivative() -> None:
    """Called in a backward pass that has no graph of its own. Without the error a second derivative would be wrong."""
    if torch.is_grad_enabled():
        raise RuntimeError("this loss can be differentiated once: create_graph=True has no second derivative here")
