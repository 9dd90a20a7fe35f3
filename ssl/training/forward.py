"""Compute embeddings and the loss from views; rehearse and try a step without changing anything."""

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ssl.augment import COLUMNS, View
from ssl.data.loader import finish
from ssl.data.worker import Batch
from ssl.distributed import world_size
from ssl.losses import SupConLoss
from ssl.training.precision import autocast


class Embed:
    """The views of a batch -> one output each, by `net` in mixed precision (`dtype`, None: float32).

    `net` is what DDP and torch.compile make of the model: it maps views (n, C, size, size) to a tuple of outputs.
    `statistics` are mean and std of the pixels, one value a channel. `dtype` is that of mixed precision; None: float32.
    On a GPU the views are of `of_pixels`, and with `compile_views` torch.compile makes one graph of their operations.
    """

    def __init__(
        self,
        net: nn.Module,
        views: list[View],
        statistics: tuple[list[float], list[float]],
        device: torch.device,
        dtype: torch.dtype | None,
        of_pixels: torch.dtype | None = None,
        compile_views: bool = False,
    ):
        self.net, self.views, self.device, self.dtype = net, views, device, dtype
        self.of_pixels, self.compile_views = of_pixels, compile_views
        self.mean, self.std = (torch.tensor(values, device=device) for values in statistics)

    def __call__(self, batch: Batch, net: nn.Module | None = None) -> tuple[Tensor, ...]:
        """Embeddings (n, D) of each view. `net` may be another network than the one that learns."""
        torch.manual_seed(batch.seed)  # for dropout
        return self.outputs(self.pixels(batch), net)

    def total(self, batch: Batch, net: nn.Module | None = None) -> Tensor:
        """The sum of all embeddings, a scalar with a gradient: for steps that change nothing."""
        return sum(z.float().sum() for z in self(batch, net))

    def pixels(self, batch: Batch) -> list[Tensor]:
        """The normalised views (n, C, size, size)."""
        with torch.no_grad():
            return finish(batch, self.views, self.mean, self.std, self.of_pixels, self.compile_views)

    def outputs(self, x: list[Tensor], net: nn.Module | None = None) -> tuple[Tensor, ...]:
        with autocast(self.dtype, self.device):
            return (net or self.net)(*x)


def compiled(model: nn.Module) -> nn.Module:
    """`model` whose parts (encoder, projector or head) are one compiled graph each, which all views share.

    It has the same weights. `model` itself stays as it is: evaluations copy it, and the search for what is not finite
    puts hooks on it. Compile first, then wrap in DDP.
    """
    torch._dynamo.config.optimize_ddp = False  # it would split the graphs again
    net = copy.copy(model)
    net._modules = {name: torch.compile(part) for name, part in model.named_children()}
    return net


def targets(criterion: nn.Module, batches: list[Batch]) -> list[Tensor]:
    """What the loss reads besides the embeddings: the labels of the batches, if it learns from them."""
    return [torch.cat([batch.labels for batch in batches])] if isinstance(criterion, SupConLoss) else []


def whole_loss(
    embed: Embed, criterion: nn.Module, net: nn.Module, batches: list[Batch]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of micro-batches together, and its parts, with the embeddings of `net`."""
    z = [torch.cat(view) for view in zip(*(embed(batch, net) for batch in batches))]
    return criterion(*z, *targets(criterion, batches)), criterion.parts


# Rehearsal --------------------------------------------------------------------------


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


def try_step(model: nn.Module, embed: Embed, optimizer: torch.optim.Optimizer, shape: tuple[int, int, int], size: int):
    """Take the memory of a step with `size` images of `shape` (C, H, W) on this rank; no other rank need take part.

    `model` is what `embed` runs, without DDP. Weights and optimizer stay as they are, but `model` is left in
    evaluation mode: batch norm then asks no other rank. Raises what a step raises.
    """
    device = next(model.parameters()).device
    model.eval()
    model.zero_grad(set_to_none=True)
    try:
        set_gradients(model, embed.total(blank_batch(len(embed.views), size, shape, device), model))
        step_aside(optimizer)
    finally:
        model.zero_grad(set_to_none=True)


def set_gradients(model: nn.Module, loss: Tensor) -> None:
    """The gradients of `loss` on this rank alone, laid out in memory as backward() would have them."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Not backward(): DDP's hooks on the parameters would start to sum gradients over the ranks.
    gradients = torch.autograd.grad(loss, learning, allow_unused=True)
    for parameter, gradient in zip(learning, gradients):
        parameter.grad = gradient
        if gradient is not None and gradient.stride() != parameter.stride():  # which fused optimizers refuse
            parameter.grad = torch.empty_like(parameter).copy_(gradient)


def step_aside(optimizer: torch.optim.Optimizer) -> None:
    """A step of `optimizer` that makes its state, as the first step does, and changes no weight."""
    device = optimizer.param_groups[0]["params"][0].device
    optimizer.found_inf = torch.ones((), device=device)
    optimizer.step()


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


def blank_batch(views: int, size: int, shape: tuple[int, int, int], device: torch.device) -> Batch:
    """`size` black images of class 0, each in `views` views of `shape` (C, H, W)."""
    view = torch.zeros(size, *shape, device=device), torch.zeros(size, len(COLUMNS), device=device)
    zeros = torch.zeros(size, dtype=torch.int64, device=device)
    return Batch([view] * views, index=zeros, labels=zeros, seed=0)
