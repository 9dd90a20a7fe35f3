"""What the run of a file of ours says: its settings, and the mean and std that the weights are used to."""

from pathlib import Path

from ssl.checkpoints import run_reader, safetensors
from ssl.settings import config
from ssl.sources import datasets


def settings_of(path: Path, content=None) -> dict:
    """The run's settings: in config.yaml beside `path`, or in what stands in it, a checkpoint of ours; else none."""
    saved = path.with_name("config.yaml")
    if saved.is_file():
        return config.read_yaml(saved)
    own = content.get("settings") if isinstance(content, dict) and "model" in content else None
    return own if isinstance(own, dict) and "encoder" in own else {}


def normalisation(path: Path, content) -> list[list[float] | None]:
    """[mean, std] that a file of ours was trained with, or None where nothing says so."""
    run, other = settings_of(path, content), {}
    if not run and path.suffix == ".safetensors":
        other = safetensors.normalisation(path)
    elif run and None in (run.get("mean"), run.get("std")):  # older runs wrote null for what the data set gave them
        known = datasets.KNOWN.get(str(run.get("dataset")), (0, None, None))
        about = run_reader.json_object(path.with_name("about.json"), [], needed=False)
        other = {"mean": known[1], "std": known[2]} | about
    found = (other.get(name) if run.get(name) is None else run[name] for name in ("mean", "std"))
    return [config.coerce(values, list[float] | None, f"{path}: mean or std of its run") for values in found]
