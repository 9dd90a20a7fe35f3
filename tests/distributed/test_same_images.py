"""Ranks that find other images than rank 0 are told so, all of them, before they could wait for each other."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed as dist
from PIL import Image
from spawn import on_ranks

from ssl.checkpoints import learnt_from
from ssl.errors import UserError
from ssl.settings.shared import LabelSettings
from ssl.sources import datasets, every_image


def write(root: Path) -> None:
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        for i in range(count):
            path = root / split / "ab"[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (40 * i, 0, 0)).save(path)


def leave(root: Path) -> None:
    """Nothing is other than on rank 0."""


def lack(root: Path) -> None:
    (root / "train" / "a" / "4.png").unlink()


def lack_validation(root: Path) -> None:
    shutil.rmtree(root / "val")


def lack_test(root: Path) -> None:
    shutil.rmtree(root / "test")


def cannot_read(root: Path) -> None:
    (root / "train" / "a" / "4.png").write_bytes(b"no image")


def other_class(root: Path) -> None:
    (root / "train" / "a" / "4.png").rename(root / "train" / "b" / "4.png")


def errors(change: Callable[[Path], None]) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        if dist.is_initialized() and dist.get_rank() == 1:
            change(Path(folder))
        settings = LabelSettings("folder", folder, max_bad_fraction=0.9)
        found = []
        for load in (
            lambda: [datasets.load_as(settings, split) for split in ("train", "val", "test")],
            lambda: every_image.load(settings),
            lambda: learnt_from.set_apart(lambda split: datasets.load_as(settings, split)),
        ):
            try:
                load()
                found.append("")
            except UserError as error:
                found.append(str(error))
        return found


def all_errors() -> list[list[str]]:
    return [errors(change) for change in (leave, lack, lack_validation, lack_test, cannot_read, other_class)]


def test_ranks_that_find_other_images_are_told_on_all(tmp_path):
    results = on_ranks(all_errors, [1, 3], tmp_path)
    assert results[1] == [[["", "", ""]] * 6]
    assert results[3][0] == results[3][1] == results[3][2]
    same, *others = results[3][0]
    assert same == ["", "", ""]
    for words, split, here, there in (
        (others[0], "train", "6 images", "5 images"),
        (others[1], "val", "2 images", "none"),
        (others[2], "val", "2 images", "none"),  # it is the test split, where there is no other
        (others[3], "train", "6 images", "5 images"),
        (others[4], "train", "6 images", "6 images"),
    ):
        for told in words[: 2 if split == "train" else 3]:
            assert f"those of {split} are on rank 0: {here}" in told and f"; on rank 1: {there}" in told


def test_a_download_that_fails_keeps_no_rank_waiting_and_is_told(monkeypatch):
    def download(name, data_dir, split, download):
        raise UserError(f"no network for {split}" if download else "not there")

    waited = []
    monkeypatch.setattr(datasets, "_torchvision", download)
    monkeypatch.setattr(datasets, "barrier", lambda: waited.append("rank"))  # where the other ranks stand
    with pytest.raises(UserError, match="no network for train"):
        datasets.load("CIFAR10", None, "train", download=True)
    assert waited == ["rank"]
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="not there"):
        datasets.load("CIFAR10", None, "train", download=True)
