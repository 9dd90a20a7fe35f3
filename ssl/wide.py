"""Wide ResNets (Zagoruyko and Komodakis 2016): few layers, many channels, dropout between the convolutions."""

import torch.nn.functional as F
from torch import Tensor, nn

from ssl.errors import UserError


def initialise(encoder: nn.Module) -> None:
    """As torchvision initialises its ResNets."""
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class WideBlock(nn.Module):
    """shortcut + (norm, ReLU, 3×3 with the stride, norm, ReLU, dropout, 3×3).

    Where the width or the side changes, the shortcut is a 1×1 convolution of the first ReLU's output.
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int, dropout: float):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(fan_in)
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(fan_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        same = fan_in == fan_out and stride == 1
        self.shortcut = None if same else nn.Conv2d(fan_in, fan_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        y = self.conv1(active)
        y = self.conv2(self.dropout(F.relu(self.norm2(y))))
        return y + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """WRN-`depth`-`widen_factor`: (N, C, H, W) -> (N, 64 · widen_factor). 28 and 10: 640 numbers, 36.5 M parameters.

    A stem of 16 channels, three stages of (depth - 4) / 6 blocks, 16, 32 and 64 times `widen_factor`
    channels wide, the second and third at half the side; norm, ReLU, global average. `stem` 'small' is the
    paper's 3×3 at full size; 'imagenet' is a ResNet's 7×7 with stride 2 and max-pooling, for large images.
    """

    def __init__(
        self,
        depth: int = 28,
        widen_factor: int = 10,
        dropout: float = 0.3,
        in_channels: int = 3,
        stem: str = "small",
    ):
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise UserError(f"encoder: a wide ResNet's depth is 6 n + 4 (10, 16, 22, 28, 34, 40), not {depth}")
        small = [nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)]
        large = [nn.Conv2d(in_channels, 16, 7, 2, padding=3, bias=False), nn.MaxPool2d(3, 2, padding=1)]
        self.stem = nn.Sequential(*{"small": small, "imagenet": large}[stem])
        blocks, fan_in = [], 16
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            for number in range((depth - 4) // 6):
                fan_out = width * widen_factor
                blocks.append(WideBlock(fan_in, fan_out, stride if number == 0 else 1, dropout))
                fan_in = fan_out
        self.stages = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(fan_in)
        self.width = fan_in
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.stages(self.stem(x)))).mean((2, 3))
