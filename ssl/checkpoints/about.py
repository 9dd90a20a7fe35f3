"""config.yaml and about.json of a run: its settings, where they came from, where it computes; and versions."""

import contextlib
import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

import numpy
import torch
import torchvision

from ssl import files
from ssl.augment import View
from ssl.checkpoints.run_folder import RunFolder
from ssl.data.order import Order
from ssl.distributed import describe, is_main, world_size
from ssl.settings import config


def write(
    run: RunFolder,
    settings: Any,
    origin: dict[str, str],
    views: list[View],
    statistics: tuple,
    order: Order,
    device: torch.device,
) -> None:
    """Write config.yaml, the settings, and about.json: where they came from, what followed from them, and the device.

    Rank 0 writes. Raises `UserError` where the folder cannot be written to.
    """
    if not is_main():
        return
    about = {
        "origin": origin,
        "views": [dataclasses.asdict(view) for view in views],
        "versions": versions(),
        "mean": statistics[0],
        "std": statistics[1],
        "images": order.count,
        "processes": world_size(),
        "device": describe(device, setting=""),
        "global_batch": order.global_batch,
        "steps_per_epoch": order.steps_per_epoch,
    }
    text = json.dumps(about, indent=2) + "\n"
    run.write("config.yaml", lambda path: config.write_yaml(path, dataclasses.asdict(settings)))
    run.write("about.json", lambda path: path.write_text(text, encoding="utf-8"))


def threads_of(folder: Path) -> int | None:
    """The number of threads with which the run in `folder` computed; None where it is not known."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return int(files.json_object(folder / "about.json")["versions"]["threads"])
    return None


def versions() -> dict[str, str]:
    """What decides the last bits of a result, besides the settings."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": str(numpy.__version__),
        "threads": str(torch.get_num_threads()),
    }
