"""What a loss may be given: embeddings that fit each other, on this rank and between ranks."""

import torch
from torch import Tensor

from ssl.distributed import gather_objects, gather_rows, world_size


def _problem(z1: Tensor, z2: Tensor, labels: Tensor | None) -> str | None:
    """What no rank could compute with, in words; looks at shapes and types, not at values."""
    for name, z in (("z1", z1), ("z2", z2)):
        if z.ndim != 2 or z.shape[1] == 0:
            return f"{name} must be embeddings (N, D) with D > 0, got shape {tuple(z.shape)}"
        if not z.is_floating_point():
            return f"{name} must be floating point, got {z.dtype}"
    if z1.shape != z2.shape:
        return f"z1 and z2 must have one shape, got {tuple(z1.shape)} and {tuple(z2.shape)}"
    if z1.dtype != z2.dtype:
        return f"z1 and z2 must have one type, got {z1.dtype} and {z2.dtype}"
    if labels is not None and (labels.shape != z1.shape[:1] or labels.dtype not in _INTEGERS):
        return f"labels must be {z1.shape[0]} integers, one a row of z1, got {tuple(labels.shape)} of {labels.dtype}"
    return None


_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _not_finite(z1: Tensor, z2: Tensor) -> str | None:
    for name, z in (("z1", z1), ("z2", z2)):
        # A sum over finite numbers is finite: one pass and no mask in the ordinary case.
        wide = torch.promote_types(z.dtype, torch.float32)
        if not bool(z.detach().sum(dtype=wide).isfinite()) and not bool(z.isfinite().all()):
            row, column = (~z.isfinite()).nonzero()[0].tolist()
            return f"{name} is not finite: {z[row, column].item()} at row {row}, column {column}"
    return None


def raise_problem(problem: str | None) -> None:
    if problem:
        raise ValueError(problem)


def agree(
    z1: Tensor, z2: Tensor, labels: Tensor | None, check: bool, problem: str | None = None, form: int = 0
) -> list[int]:
    """How many rows each rank holds, once every rank can use its input.

    With `check` values are looked at, which waits for the device, and ranks exchange a few
    numbers first, so that what is wrong on one (`problem`, or the input) is raised as the same
    ValueError on all and none is left waiting in a collective. Without it every rank is taken
    to hold as many rows as this one: for a loop that knows its batches and guards its loss.
    """
    problem = problem or _problem(z1, z2, labels) or (_not_finite(z1, z2) if check else None)
    if not check or world_size() == 1:
        raise_problem(problem)
        counts = [z1.shape[0]] * world_size()
    else:
        about = [0] * 6
        if problem is None:
            about = [*z1.shape, _FLOATS.index(z1.dtype), z1.requires_grad + 2 * z2.requires_grad, form]
            about.append(labels is not None)
        mine = torch.tensor([[problem is not None, *about]], dtype=torch.int64, device=z1.device)
        everyone = gather_rows(mine, [1] * world_size()).tolist()
        if any(bad for bad, *_ in everyone):
            words = gather_objects(problem)
            raise ValueError("; ".join(f"rank {r}: {said}" for r, said in enumerate(words) if said))
        counts = [rows for _, rows, *_ in everyone]
        names = ("width D", "type", "requires_grad", "form", "labels")
        for name, *values in zip(names, *(kinds for _, _, *kinds in everyone)):
            if len(set(values)) > 1:
                raise ValueError(f"all ranks must pass the same {name}, got {values} on ranks 0, 1, …")
    if sum(counts) < 2:
        raise ValueError(f"a loss between samples needs a global batch of at least 2, got {sum(counts)}")
    return counts
