"""How features spread: their rank, and their distances on the sphere. Pure functions of rows (N, D), without labels.

All compute in float64, and never hold more than N×N or D×D numbers.
"""

import math

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


def rankme(x: Tensor, eps: float = 1e-7) -> Tensor:
    """RankMe (Garrido et al. 2023, eq. 1): as `effective_rank`, of rows not centred, with `eps` added to each share."""
    sigma = singular_values(x)
    share = sigma / sigma.sum().clamp_min(torch.finfo(torch.float64).tiny) + eps
    return torch.special.entr(share).sum().exp()


def on_sphere(x: Tensor) -> Tensor:
    """Rows scaled to length 1; a row of zeros stays."""
    return torch.nn.functional.normalize(x.double(), dim=1)


def alignment(x1: Tensor, x2: Tensor) -> Tensor:
    """Mean squared distance, 0..4, of the two views on the sphere (Wang & Isola 2020, alpha 2): 0 if they agree."""
    return (on_sphere(x1) - on_sphere(x2)).square().sum(1).mean()


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


def geometry(z1: Tensor, z2: Tensor, h: Tensor) -> dict[str, float]:
    """Ranks, spread and alignment of embeddings z1, z2 (N, D) of two views and of representations h (N, F)."""
    h, z1, z2 = h.double(), z1.double(), z2.double()
    values = {
        "representation_std": relative_std(h),
        "representation_rankme": rankme(h),
        "representation_effective_rank": effective_rank(h),
        "embedding_std": relative_std(z1),
        "embedding_rankme": rankme(z1),
        "embedding_effective_rank": effective_rank(z1),
        "alignment": alignment(z1, z2),
        "uniformity": uniformity(z1),
        "representation_uniformity": uniformity(h),
    }
    return dict(zip(values, torch.stack(list(values.values())).tolist()))


def loss_of_unrelated(method: str, rows: int, dim: int, lambd: float = 0.0) -> float:
    """The expected loss if the two views of an image are as unrelated as those of different images.

    Barlow Twins: entries of C are correlations of N unrelated samples, E[c²] = 1 / (N - 1) (exact for normal samples),
    so D terms of 1 + 1 / (N - 1) and D (D - 1) of λ / (N - 1). InfoNCE and SupCon: all 2N - 1 others are equally near,
    so log(2N - 1).
    """
    if method == "barlow_twins":
        return dim * (1 + (1 + lambd * (dim - 1)) / (rows - 1))
    return math.log(2 * rows - 1)
