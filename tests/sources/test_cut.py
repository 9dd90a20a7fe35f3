"""The cut of what comes without splits: by each image's own name, so that nothing moves."""

import csv
import hashlib
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import picture

from ssl.data import keys, prepare
from ssl.data.hold_out import split_validation
from ssl.data.images import Images
from ssl.errors import UserError
from ssl.sources import datasets
from ssl.sources.cut import TENTH, test_images

test_images.__test__ = False  # it is no test


def folders(root: Path, each: int = 60) -> Path:
    for number in range(2 * each):
        picture(root / "ab"[number % 2] / f"{number}.png", (number, 0, 0))
    return root


def parts(root: Path, **options) -> dict[str, set[str]]:
    """The names below `root` of train and test."""
    loaded = {split: datasets.load("folder", str(root), split, **options) for split in ("train", "test")}
    return {split: set(keys.names(data.paths, str(root))) for split, data in loaded.items()}


def test_a_key_is_that_of_blake2b_and_never_changes():
    found = keys.of_words(["ants/1", "\udcff"])  # a name that is no UTF-8
    for value, content in zip(found.tolist(), (b"ants/1", b"\xff")):
        digest = hashlib.blake2b(content, digest_size=8, key=b"self-supervised learning").digest()
        assert value == int.from_bytes(digest, "little")
    assert keys.of_words(["a"]).tolist() == [3747275567717749016]


def test_no_seed_chooses_the_test_images_and_none_is_trained_on(tmp_path):
    root = folders(tmp_path)
    found = [parts(root, seed=seed) for seed in (0, 1, 5)]
    assert found[0] == found[1] == found[2]
    assert not found[0]["train"] & found[0]["test"] and len(found[0]["train"] | found[0]["test"]) == 120
    assert set(keys.names(datasets.load("folder", str(root), "unlabelled").paths, str(root))) == found[0]["train"]
    assert found[0]["test"] == {name for name in found[0]["train"] | found[0]["test"] if keys.of_words([name]) < TENTH}
    every = datasets.load("folder", str(root), "all")
    by_seed = [every.subset(split_validation(every.labels, 0.1, seed)[1]).paths for seed in (0, 1)]
    assert set(by_seed[0]) != set(by_seed[1])  # control: as the cut was once


def test_what_is_added_or_deleted_moves_no_other_image(tmp_path):
    root = folders(tmp_path)
    before = parts(root)
    picture(root / "a" / "new.png")
    picture(root / "c" / "1.png")
    picture(root / "c" / "2.png")
    (root / f"{min(before['train'])}.png").unlink()
    (root / f"{min(before['test'])}.png").unlink()
    after = parts(root)
    for split in ("train", "test"):
        assert before[split] - after[split] == {min(before[split])}
        assert after[split] - before[split] <= {"a/new", "c/1", "c/2"}

    def by_seed(count: int) -> set[int]:
        return set(split_validation(torch.arange(count) % 2, 0.1, 0)[1].tolist())

    assert by_seed(120) != by_seed(121)  # control: one more image, and others judge


def test_a_converted_copy_and_another_unicode_form_are_cut_alike(tmp_path):
    root = folders(tmp_path / "large")
    for number in range(40):
        picture(root / "ü" / unicodedata.normalize("NFD", f"ö{number}.png"))
    prepare.prepare(root, tmp_path / "small", short_side=20, workers=0)
    for number in range(40):
        picture(tmp_path / "jpeg" / "ü" / f"ö{number}.jpg")
    for number in range(120):
        picture(tmp_path / "jpeg" / "ab"[number % 2] / f"{number}.jpg")

    def composed(split: str, name: str) -> set[str]:
        return {unicodedata.normalize("NFC", image) for image in parts(tmp_path / name)[split]}

    assert composed("test", "large") == composed("test", "small") == composed("test", "jpeg")
    assert any(name.startswith("ü") for name in composed("test", "large"))


def reference(labels: list[int], of: list[int]) -> list[bool]:
    """The cut by plain loops, of class after class."""
    test = {key for key in of if key < 2**64 / 10}
    classes = sorted(set(labels))
    own = {label: {key for key, other in zip(of, labels) if other == label} for label in classes}
    images = {label: [key for key, other in zip(of, labels) if other == label] for label in classes}
    for label in classes:
        while 2 * sum(key in test for key in images[label]) > len(images[label]):
            test.discard(max(own[label] & test))
    for label in classes:
        if not own[label] & test:
            fits = [
                key
                for key in own[label]
                if not any(key in own[other] and own[other] <= test | {key} for other in classes)
            ]
            fits.sort(key=lambda key: (2 * images[label].count(key) > len(images[label]), key))
            test |= set(fits[:1])
    return [key in test for key in of]


@pytest.mark.parametrize("seed", range(40))
def test_the_cut_is_that_of_plain_loops_and_every_class_has_both_where_it_can(seed):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 60))
    labels = generator.integers(0, 6, count)
    pool = generator.integers(0, 2**64, int(generator.integers(1, 80)), np.uint64)
    of = generator.choice(pool, count) if seed % 2 else generator.integers(0, 2**64, count, np.uint64)
    test = test_images(labels, of)
    assert test.tolist() == reference(labels.tolist(), of.tolist())
    assert all(len(set(test[of == key])) == 1 for key in of)  # a group is on one side
    for label in np.unique(labels):
        assert not test[labels == label].all()
        if seed % 2 == 0:
            assert test[labels == label].any() == ((labels == label).sum() > 1)
            assert test[labels == label].mean() <= 0.5


def test_the_share_is_a_tenth():
    of = keys.of_words(f"class{i % 10}/{i}" for i in range(20_000))
    assert abs(test_images(np.arange(20_000) % 10, of).mean() - 0.1) < 0.01


def test_a_class_of_one_image_is_trained_on_and_what_cannot_be_cut_is_refused_for_judging_alone(tmp_path):
    for name in "abc":
        picture(tmp_path / name / "only.png")
    assert len(datasets.load("folder", str(tmp_path), "unlabelled")) == 3
    with pytest.raises(UserError, match="none of the 3 images can be kept for the test: every class has one image"):
        datasets.load("folder", str(tmp_path), "test")
    picture(tmp_path / "a" / "other.png")
    assert len(datasets.load("folder", str(tmp_path), "test")) == 1


def grouped(root: Path, table: Path, patients: list[str], column: str | None = "patient") -> dict[str, set[str]]:
    """The patients of train and of test, three images each."""
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "patient"])
        for patient in patients:
            for number in range(3):
                if not (root / f"{patient}_{number}.png").exists():
                    picture(root / f"{patient}_{number}.png")
                writer.writerow([f"{patient}_{number}", "xy"[number % 2], patient])
    found = parts(root, csv=str(table), label_column="label", group_column=column)
    return {split: {name.partition("_")[0] for name in names} for split, names in found.items()}


def test_groups_stay_whole_and_an_added_one_moves_no_other(tmp_path):
    patients = [f"p{number}" for number in range(40)]
    before = grouped(tmp_path / "images", tmp_path / "t.csv", patients)
    assert not before["train"] & before["test"] and before["test"]
    after = grouped(tmp_path / "images", tmp_path / "t.csv", [*patients[1:], "new1", "new2", "new3"])
    for split in ("train", "test"):
        assert after[split] - before[split] <= {"new1", "new2", "new3"} and before[split] - after[split] <= {"p0"}
    by_image = grouped(tmp_path / "images", tmp_path / "t.csv", patients, None)
    assert by_image["train"] & by_image["test"]  # control: without the column patients are on both sides


def test_an_array_is_cut_by_its_pixels_so_that_rows_may_go_and_move(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (80, 8, 8), np.uint8)
    labels = np.arange(80) % 2

    def tested(rows) -> set[bytes]:
        np.savez(tmp_path / "a.npz", images=pixels[rows], labels=labels[rows])
        train, test = (datasets.load("array", str(tmp_path / "a.npz"), split) for split in ("train", "test"))
        both = [{image.numpy().tobytes() for image in data.resident} for data in (train, test)]
        assert not both[0] & both[1] and len(both[0] | both[1]) == len(rows)
        return both[1]

    rows = np.arange(80)
    whole = tested(rows)
    assert tested(rows[::-1].copy()) == whole
    assert tested(rows[7:]) == whole - {pixels[row].tobytes() for row in range(7)}


def test_grey_pixels_have_the_key_of_the_same_in_rgb():
    grey = torch.randint(256, (3, 1, 4, 4), dtype=torch.uint8)
    labels = torch.zeros(3).long()
    one, three = (Images("array", labels, [], resident=x) for x in (grey, grey.expand(-1, 3, -1, -1).contiguous()))
    assert keys.of_pixels(one).tolist() == keys.of_pixels(three).tolist()
    assert len(set(keys.of_pixels(one).tolist())) == 3
