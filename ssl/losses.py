"""Losses over the global batch, exact on any number of processes.

The rule: value and gradient on W processes equal those of one process that
holds the whole batch, for any split, uneven too. Each rank gets the true
gradient of its own rows. (DDP then *averages* parameter gradients over ranks,
so a training loop multiplies such a loss by the world size; see train.py.)

Shapes: n rows on this rank, N over all ranks, D dimensions.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ssl.distributed import gather_rows, rank, world_size
from ssl.loss_inputs import agree, raise_problem


def _once() -> None:
    """These backward passes have no graph of their own: refuse to be differentiated again, rather than be wrong."""
    if torch.is_grad_enabled():
        raise RuntimeError("this loss can be differentiated once: create_graph=True has no second derivative here")


def _wide(z: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return z.detach() if z.dtype == torch.float64 else z.detach().float()


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
    def forward(ctx, z1: Tensor, z2: Tensor, lambd: float, form: str, counts: list[int], wants_grad: bool):
        if form == "auto":
            form = cheaper_form(sum(counts), z1.shape[1], len(counts))
        compute = _barlow_gram if form == "gram" else _barlow_cross
        on_diag, off_diag, grads = compute(z1.detach(), z2.detach(), counts, lambd, wants_grad)
        if wants_grad:
            ctx.save_for_backward(*grads)
            ctx.dtype = z1.dtype
        ctx.mark_non_differentiable(on_diag, off_diag)
        return on_diag + lambd * off_diag, on_diag, off_diag

    @staticmethod
    def backward(ctx, grad: Tensor, *_):
        _once()
        g1, g2 = ctx.saved_tensors
        # A scaler's factor comes in with grad: multiply in float32, or half precision has lost what it saves.
        return (g1 * grad).to(ctx.dtype), (g2 * grad).to(ctx.dtype), None, None, None, None


def cheaper_form(total: int, dim: int, processes: int = 1) -> str:
    """'gram' or 'cross', by multiplications: 4 N²D against 3 ND², forward and backward.

    Between processes 'gram' for all N < D: a D×D matrix would travel otherwise.
    """
    return "gram" if 4 * total < 3 * dim or (processes > 1 and total < dim) else "cross"


EPS = 1e-5


def _barlow_gram(z1: Tensor, z2: Tensor, counts: list[int], lambd: float, wants_grad: bool):
    """One all-gather of both views; after it only 2D + 1 numbers travel."""
    total, dim = sum(counts), z1.shape[1]
    first = sum(counts[: rank()])
    mine = slice(first, first + z1.shape[0])
    both, scale = _standardise(_wide(gather_rows(torch.cat([z1, z2], dim=1), counts)))  # (N, 2D)
    a, b = both[:, :dim], both[:, dim:]
    c = (a * b).mean(0)

    rows_a = a[mine] @ a.T  # (n, N)
    rows_b = b[mine] @ b.T
    sums = [torch.einsum("nm,nm->n", rows_a, rows_b).double().sum()[None]]
    if wants_grad:
        g1, g2 = rows_b @ a, rows_a @ b
        sums += [(g1 * a[mine]).sum(0), (g2 * b[mine]).sum(0)]
    sums = _sum_over_ranks(torch.cat(sums)) / total**2  # in float64: for small D, off_diag is a small difference
    on_diag = (c - 1).square().sum()
    off_diag = (sums[0] - c.double().square().sum()).clamp_min(0).to(c.dtype)
    if not wants_grad:
        return on_diag, off_diag, None
    # What multiplies a row's product, the other view's row and its own; both views side by side.
    d = 2 * (c - 1) - 2 * lambd * c
    product, other = 2 * lambd / total**2 * scale, d.repeat(2) * scale / total
    own = (2 * lambd * sums[1:].to(c.dtype) + (d * c).repeat(2)) * scale / total
    g1.mul_(product[:dim]).addcmul_(b[mine], other[:dim]).addcmul_(a[mine], own[:dim], value=-1)
    g2.mul_(product[dim:]).addcmul_(a[mine], other[dim:]).addcmul_(b[mine], own[dim:], value=-1)
    return on_diag, off_diag, (g1, g2)


def _barlow_cross(z1: Tensor, z2: Tensor, counts: list[int], lambd: float, wants_grad: bool):
    """One all-reduce of C (D, D); the gradient of this rank's rows is then local."""
    total = sum(counts)
    if world_size() == 1:
        (a, scale_a), (b, scale_b) = _standardise(_wide(z1)), _standardise(_wide(z2))
    else:
        both = _wide(torch.cat([z1, z2], dim=1))  # ours to change
        both -= _sum_over_ranks(both.sum(0)) / total
        scale = (_sum_over_ranks(both.square().sum(0)) / total + EPS).rsqrt()
        both *= scale
        (a, b), (scale_a, scale_b) = both.chunk(2, dim=1), scale.chunk(2)
    corr = _sum_over_ranks(a.T @ b).div_(total)
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
    """Columns of z (N, D) with mean 0 and population variance 1, and what they were multiplied by.

    Centred first: the fused kernel alone leaves a rest of a large mean, which the gradient takes to be none.
    """
    out, _, scale = torch.native_batch_norm(z - z.mean(0), None, None, None, None, True, 0.0, EPS)
    return out, scale


def barlow_twins(
    z1: Tensor, z2: Tensor, lambd: float = 5e-3, form: str = "auto", check: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Barlow Twins loss (Zbontar et al. 2021, eq. 1) of the global batch, in float32 or wider.

    z1, z2: (n, D), this rank's rows of the two views; each column is normalised over
    the global batch with population variance and eps 1e-5. `form` is 'auto' (by cost),
    'gram' or 'cross'; both give the same numbers.

    Returns (loss, on_diagonal, off_diagonal), scalars: loss = on + lambd * off; the last
    two carry no gradient. Raises ValueError, on all ranks, for shapes that differ, integers,
    D = 0, a global batch of 1, NaN or Inf. `check=False` trusts every rank to hold equally
    many rows and does not look at values: nothing waits for the device.
    """
    _check_form(form)
    counts = agree(z1, z2, None, check, form=FORMS.index(form))
    wants_grad = torch.is_grad_enabled() and (z1.requires_grad or z2.requires_grad)
    dtype = torch.promote_types(z1.dtype, torch.float32)
    if sum(counts) < 8:  # so few leave a gradient of nearly nothing but eps, and float32 no digits of it
        z1, z2 = z1.double(), z2.double()
    with torch.autocast(z1.device.type, enabled=False):
        parts = _BarlowTwins.apply(z1, z2, lambd, form, counts, wants_grad)
    return tuple(part.to(dtype) for part in parts)


FORMS = ("auto", "gram", "cross")


def _check_form(form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"form must be 'auto', 'gram' or 'cross', got {form!r}")


class BarlowTwinsLoss(nn.Module):
    """`barlow_twins` times `loss_scale`. After a call, `parts` holds what the log wants.

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


# InfoNCE and SupCon -------------------------------------------------------------


class _Contrastive(torch.autograd.Function):
    """Softmax over all other views, in blocks of anchor rows: no (2N, 2N) matrix is ever held.

    Rows of `z` (2N, D) are ordered rank by rank, and within a rank view 1 then view 2.
    Anchor i has the positives P(i), m_i of them; s_ij is its similarity to j over T:

        L = Σᵢ (lseᵢ - Σ_{p ∈ P(i)} s_ip / mᵢ) / 2N,   lseᵢ = log Σ_{j ≠ i} exp(s_ij)

    Positives are mutual, so with p_ij = exp(s_ij - lse_i) row i of the gradient is

        ∂L/∂zᵢ = Σⱼ (p_ij + p_ji - [j ∈ P(i)] (1/mᵢ + 1/mⱼ)) zⱼ / (2N · T)

    and after the gather a rank needs from the others only lse and m. Where a positive wins, lse
    is barely above it and p barely below 1: to keep the digits of the difference, lse is carried
    as the log-sum-exp of the positives, `pos`, plus the `excess` that the negatives add, and
    p - 1 is expm1. `kinds` (2N,) numbers what belongs together; without it only the other view
    does, m = 1, and pos is s itself.
    """

    @staticmethod
    def forward(ctx, z: Tensor, kinds: Tensor | None, temperature: float, block: int, counts: list[int]):
        everyone = gather_rows(z, counts)  # (2N, D)
        all_kinds = None if kinds is None else gather_rows(kinds, counts)
        first, n = sum(counts[: rank()]), z.shape[0]
        pos, excess, losses, better = (z.new_empty(n) for _ in range(4))  # better: negatives no worse than a positive
        share = z.new_ones(n)  # 1 / m
        for mine, rows in _blocks(n, block, z.device):
            scores = _scores(z.detach()[mine], everyone, first + rows, temperature)
            if kinds is None:
                partner = (first + _partner(rows, n))[:, None]
                pos[mine] = best = scores.gather(1, partner)[:, 0]
                spread = 0.0  # of the positives: how far their log-sum-exp is above their mean
                negatives = scores.scatter_(1, partner, float("-inf"))
            else:
                positives = _positives(kinds[mine], all_kinds, first + rows)
                share[mine] = positives.sum(1).to(z.dtype).reciprocal()  # 1 / an integer is of the default type
                only = scores.masked_fill(~positives, float("-inf"))
                pos[mine], best = only.logsumexp(1), only.amax(1)
                spread = pos[mine] - scores.masked_fill(~positives, 0).sum(1) * share[mine]
                negatives = scores.masked_fill_(positives, float("-inf"))
            excess[mine] = F.softplus(negatives.logsumexp(1) - pos[mine])
            losses[mine] = spread + excess[mine]
            better[mine] = (negatives >= best[:, None]).sum(1).to(z.dtype)
        sums = torch.stack([losses.sum(), (better < 1).sum(), (better < 5).sum()])
        loss, acc1, acc5 = _sum_over_ranks(sums) / sum(counts)
        if ctx.needs_input_grad[0]:
            vectors = gather_rows(torch.stack([pos, excess, share], 1), counts)
            ctx.save_for_backward(z.detach(), everyone, kinds, all_kinds, vectors)
            ctx.first, ctx.temperature, ctx.block = first, temperature, block
        ctx.mark_non_differentiable(acc1, acc5)
        return loss, acc1, acc5

    @staticmethod
    def backward(ctx, grad: Tensor, *_):
        _once()
        z, everyone, kinds, all_kinds, vectors = ctx.saved_tensors
        pos, excess, share = vectors.unbind(1)
        lse = pos + excess
        out = torch.empty_like(z)
        for mine, rows in _blocks(len(z), ctx.block, z.device):
            own = ctx.first + rows
            scores = _scores(z[mine], everyone, own, ctx.temperature)
            weights = (scores - lse[own, None]).exp_()
            weights += (scores - lse).exp_()
            if kinds is None:
                partner = ctx.first + _partner(rows, len(z))
                pull = torch.expm1(-excess[own]) + torch.expm1(-excess[partner])
                weights.scatter_(1, partner[:, None], pull[:, None])
            else:
                pull = (scores - pos[own, None] - excess[own, None]).expm1_().add_(1 - share[own, None])
                pull += (scores - pos - excess).expm1_().add_(1 - share)
                weights = torch.where(_positives(kinds[mine], all_kinds, own), pull, weights)
            torch.mm(weights, everyone, out=out[mine])
        return out * (grad / (everyone.shape[0] * ctx.temperature)), None, None, None, None


def _blocks(n: int, block: int, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """0..n-1 in runs of `block`, as slices and as numbers."""
    for start in range(0, n, block):
        stop = min(start + block, n)
        yield slice(start, stop), torch.arange(start, stop, device=device)


def _partner(rows: Tensor, n: int) -> Tensor:
    """Where, among a rank's n rows (view 1 then view 2), the other view of each row is."""
    return (rows + n // 2) % n


def _scores(z: Tensor, everyone: Tensor, own: Tensor, temperature: float) -> Tensor:
    """Similarity / temperature of rows z (n, D), numbered `own`, to everyone (2N, D): -inf to themselves."""
    return (z @ everyone.T).div_(temperature).scatter_(1, own[:, None], float("-inf"))


def _positives(kinds: Tensor, all_kinds: Tensor, own: Tensor) -> Tensor:
    """(n, 2N) bool: which others are of the kind of rows `own`."""
    return (kinds[:, None] == all_kinds).scatter_(1, own[:, None], False)


def _temperature_problem(temperature: float, base_temperature: float | None = None) -> str | None:
    for name, value in (("temperature", temperature), ("base_temperature", base_temperature)):
        if value is not None and not value > 0:
            return f"{name} must be positive, got {value}"
    return None


def _contrast(z1, z2, labels, temperature, base_temperature, block: int | None, check: bool, problem=None):
    problem = problem or _temperature_problem(temperature, base_temperature)
    if block is not None and block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    counts = agree(z1, z2, labels, check, problem)
    if block is None:  # scores that stay near a CPU's cache (a larger block takes fresh pages each time), or fill a GPU
        block = max(1, (2**21 if z1.device.type == "cpu" else 2**25) // (2 * sum(counts)))
    kinds = None
    if labels is not None:  # an unlabelled image is a kind of its own
        labels = labels.to(z1.device).long()
        alone = -1 - sum(counts[: rank()]) - torch.arange(len(labels), device=z1.device)
        kinds = torch.where(labels < 0, alone, labels).repeat(2)
    with torch.autocast(z1.device.type, enabled=False):
        z = torch.cat([z if z.dtype == torch.float64 else z.float() for z in (z1, z2)])
        loss, *parts = _Contrastive.apply(F.normalize(z, dim=1), kinds, temperature, block, [2 * n for n in counts])
    return loss if base_temperature is None else loss * (temperature / base_temperature), *parts


def info_nce(
    z1: Tensor,
    z2: Tensor,
    temperature: float = 0.1,
    block: int | None = None,
    check: bool = True,
    base_temperature: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """InfoNCE in the form of NT-Xent (Chen et al. 2020, eq. 1) of the global batch, in float32 or wider.

    z1, z2: (n, D), this rank's rows of the two views; rows are L2-normalised here. Every
    one of the 2N views is an anchor, its other view the positive, all 2N - 2 others negatives.
    `block` anchor rows are compared at a time, so memory grows with block × N; unset, as many as
    suit the device. With `base_temperature` the loss is multiplied by temperature / base_temperature, as
    the code of Khosla et al. (2020) does.

    Returns (loss, acc1, acc5): the last two, in 0..1 and without gradient, say how often the
    positive is the nearest, or among the five nearest, of the 2N - 1 others; a tie counts as lost. Raises ValueError,
    on all ranks, for shapes that differ, integers, D = 0, temperature <= 0, a global batch of 1,
    NaN or Inf. `check` as in `barlow_twins`.
    """
    return _contrast(z1, z2, None, temperature, base_temperature, block, check)


def sup_con(
    z1: Tensor,
    z2: Tensor,
    labels: Tensor,
    temperature: float = 0.1,
    base_temperature: float | None = None,
    block: int | None = None,
    check: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2, L_out) of the global batch, in float32 or wider.

    As `info_nce`, but the positives of an anchor are all other views whose image has its label.
    labels: (n,) integers; below 0 an image is unlabelled, and its only positive is its other view:
    with nothing labelled this is `info_nce`. `base_temperature` as there.

    Returns (loss, acc1, acc5): how often a positive is the nearest, or among the five nearest.
    Raises as `info_nce`, and for labels of the wrong length.
    """
    missing = "labels must be integers, one a row of z1, got None; -1 says unlabelled" if labels is None else None
    return _contrast(z1, z2, labels, temperature, base_temperature, block, check, missing)


class InfoNCELoss(nn.Module):
    """`info_nce` as a module. After a call, `parts` holds the contrastive accuracies."""

    def __init__(self, temperature: float = 0.1, base_temperature: float | None = None, check: bool = True):
        super().__init__()
        raise_problem(_temperature_problem(temperature, base_temperature))
        self.temperature, self.base_temperature, self.check = temperature, base_temperature, check
        self.parts: dict[str, Tensor] = {}

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        loss, acc1, acc5 = info_nce(z1, z2, self.temperature, check=self.check, base_temperature=self.base_temperature)
        self.parts = {"contrastive_acc1": acc1, "contrastive_acc5": acc5}
        return loss

    def extra_repr(self) -> str:
        base = "" if self.base_temperature is None else f", base_temperature={self.base_temperature}"
        return f"temperature={self.temperature}{base}"


class SupConLoss(nn.Module):
    """`sup_con` as a module, called with (z1, z2, labels). After a call, `parts` holds the contrastive accuracies."""

    def __init__(self, temperature: float = 0.1, base_temperature: float | None = None, check: bool = True):
        super().__init__()
        raise_problem(_temperature_problem(temperature, base_temperature))
        self.temperature, self.base_temperature, self.check = temperature, base_temperature, check
        self.parts: dict[str, Tensor] = {}

    def forward(self, z1: Tensor, z2: Tensor, labels: Tensor) -> Tensor:
        loss, acc1, acc5 = sup_con(z1, z2, labels, self.temperature, self.base_temperature, check=self.check)
        self.parts = {"contrastive_acc1": acc1, "contrastive_acc5": acc5}
        return loss

    def extra_repr(self) -> str:
        base = "" if self.base_temperature is None else f", base_temperature={self.base_temperature}"
        return f"temperature={self.temperature}{base}"
