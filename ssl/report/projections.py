"""Pure functions of representations and embeddings: maps in two dimensions, cross-correlation, spectrum."""

import importlib
import warnings
from typing import Any

import torch
from torch import Tensor


def pca(features: Tensor, components: int = 2) -> tuple[Tensor, Tensor]:
    """(points (N, components), each component's share of the variance) of features (N, F), N > 1.

    The sign of a component is arbitrary: here its largest weight is positive.
    """
    x = features.double() - features.double().mean(0)
    _, singular, directions = torch.linalg.svd(x, full_matrices=False)
    directions = directions[:components]
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    variance = singular**2
    share = variance[:components] / variance.sum().clamp(min=1e-300)
    return x @ (directions * torch.where(largest < 0, -1.0, 1.0)).T, share


MAPPED = 1000  # images at most: t-SNE takes seconds then, UMAP half a minute
FEWEST = 10  # images of which a map by neighbours says something


def neighbour_map(features: Tensor) -> tuple[str, Tensor] | None:
    """(method, points (N, 2)) of features (N, F): UMAP where umap is installed, else t-SNE where scikit-learn is.

    The seed is fixed. It begins with up to 50 principal components. None without such a package, for fewer than FEWEST
    or more than MAPPED images, and for images that all have the same features.
    """
    if not FEWEST <= len(features) <= MAPPED:
        return None
    x = pca(features, 50)[0]
    if not x.isfinite().all() or (x.std(0) < 1e-9).all():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # UMAP says that a seed costs speed
        found = _mapper(len(x))
        if found is None:
            return None
        method, mapper = found
        points = torch.as_tensor(mapper.fit_transform(x.numpy()), dtype=torch.float64)
    return (method, points) if points.isfinite().all() else None


def _mapper(count: int) -> tuple[str, Any] | None:
    """(method, an object whose `fit_transform` maps `count` rows); None where no package for it is installed."""
    if UMAP := _found("umap", "UMAP"):
        near = min(15, count - 1)
        return f"UMAP ({near} neighbours)", UMAP(n_neighbors=near, random_state=0)
    if TSNE := _found("sklearn.manifold", "TSNE"):
        perplexity = min(30.0, (count - 1) / 3)
        return f"t-SNE (perplexity {perplexity:.3g})", TSNE(perplexity=perplexity, init="pca", random_state=0)
    return None


def _found(module: str, name: str) -> Any:
    """`name` of `module`; None where that is not installed, or is another package (umap is not umap-learn)."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None


def cross_correlation(z1: Tensor, z2: Tensor) -> Tensor:
    """C (D, D) between the dimensions of two views' embeddings (N, D), in -1..1; 0 for a constant dimension."""
    return _standard(z1).T @ _standard(z2) / len(z1)


def spectrum(z: Tensor) -> Tensor:
    """Eigenvalues of the correlation matrix of embeddings (N, D), falling. There are min(N, D); their sum is D.

    They come from the singular values of the standardised embeddings, so the D×D matrix is never made.
    """
    return torch.linalg.svdvals(_standard(z)) ** 2 / len(z)


def _standard(z: Tensor) -> Tensor:
    """Embeddings with zero mean and unit deviation in every dimension; a constant dimension becomes 0."""
    z = z.double() - z.double().mean(0)
    deviation = z.std(0, correction=0)
    return z / torch.where(deviation > 1e-9, deviation, torch.inf)
