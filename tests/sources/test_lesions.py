"""Skin lesions by the tables published with them: labels, file names, splits, and what they leak."""

import csv
from pathlib import Path

import pytest
import torch
from drawn import picture
from hypothesis import given, settings
from hypothesis import strategies as st

import finetune
from ssl.errors import UserError
from ssl.settings import config
from ssl.sources import datasets, leaks, lesions

ROOT = Path(__file__).resolve().parents[2]
HEADER = ["image", "MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK", "label"]
PREFIX = "ISIC_2019_Training_Input/"


def write(path: Path, rows, delimiter=",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def isic_rows(names, prefix=""):
    """Every third is a melanoma."""
    return [HEADER, *([prefix + n, float(i % 3 == 0), *"00000000", int(i % 3 == 0)] for i, n in enumerate(names))]


def isic2019(root: Path) -> tuple[str, str]:
    """(data_dir, splits_folder) of ISIC 2019 in small: names as published, every other file `_downsampled`."""
    names = [f"ISIC_{i:07}" for i in range(18)]
    for i, name in enumerate(names):
        picture(root / "images" / f"{name}{'_downsampled' if i % 2 else ''}.jpg", (i, 2 * i, 3 * i))
    for split, part, prefix in (("train", names[:9], ""), ("val", names[9:12], PREFIX), ("test", names[12:], PREFIX)):
        write(root / "csv" / "splits" / f"{split}_split_1.csv", isic_rows(part, prefix))
    return str(root / "images"), str(root / "csv" / "splits")


def refusal(call, *arguments, **options) -> str:
    with pytest.raises(UserError) as raised:
        call(*arguments, **options)
    return str(raised.value)


def test_isic_2019_is_its_three_files_with_prefix_and_smaller_copies(tmp_path):
    images, splits = isic2019(tmp_path)
    parts = {s: datasets.load("isic2019", images, s, splits_folder=splits) for s in ("train", "val", "test")}
    assert {split: len(data) for split, data in parts.items()} == {"train": 9, "val": 3, "test": 6}
    for data in parts.values():
        assert data.classes == ["negative", "positive"] and data.groups is None
        assert data.labels.tolist() == [int(i % 3 == 0) for i in range(len(data))]
    assert [Path(path).name for path in parts["val"].paths] == [
        "ISIC_0000009_downsampled.jpg",
        "ISIC_0000010.jpg",
        "ISIC_0000011_downsampled.jpg",
    ]
    assert datasets.load("isic2019", images, "unlabelled", splits_folder=splits).paths == parts["train"].paths
    leaks.check(parts)


def test_the_whole_image_is_preferred_to_the_smaller_copy(tmp_path):
    images, splits = isic2019(tmp_path)
    picture(Path(images) / "ISIC_0000009.jpg")
    data = datasets.load("isic2019", images, "val", splits_folder=splits)
    assert Path(data.paths[0]).name == "ISIC_0000009.jpg"


def test_images_that_are_missing_are_counted_and_named(tmp_path):
    images, splits = isic2019(tmp_path)
    for i in (12, 13):
        next(Path(images).glob(f"ISIC_{i:07}*")).unlink()
    said = refusal(datasets.load, "isic2019", images, "test", splits_folder=splits)
    assert said.startswith("csv: 2 of 6 images are not in") and "'ISIC_0000012', 'ISIC_0000013'" in said
    datasets.load("isic2019", images, "train", splits_folder=splits)  # control: the other splits are whole


def test_lesions_come_from_the_metadata_and_a_shared_one_is_a_warning(tmp_path, capsys):
    images, splits = isic2019(tmp_path)
    rows = [[f"ISIC_{i:07}{'_downsampled' if i % 2 else ''}", f"L{i // 10}" if i % 5 else ""] for i in range(18)]
    write(Path(splits) / lesions.METADATA, [["image", "lesion_id"], *rows])
    parts = {s: datasets.load("isic2019", images, s, splits_folder=splits) for s in ("train", "val", "test")}
    assert parts["train"].groups == [None, "L0", "L0", "L0", "L0", None, "L0", "L0", "L0"]
    assert parts["val"].groups == ["L0", None, "L1"]
    leaks.check(parts)
    assert "1 patients, lesions or slides of val are in train too: 'L0'" in capsys.readouterr().out


def test_split_folders_with_the_same_training_images_are_named(tmp_path, capsys):
    images, splits = isic2019(tmp_path)
    parent = Path(splits).parent
    text = (Path(splits) / "train_split_1.csv").read_text()
    write(parent / "other" / "train_split_1.csv", isic_rows(["ISIC_1", "ISIC_2"]))
    write(parent / "broken" / "train_split_1.csv", [["nothing"]])
    assert lesions.tell_twins(Path(splits) / "train_split_1.csv") == []
    lines = text.splitlines(keepends=True)
    (parent / "shuffled").mkdir()
    (parent / "shuffled" / "train_split_1.csv").write_text("".join([lines[0], *lines[:0:-1]]))
    capsys.readouterr()
    datasets.load("isic2019", images, "train", splits_folder=splits)
    said = capsys.readouterr().out
    assert "has the same 9 images as shuffled: results on them are no independent repetitions" in said
    datasets.load("isic2019", images, "test", splits_folder=splits)
    assert capsys.readouterr().out == ""  # every folder repeats the same test, as published


def derm7pt(path: Path, count: int, positive: int) -> Path:
    """A table in the layout of derm7pt's: semicolons, the diagnosis by number."""
    diagnoses = [f"3.2.{i % 7}" if i < positive else f"1.{i % 9}" for i in range(count)]
    return write(path, [["image", "diagnosis"], *([f"x{i}", d] for i, d in enumerate(diagnoses))], ";")


@pytest.mark.parametrize("name, count, positive", [("derm7pt-clinical", 839, 248), ("derm7pt-dermoscopic", 872, 252)])
def test_derm7pt_is_read_by_its_diagnosis(tmp_path, name, count, positive):
    rows = lesions.read_labels(name, derm7pt(tmp_path / "t.csv", count, positive))
    assert len(rows) == count and sum(label for _, label in rows) == positive and rows[0] == ("x0", 1)
    write(tmp_path / "t.csv", [["image", "diagnosis"], ["a", "3.2"], ["b", "1.1"], ["c", "3.1"], ["d", "13.2"]], ";")
    assert "labels outside the classes: '13.2', '3.1'; expected 1.*" in refusal(
        lesions.read_labels, name, tmp_path / "t.csv"
    )


@pytest.mark.parametrize("name", [name for name in lesions.TABLES if name != "isic2019"])
def test_the_others_are_tests_alone(tmp_path, name):
    if name.startswith("derm7pt"):
        table = derm7pt(tmp_path / "t.csv", 4, 1)
    else:
        table = write(
            tmp_path / "t.csv", [["patient_id", "image", "label"], *(["p", f"x{i}", int(not i)] for i in range(4))]
        )
    for i in range(4):
        picture(tmp_path / "images" / f"x{i}.png", (i, i, i))
    images = str(tmp_path / "images")
    data = datasets.load(name, images, "test", csv=str(table))
    assert data.labels.tolist() == [1, 0, 0, 0] and data.classes == ["negative", "positive"] and data.name == name
    assert torch.tensor(datasets.normalisation(data, None, None)[0]).allclose(torch.tensor(datasets.IMAGENET[0]))
    for split in ("train", "val", "unlabelled"):
        assert f"dataset: {name} is a test set" in refusal(datasets.load, name, images, split, csv=str(table))
    assert "pass it as --csv FILE" in refusal(datasets.load, name, images, "test")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(lesions.TABLES)), st.text(st.sampled_from('01.23*,;"\n\0mel'), max_size=40))
def test_any_table_is_labels_or_one_clear_error(tmp_path_factory, name, content):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    column, _ = lesions.TABLES[name]
    delimiter = ";" if name.startswith("derm7pt") else ","
    path.write_text(f"image{delimiter}{column}\n{content}")
    try:
        assert all(label in (0, 1) for _, label in lesions.read_labels(name, path))
    except UserError as error:
        assert str(error).startswith("csv: ") and str(path) in str(error)


def test_what_is_not_as_published_is_refused(tmp_path):
    images, splits = isic2019(tmp_path)
    assert "pass the folder they are in as --splits_folder" in refusal(datasets.load, "isic2019", images, "train")
    assert "val_split_1.csv" in refusal(datasets.load, "isic2019", images, "val", splits_folder=images)
    for options, expected in (
        ({"label_column": "MEL"}, "label_column: is for a table; those of isic2019 are known"),
        ({"csv": "x.csv"}, "and no --csv"),
    ):
        assert expected in refusal(datasets.load, "isic2019", images, "train", splits_folder=splits, **options)
    assert "splits_folder: is for isic2019" in refusal(datasets.load, "folder", images, "train", splits_folder=splits)
    table = write(tmp_path / "t.csv", [["image", "label"], ["a", "0"], ["b", "10"], ["c", "mel"]])
    assert "labels outside the classes: '10', 'mel'" in refusal(lesions.read_labels, "pad-ufes-20", table)
    table = write(tmp_path / "t.csv", [["image", "labels"], ["a", "0"]])
    assert "'labels'; did you mean 'labels'?" in refusal(lesions.read_labels, "pad-ufes-20", table)


@pytest.mark.parametrize(
    "name, meant",
    [
        ("isic", "isic2019"),
        ("isic20", "isic2020"),
        ("atlas-clinical", "derm7pt-clinical"),
        ("atlas-dermato", "derm7pt-dermoscopic"),
        ("derm7pt-dermato", "derm7pt-dermoscopic"),
        ("pad-ufes-20", "pad-ufes-20"),
    ],
)
def test_the_names_of_the_published_code_are_taken(name, meant):
    assert datasets.resolve_name(name, "x") == meant


@pytest.mark.parametrize("name, meant", [("ISIC2019", "isic2019"), ("PAD-UFES-20", "pad-ufes-20")])
def test_other_spellings_are_told_the_right_one(name, meant):
    assert f"did you mean {meant}" in refusal(datasets.resolve_name, name, "x")


# As published -------------------------------------------------------------------------------


def counts(name, file):
    rows = lesions.read_labels(name, file)
    assert len({image for image, _ in rows}) == len(rows)
    return len(rows), sum(label for _, label in rows)


@pytest.mark.data
def test_published_tables_read_to_the_published_counts(real_data):
    folder = real_data / "isic_csv" / "datasplits"
    for splits, train in (
        ("splits", (14805, 3121)),
        ("splits_10_percent_1", (1480, 311)),
        ("splits_10_percent_3", (1480, 311)),
        ("splits_1_percent_1", (148, 31)),
    ):
        expected = {"train": train, "val": (1931, 224), "test": (3863, 396)}
        assert {s: counts("isic2019", folder / "isic2019" / splits / f"{s}_split_1.csv") for s in expected} == expected
    assert counts("isic2020", folder / "isic2020" / "isic2020-subset-test.csv") == (1743, 581)
    assert counts("pad-ufes-20", real_data / "padufes20" / "pad-ufes-20-labels.csv") == (1261, 52)


@pytest.mark.data
def test_the_published_splits_share_no_image_and_the_label_is_melanoma(real_data):
    folder = real_data / "isic_csv" / "datasplits" / "isic2019" / "splits"
    names = {s: {n for n, _ in lesions.read_labels("isic2019", folder / f"{s}_split_1.csv")} for s in lesions.SPLITS}
    assert sum(map(len, names.values())) == len(set().union(*names.values())) == 20599
    with open(folder / "train_split_1.csv", newline="") as file:
        melanoma = {row["image"]: int(float(row["MEL"])) for row in csv.DictReader(file)}
    assert dict(lesions.read_labels("isic2019", folder / "train_split_1.csv")) == melanoma


@pytest.mark.data
def test_the_published_splits_share_lesions_by_the_metadata_of_the_challenge(real_data):
    folder = real_data / "isic_csv"
    file = {
        row["image"].removesuffix("_downsampled"): row["lesion_id"]
        for row in csv.DictReader((folder / lesions.METADATA).read_text().splitlines())
    }
    known = {}
    for split in lesions.SPLITS:
        table = folder / "datasplits" / "isic2019" / "splits" / f"{split}_split_1.csv"
        names = tuple(name for name, _ in lesions.read_labels("isic2019", table))
        known[split] = lesions.lesions_of(names, folder)
        assert known[split] == [file.get(name) or None for name in names]
    shared = (set(known["train"]) & set(known["test"])) - {None}
    assert len(shared) == 1610 and sum(lesion in shared for lesion in known["test"]) == 2107


@pytest.mark.data
def test_the_published_tenths_1_and_3_are_told_apart_from_no_other(real_data):
    folder = real_data / "isic_csv" / "datasplits" / "isic2019"
    twins = {path.parent.name: lesions.tell_twins(path) for path in folder.glob("*/train_split_1.csv")}
    assert twins == {
        "splits": [],
        "splits_1_percent_1": [],
        "splits_10_percent_1": ["splits_10_percent_3"],
        "splits_10_percent_3": ["splits_10_percent_1"],
    }


# The tables of the top five ---------------------------------------------------------------------


def rows_of(name: str, *fields: str) -> list[tuple]:
    values = config.read_yaml(ROOT / "configs" / name)
    return [tuple((values | row)[field] for field in fields) for row in values["rows"]]


def test_the_top_five_are_those_published():
    assert rows_of("lesions_supervised.yaml", "method", "lr", "schedule", "batch_size", "balanced") == [
        ("baseline", 0.009, "plateau", 128, True),
        ("baseline", 0.002, "plateau", 32, True),
        ("baseline", 0.005, "plateau", 128, True),
        ("baseline", 0.003, "plateau", 128, True),
        ("baseline", 0.0001, "cosine_by_epoch", 32, True),
    ]
    assert rows_of("lesions_ssl.yaml", "method", "lr") == [
        ("simclr", 0.01),
        ("swav", 0.01),
        ("byol", 0.01),
        ("byol", 0.001),
        ("infomin", 0.001),
    ]


def test_the_semi_supervised_recipe_is_the_published_one():
    assert rows_of("semi_imagenet.yaml", "train_percent", "lr_backbone", "lr", "weight_decay", "epochs") == [
        (1, 0.005, 0.5, 0.0, 20),
        (10, 0.005, 0.5, 0.0, 20),
    ]
    values = config.read_yaml(ROOT / "configs" / "semi_imagenet.yaml")
    assert (8 * values["batch_size"], values["schedule"], values["dataset"]) == (256, "cosine_by_epoch", "ImageNet")


RECIPES = [
    path
    for path in sorted((ROOT / "configs").glob("*.yaml"))
    if not {"projector", "extends"} & config.read_yaml(path).keys()
]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_finetune_is_valid(path):
    rows = len(config.read_yaml(path).get("rows", []))
    for row in [["--row", str(number)] for number in range(1, rows + 1)] or [[]]:
        read, _ = config.parse(finetune.Settings, ["--config", str(path), "--init", "x.pth", *row])
        finetune.check(read)


def test_there_are_recipes_of_finetune():
    assert {"lesions_supervised", "lesions_ssl", "lesions_contrastive", "semi_imagenet"} <= {p.stem for p in RECIPES}


@pytest.mark.parametrize("name", ["lesions_supervised", "lesions_ssl", "lesions_contrastive"])
def test_the_recipe_of_the_tables_is_the_published_one(name):
    shared = config.read_yaml(ROOT / "configs" / f"{name}.yaml")
    for row in shared.pop("rows", [{}]):
        values = shared | row
        expected = dict(
            dataset="isic2019",
            epochs=100,
            patience=22,
            optimizer="sgd",
            momentum=0.9,
            weight_decay=1e-3,
            image_size=299,
            crop_scale=[0.75, 1.0],
            flip=0.5,
            vertical_flip=0.5,
            rotation=45.0,
            jitter=[0.0, 0.0, 0.0, 0.2],
            jitter_prob=1.0,
            copies=50,
            min_lr=1e-5,
            plateau_patience=10,
            plateau_factor=0.1,
        )
        assert {key: values[key] for key in expected} == expected
        assert "std" not in values and "mean" not in values  # those of the checkpoint, not the published slip of .228
