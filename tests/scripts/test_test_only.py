"""finetune.py --test_only writes over no run and over no other test; the same command again still works."""

import json
import shutil
from pathlib import Path

import pytest
from drawn import class_folders
from running import run, small_finetuning

from ssl.settings import config


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A/data and B/data: two sets of one name, of files of the same names."""
    folder = tmp_path_factory.mktemp("images")
    class_folders(folder / "A" / "data", {"train": (12, 0), "val": (6, 1), "test": (9, 2)}, size=16)
    class_folders(folder / "B" / "data", {"test": (9, 3)}, size=16)
    return folder


@pytest.fixture(scope="module")
def model(images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "run"
    tiny = small_finetuning(epochs=1, image_size=16, workers=0, encoder_kwargs="{width: 4, stages: 1}", runs=2)
    run("finetune.py", *tiny, data_dir=images / "A" / "data", output_dir=folder)
    return folder


@pytest.fixture
def tuned(model, tmp_path) -> Path:
    return shutil.copytree(model, tmp_path / "run")


def run_test(model: Path, data: Path, check: bool = True, **settings):
    return run("finetune.py", "--test_only", model_path=model, data_dir=data, workers=0, check=check, **settings)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("whole", [True, False])
def test_a_run_is_not_written_over(tuned, images, whole):
    """Nor one whose config.yaml is lost."""
    if not whole:
        (tuned / "config.yaml").unlink()
    before = files(tuned)
    for folder in (tuned, tuned / "seed_0"):
        done = run_test(tuned / "seed_0", images / "B" / "data", output_dir=folder, check=False)
        assert done.returncode == 2 and f"output_dir: {folder} holds a run" in done.stderr
    assert files(tuned) == before


def test_nor_is_one_that_has_saved_nothing_yet_or_whose_seeds_are_all_that_is_left(tuned, images, tmp_path):
    (tmp_path / "begun").mkdir()
    config.write_yaml(tmp_path / "begun" / "config.yaml", {"method": "simclr", "dataset": "shapes"})  # of train.py
    shutil.copytree(tuned / "seed_1", tmp_path / "left" / "seed_1")
    before = files(tmp_path)
    for folder in ("begun", "left"):
        done = run_test(tuned, images / "B" / "data", output_dir=tmp_path / folder, check=False)
        assert done.returncode == 2 and "holds a run" in done.stderr
    assert files(tmp_path) == before


def test_another_test_is_not_written_over_and_the_same_is_made_again(tuned, images, tmp_path):
    first, place = images / "A" / "data", tuned / "test_data"
    run_test(tuned, first)
    before = files(place)
    for one, other in ((0, 1), (1, 0)):
        shutil.copytree(tuned / f"seed_{one}", tmp_path / "other" / f"seed_{other}")
    for model, data, changed in (
        (tuned, images / "B" / "data", {}),  # of the same name, size, and names of files
        (tuned, first, {"copies": 3}),
        (tuned, first, {"amp": "bf16"}),
        (tmp_path / "other", first, {"output_dir": place}),
        (tuned / "seed_0", first, {"output_dir": place}),
    ):
        done = run_test(model, data, check=False, **changed)
        assert done.returncode == 2, (data, changed)
        assert f"output_dir: {place / 'results.json'} is there already, of other" in done.stderr
        assert files(place) == before
    run_test(tuned, first)
    mine = {"status.json": b"", "lock": b""}  # of the process
    assert files(place) | mine == before | mine
    run_test(tuned, images / "B" / "data", output_dir=tuned / "test_B")
    first, second = (json.loads((tuned / name / "results.json").read_text()) for name in ("test_data", "test_B"))
    assert first["mean"]["loss"] != second["mean"]["loss"]


def test_one_that_was_cut_short_is_made_again(tuned, images):
    place = tuned / "seed_0" / "test_data"
    run_test(tuned / "seed_0", images / "A" / "data")
    whole = files(place)
    (place / "results.json").unlink()
    run_test(tuned / "seed_0", images / "A" / "data")
    assert files(place)["results.json"] == whole["results.json"]


def test_what_other_scripts_wrote_is_not_written_over(tuned, images):
    """Results of evaluate.py, predictions of --predict, and what nobody can read."""
    run("finetune.py", predict=images / "A" / "data", model_path=tuned / "seed_0", workers=0)
    odd = {"evaluated": '{"knn": {"acc1": 0.5}, "of": {"weights": {}}}', "unread": "{", "odd": '{"runs": [3]}'}
    for name, content in odd.items():
        (tuned / name).mkdir()
        (tuned / name / "results.json").write_text(content)
    for folder in (tuned / "seed_0" / "predict_data", *(tuned / name for name in odd)):
        before = files(folder)
        done = run_test(tuned / "seed_0", images / "A" / "data", output_dir=folder, check=False)
        assert done.returncode == 2 and "is there already, of other images" in done.stderr
        assert files(folder) == before
