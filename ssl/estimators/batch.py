"""What a batch may be: two views of each sample, perhaps with targets."""

from torch import Tensor

from ssl.distributed import gather_numbers, gather_objects, world_size
from ssl.errors import UserError


def split(batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """(X1, X2, y) of a batch `[X1, X2]` or `([X1, X2], y)`; y is None if there is none.

    Raises ValueError for another structure, for shapes that differ, for a y that is no tensor or has other rows, and
    TypeError for views that are no tensors.
    """
    views, y = batch, None
    if isinstance(batch, list | tuple) and len(batch) == 2 and isinstance(batch[0], list | tuple):
        views, y = batch
        if not isinstance(y, Tensor):
            raise ValueError(f"batch should be `[X1, X2]` or `([X1, X2], y)` with a tensor y, got {describe(batch)}")
    if not isinstance(views, list | tuple) or len(views) != 2:
        raise ValueError(f"batch should be `[X1, X2]` or `([X1, X2], y)`, got {describe(batch)}")
    if not all(isinstance(view, Tensor) for view in views):
        raise TypeError(f"X1 and X2 should be tensors, got {describe(batch)}")
    if views[0].shape != views[1].shape:
        raise ValueError(f"X1 and X2 should have the same shape, got {describe(batch)}")
    if y is not None and y.shape[:1] != views[0].shape[:1]:
        raise ValueError(f"y should have a row for each of X1, got {describe(batch)}")
    return *views, y


def split_on_all_ranks(batch) -> tuple[Tensor, Tensor, Tensor | None, list[int]]:
    """(X1, X2, y, rows on every rank) of this rank's batch. All ranks call it.

    Raises, on all ranks, the errors of `split`, and `UserError` for values that are not finite and for less than two
    samples on all ranks together.
    """
    x1 = x2 = y = problem = None
    rows = 0
    try:
        x1, x2, y = split(batch)
        rows = len(x1)
        if any(not x.is_cuda and not _is_finite(x) for x in (x1, x2)):  # the host would have to wait for a GPU
            raise UserError("X1 or X2 is not finite: it holds NaN or Inf")
    except (ValueError, TypeError) as error:
        problem = error
    if problem and world_size() == 1:
        raise problem
    everyone = gather_numbers([problem is not None, rows])
    if any(unusable for unusable, _ in everyone):
        words = gather_objects(str(problem or ""))
        words = "; ".join(f"rank {r}: {found}" for r, found in enumerate(words) if found)
        raise (type(problem) if problem else ValueError)(words)
    counts = [rows for _, rows in everyone]
    if sum(counts) < 2:
        raise UserError(
            f"batch_size: {sum(counts)} sample is no batch; losses and batch norm compare samples and need at least 2"
        )
    return x1, x2, y, counts


def _is_finite(x: Tensor) -> bool:
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())


def describe(value) -> str:
    """'list of 2 [Tensor (8, 3), int]': the types and shapes in `value`."""
    if isinstance(value, Tensor):
        return f"Tensor {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        inside = ", ".join(map(describe, value[:4])) + (", …" if len(value) > 4 else "")
        return f"{type(value).__name__} of {len(value)} [{inside}]"
    return type(value).__name__
