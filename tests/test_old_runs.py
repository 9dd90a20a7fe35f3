"""Runs and files of an earlier version go on with this code. tests/old_runs/README.md says how they were made."""

import json
import shutil
from pathlib import Path

import forked
import pytest
import torch
from old_runs.make import draw_images, noisy, samples

from ssl.estimators import BarlowTwins

ROOT = Path(__file__).resolve().parents[1]
OLD = ROOT / "tests" / "old_runs"
REACHED = torch.load(OLD / "reached.pt", weights_only=True)  # by the earlier version, with no interruption
FITS = {"train.py": "pretrain", "finetune.py": "finetune", "BarlowTwins": "estimator"}
ROUNDING = 1e-3  # relative; another processor rounds otherwise, and the steps that follow enlarge that
ONE_IMAGE = 1 / 24 + 1e-6  # of the images that judge; rounding may turn one


@pytest.fixture
def old(tmp_path) -> Path:
    """A copy of the earlier version's runs and files, and their images."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    draw_images(tmp_path / "images.npz")
    return tmp_path


def run(script: str, *arguments) -> None:
    done = forked.run(ROOT / script, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def go_on(kind: str, old: Path) -> dict:
    """Continue to the end what `kind` had begun; the weights that it then has."""
    if kind == "BarlowTwins":
        model = BarlowTwins.load(old / "estimator.pt", views=noisy)
        return model.fit(samples(), resume=True).net.state_dict()
    folder = old / FITS[kind]
    own = ["--init", old / "pretrain"] if kind == "finetune.py" else []
    run(kind, "--config", folder / "config.yaml", "--output_dir", folder, "--data_dir", old / "images.npz", *own)
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def distance(weights: dict, kind: str) -> float:
    """From the weights that the earlier version reached: the largest of all tensors', relative to their norms."""
    reached = REACHED[FITS[kind]]
    assert weights.keys() == reached.keys()
    parts = [(weights[name], there) for name, there in reached.items() if there.is_floating_point()]
    return float(torch.stack([(here - there).norm() / there.norm() for here, there in parts]).max())


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_train_continues_the_run_and_reaches_the_same_weights(old):
    logged = (old / "pretrain" / "metrics.jsonl").read_text()
    assert [line["step"] for line in lines(old / "pretrain" / "metrics.jsonl") if "loss" in line] == [*range(1, 8)]
    weights = go_on("train.py", old)
    assert distance(weights, "train.py") < ROUNDING
    encoder = torch.load(old / "pretrain" / "encoder.pt", weights_only=True)
    assert all(torch.equal(weights[f"encoder.{name}"], value) for name, value in encoder.items())
    assert json.loads((old / "pretrain" / "status.json").read_text())["state"] == "finished"
    assert (old / "pretrain" / "metrics.jsonl").read_text().startswith(logged)  # not begun anew
    metrics = lines(old / "pretrain" / "metrics.jsonl")
    assert [line["step"] for line in metrics if "loss" in line] == [*range(1, 13)]
    assert [line["step"] for line in metrics if "knn_acc1" in line] == [4, 8, 12]


def test_a_run_from_before_there_were_many_views_has_two(old):
    folder = old / "pretrain"
    kept = torch.load(folder / "checkpoint.pt", weights_only=True)["settings"]
    assert "views" not in kept and len(kept["solarize_prob"]) == 2
    where = "--config", folder / "config.yaml", "--output_dir", folder, "--data_dir", old / "images.npz"
    done = forked.run(ROOT / "train.py", *where, "--views", "3")
    assert done.returncode == 2 and "views: 2 -> 3" in done.stderr
    assert BarlowTwins.load(old / "estimator.pt", views=noisy).num_views == 2


def test_finetune_continues_the_run_and_tests_its_best_epoch(old):
    best = torch.load(old / "finetune" / "best.pt", weights_only=True)
    weights = go_on("finetune.py", old)
    assert distance(weights, "finetune.py") < ROUNDING
    assert [line["epoch"] for line in lines(old / "finetune" / "metrics.jsonl")] == [1, 2, 3]
    kept = torch.load(old / "finetune" / "best.pt", weights_only=True)["model"]
    assert best["best"]["epoch"] == 2 and all(torch.equal(kept[name], value) for name, value in best["model"].items())
    results = json.loads((old / "finetune" / "results.json").read_text())
    assert results["best"] == best["best"] and results["epochs"] == 3
    assert results["test"]["loss"] == pytest.approx(REACHED["tested"]["loss"], rel=ROUNDING)
    assert results["test"]["acc1"] == pytest.approx(REACHED["tested"]["acc1"], abs=ONE_IMAGE)


def test_the_estimator_goes_on_to_the_same_weights_and_representations(old):
    model = BarlowTwins.load(old / "estimator.pt", views=noisy)
    assert model.step == 7
    model.fit(samples(), resume=True)
    assert model.step == 10 and [line["epoch"] for line in model.history] == [0, 1]
    assert distance(model.net.state_dict(), "BarlowTwins") < ROUNDING
    torch.testing.assert_close(model.transform(samples()), REACHED["transformed"], rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("kind", FITS)
def test_without_the_optimizers_state_the_weights_would_be_others(old, kind):
    path = old / ("estimator.pt" if kind == "BarlowTwins" else f"{FITS[kind]}/checkpoint.pt")
    state = torch.load(path, weights_only=True)
    for of_parameter in state.get("progress", state)["optimizer"]["state"].values():
        for value in of_parameter.values():
            value.zero_()
    torch.save(state, path)
    assert distance(go_on(kind, old), kind) > 10 * ROUNDING


def test_evaluate_judges_the_encoder_and_the_features_file_as_before(old):
    encoder = "--model_path", old / "pretrain", "--data_dir", old / "images.npz", "--workers", "0"
    run("evaluate.py", *encoder, "--protocol", "features", "probe", "knn", "--output_dir", old / "anew")
    run("evaluate.py", "--features", old / "features.pt", "--output_dir", old / "judged")
    before, now = (torch.load(folder / "features.pt", weights_only=True) for folder in (old, old / "anew"))
    for split in ("train", "val", "test"):
        torch.testing.assert_close(now[split]["features"], before[split]["features"], rtol=ROUNDING, atol=ROUNDING)
        assert torch.equal(now[split]["labels"], before[split]["labels"])
    for folder in ("anew", "judged"):
        results = json.loads((old / folder / "results.json").read_text())
        for protocol in ("probe", "knn"):
            assert results[protocol]["acc1"] == pytest.approx(REACHED["judged"][protocol]["acc1"], abs=ONE_IMAGE)
            assert results[protocol]["n"] == 24
        assert results["of"]["weights"]["sha256"] == REACHED["judged"]["of"]["weights"]["sha256"]
        assert results["of"]["weights"]["steps"] == 7
