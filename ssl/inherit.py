"""Settings that a script takes from the run whose encoder it is given."""

import dataclasses
import json
from collections.abc import Sequence

from ssl import checkpoint, config
from ssl.data import datasets
from ssl.encoders import is_known
from ssl.errors import UserError

ABOUT_ENCODER = ("encoder", "encoder_kwargs", "stem")


def run_settings(path: str | None) -> dict:
    """Settings of the run that `path`, a run folder or a file in one, belongs to; none for a file that stands alone."""
    if path is None:
        return {}
    saved = checkpoint.find_encoder(path).with_name("config.yaml")
    return config.read_yaml(saved) if saved.is_file() else {}


def fill(settings, run: dict, about_data: Sequence[str]) -> None:
    """Fill what is unset of `settings` from those of `run`; who names a data set or an encoder wants no other part
    of it.

    A class that the run names by its dotted path is not imported unless the user names it, too: `UserError`.
    """
    kinds = {f.name: f.type for f in dataclasses.fields(settings)}

    def of_run(name: str):
        return config.coerce(run.get(name), kinds[name], f"config.yaml of the run: {name}")

    own_data = settings.dataset is not None or settings.data_dir is not None
    own_encoder = settings.encoder is not None
    for names, own in ((about_data, own_data), (ABOUT_ENCODER, own_encoder)):
        for name in names:
            if getattr(settings, name) is None and not own:
                setattr(settings, name, of_run(name))
    if not own_encoder:
        require_known(settings)
    size = of_run("image_size")
    if settings.stem == "auto" and size is not None:  # as the run resolved it, whatever size is judged
        settings.stem = "small" if size <= datasets.SMALL else "imagenet"
    if settings.dataset == "shapes" and settings.image_size is None and not own_data:
        settings.image_size = size  # drawn at the size the run drew them


def require_known(settings) -> None:
    """Raise `UserError` unless `settings.encoder`, which a file has named, is one of ours or of torchvision's."""
    if not is_known(settings.encoder or ""):
        kwargs = json.dumps(settings.encoder_kwargs or {})
        raise UserError(
            f"encoder: the run's config.yaml names {settings.encoder!r}, and importing that runs its code. If you "
            f"trust it, say so: --encoder {settings.encoder} --encoder_kwargs '{kwargs}'"
        )
