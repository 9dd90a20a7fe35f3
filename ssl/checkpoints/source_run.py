"""Read the settings, mean and std of the run that wrote a file of weights."""

import contextlib
import os
from pathlib import Path
from typing import Any

from ssl.checkpoints import run_reader, safetensors
from ssl.errors import UserError
from ssl.settings import config
from ssl.settings.kinds import coerce
from ssl.settings.shared import ImageSettings
from ssl.sources import datasets


def settings_of(path: Path, content: object = None) -> dict:
    """The run's settings: from config.yaml beside `path`, or from `content`, a checkpoint of ours; else {}.

    What an estimator saved says its encoder, unless that came built. Other projects write a config.yaml, too: it counts
    beside a file that `wrote` knows, or if it looks like a run's.
    """
    saved = path.with_name("config.yaml")
    if wrote(path):
        return config.read_yaml(saved)
    with contextlib.suppress(UserError):
        beside = config.read_yaml(saved)
        if isinstance(beside.get("encoder"), str) and {"method", "freeze"} & beside.keys():
            return beside
    own = content.get("settings") if isinstance(content, dict) and "model" in content else None
    params = content.get("params") if isinstance(content, dict) and "estimator" in content else None
    if isinstance(params, dict) and content.get("instance") is False:
        own = {"encoder": content.get("encoder"), "encoder_kwargs": params.get("encoder_kwargs")}
    return own if isinstance(own, dict) and "encoder" in own else {}


def wrote(path: Path | str) -> bool:
    """Whether `path` is a file of the weights of an encoder, and nothing else, in a run folder."""
    path = Path(path)
    return path.name in ("encoder.pt", "encoder_best.pt") and path.with_name("config.yaml").is_file()


def value(run: dict, name: str, kind: Any) -> Any:
    """Setting `name` of a run, of type `kind`; None where it is unset. Raises `UserError` for another type."""
    return coerce(run.get(name), kind | None, f"config.yaml of the run: {name}")


def has_other_images(run: dict, settings: ImageSettings) -> bool:
    """Whether a run saw other images than `settings` name; False where it does not say."""
    if "dataset" not in run:
        return False
    drawn = datasets.drawn_at(settings)
    same_size = drawn is None or run.get("image_size", drawn) == drawn
    return has_other_place(run, settings) or not same_size


def has_other_place(run: dict, settings: ImageSettings) -> bool:
    """Whether a run has another data set than `settings`, or the same from another place, or other classes of it."""

    def place(path: Any) -> Any:
        return os.path.abspath(os.path.expanduser(path)) if isinstance(path, str) else path

    same_place = all(
        place(run.get(name)) == place(getattr(settings, name)) for name in ("data_dir", "csv", "leave_out")
    )
    return not (run["dataset"] == settings.dataset and same_place)


def normalisation(path: Path, content: object) -> list[list[float] | None]:
    """[mean, std] with which the images of a file of ours were normalised; None where they are not recorded."""
    run, other = settings_of(path, content), {}
    if not run and path.suffix == ".safetensors":
        other = safetensors.normalisation(path)
    elif run and None in (run.get("mean"), run.get("std")):  # older runs wrote null for the data set's own values
        known = datasets.KNOWN.get(str(run.get("dataset")), (0, None, None))
        about = run_reader.json_object(path.with_name("about.json"), [], needed=False)
        other = {"mean": known[1], "std": known[2]} | about
    found = (other.get(name) if run.get(name) is None else run[name] for name in ("mean", "std"))
    return [coerce(values, list[float] | None, f"{path}: mean or std of its run") for values in found]
