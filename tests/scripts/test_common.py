"""What the scripts have in common: the demo that calls them, and their manual."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch
import torchvision
from drawn import class_folders
from running import ROOT, options, run

import evaluate
import finetune
import train
from ssl.settings import config


@pytest.mark.slow
def test_the_demo_leaves_the_promised_table(tmp_path):
    for name in ("scripts", "ssl", "configs", "train.py", "evaluate.py"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    demo = tmp_path / "scripts" / "demo"
    assert demo.read_text().count("--random_init\n") == 1
    demo.write_text(demo.read_text().replace("--random_init\n", "--random_init --probe_epochs 2\n"))
    words = options(max_steps=2, encoder="ssl.encoders.SmallConvNet", encoder_kwargs="{width: 4, stages: 1, grid: 2}")
    done = subprocess.run([demo, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "runs" / "demo" / "results.json").read_text())
    assert found["of"]["data"]["test_images"] == 4000
    for row in (found["raw_pixels"], found["random_init"], found):
        for judge in ("probe", "knn"):
            low, high = row[judge]["acc1_interval"]
            assert 0 < low < row[judge]["acc1"] < high < 1
    for words in ("raw pixels", "untrained encoder", "trained encoder", "linear probe", "k-NN"):
        assert words in done.stdout


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("script", ["train.py", "finetune.py", "evaluate.py"])
def test_a_start_that_fails_leaves_no_folder(tmp_path, script, processes):
    settings = {"data_dir": tmp_path / "misspelt", "output_dir": tmp_path / "runs" / "mine"}
    if script == "evaluate.py":
        torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "weights.pth")
        settings |= {"model_path": tmp_path / "weights.pth", "encoder": "resnet18"}
    done = run(script, processes=processes, check=False, **settings)
    assert done.returncode and "misspelt" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["ssl.report", "pretrain"],
        ["ssl.export", "pretrain"],
        ["ssl.data.prepare", "photos", "made"],
        ["ssl.data.patches", "nowhere", "made"],
        ["ssl.faultcheck", "--output_dir", "pretrain"],  # refused
        ["ssl.worth"],  # refused
    ],
    ids=lambda words: words[0],
)
def test_a_command_of_one_process_says_the_same_where_a_job_has_left_its_rank(tmp_path, words):
    said = []
    for name, left in (("plain", {}), ("left", {"RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "nowhere"})):
        shutil.copytree(ROOT / "tests" / "old_runs" / "pretrain", tmp_path / name / "pretrain")
        class_folders(tmp_path / name, {"photos": (1, 0)})
        env = os.environ | forked.PLAIN | left
        done = forked.run("-m", *words, cwd=tmp_path / name, env=env)
        said.append((done.returncode, done.stdout, done.stderr))
    assert said[0] == said[1] and "".join(said[1][1:]).strip()


def test_help_is_a_manual():
    printed = run("train.py", "--help").stdout
    assert "images per process" in printed and "Views" in printed


@pytest.mark.parametrize("script", [train, evaluate, finetune])
def test_help_begins_with_examples_and_six_settings(script):
    title, examples, first, *_ = config.manual(script.Settings).split("\n\n")
    name, commands = f"{script.__name__}.py", examples.splitlines()
    assert title == script.Settings.__doc__.splitlines()[0]
    assert len(commands) >= 2 and all(f"{name} " in line + " " and "--help" not in line for line in commands)
    heading, *settings = first.splitlines()
    assert heading == "To begin with:" and len(settings) == 6
    assert [line.split()[0][2:] for line in settings] == list(script.Settings.FIRST)


@pytest.mark.parametrize("script", [train, evaluate, finetune])
def test_help_names_every_setting_with_a_comment_and_its_choices(script):
    manual = config.manual(script.Settings)
    for field in dataclasses.fields(script.Settings):
        line = next(line for line in manual.splitlines() if line.startswith(f"  --{field.name} "))
        assert len(line.split()) > 2
        assert "[[" not in line and "[(" not in line and line.count("(") == line.count(")")
    assert "(linear|probe|knn|card|fixed|features|all) [probe knn]" in config.manual(evaluate.Settings)
