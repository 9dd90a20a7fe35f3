"""Check an encoder before its first step: freeze parameters without a gradient, refuse wrong outputs."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ssl.console import say, some_of
from ssl.errors import UserError, one_line
from ssl.training.forward import unchanged


def require(encoder: nn.Module, image_size: int, channels: int = 3) -> None:
    """Freeze the parameters that no image reaches, and print their names.

    One process leaves a parameter without a gradient as it is, where DDP ends with an error: now both train the same
    parameters. Raises `UserError` for an encoder that returns no representations (N, width) in training mode, such as
    one with auxiliary classifiers. Nothing else of the encoder changes, nor do torch's random numbers.
    """
    images = torch.zeros(2, channels, image_size, image_size)
    freeze_unused(encoder, lambda: _representations(encoder, images).sum())


def freeze_unused(model: nn.Module, result: Callable[[], Tensor]) -> None:
    """Freeze the parameters of `model` on which the scalar `result()` does not depend, and print their names.

    `result()` runs `model`. It is called in training mode and, if some parameter was not used, in evaluation mode.
    Nothing else of `model` changes, nor do torch's random numbers.
    """
    was_training = model.training
    unused = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with unchanged(model):
        for training in (True, False):  # training mode may skip a layer at random
            if unused:
                model.train(training)
                found = torch.autograd.grad(result(), list(unused.values()), allow_unused=True)
                unused = {name: unused[name] for name, gradient in zip(unused, found) if gradient is None}
    model.train(was_training)
    for parameter in unused.values():
        parameter.requires_grad_(False)
    if unused:
        say(f"not used    {one_line(some_of(list(unused)))}: no sample reaches these parameters; they stay as they are")


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
