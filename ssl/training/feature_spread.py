"""How features spread: their rank, and their distances on the sphere. Pure functions of rows (N, D), without labels.

All compute in float64, and never hold more than N×N or D×D numbers.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def singular_values(x: Tensor) -> Tensor:
    """The min(N, D) singular values of x (N, D), the largest first, from the smaller of xxᵀ and xᵀx.

    Values below 10⁻⁷ of the largest come from rounding and become 0. Raises `RuntimeError` if x is not finite.
    The product is computed on the device, its eigenvalues on the CPU: a GPU is slow at so small a matrix in float64.
    """
    x = x.double()
    gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    sigma = torch.linalg.eigvalsh(gram.cpu()).to(x.device).clamp_min(0).sqrt().flip(0)
    return torch.where(sigma > 1e-7 * sigma[:1], sigma, 0)


def effective_rank(x: Tensor) -> Tensor:
    """How many directions the centred rows use, 0..min(N - 1, D): exp of the entropy of the singular values' shares
    (Roy & Vetterli 2007).

    It is k for k equal singular values, and 0 if all rows are equal.
    """
    x = x.double()
    sigma = singular_values(x - x.mean(0))
    # Equal rows, minus their rounded mean, are not exactly zero; they have no spread all the same.
    spread = sigma.square().sum() > x.shape[0] * (1e-12 * x.square().mean(0).sum())
    share = sigma / sigma.sum()
    return torch.where(spread, torch.special.entr(share).sum().exp(), 0.0)


def rankme(x: Tensor) -> Tensor:
    """RankMe (Garrido et al. 2023, eq. 1): as `effective_rank`, of rows not centred, with 1e-7 added to each share."""
    sigma = singular_values(x)
    share = sigma / sigma.sum().clamp_min(torch.finfo(torch.float64).tiny) + 1e-7
    return torch.special.entr(share).sum().exp()


def on_sphere(x: Tensor) -> Tensor:
    """Rows scaled to length 1; a row of zeros stays."""
    return torch.nn.functional.normalize(x.double(), dim=1)


def alignment(*views: Tensor) -> Tensor:
    """Mean squared distance, 0..4, of views (N, D) on the sphere (Wang & Isola 2020, alpha 2): 0 if they agree.

    It is the mean over all pairs of views: 2 / (V - 1) times the sum of their squared distances from their mean. The
    sum is found view by view, as Welford (1962) does, so that views that are equal give 0 exactly.
    """
    mean, total = on_sphere(views[0]), 0.0
    for count, view in enumerate(views[1:], 1):
        apart = mean - on_sphere(view)
        total = total + apart.square().sum(1).mean() * (count / (count + 1))
        mean = mean - apart / (count + 1)
    return total * 2 / (len(views) - 1)


def uniformity(x: Tensor) -> Tensor:
    """log of the mean over pairs of exp(-2 · squared distance) on the sphere (Wang & Isola 2020, t 2).

    0 if all rows are one point; near -4 if they spread evenly in many dimensions.
    """
    x = on_sphere(x)
    pairs = (2 - 2 * (x @ x.T)).clamp_min(0)
    i, j = torch.triu_indices(len(x), len(x), offset=1, device=x.device)
    return pairs[i, j].mul(-2).exp().mean().log()


def relative_std(x: Tensor) -> Tensor:
    """√D × the standard deviation of rows on the sphere, averaged over dimensions (Chen & He 2021, section 4.1).

    1 if rows spread evenly, 0 if they are one point.
    """
    return on_sphere(x).std(0, correction=0).mean() * math.sqrt(x.shape[1])


def redundancy(off_diagonal: float, rows: int, dim: int) -> float:
    """The share of its variance, 0..1, that a dimension of the embeddings has in common with another, beyond chance.

    The mean of c² over pairs of the D dimensions, minus its value for unrelated dimensions of N rows. `off_diagonal` is
    Σ_{i≠j} c_ij² / D. Many dimensions that use r directions evenly have 1 / r.
    """
    return off_diagonal / max(dim - 1, 1) - 1 / (rows - 1)


def geometry(z: Sequence[Tensor], h: Tensor) -> dict[str, float]:
    """Ranks and spread of embeddings (N, D) of the first view and of representations h (N, F); alignment of all views.

    `z` are the embeddings of each view.
    """
    h, z1 = h.double(), z[0].double()
    values = {
        "representation_std": relative_std(h),
        "representation_rankme": rankme(h),
        "representation_effective_rank": effective_rank(h),
        "embedding_std": relative_std(z1),
        "embedding_rankme": rankme(z1),
        "embedding_effective_rank": effective_rank(z1),
        "alignment": alignment(*z),
        "uniformity": uniformity(z1),
        "representation_uniformity": uniformity(h),
    }
    return dict(zip(values, torch.stack(list(values.values())).tolist()))


def barlow_twins_of_unrelated(rows: int, dim: int, lambd: float) -> float:
    """Barlow Twins' expected loss if the views of an image are as unrelated as those of different images.

    Entries of C are correlations of N unrelated samples, E[c²] = 1 / (N - 1) (exact for normal samples), so D terms of
    1 + 1 / (N - 1) and D (D - 1) of λ / (N - 1), for every pair of views.
    """
    return dim * (1 + (1 + lambd * (dim - 1)) / (rows - 1))


def info_nce_of_unrelated(rows: int, views: int) -> float:
    """The same of InfoNCE and SupCon: of N images in V views all VN - 1 others are equally near, so log(VN - 1)."""
    return math.log(views * rows - 1)
