"""Encoders: images (N, C, H, W) -> representations (N, width)."""

import functools
import importlib
import inspect
import re

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from ssl.encoders.library import (
    built,
    nearest_name,
    of_timm,
    of_torchvision,
    short_name,
    torchvision_names,
    with_channels,
    without_classifier,
)
from ssl.encoders.small import SmallConvNet, SmallResNet
from ssl.errors import UserError
from ssl.wide import WideResNet

__all__ = [
    "SMALL_IMAGE",
    "SmallConvNet",
    "SmallResNet",
    "build_encoder",
    "has_own_stem",
    "is_known",
    "reads",
    "representation_width",
    "resnet_names",
    "resnet_of",
    "short_name",
    "stem_for",
]

SMALL_IMAGE = 64  # pixels: up to here the stem does not shrink an image


def resnet_names() -> list[str]:
    return [name for name in torchvision_names() if "resnet" in name or "resnext" in name]


def is_known(name: str) -> bool:
    """Whether building the encoder `name` imports nothing but our encoders, torchvision's and timm's models."""
    ours = ("ssl.encoders.", "ssl.preact.", "ssl.wide.")
    return "." not in name or name.startswith((*ours, "torchvision.models.", "timm.models.", "timm/"))


def has_own_stem(name: str | None) -> bool:
    """Whether the encoder is a model of torchvision or timm that `stem` says nothing about."""
    plain = short_name(name or "")
    return plain.startswith("timm/") or plain in set(torchvision_names()) - set(resnet_names())


def stem_for(image_size: int) -> str:
    """What stem 'auto' is for images of so many pixels."""
    return "small" if image_size <= SMALL_IMAGE else "imagenet"


def build_encoder(
    name: str, image_size: int, stem: str = "auto", kwargs: dict | None = None, channels: int = 3
) -> tuple[nn.Module, int]:
    """The encoder called `name` for images of so many pixels and channels, freshly initialised, and its width.

    `name` is an image classifier of torchvision ('resnet50', 'vit_b_16'), 'timm/NAME' of a model of timm,
    'wide_resnet_28_10', or the dotted path of an `nn.Module` class ('ssl.preact.ResNet50V2'). It is built with
    `kwargs`. The classifier of torchvision's and timm's models is taken off. All other weights keep their names.

    `stem` is for ResNets: 'imagenet' (7×7, stride 2, max-pool), 'small' (3×3, stride 1, no max-pool) or 'auto': small
    for images of at most 64 pixels. Others have their own stem. torchvision's ResNets start every residual branch
    at zero. A class that has an argument `in_channels` or `in_chans` is told of channels other than 3.

    Raises `UserError` for a name that is not there, cannot read the images or does not give (N, width).
    """
    kwargs, plain = kwargs or {}, short_name(name)
    small = (stem_for(image_size) if stem == "auto" else stem) == "small"
    if stem == "small" and has_own_stem(name):
        raise UserError(
            f"stem: small is for ResNets, and {name} has its own stem; leave --stem out, or pass --stem auto"
        )
    if plain.startswith("timm/"):
        encoder = of_timm(plain.removeprefix("timm/"), image_size, kwargs, channels)
    elif "." in plain:
        encoder = _from_path(plain, image_size, kwargs, channels)
    elif plain == "wide_resnet_28_10":
        its_stem = {"in_channels": channels, "stem": "small" if small else "imagenet"}
        encoder = built(plain, WideResNet, kwargs, its_stem | kwargs)
    elif plain in resnet_names():
        encoder = _resnet(plain, small, kwargs, channels)
    elif plain in torchvision_names():
        encoder = of_torchvision(plain, image_size, kwargs, channels)
    else:
        raise UserError(
            f"encoder: {name!r} is no image classifier of torchvision; expected is one of those (resnet50, vit_b_16, "
            "convnext_tiny, ...), wide_resnet_28_10, timm/NAME, or the dotted path of an nn.Module class"
            f"{nearest_name(name)}"
        )
    return encoder, representation_width(encoder, image_size, channels)


def resnet_of(weights: dict[str, Tensor]) -> tuple[str, str]:
    """('resnet18', 'small') for weights, under torchvision's names, that have a ResNet's shapes, or '' for each."""
    conv1 = weights.get("conv1.weight")
    kernel = conv1.shape[-1] if conv1 is not None and conv1.ndim == 4 else None
    name = _bodies().get(_body(weights), "")
    return name, {7: "imagenet", 3: "small"}.get(kernel, "") if name else ""


def _body(weights: dict[str, Tensor]) -> frozenset:
    return frozenset((name, w.shape) for name, w in weights.items() if re.match(r"layer\d.*weight$", name))


@functools.cache
def _bodies() -> dict[frozenset, str]:
    """The shapes of all torchvision ResNets -> their names."""
    with torch.device("meta"):
        return {_body(torchvision.models.get_model(name, weights=None).state_dict()): name for name in resnet_names()}


def _resnet(name: str, small: bool, kwargs: dict, channels: int) -> ResNet:
    def make(**given) -> ResNet:
        return torchvision.models.get_model(name, weights=None, zero_init_residual=True, **given)

    encoder = built(name, make, kwargs, kwargs)
    encoder.fc = nn.Identity()
    if small or channels != 3:
        shape = dict(kernel_size=3, padding=1) if small else dict(kernel_size=7, stride=2, padding=3)
        encoder.conv1 = nn.Conv2d(channels, 64, **shape, bias=False)
        nn.init.kaiming_normal_(encoder.conv1.weight, mode="fan_out", nonlinearity="relu")
    if small:
        encoder.maxpool = nn.Identity()
    return encoder


def _from_path(path: str, image_size: int, kwargs: dict, channels: int) -> nn.Module:
    module_name, _, class_name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"encoder: cannot import {path!r} ({error})") from None
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        raise UserError(f"encoder: {path!r} is not an nn.Module class")
    takes = set(inspect.signature(cls).parameters)
    told = dict.fromkeys({"in_channels", "in_chans"} & takes, channels) if channels != 3 else {}
    library = path.partition(".models.")[0]
    if library in ("torchvision", "timm"):
        told |= dict.fromkeys({"image_size", "img_size"} & takes, image_size)
    as_it_is = "num_classes" in kwargs or "num_classes" not in takes
    if library == "timm" and not as_it_is:
        told |= {"num_classes": 0} | dict.fromkeys({"drop_rate"} & takes, 0.0)
    encoder = built(path, cls, kwargs, told | kwargs)
    if library == "torchvision" and not as_it_is:
        encoder = with_channels(without_classifier(encoder, path), channels)
    return encoder


@torch.no_grad()
def representation_width(encoder: nn.Module, image_size: int, channels: int = 3) -> int:
    """Width of the representation, read off one forward pass; no state of the encoder changes."""
    was_training = encoder.training
    device = next((parameter.device for parameter in encoder.parameters()), None)
    encoder.eval()
    try:
        h = encoder(torch.zeros(1, channels, image_size, image_size, device=device))
    except (RuntimeError, ValueError, AssertionError) as error:
        hint = "" if channels == 3 else f"; if it can be made for {channels} channels, say so in encoder_kwargs"
        raise UserError(
            f"encoder: it cannot read a (1, {channels}, {image_size}, {image_size}) image{hint}: {error}"
        ) from None
    finally:
        encoder.train(was_training)
    if not isinstance(h, Tensor) or h.ndim != 2:
        shape = tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__
        raise UserError(f"encoder: it must give representations (N, width), not {shape}")
    return h.shape[1]


def reads(encoder: nn.Module, image_size: int, channels: int = 3) -> bool:
    """Whether the encoder takes images of this size; some have one size that they are made for."""
    try:
        representation_width(encoder, image_size, channels)
    except UserError:
        return False
    return True
