"""The recipes of published tables and studies have the published numbers."""

import dataclasses
from pathlib import Path

import pytest
import torch
from running import ROOT

import train
from ssl.augment import View
from ssl.heads import projector
from ssl.settings import auto, config


def rows(path: Path) -> list[train.Settings]:
    """The settings of a recipe of train.py: of each of its rows, or the only ones."""
    numbers = range(1, 1 + len(config.read_yaml(path).get("rows", [])))
    chosen = [["--row", str(number)] for number in numbers] or [[]]
    return [config.parse(train.Settings, ["--config", str(path), *row], train.find_recipe)[0] for row in chosen]


EPOCH = 14_805 // 80  # steps of ISIC 2019's training images


def test_the_lesion_recipes_are_the_tables_best_five_and_the_originals_views():
    def table(name):
        return [
            (s.temperature, s.batch_size, (s.max_steps or s.epochs * EPOCH) / EPOCH, s.balanced)
            for s in rows(ROOT / "configs" / name)[:5]
        ]

    assert table("lesions_ucl.yaml") == [
        (0.1, 80, 50, False),
        (0.1, 512, 200, True),
        (0.5, 512, 200, False),
        (0.1, 80, 50, True),
        (1.0, 512, 200, False),
    ]
    assert table("lesions_scl.yaml") == [
        (1.0, 80, 50, True),
        (1.0, 80, 200, True),
        (0.5, 80, 200, True),
        (0.5, 80, 200, False),
        (0.5, 80, 50, False),
    ]
    for name in ("lesions_ucl.yaml", "lesions_scl.yaml"):
        for settings in rows(ROOT / "configs" / name):
            first, second = train.make_views(settings)
            assert (
                first
                == second
                == View(
                    size=224,
                    crop_scale=(0.75, 1.0),
                    flip=0.5,
                    vertical_flip=0.5,
                    jitter=(0.8, 0.8, 0.8, 0.2),
                    jitter_prob=0.8,
                    grayscale=0.2,
                    blur_prob=0.0,
                    solarize_prob=0.0,
                )
            )
            factors = [train.lr_factor(settings, step, 1) for step in range(settings.epochs)]
            assert (
                max(factors) <= 1 and settings.lr == 0.001 and settings.mean == [0, 0, 0] and settings.std == [1, 1, 1]
            )
            if not settings.warmup_epochs:  # m + (lr - m)(1 + cos(πe/E))/2 with m = lr · 0.1³
                m, e = 1e-3, torch.arange(settings.epochs).double() / settings.epochs
                assert factors == pytest.approx((m + (1 - m) * (1 + torch.cos(torch.pi * e)) / 2).tolist())
            assert settings.encoder == "resnet50"
            head = projector(2048, settings.projector, batch_norm=settings.method == "barlow_twins")
            assert [tuple(p.shape) for p in head.parameters()] == [(2048, 2048), (2048,), (128, 2048), (128,)]


def test_the_imagenet_recipe_is_the_published_one():
    asked = ["--dataset", "ImageNet", "--data_dir", "x", "--batch_size", "256"]
    settings, _ = config.parse(train.Settings, asked, recipe=train.find_recipe)
    bare = train.Settings(dataset="ImageNet", data_dir="x")
    assert vars(settings) == vars(bare)
    model = train.Model(settings)
    assert sum(p.numel() for p in model.projector.parameters()) == 2048 * 8192 + 2 * 8192**2 + 4 * 8192
    scale = train.lr_scale(settings, 2048)
    optimizer = train.make_optimizer(settings, model, scale)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1.6, 0.0384])
    first, second = train.make_views(settings)
    assert (first.blur_prob, first.solarize_prob, second.blur_prob, second.solarize_prob) == (1.0, 0.0, 0.1, 0.2)


@pytest.mark.parametrize("name, parameters", [("ResNet20V2", 9_503_792), ("ResNet50V2", 40_374_784)])
def test_the_tissue_recipes_are_the_studys(name, parameters):
    baseline, no_drop, no_color, blur_only, identity = rows(ROOT / "configs" / f"tissue_{name.lower()}.yaml")
    model = train.Model(dataclasses.replace(baseline, image_size=32))
    assert baseline.encoder == f"ssl.preact.{name}"
    # as Keras counts: with running statistics
    assert sum(v.numel() for key, v in model.state_dict().items() if "num_batches" not in key) == parameters
    whole = View(
        size=224,
        crop_scale=(1, 1),
        crop_ratio=(1, 1),
        flip=0.5,
        vertical_flip=0.5,
        jitter=(0.4, 0.4, 0.2, 0.1),
        jitter_prob=0.8,
        grayscale=0.2,
        blur_sigma=(1, 1),
        blur_kernel=23,
        blur_prob=1.0,
        solarize_prob=0.0,
        solarize_threshold=0.5,
    )
    second = dataclasses.replace(whole, blur_prob=0.1, solarize_prob=0.2)
    grey, color = dict(grayscale=0), dict(grayscale=0, jitter_prob=0)
    plain = dict(**color, flip=0, vertical_flip=0, solarize_prob=0)
    for settings, off in (
        (baseline, {}),
        (no_drop, grey),
        (no_color, color),
        (blur_only, plain),
        (identity, plain | {"blur_prob": 0}),
    ):
        assert train.make_views(settings) == [dataclasses.replace(view, **off) for view in (whole, second)]
        auto.settle(settings, 512, 10_000)
        factors = [train.lr_factor(settings, step, 10) for step in range(300)]
        t = torch.arange(270).double()
        expected = [i / 30 for i in range(30)] + (0.5 * (1 + torch.cos(torch.pi * t / 270))).tolist()
        assert factors == pytest.approx(expected)
    optimizer = train.make_optimizer(baseline, model, train.lr_scale(baseline, 512))
    assert type(optimizer).__name__ == "LAMB" and {group["lr"] for group in optimizer.param_groups} == {2e-3}
