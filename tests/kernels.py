"""A GPU's kernels of batch norm, on the CPU: their sums, types and order. Importing this file gives them to PyTorch."""

import torch
from torch import Tensor

LIBRARY = torch.library.Library("aten", "IMPL")  # forgotten as soon as it is freed


def axes(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def along(values: Tensor, x: Tensor) -> Tensor:
    """Values (C) as they meet `x` (N, C, ...)."""
    return values.view(1, -1, *[1] * (x.ndim - 2))


def batch_norm_stats(x, eps):
    var, mean = torch.var_mean(wide(x), axes(x), correction=0)
    return mean, (var + eps).rsqrt()


def batch_norm_gather_stats_with_counts(x, means, invstds, running_mean, running_var, momentum, eps, counts):
    if counts.dtype != (x if running_mean is None else running_mean).dtype:
        raise RuntimeError("expected scalar type of counts to be that of the running mean, or of the input")
    rows, mean, squares = 0, torch.zeros_like(means[0]), torch.zeros_like(means[0])
    for own, invstd, count in zip(means, invstds, counts):
        deviation = 1 / invstd
        factor = 1 / (rows + count)
        squares += (deviation * deviation - eps) * count + (mean - own) ** 2 * rows * count * factor
        mean = rows * factor * mean + count * factor * own
        rows = int(rows + count)  # an integer, as in the kernel
    if running_mean is not None:
        running_mean.copy_((1 - momentum) * running_mean + momentum * mean)
        running_var.copy_((1 - momentum) * running_var + momentum * squares / (rows - 1))
    return mean, (squares / rows + eps).rsqrt()


def batch_norm_elemt(x, weight, bias, mean, invstd, eps):
    out = (wide(x) - along(mean, x)) * along(invstd, x)
    return (out if weight is None else out * along(weight, x) + along(bias, x)).to(x.dtype)


def batch_norm_backward_reduce(grad, x, mean, invstd, weight, of_x, of_weight, of_bias):
    sum_grad = wide(grad).sum(axes(x))
    sum_grad_x = (wide(grad) * (wide(x) - along(mean, x))).sum(axes(x))
    nothing = torch.empty(0)
    return sum_grad, sum_grad_x, sum_grad_x * invstd if of_weight else nothing, sum_grad.clone() if of_bias else nothing


def batch_norm_backward_elemt(grad, x, mean, invstd, weight, sum_grad, sum_grad_x, counts):
    if counts.dtype != torch.int32 or not counts.is_contiguous():
        raise RuntimeError("counts are read as int32, one after the other")
    rows = counts.sum()
    centred = (
        wide(grad) - along(sum_grad / rows, x) - (wide(x) - along(mean, x)) * along(invstd**2 * sum_grad_x / rows, x)
    )
    return (centred * along(invstd if weight is None else invstd * weight, x)).to(x.dtype)


for kernel in (
    batch_norm_stats,
    batch_norm_gather_stats_with_counts,
    batch_norm_elemt,
    batch_norm_backward_reduce,
    batch_norm_backward_elemt,
):
    LIBRARY.impl(kernel.__name__, kernel, "CPU")
