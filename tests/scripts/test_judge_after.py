"""A run with `evaluate_after` is followed by the table and the pictures, once. It stays whole whatever happens then."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from drawn import class_folders
from running import ROOT, run, tiny

from ssl.data.cores import usable_cores

FILES = ("results.json", "neighbours.png", "views.png", "report.html")
SETTINGS = {"evaluate_after": True, "epochs": 1, "warmup_epochs": 0}


@pytest.fixture(scope="module")
def judged(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    return folder, run("train.py", *tiny(**SETTINGS), data_dir=images, output_dir=folder).stdout


def test_the_table_of_a_run_is_that_of_evaluate(judged, tmp_path):
    folder, said = judged
    assert all((folder / name).exists() for name in FILES)
    first = ("raw pixels ", "untrained encoder ", "trained encoder ", "n = ")
    rows = [line for line in said.splitlines() if line.startswith(first)]
    assert said.splitlines()[-1] == f"fine-tune   python finetune.py --init {folder}"
    assert len(rows) == 4 and rows[3].startswith("n = 21 test images; in brackets 95 % intervals")
    run("evaluate.py", model_path=folder, random_init=True, raw_pixels=True, output_dir=tmp_path)
    own, by_hand = (json.loads((place / "results.json").read_text()) for place in (folder, tmp_path))
    assert own == by_hand


def test_a_second_start_does_not_judge_again_what_is_judged(judged, images, tmp_path):
    folder = shutil.copytree(judged[0], tmp_path / "run")  # copy2 keeps the times
    where = {"data_dir": images, "output_dir": folder}
    assert "$ " not in run("train.py", *tiny(**SETTINGS), **where).stdout
    (folder / "results.json").unlink()
    said = run("train.py", *tiny(**SETTINGS), **where).stdout
    assert "evaluate.py --model_path" in said and "ssl.report" not in said.partition("evaluate.py")[2]
    results = json.loads((folder / "results.json").read_text())
    another_encoder, other_images = copy.deepcopy(results), copy.deepcopy(results)
    another_encoder["of"]["weights"]["steps"] += 1
    other_images["of"]["data"]["data_dir"] = "/other/images"
    for of_others in (another_encoder, other_images):
        (folder / "results.json").write_text(json.dumps(of_others))
        assert "trained encoder" in run("train.py", *tiny(**SETTINGS), **where).stdout


def test_images_without_labels_get_pictures_alone(images, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted(images.rglob("*.png"))[:20]:
        shutil.copy(path, flat)
    said = run("train.py", *tiny(**SETTINGS | {"batch_size": 8}), data_dir=flat, output_dir=tmp_path / "run").stdout
    assert "$ python evaluate.py" not in said
    assert said.splitlines()[-1].startswith("features    python evaluate.py --model_path ")  # what to do next
    assert (tmp_path / "run" / "neighbours.png").exists()
    assert not (tmp_path / "run" / "results.json").exists()


def test_five_photographs_are_trained_on_and_it_is_said_that_they_are_few(tmp_path):
    photographs = class_folders(tmp_path / "images", {"train": (5, 0)}, size=80)
    where = {"data_dir": photographs, "output_dir": tmp_path / "run", "device": "cpu", "workers": 0, "epochs": 2}
    done = run("train.py", **where)
    assert "5 images are very few" in done.stdout
    assert "chosen      barlow_twins_folder_cpu.yaml" in done.stdout
    assert "the recipe for a GPU: --config configs/barlow_twins_folder.yaml" in done.stdout
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_is_judged_leaves_the_run_finished(judged, images, tmp_path, number):
    folder = Path(shutil.copytree(judged[0], tmp_path / "run"))
    (folder / "results.json").unlink()
    before = (folder / "checkpoint.pt").read_bytes()
    words = [*tiny(**SETTINGS), "--data_dir", str(images), "--output_dir", str(folder)]
    command = [sys.executable, str(ROOT / "train.py"), *words]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ)
    said = []
    for line in started.stdout:
        said.append(line)
        if line.startswith("$ "):
            time.sleep(0.5)  # until its process is there
            started.send_signal(number)
    assert started.wait(timeout=60) == 130, said
    assert "the judging was stopped" in "".join(said) and "Traceback" not in "".join(said)
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert (folder / "checkpoint.pt").read_bytes() == before and not (folder / "results.json").exists()


@pytest.mark.skipif(usable_cores() < 2, reason="a machine of one core has no fewer")
def test_a_run_without_a_gpu_goes_on_with_its_values_on_a_machine_with_fewer_cores(tmp_path, monkeypatch):
    photographs = class_folders(tmp_path / "images", {"train": (600, 0)}, size=80)
    where = {"data_dir": photographs, "output_dir": tmp_path / "run", "workers": 0, "evaluate_after": False}
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    run("train.py", **where, max_steps=1)
    began = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    said = run("train.py", **where, max_steps=2).stdout
    assert f"auto        epochs {began['epochs']} (as this run began)" in said and "continuing at step 1" in said
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == began | {"max_steps": 2}
    other = where | {"output_dir": tmp_path / "other"}  # the control: by itself that machine makes another choice
    run("train.py", **other, max_steps=1)
    assert yaml.safe_load((tmp_path / "other" / "config.yaml").read_text())["epochs"] < began["epochs"]
