"""Batch norm over the global batch, on every device.

On a GPU it calls the kernels of `nn.SyncBatchNorm`, but the host does not wait for the device, and torch.compile makes
one graph of a network. A CPU does not have these kernels: there it adds up.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl.distributed import all_gather, sum_over_ranks, world_size
from ssl.errors import UserError

# A rank without rows says it has so many. With 0 the kernel that joins the ranks would divide by 0.
NO_ROWS = 1e-30


class SyncBatchNorm(_BatchNorm):
    """Batch norm of (N, C, ...) over the rows of all ranks. A rank may have more rows than another, or none.

    float16 and bfloat16 have statistics in float32. Raises ValueError for fewer than two dimensions.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f"batch norm wants (N, C, ...), got {tuple(x.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        if not self.training or world_size() == 1:
            return super().forward(x)
        if self.track_running_stats:
            self.num_batches_tracked += 1
        return self._by_kernels(x) if x.is_cuda and self.momentum is not None else self._by_sums(x)

    def _by_kernels(self, x: Tensor) -> Tensor:
        running = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        return _Kernels.apply(x, self.weight, self.bias, *running, self.momentum, self.eps)

    def _by_sums(self, x: Tensor) -> Tensor:
        axes = [0, *range(2, x.ndim)]
        shape = (1, -1, *([1] * (x.ndim - 2)))
        wide = x if x.dtype == torch.float64 else x.float()
        count = wide.new_full((1,), x.numel() / x.shape[1])
        total = _Sum.apply(torch.cat([wide.sum(axes), count]))
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = wide - mean.view(shape)
        var = _Sum.apply(centred.square().sum(axes)) / count
        if self.track_running_stats:
            with torch.no_grad():
                weight = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.to(mean.dtype)
                self.running_mean.lerp_(mean, weight)
                self.running_var.lerp_(var * count / (count - 1), weight)
        out = centred * (var + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)


class SyncBatchNormAct(SyncBatchNorm):
    """BatchNormAct2d of timm over the rows of all ranks: batch norm, then its own `drop` and `act`."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def synchronise(module: nn.Module) -> nn.Module:
    """`module` with every batch norm synchronised over the ranks; unchanged on one process.

    Raises `UserError` for a batch norm that computes something of its own.
    """
    if world_size() == 1:
        return module
    norms = {norm: _synchronised(norm) for norm in module.modules() if isinstance(norm, _BatchNorm)}
    for parent in list(module.modules()):
        for name, child in parent._modules.items():  # named_children() leaves out the second name of a module
            if child in norms:
                parent._modules[name] = norms[child]
    return norms.get(module, module)


def _synchronised(norm: _BatchNorm) -> SyncBatchNorm:
    options = norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    synced = _synchronised_kind(norm)(*options)
    synced._parameters, synced._buffers = norm._parameters, norm._buffers  # the very same, frozen or not
    synced._modules = norm._modules
    return synced.train(norm.training)


def _synchronised_kind(norm: _BatchNorm) -> type[SyncBatchNorm]:
    plain = _BatchNorm.forward, nn.SyncBatchNorm.forward, SyncBatchNorm.forward
    if type(norm).forward in plain:
        return SyncBatchNorm
    if set(norm._modules) == {"drop", "act"}:
        return SyncBatchNormAct
    raise UserError(
        f"encoder: its {type(norm).__name__} is a batch norm with a forward of its own, which is not known for several "
        "processes; run on one process, or pass --sync_bn false"
    )


class _Sum(torch.autograd.Function):
    """Sum of `x` over all ranks. `x` does not change.

    If the sum enters one global loss on every rank, `backward` gives the gradient of that loss by this rank's `x`.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return sum_over_ranks(x.detach().clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return sum_over_ranks(grad.clone(memory_format=torch.contiguous_format))


class _Kernels(torch.autograd.Function):
    """The kernels of a GPU: one message of 2 C + 1 numbers forward, one of 2 C back."""

    @staticmethod
    def forward(ctx, x: Tensor, weight, bias, running_mean, running_var, momentum: float, eps: float) -> Tensor:
        run = _forward_op if torch.compiler.is_compiling() else _forward
        out, *statistics = run(x, weight, bias, running_mean, running_var, momentum, eps)
        ctx.save_for_backward(x, weight, *statistics)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        run = _backward_op if torch.compiler.is_compiling() else _backward
        grads = run(grad, *ctx.saved_tensors)
        return *(grads if ctx.saved_tensors[1] is not None else (grads[0], None, None)), None, None, None, None


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output; mean and 1 / standard deviation (C) of the global batch; how many rows each rank has (world size).

    Changes the running statistics.
    """
    x, channels = _dense(x), x.shape[1]
    if x.numel():
        mean, invstd = torch.batch_norm_stats(x, eps)
        rows = x.numel() // channels
    else:
        mean, invstd, rows = _per_channel(x).zero_(), _per_channel(x).fill_(1), NO_ROWS
    own = torch.cat([mean, invstd, mean.new_full((1,), rows)])
    of_all = own.new_empty(world_size() * len(own))
    all_gather(of_all, own)
    means, invstds, counts = of_all.view(world_size(), -1).split([channels, channels, 1], 1)
    counts = counts.flatten()
    # The kernel reads nothing of its first argument but the type.
    mean, invstd = torch.batch_norm_gather_stats_with_counts(
        mean, means, invstds, running_mean, running_var, momentum, eps, counts
    )
    out = torch.batch_norm_elemt(x, weight, bias, mean, invstd, eps) if x.numel() else torch.empty_like(x)
    return out, mean, invstd, counts.int()


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, invstd: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the input; this rank's share of those of weight and bias, which are zeros if there is no weight."""
    x, grad = _dense(x), _dense(grad)
    rows, affine = x.numel() > 0, weight is not None
    if rows:
        *own, of_weight, of_bias = torch.batch_norm_backward_reduce(grad, x, mean, invstd, weight, True, affine, affine)
    else:
        own = [torch.zeros_like(mean)] * 2
    sums = torch.cat(own)
    dist.all_reduce(sums)
    if rows:
        of_x = torch.batch_norm_backward_elemt(
            grad, x, mean, invstd, weight if weight is None else weight.to(mean.dtype), *sums.chunk(2), counts
        )
    else:
        of_x = torch.empty_like(x)
    if not (rows and affine):
        of_weight, of_bias = torch.zeros_like(mean), torch.zeros_like(mean)
    return of_x, of_weight, of_bias


def _per_channel(x: Tensor) -> Tensor:
    """One number a channel, in the type of statistics."""
    return x.new_empty(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))


def _dense(x: Tensor) -> Tensor:
    """`x` as the kernels want it: channels last or contiguous."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    return x if last and x.is_contiguous(memory_format=last) else x.contiguous()


# For torch.compile each of the two is one operation: it does not know the kernels, nor that one changes its arguments.
_forward_op = torch.library.custom_op("ssl::batch_norm", _forward, mutates_args=("running_mean", "running_var"))
_backward_op = torch.library.custom_op("ssl::batch_norm_backward", _backward, mutates_args=())


@_forward_op.register_fake
def _(x, weight, bias, running_mean, running_var, momentum, eps):
    counts = x.new_empty(world_size(), dtype=torch.int32)
    return torch.empty_like(_dense(x)), _per_channel(x), _per_channel(x), counts


@_backward_op.register_fake
def _(grad, x, weight, mean, invstd, counts):
    return torch.empty_like(_dense(x)), torch.empty_like(mean), torch.empty_like(mean)
