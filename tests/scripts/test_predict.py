"""finetune.py --predict: a row for every image that is named, equal to what --test_only finds, and no wrong row."""

import csv
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import class_folders
from running import run, small_finetuning

import finetune
from ssl.checkpoints import torch_file
from ssl.errors import UserError
from ssl.evaluation import predict

CLASSES = ["disc", "ring", "square"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Small pictures in class folders: they are held in memory, and shown whole."""
    return class_folders(tmp_path_factory.mktemp("images"), {"train": (60, 0), "val": (15, 1), "test": (21, 2)})


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Larger ones, which stay files: their central square is shown."""
    return class_folders(tmp_path_factory.mktemp("photos"), {"test": (21, 3)}, size=80)


@pytest.fixture(scope="module")
def tuned(images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    run("finetune.py", *small_finetuning(), data_dir=images, output_dir=folder)
    return folder


def ask(images: Path, model: Path, folder: Path | None, monkeypatch, **settings) -> None:
    """finetune.py --predict in this process."""
    settings = {"predict": images, "model_path": model, "output_dir": folder, "workers": 0} | settings
    words = [word for name, value in settings.items() if value is not None for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *words])
    finetune.main()


def read(path: Path) -> list[dict]:
    with open(path / "predictions.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def scores(rows: list[dict]) -> list[list[str]]:
    return [[row[f"score_{name}"] for name in CLASSES] for row in rows]


def numbers(rows: list[dict]) -> torch.Tensor:
    return torch.tensor([[float(cell) for cell in row] for row in scores(rows)], dtype=torch.float64)


# Rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("which", ["images", "photos"])
def test_the_rows_are_those_of_a_test_of_the_same_images(which, copies, tuned, tmp_path, monkeypatch, request):
    data = request.getfixturevalue(which) / "test"
    monkeypatch.setattr(predict, "AT_ONCE", 8)
    how = {"model_path": tuned, "workers": 0, "copies": copies, "batch_size": 8}
    run("finetune.py", "--test_only", **how, data_dir=data, output_dir=tmp_path / "test")
    ask(data, tuned, tmp_path / "out", monkeypatch, copies=copies, batch_size=8)
    tested, rows = read(tmp_path / "test"), read(tmp_path / "out")
    assert list(rows[0]) == ["name", "predicted", "probability", *(f"score_{name}" for name in CLASSES), "unread"]
    for name in ("name", "predicted"):
        assert [row[name] for row in rows] == [row[name] for row in tested] and len(rows) == 21
    assert scores(rows) == scores(tested)
    for row in rows:
        assert row["probability"] == row[f"score_{row['predicted']}"] == max(row[f"score_{c}"] for c in CLASSES)
        assert row["unread"] == ""
    assert len({row["probability"] for row in rows}) > 5


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_write_the_rows_of_one_and_say_the_same(photos, tuned, tmp_path, processes):
    shutil.copytree(photos, tmp_path / "photos")
    for name in ("test/disc/test000.png", "test/ring/broken.jpg"):
        (tmp_path / "photos" / name).write_bytes(b"no image")
    how = {"predict": tmp_path / "photos", "model_path": tuned, "batch_size": 4}
    one = run("finetune.py", **how, output_dir=tmp_path / "1")
    many = run("finetune.py", **how, output_dir=tmp_path / "2", processes=processes)
    rows, others = read(tmp_path / "1"), read(tmp_path / "2")
    assert len(rows) == 22 and sum(row["unread"] != "" for row in rows) == 2
    for name in ("name", "predicted", "unread"):
        assert [row[name] for row in rows] == [row[name] for row in others]
    kept = [[row for row in found if row["predicted"]] for found in (rows, others)]
    assert torch.allclose(numbers(kept[0]), numbers(kept[1]), rtol=0, atol=1e-6)
    of_one, of_many = (sorted(done.stdout.replace(f"/{n}/", "/N/").splitlines()) for done, n in ((one, 1), (many, 2)))
    assert [line for line in of_one if line[:5] != "image"] == [line for line in of_many if line[:5] != "image"]


def test_every_image_is_predicted_in_whatever_folder(images, tuned, tmp_path, monkeypatch):
    """Splits, an empty class, other files and images beside folders are no obstacle."""
    shutil.copytree(images, tmp_path / "all")
    (tmp_path / "all" / "train" / "none").mkdir()
    (tmp_path / "all" / "notes.txt").touch()
    shutil.copy(next(images.glob("test/disc/*")), tmp_path / "all" / "alone.png")
    ask(tmp_path / "all", tuned, tmp_path / "out", monkeypatch)
    names = [str(path.relative_to(tmp_path / "all")) for path in (tmp_path / "all").rglob("*.png")]
    assert [row["name"] for row in read(tmp_path / "out")] == sorted(names, key=os.fsencode) and len(names) == 97


def test_one_file_is_enough(photos, tuned, tmp_path, monkeypatch, capsys):
    photo = photos / "test" / "ring" / "test001.png"
    ask(photos, tuned, tmp_path / "all", monkeypatch)
    monkeypatch.chdir(photo.parent)
    ask(Path(photo.name), tuned, None, monkeypatch)
    assert capsys.readouterr().out.splitlines()[-1].endswith(str(tuned / "predict_test001.png" / "predictions.csv"))
    (row,) = read(tuned / "predict_test001.png")
    (other,) = [row for row in read(tmp_path / "all") if row["name"] == "test/ring/test001.png"]
    assert row["name"] == "test001.png" and row["predicted"] == other["predicted"]
    assert torch.allclose(numbers([row]), numbers([other]), rtol=0, atol=1e-6)


def test_a_table_names_the_images(photos, tuned, tmp_path, monkeypatch):
    table = tmp_path / "list.csv"
    table.write_text("file;label\ntest/square/test002;?\ntest/disc/test003.png;cat\n")
    ask(photos, tuned, None, monkeypatch, csv=table, image_column="file")
    names = [row["name"] for row in read(tuned / "predict_list.csv")]
    assert names == ["test/disc/test003.png", "test/square/test002.png"]


HOSTILE = ["a, b.png", 'q"uo"te.png', "line\nbreak.png", " blank .png", "'.png", "鳥.png"]


def test_names_come_back_from_the_file(photos, tuned, tmp_path, monkeypatch):
    source = next(photos.glob("test/disc/*"))
    names = [*HOSTILE, "=1+1.png", "-x/@y.png", os.fsdecode(b"\xff.png")]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / "in" / name)
    ask(tmp_path / "in", tuned, tmp_path / "out", monkeypatch)
    found = {row["name"] for row in read(tmp_path / "out")}
    assert found == {*HOSTILE, "'=1+1.png", "'-x/@y.png", r"\udcff.png"}  # a spreadsheet runs none


# Pixels ---------------------------------------------------------------------------------


def changed(tuned: Path, folder: Path, whole: bool | None = None, **settings) -> Path:
    """The best.pt of a run with other settings, and another record of how validation images were shown."""
    best = torch_file.load(tuned / "best.pt")
    best = best | {"whole": whole, "settings": best["settings"] | settings}
    folder.mkdir()
    torch_file.save(best, folder / "best.pt")
    return folder / "best.pt"


def test_a_short_side_is_that_of_the_training(photos, tuned, tmp_path, monkeypatch):
    model = changed(tuned, tmp_path / "model", whole=False, short_side=40)
    ask(photos / "test", model, tmp_path / "out", monkeypatch)
    ask(photos / "test", tuned, tmp_path / "other", monkeypatch)
    run("finetune.py", "--test_only", model_path=model, workers=0, data_dir=photos / "test", output_dir=tmp_path / "t")
    assert scores(read(tmp_path / "out")) == scores(read(tmp_path / "t")) != scores(read(tmp_path / "other"))
    with pytest.raises(UserError, match=r"short_side: .* was trained with 40, not 60; leave it out"):
        ask(photos, model, tmp_path / "refused", monkeypatch, short_side=60)


def test_small_images_are_shown_as_in_the_training(images, photos, tuned, tmp_path, monkeypatch, capsys):
    """Alone or beside larger ones: the central square, where the training had images of several sizes."""
    assert torch_file.load(tuned / "best.pt")["whole"] is True
    small, mixed = images / "test" / "disc", tmp_path / "mixed"
    shutil.copytree(small, mixed)
    shutil.copy(next(photos.rglob("*.png")), mixed / "zzz.png")
    model = changed(tuned, tmp_path / "model", whole=False)
    found = {}
    for name, data, weights in (("alone", small, model), ("mixed", mixed, model), ("whole", small, tuned)):
        ask(data, weights, tmp_path / name, monkeypatch)
        found[name] = numbers(read(tmp_path / name))[:7]
    assert "*** data" not in capsys.readouterr().out
    assert torch.allclose(found["alone"], found["mixed"], rtol=0, atol=1e-6)
    assert not torch.allclose(found["alone"], found["whole"], rtol=0, atol=1e-5)
    ask(mixed, tuned, tmp_path / "told", monkeypatch)
    assert "*** data     the model was chosen on small images, shown whole" in capsys.readouterr().out


def test_a_test_shows_images_as_in_the_training(images, tuned, tmp_path):
    """Where train or validation could not be shown whole, the test images were not either; the control: they can be."""
    model = changed(tuned, tmp_path / "model", whole=False)
    found = {}
    for name, weights in (("square", model), ("whole", tuned)):
        how = {"model_path": weights, "workers": 0, "data_dir": images, "output_dir": tmp_path / name}
        run("finetune.py", "--test_only", **how)
        found[name] = numbers(read(tmp_path / name))
    run("finetune.py", predict=images / "test", model_path=model, workers=0, output_dir=tmp_path / "predicted")
    assert torch.allclose(found["square"], numbers(read(tmp_path / "predicted")), rtol=0, atol=1e-6)
    assert not torch.allclose(found["square"], found["whole"], rtol=0, atol=1e-5)


# Images that cannot be read --------------------------------------------------------------


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("which", ["images", "photos"])
def test_an_image_that_cannot_be_read_has_a_row_without_a_prediction(
    which, copies, tuned, tmp_path, monkeypatch, capsys, request
):
    whole, part = request.getfixturevalue(which) / "test", tmp_path / "in"
    shutil.copytree(whole, part)
    broken = ["disc/test003.png", "ring/test010.png", "square/test020.png"]
    for name in broken:
        content = (whole / name).read_bytes()
        (part / name).write_bytes(content[: len(content) // 2])
    monkeypatch.setattr(predict, "AT_ONCE", 8)
    monkeypatch.setattr(predict, "NAMED", 2)
    ask(whole, tuned, tmp_path / "whole", monkeypatch, copies=copies)
    capsys.readouterr()
    ask(part, tuned, tmp_path / "part", monkeypatch, copies=copies)
    printed = capsys.readouterr().out
    assert printed.count("not read    ") == 3 and "not read    3 of 21 images" in printed and "test003.png: " in printed
    rows, others = read(tmp_path / "part"), read(tmp_path / "whole")
    assert [row["name"] for row in rows] == [row["name"] for row in others]
    unread = [row for row in rows if row["name"] in broken]
    assert [row["name"] for row in unread] == broken and all(row["unread"] for row in unread)
    assert {cell for row in unread for name, cell in row.items() if name not in ("name", "unread")} == {""}
    kept = [[row for row in found if row["name"] not in broken] for found in (rows, others)]
    if copies == 1 or which == "photos":  # in memory, images behind a bad one get other random views
        assert torch.allclose(numbers(kept[0]), numbers(kept[1]), rtol=0, atol=1e-6)
    assert all(row["predicted"] and not row["unread"] for row in kept[0])


def test_images_none_of_which_can_be_read_are_refused(tuned, tmp_path, monkeypatch):
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"photo.jpg"):
        ask(tmp_path / "photo.jpg", tuned, tmp_path / "out", monkeypatch)
    assert not list((tmp_path / "out").glob("*"))


def test_outputs_that_are_not_finite_leave_no_file(photos, tuned, tmp_path, monkeypatch):
    best = torch_file.load(tuned / "best.pt")
    best["model"]["head.bias"][0] = float("nan")
    torch_file.save(best, tmp_path / "best.pt")
    with pytest.raises(UserError, match="NaN or Inf for 21 of 21 images"):
        ask(photos, tmp_path / "best.pt", tmp_path / "out", monkeypatch)
    assert not list((tmp_path / "out").iterdir())


# Refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_path": None}, "predict: needs --model_path"),
        ({"test_only": True}, "predict: goes without --test_only"),
        ({"data_dir": "x"}, "data_dir: does not go with --predict"),
        ({"dataset": "CIFAR10"}, "dataset: does not go with --predict"),
        ({"label_column": "x"}, "label_column: does not go with --predict"),
        ({"predict": "/nowhere"}, "predict: /nowhere is not a folder, an image or an array"),
        ({"predict": "/nowhere.npy"}, "predict: /nowhere.npy is not there"),
        ({"image_size": 48}, "image_size: .* was trained with 32, not 48"),
        ({"mean": "[0.5, 0.5, 0.5]"}, "mean: .* was trained with"),
        ({"encoder_kwargs": "{width: 16}"}, "encoder_kwargs: .* was trained with"),
    ],
)
def test_what_would_not_be_right_is_refused(settings, words, images, tuned, tmp_path, monkeypatch):
    given = {"predict": images, "model_path": tuned} | settings
    with pytest.raises(UserError, match=words):
        ask(given.pop("predict"), given.pop("model_path"), tmp_path / "out", monkeypatch, **given)
    assert not (tmp_path / "out").exists()


def test_no_file_is_overwritten(images, tuned, tmp_path, monkeypatch):
    before = (tuned / "predictions.csv").read_bytes()
    with pytest.raises(UserError, match=r"output_dir: .*predictions.csv is there already; name another folder"):
        ask(images, tuned, tuned, monkeypatch)
    assert (tuned / "predictions.csv").read_bytes() == before


def test_channels_are_those_of_the_training(tuned, tmp_path, monkeypatch):
    np.save(tmp_path / "grey.npy", np.zeros((5, 32, 32), np.uint8))
    with pytest.raises(UserError, match=r"the images have 1 channels, those that .* was trained on 3"):
        ask(tmp_path / "grey.npy", tuned, tmp_path / "out", monkeypatch)


def test_of_several_models_one_is_named(images, tuned, tmp_path, monkeypatch):
    for seed in ("seed_0", "seed_1"):
        shutil.copytree(tuned, tmp_path / "runs" / seed)
    with pytest.raises(UserError, match=r"holds 2 models; name one of them, such as .*seed_0"):
        ask(images, tmp_path / "runs", tmp_path / "out", monkeypatch)


# Arrays ---------------------------------------------------------------------------------


def test_an_array_is_read_as_in_the_training(tmp_path, monkeypatch):
    """Two channels of 16 bits, with the value range of the training; an image outside it has no prediction."""
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 2
    pixels = (generator.integers(0, 2000, (60, 32, 32, 2)) + 1900 * labels[:, None, None, None]).astype(np.uint16)
    np.savez(tmp_path / "train.npz", images=pixels, labels=labels)
    how = small_finetuning(value_range=[0, 4095], data_dir=tmp_path / "train.npz", output_dir=tmp_path / "run")
    run("finetune.py", *how)
    pixels = np.ascontiguousarray(pixels[:, ::-1])  # the model has learnt from none of these
    parts = {"train_images": pixels, "train_labels": labels, "test_images": pixels, "test_labels": labels}
    np.savez(tmp_path / "splits.npz", **parts)
    run("finetune.py", "--test_only", model_path=tmp_path / "run", data_dir=tmp_path / "splits.npz", workers=0)
    tested = read(tmp_path / "run" / "test_splits.npz")
    pixels[7, 3, 3] = 5000
    np.save(tmp_path / "new.npy", pixels)
    ask(tmp_path / "new.npy", tmp_path / "run", None, monkeypatch)
    rows = read(tmp_path / "run" / "predict_new.npy")
    assert [row["name"] for row in rows] == [f"array/{number}" for number in range(60)]
    assert [row["name"] for row in rows if row["unread"]] == ["array/7"] and "5000" in rows[7]["unread"]
    for row, other in zip(rows, tested, strict=True):
        assert row["unread"] or float(row["score_1"]) == pytest.approx(float(other["score_1"]), abs=1e-6)
    np.savez(tmp_path / "several.npz", images=pixels[:5], labels=np.eye(5) + np.eye(5)[0])  # labels are not needed
    ask(tmp_path / "several.npz", tmp_path / "run", None, monkeypatch)
    assert [row["predicted"] for row in read(tmp_path / "run" / "predict_several.npz")] == [
        row["predicted"] for row in rows[:5]
    ]
    with pytest.raises(UserError, match="has splits; save the images to predict"):
        ask(tmp_path / "splits.npz", tmp_path / "run", tmp_path / "out", monkeypatch)
