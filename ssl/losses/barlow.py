"""Barlow Twins (Zbontar et al. 2021)."""

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

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        loss, on_diag, off_diag = barlow_twins(z1, z2, self.lambd, self.form, self.check)
        self.parts = {"on_diagonal": on_diag, "off_diagonal": off_diag}
        return loss * self.loss_scale

    def extra_repr(self) -> str:
        scale = "" if self.loss_scale == 1 else f", loss_scale={self.loss_scale}"
        return f"lambd={self.lambd}{scale}" + ("" if self.form == "auto" else f", form={self.form!r}")


def barlow_twins(
    z1: Tensor, z2: Tensor, lambd: float = 5e-3, form: str = "auto", check: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Barlow Twins loss (Zbontar et al. 2021, eq. 1) of the global batch, in float32 or float64.

    z1, z2: (n, D), this rank's rows of the two views. Each column is normalised over the global batch, with population
    variance and eps 1e-5. `form` is 'gram', 'cross' or 'auto' (the cheaper one); both give the same numbers.

    Returns (loss, on_diagonal, off_diagonal), scalars: loss = on_diagonal + lambd * off_diagonal. The last two carry no
    gradient. Raises ValueError, on all ranks, for shapes that differ, integers, D = 0, a global batch of 1, NaN or Inf.
    With `check=False` nothing waits for the device: every rank must hold equally many rows, and values are not checked.
    """
    _check_form(form)
    counts = agree(z1, z2, None, check, form=FORMS.index(form))
    wants_grad = torch.is_grad_enabled() and (z1.requires_grad or z2.requires_grad)
    dtype = torch.promote_types(z1.dtype, torch.float32)
    if sum(counts) < 8:  # the gradient is then so close to zero that float32 holds no digits of it
        z1, z2 = z1.double(), z2.double()
    with torch.autocast(z1.device.type, enabled=False):
        parts = _BarlowTwins.apply(z1, z2, lambd, form, counts, wants_grad)
    return tuple(part.to(dtype) for part in parts)


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"form must be 'auto', 'gram' or 'cross', got {form!r}")


def cheaper_form(total: int, dim: int, processes: int = 1) -> str:
    """'gram' or 'cross', whichever multiplies less, forward and backward: 4 N²D against 3 ND².

    On several processes it is 'gram' for all N < D, since 'cross' sends a D×D matrix.
    """
    return "gram" if 4 * total < 3 * dim or (processes > 1 and total < dim) else "cross"


class _BarlowTwins(torch.autograd.Function):
    """Loss and gradient are computed together, because both need the same products.

    With unit-variance views a, b (N, D), C = aᵀb / N and c = diag C:

        L     = Σ (cⱼ - 1)² + λ (‖C‖² - Σ cⱼ²)
        ∂L/∂a = (2λ b Cᵀ + b · d) / N,   dⱼ = 2 (cⱼ - 1) - 2λ cⱼ     (likewise for b)

    Neither needs C itself. 'gram' uses the N×N matrices A = aaᵀ, B = bbᵀ:
    ‖C‖² = Σ A∘B / N² and b Cᵀ = B a / N. 'cross' uses C.

    Back through the normalisation: ∂L/∂z = (∂L/∂a - a · mean(∂L/∂a ∘ a)) / s, where s is the standard deviation. The
    usual term mean(∂L/∂a) is zero, since the columns of b sum to zero.
    """

    @staticmethod
    def forward(ctx, z1: Tensor, z2: Tensor, lambd: float, form: str, counts: list[int], wants_grad: bool):
        if form == "auto":
            form = cheaper_form(sum(counts), z1.shape[1], len(counts))
        compute = _gram if form == "gram" else _cross
        on_diag, off_diag, grads = compute(z1.detach(), z2.detach(), counts, lambd, wants_grad)
        if wants_grad:
            ctx.save_for_backward(*grads)
            ctx.dtype = z1.dtype
        ctx.mark_non_differentiable(on_diag, off_diag)
        return on_diag + lambd * off_diag, on_diag, off_diag

    @staticmethod
    def backward(ctx, grad: Tensor, *_):
        refuse_second_derivative()
        g1, g2 = ctx.saved_tensors
        # `grad` contains the factor of a float16 scaler: multiply in float32, then round.
        return (g1 * grad).to(ctx.dtype), (g2 * grad).to(ctx.dtype), None, None, None, None


def _gram(
    z1: Tensor, z2: Tensor, counts: list[int], lambd: float, wants_grad: bool
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """(on_diagonal, off_diagonal, gradients of this rank's rows or None).

    Between ranks: one all-gather of both views, then an all-reduce of 2D + 1 numbers.
    """
    total, dim = sum(counts), z1.shape[1]
    first = sum(counts[: rank()])
    mine = slice(first, first + z1.shape[0])
    both, scale = _standardise(at_least_float32(gather_rows(torch.cat([z1, z2], dim=1), counts)))  # (N, 2D)
    a, b = both[:, :dim], both[:, dim:]
    c = (a * b).mean(0)

    rows_a = a[mine] @ a.T  # (n, N): this rank's rows of A
    rows_b = b[mine] @ b.T
    sums = [torch.einsum("nm,nm->n", rows_a, rows_b).double().sum()[None]]
    if wants_grad:
        g1, g2 = rows_b @ a, rows_a @ b
        sums += [(g1 * a[mine]).sum(0), (g2 * b[mine]).sum(0)]
    sums = sum_over_ranks(torch.cat(sums)) / total**2  # in float64: for small D, off_diag is a small difference
    on_diag = (c - 1).square().sum()
    off_diag = (sums[0] - c.double().square().sum()).clamp_min(0).to(c.dtype)
    if not wants_grad:
        return on_diag, off_diag, None
    # The gradient of view 1 is product * (B a) + other * b - own * a, with one factor for each dimension; that of
    # view 2 the same with a and b exchanged. The factors of both views are side by side.
    d = 2 * (c - 1) - 2 * lambd * c
    product, other = 2 * lambd / total**2 * scale, d.repeat(2) * scale / total
    own = (2 * lambd * sums[1:].to(c.dtype) + (d * c).repeat(2)) * scale / total
    g1.mul_(product[:dim]).addcmul_(b[mine], other[:dim]).addcmul_(a[mine], own[:dim], value=-1)
    g2.mul_(product[dim:]).addcmul_(a[mine], other[dim:]).addcmul_(b[mine], own[dim:], value=-1)
    return on_diag, off_diag, (g1, g2)


def _cross(
    z1: Tensor, z2: Tensor, counts: list[int], lambd: float, wants_grad: bool
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
    """As `_gram`. Between ranks: an all-reduce of C (D, D); the gradient of this rank's rows needs no more."""
    total = sum(counts)
    if world_size() == 1:
        (a, scale_a), (b, scale_b) = _standardise(at_least_float32(z1)), _standardise(at_least_float32(z2))
    else:
        both = at_least_float32(torch.cat([z1, z2], dim=1))  # a new tensor, changed in place
        both -= sum_over_ranks(both.sum(0)) / total
        scale = (sum_over_ranks(both.square().sum(0)) / total + EPS).rsqrt()
        both *= scale
        (a, b), (scale_a, scale_b) = both.chunk(2, dim=1), scale.chunk(2)
    corr = sum_over_ranks(a.T @ b).div_(total)
    c = corr.diagonal().clone()
    corr.diagonal().zero_()
    row_squares, column_squares = (torch.linalg.vector_norm(corr, dim=axis).square() for axis in (1, 0))
    on_diag = (c - 1).square().sum()
    off_diag = row_squares.sum()
    if not wants_grad:
        return on_diag, off_diag, None
    d = 2 * (c - 1)
    m1, m2 = ((2 * lambd * squares + d * c).div_(total) for squares in (row_squares, column_squares))
    weights = corr.mul_(2 * lambd)
    weights.diagonal().copy_(d)  # ∂L/∂C
    g1 = (b @ weights.T).mul_(scale_a / total).addcmul_(a, m1 * scale_a, value=-1)
    g2 = (a @ weights).mul_(scale_b / total).addcmul_(b, m2 * scale_b, value=-1)
    return on_diag, off_diag, (g1, g2)


def _standardise(z: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of z (N, D) with mean 0 and population variance 1, and the factors (D,) by which they were multiplied.

    They are centred first: the fused kernel alone leaves a rest of a large mean, and the gradient assumes a mean of 0.
    """
    out, _, scale = torch.native_batch_norm(z - z.mean(0), None, None, None, None, True, 0.0, EPS)
    return out, scale
