"""InfoNCE, the loss of SimCLR (Chen et al. 2020), and SupCon, its supervised form (Khosla et al. 2020)."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl.distributed import gather_rows, rank, sum_over_ranks
from ssl.losses.inputs import agree, at_least_float32, raise_problem, refuse_second_derivative


class _ContrastiveLoss(nn.Module):
    def __init__(self, temperature: float = 0.1, base_temperature: float | None = None, check: bool = True):
        super().__init__()
        raise_problem(_temperature_problem(temperature, base_temperature))
        self.temperature, self.base_temperature, self.check = temperature, base_temperature, check
        self.parts: dict[str, Tensor] = {}

    def extra_repr(self) -> str:
        base = "" if self.base_temperature is None else f", base_temperature={self.base_temperature}"
        return f"temperature={self.temperature}{base}"


class InfoNCELoss(_ContrastiveLoss):
    """`info_nce` as a module. After a call, `parts` holds the accuracies "contrastive_acc1", "contrastive_acc5".

    >>> criterion = InfoNCELoss(temperature=0.1)
    >>> criterion(z1, z2).backward()
    """

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        loss, acc1, acc5 = info_nce(z1, z2, self.temperature, check=self.check, base_temperature=self.base_temperature)
        self.parts = {"contrastive_acc1": acc1, "contrastive_acc5": acc5}
        return loss


class SupConLoss(_ContrastiveLoss):
    """`sup_con` as a module, called with (z1, z2, labels). `parts` as in `InfoNCELoss`."""

    def forward(self, z1: Tensor, z2: Tensor, labels: Tensor) -> Tensor:
        loss, acc1, acc5 = sup_con(z1, z2, labels, self.temperature, self.base_temperature, check=self.check)
        self.parts = {"contrastive_acc1": acc1, "contrastive_acc5": acc5}
        return loss


def info_nce(
    z1: Tensor,
    z2: Tensor,
    temperature: float = 0.1,
    block: int | None = None,
    check: bool = True,
    base_temperature: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """InfoNCE in the form of NT-Xent (Chen et al. 2020, eq. 1) of the global batch, in float32 or float64.

    z1, z2: (n, D), this rank's rows of the two views. Rows are L2-normalised here. Each of the 2N views is an anchor;
    its other view is the positive, all 2N - 2 others are negatives. `block` anchors are compared at a time, so memory
    grows with block × N; None: as many as suit the device. With `base_temperature` the loss is multiplied by
    temperature / base_temperature, as in the code of Khosla et al. (2020).

    Returns (loss, acc1, acc5), scalars. acc1 and acc5, in 0..1 and without gradient, say how often the positive is the
    nearest, or among the five nearest, of the 2N - 1 others; a tie counts as lost. Raises ValueError, on all ranks, for
    shapes that differ, integers, D = 0, temperature <= 0, a global batch of 1, NaN or Inf. `check` as in
    `barlow_twins`.
    """
    return _contrast(z1, z2, None, temperature, base_temperature, block=block, check=check)


def sup_con(
    z1: Tensor,
    z2: Tensor,
    labels: Tensor,
    temperature: float = 0.1,
    base_temperature: float | None = None,
    block: int | None = None,
    check: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2, L_out) of the global batch, in float32 or float64.

    As `info_nce`, but the positives of an anchor are all other views with its label. labels: (n,) integers; a label
    below 0 means unlabelled: the only positive is then the other view. Without any label this is `info_nce`.

    Returns (loss, acc1, acc5): how often a positive is the nearest, or among the five nearest. Raises as `info_nce`,
    and for labels of another length.
    """
    missing = "labels must be integers, one a row of z1, got None; -1 says unlabelled" if labels is None else None
    return _contrast(z1, z2, labels, temperature, base_temperature, block=block, check=check, problem=missing)


def _contrast(
    z1: Tensor,
    z2: Tensor,
    labels: Tensor | None,
    temperature: float,
    base_temperature: float | None,
    *,
    block: int | None,
    check: bool,
    problem: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    problem = problem or _temperature_problem(temperature, base_temperature)
    if block is not None and block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    counts = agree(z1, z2, labels, check, problem)
    if block is None:  # scores of a block: they fit in a CPU's cache, or are enough work for a GPU
        block = max(1, (2**21 if z1.device.type == "cpu" else 2**25) // (2 * sum(counts)))
    kinds = None if labels is None else _kinds(labels.to(z1.device).long(), first=sum(counts[: rank()]))
    with torch.autocast(z1.device.type, enabled=False):
        z = torch.cat([at_least_float32(z) for z in (z1, z2)])
        loss, *parts = _Contrastive.apply(F.normalize(z, dim=1), kinds, temperature, block, [2 * n for n in counts])
    return loss if base_temperature is None else loss * (temperature / base_temperature), *parts


def _temperature_problem(temperature: float, base_temperature: float | None = None) -> str | None:
    for name, value in (("temperature", temperature), ("base_temperature", base_temperature)):
        if value is not None and not value > 0:
            return f"{name} must be positive, got {value}"
    return None


def _kinds(labels: Tensor, first: int) -> Tensor:
    """The labels (n,) of both views, (2n,). An unlabelled image, number `first` + i of all, gets a label of its own."""
    own = -1 - first - torch.arange(len(labels), device=labels.device)
    return torch.where(labels < 0, own, labels).repeat(2)


class _Contrastive(torch.autograd.Function):
    """Softmax over all other views, in blocks of anchors: the (2N, 2N) matrix of scores is never held.

    Rows of `z` (2N, D) are ordered rank by rank, and within a rank view 1 then view 2.
    Anchor i has the positives P(i), m_i of them; s_ij is its similarity to j over T:

        L = Σᵢ (lseᵢ - Σ_{p ∈ P(i)} s_ip / mᵢ) / 2N,   lseᵢ = log Σ_{j ≠ i} exp(s_ij)

    Positives are mutual, so with p_ij = exp(s_ij - lse_i) row i of the gradient is

        ∂L/∂zᵢ = Σⱼ (p_ij + p_ji - [j ∈ P(i)] (1/mᵢ + 1/mⱼ)) zⱼ / (2N · T)

    For the forward pass a rank gathers z of all ranks; for the backward pass also their lse and m, and nothing else.

    If a positive is by far the nearest, lse is nearly its score and p nearly 1, and their differences would lose their
    digits. So lse is kept as two numbers: `pos`, the log-sum-exp of the positives, and `excess`, what the negatives
    add. p - 1 is computed by expm1.

    `kinds` (2n,): rows of one kind are positives of each other. None: only the two views of an image are; then m = 1
    and `pos` is the score itself.
    """

    @staticmethod
    def forward(ctx, z: Tensor, kinds: Tensor | None, temperature: float, block: int, counts: list[int]):
        everyone = gather_rows(z, counts)  # (2N, D)
        all_kinds = None if kinds is None else gather_rows(kinds, counts)
        first, n = sum(counts[: rank()]), z.shape[0]
        pos, excess, losses, nearer = (z.new_empty(n) for _ in range(4))
        share = z.new_ones(n)  # 1 / m
        for mine, rows in _blocks(n, block, z.device):
            scores = _scores(z.detach()[mine], everyone, first + rows, temperature)
            if kinds is None:
                partner = (first + _partner(rows, n))[:, None]
                pos[mine] = best = scores.gather(1, partner)[:, 0]
                spread = 0.0  # how far the log-sum-exp of the positives is above their mean
                negatives = scores.scatter_(1, partner, float("-inf"))
            else:
                positives = _positives(kinds[mine], all_kinds, first + rows)
                share[mine] = positives.sum(1).to(z.dtype).reciprocal()
                only = scores.masked_fill(~positives, float("-inf"))
                pos[mine], best = only.logsumexp(1), only.amax(1)
                spread = pos[mine] - scores.masked_fill(~positives, 0).sum(1) * share[mine]
                negatives = scores.masked_fill_(positives, float("-inf"))
            excess[mine] = F.softplus(negatives.logsumexp(1) - pos[mine])
            losses[mine] = spread + excess[mine]
            nearer[mine] = (negatives >= best[:, None]).sum(1).to(z.dtype)  # negatives as near as the best positive
        sums = torch.stack([losses.sum(), (nearer < 1).sum(), (nearer < 5).sum()])
        loss, acc1, acc5 = sum_over_ranks(sums) / sum(counts)
        if ctx.needs_input_grad[0]:
            vectors = gather_rows(torch.stack([pos, excess, share], 1), counts)
            ctx.save_for_backward(z.detach(), everyone, kinds, all_kinds, vectors)
            ctx.first, ctx.temperature, ctx.block = first, temperature, block
        ctx.mark_non_differentiable(acc1, acc5)
        return loss, acc1, acc5

    @staticmethod
    def backward(ctx, grad: Tensor, *_):
        refuse_second_derivative()
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
    """The row of the other view, for each of `rows`, among a rank's n rows (view 1 then view 2)."""
    return (rows + n // 2) % n


def _scores(z: Tensor, everyone: Tensor, own: Tensor, temperature: float) -> Tensor:
    """(n, 2N): similarity / temperature of rows z (n, D) to everyone (2N, D); -inf to themselves, numbers `own`."""
    return (z @ everyone.T).div_(temperature).scatter_(1, own[:, None], float("-inf"))


def _positives(kinds: Tensor, all_kinds: Tensor, own: Tensor) -> Tensor:
    """(n, 2N) bool: which others are of the kind of rows `own`."""
    return (kinds[:, None] == all_kinds).scatter_(1, own[:, None], False)
