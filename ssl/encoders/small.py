"""Encoders for small images on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock


class SmallConvNet(nn.Module):
    """Few convolutions with many channels, for images of 16 to 64 pixels: what a CPU computes fastest.

    3×3 stem at full size, then in each stage a 3×3 convolution, 2×2 max-pool, batch norm and ReLU. Stage s halves the
    side and has width · 2^(s+1) channels. The representation has the averages of all stages side by side: a linear head
    reads small patterns as well as large ones. Each average is over a cell of a grid × grid partition of the image, so
    there are grid² · width · (2^(stages+1) - 2) numbers. A map smaller than the grid gives copies: of
    16 pixels the fourth stage is one number a channel.
    """

    def __init__(self, width: int = 32, stages: int = 3, in_channels: int = 3, grid: int = 1):
        super().__init__()
        self.grid = grid
        self.stem = _stem(in_channels, width)
        blocks = []
        for _ in range(stages):
            convolution = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
            width *= 2
            blocks.append(nn.Sequential(convolution, nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.ReLU(inplace=True)))
        self.stages = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        averages = []
        for stage in self.stages:
            x = stage(x)
            averages.append(_averages(x, self.grid))
        return torch.cat(averages, 1)


class SmallResNet(nn.Module):
    """A ResNet for 32-pixel images on a CPU: 3×3 stem at full size, then one residual block a stage.

    Stage s halves the side and has width · 2^(s+1) channels; the representation is the
    global average of the last one: width · 2^stages numbers.
    """

    def __init__(self, width: int = 32, stages: int = 3, in_channels: int = 3):
        super().__init__()
        self.stem = _stem(in_channels, width)
        blocks = []
        for _ in range(stages):
            shortcut = nn.Sequential(nn.Conv2d(width, 2 * width, 1, stride=2, bias=False), nn.BatchNorm2d(2 * width))
            blocks.append(BasicBlock(width, 2 * width, stride=2, downsample=shortcut))
            width *= 2
        self.stages = nn.Sequential(*blocks)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x)).mean((2, 3))


def _averages(x: Tensor, grid: int) -> Tensor:
    """The averages of x (N, C, H, W) over the cells of a grid × grid partition, (N, C · grid²)."""
    if not (x.is_cuda and torch.are_deterministic_algorithms_enabled()):
        return F.adaptive_avg_pool2d(x, grid).flatten(1)
    # The same cells, one by one: on a GPU the kernel above has no deterministic backward pass.
    rows, columns = ([(side * i // grid, -(-side * (i + 1) // grid)) for i in range(grid)] for side in x.shape[2:])
    cells = [x[:, :, top:bottom, left:right].mean((2, 3)) for top, bottom in rows for left, right in columns]
    return torch.stack(cells, 2).flatten(1)


def _stem(channels: int, width: int) -> nn.Sequential:
    """3×3, at full size."""
    convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
