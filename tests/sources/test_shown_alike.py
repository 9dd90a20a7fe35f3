"""The splits of a comparison are shown alike: the same picture in two splits is shown the same."""

import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import class_folders
from PIL import Image
from torchvision.transforms.v2 import functional as vision

import evaluate
import train
from ssl.data import resident
from ssl.data.images import Images
from ssl.data.loader import plain_batches
from ssl.report import encoder_pictures
from ssl.settings.shared import LabelSettings
from ssl.sources import datasets, every_image, labelled, validation
from ssl.worth import look

SPLITS = ("train", "val", "test")
SIZE = 24  # at which they are rendered; the files have 20 pixels


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Twelve small pictures to train on. They are in the other splits, too, beside three others."""
    folder = class_folders(tmp_path / "pictures", {"train": (12, 0), "val": (3, 1), "test": (3, 2)}, size=20)
    for split in ("val", "test"):
        shutil.copytree(folder / "train", folder / split, dirs_exist_ok=True)
    return folder


def stretch(folder: Path, split: str) -> None:
    """One more picture in a split, a pixel wider than the others."""
    source = next((folder / split / "disc").iterdir())
    Image.open(source).resize((21, 20)).save(source.with_name("zzz.png"))


def settings_of(kind: type, folder: Path, **others):
    settings = kind(data_dir=str(folder), **others)
    datasets.resolve(settings)
    return settings


def evaluate_settings(folder: Path, **others) -> evaluate.Settings:
    encoder = folder.parent / "encoder.pt"
    encoder.touch()  # no record says what it has learnt from
    how = {"model_path": str(encoder), "encoder": "resnet18", "stem": "auto", "seed": 0}
    return settings_of(evaluate.Settings, folder, **how, **others)


def of_evaluate(folder: Path, protocols: list[str], **others) -> dict[str, Images]:
    return evaluate.load_images(evaluate_settings(folder, **others), {}, protocols)[0]


def of_finetune(folder: Path, **others) -> dict[str, Images]:
    settings = settings_of(LabelSettings, folder, **others)
    settings.major, settings.image_size = None, SIZE
    return labelled.load_splits(settings)


def of_train(folder: Path, **others) -> dict[str, Images]:
    """On the first of its images train.py trains, and judges on its parts."""
    settings = settings_of(train.Settings, folder, eval_every=1, **others)
    load = partial(datasets.load_as, settings)
    found = validation.find_validation(settings, load("unlabelled"), load, False)
    return dict(zip(("train", "val"), found.parts))


def of_worth(folder: Path, **others) -> dict[str, Images]:
    return look.look(settings_of(LabelSettings, folder, **others), 1).splits


def of_pictures(folder: Path, **others) -> dict[str, Images]:
    return dict(zip(("train", "test"), encoder_pictures.images_of(settings_of(LabelSettings, folder, **others))))


READERS = {
    "probe": partial(of_evaluate, protocols=["probe"]),
    "features": partial(of_evaluate, protocols=["features", "probe"]),
    "every image": partial(of_evaluate, protocols=["features"]),
    "finetune": of_finetune,
    "train": of_train,
    "worth": of_worth,
    "pictures": of_pictures,
}


def rendered(data: Images, size: int = SIZE) -> dict[str, torch.Tensor]:
    """{name of the file, or number in the array: its plain pixels in 0..1}."""
    parts = [pixels for pixels, _, _ in plain_batches(data, size, 5, 0, torch.device("cpu"))]
    return {Path(data.sample_name(index)).name: pixels for index, pixels in enumerate(torch.cat(parts))}


def central(path: Path, side: int | None = None) -> torch.Tensor:
    """The published rendering, by torchvision: short side to 256/224 of the size, central square."""
    pixels = vision.pil_to_tensor(Image.open(path).convert("RGB"))
    pixels = pixels if side is None else vision.resize(pixels, [side])
    return vision.center_crop(vision.resize(pixels, [round(SIZE * 256 / 224)]), [SIZE, SIZE]) / 255


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one - other).abs().mean() < 0.01


@pytest.mark.parametrize("odd", SPLITS)
@pytest.mark.parametrize("reader", READERS)
def test_one_file_of_another_size_does_not_part_the_splits(pictures, reader, odd, capsys):
    agree = READERS[reader](pictures)
    assert all(data.resident is not None for data in agree.values())  # shown whole: fast, and nothing is cut off
    assert "shown  " not in capsys.readouterr().out
    stretch(pictures, odd)
    splits = READERS[reader](pictures)
    said = capsys.readouterr().out
    found = {split: rendered(data) for split, data in splits.items()}
    first = found.pop("train")
    for name in os.listdir(pictures / "train" / "disc"):
        for split, others in found.items():
            assert name == "zzz.png" or torch.equal(first[name], others[name]), split
        if odd in splits:
            assert near(first[name], central(pictures / "train" / "disc" / name))
    if odd in splits:
        assert f"shown       the central square of every image, in all splits alike: those of {odd} are not" in said
    else:  # what is not compared changes nothing
        assert "shown  " not in said
        assert all(torch.equal(splits[split].resident, data.resident) for split, data in agree.items())


def test_a_split_that_is_too_large_for_memory_is_one_that_differs(pictures, monkeypatch, capsys):
    """As ImageNet of 64 pixels: train is 14.7 GiB, the images to judge on are few."""
    for path in sorted((pictures / "train").rglob("*.png")):
        shutil.copy(path, path.with_name(f"again_{path.name}"))
    monkeypatch.setattr(resident, "MOST", 23 * 3 * 20 * 20)
    splits = of_evaluate(pictures, protocols=["probe"])
    train_pixels, test_pixels = (rendered(splits[split]) for split in ("train", "test"))
    same = train_pixels.keys() & test_pixels.keys()
    assert len(same) == 12 and all(torch.equal(train_pixels[name], test_pixels[name]) for name in same)
    assert "those of train are not of one size" in capsys.readouterr().out


@pytest.mark.parametrize("odd", ["train", "test"])
def test_the_size_follows_all_splits(pictures, odd):
    def size() -> int:
        settings = evaluate_settings(pictures)
        evaluate.load_images(settings, {}, ["probe"])
        return settings.image_size

    assert size() == 20
    stretch(pictures, odd)
    assert size() == 224


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_longer_shown_whole_is_reduced_as_the_others(pictures, reader):
    stretch(pictures, "train")
    splits = READERS[reader](pictures, short_side=10)
    first, *others = (rendered(data) for data in splits.values())
    for name in set(os.listdir(pictures / "train" / "disc")) - {"zzz.png"}:
        assert all(torch.equal(first[name], found[name]) for found in others)
        reduced, control = (
            (first[name] - central(pictures / "train" / "disc" / name, side)).abs().mean() for side in (10, None)
        )
        assert 2 * reduced < control


def test_an_array_is_read_one_image_at_a_time(tmp_path):
    """With a value range, and an image outside it: places, pixels and fingerprint are those of the whole tensor."""
    generator = np.random.default_rng(0)
    small = generator.integers(0, 1000, (9, 20, 20, 2)).astype(np.uint16)
    large = np.pad(small, ((0, 0), (0, 45), (0, 0), (0, 0)))
    small[4, 3, 3] = 1001
    labels = np.arange(9) % 2
    np.savez(tmp_path / "a.npz", train_images=large, train_labels=labels, test_images=small, test_labels=labels)
    settings = settings_of(LabelSettings, tmp_path / "a.npz", value_range=(0, 1000))
    found = {split: datasets.load_as(settings, split) for split in ("train", "test")}
    before, alike = found["test"], datasets.shown_alike(settings, found)
    test = alike["test"]
    assert before.resident is not None and test.resident is None and alike["train"] is found["train"]
    names = [f"array/{row}" for row in range(9) if row != 4]
    assert [test.sample_name(index) for index in range(8)] == names and test.fingerprint(None) == before.fingerprint(
        None
    )
    part = test.subset(torch.tensor([6, 1]))
    assert [part.sample_name(index) for index in range(2)] == ["array/7", "array/1"]
    expected = np.round(small[[7, 1]] / 1000 * 65535)
    for index in range(2):
        pixels = part.pixels(index)
        assert np.abs(pixels.permute(1, 2, 0).numpy() - expected[index]).max() <= 1 and pixels.dtype == torch.uint16


def test_splits_that_agree_are_left_as_they_are():
    small = Images("CIFAR10", torch.zeros(4), ["a"], resident=torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    files = Images("folder", torch.zeros(1), ["a"], paths=["/nowhere.png"])
    for splits in ({"train": small, "val": None, "test": small}, {"train": files, "test": files}, {"all": small}):
        assert resident.shown_alike(splits) is splits


def test_features_of_every_image_and_a_table_without_labels(pictures, tmp_path, capsys):
    """Splits without labels are compared, too."""
    stretch(pictures, "test")
    table = tmp_path / "table.csv"
    rows = [(path.relative_to(pictures), path.parts[-3]) for path in sorted(pictures.rglob("*.png"))]
    table.write_text("image,part\n" + "".join(f"{name},{part}\n" for name, part in rows))
    found = every_image.load(settings_of(LabelSettings, pictures, csv=str(table), split_column="part"))
    assert found.keys() == set(SPLITS) and all(data.resident is None for data in found.values())
    first, other = rendered(found["train"]), rendered(found["test"])
    assert all(torch.equal(pixels, other[name]) for name, pixels in first.items())
