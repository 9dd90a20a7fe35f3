"""The image classifiers of torchvision and timm, without their classifier.

All weights but the classifier's keep their names.
"""

import functools
from collections.abc import Callable
from types import ModuleType

import torchvision
from torch import nn

from ssl.errors import UserError, nearest


@functools.cache
def torchvision_names() -> tuple[str, ...]:
    """torchvision's image classifiers: 'resnet50', 'vit_b_16', 'convnext_tiny', ..."""
    return tuple(torchvision.models.list_models(torchvision.models))


def short_name(name: str) -> str:
    """'vit_b_16' for 'torchvision.models.vit_b_16', 'timm/x' for 'timm.models.x'; other names as they are."""
    package, _, last = name.rpartition(".")
    if package == "torchvision.models" and last in torchvision_names():
        return last
    if package == "timm.models" and _timm() and _timm().is_model(last):
        return f"timm/{last}"
    return name


def nearest_name(name: str) -> str:
    """The end of an error about an unknown `name`: the model that may be meant."""
    if _timm() and _timm().is_model(name):
        return f"; did you mean 'timm/{name}'?"
    return nearest(name, [*torchvision_names(), "wide_resnet_28_10"])


def of_torchvision(name: str, image_size: int, kwargs: dict, channels: int) -> nn.Module:
    """torchvision's `name`, built with `kwargs`, for images of so many pixels and channels."""

    def make(**given) -> nn.Module:
        return torchvision.models.get_model(name, weights=None, **given)

    if name.startswith("mnasnet"):  # its load_state_dict wants a version number that plain files do not have
        raise UserError(f"encoder: weights of torchvision's {name} cannot be read again; choose mobilenet_v3_small")
    network = built(name, make, kwargs, size_argument(name, image_size) | kwargs)
    return with_channels(without_classifier(network, name), channels)


def size_argument(name: str, image_size: int) -> dict:
    """What torchvision's `name` must be told of the image size: {} where it reads any."""
    if name.startswith("vit_"):
        _require_whole_patches(name, image_size, int(name.rpartition("_")[2]))
        return {"image_size": image_size}
    return {"input_size": (image_size, image_size)} if name.startswith("maxvit") else {}


def of_timm(name: str, image_size: int, kwargs: dict, channels: int) -> nn.Module:
    """timm's `name`, built with `kwargs`, for images of so many pixels and channels."""
    timm = _timm()
    if timm is None:
        raise UserError(f"encoder: timm/{name} is a model of timm, which is not installed: pip install timm")
    try:
        about = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise UserError(f"encoder: timm has no model {name!r} ({error}){nearest(name, timm.list_models())}") from None

    def make(**given) -> nn.Module:
        return timm.create_model(name, pretrained=False, checkpoint_path=None, num_classes=0, **given)

    told = {"drop_rate": 0.0}  # of dropout before the classifier, as in `without_classifier`
    told |= {"img_size": image_size} if about.fixed_input_size else {}
    told |= {"in_chans": channels} if channels != 3 else {}
    encoder = built(f"timm/{name}", make, kwargs, told | kwargs)
    patch = getattr(getattr(encoder, "patch_embed", None), "patch_size", None)
    if patch and "img_size" in told:
        _require_whole_patches(f"timm/{name}", image_size, patch if isinstance(patch, int) else patch[0])
    return encoder


def built(name: str, make: Callable, kwargs: dict, arguments: dict) -> nn.Module:
    """make(**arguments), of which the user gave `kwargs`. Raises `UserError` where it fails."""
    try:
        return make(**arguments)
    except Exception as error:  # also sizes that are negative, or no memory has room for
        raise UserError(
            f"encoder: {name} does not take encoder_kwargs {kwargs} ({type(error).__name__}: {error})"
        ) from error


def without_classifier(network: nn.Module, name: str) -> nn.Module:
    """`network` with `nn.Identity` in place of its last layer, which must be linear, and of dropout before it."""
    if getattr(network, "aux_logits", False):  # googlenet, inception_v3
        raise UserError(
            f"encoder: {name} has further classifiers; switch them off with --encoder_kwargs '{{aux_logits: false}}', "
            "or choose another encoder"
        )
    *before, (last, layer) = ((n, m) for n, m in network.named_modules() if not any(m.children()))
    if not isinstance(layer, nn.Linear):
        raise UserError(
            f"encoder: {name} ends in {type(layer).__name__}, not in a linear classifier that could be taken off; "
            "choose another encoder"
        )
    network.set_submodule(last, nn.Identity())
    while isinstance(before[-1][1], nn.Dropout):
        network.set_submodule(before.pop()[0], nn.Identity())
    return network


def with_channels(network: nn.Module, channels: int) -> nn.Module:
    """`network` with a new first convolution for so many channels, if it has another number."""
    name, first = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    if first.in_channels == channels:
        return network
    shape = first.out_channels, first.kernel_size, first.stride, first.padding
    convolution = nn.Conv2d(channels, *shape, bias=first.bias is not None)
    # Its output is as large as the old one's, whatever initialisation the family has.
    nn.init.normal_(convolution.weight, std=first.weight.std().item() * (first.in_channels / channels) ** 0.5)
    if first.bias is not None:
        nn.init.zeros_(convolution.bias)
    network.set_submodule(name, convolution)
    return network


def _timm() -> ModuleType | None:
    try:
        import timm
    except ImportError:
        return None
    return timm


def _require_whole_patches(name: str, image_size: int, patch: int) -> None:
    if image_size % patch:
        smaller = image_size // patch * patch
        fitting = [size for size in (smaller, smaller + patch) if size]
        raise UserError(
            f"image_size: {name} cuts images into patches of {patch} pixels, and {image_size} is no multiple of "
            f"{patch}; pass --image_size {' or '.join(map(str, fitting))}"
        )
