"""Leaks between splits: what is an error, what a warning, and what is neither."""

import csv
import os

import pytest
import torch
from PIL import Image
from running import run, small_finetuning

from ssl.data.images import Images, Paths
from ssl.errors import UserError
from ssl.sources import datasets, leaks


def files(root, contents: dict[str, bytes]) -> list[str]:
    for name, content in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return [str(root / name) for name in contents]


def images(paths, **options) -> Images:
    return Images(options.pop("name", "folder"), torch.zeros(len(paths)).long(), ["a"], paths=Paths(paths), **options)


def said(capsys, **splits) -> str:
    leaks.check(splits)
    return capsys.readouterr().out


def refused(**splits) -> str:
    with pytest.raises(UserError) as raised:
        leaks.check(splits)
    return str(raised.value)


def test_splits_without_a_leak_are_quiet(tmp_path, capsys):
    train = files(tmp_path / "train", {"0.png": b"a", "1.png": b"b"})
    test = files(tmp_path / "test", {"0.png": b"c", "1.png": b"dd"})
    assert said(capsys, train=images(train), val=None, test=images(test)) == ""


def test_one_file_in_two_splits_is_an_error_by_whatever_name(tmp_path):
    train = files(tmp_path / "train", {"0.png": b"a", "1.png": b"b", "2.png": b"c"})
    test = files(tmp_path / "test", {"0.png": b"d"})
    (tmp_path / "test" / "soft.png").symlink_to(train[1])
    os.link(train[2], tmp_path / "test" / "hard.png")
    test += [str(tmp_path / "test" / name) for name in ("soft.png", "hard.png")]
    words = refused(train=images(train), test=images(test))
    assert words.startswith("leak: 2 images of test are in train too: ") and "soft.png" in words
    assert refused(val=images(train[:1]), train=images(train)).startswith("leak: 1 images of train are in val too")


def test_a_name_of_a_published_lesion_set_is_one_image_and_a_smaller_copy_is_that_image(tmp_path):
    train = files(tmp_path, {"ISIC_1.jpg": b"a", "ISIC_2.jpg": b"b"})
    test = files(tmp_path, {"ISIC_2_downsampled.jpg": b"cc", "ISIC_3.jpg": b"ddd"})
    published = {"named": True, "name": "isic2019"}
    words = refused(train=images(train, **published), test=images(test, **published))
    assert words.startswith("leak: 1 images, by name alone, of test are in train too: ") and "ISIC_2_down" in words


def test_a_name_of_a_table_is_an_error_with_the_same_content_and_else_a_warning(tmp_path, capsys):
    train = files(tmp_path / "train", {"img_1.png": b"a", "img_2.png": b"b"})
    test = files(tmp_path / "test", {"img_2.png": b"other", "img_3.png": b"c"})
    words = said(capsys, train=images(train, named=True), test=images(test, named=True))
    assert "*** 1 images, by name alone, of test are in train too: " in words and "test/img_2.png" in words
    assert said(capsys, train=images(train), test=images(test)) == ""  # in a folder names may begin anywhere
    files(tmp_path / "test", {"img_2.png": b"b"})
    words = refused(train=images(train, named=True), test=images(test, named=True))
    assert words.startswith("leak: 1 images, by name, of test are in train too: ") and "test/img_2.png" in words


def test_numbers_that_start_again_in_every_folder_are_no_names(tmp_path, capsys):
    train = files(tmp_path / "train", {"cat/0.png": b"a", "dog/0.png": b"bb"})
    test = files(tmp_path / "test", {"cat/0.png": b"ccc", "dog/1.png": b"dddd"})
    assert said(capsys, train=images(train, named=True), test=images(test, named=True)) == ""
    assert said(capsys, train=images(train[:1], named=True), test=images(test[:1], named=True)) == ""  # in every split
    files(tmp_path / "test", {"cat/0.png": b"a"})
    assert "by name" in refused(train=images(train[:1], named=True), test=images(test[:1], named=True))


def test_a_group_in_two_splits_is_an_error_and_unknown_groups_are_none(tmp_path, capsys):
    train = files(tmp_path / "train", {"0.png": b"a", "1.png": b"bb", "2.png": b"ccc"})
    test = files(tmp_path / "test", {"3.png": b"dddd", "4.png": b"eeeee"})
    known = images(train, groups=["p1", "p2", None])
    assert said(capsys, train=known, test=images(test, groups=["p3", None])) == ""
    words = refused(train=known, test=images(test, groups=["p2", None]))
    assert words.startswith("leak: 1 patients, lesions or slides of test are in train too: 'p2'. Remove them")


def test_groups_of_a_published_split_are_a_warning(tmp_path, capsys):
    train = images(files(tmp_path, {"1.png": b"a"}), groups=["l1"], name="isic2019")
    test = images(files(tmp_path, {"2.png": b"bb"}), groups=["l1"], name="isic2019")
    assert "1 patients, lesions or slides of test are in train too: 'l1'" in said(capsys, train=train, test=test)


def test_equal_bytes_under_two_names_are_a_warning_and_equal_sizes_are_nothing(tmp_path, capsys):
    train = files(tmp_path / "train", {"0.png": b"same", "1.png": b"size"})
    test = files(tmp_path / "test", {"2.png": b"same", "3.png": b"SIZE", "4.png": b"other"})
    words = said(capsys, train=images(train), test=images(test))
    assert words.count("\n") == 1 and "1 images, byte for byte, of test are in train too" in words and "2.png" in words


def test_control_without_the_checksum_equal_sizes_would_be_leaks(tmp_path, capsys, monkeypatch):
    class Nothing:
        def __init__(self, content):
            pass

        def digest(self):
            return b""

    monkeypatch.setattr(leaks.hashlib, "blake2b", Nothing)
    train = files(tmp_path / "train", {"0.png": b"size"})
    test = files(tmp_path / "test", {"1.png": b"SIZE"})
    assert "byte for byte" in said(capsys, train=images(train), test=images(test))


def test_only_equal_sizes_are_read_and_no_more_than_the_limit(tmp_path, capsys, monkeypatch):
    train = files(tmp_path / "train", {f"{i}.png": b"x" * 100 for i in range(5)} | {"few.png": b"few", "one": b"0" * 7})
    test = files(tmp_path / "test", {f"{i}.png": b"y" * 100 for i in range(5)} | {"same.png": b"few"})
    seen, read_bytes = [], leaks.Path.read_bytes
    monkeypatch.setattr(leaks.Path, "read_bytes", lambda path: seen.append(path.name) or read_bytes(path))
    monkeypatch.setattr(leaks, "MOST_READ", 500)
    words = said(capsys, train=images(train), test=images(test))
    assert "1 images, byte for byte" in words and "MiB of the files of equal size were compared" in words
    assert sorted(seen) == ["few.png", "same.png"]
    monkeypatch.setattr(leaks, "MOST_READ", 10_000)
    seen.clear()
    assert "the others" not in said(capsys, train=images(train), test=images(test))
    assert len(seen) == 12 and "one" not in seen


def test_files_that_vanished_and_images_that_are_no_files_are_left_to_others(tmp_path, capsys):
    held = Images("shapes", torch.zeros(2).long(), ["a"], resident=torch.zeros(2, 3, 4, 4))
    assert said(capsys, train=held, test=held) == ""
    gone = images([str(tmp_path / "gone.png")])
    assert said(capsys, train=gone, test=gone) == ""


def test_only_rank_0_looks(tmp_path, monkeypatch):
    data = images(files(tmp_path, {"0.png": b"a"}))
    monkeypatch.setenv("RANK", "1")
    leaks.check({"train": data, "test": data})
    monkeypatch.setenv("RANK", "0")
    refused(train=data, test=data)


def test_a_folder_with_numbered_files_and_a_cut_folder_pass(tmp_path, capsys):
    for number, path in enumerate([*range(20)] * 2):
        place = tmp_path / "cut" / "ab"[number % 2] / f"{path}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (70, 70), (number, path, 0)).save(place)
    parts = {split: datasets.load("folder", str(tmp_path / "cut"), split) for split in ("train", "test")}
    capsys.readouterr()
    assert said(capsys, **parts) == ""


@pytest.mark.slow
def test_a_leak_ends_all_ranks_before_training_with_one_line(tmp_path):
    for part in ("train", "test"):
        for number in range(8):
            place = tmp_path / part / "ab"[number % 2] / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (70, 70), (number, 20 * len(part), 0)).save(place)
    (tmp_path / "test" / "a" / "copy.png").symlink_to(tmp_path / "train" / "a" / "0.png")
    order = ["finetune.py", *small_finetuning(data_dir=tmp_path, output_dir=tmp_path / "run", batch_size=2, epochs=1)]
    done = run(*order, processes=2, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("finetune.py: error: ")]
    lines = [line for line in lines if "the processes lost each other" not in line]  # what the other rank may say
    assert done.returncode and len(lines) == 1 and "leak: 1 images of test are in train too" in lines[0]
    assert not list((tmp_path / "run").rglob("*.pt"))
    (tmp_path / "test" / "a" / "copy.png").unlink()  # control
    run(*order, processes=2)


@pytest.mark.data
@pytest.mark.parametrize("name", ["cifar10_jpeg", "flowers_227_small", "tiny-imagenet-20", "ham10000_224_small"])
def test_folders_as_people_have_them_are_no_errors(real_data, name):
    roots = [real_data / name / split for split in ("train", "val", "test")]
    parts = {root.name: images(sorted(str(p) for p in root.rglob("*.*"))) for root in roots if root.is_dir()}
    assert len(parts) > 1
    leaks.check(parts)


@pytest.mark.data
def test_ham10000_small_shares_no_lesion_and_one_that_is_moved_is_found(real_data, tmp_path, capsys):
    root = real_data / "ham10000_224_small"
    files = {path.stem: path.relative_to(root) for path in root.rglob("*.jpg")}
    with open(root / "labels.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["image"] in files]
    columns = dict(label_column="dx", group_column="lesion_id", split_column="split", positive=["mel"])

    def parts():
        with open(tmp_path / "t.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "dx", "lesion_id", "split"])
            writer.writerows([files[row["image"]], row["dx"], row["lesion_id"], row["split"]] for row in rows)
        table = str(tmp_path / "t.csv")
        return {s: datasets.load("folder", str(root), s, csv=table, **columns) for s in ("train", "val", "test")}

    read = parts()
    assert [len(data) for data in read.values()] == [294, 98, 98]
    assert all(part in path for part, data in read.items() for path in data.paths)
    leaks.check(read)
    assert capsys.readouterr().out == ""
    train, test = (next(row for row in rows if row["split"] == part) for part in ("train", "test"))
    test["lesion_id"] = train["lesion_id"]
    assert f"of test are in train too: '{train['lesion_id']}'" in refused(**parts())
