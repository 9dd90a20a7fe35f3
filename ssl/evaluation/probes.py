"""Judges of frozen features: a grid of linear heads trained in one pass, and weighted k-NN.

Features are a tensor (N, F), or `feature_rows.Rows` where they are too large for the memory. Rows are read a batch, or
a block of some ten MiB, at a time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ssl import failures
from ssl.console import say_once
from ssl.data.hold_out import split_validation
from ssl.evaluation import metrics
from ssl.evaluation.feature_rows import Rows, Samples, block_size, statistics
from ssl.evaluation.intervals import Groups
from ssl.evaluation.neighbours import Near, nearest

LRS = (0.01, 0.03, 0.1, 0.3, 1.0)
WEIGHT_DECAYS = (0.0, 1e-5, 1e-4, 1e-3)


@dataclass(frozen=True)
class Heads:
    """G linear heads on features standardised by mean and std, each (F,): weights (G, C, F), biases (G, C)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, head: nn.Linear) -> "Heads":
        """One head, on features as they are."""
        weight, bias = head.weight.detach(), head.bias.detach()
        return cls(weight[None], bias[None], weight.new_zeros(()), weight.new_ones(()))

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
    """Train one softmax head for each (learning rate, weight decay) of `grid`, all at once.

    features (N, F), labels (N,) in 0..classes-1. SGD with momentum 0.9; the learning rate follows a cosine to 0.
    Features are standardised with the mean and deviation of these N. The heads share the batches and nothing else: each
    ends as if trained alone. `alive` is called in every epoch.
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
    """Whether each of the labels (N,) is among the k best classes of each `chosen` head: (heads, N) bool."""
    blocks = zip(features.split(block_size(features)), labels.split(block_size(features)))
    found = [torch.stack([metrics.hits(heads.scores(x, head), y, k) for head in chosen]) for x, y in blocks]
    return torch.cat(found, dim=1)


def accuracies(heads: Heads, features: Tensor | Rows, labels: Tensor, groups: Groups | None = None) -> dict:
    """n, acc1, balanced_accuracy and acc5 of the first head, as `metrics` defines them, on features (N, F)."""
    (first,), (among_five,) = (hits(heads, [0], features, labels, k) for k in (1, 5))
    return metrics.accuracy(labels, first, groups) | metrics.acc5(among_five, heads.bias.shape[1], groups)


def hold_out_tenth(train: tuple[Rows, Tensor], seed: int, groups: Groups | None = None) -> list[Samples]:
    """[train, held out]: (features, labels) without a tenth of every class, by `seed`; and that tenth.

    Whole groups (N,) are held out where they are known. A class of which none can be, as all of it is in one group, is
    cut image by image: nothing is chosen on a part of the classes.
    """
    rows, labels = train[0], train[1].cpu()
    by_group, by_image = (split_validation(labels, 0.1, seed, known)[1] for known in (groups, None))
    cut = by_image[~torch.isin(labels[by_image], labels[by_group])]
    if len(cut):
        say_once(
            f"*** probe: {len(labels[cut].unique())} of {len(labels.unique())} classes of train have no whole group "
            "(patient, lesion, slide) that can be held out. The tenth of them that chooses its learning rate is cut "
            "image by image, and looks better than new groups would ***"
        )
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[by_group], held[cut] = True, True
    parts = (mask.nonzero()[:, 0].to(train[1].device) for mask in (~held, held))
    return [(rows.subset(index), train[1][index]) for index in parts]


def sweep(
    train: Samples,
    held_out: Samples,
    classes: int,
    epochs: int = 30,
    batch_size: int = 256,
    seed: int = 0,
    alive: Callable[[], None] = lambda: None,
) -> tuple[Heads, dict]:
    """Train heads of LRS × WEIGHT_DECAYS on `train`. Returns the one that is best on `held_out`, and its settings.

    Arguments are those of `probe`, and `alive` of `fit_heads`.
    """
    grid = [(lr, decay) for lr in LRS for decay in WEIGHT_DECAYS]
    width = train[0].shape[1]
    gigabytes = 4 * 4 * len(grid) * classes * width / 2**30
    with failures.advising(
        f"the probe trains {len(grid)} heads of {classes} classes × {width} features, which need {gigabytes:.2g} GiB. "
        "Judge by --protocol knn alone (train.py: without --eval_every), or with --device cpu"
    ):
        heads = fit_heads(*train, classes, grid, epochs, batch_size=batch_size, seed=seed, alive=alive)
        right = hits(heads, list(range(len(grid))), *held_out).sum(1).tolist()
    best = max(range(len(grid)), key=right.__getitem__)
    chosen = {"lr": grid[best][0], "weight_decay": grid[best][1], "held_out_n": len(held_out[1])}
    chosen |= metrics.share("held_out_acc1", right[best], len(held_out[1]))
    return replace(heads, weight=heads.weight[[best]], bias=heads.bias[[best]]), chosen


def probe(
    train: Samples,
    held_out: Samples,
    test: Samples,
    classes: int,
    epochs: int = 30,
    batch_size: int = 256,
    seed: int = 0,
) -> dict:
    """Train heads of LRS × WEIGHT_DECAYS on `train`, choose one by its accuracy on `held_out`, judge it on `test`.

    Each of the three is (features (N, F), labels (N,)). Only the chosen head sees the test split. Returns its
    `accuracies` (0..1) with their intervals, its lr and weight_decay, and held_out_acc1 with its n and interval.
    """
    head, chosen = sweep(train, held_out, classes, epochs, batch_size, seed)
    return accuracies(head, *test) | chosen


def knn(
    train: Samples, test: Samples, classes: int, k: int = 20, temperature: float = 0.07, groups: Groups | None = None
) -> dict:
    """Accuracy of weighted k-NN (Wu et al. 2018, §3.4): the k nearest by cosine vote with exp(cosine / temperature).

    `train` and `test` are (features (N, F), labels (N,)). Returns k, at most the number of training samples, and n,
    acc1 and balanced_accuracy (0..1) with their intervals, over `groups` of test (N,). Training samples are read once,
    a block at a time.
    """
    return vote(nearest(train[0], test[0], k), train[1], test[1], classes, temperature, groups)


def vote(
    near: Near, labels: Tensor, truth: Tensor, classes: int, temperature: float = 0.07, groups: Groups | None = None
) -> dict:
    """`knn` of test samples with labels `truth` (N,), whose neighbours `near` among train (labels (M,)) are known."""
    found = metrics.accuracy(truth, voted(near, labels, truth, classes, temperature), groups)
    return found | {"k": near.places.shape[1]}


def voted(near: Near, labels: Tensor, truth: Tensor, classes: int, temperature: float = 0.07) -> Tensor:
    """Whether the votes of `vote` are right, (N,) bool."""
    correct = []
    for cosines, places, y in zip(near.cosines.split(1024), near.places.split(1024), truth.split(1024)):
        scores = torch.zeros(len(y), classes, device=cosines.device, dtype=cosines.dtype)
        # The weights exp(cosine / T), divided by that of the nearest: not all can be 0, and none overflows.
        weights = ((cosines - cosines[:, :1]) / temperature).exp()
        correct.append(metrics.hits(scores.scatter_add_(1, labels[places], weights), y))
    return torch.cat(correct)
