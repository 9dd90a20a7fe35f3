"""What a loss accepts: embeddings that fit together, on this rank and between ranks."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ssl.distributed import gather_objects, gather_rows, world_size

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_VIEWS = 16


class _Input(NamedTuple):
    """What ranks tell each other about their input, as integers. If it cannot be used, only the first is not zero."""

    unusable: int
    views: int = 0
    rows: int = 0
    width: int = 0
    dtype: int = 0  # place in FLOATS
    requires_grad: int = 0  # one bit a view; the lowest is z1's
    form: int = 0
    labels: int = 0


# What must be the same on all ranks, and its name in an error.
SAME = {
    "views": "number of views",
    "width": "width D",
    "dtype": "type",
    "requires_grad": "requires_grad",
    "form": "form",
    "labels": "labels",
}


def agree(
    views: Sequence[Tensor], labels: Tensor | None, check: bool, problem: str | None = None, form: int = 0
) -> list[int]:
    """How many rows of every view each rank holds. All ranks call it, before any other collective of the loss.

    Raises ValueError, with the same words on all ranks, for input that no loss can use on any of them, for input that
    differs between ranks, and for a `problem` that the loss has found in its other arguments.

    With `check` the values are checked, which waits for the device, and ranks exchange a few numbers. Without it only
    the shapes and types on this rank are checked, and every rank is assumed to hold as many rows as this one. That is
    for a training loop: it makes equal batches, and looks at the loss.
    """
    problem = problem or _problem(views, labels) or (_not_finite(views) if check else None)
    if not check or world_size() == 1:
        raise_problem(problem)
        counts = [views[0].shape[0]] * world_size()
    else:
        device = next((z.device for z in views if isinstance(z, Tensor)), torch.device("cpu"))
        counts = _compare(_Input(1) if problem else _describe(views, labels, form), problem, device)
    if sum(counts) < 2:
        raise ValueError(f"a loss between samples needs a global batch of at least 2, got {sum(counts)}")
    return counts


def raise_problem(problem: str | None) -> None:
    if problem:
        raise ValueError(problem)


def _describe(views: Sequence[Tensor], labels: Tensor | None, form: int) -> _Input:
    requires_grad = sum(z.requires_grad << i for i, z in enumerate(views))
    z = views[0]
    return _Input(0, len(views), *z.shape, FLOATS.index(z.dtype), requires_grad, form, labels is not None)


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


def _problem(views: Sequence[Tensor], labels: Tensor | None) -> str | None:
    """In words, why no loss can use these views and labels; None: it can. Does not look at values."""
    if not 2 <= len(views) <= MOST_VIEWS:
        return f"a loss compares 2 to {MOST_VIEWS} views, got {len(views)}"
    for i, z in enumerate(views, 1):
        if not isinstance(z, Tensor):
            return f"z{i} must be a tensor, got {z!r}; every argument after the views is passed by name"
        if z.ndim != 2 or z.shape[1] == 0:
            return f"z{i} must be embeddings (N, D) with D > 0, got shape {tuple(z.shape)}"
        if not z.is_floating_point():
            return f"z{i} must be floating point, got {z.dtype}"
    first = views[0]
    for i, z in enumerate(views[1:], 2):
        if z.shape != first.shape:
            return f"z1 and z{i} must have one shape, got {tuple(first.shape)} and {tuple(z.shape)}"
        if z.dtype != first.dtype:
            return f"z1 and z{i} must have one type, got {first.dtype} and {z.dtype}"
    if labels is not None and (labels.shape != first.shape[:1] or labels.dtype not in INTEGERS):
        return f"labels must be {len(first)} integers, one a row of z1, got {tuple(labels.shape)} of {labels.dtype}"
    return None


def _not_finite(views: Sequence[Tensor]) -> str | None:
    for i, z in enumerate(views, 1):
        # The sum of finite numbers is nearly always finite: one pass over z, without a mask.
        wide = torch.promote_types(z.dtype, torch.float32)
        if not bool(z.detach().sum(dtype=wide).isfinite()) and not bool(z.isfinite().all()):
            row, column = (~z.isfinite()).nonzero()[0].tolist()
            return f"z{i} is not finite: {z[row, column].item()} at row {row}, column {column}"
    return None


# Inside a loss ------------------------------------------------------------------


def at_least_float32(z: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return z if z.dtype == torch.float64 else z.float()


def refuse_second_derivative() -> None:
    """Called in a backward pass that has no graph of its own. Without the error a second derivative would be wrong."""
    if torch.is_grad_enabled():
        raise RuntimeError("this loss can be differentiated once: create_graph=True has no second derivative here")
