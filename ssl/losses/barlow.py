"""Barlow Twins (Zbontar et al. 2021)."""

from collections.abc import Sequence
from itertools import accumulate, chain, combinations

import torch
from torch import Tensor, nn

from ssl.distributed import gather_rows, rank, sum_over_ranks, world_size
from ssl.losses.inputs import agree, at_least_float32, refuse_second_derivative

FORMS = ("auto", "gram", "cross")
EPS = 1e-5  # added to variances


class BarlowTwinsLoss(nn.Module):
    """`barlow_twins` times `loss_scale`. After a call, `parts` holds the two terms: "on_diagonal", "off_diagonal".

    >>> criterion = BarlowTwinsLoss(lambd=5e-3)
    >>> criterion(z1, z2).backward()
    """

    def __init__(self, lambd: float = 5e-3, loss_scale: float = 1.0, form: str = "auto", check: bool = True):
        super().__init__()
        _check_form(form)
        self.lambd, self.loss_scale, self.form, self.check = lambd, loss_scale, form, check
        self.parts: dict[str, Tensor] = {}

    def forward(self, *views: Tensor) -> Tensor:
        loss, on_diag, off_diag = barlow_twins(*views, lambd=self.lambd, form=self.form, check=self.check)
        self.parts = {"on_diagonal": on_diag, "off_diagonal": off_diag}
        return loss * self.loss_scale

    def extra_repr(self) -> str:
        scale = "" if self.loss_scale == 1 else f", loss_scale={self.loss_scale}"
        return f"lambd={self.lambd}{scale}" + ("" if self.form == "auto" else f", form={self.form!r}")


def barlow_twins(
    *views: Tensor, lambd: float = 5e-3, form: str = "auto", check: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Barlow Twins loss (Zbontar et al. 2021, eq. 1) of the global batch, in float32 or float64.

    views: z1, …, zV, 2 to 16, each (n, D): this rank's rows. For more than two views it is the mean of the published
    loss over the V(V-1)/2 pairs. Each column is normalised over the global batch, with population variance and eps
    1e-5. `form` is 'gram', 'cross' or 'auto' (the cheaper one, see `cheaper_form`); both give the same numbers.

    Returns (loss, on_diagonal, off_diagonal), scalars: loss = on_diagonal + lambd * off_diagonal. The last two carry no
    gradient. Raises ValueError, on all ranks, for another number of views, shapes that differ, integers, D = 0, a
    global batch of 1, NaN or Inf. With `check=False` nothing waits for the device: every rank must hold equally many
    rows, and values are not checked.
    """
    _check_form(form)
    counts = agree(views, None, check, form=FORMS.index(form))
    wants_grad = torch.is_grad_enabled() and any(z.requires_grad for z in views)
    dtype = torch.promote_types(views[0].dtype, torch.float32)
    if sum(counts) < 8:  # the gradient is then so close to zero that float32 holds no digits of it
        views = [z.double() for z in views]
    with torch.autocast(views[0].device.type, enabled=False):
        parts = _BarlowTwins.apply(lambd, form, counts, wants_grad, *views)
    return tuple(part.to(dtype) for part in parts)


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"form must be 'auto', 'gram' or 'cross', got {form!r}")


def cheaper_form(total: int, dim: int, processes: int = 1, views: int = 2) -> str:
    """'gram' or 'cross', whichever multiplies less, forward and backward.

    For V views that is 2V N²D against V(V-1)/2 · 3ND². The pairs' diagonals cost 3V(V-1)/2 · ND in both. On several
    processes it is 'gram' for all N < (V-1)D, since 'cross' sends a D×D matrix for each pair.
    """
    others = (views - 1) * dim
    return "gram" if 4 * total < 3 * others or (processes > 1 and total < others) else "cross"


class _BarlowTwins(torch.autograd.Function):
    """Loss and gradient are computed together, because both need the same products.

    With unit-variance views zᵢ (N, D), C_ij = zᵢᵀzⱼ / N, c_ij = diag C_ij and P = V(V-1)/2 pairs:

        L      = Σ_{i<j} (Σ (c_ij - 1)² + λ (‖C_ij‖² - Σ c_ij²)) / P
        ∂L/∂zᵢ = Σ_{j≠i} (2λ zⱼ C_ji + zⱼ · d_ij) / NP,   d_ij = 2 (c_ij - 1) - 2λ c_ij

    Neither needs a C itself. 'gram' uses one N×N matrix of each view, Aᵢ = zᵢzᵢᵀ, none of a pair:
    Σ_{i<j} ‖C_ij‖² = Σᵢ Σ Aᵢ ∘ (Σ_{j>i} Aⱼ) / N² and Σ_{j≠i} zⱼ C_ji = (Σ_{j≠i} Aⱼ) zᵢ / N. 'cross' uses every C_ij.

    Back through the normalisation: ∂L/∂(input) = (∂L/∂z - z · mean(∂L/∂z ∘ z)) / s, where s is the standard deviation.
    The usual term mean(∂L/∂z) is zero, since the columns of the other views sum to zero.
    """

    @staticmethod
    def forward(ctx, lambd: float, form: str, counts: list[int], wants_grad: bool, *views: Tensor):
        if form == "auto":
            form = cheaper_form(sum(counts), views[0].shape[1], len(counts), len(views))
        compute = _gram if form == "gram" else _cross
        on_diag, off_diag, grads = compute([z.detach() for z in views], counts, lambd, wants_grad)
        if wants_grad:
            ctx.save_for_backward(*grads)
            ctx.dtype = views[0].dtype
        ctx.mark_non_differentiable(on_diag, off_diag)
        return on_diag + lambd * off_diag, on_diag, off_diag

    @staticmethod
    def backward(ctx, grad: Tensor, *_):
        refuse_second_derivative()
        # `grad` contains the factor of a float16 scaler: multiply in float32, then round.
        return None, None, None, None, *((own * grad).to(ctx.dtype) for own in ctx.saved_tensors)


def _gram(
    views: Sequence[Tensor], counts: list[int], lambd: float, wants_grad: bool
) -> tuple[Tensor, Tensor, list[Tensor] | None]:
    """(on_diagonal, off_diagonal, gradients of this rank's rows or None).

    Between ranks: one all-gather of all views, then an all-reduce of V·D + 1 numbers.
    """
    total, pairs = sum(counts), list(combinations(range(len(views)), 2))
    first = sum(counts[: rank()])
    together, scale = _standardise(at_least_float32(gather_rows(torch.cat(views, dim=1), counts)))  # (N, V·D)
    z, scale = together.chunk(len(views), dim=1), scale.chunk(len(views))
    mine = [x[first : first + len(views[0])] for x in z]
    c = torch.stack([(z[i] * z[j]).mean(0) for i, j in pairs])

    squares, grads = _gram_products(mine, z, wants_grad)
    sums = [squares[None], *((grad * x).sum(0) for grad, x in zip(grads, mine))]
    sums = sum_over_ranks(torch.cat(sums)) / total**2  # in float64: for small D, off_diag is a small difference
    on_diag = (c - 1).square().sum() / len(pairs)
    off_diag = (sums[0] - c.double().square().sum()).clamp_min(0).to(c.dtype) / len(pairs)
    if not wants_grad:
        return on_diag, off_diag, None
    # The gradient of view i is a factor * its product + factors * the other views - a factor * view i, with factors for
    # each dimension.
    share = total * len(pairs)
    d = 2 * (c - 1) - 2 * lambd * c
    means = list((2 * lambd * sums[1:].to(c.dtype)).chunk(len(views)))
    for grad, factor in zip(grads, scale):
        grad.mul_(2 * lambd / (total * share) * factor)
    for (i, j), pull, mean in zip(pairs, d, d * c):
        grads[i].addcmul_(mine[j], pull * scale[i] / share)
        grads[j].addcmul_(mine[i], pull * scale[j] / share)
        means[i], means[j] = means[i] + mean, means[j] + mean
    for grad, x, mean, factor in zip(grads, mine, means, scale):
        grad.addcmul_(x, mean * factor / share, value=-1)
    return on_diag, off_diag, grads


def _gram_products(mine: list[Tensor], z: Sequence[Tensor], wants_grad: bool) -> tuple[Tensor, list[Tensor]]:
    """Σ_{i<j} Σ Aᵢ ∘ Aⱼ in float64 and, if wanted, (Σ_{j≠i} Aⱼ) zᵢ of each view, of the rows `mine` (n, D) of z (N, D).

    Σ_{j≠i} is a sum over the views before i and one over those after: subtracting Aᵢ from a sum over all would lose
    digits. Rows are taken in blocks, so that these sums hold no more than three (n, N) matrices, or 256 rows of each.
    """
    squares = z[0].new_zeros((), dtype=torch.float64)
    grads = [x.new_empty(x.shape) for x in mine] if wants_grad else []
    n = len(mine[0])
    block = max(256, -(-n // (len(z) - 1)))
    for start in range(0, n, block):
        rows = slice(start, start + block)
        grams = [x[rows] @ everyone.T for x, everyone in zip(mine, z)]  # (block, N): rows of each A
        after = list(accumulate(grams[:0:-1]))[::-1]
        for gram, rest in zip(grams, after):
            squares += torch.einsum("nm,nm->n", gram, rest).double().sum()
        if wants_grad:
            before = list(accumulate(grams[:-1]))
            others = chain(after[:1], map(torch.add, before, after[1:]), before[-1:])
            for other, everyone, grad in zip(others, z, grads):
                torch.mm(other, everyone, out=grad[rows])
    return squares, grads


def _cross(
    views: Sequence[Tensor], counts: list[int], lambd: float, wants_grad: bool
) -> tuple[Tensor, Tensor, list[Tensor] | None]:
    """As `_gram`. Between ranks: an all-reduce of C (D, D) for each pair; the gradient of own rows needs no more."""
    total, pairs = sum(counts), list(combinations(range(len(views)), 2))
    if world_size() == 1:
        z, scale = zip(*(_standardise(at_least_float32(x)) for x in views))
    else:
        together = at_least_float32(torch.cat(views, dim=1))  # a new tensor, changed in place
        together -= sum_over_ranks(together.sum(0)) / total
        factors = (sum_over_ranks(together.square().sum(0)) / total + EPS).rsqrt()
        together *= factors
        z, scale = together.chunk(len(views), dim=1), factors.chunk(len(views))
    on_diag, off_diag = 0, 0
    grads, means = [None] * len(z), [0] * len(z)
    for i, j in pairs:
        corr = sum_over_ranks(z[i].T @ z[j]).div_(total)
        c = corr.diagonal().clone()
        corr.diagonal().zero_()
        row_squares, column_squares = (torch.linalg.vector_norm(corr, dim=axis).square() for axis in (1, 0))
        on_diag = on_diag + (c - 1).square().sum()
        off_diag = off_diag + row_squares.sum()
        if not wants_grad:
            continue
        d = 2 * (c - 1)
        weights = corr.mul_(2 * lambd)
        weights.diagonal().copy_(d)  # ∂L/∂C
        for view, other, to_view, squares in ((i, j, weights.T, row_squares), (j, i, weights, column_squares)):
            pull = z[other] @ to_view
            grads[view] = pull if grads[view] is None else grads[view].add_(pull)
            means[view] = means[view] + (2 * lambd * squares + d * c)
    on_diag, off_diag = on_diag / len(pairs), off_diag / len(pairs)
    if not wants_grad:
        return on_diag, off_diag, None
    share = total * len(pairs)
    for grad, x, mean, factor in zip(grads, z, means, scale):
        grad.mul_(factor / share).addcmul_(x, mean.div_(share) * factor, value=-1)
    return on_diag, off_diag, grads


def _standardise(z: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of z (N, D) with mean 0 and population variance 1, and the factors (D,) by which they were multiplied.

    They are centred first: the fused kernel alone leaves a rest of a large mean, and the gradient assumes a mean of 0.
    """
    out, _, scale = torch.native_batch_norm(z - z.mean(0), None, None, None, None, True, 0.0, EPS)
    return out, scale
