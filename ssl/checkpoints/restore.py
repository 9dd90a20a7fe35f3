"""Build an encoder as the settings of its run say, and load its weights."""

import json
from pathlib import Path

from torch import nn

from ssl.checkpoints import layouts, pretrained, published, torch_file
from ssl.checkpoints.source_run import value
from ssl.encoders import build_encoder, has_own_stem, is_known, stem_for
from ssl.errors import UserError
from ssl.settings.command import quoted


def architecture(
    run: dict, encoder: str | None = None, encoder_kwargs: dict | None = None, stem: str | None = None
) -> tuple[str | None, dict | None, str | None]:
    """(encoder, encoder_kwargs, stem): as given; without an encoder, those of `run` (`pretrained.run_settings`).

    An unset stem is also the run's, if the encoder is the run's. Raises `UserError` where the run names a class whose
    import would run unknown code.
    """
    if encoder is None:
        encoder = value(run, "encoder", str)
        encoder_kwargs = encoder_kwargs or value(run, "encoder_kwargs", dict)
        require_known(encoder, encoder_kwargs)
    if stem in (None, "auto") and encoder == run.get("encoder"):
        stem = value(run, "stem", str) or stem
    size = value(run, "image_size", int)
    if stem == "auto" and size is not None and not has_own_stem(encoder):  # by the size in the run, whatever it is now
        stem = stem_for(size)
    return encoder, encoder_kwargs, stem


def require_known(encoder: str | None, encoder_kwargs: dict | None) -> None:
    """Raise `UserError` unless `encoder`, named by a file, is a model of ours, of torchvision or of timm."""
    if not is_known(encoder or ""):
        kwargs = quoted(json.dumps(encoder_kwargs or {}))
        raise UserError(
            f"encoder: the run's config.yaml, or the file, names {encoder!r}, and importing that runs its code. If you "
            f"trust it, pass --encoder {quoted(str(encoder))} --encoder_kwargs {kwargs}"
        )


def restore(
    path: str | Path,
    encoder: str | None = None,
    encoder_kwargs: dict | None = None,
    stem: str | None = None,
    image_size: int | None = None,
    init_format: pretrained.Kind | None = None,
) -> tuple[nn.Module, pretrained.Source, dict]:
    """(encoder in eval mode, source of its weights, arguments of `build_encoder`) of a run folder, file or name.

    Unset values come from the config.yaml beside the file, else from the shapes of the weights; else the encoder is a
    resnet50 for ImageNet. Raises `UserError` as `pretrained.load_encoder`.
    """
    run = pretrained.run_settings(path, init_format, encoder)
    encoder, encoder_kwargs, stem = architecture(run, encoder, encoder_kwargs, stem)
    weights = {}
    if not published.is_name(path):
        path = torch_file.find_encoder(path)
        content, _ = pretrained.contents(path)
        _, weights, _ = layouts.recognise(content, path, init_format)
    about = {
        "name": encoder or "resnet50",
        "image_size": image_size or value(run, "image_size", int) or 224,
        "stem": stem or "imagenet",
        "kwargs": encoder_kwargs,
        "channels": 3,
    }
    network, _ = build_encoder(**about)
    about["channels"] = pretrained.input_channels(network, weights)
    if about["channels"] != 3:
        network, _ = build_encoder(**about)
    return network.eval(), pretrained.load_encoder(network, path, init_format, about["name"]), about
