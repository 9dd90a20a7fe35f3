"""The recipe in configs/ for a method and a data set, and for images of your own also for the device."""

from pathlib import Path

import torch

from ssl import files
from ssl.data.resident import SMALL
from ssl.sources import datasets

ROOT = Path(__file__).resolve().parents[2]
CONFIGS, RUNS = ROOT / "configs", ROOT / "runs"
OWN_IMAGES = ("folder", "array")


def find_recipe(asked: dict) -> Path | None:
    """The recipe of the method that is asked for, on that data set or a similar one; None where there is none.

    Images of your own have one for a CPU, unless the views are small. A run that is continued keeps the recipe that it
    began with, on any device.
    """
    method = asked.get("method", "barlow_twins")
    name = datasets.resolve_name(asked.get("dataset"), asked.get("data_dir"))
    size = asked.get("image_size", datasets.KNOWN[name][0])
    small = size != "auto" and size <= SMALL
    similar = "cifar10" if small and not name.startswith("ImageNet") else "imagenet"
    own = "imagenet100" if name in ("ImageNet50", "ImageNet200") else name.lower()
    own = similar if name == "folder" and similar == "cifar10" else own
    paths = [CONFIGS / f"{method}_{name}.yaml" for name in (own, similar)]
    if name in OWN_IMAGES and not small:
        for_cpu = CONFIGS / f"{method}_folder_cpu.yaml"
        begun = _begun_with(Path(asked.get("output_dir") or RUNS / f"{method}_{name}"))
        if for_cpu.name in begun or (not begun & {path.name for path in paths} and _on_cpu(asked)):
            paths.insert(0, for_cpu)
    return next((path for path in paths if path.exists()), None)


def _on_cpu(asked: dict) -> bool:
    return asked.get("device", "auto") == "cpu" or (asked.get("device") != "cuda" and not torch.cuda.is_available())


def _begun_with(folder: Path) -> set[str]:
    """The names of the files from which the run in `folder` has its settings; none where it has no checkpoint yet."""
    if not any(folder.glob("checkpoint*.pt")):
        return set()
    origin = files.json_object(folder / "about.json").get("origin")
    return {Path(str(where)).name for where in origin.values()} if isinstance(origin, dict) else set()
