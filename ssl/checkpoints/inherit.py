"""Fill settings that the user left unset from the run whose encoder is used."""

import dataclasses
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ssl.checkpoints import pretrained, published, restore
from ssl.checkpoints.source_run import value
from ssl.console import say
from ssl.data.cores import auto_workers
from ssl.data.images import Images
from ssl.distributed import broadcast_object
from ssl.errors import UserError
from ssl.settings import config
from ssl.settings.shared import DATA, ImageSettings
from ssl.sources import datasets
from ssl.sources.datasets import EIGHT_BITS
from ssl.sources.recipe import continued


def fill(settings: Any, run: dict) -> None:
    """Fill the unset seed, value range, data set and encoder of a script's `settings` from those of `run`.

    Nothing of the run's data set is taken where the user names a data set; the same holds for the encoder. A value
    range that does not fit other files is refused where these are read. Raises `UserError` as `restore.architecture`.
    """
    own_data = settings.dataset is not None or settings.data_dir is not None
    _take(settings, run, ["seed"] if own_data else ["seed", *DATA])
    if settings.dataset not in EIGHT_BITS:
        _take(settings, run, ["value_range"])
        if settings.image_size is None:  # images that are reduced for the run's views are too small for larger ones
            _take(settings, run, ["short_side"])
    settings.encoder, settings.encoder_kwargs, settings.stem = restore.architecture(
        run, settings.encoder, settings.encoder_kwargs, settings.stem
    )
    if settings.dataset in datasets.MADE and not own_data:
        _take(settings, run, ["image_size"])  # the size at which the run drew them


def defaults(settings: Any, doing: str) -> None:
    """Fill what no run has filled. `doing`: what is done with the images, "using" or "judging on"."""
    if settings.dataset is None and settings.data_dir is None:
        say(f"*** No data set is named, here or by the run: {doing} the EMBEDDED demonstration set `shapes`. ***")
    datasets.resolve(settings)
    settings.encoder = settings.encoder or "resnet50"
    settings.stem, settings.seed = settings.stem or "auto", settings.seed or 0
    settings.workers = auto_workers() if settings.workers is None else settings.workers


def _take(settings: Any, run: dict, names: Iterable[str]) -> None:
    """Set those settings of `names` that are unset as `run` has them."""
    kinds = {field.name: field.type for field in dataclasses.fields(settings)}
    for name in names:
        if getattr(settings, name) is None:
            setattr(settings, name, value(run, name, kinds[name]))


def take_settings(settings: Any, origin: dict[str, str]) -> None:
    """`fill` settings, and the image size, from the run of --init, if there is one, and note that in `origin`.

    For finetune.py, where --method baseline alone means --init imagenet.
    """
    if settings.init is None and settings.method == "baseline":
        settings.init = "imagenet"
    if not settings.init:
        return
    run = pretrained.run_settings(settings.init, settings.method, settings.encoder)
    unset = [name for name, value in vars(settings).items() if value is None]
    fill(settings, run)
    _take(settings, run, ["image_size"])
    filled = [name for name in unset if name in run and getattr(settings, name) is not None]
    config.lay_over(origin, filled, "the run of --init")


def normalisation(settings: ImageSettings, source: pretrained.Source | None, data: Images) -> list[str]:
    """Fill `mean` and `std` of `settings`, and print where they come from: the user, else `source`, else `data`.

    Returns the names of those that `data` gave (`datasets.normalisation`). Raises `UserError` unless there is one value
    for each channel.
    """
    why, of_data = {}, []
    for name in ("mean", "std"):
        if getattr(settings, name) is not None:
            why[name] = "set"
        elif getattr(source, name, None) is not None:
            setattr(settings, name, getattr(source, name))
            why[name] = "as the weights were trained with"
        else:
            of_data.append(name)
            why[name] = "measured" if datasets.KNOWN[data.name][1] is None else f"of {data.name}"
    settings.mean, settings.std = datasets.normalisation(data, settings.mean, settings.std)
    mean, std = (" ".join(f"{value:.3g}" for value in values) for values in (settings.mean, settings.std))
    first = f" ({why['mean']})" if why["mean"] != why["std"] else ""
    say(f"normalise   mean {mean}{first}, std {std} ({why['std']})")
    return of_data


def take_architecture(settings: Any, origin: dict[str, str]) -> None:
    """Take the encoder's architecture from the run of --init, where command line and --config do not set it."""
    mine = ("command line", settings.config, f"{settings.config} row {settings.row}")
    names = ("encoder", "encoder_kwargs", "stem")
    given = {name: getattr(settings, name) if origin[name] in mine else None for name in names}
    given["encoder"] = None if given["encoder"] == "auto" else given["encoder"]
    called = None if settings.encoder == "auto" else settings.encoder
    run = pretrained.run_settings(settings.init, settings.init_format, called)
    if "encoder" in run:
        settings.encoder, kwargs, stem = restore.architecture(run, **given)
        settings.stem = stem or settings.stem
        taken = ["stem"] if given["stem"] is None else []
        if given["encoder"] is None:
            settings.encoder_kwargs = kwargs or {}
            taken += [name for name in ("encoder", "encoder_kwargs") if given[name] is None]
        config.lay_over(origin, taken, "the run of --init")


def not_needed(settings: Any, folder: Path) -> pretrained.Source | None:
    """Where published weights are from that need not be there: the run in `folder` continues, and began with them.

    Its checkpoint replaces them. None where --init names others, or the run begins. All ranks call it.
    """
    known, run = published.find(settings.init, settings.encoder), continued(folder, settings.resume)
    began = config.read_yaml(run / "config.yaml") if run and (run / "config.yaml").is_file() else {}
    replaced = known and broadcast_object(began.get("init") == settings.init)
    return replace(pretrained.source_of(known), read=False) if replaced else None


def require_weights(source: pretrained.Source | None, state: dict | None) -> None:
    """Raise `UserError` where weights were `not_needed`, but no checkpoint, `state`, is there to replace them."""
    if source and not source.read and state is None:
        raise UserError(
            f"init: {source.path} was not read, as a checkpoint of the run should replace these weights, but none was "
            "found; choose another --output_dir"
        )


def take_weights(settings: Any, encoder: nn.Module, folder: Path) -> pretrained.Source:
    """Put the weights that --init names into `encoder`; return where they are from. All ranks call it.

    `folder` is the run's: see `not_needed`.
    """
    if source := not_needed(settings, folder):
        return source
    source = pretrained.load_encoder(encoder, settings.init, settings.init_format, settings.encoder)
    say(f"init        encoder weights of {source}")
    return source
