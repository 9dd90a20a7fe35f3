"""The first passes of a process: every process, new or continued, then sums its gradients in the same order."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ssl.augment import COLUMNS
from ssl.data.worker import Batch
from ssl.distributed import world_size


def rehearse(model: nn.Module, loss: Callable[[], Tensor]) -> None:
    """Two passes forward and back, which change nothing; on one process, none.

    DDP sums gradients in one order in a process's first step. From the second step on it takes the order in which they
    became ready. With three ranks or more the last bits differ. So every process rehearses before it trains.

    `loss()` runs the DDP module of `model` and returns a scalar with a gradient. Buffers of `model` (running
    statistics) and torch's random numbers are put back, also where `loss` raises. All ranks call it.
    """
    if world_size() == 1:
        return
    try:
        with unchanged(model):
            for _ in range(2):
                loss().backward()
    finally:
        model.zero_grad(set_to_none=True)


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Buffers of `model` (running statistics) and torch's random numbers are put back afterwards."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    try:
        with torch.random.fork_rng(list(devices)):
            yield
    finally:
        for name, buffer in before.items():
            model.get_buffer(name).copy_(buffer)


def blank_batch(views: int, size: int, channels: int, pixels: int, device: torch.device) -> Batch:
    """`size` black images, each in `views` views of `pixels` x `pixels`, of class 0."""
    view = torch.zeros(size, channels, pixels, pixels, device=device), torch.zeros(size, len(COLUMNS), device=device)
    zeros = torch.zeros(size, dtype=torch.int64, device=device)
    return Batch([view] * views, index=zeros, labels=zeros, seed=0)
