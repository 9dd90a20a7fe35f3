"""InfoNCE, the loss of SimCLR (Chen et al. 2020), and SupCon, its supervised form (Khosla et al. 2020)."""

import math
from collections.abc import Callable, Iterator, Sequence

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

    def _call(self, function: Callable, *views: Tensor, **labels: Tensor) -> Tensor:
        settings = dict(temperature=self.temperature, base_temperature=self.base_temperature, check=self.check)
        loss, acc1, acc5 = function(*views, **labels, **settings)
        self.parts = {"contrastive_acc1": acc1, "contrastive_acc5": acc5}
        return loss

    def extra_repr(self) -> str:
        base = "" if self.base_temperature is None else f", base_temperature={self.base_temperature}"
        return f"temperature={self.temperature}{base}"


class InfoNCELoss(_ContrastiveLoss):
    """`info_nce` as a module. After a call, `parts` holds the accuracies "contrastive_acc1", "contrastive_acc5".

    >>> criterion = InfoNCELoss(temperature=0.1)
    >>> criterion(z1, z2).backward()
    """

    def forward(self, *views: Tensor) -> Tensor:
        return self._call(info_nce, *views)


class SupConLoss(_ContrastiveLoss):
    """`sup_con` as a module, called with (z1, …, zV, labels). `parts` as in `InfoNCELoss`."""

    def forward(self, *views_and_labels: Tensor) -> Tensor:
        *views, labels = views_and_labels
        return self._call(sup_con, *views, labels=labels)


def info_nce(
    *views: Tensor,
    temperature: float = 0.1,
    block: int | None = None,
    check: bool = True,
    base_temperature: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """InfoNCE in the form of NT-Xent (Chen et al. 2020, eq. 1) of the global batch, in float32 or float64.

    views: z1, …, zV, 2 to 16, each (n, D): this rank's rows. Rows are L2-normalised here. Each of the V·N rows is an
    anchor. The V - 1 other views of its image are its positives, all rows of other images its negatives:

        L = mean over anchors i of  log Σ_{j ≠ i} exp(s_ij) - mean over positives p of s_ip,   s = similarity / T

    For V = 2 that is NT-Xent; for more it is eq. 2 of Khosla et al. (2020) with every image a class of its own.
    `block` anchors are compared at a time, so memory grows with block × V·N; None: as many as suit the device. With
    `base_temperature` the loss is multiplied by temperature / base_temperature, as in the code of Khosla et al.

    Returns (loss, acc1, acc5), scalars. acc1 and acc5, in 0..1 and without gradient, say how often a positive is the
    nearest, or among the five nearest, of the V·N - 1 others; a tie counts as lost. Raises ValueError, on all ranks,
    for another number of views, shapes that differ, integers, D = 0, temperature <= 0, a global batch of 1, NaN or
    Inf. `check` as in `barlow_twins`.
    """
    return _contrast(views, None, temperature, base_temperature, block=block, check=check)


def sup_con(
    *views: Tensor,
    labels: Tensor,
    temperature: float = 0.1,
    base_temperature: float | None = None,
    block: int | None = None,
    check: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Supervised contrastive loss (Khosla et al. 2020, eq. 2, L_out) of the global batch, in float32 or float64.

    As `info_nce`, but the positives of an anchor are all other views with its label. labels: (n,) integers; a label
    below 0 means unlabelled: the only positives are then the image's other views. Without any label this is `info_nce`.

    Returns (loss, acc1, acc5): how often a positive is the nearest, or among the five nearest. Raises as `info_nce`,
    and for labels of another length.
    """
    missing = "labels must be integers, one a row of z1, got None; -1 says unlabelled" if labels is None else None
    return _contrast(views, labels, temperature, base_temperature, block=block, check=check, problem=missing)


def _contrast(
    views: Sequence[Tensor],
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
    counts = agree(views, labels, check, problem)
    device, rows = views[0].device, [len(views) * n for n in counts]
    if block is None:  # scores of a block: they fit in a CPU's cache, or are enough work for a GPU
        block = max(1, (2**21 if device.type == "cpu" else 2**25) // sum(rows))
    kinds = None if labels is None else _kinds(labels.to(device).long(), sum(counts[: rank()]), len(views))
    with torch.autocast(device.type, enabled=False):
        z = torch.cat([at_least_float32(z) for z in views])
        loss, *parts = _Contrastive.apply(F.normalize(z, dim=1), kinds, temperature, block, rows, len(views))
    return loss if base_temperature is None else loss * (temperature / base_temperature), *parts


def _temperature_problem(temperature: float, base_temperature: float | None = None) -> str | None:
    for name, value in (("temperature", temperature), ("base_temperature", base_temperature)):
        if value is not None and not value > 0:
            return f"{name} must be positive, got {value}"
    return None


def _kinds(labels: Tensor, first: int, views: int) -> Tensor:
    """The labels (n,) of all views, (V·n,). An unlabelled image, number `first` + i of all, gets a label of its own."""
    own = -1 - first - torch.arange(len(labels), device=labels.device)
    return torch.where(labels < 0, own, labels).repeat(views)


class _Contrastive(torch.autograd.Function):
    """Softmax over all other views, in blocks of anchors: the (M, M) matrix of scores is never held. M = V·N.

    Rows of `z` (M, D) are ordered rank by rank, and within a rank view by view.
    Anchor i has the positives P(i), m_i of them; s_ij is its similarity to j over T:

        L = Σᵢ (lseᵢ - Σ_{p ∈ P(i)} s_ip / mᵢ) / M,   lseᵢ = log Σ_{j ≠ i} exp(s_ij)

    Positives are mutual, so with p_ij = exp(s_ij - lse_i) row i of the gradient is

        ∂L/∂zᵢ = Σⱼ (p_ij + p_ji - [j ∈ P(i)] (1/mᵢ + 1/mⱼ)) zⱼ / (M · T)

    For the forward pass a rank gathers z of all ranks; for the backward pass also `pos`, `excess` and `about` below.

    If a positive is by far the nearest, lse is nearly its score and p nearly 1, and their differences would lose their
    digits. So lse is kept as two numbers: `pos`, the log-sum-exp of the positives, and `excess`, what the negatives
    add. p - 1 is computed by expm1.

    `kinds` (V·n,): rows of one kind are positives of each other, found by a mask; `about` is 1 / m. None: only the
    views of an image are. Then m = V - 1, their places are known, and no mask is needed: `about` (V·n, m) is
    s_ip - posᵢ + log m of each positive, and p_ip - 1/m = expm1(about_ip - excessᵢ) / m.
    """

    @staticmethod
    def forward(ctx, z: Tensor, kinds: Tensor | None, temperature: float, block: int, counts: list[int], views: int):
        everyone = gather_rows(z, counts)  # (M, D)
        all_kinds = None if kinds is None else gather_rows(kinds, counts)
        first, n = sum(counts[: rank()]), z.shape[0]
        pos, excess, losses, nearer = (z.new_empty(n) for _ in range(4))
        about = z.new_empty(n, views - 1 if kinds is None else 1)
        for mine, rows in _blocks(n, block, z.device):
            scores = _scores(z.detach()[mine], everyone, first + rows, temperature)
            if kinds is None:
                places = first + _places(rows, n, views)
                own = scores.gather(1, places)
                pos[mine], best, mean = own.logsumexp(1), own.amax(1), own.mean(1)
                about[mine] = own - pos[mine, None] + math.log(views - 1)
                negatives = scores.scatter_(1, places, float("-inf"))
            else:
                positives = _positives(kinds[mine], all_kinds, first + rows)
                share = positives.sum(1).to(z.dtype).reciprocal()
                about[mine] = share[:, None]
                only = scores.masked_fill(~positives, float("-inf"))
                pos[mine], best = only.logsumexp(1), only.amax(1)
                mean = scores.masked_fill(~positives, 0).sum(1) * share
                negatives = scores.masked_fill_(positives, float("-inf"))
            excess[mine] = F.softplus(negatives.logsumexp(1) - pos[mine])
            losses[mine] = pos[mine] - mean + excess[mine]
            nearer[mine] = (negatives >= best[:, None]).sum(1).to(z.dtype)  # negatives as near as the best positive
        sums = torch.stack([losses.sum(), (nearer < 1).sum(), (nearer < 5).sum()])
        loss, acc1, acc5 = sum_over_ranks(sums) / sum(counts)
        if ctx.needs_input_grad[0]:
            vectors = gather_rows(torch.cat([pos[:, None], excess[:, None], about], 1), counts)
            ctx.save_for_backward(z.detach(), everyone, kinds, all_kinds, vectors)
            ctx.first, ctx.temperature, ctx.block, ctx.views = first, temperature, block, views
        ctx.mark_non_differentiable(acc1, acc5)
        return loss, acc1, acc5

    @staticmethod
    def backward(ctx, grad: Tensor, *_):
        refuse_second_derivative()
        z, everyone, kinds, all_kinds, vectors = ctx.saved_tensors
        pos, excess, about = vectors[:, 0], vectors[:, 1], vectors[:, 2:]
        lse = pos + excess
        out = torch.empty_like(z)
        for mine, rows in _blocks(len(z), ctx.block, z.device):
            own = ctx.first + rows
            scores = _scores(z[mine], everyone, own, ctx.temperature)
            weights = (scores - lse[own, None]).exp_()
            weights += (scores - lse).exp_()
            if kinds is None:
                places = ctx.first + _places(rows, len(z), ctx.views)
                pull = (about[own] - excess[own, None]).expm1_()
                back = torch.arange(ctx.views - 2, -1, -1, device=z.device)  # where a positive has this anchor
                pull += (about[places, back] - excess[places]).expm1_()
                weights.scatter_(1, places, pull / (ctx.views - 1))
            else:
                share = about[:, 0]
                pull = (scores - pos[own, None] - excess[own, None]).expm1_().add_(1 - share[own, None])
                pull += (scores - pos - excess).expm1_().add_(1 - share)
                weights = torch.where(_positives(kinds[mine], all_kinds, own), pull, weights)
            torch.mm(weights, everyone, out=out[mine])
        return out * (grad / (everyone.shape[0] * ctx.temperature)), None, None, None, None, None


def _blocks(n: int, block: int, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """0..n-1 in runs of `block`, as slices and as numbers."""
    for start in range(0, n, block):
        stop = min(start + block, n)
        yield slice(start, stop), torch.arange(start, stop, device=device)


def _places(rows: Tensor, n: int, views: int) -> Tensor:
    """(len(rows), views - 1): where a rank's n rows, view by view, hold the other views of the images of `rows`."""
    return (rows[:, None] + n // views * torch.arange(1, views, device=rows.device)) % n


def _scores(z: Tensor, everyone: Tensor, own: Tensor, temperature: float) -> Tensor:
    """(n, M): similarity / temperature of rows z (n, D) to everyone (M, D); -inf to themselves, numbers `own`."""
    with torch.autocast(z.device.type, enabled=False):  # it may be on where backward() is called
        return (z @ everyone.T).div_(temperature).scatter_(1, own[:, None], float("-inf"))


def _positives(kinds: Tensor, all_kinds: Tensor, own: Tensor) -> Tensor:
    """(n, M) bool: which others are of the kind of rows `own`."""
    return (kinds[:, None] == all_kinds).scatter_(1, own[:, None], False)
