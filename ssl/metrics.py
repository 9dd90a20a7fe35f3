"""How good predictions are."""

import torch
from torch import Tensor


def correct_at(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """How many of the labels (N,) are among the k best classes of scores (N, C); a scalar tensor."""
    top = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return (top == labels[:, None]).any(1).sum()


def accuracy(scores: Tensor, labels: Tensor, k: int = 1) -> float:
    """Share, in 0..1, of labels (N,) among the k best classes of scores (N, C)."""
    return (correct_at(scores, labels, k) / torch.tensor(len(labels), dtype=torch.float64)).item()
