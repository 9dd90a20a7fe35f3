"""evaluate.py --protocol features of whatever images people have, with labels or without."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import options, run

import evaluate
from ssl.encoders import SmallResNet
from ssl.errors import UserError
from ssl.evaluation import feature_table, features, npz

ENCODER = {"encoder": "ssl.encoders.SmallResNet", "encoder_kwargs": "{width: 8, stages: 2}", "stem": "small"}


@pytest.fixture(scope="module")
def common(tmp_path_factory) -> list[str]:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "encoder.pt"
    torch.save(SmallResNet(8, 2).state_dict(), path)
    how = {"image_size": 32, "workers": 0, "device": "cpu", "batch_size": 4, "max_bad_fraction": 0.5}
    return ["--model_path", str(path), *options(**ENCODER, **how)]


def draw(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(list(name.encode()))
        Image.fromarray(generator.integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(path)
    return root


def evaluated(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    evaluate.main()


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def numbers(row: dict[str, str]) -> np.ndarray:
    return np.array([value for name, value in row.items() if name.startswith("feature_")], np.float32)


SPLITS = [f"{split}/{name}/{i}.png" for split in ("train", "test") for name in "ab" for i in range(3)]
# Kind: (names of the files, more arguments, {name: (split, label)} as features.csv has it).
KINDS = {
    "one": (["1.png"], [], {"1.png": ("all", "")}),
    "flat": (["1.png", "2.png", "3.png"], [], {f"{i}.png": ("all", "") for i in (1, 2, 3)}),
    "nested": (["a/b/1.png", "a/2.png", "3.png"], [], dict.fromkeys(("a/b/1.png", "a/2.png", "3.png"), ("all", ""))),
    "splits without labels": (
        ["train/1.png", "train/x/2.png", "valid/3.png", "test/4.png"],
        [],
        {
            "train/1.png": ("train", ""),
            "train/x/2.png": ("train", ""),
            "valid/3.png": ("val", ""),
            "test/4.png": ("test", ""),
        },
    ),
    "one split alone": (["test/1.png", "test/2.png"], [], {"test/1.png": ("test", ""), "test/2.png": ("test", "")}),
    "one class": (["a/1.png", "a/2.png"], [], {"a/1.png": "train test", "a/2.png": "train test"}),
    "classes, and a test without labels": (
        ["train/a/1.png", "train/b/2.png", "test/3.png"],
        [],
        {"train/a/1.png": ("train", "a"), "train/b/2.png": ("train", "b"), "test/3.png": ("test", "")},
    ),
    "classes that differ": (
        ["train/a/1.png", "train/b/2.png", "test/b/3.png", "test/c/4.png"],
        [],
        {
            "train/a/1.png": ("train", "a"),
            "train/b/2.png": ("train", "b"),
            "test/b/3.png": ("test", "b"),
            "test/c/4.png": ("test", "c"),
        },
    ),
    "table": (["1.png", "2.png", "3.png"], ["--csv", "TABLE"], {"1.png": ("all", ""), "2.png": ("all", "")}),
    "table with splits": (
        ["1.png", "2.png"],
        ["--csv", "TABLE", "--split_column", "part"],
        {"1.png": ("train", ""), "2.png": ("test", "")},
    ),
    "table with a label missing": (
        ["1.png", "2.png"],
        ["--csv", "TABLE", "--split_column", "part", "--label_column", "kind"],
        {"1.png": ("train", "x"), "2.png": ("test", "")},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_any_folder_or_table(kind, common, tmp_path, monkeypatch, capsys):
    names, more, expected = KINDS[kind]
    root, out = draw(tmp_path / "my images", *names), tmp_path / "out"
    table = tmp_path / "table.csv"
    table.write_text("image,kind,part\n1.png,x,train\n2.png,,val\n")
    more = [table if word == "TABLE" else word for word in more]
    arguments = [*common, "--data_dir", root, *more, "--protocol", "features", "--output_dir", out]
    evaluated(monkeypatch, *arguments, "--csv_features", "--npz")
    last = capsys.readouterr().out.splitlines()[-1]
    found = {row["name"]: row for row in rows_of(out / "features.csv")}
    if kind == "one class":
        assert sorted(row["split"] for row in found.values()) == ["test", "train"]
    else:
        assert {name: (row["split"], row["label"]) for name, row in found.items()} == expected
    plain, compact = features.load(out), features.load(out / "features.npz")
    assert last.startswith("fine-tune" if plain.classes else "duplicates  python evaluate.py --features")
    for split in plain.splits.values():
        for index, path in enumerate(split.paths):
            own = split.rows[torch.tensor([index])].numpy()[0]
            assert numbers(found[str(Path(path).relative_to(root))]).tobytes() == own.tobytes()
        again = compact.splits[split.name]
        assert again.paths == split.paths and torch.equal(again.labels, split.labels)
        assert torch.equal(again.rows[torch.arange(len(again))], split.rows[torch.arange(len(split))])
    if not plain.classes:
        with pytest.raises(UserError, match=r"without labels there is nothing to judge.*--protocol features|no train/"):
            evaluated(monkeypatch, *common, "--data_dir", root, *more, "--output_dir", out)
        with pytest.raises(UserError, match=r"features: .* has labels of 0 of .*; to judge, some of train and"):
            evaluated(monkeypatch, "--features", out, "--device", "cpu")


def test_arrays_with_labels_for_some_images_keep_their_places(common, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    labels = np.where(np.arange(40) < 30, np.arange(40) % 2, -1)
    np.savez(tmp_path / "some.npz", images=pixels, labels=labels)
    np.save(tmp_path / "none.npy", pixels)
    tables = {}
    for name in ("some.npz", "none.npy"):
        how = [
            "--data_dir",
            tmp_path / name,
            "--protocol",
            "features",
            "--csv_features",
            "--output_dir",
            tmp_path / "out",
        ]
        evaluated(monkeypatch, *common, *how, "--mean", "0.5", "0.5", "0.5", "--std", "0.2", "0.2", "0.2")
        tables[name] = {row["name"]: row for row in rows_of(tmp_path / "out" / "features.csv")}
        assert set(tables[name]) == {f"array/{i}" for i in range(40)}
    for place, row in tables["some.npz"].items():  # cut into train and test, and each still under its own place
        label = labels[int(place.removeprefix("array/"))]
        assert row["label"] == ("" if label < 0 else str(label))
        assert numbers(row).tolist() == pytest.approx(numbers(tables["none.npy"][place]).tolist(), abs=1e-6)
    assert {row["split"] for row in tables["some.npz"].values()} == {"train", "test"}
    assert {row["split"] for row in tables["none.npy"].values()} == {"all"}


def test_labels_that_are_no_classes_are_left_out(common, tmp_path, monkeypatch, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "multi.npz", train_images=pixels, train_labels=np.ones((6, 4), int), val_images=pixels[:2])
    evaluated(
        monkeypatch, *common, "--data_dir", tmp_path / "multi.npz", "--protocol", "features", "--output_dir", tmp_path
    )
    found = features.load(tmp_path)
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 6, "test": 2} and not found.classes
    assert "labels      not used" in capsys.readouterr().out


def test_processes_write_the_same_rows_and_none_of_a_file_that_cannot_be_read(common, tmp_path):
    root = draw(tmp_path / "images", *(f"{i:02}.png" for i in range(11)))
    (root / "03.png").write_bytes(b"no image")
    (root / "10.png").write_bytes((root / "10.png").read_bytes()[:500])
    tables, names = [], [f"{i:02}.png" for i in range(11) if i not in (3, 10)]
    for processes in (1, 2):
        how = {"data_dir": root, "protocol": "features", "csv_features": True, "output_dir": tmp_path / str(processes)}
        done = run("evaluate.py", *common, **how, processes=processes)
        assert [
            line.split(":")[0].split("/")[-1] for line in done.stdout.splitlines() if line.startswith("left out")
        ] == [
            "03.png",
            "10.png",
        ]
        tables.append((tmp_path / str(processes) / "features.csv").read_bytes())
    assert tables[0] == tables[1] and [row["name"] for row in rows_of(tmp_path / "2" / "features.csv")] == names
    alone = draw(tmp_path / "alone", "05.png")
    run("evaluate.py", *common, data_dir=alone, protocol="features", csv_features=True, output_dir=tmp_path / "3")
    own, other = rows_of(tmp_path / "3" / "features.csv")[0], rows_of(tmp_path / "2" / "features.csv")[4]
    assert other["name"] == "05.png" and numbers(other).tolist() == pytest.approx(numbers(own).tolist(), abs=1e-6)


def test_near_duplicates_of_a_features_file_need_no_encoder(common, tmp_path, monkeypatch, capsys):
    root = draw(tmp_path / "images", *SPLITS)
    (root / "test" / "a" / "copy.png").write_bytes((root / "train" / "b" / "1.png").read_bytes())
    evaluated(monkeypatch, *common, "--data_dir", root, "--protocol", "features", "--output_dir", tmp_path)
    (root / "train" / "a" / "0.png").unlink()  # a picture that is no longer there is said to be
    evaluated(monkeypatch, "--features", tmp_path, "--near_duplicates", "0.01", "--device", "cpu")
    first = rows_of(tmp_path / "near_duplicates.csv")[0]
    assert (first["image_a"], first["image_b"], first["cosine"]) == ("train/b/1.png", "test/a/copy.png", "1.000000")
    page = (tmp_path / "near_duplicates.html").read_text("utf-8")
    assert "The picture cannot be read here." in page and "data:image/jpeg;base64," in page
    assert not (tmp_path / "results.json").exists() and "leak" in capsys.readouterr().out
    evaluated(monkeypatch, "--features", tmp_path, "--near_duplicates", "0.5", "--protocol", "knn", "--device", "cpu")
    assert (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    "more, words",
    [
        (["--protocol", "knn", "--near_duplicates", "0.9"], "near_duplicates: features are written by --protocol"),
        (["--csv_features"], "csv_features: features are written by --protocol features; add it"),
        (["--near_duplicates", "95"], "near_duplicates: 95 is no cosine between 0 and 1"),
        (["--protocol", "features", "--random_init"], "random_init and raw_pixels are judged; add a protocol"),
        (
            ["--protocol", "features", "--train_percent", "50"],
            "train_percent: chooses training images by their labels",
        ),
    ],
)
def test_what_cannot_work_is_said_before_the_wait(common, more, words, tmp_path, monkeypatch):
    root = draw(tmp_path / "images", "1.png", "2.png", "3.png")
    with pytest.raises(UserError, match=words):
        evaluated(monkeypatch, *common, "--data_dir", root, "--output_dir", tmp_path, *more)


def test_npz_that_would_not_fit_is_refused_before_the_wait(common, tmp_path, monkeypatch):
    root = draw(tmp_path / "images", "1.png", "2.png", "3.png")
    monkeypatch.setattr(npz, "free_memory", lambda *_: (3 * 32, "this machine"))
    arguments = [*common, "--data_dir", root, "--protocol", "features", "--output_dir", tmp_path]
    with pytest.raises(UserError, match=r"npz: 3 features of \d+ numbers take .* GiB.*features\.pt and --csv_features"):
        evaluated(monkeypatch, *arguments, "--npz")
    assert not (tmp_path / "features.pt").exists()
    evaluated(monkeypatch, *arguments, "--csv_features")


def test_numbers_of_any_size_read_back_and_a_full_disk_leaves_the_old_table(tmp_path, monkeypatch):
    x = torch.randn(50, 7) * torch.logspace(-40, 38, 7)
    split = features.Split("all", features.Rows((x,), x.device), torch.full((50,), -1), [], [f"{i}" for i in range(50)])
    found = features.Features({"all": split}, [], None, {})
    feature_table.write(found, tmp_path / "features.csv")
    read = np.stack([numbers(row) for row in rows_of(tmp_path / "features.csv")])
    assert read.tobytes() == x.numpy().tobytes()
    old = (tmp_path / "features.csv").read_bytes()
    monkeypatch.setattr(
        feature_table, "cell", lambda word: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space"):
        feature_table.write(found, tmp_path / "features.csv")
    assert (tmp_path / "features.csv").read_bytes() == old and len(list(tmp_path.iterdir())) == 1


def test_a_short_side_gives_the_features_that_are_judged(common, tmp_path, monkeypatch):
    """Images are reduced as they are read; with another protocol they are held in memory, reduced."""
    root, tables = draw(tmp_path / "images", *SPLITS), []
    for more in (["--short_side", 40], ["--short_side", 40, "--protocol", "features", "knn"], []):
        protocol = [] if "--protocol" in more else ["--protocol", "features"]
        arguments = [*common, "--data_dir", root, *more, *protocol, "--csv_features", "--output_dir", tmp_path]
        evaluated(monkeypatch, *arguments)
        tables.append((tmp_path / "features.csv").read_bytes())
    assert tables[0] == tables[1] != tables[2]


def test_a_features_file_without_labels_becomes_a_table_and_says_which_pictures_are_missing(
    common, tmp_path, monkeypatch, capsys
):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 80, 3), dtype=np.uint8)
    pixels[3] = pixels[5]
    np.save(tmp_path / "photos.npy", pixels)
    arguments = [*common, "--data_dir", tmp_path / "photos.npy", "--near_duplicates", "0.9", "--output_dir", tmp_path]
    evaluated(monkeypatch, *arguments)
    page = tmp_path / "near_duplicates.html"
    assert "pictures    " not in capsys.readouterr().out and "data:image/jpeg;base64," in page.read_text("utf-8")
    evaluated(monkeypatch, "--features", tmp_path, "--near_duplicates", "0.9", "--csv_features", "--device", "cpu")
    out, html = capsys.readouterr().out, page.read_text("utf-8")
    assert f"pictures    {html.count('cannot be read here')} on that page cannot be read" in out
    assert "array/3" in html and "data:image" not in html
    page.unlink()
    (tmp_path / "features.csv").unlink()
    evaluated(monkeypatch, "--features", tmp_path, "--csv_features", "--device", "cpu")
    assert len(rows_of(tmp_path / "features.csv")) == 40 and not (tmp_path / "results.json").exists()
    monkeypatch.setattr(feature_table, "cell", lambda word: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match=r"output_dir: cannot write to .*No space left.*features\.pt is complete"):
        evaluated(monkeypatch, "--features", tmp_path, "--csv_features", "--device", "cpu")


def test_rows_without_a_label_are_not_said_to_be_for_pre_training(common, tmp_path, monkeypatch, capsys):
    root, table = draw(tmp_path / "images", "1.png", "2.png"), tmp_path / "table.csv"
    table.write_text("image,sort\n1.png,x\n2.png,\n")
    more = ["--csv", table, "--label_column", "sort", "--protocol", "features", "--output_dir", tmp_path]
    evaluated(monkeypatch, *common, "--data_dir", root, *more)
    assert "rows have no 'sort' (1 empty): judging and fine-tuning leave them out" in capsys.readouterr().out
    assert len(features.load(tmp_path).splits["all"]) == 2
