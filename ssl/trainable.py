"""What must hold of an encoder before it is trained, found out before the first step."""

import torch
from torch import Tensor, nn

from ssl.errors import UserError, one_line
from ssl.report import say


def require(encoder: nn.Module, image_size: int, channels: int = 3) -> None:
    """Freeze the parameters that no image reaches, and name them: one process and many then train the same ones.

    DDP ends with an error where a parameter gets no gradient; one process leaves it as it is. Raises `UserError` for
    an encoder that gives no representations (N, width) in training mode, such as one with auxiliary classifiers.
    Nothing else of the encoder changes, nor do random numbers.
    """
    was_training, buffers = encoder.training, [buffer.clone() for buffer in encoder.buffers()]
    unused = {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    images = torch.zeros(2, channels, image_size, image_size)
    with torch.random.fork_rng(devices=[]):
        for training in (True, False):  # a layer that one mode skips at random is used in the other
            if unused:
                h = _representations(encoder.train(training), images)
                found = torch.autograd.grad(h.sum(), list(unused.values()), allow_unused=True)
                unused = {name: unused[name] for name, gradient in zip(unused, found) if gradient is None}
    encoder.train(was_training)
    for buffer, before in zip(encoder.buffers(), buffers):
        buffer.copy_(before)
    for parameter in unused.values():
        parameter.requires_grad_(False)
    if unused:
        names = ", ".join(list(unused)[:3]) + (f" and {len(unused) - 3} more" if len(unused) > 3 else "")
        say(f"not used    {one_line(names)}: no image reaches these parameters of the encoder; they stay as they are")


def _representations(encoder: nn.Module, images: Tensor) -> Tensor:
    try:
        h = encoder(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(f"encoder: in training it cannot read {tuple(images.shape)} images: {error}") from None
    if not isinstance(h, Tensor) or h.ndim != 2:
        what = tuple(h.shape) if isinstance(h, Tensor) else f"a {type(h).__name__}"
        raise UserError(
            f"encoder: in training it gives {what}, and not representations (N, width); auxiliary outputs are "
            "switched off by encoder_kwargs, in torchvision {aux_logits: false}"
        )
    return h
