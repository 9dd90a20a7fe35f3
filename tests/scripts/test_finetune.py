"""finetune.py as a person runs it, and its parts beside plain references."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from drawn import class_folders
from PIL import Image
from running import ROOT, run
from running import small_finetuning as tiny
from sklearn.metrics import roc_auc_score

import evaluate
import finetune
from ssl.checkpoints import restore, run_reader, torch_file
from ssl.encoders import SmallResNet
from ssl.errors import UserError
from ssl.evaluation import features
from ssl.evaluation.intervals import wilson
from ssl.report import page
from ssl.settings import config
from ssl.sources.labelled import choose_labels
from ssl.training import best_model, start


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Class folders with all three splits: 60, 15 and 21 pictures, the last of which two processes do not divide."""
    return class_folders(tmp_path_factory.mktemp("images"), {"train": (60, 0), "val": (15, 1), "test": (21, 2)})


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("encoder") / "encoder.pt"
    torch.save(SmallResNet(width=8, stages=2).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def tuned(images, encoder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = run(
        "finetune.py", *tiny(runs=2, copies=3, major=["disc", "ring"]), data_dir=images, init=encoder, output_dir=folder
    )
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def run_test(model: Path, folder: Path, check: bool = True, **settings):
    """finetune.py --test_only: its results are in `folder`."""
    settings = settings | {"test_only": True, "model_path": model, "output_dir": folder, "workers": 1}
    return run("finetune.py", **settings, check=check)


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def best(folder: Path) -> torch.Tensor:
    content = torch.load(folder / "best.pt", weights_only=True)
    return torch.cat([value.flatten().double() for value in content["model"].values()])


# What it leaves ---------------------------------------------------------------------


def test_predictions_and_results_say_the_same(tuned, images):
    for place in (tuned / "seed_0", tuned / "seed_1"):
        with open(place / "predictions.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 21 and {row["name"] for row in rows} == {
            str(path.relative_to(images)) for path in images.glob("test/*/*.png")
        }
        assert all(row["label"] == Path(row["name"]).parent.name for row in rows)
        names = ("disc", "ring", "square")
        scores = torch.tensor([[float(row[f"score_{name}"]) for name in names] for row in rows], dtype=torch.float64)
        truth = torch.tensor([names.index(row["label"]) for row in rows])
        assert torch.allclose(scores.sum(1), torch.ones(21, dtype=torch.float64), atol=1e-5)
        found = results(place)["test"]
        assert found["acc1"] == pytest.approx((scores.argmax(1) == truth).double().mean().item())
        assert found["auc_macro"] == pytest.approx(
            roc_auc_score(truth, scores / scores.sum(1, True), multi_class="ovr")
        )
        assert found["loss"] == pytest.approx(F.nll_loss(scores.log(), truth).item(), abs=1e-5)
        of_major = truth < 2
        assert found["major"]["acc1"] == pytest.approx((scores.argmax(1) == truth)[of_major].double().mean().item())
        assert found["minor"]["count"] == {"disc": 0, "ring": 0, "square": 7}
        for picture in ("roc.png", "confusion.png"):
            pytest.importorskip("matplotlib")
            Image.open(place / picture).verify()


def test_several_runs_differ_and_give_mean_and_deviation(tuned):
    single = [results(tuned / f"seed_{seed}")["test"]["loss"] for seed in (0, 1)]
    assert single[0] != single[1]
    summary = results(tuned)["mean"]["loss"]
    assert summary["mean"] == pytest.approx(statistics.fmean(single))
    assert summary["std"] == pytest.approx(statistics.stdev(single))
    assert f"{summary['mean']:.4f}" in (tuned / "printed.txt").read_text()


def test_what_was_tuned_is_tested_alike_on_its_own_and_on_the_same_images_elsewhere(tuned, images, tmp_path):
    net = {"encoder": "ssl.encoders.SmallResNet", "encoder_kwargs": "{width: 8, stages: 2}"}
    run_test(tuned, tmp_path / "own", **net)
    shutil.copytree(images / "test", tmp_path / "elsewhere" / "test")
    run_test(tuned / "seed_1" / "best.pt", tmp_path / "there", data_dir=tmp_path / "elsewhere")
    for before, again in zip(results(tuned)["runs"], results(tmp_path / "own")["runs"]):
        assert again["test"]["loss"] == pytest.approx(before["test"]["loss"], rel=1e-6)
    there = results(tmp_path / "there")["test"]
    assert there["loss"] == pytest.approx(results(tuned)["runs"][1]["test"]["loss"], rel=1e-6)  # the same views
    run_test(tuned / "seed_1", tmp_path / "plain", copies=1)
    plain = results(tmp_path / "plain")["test"]
    assert plain["images"] == 21 and plain["loss"] != there["loss"]


def test_a_run_is_tested_in_the_precision_it_was_trained_in(images, encoder, tmp_path):
    """Whatever auto became on the machine that trained it, and although its bf16 may be imitated here."""
    run("finetune.py", *tiny(amp="bf16", epochs=1), data_dir=images, init=encoder, output_dir=tmp_path / "run")
    again = ["finetune.py", "--test_only", "--model_path", tmp_path / "run", "--batch_size", 12, "--workers", 1]
    said = run(*again, output_dir=tmp_path / "again").stdout
    run(*again, output_dir=tmp_path / "float32", amp="off")
    first, second, other = (results(tmp_path / name)["test"]["loss"] for name in ("run", "again", "float32"))
    assert first == second != other
    assert "precision   bf16" in said


def test_the_settings_a_run_leaves_name_the_precision_that_auto_became(monkeypatch):
    monkeypatch.setattr(start, "resolve_precision", lambda amp, device: {"auto": "bf16"}[amp])
    settings = finetune.Settings()
    start.start(settings)
    assert settings.amp == "bf16"


@pytest.fixture(scope="module")
def frozen(images, encoder, tmp_path_factory) -> Path:
    """A head trained on the encoder of a run folder, whose data it takes."""
    before, folder = tmp_path_factory.mktemp("before"), tmp_path_factory.mktemp("frozen")
    shutil.copy(encoder, before / "encoder.pt")
    config.write_yaml(before / "config.yaml", {"dataset": "folder", "data_dir": str(images), "seed": 0, "csv": None})
    run("finetune.py", *tiny(), init=before, output_dir=folder, freeze=True)
    return folder


@pytest.mark.parametrize("place", ["", "seed_1"])
@pytest.mark.parametrize("named", [True, False])
def test_judging_a_fine_tuned_run_leaves_its_results_alone(tuned, tmp_path, monkeypatch, place, named):
    folder = tuned / place
    before = (folder / "results.json").read_bytes()
    arguments = ["--model_path", tuned, "--protocol", "knn", *(["--output_dir", folder] if named or place else [])]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments), "--workers", "0"])
    evaluate.main()
    assert (folder / "results.json").read_bytes() == before and not (folder / "results.1.json").exists()
    assert results(folder / "evaluation")["of"]["weights"]["path"] == str(tuned / "encoder.pt")
    shutil.rmtree(folder / "evaluation")


def test_results_say_what_they_are_of(tuned, images):
    for seed, one in enumerate(results(tuned)["runs"]):
        model = torch.load(tuned / f"seed_{seed}" / "best.pt", weights_only=True)["model"]
        holder = torch.nn.Module()
        holder.state_dict = lambda model=model: model
        assert one["of"]["weights"]["sha256"] == features.encoder_checksum(holder)
        assert one["of"]["data"] | {"data_dir": str(images), "test_images": 21, "image_size": 32} == one["of"]["data"]
        assert one["of"]["copies"] == 3 and "torch" in one["of"]["versions"]
        assert one["test"]["acc1_interval"] == wilson(round(21 * one["test"]["acc1"]), 21)
    printed = (tuned / "printed.txt").read_text()
    assert "n = 21 test images, 2 seeds" in printed and "± sd" in printed


def test_the_folder_says_where_every_setting_came_from(frozen):
    about = json.loads((frozen / "about.json").read_text())
    origin = about["origin"]
    assert set(origin) == {field.name for field in dataclasses.fields(finetune.Settings)}
    assert {name for name, where in origin.items() if where == "the run of --init"} == {"dataset", "data_dir", "seed"}
    assert origin["freeze"] == origin["image_size"] == "command line" and origin["csv"] == "default"
    assert (about["images"], about["global_batch"], about["steps_per_epoch"], len(about["views"])) == (60, 12, 5, 1)
    text = page.page([run_reader.read(frozen)])
    row = '<th scope="row">seed</th><td data-head="Value">0</td><td data-head="From">the run of --init</td>'
    assert row in text and "unknown" not in text
    (frozen / "about.json").rename(frozen / "away.json")
    assert ">unknown</td>" in page.page([run_reader.read(frozen)])  # control


def test_a_frozen_encoder_is_as_it_was(frozen, encoder):
    before, after = (torch.load(path, weights_only=True) for path in (encoder, frozen / "encoder.pt"))
    assert all(torch.equal(after[name], value) for name, value in before.items())
    head = torch.load(frozen / "best.pt", weights_only=True)["model"]["head.weight"]
    begun = torch.empty(head.shape).normal_(std=0.01, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(head, begun, atol=1e-3)  # the head has learnt


def test_without_freezing_it_is_not(tuned, encoder):
    before = torch.load(encoder, weights_only=True)
    after = torch.load(tuned / "encoder.pt", weights_only=True)
    assert not any(torch.equal(after[name], value) for name, value in before.items() if value.ndim == 4)


# Exactness, resume ---------------------------------------------------------------------


@pytest.mark.parametrize("balanced", [False, True])
def test_two_processes_learn_what_one_does(images, encoder, tmp_path, balanced):
    for processes in (1, 2):
        how = tiny(data_dir=images, init=encoder, batch_size=12 // processes, copies=2, balanced=balanced)
        run("finetune.py", *how, output_dir=tmp_path / str(processes), processes=processes)
    one, two = (torch.load(tmp_path / n / "best.pt", weights_only=True)["model"] for n in "12")
    for name, value in one.items():
        assert torch.allclose(value.double(), two[name].double(), rtol=1e-3, atol=1e-4), name
    assert results(tmp_path / "1")["test"]["loss"] == pytest.approx(results(tmp_path / "2")["test"]["loss"], rel=1e-3)
    assert len((tmp_path / "2" / "predictions.csv").read_text().splitlines()) == 22


@pytest.fixture(scope="module")
def undisturbed(images, encoder, tmp_path_factory) -> tuple[list, Path]:
    """Settings of two short runs, and a folder in which nothing interrupted them."""
    settings = tiny(data_dir=images, init=encoder, epochs=60, runs=2, save_minutes=1e-6)
    folder = tmp_path_factory.mktemp("undisturbed") / "whole"
    run("finetune.py", *settings, output_dir=folder)
    return settings, folder


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_an_interrupted_run_ends_as_one_that_was_not(undisturbed, tmp_path, how):
    settings, whole = undisturbed
    command = [sys.executable, "finetune.py", *settings, "--output_dir", tmp_path / "cut"]
    log = tmp_path / "cut" / "seed_1" / "metrics.jsonl"  # the first run has ended by then
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)
    until = time.monotonic() + 300
    while not (log.exists() and log.read_text().count("\n") > 3) and time.monotonic() < until:
        time.sleep(0.01)
    if how == "stop":
        (tmp_path / "cut" / "stop").touch()
        assert process.wait(300) == 75
        assert json.loads((tmp_path / "cut" / "status.json").read_text())["state"] == "preempted"
    else:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "cut" / "results.json").exists()
    done = run("finetune.py", *settings, output_dir=tmp_path / "cut")
    assert "finished" in (tmp_path / "cut" / "status.json").read_text()
    assert "seed_0/predictions.csv" not in done.stdout and "seed_1/predictions.csv" in done.stdout  # not tested again
    for seed in ("seed_0", "seed_1"):
        assert torch.equal(best(tmp_path / "cut" / seed), best(whole / seed))
        logs = [(folder / seed / "metrics.jsonl").read_text().splitlines() for folder in (tmp_path / "cut", whole)]
        steps = [[json.loads(line)["step"] for line in log] for log in logs]
        assert steps[0] == steps[1]
    assert results(tmp_path / "cut")["mean"] == results(whole)["mean"]


STOPPED = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import finetune
from ssl.training import stopping
answer, steps = stopping.StopRequests.answer, []
def asked(self):
    steps.append(1)
    return answer(self) or ("a test" if len(steps) == 7 else None)
stopping.StopRequests.answer = asked
finetune.main()
"""
KILLED = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import finetune
from ssl.training.fit_session import FitSession
save = FitSession.save_if_due
def save_and_be_killed(self, fit):
    save(self, fit)
    self.run.settle()  # the save has ended
    if fit.step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
FitSession.save_if_due = save_and_be_killed
finetune.main()
"""
NO_REHEARSAL = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import finetune
finetune.rehearse = lambda *arguments: None
finetune.main()
"""


@pytest.mark.parametrize("processes", [1, 4])
def test_a_kill_in_the_midst_of_an_epoch_costs_no_more_than_the_steps_since_the_last_save(
    images, encoder, tmp_path, processes
):
    (tmp_path / "killed.py").write_text(KILLED)
    how = tiny(data_dir=images, init=encoder, batch_size=12 // processes, save_minutes=1e-6)
    run("finetune.py", *how, output_dir=tmp_path / "whole", processes=processes)
    run(tmp_path / "killed.py", *how, output_dir=tmp_path / "cut", processes=processes, check=False)
    state = torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)
    assert (state["step"], state["loss_images"]) == (7, 24)  # two of the five steps of epoch 1
    run("finetune.py", *how, output_dir=tmp_path / "cut", processes=processes)
    whole, cut = ([entry["train_loss"] for entry in history(tmp_path / name)] for name in ("whole", "cut"))
    assert whole == cut
    assert torch.equal(last_weights(tmp_path / "cut"), last_weights(tmp_path / "whole"))


@pytest.mark.parametrize("processes", [1, 4])
def test_an_epoch_that_was_interrupted_ends_as_one_that_was_not(images, encoder, tmp_path, processes):
    (tmp_path / "stopped.py").write_text(STOPPED)
    how = tiny(data_dir=images, init=encoder, batch_size=12 // processes)
    run("finetune.py", *how, output_dir=tmp_path / "whole", processes=processes)
    run(tmp_path / "stopped.py", *how, output_dir=tmp_path / "cut", processes=processes, check=False)
    state = torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)
    assert (state["step"], state["loss_images"]) == (7, 24)  # two of the five steps of epoch 1
    shutil.copytree(tmp_path / "cut", tmp_path / "old")
    run("finetune.py", *how, output_dir=tmp_path / "cut", processes=processes)
    whole, cut = ([entry["train_loss"] for entry in history(tmp_path / name)] for name in ("whole", "cut"))
    assert whole == cut
    assert torch.equal(last_weights(tmp_path / "cut"), last_weights(tmp_path / "whole"))
    if processes == 4:  # the control: DDP's first step sums in another order
        (tmp_path / "control.py").write_text(NO_REHEARSAL)
        run(tmp_path / "control.py", *how, output_dir=tmp_path / "old", processes=processes)
        assert not torch.equal(last_weights(tmp_path / "old"), last_weights(tmp_path / "whole"))
    if processes == 1:  # a checkpoint of a version that did not know: it continues, and averages what it sees
        for path in (tmp_path / "old").glob("checkpoint*.pt"):
            torch.save({k: v for k, v in state.items() if not k.startswith("loss_")}, path)
        run("finetune.py", *how, output_dir=tmp_path / "old")
        old = [entry["train_loss"] for entry in history(tmp_path / "old")]
        assert old[0] == whole[0] and old[1] != whole[1]


def last_weights(folder: Path) -> torch.Tensor:
    model = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    return torch.cat([value.double().flatten() for value in model.values()])


def history(folder: Path) -> list[dict]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["history"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"lr": 0.2}, "lr: 0.05 -> 0.2"),
        ({"copies": 5}, "copies: 3 -> 5"),  # or the mean would be of runs that were tested otherwise
        ({"runs": 1}, "several runs: True -> False"),  # or they would lie in other folders
    ],
)
def test_another_run_is_not_continued(tuned, images, encoder, changed, words):
    before = (tuned / "results.json").read_bytes()
    settings = {"runs": 2, "copies": 3, "major": ["disc", "ring"]} | changed
    done = run("finetune.py", *tiny(**settings), data_dir=images, init=encoder, output_dir=tuned, check=False)
    assert done.returncode == 2 and words in done.stderr
    assert (tuned / "results.json").read_bytes() == before


def test_a_run_is_tested_by_its_checkpoint_s_best_epoch_whatever_best_pt_is_of_and_may_be_followed_by_more(
    tuned, images, encoder, tmp_path
):
    folder = shutil.copytree(tuned, tmp_path / "run")
    lost = torch_file.load(folder / "seed_1" / "best.pt")
    lost["model"] = {name: torch.zeros_like(value) for name, value in lost["model"].items()}
    torch_file.save(lost, folder / "seed_1" / "best.pt")
    run(
        "finetune.py", *tiny(runs=3, copies=3, major=["disc", "ring"]), data_dir=images, init=encoder, output_dir=folder
    )
    assert torch.equal(best(folder / "seed_1"), best(tuned / "seed_1"))
    assert results(folder)["runs"][:2] == results(tuned)["runs"] and len(results(folder)["runs"]) == 3
    model = torch_file.load(folder / "seed_2" / "best.pt")["model"]
    for name, value in torch_file.load(folder / "encoder.pt").items():
        assert torch.equal(model[f"encoder.{name}"], value)


def test_the_epoch_is_chosen_by_what_the_weights_it_leaves_say_of_the_validation_images(images, encoder, tmp_path):
    how = tiny(data_dir=images, init=encoder, batch_size=4, epochs=3, sync_bn=False)
    run("finetune.py", *how, output_dir=tmp_path / "run", processes=2)
    shutil.copytree(images / "val", tmp_path / "validation" / "test")
    run("finetune.py", test_only=True, model_path=tmp_path / "run", data_dir=tmp_path / "validation", workers=1)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    lowest = min(lines, key=lambda line: line["val_loss"])
    assert results(tmp_path / "run")["best"]["epoch"] == lowest["epoch"]
    again = results(tmp_path / "run" / "test_validation")["test"]
    assert again["loss"] == pytest.approx(lowest["val_loss"], rel=1e-5) and again["images"] == 15


def test_runs_whose_seeds_leave_different_numbers_of_training_images(images, tmp_path):
    paths = sorted(images.glob("*/*/*.png"))
    rows = [
        f"{path.relative_to(images)},{path.parent.name},{path.parts[-3]},p{(i // 5) % 9 if i % 2 else i}"
        for i, path in enumerate(paths)
        if path.parts[-3] != "val"
    ]
    rows = [row.replace(",p", ",t") if ",test," in row else row for row in rows]
    (tmp_path / "table.csv").write_text("\n".join(["image,label,split,patient", *rows]))
    columns = {"label_column": "label", "split_column": "split", "group_column": "patient"}
    how = tiny(runs=3, batch_size=2, val_fraction=0.2, epochs=1, **columns)
    run("finetune.py", *how, data_dir=images, csv=tmp_path / "table.csv", output_dir=tmp_path / "run")
    steps = [json.loads((tmp_path / "run" / f"seed_{seed}" / "metrics.jsonl").read_text())["step"] for seed in range(3)]
    assert max(steps) > steps[0]  # later runs are longer than the first
    test = results(tmp_path / "run")["runs"][0]["test"]
    patients = {row.rpartition(",")[2] for row in rows if ",test," in row}
    low, high = wilson(round(21 * test["acc1"]), 21)
    assert test["groups"] == len(patients) < test["images"] == 21
    assert test["acc1_interval"][0] < low and high < test["acc1_interval"][1]  # Student's t makes it wider at least


def test_a_seed_that_cannot_be_trained_is_named_before_the_first_is(images, tmp_path):
    """Of seven patients seeds 0 to 2 hold out images of every class, and seed 3 does not."""
    names = [path.relative_to(images) for path in sorted(images.glob("train/*/*.png"))]
    rows = [f"{name},{name.parent.name},train,p{i % 20 % 7}" for i, name in enumerate(names)]
    tests = [path.relative_to(images) for path in images.glob("test/*/*.png")]
    rows += [f"{name},{name.parent.name},test,t{name.stem}" for name in tests]
    (tmp_path / "table.csv").write_text("\n".join(["image,label,split,patient", *rows]))
    columns = {"label_column": "label", "split_column": "split", "group_column": "patient"}
    how = tiny(runs=4, train_percent=10, watch="auc", batch_size=2, epochs=1, **columns)
    folder = tmp_path / "run"
    done = run("finetune.py", *how, data_dir=images, csv=tmp_path / "table.csv", output_dir=folder, check=False)
    assert done.returncode == 2 and "seed 3: watch: auc needs validation images of every class" in done.stderr
    assert not list(folder.glob("seed_*"))


def test_a_run_is_not_continued_with_other_labels_of_the_same_images(images, tmp_path):
    table = tmp_path / "table.csv"
    rows = [(str(path.relative_to(images)), path.parent.name, path.parts[-3]) for path in images.glob("*/*/*.png")]
    columns = {"csv": table, "label_column": "label", "split_column": "split"}
    command = ["finetune.py", *tiny(data_dir=images, output_dir=tmp_path / "run", epochs=1, **columns)]
    for other, status in (({}, 0), ({"disc": "ring", "ring": "disc"}, 2)):
        lines = [f"{name},{other.get(label, label)},{split}" for name, label, split in rows]
        table.write_text("\n".join(["image,label,split", *lines]))
        done = run(*command, check=False)
        assert done.returncode == status, done.stderr
    assert "val data: " in done.stderr and "labels" in done.stderr


# Schedules ------------------------------------------------------------------------------


def test_a_first_step_that_is_left_out_leaves_no_momentum():
    """float16 begins with steps that overflow. Memory that nobody has written is NaN here, as it may be anywhere."""
    settings = small_settings(weight_decay=0.0)
    model = finetune.Model(settings, 3, 3)
    optimizer = finetune.make_optimizer(settings, model)
    before = [p.detach().clone() for p in model.parameters()]
    torch.use_deterministic_algorithms(True)  # with it torch fills such memory
    try:
        for left_out in (1.0, 0.0):
            for p in model.parameters():
                p.grad = torch.full_like(p, 0.5)
            optimizer.found_inf = torch.tensor(left_out)
            optimizer.step()
    finally:
        torch.use_deterministic_algorithms(False)
    for p, was in zip(model.parameters(), before):
        assert torch.allclose(p, was - settings.lr * 0.5)


def fit_of(settings, history=()) -> finetune.Fit:
    model = finetune.Model(settings, 3, 3)
    optimizer = finetune.make_optimizer(settings, model)
    return finetune.Fit(0, model, optimizer, torch.amp.GradScaler(enabled=False), history=list(history))


def small_settings(**values) -> finetune.Settings:
    return finetune.Settings(
        encoder="ssl.encoders.SmallResNet",
        encoder_kwargs={"width": 8, "stages": 1},
        stem="auto",
        image_size=32,
        **values,
    )


@pytest.mark.parametrize("changed", [{"weight_decay": 0.5}, {"lr": 0.5}, {"momentum": 0.5}])
def test_what_was_forced_to_change_has_changed(changed):
    before, now = fit_of(small_settings()), fit_of(small_settings(**changed))
    now.load_state_dict(before.state_dict())
    name, value = ("base_lr", 0.5) if "lr" in changed else next(iter(changed.items()))
    assert all(group[name] == value for group in now.optimizer.param_groups)


def test_plateau_is_that_of_torch():
    settings = small_settings(lr=1e-2, lr_backbone=1e-4, plateau_patience=2, min_lr=1e-5)
    losses = [1.0, 0.9, 0.95, 0.9, 0.91, 0.8999, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]
    fit = fit_of(settings)
    reference = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": lr} for lr in (1e-2, 1e-4)], 1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(reference, factor=0.1, patience=2, min_lr=1e-5)
    for epoch, loss in enumerate(losses):
        finetune.set_lrs(fit, settings, 4)
        expected = [group["lr"] for group in reference.param_groups]
        assert [group["lr"] for group in fit.optimizer.param_groups] == pytest.approx(expected, rel=1e-6), epoch
        scheduler.step(loss)
        fit.history.append({"epoch": epoch + 1, "val_loss": loss})


def test_cosine_by_epoch_is_that_of_torch():
    settings = small_settings(lr=1e-2, lr_backbone=1e-4, schedule="cosine_by_epoch", epochs=7, min_lr=1e-5)
    fit = fit_of(settings)
    reference = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": lr} for lr in (1e-2, 1e-4)], 1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=7, eta_min=1e-5)
    for step in range(7 * 3):
        fit.step = step
        finetune.set_lrs(fit, settings, 3)
        expected = [group["lr"] for group in reference.param_groups]
        assert [group["lr"] for group in fit.optimizer.param_groups] == pytest.approx(expected, rel=1e-6)
        if step % 3 == 2:
            reference.step()
            scheduler.step()


# Labels ---------------------------------------------------------------------------------


def test_without_a_split_of_its_own_validation_is_cut_from_train_by_the_run_s_seed(images):
    train = finetune.datasets.load("folder", str(images), "train")
    settings = small_settings(train_percent=50.0, val_fraction=0.2)
    parts = {seed: choose_labels(settings, {"train": train, "val": None}, seed) for seed in (0, 1)}
    for fit, val in parts.values():
        assert (len(fit), len(val)) == (24, 6) and torch.bincount(val.labels).tolist() == [2, 2, 2]
        assert not set(fit.paths) & set(val.paths)
    assert set(parts[0][0].paths) != set(parts[1][0].paths)


# Mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model_path", "x"], "model_path: names the model that --test_only tests"),
        (["--test_only"], "test_only needs --model_path"),
        (["--test_only", "--model_path", "/nowhere"], "holds no best.pt"),
        (["--patience", "0"], "patience: 0 must be at least 1"),
        (["--train_percent", "0"], "train_percent: 0 is not a share"),
        (["--method", "moco"], "name it with --init"),
        (["--warmup_epochs", "2"], "warmup_epochs: schedule plateau has no warm-up"),
        (["--method", "dino"], "none of simclr, swav, byol, moco, infomin, baseline"),
        (["--schedule", "cosine", "--warmup_epochs", "5", "--epochs", "5"], "must be fewer than epochs"),
    ],
)
def test_a_mistake_is_one_line(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["finetune.py", *arguments])
    with pytest.raises(UserError, match=words):
        finetune.main()


def test_other_weights_to_start_from_are_another_run(tmp_path, images, encoder):
    settings = tiny(data_dir=images, output_dir=tmp_path / "run", epochs=1)
    run("finetune.py", *settings, init=encoder)
    shutil.copy(encoder, tmp_path / "moved.pt")
    run("finetune.py", *settings, init=tmp_path / "moved.pt")  # the same, elsewhere
    torch.save({name: value + 1 for name, value in torch.load(encoder).items()}, tmp_path / "other.pt")
    done = run("finetune.py", *settings, init=tmp_path / "other.pt", check=False)
    assert done.returncode == 2 and "init encoder: '" in done.stderr


def test_a_class_that_no_training_image_has_is_named(images, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / "train" / "ring")
    done = run("finetune.py", *tiny(), data_dir=tmp_path / "images", output_dir=tmp_path / "run", check=False)
    assert done.returncode == 2 and "ring" in done.stderr and done.stderr.count("\n") == 1


def test_a_major_class_that_there_is_not_is_named_before_training(images, tmp_path):
    done = run("finetune.py", *tiny(major="rings"), data_dir=images, output_dir=tmp_path, check=False)
    assert done.returncode == 2 and "did you mean 'ring'?" in done.stderr and not (tmp_path / "metrics.jsonl").exists()


def test_a_leak_between_splits_is_named(images, tmp_path):
    shutil.copytree(images, tmp_path / "images", symlinks=True)
    leaked = next((tmp_path / "images" / "test" / "disc").iterdir())
    os.link(leaked, tmp_path / "images" / "train" / "disc" / leaked.name)
    done = run("finetune.py", *tiny(), data_dir=tmp_path / "images", output_dir=tmp_path / "run", check=False)
    assert (
        done.returncode == 2 and "leak: 1 images of test are in train too" in done.stderr and leaked.name in done.stderr
    )


def test_other_classes_are_not_tested_under_the_names_of_these(tuned, tmp_path):
    for name in ("cats", "dogs", "ring"):
        (tmp_path / "data" / "test" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "data" / "test" / name / f"{name}.png")
    done = run_test(tuned / "seed_0", tmp_path / "out", data_dir=tmp_path / "data", check=False)
    assert done.returncode == 2 and "its classes are cats, dogs, ring, those of" in done.stderr


def test_images_elsewhere_may_lack_a_class(tuned, images, tmp_path):
    for name in ("ring", "square"):
        shutil.copytree(images / "test" / name, tmp_path / "two" / "test" / name)
    run_test(tuned / "seed_0", tmp_path / "two_tested", data_dir=tmp_path / "two", copies=1)
    run_test(tuned / "seed_0", tmp_path / "all_tested", copies=1)
    two, everything = (results(tmp_path / name)["test"] for name in ("two_tested", "all_tested"))
    assert two["count"] == {"disc": 0, "ring": 7, "square": 7} and two["auc_macro"] == "undefined"
    assert {name: two["recall"][name] for name in ("ring", "square")} == {
        name: everything["recall"][name] for name in ("ring", "square")
    }


def test_a_model_s_file_does_not_get_code_imported(tuned, tmp_path):
    content = torch_file.load(tuned / "seed_0" / "best.pt")
    content["settings"]["encoder"] = "some.unknown.Net"
    torch_file.save(content, tmp_path / "best.pt")
    settings = finetune.Settings(test_only=True)
    origin = dict.fromkeys(vars(settings), "default")
    with pytest.raises(UserError, match="importing that runs its code"):
        best_model.take_settings(settings, origin, content["settings"], tmp_path, finetune.FREE_TO_CHANGE)
    with pytest.raises(UserError):
        restore.require_known("some.unknown.Net", None)
