"""Small runs of the scripts, and what they leave."""

import json
from pathlib import Path

import forked
import torch

ROOT = Path(__file__).resolve().parents[1]

TINY = {
    "--encoder": "ssl.encoders.SmallResNet",
    "--encoder_kwargs": "{width: 8, stages: 2}",
    "--projector": "16-16",
    "--image_size": "32",
    "--batch_size": "16",
    "--epochs": "2",
    "--warmup_epochs": "1",
    "--log_every": "1",
    "--workers": "1",
    "--amp": "off",
}


def tiny(*arguments) -> list[str]:
    """The settings of a run of seconds, some of them replaced: '--key', 'value', ..."""
    settings = TINY | dict(zip(map(str, arguments[::2]), map(str, arguments[1::2])))
    return [word for pair in settings.items() for word in pair]


def run(*arguments, processes=1, check=True, cwd=ROOT):
    """Run a script, in several processes as torchrun does."""
    done = forked.run(*arguments, processes=processes, cwd=cwd)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def metrics(folder: Path) -> list[dict]:
    """The lines of log steps; those of health stand between them."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([v.flatten().float() for v in torch.load(folder / "encoder.pt", weights_only=True).values()])
