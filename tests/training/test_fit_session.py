"""finetune.py in this process: how it ends when it is asked to stop, and what it continues from."""

import contextlib
import json
import signal
import sys
from itertools import combinations
from pathlib import Path

import pytest
import torch
from drawn import class_folders
from running import run
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


def begun(monkeypatch) -> list[dict]:
    """The weights that each run begins with from now on, as it begins."""
    weights, begin = [], finetune.begin_weights

    def kept(settings, model, *others):
        begin(settings, model, *others)
        weights.append({name: value.clone() for name, value in model.state_dict().items()})

    monkeypatch.setattr(finetune, "begin_weights", kept)
    return weights


def model_of(folder: Path) -> dict:
    return torch.load(folder / "best.pt", weights_only=True)["model"]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def test_every_run_draws_its_own_encoder_and_is_the_run_of_its_seed_alone(images, tmp_path, monkeypatch):
    weights = begun(monkeypatch)
    tune(images, tmp_path / "three", runs=3, seed=5)
    kernels = [name for name, value in weights[0].items() if value.ndim == 4]
    assert kernels and not any(torch.equal(a[name], b[name]) for a, b in combinations(weights, 2) for name in kernels)
    for number in range(3):
        tune(images, tmp_path / f"alone_{number}", seed=5 + number)
        assert same(weights[number], weights[-1])
        assert same(model_of(tmp_path / "three" / f"seed_{5 + number}"), model_of(tmp_path / f"alone_{number}"))


def test_with_init_every_run_begins_with_that_encoder(images, encoder, tmp_path, monkeypatch):
    weights = begun(monkeypatch)
    tune(images, tmp_path, runs=2, init=encoder, epochs=1)
    for begin in weights:
        assert same({f"encoder.{name}": value for name, value in torch.load(encoder).items()} | head(begin), begin)
    assert not torch.equal(weights[0]["head.weight"], weights[1]["head.weight"])


def head(weights: dict) -> dict:
    return {name: value for name, value in weights.items() if name.startswith("head.")}


@pytest.mark.parametrize("stop", [4, 6])  # after the first run, in the second
def test_a_run_with_an_encoder_of_its_own_continues_to_the_same_bits(images, tmp_path, monkeypatch, stop):
    tune(images, tmp_path / "whole", runs=2)
    with monkeypatch.context() as patch:
        asked = iter([None] * (stop - 1) + ["SIGTERM"])
        patch.setattr(stopping.StopRequests, "answer", lambda self: next(asked))
        assert tune(images, tmp_path / "cut", runs=2)["state"] == "preempted"
    assert tune(images, tmp_path / "cut", runs=2)["state"] == "finished"
    for seed in ("seed_0", "seed_1"):
        assert same(model_of(tmp_path / "cut" / seed), model_of(tmp_path / "whole" / seed))


def test_all_processes_draw_the_same_encoder(images, tmp_path):
    tiny = TINY | {"data_dir": images, "batch_size": 3}
    run("finetune.py", **tiny, output_dir=tmp_path / "two", runs=2, processes=2)
    run("finetune.py", **tiny, output_dir=tmp_path / "alone", seed=1, processes=2)
    assert same(model_of(tmp_path / "two" / "seed_1"), model_of(tmp_path / "alone"))
    tune(images, tmp_path / "one", seed=1)
    for name, value in model_of(tmp_path / "one").items():
        assert torch.allclose(value, model_of(tmp_path / "alone")[name], rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("stop", [6, 5, None])  # between epochs, within one, not at all
def test_with_fewer_epochs_than_are_made_a_run_ends_with_its_best(images, tmp_path, monkeypatch, stop):
    with monkeypatch.context() as patch:
        asked = iter([None] * ((stop or 99) - 1) + ["SIGTERM"])
        patch.setattr(stopping.StopRequests, "answer", lambda self: next(asked))
        tune(images, tmp_path, epochs=4)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert len(state["history"]) == (stop or 8) // 2
    (tmp_path / "results.json").unlink(missing_ok=True)
    assert tune(images, tmp_path, epochs=1, resume_force="true")["state"] == "finished"
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["epochs"] == len(state["history"])
    assert found["best"] == min(state["history"], key=lambda epoch: epoch["val_loss"])
    assert same(model_of(tmp_path), state["best"]["model"])


def test_a_last_epoch_whose_weights_are_gone_is_refused_before_anything_is_written(images, tmp_path, monkeypatch):
    cosine = {"watch": "last", "schedule": "cosine"}
    with monkeypatch.context() as patch:
        asked = iter([None] * 5 + ["SIGTERM"])
        patch.setattr(stopping.StopRequests, "answer", lambda self: next(asked))
        tune(images, tmp_path, epochs=4, **cosine)
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(UserError, match="watch: last chooses epoch 3 of the 3 that are made"):
        tune(images, tmp_path, epochs=2, resume_force="true", **cosine)
    assert (tmp_path / "config.yaml").read_bytes() == before
    assert tune(images, tmp_path, epochs=4, **cosine)["state"] == "finished"


def test_runs_that_have_ended_keep_their_settings_and_it_is_said(images, tmp_path, capsys):
    tune(images, tmp_path, runs=3, epochs=1)
    capsys.readouterr()
    tune(images, tmp_path, runs=3, epochs=2, resume_force="true")
    said = capsys.readouterr().out
    assert "*** --resume_force changes no run that has ended (2 of 3); the mean is over all ***" in said
    assert [one["epochs"] for one in json.loads((tmp_path / "results.json").read_text())["runs"]] == [1, 1, 2]
    tune(images, tmp_path, runs=3, epochs=2)
    assert "resume_force" not in capsys.readouterr().out
