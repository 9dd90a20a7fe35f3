"""The network of an estimator, and how it and its batches come to the device."""

import torch
from torch import Tensor, nn
from torch.nn.utils import convert_conv2d_weight_memory_format

from ssl.data.loader import sent
from ssl.encoders import is_known


class Network(nn.Module):
    """Encoder and projector: views (n, ...) -> embeddings (n, D), one view at a time through batch norm.

    Raises ValueError or RuntimeError where the encoder's outputs are not representations (n, `width`).
    """

    def __init__(self, encoder: nn.Module, projector: nn.Module, width: int):
        super().__init__()
        self.encoder, self.projector, self.width = encoder, projector, width

    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.projector(self._checked(self.encoder(x))) for x in views)

    def _checked(self, h: Tensor) -> Tensor:
        if not isinstance(h, Tensor) or h.ndim < 2:
            what = f"shape {tuple(h.shape)}" if isinstance(h, Tensor) else type(h).__name__
            raise RuntimeError(f"Encoder output must be representations (N, d), got {what}")
        if h.ndim > 2:
            raise ValueError(f"Encoder output must be representations (N, d), got {tuple(h.shape)}; pool or flatten it")
        if h.shape[1] != self.width:
            raise ValueError(
                f"Encoder output dim ({h.shape[1]}) does not match proj_input_dim ({self.width}). Either set "
                "proj_input_dim correctly or use an encoder whose output dimension matches."
            )
        return h


def channels_last(encoder: nn.Module, device: torch.device) -> bool:
    """Whether images and 2-D convolutions are channels last, which is faster on a GPU.

    The encoder's class is ours, torchvision's or timm's then: the user's code may call `view`, which needs contiguous.
    """
    kind = type(encoder)
    return device.type == "cuda" and is_known(f"{kind.__module__}.{kind.__qualname__}")


def to_device(net: Network, device: torch.device) -> Network:
    """`net` on the device, its 2-D convolutions channels last where that is faster."""
    net = net.to(device)
    last = channels_last(net.encoder, device)
    return convert_conv2d_weight_memory_format(net, torch.channels_last) if last else net


def batch_to(x: Tensor, device: torch.device, encoder: nn.Module) -> Tensor:
    """`x` on the device, without a wait of the host. Images (n, C, H, W) are channels last where that is faster."""
    x = sent(x, device) if x.device.type == "cpu" else x.to(device)
    last = x.ndim == 4 and channels_last(encoder, device)
    return x.contiguous(memory_format=torch.channels_last) if last else x
