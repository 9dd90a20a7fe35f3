"""Two training loops for step.py: what train.py does, and the plain published loop, written from the paper."""

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
from ssl.augment import View
from ssl.data import datasets
from ssl.data.images import Images
from ssl.data.loader import auto_workers, finish, training_batches
from ssl.data.order import Order
from ssl.guard import Guard, gradient_norm
from ssl.precision import choose_precision
from ssl.schedules import set_lr


@dataclass
class Loop:
    """`batches(start, stop)` of those steps; `prepare` makes a step's views of a batch; `step(views, factor)` learns.

    `factor` is what the schedule multiplies the learning rates by.
    """

    model: nn.Module
    batches: Callable[[int, int], Iterator]
    prepare: Callable
    step: Callable[[list[Tensor], float], None]


def our_loop(settings: train.Settings, data: Images, device: torch.device) -> Loop:
    views, workers = train.make_views(settings), loader_workers(settings)
    order = Order(len(data), settings.batch_size, 1, 1, settings.seed)
    statistics = datasets.normalisation(data, settings.mean, settings.std)
    mean, std = (torch.tensor(values, device=device) for values in statistics)
    torch.manual_seed(settings.seed)
    model = train.Model(settings, data.channels).to(device, memory_format=torch.channels_last)
    runner = torch.compile(model) if settings.compile else model
    criterion = train.make_criterion(settings)
    optimizer = train.make_optimizer(settings, model, train.lr_scale(settings, order.global_batch))
    dtype = choose_precision(settings.amp, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    guard = Guard(model, optimizer)

    def batches(start: int, stop: int) -> Iterator:
        return training_batches(data, views, order, start, stop, workers, device)

    def step(x: list[Tensor], factor: float) -> None:
        set_lr(optimizer, factor)
        guard.begin()
        with torch.autocast(device.type, dtype or torch.float32, enabled=dtype is not None):
            z = runner(*x)
        loss = criterion(*z)
        scaler.scale(loss * guard.scale(loss)).backward()
        scaler.unscale_(optimizer)
        guard.judge(loss, gradient_norm(optimizer))
        optimizer.step()
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return Loop(model, batches, lambda batch: finish(batch, views, mean, std), step)


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


def published_loop(settings: train.Settings, data: Images, device: torch.device) -> Loop:
    """Same files, same initial weights, same learning rates, decay and loss; all else as published."""
    files = PublishedFiles(data.paths, train.make_views(settings))
    loader = DataLoader(
        files, settings.batch_size, shuffle=True, drop_last=True,
        num_workers=loader_workers(settings), pin_memory=device.type == "cuda",
    )  # fmt: skip
    torch.manual_seed(settings.seed)
    model = train.Model(settings).to(device)
    params = list(model.parameters())
    momenta = [torch.zeros_like(p) for p in params]
    scale = train.lr_scale(settings, settings.batch_size)
    lr = scale * settings.lr
    bias_lr = lr if settings.bias_lr is None else scale * settings.bias_lr

    def batches(start: int, stop: int) -> Iterator:
        while True:  # its order is whatever the global generator says
            yield from loader

    def step(x: list[Tensor], factor: float) -> None:
        (z1,), (z2,) = model(x[0]), model(x[1])
        for p in params:
            p.grad = None
        (settings.loss_scale * plain_barlow(z1, z2, None, settings.lambd)).backward()
        plain_lars(params, momenta, factor * lr, settings.momentum, settings.weight_decay, bias_lr=factor * bias_lr)

    return Loop(model, batches, lambda batch: [view.to(device, non_blocking=True) for view in batch], step)


def loader_workers(settings: train.Settings) -> int:
    return auto_workers() if settings.workers is None else settings.workers
