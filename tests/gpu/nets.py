"""Encoders that a GPU could object to. Imported by name: `--encoder nets.Waiting`, beside pretended.py."""

import torch
from torch import Tensor, nn


class WithoutBuffers(nn.Module):
    """No batch norm, as in a ViT or ConvNeXt: the model has no buffer."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.GELU(), nn.Dropout(0.1), nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))


class Waiting(WithoutBuffers):
    """The host looks at a number of every batch."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum().item() > 1e9:
            raise ValueError("too bright")
        return super().forward(x)


class Sending(WithoutBuffers):
    """A number is copied to the device in every pass."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * torch.tensor([1.0], device=x.device))


class Mixing(WithoutBuffers):
    """A tensor that was forgotten on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.ones(1)


class Hungry(WithoutBuffers):
    """It has room for eight images."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(x)
