"""What a features file must hold for every split, or for every shard of one."""

import torch
from torch import Tensor

from ssl.errors import UserError
from ssl.evaluation.feature_rows import block_size


def require(where: str, part, classes: int) -> None:
    """Raise `UserError` unless `part` holds finite features (N, F), N labels in 0..`classes`-1 and N names.

    It may also hold N groups, names of what images belong to, "" for none. Older files have none.
    """
    x, y, names = (part.get(key) if isinstance(part, dict) else None for key in ("features", "labels", "names"))
    if not isinstance(x, Tensor) or x.ndim != 2 or x.dtype not in (torch.float32, torch.float64) or 0 in x.shape:
        found = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise UserError(f"features: {where} has features that are {found}; expected float32 or float64 of shape (N, F)")
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.ndim != 1 or not all_strings(names):
        raise UserError(f"features: {where} has not labels (N,) of type int64 and a list of names; write them again")
    if not len(x) == len(y) == len(names):
        raise UserError(f"features: {where} has {len(x)} features but {len(y)} labels and {len(names)} names")
    groups = part.get("groups", names)
    if not all_strings(groups) or len(groups) != len(x):
        raise UserError(f"features: {where} has not a list of the groups of its {len(x)} features; write them again")
    if not -1 <= int(y.min()) <= int(y.max()) < classes:
        raise UserError(
            f"features: {where} has labels from {y.min()} to {y.max()}, and there are {classes} classes; expected "
            f"0 to {classes - 1}, or -1 for none"
        )
    count = block_size(x)
    for number, block in enumerate(x.split(count)):
        finite = block.float().isfinite().all(1)  # as they are used
        if not finite.all():
            first = names[number * count + int((~finite).nonzero()[0])]
            raise UserError(f"features: {where} has NaN or Inf, first in those of {first}; write the features again")


def all_strings(words) -> bool:
    return isinstance(words, list) and all(isinstance(word, str) for word in words)
