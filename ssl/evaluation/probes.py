"""Judges of frozen features: a grid of linear heads in one pass, and weighted k-NN.

Features are a tensor (N, F), or `feature_rows.Rows` where memory does not hold them: of those a batch, or a block of
some ten MiB, is read at a time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl import failures
from ssl.data.hold_out import split_validation
from ssl.evaluation import metrics
from ssl.evaluation.feature_rows import Rows, at_a_time, statistics

LRS = (0.01, 0.03, 0.1, 0.3, 1.0)
WEIGHT_DECAYS = (0.0, 1e-5, 1e-4, 1e-3)


@dataclass(frozen=True)
class Heads:
    """G linear heads on standardised features: weights (G, C, F), biases (G, C)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor

    def scores(self, features: Tensor, head: int) -> Tensor:
        """Scores (N, C) that one head gives to features (N, F)."""
        return torch.addmm(self.bias[head], (features - self.mean) / self.std, self.weight[head].T)


@torch.no_grad()
def fit_heads(
    features: Tensor | Rows,
    labels: Tensor,
    classes: int,
    grid: list[tuple[float, float]],
    epochs: int,
    batch_size: int,
    seed: int,
    alive: Callable[[], None] = lambda: None,
) -> Heads:
    """Train one softmax head for every (learning rate, weight decay) of `grid`, all at once.

    features (N, F), labels (N,) in 0..classes-1. SGD with momentum 0.9 and a cosine from the
    head's learning rate to 0; features are standardised with the mean and deviation of these N.
    The heads share batches and nothing else: each ends as if trained alone. `alive` is called every epoch.
    """
    device, (count, width), heads = features.device, features.shape, len(grid)
    lrs, decays = (torch.tensor(column, device=device).view(-1, 1, 1) for column in zip(*grid))
    mean, std = statistics(features)
    weight = torch.zeros(heads, classes, width, device=device)
    bias = torch.zeros(heads, 1, classes, device=device)
    moving_weight, moving_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    batch_size = min(batch_size, count)
    steps = epochs * (count // batch_size)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        batch = step % (count // batch_size)
        if batch == 0:
            alive()
            order = torch.randperm(count, generator=generator).to(device)
        chosen = order[batch * batch_size : (batch + 1) * batch_size]
        x = (features[chosen] - mean) / std
        # The gradient of softmax cross-entropy in the scores is (probability - truth) / batch.
        scores = (x @ weight.flatten(0, 1).T).view(batch_size, heads, classes).transpose(0, 1) + bias
        error = scores.softmax(2)
        error[:, torch.arange(batch_size, device=device), labels[chosen]] -= 1
        error /= batch_size
        gradient = (error.transpose(1, 2).reshape(heads * classes, batch_size) @ x).view_as(weight)
        moving_weight.mul_(0.9).add_(gradient).add_(decays * weight)
        moving_bias.mul_(0.9).add_(error.sum(1, keepdim=True))
        factor = 0.5 * (1 + math.cos(math.pi * step / steps))
        weight -= lrs * factor * moving_weight
        bias -= lrs * factor * moving_bias
    return Heads(weight, bias[:, 0], mean, std)


@torch.no_grad()
def hits(heads: Heads, chosen: list[int], features: Tensor | Rows, labels: Tensor, k: int = 1) -> Tensor:
    """Whether each of the labels (N,) is among the k best classes of each `chosen` head; (heads, N) bool."""
    count = at_a_time(features)
    blocks = zip(features.split(count), labels.split(count))
    found = [torch.stack([metrics.hits(heads.scores(x, head), y, k) for head in chosen]) for x, y in blocks]
    return torch.cat(found, dim=1)


def tenth_apart(train: tuple[Rows, Tensor], seed: int) -> list[tuple[Rows, Tensor]]:
    """(features, labels) in two parts: what heads learn, and a tenth of every class by `seed`, to choose one by."""
    rows, labels = train
    parts = split_validation(labels.cpu(), 0.1, seed)
    return [(rows.subset(index.to(labels.device)), labels[index.to(labels.device)]) for index in parts]


def sweep(
    train: tuple[Tensor | Rows, Tensor],
    held_out: tuple[Tensor | Rows, Tensor],
    classes: int,
    epochs: int = 30,
    batch_size: int = 256,
    seed: int = 0,
    alive: Callable[[], None] = lambda: None,
) -> tuple[Heads, dict]:
    """Heads of LRS × WEIGHT_DECAYS on `train`; the best on `held_out`, alone, and how it was chosen.

    Arguments as of `probe`; `alive` as of `fit_heads`.
    """
    grid = [(lr, decay) for lr in LRS for decay in WEIGHT_DECAYS]
    width = train[0].shape[1]
    gigabytes = 4 * 4 * len(grid) * classes * width / 2**30
    with failures.advising(
        f"the probe trains {len(grid)} heads of {classes} classes × {width} features and needs {gigabytes:.2g} GiB for "
        "them. Judge by --protocol knn alone (train.py: without --eval_every), or with --device cpu"
    ):
        heads = fit_heads(*train, classes, grid, epochs, batch_size, seed, alive)
        right = hits(heads, list(range(len(grid))), *held_out).sum(1).tolist()
    best = max(range(len(grid)), key=right.__getitem__)
    chosen = {"lr": grid[best][0], "weight_decay": grid[best][1], "held_out_n": len(held_out[1])}
    chosen |= metrics.share("held_out_acc1", right[best], len(held_out[1]))
    return replace(heads, weight=heads.weight[[best]], bias=heads.bias[[best]]), chosen


def probe(
    train: tuple[Tensor | Rows, Tensor],
    held_out: tuple[Tensor | Rows, Tensor],
    test: tuple[Tensor | Rows, Tensor],
    classes: int,
    epochs: int = 30,
    batch_size: int = 256,
    seed: int = 0,
) -> dict:
    """Sweep LRS × WEIGHT_DECAYS on `train`, choose by accuracy on `held_out`, report that one on `test`.

    Each argument is (features (N, F), labels (N,)). The test split is scored by the
    winner alone. Returns n, acc1, balanced_accuracy and acc5 of `test` (0..1, as `metrics` defines them), their
    intervals, the winner's lr and weight_decay, and held_out_acc1 with its n and interval.
    """
    heads, chosen = sweep(train, held_out, classes, epochs, batch_size, seed)
    (first,), (among_five,) = (hits(heads, [0], *test, k) for k in (1, 5))
    return {**metrics.of_hits(test[1], first), **metrics.acc5(among_five, classes), **chosen}


@torch.no_grad()
def knn(
    train: tuple[Tensor | Rows, Tensor],
    test: tuple[Tensor | Rows, Tensor],
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> dict:
    """Weighted k-NN accuracy (Wu et al. 2018, §3.4): the k nearest by cosine vote with exp(cosine / temperature).

    Each argument is (features (N, F), labels (N,)). Returns k, which is cut to the number of training samples, and n,
    acc1 and balanced_accuracy (0..1) with their intervals. Training samples are read once, a block at a time.
    """
    bank, labels = train
    k, count = min(k, len(bank)), at_a_time(bank)
    nearest = [
        (queries.new_empty(len(queries), 0), labels.new_empty(len(queries), 0)) for queries in test[0].split(1024)
    ]
    for rows, own in zip(bank.split(count), labels.split(count)):
        rows = _of_length_1(rows)
        for number, queries in enumerate(test[0].split(1024)):
            cosine, place = (_of_length_1(queries) @ rows.T).topk(min(k, len(rows)), dim=1)
            cosines, votes = (torch.cat(pair, dim=1) for pair in zip(nearest[number], (cosine, own[place])))
            cosines, best = cosines.topk(min(k, cosines.shape[1]), dim=1)
            nearest[number] = cosines, votes.gather(1, best)
    first = []
    for (cosines, votes), y in zip(nearest, test[1].split(1024)):
        scores = torch.zeros(len(y), classes, device=cosines.device, dtype=cosines.dtype)
        # The winner is that of exp(cosine / T). The nearest weighs 1: weights cannot all vanish, and none overflows.
        weights = ((cosines - cosines[:, :1]) / temperature).exp()
        first.append(metrics.hits(scores.scatter_add_(1, votes, weights), y))
    return {**metrics.of_hits(test[1], torch.cat(first)), "k": k}


def _of_length_1(rows: Tensor) -> Tensor:
    """Rows (N, F) over their lengths. A power of two is taken out first: the square of 1e20 is not in float32."""
    _, power = torch.frexp(rows.abs().amax(1, keepdim=True))
    return F.normalize(torch.ldexp(rows, -power.clamp(-126, 126)), dim=1)
