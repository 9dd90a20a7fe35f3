"""evaluate.py as a person runs it: real processes, a small encoder."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import class_folders
from running import run, tiny

import evaluate
from ssl.checkpoints import inherit, pretrained, torch_file
from ssl.console import say_once
from ssl.data.images import Images
from ssl.encoders import SmallResNet, build_encoder
from ssl.errors import UserError
from ssl.evaluation import checks, feature_origin, features
from ssl.settings import config
from ssl.settings.shared import ImageSettings
from ssl.sources import datasets, every_image, shapes


def test_results_have_the_promised_form(judged):
    results, _, printed = judged
    for subject in (results, results["random_init"]):
        assert {"acc1", "acc5", "lr", "weight_decay"} <= set(subject["probe"])
        for judge in ("probe", "knn", "linear"):
            low, high = subject[judge]["acc1_interval"]
            assert 0 <= low <= subject[judge]["acc1"] <= high <= 1 and high - low > 0.1 and subject[judge]["n"] == 21
            assert subject[judge]["balanced_accuracy"] == pytest.approx(subject[judge]["acc1"])  # seven of every class
    assert results["linear"]["acc5"] == results["probe"]["acc5"] == "undefined"  # three classes
    assert {"probe", "knn"} == set(results["raw_pixels"])
    assert "untrained encoder" in printed and "raw pixels" in printed


def test_features_are_plain_tensors_in_order(judged, images):
    features = torch.load(judged[1] / "features.pt", weights_only=True)
    assert features["train"]["features"].shape == (64, 32) and features["test"]["features"].shape == (21, 32)
    for name, label in zip(features["test"]["names"], features["test"]["labels"].tolist()):
        assert features["classes"][label] == Path(name).parent.name


def test_features_of_other_images_leave_those_of_the_run(trained, images, tmp_path):
    how = {"model_path": trained, "protocol": "features", "workers": 0}
    run("evaluate.py", **how)
    before = (trained / "features.pt").read_bytes()
    shutil.copytree(images / "test", tmp_path / "others" / "test")
    said = run("evaluate.py", **how, data_dir=tmp_path / "others").stdout
    assert f"features    {trained / 'features_others' / 'features.pt'}" in said
    assert (trained / "features.pt").read_bytes() == before
    (trained / "features.pt").unlink()


@pytest.mark.parametrize(
    "named, inner",
    [
        ({}, "."),
        ({"data_dir": "/data/flowers"}, "."),
        ({"data_dir": "/data/../data/flowers/"}, "."),
        ({"data_dir": "/other/flowers"}, "features_flowers"),
        ({"data_dir": "/data/flowers", "csv": "/some.csv"}, "features_some.csv"),
        ({"data_dir": "/data/flowers.npz"}, "features_flowers.npz"),
        ({"dataset": "CIFAR10", "data_dir": "/data/flowers"}, "features_CIFAR10"),
    ],
)
def test_features_are_in_the_run_folder_if_they_are_of_its_images(tmp_path, named, inner):
    (tmp_path / "encoder.pt").touch()
    of_run = {"encoder": "resnet18", "dataset": "folder", "data_dir": "/data/flowers", "csv": None}
    settings = evaluate.Settings(model_path=str(tmp_path), **named)
    evaluate.fill(settings, of_run)
    assert evaluate.results_folder(settings, of_run, ["features"]) == tmp_path / inner
    assert evaluate.results_folder(settings, of_run, ["probe"]) == tmp_path
    assert evaluate.results_folder(settings, {}, ["features"]) == tmp_path  # of weights whose images are not known


def test_a_folder_of_results_has_the_name_of_the_images_folder_however_that_is_written(tmp_path, monkeypatch):
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "photos")
    for path, name in ((".", "photos"), ("..", tmp_path.name), ("cats/..", "photos"), ("cats/", "cats"), ("/", "root")):
        assert datasets.called(ImageSettings("folder", path)) == name


def test_images_of_features_may_be_named_by_any_path(tmp_path, monkeypatch):
    images = class_folders(tmp_path / "photos", {"train": (9, 0), "test": (6, 1)}, size=16)
    settings = evaluate.Settings(data_dir=str(images))
    datasets.resolve(settings)
    found = noise_of(every_image.load(settings), settings)
    monkeypatch.chdir(images)
    for path in (".", "../photos", "./../photos/", str(images)):
        feature_origin.require(found, evaluate.Settings(features="x", data_dir=path))
    next((images / "test").rglob("*.png")).rename(images / "test" / "other.png")
    with pytest.raises(UserError, match="is of another data set"):
        feature_origin.require(found, evaluate.Settings(features="x", data_dir="."))


def test_features_of_images_of_the_same_name_elsewhere_are_not_written_over(tmp_path, monkeypatch):
    (tmp_path / "encoder.pt").touch()
    of_run = {"encoder": "resnet18", "dataset": "folder", "data_dir": "/data/flowers", "csv": None}

    def folder(**named):
        settings = evaluate.Settings(model_path=str(tmp_path), **named)
        evaluate.fill(settings, of_run)
        return evaluate.results_folder(settings, of_run, ["features"]), dataclasses.asdict(settings)

    monkeypatch.chdir("/usr")
    inner, kept = folder(data_dir="test")
    torch_file.save({"settings": kept, "classes": [], "all": {}}, inner / "features.pt")
    assert folder(data_dir="/usr/test")[0] == folder(data_dir="test")[0] == inner == tmp_path / "features_test"
    monkeypatch.chdir("/")
    for named in ({"data_dir": "/p/test"}, {"data_dir": "test"}, {"data_dir": "/usr", "csv": "/usr/test"}):
        with pytest.raises(UserError, match=r"holds the features of /usr/test, .*set --output_dir, or rename that"):
            folder(**named)
    assert folder(data_dir="/p/test", output_dir=str(inner))[0] == inner  # as the user says
    assert folder(data_dir="/p/test.npz")[0] == tmp_path / "features_test.npz"


def test_shapes_of_another_size_are_other_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shapes, "_IMAGES", {"train": 100, "test": 50})
    (tmp_path / "encoder.pt").touch()
    of_run = {"encoder": "resnet18", "dataset": "shapes", "image_size": 24}
    for named, inner in (
        ({}, "."),
        ({"image_size": 24}, "."),
        ({"image_size": 28}, "features_shapes_28"),
        ({"dataset": "shapes"}, "features_shapes"),  # of 32 pixels
    ):
        settings = evaluate.Settings(model_path=str(tmp_path), **named)
        evaluate.fill(settings, of_run)
        assert evaluate.results_folder(settings, of_run, ["features"]) == tmp_path / inner

    say_once.cache_clear()  # another test may have said it
    settings = evaluate.Settings(dataset="shapes", image_size=24)
    found = noise_of(every_image.load(settings), settings)
    assert "drawn       `shapes` at 24 pixels: other images than at 32" in capsys.readouterr().out
    feature_origin.require(found, evaluate.Settings(features="x", dataset="shapes", image_size=24))
    for size in (28, None):
        with pytest.raises(UserError, match=f"drawn at 24 pixels, which are other images than at {size or 32}; pass"):
            feature_origin.require(found, evaluate.Settings(features="x", dataset="shapes", image_size=size))


@pytest.mark.parametrize("name, size", [("shapes", 32), ("fake", 224)])
def test_features_say_at_which_size_images_were_drawn_also_where_they_are_judged_at_another(
    tmp_path, monkeypatch, name, size
):
    noise = datasets._fake
    monkeypatch.setattr(shapes, "_IMAGES", {"train": 40, "test": 20})
    monkeypatch.setattr(datasets, "_fake", lambda *of: noise(*of).subset(torch.arange(40)))
    kwargs = dict(image_size=48, patch_size=16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=8)
    vit = "torchvision.models.vision_transformer.VisionTransformer"  # it reads one size
    torch.save(build_encoder(vit, 48, kwargs=kwargs)[0].state_dict(), tmp_path / "encoder.pt")
    of_run = {"encoder": vit, "encoder_kwargs": kwargs, "dataset": "folder", "data_dir": "/flowers", "image_size": 48}
    config.write_yaml(tmp_path / "config.yaml", of_run)
    how = ["--model_path", tmp_path, "--dataset", name, "--protocol", "features", "--workers", 0, "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["evaluate.py", *map(str, how)])
    evaluate.main()
    found = features.load(tmp_path / f"features_{name}" / "features.pt", torch.device("cpu"))
    assert found.settings["image_size"] == 48
    for named in ({}, {"image_size": size}):
        feature_origin.require(found, evaluate.Settings(features="x", dataset=name, **named))
    with pytest.raises(UserError, match=f"drawn at {size} pixels.*than at 48; pass --image_size {size}"):
        feature_origin.require(found, evaluate.Settings(features="x", dataset=name, image_size=48))


def noise_of(images: dict[str, Images], settings: evaluate.Settings) -> features.Features:
    """A features file of these images, whose features are noise."""
    splits = {}
    for name, data in images.items():
        rows = features.Rows((torch.randn(len(data), 4),), torch.device("cpu"))
        names = [data.sample_name(index) for index in range(len(data))]
        splits[name] = features.Split(name, rows, data.labels, data.classes, names)
    return features.Features(splits, data.classes, None, dataclasses.asdict(settings))


def test_images_that_are_made_are_judged_at_the_size_of_the_run(tmp_path):
    (tmp_path / "encoder.pt").touch()
    for name in datasets.MADE:
        of_run = {"encoder": "resnet18", "dataset": name, "image_size": 28}
        settings = evaluate.Settings(model_path=str(tmp_path))
        evaluate.fill(settings, of_run)
        assert settings.image_size == 28
        assert evaluate.results_folder(settings, of_run, ["features"]) == tmp_path


def test_a_share_of_the_labels_and_a_list_of_files(trained, images, tmp_path):
    done = run("evaluate.py", model_path=trained, train_percent=10, output_dir=tmp_path)
    assert "6 train, 21 test" in done.stdout
    names = sorted(p.name for p in (images / "train").rglob("*.png"))[:30]
    (tmp_path / "list.txt").write_text("\n".join(names))
    listed = ["evaluate.py", "--model_path", trained, "--train_files", tmp_path / "list.txt", "--output_dir", tmp_path]
    assert "30 train, 21 test" in run(*listed).stdout
    (tmp_path / "list.txt").write_text("nowhere.png\n")
    assert "1 of the 1 names" in run(*listed, check=False).stderr


def test_a_run_is_judged_with_its_own_seed_size_and_normalisation(tmp_path):
    run(
        "train.py",
        *tiny(max_steps=1, image_size=24, seed=7),
        output_dir=tmp_path,
        mean=[0.5, 0.4, 0.3],
        std=[0.2, 0.2, 0.3],
    )
    settings = evaluate.Settings(model_path=str(tmp_path))
    inherit.fill(settings, pretrained.run_settings(settings.model_path))
    assert (settings.dataset, settings.seed, settings.image_size, settings.stem) == ("shapes", 7, 24, "small")
    source = pretrained.load_encoder(SmallResNet(8, 2), tmp_path)
    assert (source.mean, source.std) == ([0.5, 0.4, 0.3], [0.2, 0.2, 0.3])
    elsewhere = evaluate.Settings(model_path=str(tmp_path), dataset="CIFAR10")
    inherit.fill(elsewhere, pretrained.run_settings(elsewhere.model_path))
    assert (elsewhere.mean, elsewhere.seed, elsewhere.image_size) == (None, 7, None)
    assert elsewhere.encoder == "ssl.encoders.SmallResNet" and elsewhere.encoder_kwargs == {"width": 8, "stages": 2}


def test_an_encoder_file_is_judged_too_and_earlier_numbers_stay(trained, tmp_path):
    common = ["evaluate.py", "--model_path", trained / "encoder.pt", "--output_dir", tmp_path]
    run(*common, protocol="knn")
    first = (tmp_path / "results.json").read_text()
    assert list(json.loads(first)) == ["knn", "of"]
    for protocols in (["knn", "probe"], ["knn", "probe"], ["probe"]):  # the second finds what the first has found
        done = run(*common, protocol=protocols)
        now = json.loads((tmp_path / "results.json").read_text())
        assert set(now) == {*protocols, "of"}
    assert "results.json (earlier ones are in results.2.json)" in done.stdout
    assert (tmp_path / "results.1.json").read_text() == first
    assert set(json.loads((tmp_path / "results.2.json").read_text())) == {"knn", "probe", "of"}
    assert not (tmp_path / "results.3.json").exists()


def test_an_empty_list_of_protocols_stops_with_one_line(trained, tmp_path):
    (tmp_path / "none.yaml").write_text("protocol: []\n")
    for what in ({"model_path": trained}, {"features": tmp_path}):
        done = run("evaluate.py", config=tmp_path / "none.yaml", **what, check=False)
        assert done.returncode == 2 and "protocol: the list names none" in done.stderr


def test_all_takes_nothing_away_that_is_named_beside_it():
    def protocols(*named, **settings):
        return checks.protocols_of(evaluate.Settings(protocol=list(named), **settings), {"protocol": "command line"})

    assert protocols("all") == ["linear", "probe", "knn", "features"]
    assert protocols("all", "fixed") == ["linear", "probe", "knn", "features", "fixed"]
    assert protocols("card", "all", features="f.pt") == ["probe", "knn", "card"]
    assert protocols("fixed", "all", "card", features="f.pt") == ["probe", "knn", "fixed", "card"]


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"model_path": "nowhere"}, "nowhere: no such file or run folder"),
        ({"k": "0"}, "k: 0 must be at least 1"),
        (
            {"protocol": "lnear"},
            "'lnear' is none of linear, probe, knn, card, fixed, features, all; did you mean 'linear'?",
        ),
        ({"encoder": "resnet18"}, "not weights of this encoder"),
        ({"image_size": "0"}, "image_size: 0 must be at least 1"),
        ({"output_dir": "/dev/null"}, "output_dir: cannot make /dev/null"),
    ],
)
def test_bad_settings_of_evaluate_stop_with_one_line(trained, settings, expected):
    done = run("evaluate.py", **{"model_path": trained} | settings, check=False)
    assert done.returncode == 2 and expected in done.stderr and "Traceback" not in done.stderr


def test_without_a_model_path_or_a_network_the_message_says_what_to_do(images, tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    done = run("evaluate.py", check=False)
    assert done.returncode == 2 and "--model_path: a run folder" in done.stderr and "download" not in done.stdout
    done = run("evaluate.py", model_path="barlow_twins", data_dir=images, check=False)
    assert done.returncode == 2 and "cannot be downloaded" in done.stderr and "resnet50.pth on another" in done.stderr


# What is judged, and what is written of it ------------------------------------------------------


def test_a_tenth_of_the_labels_judges_and_features_are_of_all_images(trained, tmp_path):
    """The numbers are those of the chosen labels; the file has every image, and says so when it is judged later."""
    how = {"model_path": trained, "workers": 0, "output_dir": tmp_path / "a"}
    run("evaluate.py", **how, protocol=["features", "knn"], train_percent=25)
    kept = features.load(tmp_path / "a")
    assert len(kept.splits["train"]) == 64
    few = json.loads((tmp_path / "a" / "results.json").read_text())
    assert few["of"]["data"]["train_images"] == 16 and few["of"]["train_percent"] == 25
    run("evaluate.py", model_path=trained, workers=0, protocol="knn", train_percent=25, output_dir=tmp_path / "b")
    assert json.loads((tmp_path / "b" / "results.json").read_text())["knn"] == few["knn"]
    for percent, count in ((25, 16), (100, 64)):
        place = tmp_path / f"later_{percent}"
        run("evaluate.py", features=tmp_path / "a", protocol="knn", train_percent=percent, output_dir=place)
        later = json.loads((place / "results.json").read_text())
        assert (later["of"]["data"]["train_images"], later["of"]["train_percent"]) == (count, percent)
        assert (later["knn"] == few["knn"]) is (percent == 25)


def test_a_data_set_in_memory_is_judged_by_the_chosen_labels_and_knows_its_features(trained, tmp_path):
    """Its images have no file names; a subset keeps the places."""
    of, how = {"dataset": "shapes", "image_size": 32, "train_percent": 10}, {"model_path": trained, "workers": 0}
    run("evaluate.py", **how, **of, protocol="knn", output_dir=tmp_path / "a")
    run("evaluate.py", **how, **of, protocol=["features", "knn"], output_dir=tmp_path / "b")
    run("evaluate.py", **of, features=tmp_path / "b", protocol="knn", output_dir=tmp_path)
    found = [json.loads((tmp_path / place / "results.json").read_text()) for place in ("a", "b", ".")]
    assert found[0]["knn"] == found[1]["knn"] == found[2]["knn"]
    assert [one["of"]["data"]["train_images"] for one in found] == [2000] * 3


def test_a_features_file_of_a_part_says_so_and_takes_no_second_choice(trained, tmp_path):
    """As older versions wrote it."""
    run("evaluate.py", model_path=trained, workers=0, protocol="features", output_dir=tmp_path)
    content = torch.load(tmp_path / "features.pt", weights_only=True)
    content["train"] = {name: values[::2] for name, values in content["train"].items()}
    content["settings"]["train_percent"] = 50.0
    torch.save(content, tmp_path / "features.pt")
    done = run("evaluate.py", features=tmp_path, protocol="knn", train_percent=25, check=False)
    assert done.returncode == 2 and "holds only the images of train_percent 50" in done.stderr
    for again in ({}, {"train_percent": 50}):
        run("evaluate.py", features=tmp_path, protocol="knn", **again)
        assert json.loads((tmp_path / "results.json").read_text())["of"]["train_percent"] == 50


def test_linear_alone_leaves_out_what_cannot_be_read(trained, tmp_path):
    data = class_folders(tmp_path / "data", {"train": (40, 0), "test": (12, 1)})
    paths = sorted((data / "train").rglob("*.png"))
    for path in paths[:3]:
        path.write_bytes(path.read_bytes()[:60])
    how = {"model_path": trained, "data_dir": data, "workers": 0, "linear_epochs": 1, "protocol": "linear"}
    done = run("evaluate.py", **how, output_dir=tmp_path / "a")
    assert all(f"left out    {path}" in done.stdout for path in paths[:3])
    of = json.loads((tmp_path / "a" / "results.json").read_text())["of"]
    assert of["data"]["train_images"] == 37
    test = sorted((data / "test").rglob("*.png"))[0]
    test.write_bytes(test.read_bytes()[:60])
    run("evaluate.py", **how | {"protocol": ["linear", "knn"]}, output_dir=tmp_path / "c")
    run("evaluate.py", **how, output_dir=tmp_path / "d")
    both, alone = (json.loads((tmp_path / place / "results.json").read_text()) for place in "cd")
    assert alone["linear"] == both["linear"] and alone["linear"]["n"] == 11
    assert alone["of"]["data"] == both["of"]["data"] and alone["of"]["data"]["test_images"] == 11
    for path in paths[3:11]:
        path.write_bytes(path.read_bytes()[:60])
    done = run("evaluate.py", **how, output_dir=tmp_path / "b", check=False)
    assert done.returncode == 2 and "11 of 40 images cannot be read, more than the 10 allowed" in done.stderr


def test_a_table_of_features_that_cannot_be_written_leaves_the_numbers(trained, tmp_path):
    (tmp_path / "features.csv" / "inner").mkdir(parents=True)
    how = {"model_path": trained, "workers": 0, "protocol": ["features", "knn"], "output_dir": tmp_path}
    done = run("evaluate.py", **how, csv_features=True, check=False)
    assert done.returncode == 2 and "output_dir: cannot write to" in done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["knn"]["n"] == found["of"]["data"]["test_images"] == 21 and "k-NN" in done.stdout


def test_features_of_arrays_or_files_with_other_content_are_refused(trained, tmp_path):
    """Names, labels and number agree; the pixels do not."""
    numbers = torch.randint(0, 256, (2, 42, 32, 32, 3), dtype=torch.uint8).numpy()
    labels = {f"{split}_labels": np.arange(21) % 3 for split in ("train", "test")}
    for name, pixels in zip(("one", "other"), numbers):
        np.savez(tmp_path / f"{name}.npz", train_images=pixels[:21], test_images=pixels[21:], **labels)
    one = class_folders(tmp_path / "one", {"train": (24, 0), "test": (12, 1)})
    other = class_folders(tmp_path / "other", {"train": (24, 2), "test": (12, 3)})
    for here, there in ((tmp_path / "one.npz", tmp_path / "other.npz"), (one, other)):
        place = tmp_path / f"of_{here.name}"
        run("evaluate.py", model_path=trained, data_dir=here, protocol="features", workers=0, output_dir=place)
        run("evaluate.py", features=place, data_dir=here, protocol="knn")
        done = run("evaluate.py", features=place, data_dir=there, protocol="knn", check=False)
        assert done.returncode == 2 and "is of other images" in done.stderr
    moved = shutil.move(one, tmp_path / "moved")
    run("evaluate.py", features=tmp_path / "of_one", data_dir=moved, protocol="knn")


def test_results_say_which_labels_judged(trained, images, tmp_path):
    rows = [f"{path.relative_to(images)},{path.parent.name}" for path in images.rglob("*.png")]
    (tmp_path / "table.csv").write_text("\n".join(["image,shape", *rows]))
    found = []
    for positive in ("disc", "ring"):
        how = {"csv": tmp_path / "table.csv", "label_column": "shape", "positive": positive, "data_dir": images}
        run("evaluate.py", model_path=trained, **how, protocol="knn", workers=0, output_dir=tmp_path / positive)
        found.append(json.loads((tmp_path / positive / "results.json").read_text())["of"]["data"])
    assert [of["positive"] for of in found] == [["disc"], ["ring"]] and found[0]["label_column"] == "shape"
    assert found[0]["test_labels"] != found[1]["test_labels"]
