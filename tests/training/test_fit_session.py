"""finetune.py in this process: how it ends when it is asked to stop, and what it continues from."""

import contextlib
import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from drawn import class_folders
from torch import nn

from ssl.encoders import SmallResNet
from ssl.errors import UserError
from ssl.training import stopping

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import finetune

TINY = {
    "encoder": "ssl.encoders.SmallResNet",
    "encoder_kwargs": "{width: 4, stages: 1}",
    "image_size": 16,
    "batch_size": 6,
    "epochs": 2,
    "workers": 0,
    "amp": "off",
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Class folders: two steps an epoch."""
    return class_folders(tmp_path_factory.mktemp("images"), {"train": (12, 0), "val": (6, 1), "test": (6, 2)})


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.pt"
    torch.save(SmallResNet(width=4, stages=1).state_dict(), path)
    return path


def tune(images: Path, folder: Path, **settings) -> dict:
    """Run finetune.py with these settings; what status.json says at the end."""
    chosen = TINY | {"data_dir": images, "output_dir": folder} | settings
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setattr(sys, "argv", ["finetune.py", *(str(w) for name, v in chosen.items() for w in (f"--{name}", v))])
        try:
            finetune.main()
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before:
                signal.signal(number, handler)
    return json.loads((folder / "status.json").read_text())


@pytest.mark.parametrize(
    "stop, runs, ends",
    [
        (4, 1, ("finished", 4)),  # with the last step
        (3, 1, ("preempted", 3)),
        (4, 2, ("preempted", 4)),  # with the last step of the first run: the second is yet to come
        (8, 2, ("finished", 8)),
    ],
)
def test_a_stop_that_comes_with_the_last_step_leaves_a_finished_run(images, tmp_path, monkeypatch, stop, runs, ends):
    asked = iter([None] * (stop - 1) + ["SIGTERM"])
    monkeypatch.setattr(stopping.StopRequests, "answer", lambda self: next(asked))
    status = tune(images, tmp_path, runs=runs)
    assert (status["state"], status["step"]) == ends
    assert (tmp_path / "results.json").exists() == (status["state"] == "finished")


@pytest.mark.parametrize("part, continues", [("head", True), ("encoder", False)])
def test_a_head_that_is_drawn_otherwise_is_no_other_run(images, encoder, tmp_path, monkeypatch, part, continues):
    """As on another processor. The control: other weights of the encoder are another run."""
    tune(images, tmp_path, init=encoder, epochs=1)
    if part == "head":
        draw = nn.Linear.reset_parameters
        monkeypatch.setattr(nn.Linear, "reset_parameters", lambda self: (draw(self), self.weight.data.mul_(2)))
    else:
        weights = {name: value + 1 for name, value in torch.load(encoder).items()}
        encoder = tmp_path / "other.pt"
        torch.save(weights, encoder)
    with contextlib.nullcontext() if continues else pytest.raises(UserError, match="init encoder: '"):
        assert tune(images, tmp_path, init=encoder, epochs=1)["state"] == "finished"
