"""What a batch may be: views of each sample, perhaps with targets."""

from torch import Tensor

from ssl.distributed import gather_numbers, gather_objects, require_one_value, world_size
from ssl.errors import UserError


def split(batch, count: int = 2) -> tuple[list[Tensor], Tensor | None]:
    """([X1, X2], y) of a batch `[X1, X2]` or `([X1, X2], y)`, or of `count` views; y is None if there is none.

    Raises ValueError for another structure, for shapes that differ, for a y that is no tensor or has other rows, and
    TypeError for views that are no tensors.
    """
    names = f"X1 {'and' if count == 2 else 'to'} X{count}"
    listed = "X1, X2" if count == 2 else f"X1, …, X{count}"
    expected = f"batch should be `[{listed}]` or `([{listed}], y)`"
    views, y = batch, None
    if isinstance(batch, list | tuple) and len(batch) == 2 and isinstance(batch[0], list | tuple):
        views, y = batch
        if not isinstance(y, Tensor):
            raise ValueError(f"{expected} with a tensor y, got {describe(batch)}")
    if not isinstance(views, list | tuple) or len(views) != count:
        raise ValueError(f"{expected}, got {describe(batch)}; num_views is {count}")
    if not all(isinstance(view, Tensor) for view in views):
        raise TypeError(f"{names} should be tensors, got {describe(batch)}")
    if len({view.shape for view in views}) > 1:
        raise ValueError(f"{names} should have the same shape, got {describe(batch)}")
    if y is not None and y.shape[:1] != views[0].shape[:1]:
        raise ValueError(f"y should have a row for each of X1, got {describe(batch)}")
    return list(views), y


def split_on_all_ranks(batch, count: int = 2) -> tuple[list[Tensor], Tensor | None, list[int]]:
    """(`count` views, y, rows on every rank) of this rank's batch. All ranks call it.

    Raises, on all ranks, the errors of `split`, and `UserError` for values that are not finite, for another `count` on
    another rank and for less than two samples on all ranks together.
    """
    views, y, problem, rows = [], None, None, 0
    try:
        views, y = split(batch, count)
        rows = len(views[0])
        for number, x in enumerate(views, 1):
            if not x.is_cuda and not _is_finite(x):  # the host would have to wait for a GPU
                raise UserError(f"X{number} is not finite: it holds NaN or Inf")
    except (ValueError, TypeError) as error:
        problem = error
    if problem and world_size() == 1:
        raise problem
    unusable, counts, views_of_ranks = zip(*gather_numbers([problem is not None, rows, count]))
    if any(unusable):
        words = gather_objects(str(problem or ""))
        words = "; ".join(f"rank {r}: {found}" for r, found in enumerate(words) if found)
        raise (type(problem) if problem else ValueError)(words)
    require_one_value("num_views", list(views_of_ranks))
    if sum(counts) < 2:
        raise UserError(
            f"batch_size: {sum(counts)} sample is no batch; losses and batch norm compare samples and need at least 2"
        )
    return views, y, list(counts)


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
