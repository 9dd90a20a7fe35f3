"""The recipe in configs/ for a method and a data set."""

from pathlib import Path

from ssl.data.resident import SMALL
from ssl.sources import datasets

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def find_recipe(asked: dict) -> Path | None:
    """The recipe of the method that is asked for, on that data set or a similar one; None where there is none."""
    method = asked.get("method", "barlow_twins")
    name = datasets.resolve_name(asked.get("dataset"), asked.get("data_dir"))
    size = asked.get("image_size", datasets.KNOWN[name][0])
    similar = "cifar10" if size <= SMALL and not name.startswith("ImageNet") else "imagenet"
    own = "imagenet100" if name in ("ImageNet50", "ImageNet200") else name.lower()
    own = similar if name == "folder" and similar == "cifar10" else own
    paths = [CONFIGS / f"{method}_{name}.yaml" for name in (own, similar)]
    return next((path for path in paths if path.exists()), None)
