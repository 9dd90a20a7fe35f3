"""Recipes of pre-training: each is read, builds its model and takes a step; SimCLR's are those of their study."""

import dataclasses
from collections import ChainMap
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl.augment import View
from ssl.data.images import Images
from ssl.data.loader import finish, training_batches
from ssl.data.order import Order
from ssl.errors import UserError
from ssl.settings import auto, config, ranges
from ssl.sources import recipe
from ssl.training import by_machine

ROOT = Path(__file__).resolve().parents[2]
import finetune
import train

RECIPES = [
    path
    for path in sorted((ROOT / "configs").glob("*.yaml"))
    if {"projector", "extends"} & config.read_yaml(path).keys()
]
SMALL = {
    "encoder": "ssl.encoders.SmallResNet",
    "encoder_kwargs": {"width": 8, "stages": 1},
    "image_size": 16,
    "batch_size": 4,
    "accumulate": 1,
}


@pytest.fixture(autouse=True)
def with_a_gpu(monkeypatch):
    """The recipes of images of your own are those for a GPU, unless --device cpu is asked for."""
    monkeypatch.setattr(recipe, "_on_cpu", lambda asked: asked.get("device") == "cpu")


def read(*arguments) -> train.Settings:
    return config.parse(train.Settings, [*map(str, arguments)], recipe=train.find_recipe)[0]


def with_rows(path: Path) -> list[train.Settings]:
    """The settings of each row of a recipe, or its only ones, for a data set that it is meant for."""
    values = config.read_yaml(path)
    rows = [["--row", number] for number in range(1, 1 + len(values.get("rows", [])))] or [[]]
    return [read("--config", path, *data_of(path), *row) for row in rows]


def data_of(path: Path) -> list[str]:
    """The data set that a recipe is meant for, as one would name it."""
    known = {
        "shapes": "shapes",
        "cifar10": "CIFAR10",
        "search": "CIFAR10",
        "study": "CIFAR10",
        "svhn": "SVHN",
        "stl10": "STL10",
    }
    known |= {"imagenet100": "ImageNet100", "tinyimagenet": "folder", "imagenet": "ImageNet"}
    known |= {"lesions_ucl": "isic2019", "lesions_scl": "isic2019"}
    named = config.read_yaml(path).get("dataset") or next(
        (known[word] for word in known if word in path.stem), "folder"
    )
    return ["--dataset", named, *([] if named == "shapes" else ["--data_dir", "x"])]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_builds_its_model_and_takes_a_step(path):
    for row in (rows := with_rows(path)):
        assert path.stem.startswith((row.method, "lesions", "tissue", "cifar10_speedrun"))
        train.check(row)
    large = Images("fake", torch.zeros(50_000), [], pool=torch.zeros(1, 3, 256, 256, dtype=torch.uint8))
    by_machine.settle(rows[0], large, train.Model, torch.device("cpu"))
    found = auto.resolve(vars(rows[0]), 256, 50_000)
    settings = dataclasses.replace(rows[0], **{name: value for name, (value, _) in found.items()})
    widths = [int(width) for width in settings.projector.split("-")]
    with torch.device("meta"):  # shapes alone: no memory, no time
        model = train.Model(settings)
        z = model(torch.zeros(2, 3, settings.image_size, settings.image_size))[0]
    assert z.shape == (2, widths[-1])

    tiny = dataclasses.replace(settings, **SMALL, projector="-".join(["8"] * len(widths)))
    torch.manual_seed(0)
    model = train.Model(tiny).train()
    data = Images("fake", torch.tensor([0, 1] * 4), ["a", "b"], torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8))
    views, order = train.make_views(tiny), Order(8, 4, 1, 1, 0)
    batch = next(training_batches(data, views, order, 0, 1, 0, torch.device("cpu")))
    criterion = train.make_criterion(tiny)
    z = model(*finish(batch, views, torch.tensor([0.5] * 3), torch.tensor([0.25] * 3)))
    before = [p.detach().clone() for p in model.parameters()]
    criterion(*z, *train.targets(criterion, [batch])).backward()
    train.make_optimizer(tiny, model, train.lr_scale(tiny, 4)).step()
    for p, old in zip(model.parameters(), before):
        assert p.isfinite().all() and not torch.equal(p, old)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_named_recipe_is_the_same_at_any_image_size_and_for_any_data_set(path):
    _, follows_data = config.chain(str(path))
    row = ["--row", 1] if "rows" in config.read_yaml(path) else []
    sizes = [[*data_of(path), "--image_size", size] for size in (32, 64, 65, 224)]
    others = [["--dataset", name, "--data_dir", "x"] for name in ("CIFAR10", "SVHN", "STL10", "ImageNet", "folder")]
    asked = ("config", "row", "dataset", "data_dir", "image_size")
    recipes = [
        {name: value for name, value in vars(read("--config", path, *row, *arguments)).items() if name not in asked}
        for arguments in (sizes if follows_data else sizes + others)
    ]
    assert all(recipe == recipes[0] for recipe in recipes)


def over_the_recipe_of_the_data(path: Path, folder: Path, *arguments) -> dict:
    """{setting: (value, value)}: where a named recipe is changed by the one that its data set and image size have."""
    values = dict(ChainMap(*(values for _, values in reversed(config.chain(str(path))[0]))))
    config.write_yaml(folder / "over.yaml", {"extends": "auto"} | values)
    row = ["--row", 1] if "rows" in values else []
    alone, over = (vars(read("--config", file, *arguments, *row)) for file in (path, folder / "over.yaml"))
    return {name: (alone[name], over[name]) for name in alone if name != "config" and alone[name] != over[name]}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_named_recipe_lacks_nothing_that_its_data_sets_recipe_has(path, tmp_path):
    assert over_the_recipe_of_the_data(path, tmp_path, *data_of(path)) == {}


@pytest.mark.parametrize(
    "name, changed",
    [
        ("lesions_ucl", {"color_distortion_strength": (1.0, 0.5), "blur_kernel": (23, 3)}),
        ("barlow_twins_imagenet", {"crop_scale": ((0.08, 1.0), [0.2, 1.0]), "blur_prob": ([1.0, 0.1], [0.0, 0.0])}),
    ],
)
def test_at_another_image_size_that_recipe_would_change_the_views(name, changed, tmp_path):
    """The control of both tests above."""
    data = ["--dataset", "folder", "--data_dir", "x", "--image_size", 64]
    assert over_the_recipe_of_the_data(ROOT / "configs" / f"{name}.yaml", tmp_path, *data) == changed


def test_simclrs_recipes_are_those_of_the_study():
    crop = View(
        size=32,
        crop_scale=(0.08, 1),
        flip=0.5,
        jitter=(0.4, 0.4, 0.4, 0.1),
        jitter_prob=0.8,
        grayscale=0.2,
        blur_prob=0.5,
        blur_kernel=3,
        solarize_prob=0,
    )
    turn = dataclasses.replace(crop, crop_scale=(1, 1), crop_ratio=(1, 1), flip=0, rotation=30, rotation_prob=0.33)
    large = dataclasses.replace(crop, size=224, jitter=(0.8, 0.8, 0.8, 0.2), blur_kernel=23)
    expected = {"CIFAR10": crop, "CIFAR100": crop, "SVHN": turn} | dict.fromkeys(
        ["ImageNet50", "ImageNet100", "ImageNet200"], large
    )
    for dataset, view in expected.items():
        settings = read("--method", "simclr", "--dataset", dataset, "--data_dir", "x")
        auto.settle(settings, 1024, 50_000)
        assert train.make_views(settings) == [view, view]
        assert (settings.encoder, settings.projector, settings.temperature) == ("resnet18", "64-64", 0.1)
        model = train.Model(settings)
        rates = [g["lr"] for g in train.make_optimizer(settings, model, train.lr_scale(settings, 1024)).param_groups]
        assert rates == pytest.approx([0.075 * 1024**0.5] * 2)
        assert (settings.epochs, settings.weight_decay, settings.accumulate) == (100, 1e-6, 1)
        for epoch in range(100):  # the study's schedule changes by epoch
            factor = 0.01 + 0.99 * epoch / 10
            if epoch >= 10:
                factor = (1 + torch.cos(torch.tensor(torch.pi * (epoch - 10) / 90))).item() / 2
            assert train.lr_factor(settings, epoch * 7 + 3, 7) == pytest.approx(factor, abs=1e-6)


@pytest.mark.parametrize("dataset", ["CIFAR10", "CIFAR100", "SVHN", "ImageNet100"])
def test_what_the_studys_recipe_does_otherwise_is_as_in_the_study(dataset):
    study = vars(read("--config", ROOT / "configs/simclr_study.yaml", "--dataset", dataset))
    usual = vars(read("--method", "simclr", "--dataset", dataset))
    assert {name: study[name] for name in study if name != "config" and study[name] != usual[name]} == {
        "accumulate_mode": "split",
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
        "eval_every": 50,
        "eval_head": "fixed",
        "ssl_val_interval": 25,
        "seed": 42,
    }


def test_on_all_of_imagenet_the_studys_recipe_is_that_of_its_subsets():
    file = ROOT / "configs/simclr_study.yaml"
    whole, subset = (vars(read("--config", file, "--dataset", name)) for name in ("ImageNet", "ImageNet100"))
    assert {name for name in whole if whole[name] != subset[name]} == {"dataset", "batch_size"}
    assert 2 * whole["batch_size"] == 4 * subset["batch_size"] == 1024  # --gpus 2 and --gpus 4: the study's batch
    chens = read("--method", "simclr", "--dataset", "ImageNet")  # the control: what lies under it is another recipe
    assert (chens.encoder, chens.projector, chens.schedule) == ("resnet50", "2048-128", "cosine")


def test_the_rows_of_the_search_are_the_studys_grid():
    def row(number, dataset):
        return read("--config", ROOT / "configs/simclr_search.yaml", "--row", number, "--dataset", dataset)

    small = [row(number, "CIFAR100") for number in range(1, 18)]
    grid = {(s.temperature, s.lr, s.batch_size, s.accumulate) for s in small[:16]}
    rates = (0.025, 0.075, 0.125, 0.175)
    assert grid == {(t, lr, 512, a) for t in (0.1, 0.5) for lr in rates for a in (1, 4)}
    wide = small[16]
    assert (wide.encoder, wide.batch_size, wide.accumulate, wide.lr, wide.temperature) == (
        "wide_resnet_28_10",
        256,
        2,
        0.125,
        0.5,
    )
    large = [row(number, "ImageNet100") for number in (18, 19, 20)]
    assert [(s.batch_size, s.accumulate) for s in large] == [(125, 4), (125, 16), (256, 16)]
    for s in [*small, *large]:
        assert (s.eval_every, s.ssl_val_interval, s.seed) == (50, 25, 42)
        assert (s.epochs, s.projector, s.accumulate_mode, s.mean, s.std) == (801, "128-128", "split", [0] * 3, [1] * 3)
        assert (s.image_size, s.color_distortion_strength) == ((224, 1.0) if s in large else (32, 0.5))
    assert {s.encoder for s in small[:16]} == {"resnet18"} and {s.encoder for s in large} == {"resnet50"}


def test_arguments_of_another_encoder_are_not_inherited(tmp_path):
    (tmp_path / "small.yaml").write_text("extends: auto\nencoder: resnet18\n")
    alone = read("--config", tmp_path / "small.yaml")  # over the recipe of shapes
    assert (alone.encoder, alone.encoder_kwargs) == ("resnet18", {})
    assert read("--encoder", "ssl.encoders.SmallConvNet").encoder_kwargs == {"width": 16}
    (tmp_path / "mine.yaml").write_text(
        "extends: auto\nencoder_kwargs: {width: 8}\n"
    )  # of whichever encoder is asked for
    assert read("--config", tmp_path / "mine.yaml", "--encoder", "resnet50").encoder_kwargs == {"width": 8}


# What says auto ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "batch, lr",
    [
        (128, 0.7),
        (256, 0.4),
        (512, 0.3),
        (1024, 0.25),
        (2048, 0.2),
        (4096, 0.2),  # the authors' table
        (16, 0.7),
        (8192, 0.2),
        (362, 0.35),
        (1448, 0.225),  # beyond its ends; in the middle, as a factor
    ],
)
def test_the_learning_rate_follows_the_authors_table(batch, lr):
    assert auto.learning_rate(batch) == pytest.approx(lr, abs=2e-4)


def test_between_its_points_a_line_over_the_logarithm_and_never_up():
    rates = [auto.learning_rate(batch) for batch in range(2, 5000, 7)]
    assert rates == sorted(rates, reverse=True)
    for (x0, y0), (x1, y1) in zip(auto.BARLOW_TWINS_LR, auto.BARLOW_TWINS_LR[1:]):
        assert auto.interpolate((x0 * x1) ** 0.5, auto.BARLOW_TWINS_LR) == pytest.approx((y0 + y1) / 2)
        linear = auto.interpolate((x0 + x1) / 2, auto.BARLOW_TWINS_LR)  # the control: of the batch itself
        assert y0 == y1 or linear != pytest.approx((y0 + y1) / 2, rel=1e-3)


def test_epochs_projector_and_blur_follow_images_and_their_size():
    lengths = [auto.epochs(n) for n in (500, 50_000, 80_000, 126_689, 400_000, 1_281_167, 10**8)]
    assert lengths == [1000, 1000, 630, 400, 200, 100, 100]
    assert [auto.projector("barlow_twins", n) for n in (50_000, 1_281_167)] == ["2048-2048-2048", "8192-8192-8192"]
    assert auto.projector("simclr", 50_000) == "512-128"
    assert [auto.blur_prob("barlow_twins", size) for size in (32, 64, 65, 224)] == [[0, 0]] * 2 + [[1.0, 0.1]] * 2
    assert auto.blur_prob("a method of yours", 224) == [1.0, 0.1]


def test_only_what_says_auto_is_resolved_and_with_a_reason():
    own = read("--data_dir", "x")
    found = auto.resolve(vars(own), 512, 126_689)
    assert {name: value for name, (value, _) in found.items()} == {
        "lr": 0.3,
        "epochs": 400,
        "warmup_epochs": 10,
        "projector": "2048-2048-2048",
        "blur_prob": [1.0, 0.1],
    }
    assert "512" in found["lr"][1] and "126689" in found["epochs"][1]
    chosen = read("--data_dir", "x", "--lr", "0.2", "--projector", "64-64", "--blur_prob", "0", "0")
    assert auto.resolve(vars(chosen), 512, 126_689).keys() == {"epochs", "warmup_epochs"}


@pytest.mark.parametrize(
    "method, epochs, warmup",
    [
        ("barlow_twins", 2, 0.2),
        ("barlow_twins", 73, 7.3),
        ("barlow_twins", 100, 10),
        ("barlow_twins", 1000, 10),
        ("simclr", 1, 0),
        ("simclr", 25, 2),
        ("simclr", 300, 10),  # this schedule changes by epoch
    ],
)
def test_a_short_try_warms_up_a_tenth_of_itself(method, epochs, warmup):
    settings = read("--method", method, "--dataset", "CIFAR10", "--epochs", epochs)
    train.check(settings)
    auto.settle(settings, 256, 50_000)
    train.check(settings)
    assert settings.warmup_epochs == warmup
    factors = [train.lr_factor(settings, step, 100) for step in range(100 * epochs)]
    assert max(factors) == pytest.approx(1, abs=1e-3) and factors[-1] < 0.5 + (epochs == 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--encoder", "resnet18"], "stem small (views of 32 pixels; small up to 64)"),
        (["--encoder", "resnet18", "--image_size", "65"], "stem imagenet (views of 65 pixels; small up to 64)"),
        (["--encoder", "resnet18", "--stem", "imagenet"], None),
        (["--encoder", "ssl.encoders.SmallResNet"], None),  # whose stem is its own
    ],
)
def test_a_run_says_which_stem_its_images_get(tmp_path, monkeypatch, capsys, arguments, said):
    def far_enough(*_):
        raise UserError("far enough")

    np.save(tmp_path / "images.npy", np.zeros((8, 32, 32, 3), np.uint8))
    where = ["--data_dir", str(tmp_path / "images.npy"), "--output_dir", str(tmp_path / "run"), "--batch_size", "8"]
    size = [] if "--image_size" in arguments else ["--image_size", "32"]
    monkeypatch.setattr("sys.argv", ["train.py", *where, *size, *arguments])
    monkeypatch.setattr(train, "find_validation", far_enough)
    with pytest.raises(UserError, match="far enough"):
        train.main()
    lines = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines() if line.startswith("auto")]
    assert [line for line in lines if line.startswith("stem")] == ([said] if said else [])


def test_the_published_recipe_says_nothing_auto_and_the_table_agrees_with_it():
    published = read("--dataset", "ImageNet", "--data_dir", "x")
    assert auto.resolve(vars(published), 2048, 1_281_167) == {}
    found = auto.resolve(vars(read("--data_dir", "x")), 2048, 1_281_167)
    for name, (value, _) in found.items():  # images of your own, as many as ImageNet's, on 8 GPUs
        assert value == getattr(published, name)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--method", "simclr", "--lr", "auto"], "lr: auto is known only for method barlow_twins"),
        (["--optimizer", "sgd", "--lr", "auto"], "only for method barlow_twins with optimizer lars .*; pass --lr"),
        (["--lr", "automatic"], "'automatic' is not a number"),
        (["--lr", "null"], "None is not a number"),
        (["--epochs", "autos"], "'autos' is not an integer"),
        (["--temperature", "auto"], "'auto' is not a number"),
    ],
)
def test_auto_that_cannot_be_is_refused(arguments, expected):
    with pytest.raises(UserError, match=expected):
        auto.resolve(vars(read("--dataset", "ImageNet", "--data_dir", "x", *arguments)), 256, 1000)


def test_a_run_made_shorter_than_its_warm_up_has_a_tenth_of_it(tmp_path):
    (tmp_path / "short.yaml").write_text("method: barlow_twins\ndataset: shapes\nepochs: 5\n")
    (tmp_path / "both.yaml").write_text("method: barlow_twins\ndataset: shapes\nepochs: 5\nwarmup_epochs: 7\n")

    def warmup(script, words) -> float:
        recipe = train.find_recipe if script is train else None
        settings, origin = config.parse(script.Settings, words.split(), recipe=recipe)
        auto.shorten_warmup(settings, origin)
        asked = settings.warmup_epochs
        settings.warmup_epochs = auto.warmup(asked, settings.epochs, settings.schedule)
        ranges.check_training(settings)
        return settings.warmup_epochs

    finetuning = f"--config {ROOT / 'configs/tissue_lc25000_cpu_finetune.yaml'}"
    for script, words, expected in (
        (train, "--epochs 1", 0.1),
        (train, "--epochs 2", 1.0),  # of the recipe, and there is room for it
        (train, "--method supcon --epochs 1", 0.1),
        (train, f"--config {ROOT / 'configs/lesions_ucl.yaml'} --row 2 --epochs 4", 0.0),  # whole epochs
        (train, f"--config {tmp_path / 'short.yaml'}", 0.5),  # of the script's own ten
        (finetune, f"{finetuning} --epochs 2", 0.2),
        (finetune, finetuning, 2.0),
    ):
        assert warmup(script, words) == pytest.approx(expected), words
    for script, words in (
        (train, "--epochs 1 --warmup_epochs 1"),
        (train, "--warmup_epochs 5"),
        (train, f"--config {tmp_path / 'both.yaml'}"),
        (finetune, "--schedule cosine --epochs 2 --warmup_epochs 2"),
    ):
        with pytest.raises(UserError, match="must be fewer than epochs"):
            warmup(script, words)


def test_the_embedded_set_can_be_tried_for_one_epoch(tmp_path, monkeypatch, capsys):
    def far_enough(*_):
        raise UserError("far enough")

    monkeypatch.setattr(train, "find_validation", far_enough)
    monkeypatch.setattr("sys.argv", ["train.py", "--epochs", "1", "--output_dir", str(tmp_path)])
    with pytest.raises(UserError, match="far enough"):
        train.main()
    assert "auto        warmup_epochs 0.1 (a tenth of the run, 10 at most)" in capsys.readouterr().out


def test_there_are_recipes():
    assert {"barlow_twins_imagenet", "simclr_svhn", "supcon_imagenet", "lesions_ucl"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize(
    "asked, expected",
    [
        ({}, "barlow_twins_shapes"),
        ({"method": "simclr", "dataset": "SVHN"}, "simclr_svhn"),
        ({"dataset": "SVHN"}, "barlow_twins_cifar10"),
        ({"dataset": "CIFAR100", "method": "supcon"}, "supcon_cifar10"),
        ({"data_dir": "x", "method": "supcon"}, "supcon_imagenet"),
        ({"data_dir": "x", "image_size": 32}, "barlow_twins_cifar10"),
        ({"data_dir": "x"}, "barlow_twins_folder"),
        ({"dataset": "CIFAR100", "method": "simclr"}, "simclr_cifar10"),
        ({"dataset": "ImageNet", "image_size": 64}, "barlow_twins_imagenet"),
        ({"dataset": "ImageNet100", "image_size": 64}, "barlow_twins_imagenet100"),
        ({"dataset": "ImageNet50"}, "barlow_twins_imagenet100"),
        ({"dataset": "ImageNet200", "method": "simclr"}, "simclr_imagenet100"),
        ({"dataset": "ImageNet200", "method": "supcon"}, "supcon_imagenet"),
        ({"dataset": "STL10"}, "barlow_twins_stl10"),
    ],
)
def test_the_recipe_under_a_run_is_that_of_the_method_and_the_data(asked, expected):
    assert train.find_recipe(asked).stem == expected


def test_the_recipes_for_a_cpu_differ_in_their_loss_alone():
    """The settings of Barlow Twins are those that nobody has set."""
    one, *others = (
        read("--data_dir", "x", "--device", "cpu", "--method", m) for m in ("barlow_twins", "simclr", "supcon")
    )
    for other in others:
        differs = {name for name, value in vars(other).items() if value != getattr(one, name)}
        assert differs == {"method", "projector", "lambd", "loss_scale"}
        assert (other.lambd, other.loss_scale) == (train.Settings.lambd, train.Settings.loss_scale)
