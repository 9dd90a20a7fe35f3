"""The recipe in configs/ for a method and a data set, and for images of your own also for the device."""

from pathlib import Path

import torch

from ssl import files
from ssl.data.resident import SMALL
from ssl.sources import datasets

ROOT = Path(__file__).resolve().parents[2]
CONFIGS, RUNS = ROOT / "configs", ROOT / "runs"
OWN_IMAGES = ("folder", "array")
FOR_CPU = "_folder_cpu.yaml"  # how the names of the recipes for a CPU end


def find_recipe(asked: dict) -> Path | None:
    """The recipe of the method that is asked for, on that data set or a similar one; None where there is none.

    Images of your own have one for a CPU. A run that is continued keeps the recipe that it began with, on any device.
    """
    method = asked.get("method", "barlow_twins")
    name = datasets.resolve_name(asked.get("dataset"), asked.get("data_dir"))
    size = asked.get("image_size", datasets.KNOWN[name][0])
    similar = "cifar10" if size != "auto" and size <= SMALL and not name.startswith("ImageNet") else "imagenet"
    own = "imagenet100" if name in ("ImageNet50", "ImageNet200") else name.lower()
    if name in OWN_IMAGES:
        own = "folder" if similar == "imagenet" else similar
    paths = [CONFIGS / f"{method}_{name}.yaml" for name in (own, similar)]
    if name in OWN_IMAGES:
        folder = Path(asked.get("output_dir") or RUNS / f"{method}_{name}")
        begun = _files_of(continued(folder, asked.get("resume", "auto")))
        began_on_cpu = any(file.endswith(FOR_CPU) for file in begun)
        if began_on_cpu or (not begun & {path.name for path in paths} and _on_cpu(asked)):
            paths.insert(0, CONFIGS / f"{method}{FOR_CPU}")
        paths.sort(key=lambda path: path.name not in begun)  # first the one that a run began with
    return next((path for path in paths if path.exists()), None)


def continued(folder: Path, resume: str) -> Path | None:
    """The folder of the run that a start in `folder` with --resume `resume` continues; None: it begins anew."""
    if any(files.CHECKPOINT.fullmatch(path.name) for path in folder.glob("checkpoint*.pt")):
        return folder
    named = resume not in ("auto", "none") and Path(resume).is_file()
    return Path(resume).parent if named else None


def _on_cpu(asked: dict) -> bool:
    return asked.get("device", "auto") == "cpu" or (asked.get("device") != "cuda" and not torch.cuda.is_available())


def _files_of(run: Path | None) -> set[str]:
    """The names of the files from which a run has its settings."""
    origin = run and files.json_object(run / "about.json").get("origin")
    return {Path(str(where)).name for where in origin.values()} if isinstance(origin, dict) else set()
