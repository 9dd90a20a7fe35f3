"""Which recipe images of your own take: by the device, and by what a run that is continued began with."""

import json

import pytest

from ssl.sources import recipe
from ssl.sources.recipe import find_recipe


@pytest.fixture
def no_runs(monkeypatch, tmp_path):
    """No run is there that would be continued."""
    monkeypatch.setattr(recipe, "RUNS", tmp_path / "runs")


@pytest.mark.parametrize("method", ["barlow_twins", "simclr", "supcon"])
@pytest.mark.parametrize("images", ["photographs", "cells.npz"])
@pytest.mark.parametrize("size", [{}, {"image_size": 96}, {"image_size": "auto"}])
def test_images_of_your_own_take_the_recipe_for_a_cpu_without_a_gpu(no_runs, monkeypatch, method, images, size):
    asked = {"method": method, "data_dir": images} | size
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert find_recipe(asked).stem == f"{method}_folder_cpu"
    assert "_cpu" not in find_recipe(asked | {"device": "cuda"}).stem
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert "_cpu" not in find_recipe(asked).stem
    assert find_recipe(asked | {"device": "cpu"}).stem == f"{method}_folder_cpu"


@pytest.mark.parametrize("images", ["photographs", "cells.npz"])
@pytest.mark.parametrize("size", [{}, {"image_size": 96}, {"image_size": "auto"}])
def test_the_recipe_for_a_gpu_is_that_of_a_folder(no_runs, images, size):
    assert find_recipe({"data_dir": images, "device": "cuda"} | size).stem == "barlow_twins_folder"


@pytest.mark.parametrize("asked", [{}, {"dataset": "CIFAR10"}, {"dataset": "ImageNet", "data_dir": "x"}])
def test_data_sets_that_are_named_take_theirs_on_any_device(no_runs, asked):
    assert find_recipe(asked | {"device": "cpu"}) == find_recipe(asked | {"device": "cuda"})


@pytest.mark.parametrize("images", ["photographs", "cells.npz"])
@pytest.mark.parametrize("size", [32, 64])
def test_small_views_of_your_own_images_take_the_recipe_for_them_on_a_gpu_alone(no_runs, images, size):
    asked = {"data_dir": images, "image_size": size}
    assert find_recipe(asked | {"device": "cuda"}).stem == "barlow_twins_cifar10"
    assert find_recipe(asked | {"device": "cpu"}).stem == "barlow_twins_folder_cpu"
    assert find_recipe({"dataset": "CIFAR10", "image_size": size, "device": "cpu"}).stem == "barlow_twins_cifar10"


@pytest.mark.parametrize(
    "images, began",
    [
        ("photographs", "barlow_twins_folder"),
        ("photographs", "barlow_twins_folder_cpu"),
        ("photographs", "barlow_twins_cifar10"),
        ("cells.npz", "barlow_twins_imagenet"),  # which arrays once took
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_run_that_is_continued_keeps_its_recipe_on_any_device(tmp_path, images, began, device):
    asked = {"data_dir": images, "device": device, "output_dir": str(tmp_path)}
    asked |= {"image_size": 32} if began == "barlow_twins_cifar10" else {}
    origin = {"lr": f"/elsewhere/configs/{began}.yaml", "data_dir": "command line"}
    (tmp_path / "about.json").write_text(json.dumps({"origin": origin}))
    by_device = find_recipe(asked).stem
    assert ("_cpu" in by_device) == (device == "cpu")  # the control: a start that failed has left no checkpoint
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    assert find_recipe(asked).stem == began
    other = asked | {"output_dir": str(tmp_path / "new"), "resume": str(tmp_path / "checkpoint.pt")}
    assert find_recipe(other).stem == began


def test_a_run_of_another_method_keeps_the_recipe_for_a_cpu_that_its_own_extends(tmp_path):
    """Also where the command line sets all that its own file says."""
    origin = {"lr": "configs/barlow_twins_folder_cpu.yaml", "method": "command line"}
    (tmp_path / "about.json").write_text(json.dumps({"origin": origin}))
    (tmp_path / "checkpoint.pt").write_bytes(b"")
    asked = {"method": "simclr", "data_dir": "photographs", "device": "cuda", "output_dir": str(tmp_path)}
    assert find_recipe(asked).stem == "simclr_folder_cpu"
