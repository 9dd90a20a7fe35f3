"""Logistic regression with fixed settings: the head for few labels, and for groups. Nothing is chosen."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl.evaluation.feature_rows import Samples, block_size, unit_length

C = 10.0  # inverse strength of the penalty, as in scikit-learn; fixed
STEPS = 100  # of L-BFGS, at most
HISTORY = 10  # steps that it remembers, each in the memory of two heads; torch's 100 find the same minimum
WORDS = f"logistic regression (C = {C:g}) on features minus the mean of train, scaled to length 1"


def centred(features: Tensor, mean: Tensor) -> Tensor:
    """Features (N, F) minus `mean` (F,), scaled to length 1. Without it all cosines of some encoders are near 1."""
    return unit_length(features - mean)


def fit(features: Tensor, labels: Tensor, classes: int, c: float = C, balanced: bool = False) -> tuple[Tensor, Tensor]:
    """(weight (classes, F), bias (classes,)) of a softmax regression on features (N, F), labels (N,) in 0..classes-1.

    It minimises sum(cross-entropy) + |weight|² / (2 c), as scikit-learn's LogisticRegression(C=c) does, from 0 by
    L-BFGS. Of two classes each has its weights here, while scikit-learn has one vector, their difference: there it is
    the head of C=2c. The same inputs give the same head: there are no random numbers and no batches. `balanced`: every
    class of the labels has the same part of the sum, as with its class_weight="balanced".
    """
    weight = torch.zeros(classes, features.shape[1], device=features.device, dtype=features.dtype, requires_grad=True)
    bias = torch.zeros(classes, device=features.device, dtype=features.dtype, requires_grad=True)
    decay = 1 / (2 * c * len(labels))
    limits = {"max_iter": STEPS, "tolerance_grad": 1e-6, "tolerance_change": 1e-9, "history_size": HISTORY}
    counts = torch.bincount(labels, minlength=classes).to(features.dtype)
    of_class = len(labels) / (counts > 0).sum() / counts.clamp(min=1) if balanced else None
    optimizer = torch.optim.LBFGS([weight, bias], line_search_fn="strong_wolfe", **limits)

    def loss() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            scores = F.linear(features, weight, bias)
            value = F.cross_entropy(scores, labels, weight=of_class) + decay * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


@dataclass(frozen=True)
class Head:
    """Scores of features (N, F), centred by `mean` (F,): weight (classes, F), bias (classes,)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor

    @torch.no_grad()
    def hits(self, test: Samples) -> Tensor:
        """Whether each label of `test` is the best class (N,)."""
        blocks = zip(test[0].split(block_size(test[0])), test[1].split(block_size(test[0])))
        return torch.cat([F.linear(centred(x, self.mean), self.weight, self.bias).argmax(1) == y for x, y in blocks])


@torch.no_grad()
def learn(train: Samples, classes: int, mean: Tensor, balanced: bool = False) -> Head:
    """The head that learns from all of `train`, centred by `mean` (F,)."""
    features, labels = train
    x = centred(features[torch.arange(len(labels))], mean)
    return Head(*fit(x, labels, classes, balanced=balanced), mean)
