"""Patches of slides: the test is hospitals or slides, and no patient is on two sides."""

import csv
import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from running import ROOT, TINY, run

import finetune
from ssl.data.hold_out import hold_out
from ssl.data.patches import patches
from ssl.errors import UserError
from ssl.settings import auto, config
from ssl.sources import datasets, leaks
from ssl.sources import slides as room
from ssl.sources.slides import FOLDERS, MAJOR, Slide, slide_of, slides

RECIPE = str(ROOT / "configs" / "tissue_finetune.yaml")
SLIDES = [
    f"TCGA-{h}-{p}-DX{i}"
    for h, p, i in [
        ("A1", "A0SK", 1),
        ("A1", "A0SP", 1),
        ("A2", "A04P", 1),
        ("A2", "A04P", 2),
        ("A2", "A0SK", 1),
        ("BH", "A0B3", 1),
        ("BH", "A0B4", 1),
        ("BH", "A0B5", 1),
        ("GI", "A2C9", 1),
        ("HN", "A2NL", 1),
    ]
]


def tree(root: Path, names=SLIDES, folders=("Tumor", "StromaNOS"), each: int = 3) -> Path:
    """`each` patches of every slide in every class folder; without folders, named by their place."""
    for folder in folders or [""]:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            for n in range(each):
                end = f"{n}_0.5" if folder else f"{112 * n}_0"
                Image.new("RGB", (80, 80), (n, 90, 9)).save(root / folder / f"{name}_{end}.png")
    return root


def table(root: Path, rows: dict[str, str]) -> str:
    lines = [f"{i},{name},{name.split('-')[1]},{split}" for i, (name, split) in enumerate(rows.items())]
    (root / "split.csv").write_text("\n".join([",slide_name,hospital,split", *lines, ""]))
    return str(root / "split.csv")


def names_of(data) -> set[str]:
    return {Path(path).name.split("_")[0] for path in data.paths}


@pytest.mark.parametrize(
    "name, expected",
    [
        ("TCGA-A1-A0SK-DX1_12_0.5.png", Slide("TCGA-A1-A0SK-DX1", "A1", "TCGA-A1-A0SK")),
        ("TCGA-A1-A0SK-DX1_0_224.png", Slide("TCGA-A1-A0SK-DX1", "A1", "TCGA-A1-A0SK")),
        ("TCGA-A1-A0SK-DX1.png", Slide("TCGA-A1-A0SK-DX1", "A1", "TCGA-A1-A0SK")),
        (
            "TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.2500_3_0.41.png",
            Slide("TCGA-A1-A0SK-DX1", "A1", "TCGA-A1-A0SK"),
        ),
        (
            "TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB_0_0.png",
            Slide("TCGA-3C-AALI-01Z-00-DX1", "3C", "TCGA-3C-AALI"),
        ),
        ("TCGA-A1-A0SK_12_0.5.png", None),
        ("image 3.png", None),
        ("TCGA--A0SK-DX1_1_0.5.png", None),
    ],
)
def test_names(name, expected):
    assert slide_of(name) == expected


def test_test_hospitals(tmp_path):
    tree(tmp_path)
    parts = {split: slides("slides", tmp_path, split, test=["A1", "GI"]) for split in ("train", "test", "unlabelled")}
    wanted = {name for name in SLIDES if name.split("-")[1] in ("A1", "GI")}
    assert names_of(parts["test"]) == wanted and names_of(parts["train"]) == set(SLIDES) - wanted
    assert len(parts["test"]) == len(wanted) * 6 and len(parts["train"]) + len(parts["test"]) == len(SLIDES) * 6
    assert parts["test"].classes == ["StromaNOS", "Tumor"]
    for path, label, group in zip(parts["train"].paths, parts["train"].labels, parts["train"].groups):
        assert Path(path).parent.name == parts["train"].classes[label]
        assert Path(path).name.startswith(group + "-")
    assert list(parts["unlabelled"].paths) == list(parts["train"].paths)
    assert slides("slides", tmp_path, "val", test=["A1"]) is None


def test_test_slides_and_patients(tmp_path):
    tree(tmp_path)
    test = slides("slides", tmp_path, "test", test=["TCGA-BH-A0B3-DX1", "TCGA-A2-A04P"])
    assert names_of(test) == {"TCGA-BH-A0B3-DX1", "TCGA-A2-A04P-DX1", "TCGA-A2-A04P-DX2"}


def test_the_published_kind_of_table_lists_the_test(tmp_path, capsys):
    tree(tmp_path / "patches")
    csv = table(tmp_path, {"TCGA-A1-A0SK-DX1": "test", "TCGA-HN-A2NL-DX1": "test", "TCGA-ZZ-A000-DX1": "test"})
    train, test = (slides("slides", tmp_path / "patches", split, csv=csv) for split in ("train", "test"))
    assert names_of(test) == {"TCGA-A1-A0SK-DX1", "TCGA-HN-A2NL-DX1"}
    assert names_of(train) == set(SLIDES) - names_of(test)
    said = capsys.readouterr().out
    assert said.count("1 of the 3 slides") == 1 and "'TCGA-ZZ-A000-DX1'" in said
    assert slides("slides", tmp_path / "patches", "val", csv=csv) is None


def test_a_table_may_name_all_splits(tmp_path):
    tree(tmp_path / "patches")
    rows = {name: ("test", "val", "train")[{"A1": 0, "BH": 1}.get(name.split("-")[1], 2)] for name in SLIDES}
    csv = table(tmp_path, rows)
    for split in ("train", "val", "test"):
        found = names_of(slides("slides", tmp_path / "patches", split, csv=csv))
        assert found == {name for name in SLIDES if rows[name] == split}
    pretrained = names_of(slides("slides", tmp_path / "patches", "unlabelled", csv=csv))
    assert pretrained == {name for name in SLIDES if rows[name] != "test"}


def test_the_groups_keep_patients_whole_in_validation(tmp_path):
    tree(tmp_path)
    train = slides("slides", tmp_path, "train", test=["GI"])
    for seed in range(5):
        rest, val = hold_out(train, 0.2, seed)
        assert not set(rest.groups) & set(val.groups)
        assert 0 < len(val) < 0.5 * len(train) and set(val.labels.tolist()) == {0, 1}
        leaks.check({"train": rest, "val": val, "test": slides("slides", tmp_path, "test", test=["GI"])})
    assert hold_out(train, 0.2, 1)[1].groups != hold_out(train, 0.2, 2)[1].groups


def test_control_patches_drawn_one_by_one_leak(tmp_path):
    train = slides("slides", tree(tmp_path), "train", test=["GI"])
    mixed = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    cut = len(train) // 5
    with pytest.raises(UserError, match="patients"):
        leaks.check({"train": train.subset(mixed[cut:]), "val": train.subset(mixed[:cut])})


def test_a_patient_of_two_hospitals_is_two_people(tmp_path):
    """A0SK of A1 and A0SK of A2."""
    tree(tmp_path)
    test = slides("slides", tmp_path, "test", test=["TCGA-A1-A0SK"])
    assert names_of(test) == {"TCGA-A1-A0SK-DX1"}


def test_a_patient_in_two_splits_is_refused(tmp_path):
    tree(tmp_path / "patches")
    words = "leak: 1 patients .* TCGA-A2-A04P: "
    for split in ("train", "test", "unlabelled", "val"):
        with pytest.raises(UserError, match=words):
            slides("slides", tmp_path / "patches", split, test=["TCGA-A2-A04P-DX2"])
    with pytest.raises(UserError, match=words):
        slides("slides", tmp_path / "patches", "train", csv=table(tmp_path, {"TCGA-A2-A04P-DX1": "val"}))


@pytest.mark.parametrize("hospital, asked", [("05", "5"), ("05", "05"), ("1", "1")])
def test_a_hospital_is_found_as_it_is_called_and_as_yaml_reads_it(hospital, asked):
    slide = Slide(f"TCGA-{hospital}-P-DX1", hospital, f"TCGA-{hospital}-P")
    assert room._by_list({slide}, [asked]) == {slide.name: "test"}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("AB"), st.integers(0, 5), st.integers(1, 3)), min_size=2, unique=True),
    st.integers(0, 2**16),
)
def test_whatever_is_the_test_no_patient_is_on_both_sides_or_it_is_an_error(cases, seed):
    there = {Slide(f"TCGA-{h}{h}-{p}-DX{i}", h * 2, f"TCGA-{h}{h}-{p}") for h, p, i in cases}
    words = sorted({word for slide in there for word in slide})
    test = random.Random(seed).sample(words, random.Random(seed).randint(1, len(words)))
    part = room._by_list(there, test)
    patients = [{slide.patient for slide in there if part[slide.name] == split} for split in ("train", "test")]
    if patients[0] & patients[1]:
        with pytest.raises(UserError, match="leak"):
            room._no_leak(there, part)
    else:
        room._no_leak(there, part)


# groups of classes


@pytest.mark.parametrize("name", ["tissue_5", "tissue_6", "tissue_8", "cell_7"])
def test_named_data_sets_choose_and_join_folders(tmp_path, name):
    tree(tmp_path, SLIDES[:3], [*FOLDERS[name], "Other"], each=1)
    train = slides(name, tmp_path, "train", test=["A2"])
    assert train.classes == list(dict.fromkeys(FOLDERS[name].values()))
    assert len(train.classes) == {"cell_7": 5}.get(name, int(name[-1]))
    assert len(train) == 2 * len(FOLDERS[name])
    for path, label in zip(train.paths, train.labels):
        assert FOLDERS[name][Path(path).parent.name] == train.classes[label]
    assert set(MAJOR[name]) < set(train.classes)
    assert len(slides(name, tmp_path, "unlabelled", test=["A2"])) == 2 * len(FOLDERS[name]) + 2


def test_a_folder_of_a_named_data_set_that_is_not_there(tmp_path):
    tree(tmp_path, SLIDES[:3], [name for name in FOLDERS["tissue_6"] if name != "Fat"])
    with pytest.raises(UserError, match=r"no patches in Fat/.*--dataset slides"):
        slides("tissue_6", tmp_path, "train", test=["A2"])


# through datasets.load


def test_by_name(tmp_path):
    tree(tmp_path)
    test = datasets.load("slides", str(tmp_path), "test", test_slides=["A1"])
    assert test.name == "slides" and names_of(test) == {"TCGA-A1-A0SK-DX1", "TCGA-A1-A0SP-DX1"}
    assert datasets.normalisation(test, None, None)[0] == pytest.approx([0.485, 0.456, 0.406])
    assert datasets.load("slides", str(tmp_path), "val", test_slides=["A1"]) is None


def test_pretraining_without_class_folders(tmp_path):
    tree(tmp_path, folders=())
    data = datasets.load("slides", str(tmp_path), "unlabelled", test_slides=["A2", "BH"])
    assert names_of(data) == {name for name in SLIDES if name.split("-")[1] in ("A1", "GI", "HN")}
    assert data.classes == [] and (data.labels == -1).all()
    with pytest.raises(UserError, match="without class folders"):
        datasets.load("slides", str(tmp_path), "train", test_slides=["A2"])


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, "--test_slides"),
        ({"test_slides": ["A1"], "csv": "split.csv"}, "not both"),
        ({"test_slides": ["A3"]}, r"'A3' is no hospital.* did you mean 'A\d'\?; the hospitals are A1, A2, BH"),
        ({"test_slides": ["A1", "A2", "BH", "GI", "HN"]}, "no patch .* is left for train"),
        ({"test_slides": ["A1"], "label_column": "dx"}, "label_column: .* those of slides are known"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, options, words):
    tree(tmp_path)
    with pytest.raises(UserError, match=words):
        datasets.load("slides", str(tmp_path), "train", **options)


@pytest.mark.parametrize(
    "rows, words",
    [
        ("0,TCGA-A1-A0SK-DX1,A1,tset\n", "row 1: 'tset' is none of .* did you mean 'test'"),
        ("0,TCGA-A1-A0SK-DX1,A1,test\n1,TCGA-A1-A0SK-DX1,A1,val\n", "row 2: .* in two splits"),
        ("0,TCGA-A1-A0SK-DX1,A1,test\n1,TCGA-A1-A0SP-DX1,A1,train\n", "8 slides have patches and no row"),
        ("0,TCGA-ZZ-A000-DX1,ZZ,test\n", "no patch .* is left for test"),
    ],
)
def test_tables_that_do_not_fit(tmp_path, rows, words):
    tree(tmp_path / "patches")
    (tmp_path / "split.csv").write_text(",slide_name,hospital,split\n" + rows)
    with pytest.raises(UserError, match=words):
        slides("slides", tmp_path / "patches", "test", csv=str(tmp_path / "split.csv"))


def test_strange_names_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match="has no images"):
        slides("slides", tmp_path, "train", test=["A1"])
    tree(tmp_path, SLIDES[:2])
    Image.new("RGB", (8, 8)).save(tmp_path / "Tumor" / "cell.png")
    with pytest.raises(UserError, match=r"1 of 13 images are not named after a slide: 'Tumor/cell\.png'"):
        slides("slides", tmp_path, "train", test=["A1"])


def test_other_data_sets_have_no_slides(tmp_path):
    tree(tmp_path)
    with pytest.raises(UserError, match="test_slides: is for data sets whose"):
        datasets.load("folder", str(tmp_path), "train", test_slides=["A1"])


def test_hospital_05_which_yaml_takes_for_a_number(tmp_path):
    tree(tmp_path, ["TCGA-05-4244-DX1", "TCGA-A1-A0SK-DX1"])
    assert names_of(slides("slides", tmp_path, "test", test=["5"])) == {"TCGA-05-4244-DX1"}


def test_what_patches_writes_is_read(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for name in SLIDES[:4]:
        for folder, mode in (("slides", (96, 96, 3)), ("masks", (96, 96))):
            (tmp_path / folder).mkdir(exist_ok=True)
            pixels = torch.randint(200, mode, generator=generator, dtype=torch.uint8)
            if folder == "masks":
                pixels = (torch.arange(96) // 48).to(torch.uint8).expand(96, 96)
            Image.fromarray(pixels.contiguous().numpy()).save(tmp_path / folder / f"{name}.png")
    (tmp_path / "codes.csv").write_text("GT_code,main_classes\n0,Tumor\n1,StromaNOS\n")
    total = patches(
        tmp_path / "slides", tmp_path / "out", tmp_path / "masks", tmp_path / "codes.csv", patch=32, step=16, workers=0
    )
    parts = [slides("slides", tmp_path / "out", split, test=["A1"]) for split in ("train", "test")]
    assert [len(part) for part in parts] == [50, 50] and sum(total.values()) == 100
    assert [names_of(part) for part in parts] == [set(SLIDES[2:4]), set(SLIDES[:2])]
    patches(tmp_path / "slides", tmp_path / "all", patch=32, step=16, workers=0)
    assert len(slides("slides", tmp_path / "all", "unlabelled", test=["A1"])) == 50


# finetune.py


def test_the_recipe_of_the_study():
    rows = [config.parse(finetune.Settings, ["--config", RECIPE, "--row", str(row)])[0] for row in (1, 2)]
    for row in rows:
        assert row.dataset == "tissue_6" and row.major == MAJOR["tissue_6"]
        assert (row.batch_size, row.epochs, row.weight_decay, row.watch) == (256, 30, 0.0, "auc")
    one, two = rows
    assert (one.optimizer, one.momentum, one.lr, one.lr_backbone) == ("sgd", 0.9, 0.03, None)
    assert (one.schedule, one.warmup_epochs, one.min_lr) == ("cosine", "auto", 0.0)
    assert auto.warmup(one.warmup_epochs, one.epochs, one.schedule) == 3
    assert (two.optimizer, two.lr, two.schedule, two.plateau_factor) == ("adam", 5e-3, "plateau", 0.2)
    assert two.encoder == "ssl.preact.ResNet50V2"


@pytest.mark.parametrize("name", ["tissue_resnet20v2", "tissue_resnet50v2"])
def test_the_recipes_pretrain_on_no_slide_that_fine_tuning_is_tested_on(name):
    shared = config.read_yaml(ROOT / "configs" / f"{name}.yaml")
    assert shared["dataset"] == "slides"
    assert shared["test_slides"] == config.read_yaml(RECIPE)["test_slides"] == ["A1", "A2", "GI", "HN"]


@pytest.mark.slow
def test_fine_tuning_tests_the_hospitals_that_it_was_told(tmp_path):
    tree(tmp_path / "patches", folders=["TUMOR", "STROMA", "TILS", "JUNK", "WHITE"], each=2)
    small = {name: value for name, value in TINY.items() if name not in ("projector", "log_every")}
    recipe = {"config": RECIPE, "row": 1, "dataset": "tissue_5", "test_slides": ["A1", "GI"]}
    where = {"data_dir": tmp_path / "patches", "output_dir": tmp_path / "run"}
    run("finetune.py", **small | {"batch_size": 8} | recipe | where)
    found = json.loads((tmp_path / "run" / "results.json").read_text())["test"]
    assert found["major"]["count"] == {"tumor": 6, "stroma": 6, "tils": 0, "junk": 0, "white": 0}
    assert sum(found["minor"]["count"].values()) == 18
    with open(next((tmp_path / "run").rglob("predictions.csv")), encoding="utf-8") as file:
        tested = [Path(row["name"]).name for row in csv.DictReader(file)]
    assert len(tested) == 30 and {name.split("-")[1] for name in tested} == {"A1", "GI"}
