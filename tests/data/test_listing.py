"""Listing a folder of images: what cannot be listed is an error, and a link takes no image from its own folder."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from drawn import picture

from ssl.data import listing
from ssl.errors import UserError
from ssl.sources import datasets, lookup


def pictures(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        picture(root / name, (number, 0, 0))


def failing(monkeypatch, call: str, place: Path, code: int) -> None:
    """`os.stat` or `os.scandir` fails at `place`, and below it if it cannot be entered. (Tests may run as root.)"""
    real = getattr(os, call)

    def fails(path, *args, **kwargs):
        if isinstance(path, str | os.PathLike) and Path(path) in (place, *(place / "cat", place / "0.png")):
            raise OSError(code, os.strerror(code), os.fspath(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, call, fails)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("split", ["unlabelled", "train"])
@pytest.mark.parametrize(
    "call, place",
    [("scandir", "cat/deep"), ("scandir", "cat"), ("scandir", "."), ("stat", "cat/deep"), ("stat", "cat")],
)
def test_a_folder_that_cannot_be_read_is_named_with_the_reason(tmp_path, monkeypatch, code, split, call, place):
    pictures(tmp_path, "cat/0.png", "cat/deep/0.png", "cat/1.png", "dog/0.png", "dog/1.png")
    failing(monkeypatch, call, tmp_path / place, code)
    with pytest.raises(UserError) as raised:
        datasets.load("folder", str(tmp_path), split)
    words = str(raised.value)
    assert words.startswith(str(tmp_path / place)) and "\n" not in words
    assert f"cannot be listed ({os.strerror(code)}); make it readable, or take it out" in words


@pytest.mark.parametrize("call, place", [("scandir", "train"), ("scandir", "val/n00000001"), ("stat", "train/cat")])
def test_the_same_of_split_folders_and_of_what_is_beside_them(tmp_path, monkeypatch, call, place):
    pictures(tmp_path, *(f"{split}/{name}/0.png" for split in ("train", "val", "other") for name in ("cat", "dog")))
    (tmp_path / "val" / "n00000001").mkdir()
    if call == "stat":
        (tmp_path / "train" / "cat").rename(tmp_path / "cats")
        (tmp_path / "train" / "cat").symlink_to(tmp_path / "cats")
    failing(monkeypatch, call, tmp_path / place, errno.EACCES)
    with pytest.raises(UserError, match=f"{place} cannot be listed .Permission denied"):
        datasets.load("folder", str(tmp_path), "test" if "val" in place else "train")


@pytest.mark.parametrize("call, place", [("scandir", "cat"), ("stat", "cat"), ("scandir", "dog")])
def test_the_same_of_the_folders_of_a_table(tmp_path, monkeypatch, call, place):
    pictures(tmp_path, "cat/0.png", "dog/0.png")
    failing(monkeypatch, call, tmp_path / place, errno.EIO)
    with pytest.raises(UserError, match=f"{place} cannot be listed .Input/output error"):
        lookup.find_images(tmp_path, ["cat/0.png", "0.png"])


def test_control_what_is_not_there_is_no_error(tmp_path):
    pictures(tmp_path, "cat/0.png")
    for name, target in (("gone.png", "nowhere"), ("self.png", "self.png"), ("far.png", "y" * 300), ("to.png", "cat")):
        (tmp_path / "cat" / name).symlink_to(target)
    (tmp_path / "self").symlink_to("self")
    assert listing.list_images(tmp_path) == [Path("cat/0.png")]
    assert listing.folders_in(tmp_path) == [tmp_path / "cat"]
    found = lookup.find_images(tmp_path, ["cat/0"])
    assert found == [str(tmp_path / "cat/0.png")]
    for name in ("none/0", "cat/0.png/0", "self/0", f"{'x' * 300}/0"):
        with pytest.raises(UserError, match="1 of 1 images are not in"):
            lookup.find_images(tmp_path, [f"{name}.x"])


# Links


def test_a_linked_folder_takes_no_image_from_its_real_folder(tmp_path, capsys):
    pictures(tmp_path, "a/0.png", "b/0.png", "b/sub/0.png", "b/sub/1.png")
    (tmp_path / "a" / "best").symlink_to("../b/sub")
    data = datasets.load("folder", str(tmp_path), "all")
    found = [(os.path.relpath(path, tmp_path), data.classes[label]) for path, label in zip(data.paths, data.labels)]
    assert found == [("a/0.png", "a"), ("b/0.png", "b"), ("b/sub/0.png", "b"), ("b/sub/1.png", "b")]
    (tmp_path / "0").symlink_to("b/sub")
    again = datasets.load("folder", str(tmp_path), "all")
    assert (list(again.paths), again.classes) == (list(data.paths), ["a", "b"])
    assert f"*** {tmp_path / '0'} is a link to images of another folder" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(20))
def test_without_links_the_list_is_that_of_a_plain_walk_and_with_links_each_file_is_there_once(tmp_path, seed):
    random = np.random.default_rng(seed)
    root, outside = tmp_path / "root", tmp_path / "outside"
    folders = [root, outside]
    for number in range(20):
        parent = folders[random.integers(len(folders))]
        folders.append(parent / f"{random.choice(['b', 'A', 'é', 'a b'])}{number}")
    for folder in folders:
        folder.mkdir()
        (folder / f"{random.integers(9)}.png").write_text("")
    plain = sorted((str(path.relative_to(root)) for path in root.rglob("*.png")), key=os.fsencode)
    assert list(map(str, listing.list_images(root))) == plain
    for number in range(6):
        place, target = random.choice(len(folders), 2)
        (folders[place] / f"0link{number}").symlink_to(folders[target])
    found = list(map(str, listing.list_images(root)))
    assert [path for path in found if "link" not in path] == plain and found == sorted(found, key=os.fsencode)
    reached = {os.path.realpath(os.path.join(at, name)) for at, _, names in os.walk(root) for name in names}
    more = [os.path.realpath(root / path) for path in found if "link" in path]
    assert len(set(more)) == len(more) and not reached & set(more)
    links = list(root.rglob("0link*"))
    if any(link.resolve() == outside for link in links):
        assert os.path.realpath(next(outside.glob("*.png"))) in more


def test_of_two_links_to_a_folder_the_first_in_order_is_read(tmp_path):
    pictures(tmp_path, "outside/0.png", "root/a/0.png", "root/b/0.png")
    for name in ("z", "a/deep", "b/0"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "outside")
    assert list(map(str, listing.list_images(tmp_path / "root"))) == ["a/0.png", "a/deep/0.png", "b/0.png"]
