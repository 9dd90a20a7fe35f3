"""Small runs of the scripts, and what they leave."""

import ctypes
import json
from pathlib import Path

import forked
import torch

ROOT = Path(__file__).resolve().parents[1]

TINY = {
    "encoder": "ssl.encoders.SmallResNet",
    "encoder_kwargs": "{width: 8, stages: 2}",
    "projector": "16-16",
    "image_size": 32,
    "batch_size": 16,
    "epochs": 2,
    "warmup_epochs": 1,
    "log_every": 1,
    "workers": 1,
    "amp": "off",
}


def options(**settings) -> list[str]:
    """Settings as words of a command: `epochs=2` is --epochs 2, True is the name alone, a list is several words."""
    words = []
    for name, value in settings.items():
        values = value if isinstance(value, list | tuple) else [] if value is True else [value]
        words += [f"--{name}", *("false" if value is False else str(value) for value in values)]
    return words


def tiny(**settings) -> list[str]:
    """The options of a run of train.py that takes seconds, some of them replaced.

    The recipe is that of CIFAR-10: without a GPU, images of your own would take another one.
    """
    return options(**{"config": recipe(settings.get("method", "barlow_twins"))} | TINY | settings)


def recipe(method: str) -> Path:
    """That of CIFAR-10."""
    return ROOT / "configs" / f"{method}_cifar10.yaml"


def small_finetuning(**settings) -> list[str]:
    """The same for finetune.py."""
    own = {"batch_size": 12, "lr": 0.05, "crop_scale": [0.5, 1]}
    shared = {name: TINY[name] for name in ("encoder", "encoder_kwargs", "image_size", "epochs", "workers", "amp")}
    return options(**shared | own | settings)


def without_roots_rights() -> None:
    """In a child before exec: file permissions hold for root, too."""
    drop, override, read_search = 24, 1, 2
    for capability in (override, read_search):
        ctypes.CDLL(None).prctl(drop, capability)


def run(*words, processes=1, check=True, cwd=ROOT, **settings):
    """Run a script with these settings, in several processes as torchrun does."""
    done = forked.run(*words, *options(**settings), processes=processes, cwd=cwd)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def metrics(folder: Path) -> list[dict]:
    """The lines of log steps; those of health stand between them."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([v.flatten().float() for v in torch.load(folder / "encoder.pt", weights_only=True).values()])
