"""Two training loops for step.py: what train.py does, and the plain published loop, written from the paper."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from input import published
from losses import plain_barlow
from optimizers import plain_lars
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import train
from ssl import distributed
from ssl.augment import View
from ssl.batch_norm import synchronise
from ssl.data.cores import auto_workers
from ssl.data.images import Images
from ssl.data.loader import training_batches
from ssl.data.order import Order
from ssl.distributed import world_size
from ssl.schedules import set_lr
from ssl.sources import datasets
from ssl.training.forward import Embed, compiled, targets
from ssl.training.guard import Guard, gradient_norm
from ssl.training.precision import choose_precision

Lap = Callable[[str], None]


@dataclass
class Loop:
    """`batches(start, stop)` of those steps; `prepare` makes of a batch what `step(ready, factor, lap)` learns from.

    `factor` is what the schedule multiplies the learning rates by; `lap` is called with the name of each
    part of the step once that has been asked of the device (see turns.PARTS). `quiet()`: a context in which
    gradients stay on their rank.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Callable[[int, int], Iterator]
    prepare: Callable
    step: Callable[[tuple, float, Lap], None]
    quiet: Callable = contextlib.nullcontext


def no_lap(part: str) -> None:
    """For steps that are not timed."""


def our_loop(settings: train.Settings, data: Images, device: torch.device) -> Loop:
    views, workers = train.make_views(settings), loader_workers(settings)
    order = Order(len(data), settings.batch_size, 1, world_size(), settings.seed)
    statistics = datasets.normalisation(data, settings.mean, settings.std)
    torch.manual_seed(settings.seed)
    model = train.Model(settings, data.channels)
    if settings.sync_bn:
        model = synchronise(model)
    model = model.to(device, memory_format=torch.channels_last)
    criterion = train.make_criterion(settings)
    optimizer = train.make_optimizer(settings, model, train.lr_scale(settings, order.global_batch))
    dtype = choose_precision(settings.amp, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    guard = Guard(model, optimizer)
    net = distributed.parallel(compiled(model) if settings.compile else model, device)
    embed = Embed(net, views, statistics, device, dtype, dtype, settings.compile)

    def batches(start: int, stop: int) -> Iterator:
        return training_batches(data, views, order, start, stop, workers=workers, device=device)

    def prepare(batch) -> tuple:
        return embed.pixels(batch), targets(criterion, [batch])

    def step(ready: tuple, factor: float, lap: Lap = no_lap) -> Tensor:
        x, labels = ready
        set_lr(optimizer, factor)
        guard.begin()
        z = embed.outputs(x)
        lap("forward")
        loss = criterion(*z, *labels)
        lap("loss")
        train.scaled_backward(scaler, guard, loss)
        lap("backward")
        scaler.unscale_(optimizer)
        guard.mark(loss, gradient_norm(optimizer))
        guard.record.clear()  # train.py reads it at log steps
        optimizer.step()
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        lap("optimizer")
        return loss.detach()

    return Loop(model, optimizer, batches, prepare, step, getattr(net, "no_sync", contextlib.nullcontext))


class PublishedFiles(Dataset):
    """Images by the published pipeline: (view 1, view 2)."""

    def __init__(self, paths: list[str], views: list[View]):
        self.paths, self.pipelines = paths, [list(published(view).values()) for view in views]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB")
        shown = []
        for pipeline in self.pipelines:
            view = image
            for transform in pipeline:
                view = transform(view)
            shown.append(view)
        return tuple(shown)


class PlainLars(torch.optim.Optimizer):
    """The published loop over the parameters, as the optimizer that GradScaler wants; `factor` is the schedule's."""

    def __init__(self, params: list[Tensor], settings: train.Settings):
        super().__init__(params, {})
        self.params, self.momenta, self.factor = params, [torch.zeros_like(p) for p in params], 1.0
        scale = train.lr_scale(settings, settings.batch_size)
        bias_lr = settings.lr if settings.bias_lr is None else settings.bias_lr
        self.lr, self.bias_lr, self.settings = scale * settings.lr, scale * bias_lr, settings

    def step(self, closure=None) -> None:
        momentum, decay = self.settings.momentum, self.settings.weight_decay
        rates = self.factor * self.lr, self.factor * self.bias_lr
        plain_lars(self.params, self.momenta, rates[0], momentum, decay, bias_lr=rates[1])


def published_loop(settings: train.Settings, data: Images, device: torch.device) -> Loop:
    """Same files, same initial weights, same learning rates, decay and loss; all else as published.

    On a GPU with fp16 mixed precision, as its authors train.
    """
    files = PublishedFiles(data.paths, train.make_views(settings))
    loader = DataLoader(
        files,
        settings.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=loader_workers(settings),
        pin_memory=device.type == "cuda",
    )
    torch.manual_seed(settings.seed)
    model = train.Model(settings).to(device)
    params = list(model.parameters())
    half = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=half)
    optimizer = PlainLars(params, settings)

    def batches(start: int, stop: int) -> Iterator:
        while True:  # its order is whatever the global generator says
            yield from loader

    def step(x: list[Tensor], factor: float, lap: Lap = no_lap) -> None:
        with torch.autocast(device.type, torch.float16, enabled=half):
            (z1,), (z2,) = model(x[0]), model(x[1])
            lap("forward")
            loss = settings.loss_scale * plain_barlow(z1, z2, None, lambd=settings.lambd)
            lap("loss")
        for p in params:
            p.grad = None
        scaler.scale(loss).backward()
        lap("backward")
        optimizer.factor = factor
        scaler.step(optimizer)  # which waits for the GPU, to leave out a step that is not finite
        scaler.update()
        lap("optimizer")

    return Loop(model, optimizer, batches, lambda batch: [view.to(device, non_blocking=True) for view in batch], step)


def loader_workers(settings: train.Settings) -> int:
    return auto_workers() if settings.workers is None else settings.workers
