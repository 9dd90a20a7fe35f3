"""Compute the gradient of several micro-batches in the memory of one."""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ssl.data.worker import Batch
from ssl.training.forward import Embed, targets

Backward = Callable[[Tensor], None]


def accumulate_exact(batches: list[Batch], embed: Embed, criterion: nn.Module, backward: Backward) -> Tensor:
    """Gradient of the loss of all micro-batches together, in the memory of one (Gao et al. 2021, GradCache).

    First all embeddings, without a graph; then the gradient of the loss in them; then each micro-batch again, with its
    share of that gradient. Batch norm sees one micro-batch at a time; running statistics count each once. Returns the
    loss.
    """
    norms = [m for m in embed.net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    with torch.no_grad():
        parts = [embed(batch) for batch in batches]
    for norm in norms:
        norm.track_running_stats = True
    z = [torch.cat(view).requires_grad_() for view in zip(*parts)]
    loss = criterion(*z, *targets(criterion, batches))
    backward(loss)
    shares = zip(*(view.grad.split(len(batches[0].index)) for view in z))
    for batch, share, sync in zip(batches, shares, sync_last(embed.net, len(batches))):
        with sync:
            torch.autograd.backward(embed(batch), share)
    return loss


def accumulate_split(batches: list[Batch], embed: Embed, criterion: nn.Module, backward: Backward) -> Tensor:
    """Gradient of the mean of the losses of the micro-batches, each computed without the others. Returns the mean."""
    losses, parts = [], []
    for batch, sync in zip(batches, sync_last(embed.net, len(batches))):
        with sync:
            loss = criterion(*embed(batch), *targets(criterion, [batch])) / len(batches)
            backward(loss)
        losses.append(loss.detach())
        parts.append(criterion.parts)
    criterion.parts = {name: sum(part[name] for part in parts) / len(parts) for name in criterion.parts}
    return sum(losses)


def sync_last(net: nn.Module, count: int) -> list[contextlib.AbstractContextManager]:
    """Contexts for `count` backward passes, of which only the last averages gradients over the ranks."""
    quiet = getattr(net, "no_sync", contextlib.nullcontext)
    return [*(quiet() for _ in range(count - 1)), contextlib.nullcontext()]
