"""Pre-activation ResNets (He et al. 2016, "Identity mappings") as they are used with Keras.

The representation is the global average of the last map.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ssl.wide import initialise


class Bottleneck(nn.Module):
    """shortcut + (norm, ReLU, 1×1 to `width`, norm, ReLU, 3×3, norm, ReLU, 1×1 to `fan_out`).

    The 3×3 has the stride. The shortcut reads the block's input or, if `projected`, the first ReLU's output.
    `bias`: the last convolution has one.
    """

    def __init__(
        self,
        fan_in: int,
        width: int,
        fan_out: int,
        stride: int,
        shortcut: nn.Module,
        projected: bool = False,
        bias: bool = False,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(fan_in, eps)
        self.conv1 = nn.Conv2d(fan_in, width, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width, eps)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(width, eps)
        self.conv3 = nn.Conv2d(width, fan_out, 1, bias=bias)
        self.shortcut, self.projected = shortcut, projected

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        y = self.conv1(active)
        y = self.conv2(F.relu(self.norm2(y)))
        y = self.conv3(F.relu(self.norm3(y)))
        return y + self.shortcut(active if self.projected else x)


class ResNet20V2(nn.Module):
    """The ResNet-20 v2 of GoogleCloudPlatform/keras-idiomatic-programmer: (N, C, H, W) -> (N, 256).

    Its layers are those of zoo/resnet/resnet_cifar10_v2.py with n = 2, without the last norm and ReLU. Batch norm adds
    1e-5 to variances, as PyTorch does; there Keras adds 1e-3. Keras's own CIFAR example is another network.

    A 3×3 stem at full size, then three stages of two bottlenecks, 64, 128 and 256 channels wide at
    the end, the second and third at half the side. 568,368 parameters as Keras counts them, which
    includes running statistics. The histopathology study of Barlow Twins calls it "CIFAR ResNet18".
    """

    width = 256

    def __init__(self, in_channels: int = 3):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        )
        blocks, fan_in = [], 16
        for width, fan_out, stride in ((16, 64, 1), (64, 128, 2), (128, 256, 2)):
            shortcut = nn.Conv2d(fan_in, fan_out, 1, stride, bias=False)
            blocks.append(Bottleneck(fan_in, width, fan_out, stride, shortcut))
            blocks.append(Bottleneck(fan_out, width, fan_out, 1, nn.Identity()))
            fan_in = fan_out
        self.stages = nn.Sequential(*blocks)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x)).mean((2, 3))


class ResNet50V2(nn.Module):
    """keras.applications.ResNet50V2 without its classifier: (N, C, H, W) -> (N, 2048).

    It differs from torchvision's ResNet-50. The stem has a bias, and after it only max-pooling with a border of zeros.
    The last block of a stage has the stride, and its shortcut takes every other pixel. The shortcut of the first block
    is a convolution of the activation. Norm and ReLU are at the end. 23,564,800 parameters as Keras counts them, which
    includes running statistics.
    """

    width = 2048

    def __init__(self, in_channels: int = 3):
        super().__init__()
        eps = 1.001e-5
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 64, 7, 2, padding=3), nn.ZeroPad2d(1), nn.MaxPool2d(3, 2))
        blocks, fan_in = [], 64
        for width, count, last_stride in ((64, 3, 2), (128, 4, 2), (256, 6, 2), (512, 3, 1)):
            fan_out = 4 * width
            for number in range(count):
                stride = last_stride if number == count - 1 else 1
                shortcut = nn.MaxPool2d(1, stride) if stride > 1 else nn.Identity()
                if number == 0:
                    shortcut = nn.Conv2d(fan_in, fan_out, 1)
                blocks.append(Bottleneck(fan_in, width, fan_out, stride, shortcut, number == 0, bias=True, eps=eps))
                fan_in = fan_out
        self.stages = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(fan_in, eps)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.stages(self.stem(x)))).mean((2, 3))
