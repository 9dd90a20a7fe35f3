"""Losses over the global batch, exact on any number of processes.

The rule: value and gradient on W processes equal those of one process that
holds the whole batch, for any split, uneven too. Each rank gets the true
gradient of its own rows. (DDP then *averages* parameter gradients over ranks,
so a training loop multiplies such a loss by the world size; see train.py.)

Shapes: n rows on this rank, N over all ranks, D dimensions.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ssl.distributed import gather_rows, rank, row_counts, world_size


def _check_pair(z1: Tensor, z2: Tensor) -> None:
    """Refuse, before any collective starts, what no rank could compute."""
    for name, z in (("z1", z1), ("z2", z2)):
        if z.ndim != 2 or z.shape[1] == 0:
            raise ValueError(f"{name} must be embeddings (N, D) with D > 0, got shape {tuple(z.shape)}")
        if not z.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {z.dtype}")
    if z1.shape != z2.shape:
        raise ValueError(f"z1 and z2 must have one shape, got {tuple(z1.shape)} and {tuple(z2.shape)}")
    if world_size() == 1 and z1.shape[0] < 2:
        raise ValueError(f"a loss between samples needs a batch of at least 2, got {z1.shape[0]}")


def _global_counts(z: Tensor) -> list[int]:
    counts = row_counts(z)
    if sum(counts) < 2:
        raise ValueError(f"a loss between samples needs a global batch of at least 2, got {sum(counts)}")
    return counts


def _sum_over_ranks(x: Tensor) -> Tensor:
    if world_size() > 1:
        dist.all_reduce(x)
    return x


# Barlow Twins -----------------------------------------------------------------


class _BarlowTwins(torch.autograd.Function):
    """Loss and gradient together, because both need the same products.

    With unit-variance views a, b (N, D), C = aᵀb / N and c = diag C:

        L     = Σ (cⱼ - 1)² + λ (‖C‖² - Σ cⱼ²)
        ∂L/∂a = (2λ b Cᵀ + b · d) / N,   dⱼ = 2 (cⱼ - 1) - 2λ cⱼ     (likewise for b)

    Neither needs C itself. 'gram' uses the N×N matrices A = aaᵀ, B = bbᵀ:
    ‖C‖² = Σ A∘B / N² and b Cᵀ = B a / N. 'cross' uses C.

    Back through the normalisation: ∂L/∂z = (∂L/∂a - a · mean(∂L/∂a ∘ a)) / s. The
    usual mean(∂L/∂a) is missing because it is zero: the columns of b sum to zero.
    """

    @staticmethod
    def forward(ctx, z1: Tensor, z2: Tensor, lambd: float, form: str):
        counts = _global_counts(z1)
        total, dim = sum(counts), z1.shape[1]
        if form == "auto":
            form = cheaper_form(total, dim)
        wants_grad = any(ctx.needs_input_grad[:2])
        compute = _barlow_gram if form == "gram" else _barlow_cross
        on_diag, off_diag, grads = compute(z1.detach().float(), z2.detach().float(), counts, lambd, wants_grad)
        if wants_grad:
            ctx.save_for_backward(*grads)
            ctx.dtypes = z1.dtype, z2.dtype
        ctx.mark_non_differentiable(on_diag, off_diag)
        return on_diag + lambd * off_diag, on_diag, off_diag

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, *_):
        g1, g2 = ctx.saved_tensors
        # A scaler's factor comes in with grad: multiply in float32, or half precision has lost what it saves.
        return (g1 * grad).to(ctx.dtypes[0]), (g2 * grad).to(ctx.dtypes[1]), None, None


def cheaper_form(total: int, dim: int) -> str:
    """'gram' or 'cross', by multiplications: 4 N²D against 3 ND², forward and backward."""
    return "gram" if 4 * total < 3 * dim else "cross"


EPS = 1e-5


def _barlow_gram(z1: Tensor, z2: Tensor, counts: list[int], lambd: float, wants_grad: bool):
    """One all-gather of both views; after it only 2D + 1 numbers travel."""
    total, dim = sum(counts), z1.shape[1]
    first = sum(counts[: rank()])
    mine = slice(first, first + z1.shape[0])
    both = gather_rows(torch.cat([z1, z2], dim=1), counts)  # (N, 2D)
    mean = both.mean(0)
    both = both - mean
    std = (both.square().mean(0) + EPS).sqrt()
    both /= std
    a, b = both[:, :dim], both[:, dim:]  # (N, D) views into one tensor
    c = (a * b).mean(0)

    rows_a = a[mine] @ a.T  # (n, N)
    rows_b = b[mine] @ b.T
    sums = [torch.dot(rows_a.flatten(), rows_b.flatten())[None] / total**2]
    if wants_grad:
        d = 2 * (c - 1) - 2 * lambd * c
        g1 = (rows_b @ a).mul_(2 * lambd / total).addcmul_(b[mine], d).div_(total)
        g2 = (rows_a @ b).mul_(2 * lambd / total).addcmul_(a[mine], d).div_(total)
        sums += [(g1 * a[mine]).sum(0), (g2 * b[mine]).sum(0)]
    sums = _sum_over_ranks(torch.cat(sums))
    if wants_grad:
        m1, m2 = (sums[1:] / total).chunk(2)
        g1 = g1.addcmul_(a[mine], m1, value=-1).div_(std[:dim])
        g2 = g2.addcmul_(b[mine], m2, value=-1).div_(std[dim:])
    on_diag = (c - 1).square().sum()
    off_diag = sums[0] - c.square().sum()
    return on_diag, off_diag, (g1, g2) if wants_grad else None


def _barlow_cross(z1: Tensor, z2: Tensor, counts: list[int], lambd: float, wants_grad: bool):
    """One all-reduce of C (D, D); the gradient of this rank's rows is then local."""
    total, dim = sum(counts), z1.shape[1]
    both = torch.cat([z1, z2], dim=1)
    both = both - _sum_over_ranks(both.sum(0)) / total
    std = (_sum_over_ranks(both.square().sum(0)) / total + EPS).sqrt()
    both /= std
    a, b = both[:, :dim], both[:, dim:]
    corr = _sum_over_ranks(a.T @ b).div_(total)
    c = corr.diagonal().clone()
    squares = corr.square()
    on_diag = (c - 1).square().sum()
    off_diag = squares.sum() - c.square().sum()
    if not wants_grad:
        return on_diag, off_diag, None
    d = 2 * (c - 1) - 2 * lambd * c
    g1 = (b @ corr.T).mul_(2 * lambd).addcmul_(b, d).div_(total)
    g2 = (a @ corr).mul_(2 * lambd).addcmul_(a, d).div_(total)
    m1 = (2 * lambd * squares.sum(1) + d * c) / total
    m2 = (2 * lambd * squares.sum(0) + d * c) / total
    g1 = g1.addcmul_(a, m1, value=-1).div_(std[:dim])
    g2 = g2.addcmul_(b, m2, value=-1).div_(std[dim:])
    return on_diag, off_diag, (g1, g2)


def barlow_twins(z1: Tensor, z2: Tensor, lambd: float = 5e-3, form: str = "auto") -> tuple[Tensor, Tensor, Tensor]:
    """Barlow Twins loss (Zbontar et al. 2021, eq. 1) of the global batch, in float32.

    z1, z2: (n, D), this rank's rows of the two views; each column is normalised over
    the global batch with population variance and eps 1e-5. `form` is 'auto' (by cost),
    'gram' or 'cross'; both give the same numbers.

    Returns (loss, on_diagonal, off_diagonal), scalars: loss = on + lambd * off; the last
    two carry no gradient. Raises ValueError for shapes that differ, integer input, D = 0
    or a global batch of 1.
    """
    _check_pair(z1, z2)
    if form not in ("auto", "gram", "cross"):
        raise ValueError(f"form must be 'auto', 'gram' or 'cross', got {form!r}")
    with torch.autocast(z1.device.type, enabled=False):
        return _BarlowTwins.apply(z1, z2, lambd, form)


class BarlowTwinsLoss(nn.Module):
    """`barlow_twins` times `loss_scale`. After a call, `parts` holds what the log wants.

    >>> criterion = BarlowTwinsLoss(lambd=5e-3)
    >>> criterion(z1, z2).backward()
    """

    def __init__(self, lambd: float = 5e-3, loss_scale: float = 1.0, form: str = "auto"):
        super().__init__()
        self.lambd, self.loss_scale, self.form = lambd, loss_scale, form
        self.parts: dict[str, Tensor] = {}

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        loss, on_diag, off_diag = barlow_twins(z1, z2, self.lambd, self.form)
        self.parts = {"on_diagonal": on_diag, "off_diagonal": off_diag}
        return loss * self.loss_scale

    def extra_repr(self) -> str:
        return f"lambd={self.lambd}, loss_scale={self.loss_scale}"


# InfoNCE ----------------------------------------------------------------------


class _InfoNCE(torch.autograd.Function):
    """NT-Xent in blocks of anchor rows: no (2N, 2N) matrix is ever held.

    Rows of `z` (2N, D) are ordered rank by rank, and within a rank view 1 then view 2.
    With p_ij = exp(s_ij - lse_i) the softmax of anchor i, row i of the gradient is

        ∂L/∂zᵢ = Σⱼ (p_ij + p_ji - 2 [j = partner of i]) zⱼ / (2N · T)

    so after the gather a rank needs from the others only their lse, a vector.
    """

    @staticmethod
    def forward(ctx, z: Tensor, temperature: float, block: int):
        counts = row_counts(z)
        everyone = gather_rows(z, counts)  # (2N, D)
        first, n = sum(counts[: rank()]), z.shape[0]
        lse = z.new_empty(n)
        positive = z.new_empty(n)
        better = z.new_empty(n)  # how many negatives score above the positive
        for start in range(0, n, block):
            rows = torch.arange(start, min(start + block, n), device=z.device)
            scores = _scores(z.detach(), everyone, rows, first, temperature)
            mine = slice(start, start + len(rows))
            positive[mine] = scores.gather(1, (first + _partner(rows, n))[:, None])[:, 0]
            lse[mine] = scores.logsumexp(1)
            better[mine] = (scores > positive[mine, None]).sum(1).to(z.dtype)
        sums = torch.stack([(lse - positive).sum(), (better < 1).sum(), (better < 5).sum()])
        loss, acc1, acc5 = _sum_over_ranks(sums.float()) / sum(counts)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(z.detach(), everyone, gather_rows(lse, counts))
            ctx.first, ctx.temperature, ctx.block = first, temperature, block
        ctx.mark_non_differentiable(acc1, acc5)
        return loss, acc1, acc5

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, *_):
        z, everyone, lse = ctx.saved_tensors
        n = z.shape[0]
        out = torch.empty_like(z)
        for start in range(0, n, ctx.block):
            rows = torch.arange(start, min(start + ctx.block, n), device=z.device)
            scores = _scores(z, everyone, rows, ctx.first, ctx.temperature)
            weights = (scores - lse[ctx.first + rows, None]).exp_()
            weights += (scores - lse[None, :]).exp_()
            weights.scatter_add_(1, (ctx.first + _partner(rows, n))[:, None], weights.new_full((len(rows), 1), -2.0))
            out[start : start + len(rows)] = weights @ everyone
        return out * (grad / (everyone.shape[0] * ctx.temperature)), None, None


def _partner(rows: Tensor, n: int) -> Tensor:
    """Where, among a rank's n rows (view 1 then view 2), the other view of each row is."""
    return (rows + n // 2) % n


def _scores(z: Tensor, everyone: Tensor, rows: Tensor, first: int, temperature: float) -> Tensor:
    """Similarity / temperature of the given rows to every row, -inf to themselves."""
    scores = z[rows] @ everyone.T / temperature
    return scores.scatter_(1, (first + rows)[:, None], float("-inf"))


def info_nce(z1: Tensor, z2: Tensor, temperature: float = 0.1, block: int = 1024) -> tuple[Tensor, Tensor, Tensor]:
    """InfoNCE in the form of NT-Xent (Chen et al. 2020, eq. 1) of the global batch, in float32.

    z1, z2: (n, D), this rank's rows of the two views; rows are L2-normalised here. Every
    one of the 2N views is an anchor, its other view the positive, all 2N - 2 others negatives.
    `block` anchor rows are compared at a time: memory grows with block × N.

    Returns (loss, acc1, acc5): the last two, in 0..1 and without gradient, say how often the
    positive is the nearest, or among the five nearest, of the 2N - 1 others. Raises ValueError
    for shapes that differ, integer input, D = 0, temperature <= 0 or a global batch of 1.
    """
    _check_pair(z1, z2)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    with torch.autocast(z1.device.type, enabled=False):
        z = F.normalize(torch.cat([z1.float(), z2.float()]), dim=1)
        return _InfoNCE.apply(z, temperature, block)


class InfoNCELoss(nn.Module):
    """`info_nce` as a module. After a call, `parts` holds the contrastive accuracies."""

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        self.temperature = temperature
        self.parts: dict[str, Tensor] = {}

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        loss, acc1, acc5 = info_nce(z1, z2, self.temperature)
        self.parts = {"contrastive_acc1": acc1, "contrastive_acc5": acc5}
        return loss

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
