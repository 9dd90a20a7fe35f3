"""One small run of train.py and what evaluate.py says of it, for the tests of all scripts."""

import json
from pathlib import Path

import pytest
from running import run, tiny


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    done = run("train.py", *tiny(), data_dir=images, output_dir=folder)
    (folder / "printed.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def judged(trained, tmp_path_factory) -> tuple[dict, Path, str]:
    folder = tmp_path_factory.mktemp("judged")
    how = {"protocol": "all", "linear_epochs": 2, "random_init": True, "raw_pixels": True}
    done = run("evaluate.py", **how, model_path=trained, output_dir=folder)
    return json.loads((folder / "results.json").read_text()), folder, done.stdout
