"""An encoder with its weights, built as the settings of its run say."""

import json
from pathlib import Path

from torch import nn

from ssl.checkpoints import layouts, pretrained, torch_file
from ssl.encoders import build_encoder, is_known, stem_for
from ssl.errors import UserError
from ssl.settings import config


def architecture(
    run: dict, encoder: str | None = None, encoder_kwargs: dict | None = None, stem: str | None = None
) -> tuple[str | None, dict | None, str | None]:
    """(encoder, encoder_kwargs, stem): as given, or where no encoder is given as `pretrained.run_settings` has them.

    The stem follows the weights, too, where the encoder that is given is theirs. Raises `UserError` where the run
    names a class whose import would run code of unknown origin.
    """
    own = encoder is not None
    if not own:
        encoder = _of_run(run, "encoder", str | None)
        encoder_kwargs = encoder_kwargs or _of_run(run, "encoder_kwargs", dict | None)
        require_known(encoder, encoder_kwargs)
    if stem in (None, "auto") and encoder == run.get("encoder"):
        stem = _of_run(run, "stem", str | None) or stem
    size = _of_run(run, "image_size", int | None)
    if stem == "auto" and size is not None:  # as the run resolved it, whatever size is wanted now
        stem = stem_for(size)
    return encoder, encoder_kwargs, stem


def require_known(encoder: str | None, encoder_kwargs: dict | None) -> None:
    """Raise `UserError` unless `encoder`, which a file names, is a ResNet or a class of ours or of torchvision's."""
    if not is_known(encoder or ""):
        raise UserError(
            f"encoder: the run's config.yaml names {encoder!r}, and importing that runs its code. If you "
            f"trust it, say so: --encoder {encoder} --encoder_kwargs '{json.dumps(encoder_kwargs or {})}'"
        )


def restore(
    path: str | Path,
    encoder: str | None = None,
    encoder_kwargs: dict | None = None,
    stem: str | None = None,
    image_size: int | None = None,
    init_format: pretrained.Kind | None = None,
) -> tuple[nn.Module, pretrained.Source, dict]:
    """(encoder in eval mode, where its weights came from, what it is) of a run folder or anybody's file.

    What is unset is as in the config.yaml beside the file, or as its weights' shapes say; else it is a resnet50 for
    ImageNet's images.
    What it is: the arguments of `build_encoder`. Raises `UserError` as `pretrained.load_encoder`.
    """
    path = torch_file.find_encoder(path)
    run = pretrained.run_settings(path, init_format)
    encoder, encoder_kwargs, stem = architecture(run, encoder, encoder_kwargs, stem)
    content, _ = pretrained.contents(path)
    _, weights, _ = layouts.recognise(content, path, init_format)
    about = {
        "name": encoder or "resnet50",
        "image_size": image_size or _of_run(run, "image_size", int | None) or 224,
        "stem": stem or "imagenet",
        "kwargs": encoder_kwargs,
        "channels": 3,
    }
    network, _ = build_encoder(**about)
    about["channels"] = pretrained.input_channels(network, weights)
    if about["channels"] != 3:
        network, _ = build_encoder(**about)
    return network.eval(), pretrained.load_encoder(network, path, init_format), about


def _of_run(run: dict, name: str, kind):
    return config.coerce(run.get(name), kind, f"config.yaml of the run: {name}")
