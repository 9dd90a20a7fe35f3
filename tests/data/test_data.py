"""Data sets by name, folders as people have them, and the order of batches."""

import hashlib
import os

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare

from ssl.augment import View, apply, crop_boxes, draw
from ssl.data import cores, listing, loader, worker
from ssl.data.cores import auto_workers, core_share, usable_cores
from ssl.data.decode import FORMATS, decode
from ssl.data.hold_out import first_of_classes, split_validation
from ssl.data.images import Images
from ssl.data.loader import _even_slices, finish, plain_batches, training_batches
from ssl.data.order import Order, balanced, permutation
from ssl.errors import UserError
from ssl.sources import classes, datasets, splits
from ssl.sources.folders import SUBSETS
from ssl.sources.shapes import CLASSES, render, shapes

CPU = torch.device("cpu")


def picture(path, color=(200, 30, 60), size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def tree(root, splits=("train", "test"), classes=("cat", "dog"), each=4, size=(40, 30)):
    for split in splits:
        for number, name in enumerate(classes):
            for i in range(each):
                picture(root / split / name / f"{i}.png", (10 * i, 100 * number, 60), size)
    return root


# shapes


def test_shapes_are_the_same_on_every_call_balanced_and_disjoint():
    pixels, labels = shapes("test")
    again, _ = shapes("test")
    assert pixels.shape == (4000, 3, 32, 32) and pixels.dtype == torch.uint8
    assert torch.equal(pixels, again)
    assert torch.bincount(labels).tolist() == [400] * len(CLASSES)
    train = render(torch.arange(1000) % 10, 32, seed=1)
    assert not {p.tobytes() for p in train.numpy()} & {p.tobytes() for p in pixels.numpy()}


def test_shapes_come_in_any_size():
    assert render(torch.tensor([0, 9]), 48, seed=0).shape == (2, 3, 48, 48)


# folders


def test_a_folder_with_splits_reads_to_sorted_classes_and_files(tmp_path):
    tree(tmp_path)
    train = datasets.load("folder", str(tmp_path), "train")
    assert train.classes == ["cat", "dog"] and len(train) == 8
    assert train.labels.tolist() == [0] * 4 + [1] * 4
    assert train.resident.shape == (8, 3, 30, 40)  # small images are held in memory
    assert train.resident[5, 0, 0, 0] == 10 and train.sample_name(5).endswith("dog/1.png")


def test_val_stands_in_for_test_and_that_is_said(tmp_path, capsys):
    tree(tmp_path, splits=("train", "val"))
    assert len(datasets.load("folder", str(tmp_path), "test")) == 8
    assert f"test        the split 'val' of {tmp_path}; there is no split 'test'" in capsys.readouterr().out
    assert datasets.load("folder", str(tmp_path), "val") is None


def test_where_there_are_val_and_test_each_is_itself(tmp_path, capsys):
    tree(tmp_path, splits=("train", "val", "test"))
    for split, part in (("train", "train"), ("unlabelled", "train"), ("val", "val"), ("test", "test")):
        data = datasets.load("folder", str(tmp_path), split)
        assert len(data) == 8 and all(path.startswith(str(tmp_path / part)) for path in data.paths)
    assert not capsys.readouterr().out
    picture(tmp_path / "val" / "bird" / "1.png")
    with pytest.raises(UserError, match=r"class 'bird' is not in .*train"):
        datasets.load("folder", str(tmp_path), "val")
    tree(tmp_path / "cut", splits=("",))
    assert datasets.load("folder", str(tmp_path / "cut"), "val") is None


@pytest.mark.parametrize(
    "train, val, test",
    [
        ("Training", None, "Testing"),
        ("TRAIN", "valid", "Test"),
        ("train", "Validation", "testing"),
        ("Train", "dev", "test"),
    ],
)
def test_splits_have_many_names_in_any_case(tmp_path, train, val, test):
    tree(tmp_path, splits=filter(None, (train, val, test)))
    for split, name in (("train", train), ("unlabelled", train), ("val", val), ("test", test), ("all", test)):
        data = datasets.load("folder", str(tmp_path), split)
        assert (data is None) == (name is None)
        if name:
            assert data.classes == ["cat", "dog"] and len(data) == 8
            assert all(path.startswith(f"{tmp_path / name}/") for path in data.paths)


def test_control_without_the_names_splits_would_be_learnt_as_classes(tmp_path, monkeypatch):
    tree(tmp_path, splits=("Training", "Testing"))
    monkeypatch.setattr(splits, "NAMES", {})
    assert datasets.load("folder", str(tmp_path), "train").classes == ["Testing", "Training"]


@pytest.mark.parametrize(
    "make, split, expected",
    [
        (("train", "Training", "test"), "train", r"Training and train/ beside it are both the split 'train'"),
        (("train", "test", "val", "dev"), "val", r"dev and val/ beside it are both the split 'val'"),
        (("train", "control"), "unlabelled", r"train/ beside 'control/': is train a split or a class"),
        (("Test", "control", "other"), "train", r"Test/ beside 'control/', 'other/': is Test a split or a class"),
        (("dev", "ops"), "all", r"dev/ beside 'ops/': is dev a split or a class"),
        (("test",), "unlabelled", r"has test/ but no train/ to learn from"),
        (("val", "test"), "train", r"has test/ but no train/ to learn from"),
        (("all/train", "all/test"), "train", r"/all has splits of its own.*pass that folder"),
        (("bottle/train", "bottle/test", "cable/train"), "test", r"/bottle has splits of its own"),
        (("test_set", "training_set"), "unlabelled", r"has test_set/, training_set/: are they splits or classes\?"),
        (("train_images", "val-images", "Test images"), "train", r"Rename splits to train/ and test/ \(or val/\)"),
        (("trains", "tests"), "all", r"has tests/, trains/: are they splits"),
        (("train2017", "val2017"), "test", r"has train2017/, val2017/: are they splits"),
        (("images_train", "valset"), "train", r"has images_train/, valset/: are they splits"),
        (("all/train_data", "all/test_data"), "train", r"/all has splits of its own"),
        (("all/seg_train", "all/seg_test", "all/seg_pred"), "train", r"/all has splits of its own"),
        (("seg_train/seg_train", "seg_test/seg_test", "seg_pred/a"), "train", r"has seg_test/, seg_train/: are they"),
        (
            ("train2017", "val2017", "test2017", "unlabeled2017"),
            "unlabelled",
            "has test2017/, train2017/, val2017/: are",
        ),
        (
            ("train_images", "images-Test", "train_station", "x"),
            "unlabelled",
            "has images-Test/, train_images/: are they",
        ),
        (("trainset", "testset", "extra"), "all", "has testset/, trainset/: are they splits"),
    ],
)
def test_a_folder_that_may_be_a_split_or_a_class_is_refused(tmp_path, make, split, expected):
    tree(tmp_path, splits=make)
    with pytest.raises(UserError, match=expected):
        datasets.load("folder", str(tmp_path), split)


def test_what_has_only_a_test_split_is_tested_on_and_two_classes_of_one_folder_are_no_splits(tmp_path):
    tree(tmp_path / "a", splits=("Validation",))
    assert len(datasets.load("folder", str(tmp_path / "a"), "all")) == 8
    tree(tmp_path / "b", splits=("cat/train", "dog/train"))  # pictures of trains
    assert datasets.load("folder", str(tmp_path / "b"), "all").classes == ["cat", "dog"]


@pytest.mark.parametrize(
    "names",
    [
        ("train_station", "tests", "bus"),
        ("train_station", "test_tube", "bus"),
        ("train_steam", "train_electric"),
        ("trainer", "tester"),
        ("testes",),
    ],
)
def test_classes_that_are_called_like_splits_are_classes(tmp_path, names):
    tree(tmp_path, splits=("",), classes=names)
    (tmp_path / "notes").mkdir()  # a folder without images is told of before any question of splits
    with pytest.raises(UserError, match="notes has no images"):
        datasets.load("folder", str(tmp_path), "unlabelled")
    (tmp_path / "notes").rmdir()
    assert datasets.load("folder", str(tmp_path), "unlabelled").classes == sorted(names)


def test_images_beside_the_splits_are_said_not_to_be_read(tmp_path, capsys):
    tree(tmp_path, splits=("Train", "Test", "extra", "@eaDir"))
    picture(tmp_path / "cover.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "1.xml").write_text("no image")
    for split in ("train", "test"):
        assert datasets.load("folder", str(tmp_path), split).classes == ["cat", "dog"]
    said = capsys.readouterr().out
    assert said == f"data        only Test/, Train/ of {tmp_path} are read, not 'extra/', 'cover.png'\n"


def test_pre_training_on_folders_with_splits_of_their_own_is_warned_of(tmp_path, capsys):
    tree(tmp_path, splits=("a/train", "a/test", "b"))
    assert len(datasets.load("folder", str(tmp_path), "unlabelled").classes) == 2
    assert f"{tmp_path / 'a'} has splits of its own, so their test images are among" in capsys.readouterr().out


def test_extensions_are_those_of_the_formats_that_are_read():
    Image.init()
    assert {name for name, kind in Image.registered_extensions().items() if kind in FORMATS} == listing.EXTENSIONS


def test_files_that_are_not_read_are_counted_once_and_junk_is_neither_counted_nor_a_class(tmp_path, capsys):
    tree(tmp_path, splits=("",), each=20)
    picture(tmp_path / "cat" / "20.png")
    (tmp_path / "cat" / "20.png").rename(tmp_path / "cat" / "20.JFIF")
    for name in ("cat/a.heic", "cat/b.HEIC", "dog/noextension", "dog/._1.jpg", "dog/Thumbs.db", ".DS_Store"):
        (tmp_path / name).write_text("x")
    (tmp_path / "dog" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    for junk in ("@eaDir", "__MACOSX", ".thumbnails", "dog/@eaDir"):
        picture(tmp_path / junk / "0.png")
    for _ in range(2):
        parts = [datasets.load("folder", str(tmp_path), split) for split in ("train", "test")]
        assert parts[0].classes == ["cat", "dog"] and sum(map(len, parts)) == 41
    said = capsys.readouterr().out
    assert f"in {tmp_path} 4 files were not read: 2 .heic, 1 .jpg that are no ordinary files, 1 without" in said
    assert said.count("not read") == 1 and f" of 41 images of {tmp_path} for the test" in said


def test_the_line_of_files_that_are_not_read_is_short(tmp_path, capsys):
    tree(tmp_path, each=1)
    for number in range(50):
        (tmp_path / "train" / f"x.{number}\x1b[2J{'long' * 9}").write_text("x")
    datasets.load("folder", str(tmp_path), "train")
    (line,) = capsys.readouterr().out.splitlines()
    assert "50 files were not read: 1 .0" in line and line.endswith("and 45 more kinds") and len(line) < 300
    assert line.isprintable()


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.heic").write_text("x")
    with pytest.raises(UserError, match=r"has no images \(looked for .*\); 3 files were not read: 3 \.heic$"):
        datasets.load("folder", str(tmp_path), "unlabelled")


def test_class_folders_that_differ_in_case_are_told(tmp_path, capsys):
    tree(tmp_path, classes=("cat", "Cat", "dog"))
    assert len(datasets.load("folder", str(tmp_path), "test").classes) == 3
    assert "*** 'Cat' and 'cat' of class folders of" in capsys.readouterr().out


def test_large_images_stay_files(tmp_path):
    tree(tmp_path, each=1, size=(80, 70))
    assert datasets.load("folder", str(tmp_path), "train").resident is None


def test_class_folders_without_splits_are_cut_without_overlap(tmp_path):
    tree(tmp_path, splits=("",), each=20)
    train, test = (datasets.load("folder", str(tmp_path), split) for split in ("train", "test"))
    assert len(train) + len(test) == 40 and test.labels.bincount().min() > 0 and len(test) < 20
    assert not set(train.paths) & set(test.paths)
    assert datasets.load("folder", str(tmp_path), "unlabelled").paths == train.paths  # nor pre-train on test


def test_a_flat_folder_has_no_labels_and_cannot_be_judged(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.jpg")
    data = datasets.load("folder", str(tmp_path), "unlabelled")
    assert len(data) == 3 and data.labels.tolist() == [-1] * 3
    with pytest.raises(UserError, match=r"without class folders, such as 0\.jpg"):
        datasets.load("folder", str(tmp_path), "test")


def test_one_image_beside_the_class_folders_is_named(tmp_path):
    tree(tmp_path, splits=("",), each=20)
    picture(tmp_path / "thumb.jpg")
    with pytest.raises(UserError, match=r"such as thumb\.jpg; without labels"):
        datasets.load("folder", str(tmp_path), "test")


def test_linked_folders_that_form_a_loop_are_read_once(tmp_path):
    tree(tmp_path)
    (tmp_path / "train" / "cat" / "loop").symlink_to(tmp_path / "train")
    assert len(datasets.load("folder", str(tmp_path), "unlabelled")) == 8


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda root: None, "has no images"),
        (lambda root: (root / "a").mkdir(), "has no images"),
        (lambda root: (tree(root), (root / "train" / "empty").mkdir()), "class folder .*empty has no images"),
        (lambda root: (tree(root), picture(root / "train" / "bird" / "1.png")), "class 'bird' is not in .*test"),
        (lambda root: (tree(root), picture(root / "test" / "bird" / "1.png")), "class 'bird' is not in .*train"),
        (lambda root: tree(root, splits=("train",)), "neither test/ nor val/"),
        (
            lambda root: (tree(root), picture(root / "train" / "overview.png")),
            r"/train has images outside class folders, such as overview\.png, so none of its images has a class",
        ),
        (lambda root: (tree(root), picture(root / "test" / "stray.png")), r"/test has .*, such as stray\.png"),
    ],
)
def test_folders_that_are_not_what_they_should_be_are_named(tmp_path, make, expected):
    make(tmp_path)
    with pytest.raises(UserError, match=expected):
        datasets.load("folder", str(tmp_path), "test")


def test_one_image_beside_class_folders_is_told_of_as_no_image_has_a_class(tmp_path, capsys):
    tree(tmp_path, splits=("train",))
    root = tmp_path / "train"
    assert datasets.load("folder", str(root), "unlabelled").classes == ["cat", "dog"]
    assert "outside class folders" not in capsys.readouterr().out
    picture(root / "overview.png")
    data = datasets.load("folder", str(root), "unlabelled")
    assert len(data) == 9 and data.classes == []
    said = f"data        *** 1 image of {root} outside class folders, such as overview.png: no image has a class ***"
    assert said in capsys.readouterr().out
    flat = tmp_path / "flat"  # control: no image is meant to have a class
    picture(flat / "1.png")
    datasets.load("folder", str(flat), "unlabelled")
    assert "outside class folders" not in capsys.readouterr().out


def test_a_wrong_data_dir_is_an_error_never_a_fallback(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        datasets.load("folder", str(tmp_path / "nowhere"), "train")
    with pytest.raises(UserError, match="CIFAR10 is not in"):
        datasets.load("CIFAR10", str(tmp_path), "train")
    with pytest.raises(UserError, match="is not ImageNet"):
        datasets.load("ImageNet", str(tmp_path), "train")
    with pytest.raises(UserError, match="pass --data_dir"):
        datasets.load("ImageNet", None, "train")


def test_names_are_resolved_or_the_nearest_is_told():
    assert datasets.resolve_name(None, None) == "shapes"
    assert datasets.resolve_name(None, "somewhere") == "folder"
    with pytest.raises(UserError, match="did you mean CIFAR10"):
        datasets.resolve_name("cifar10", None)
    with pytest.raises(UserError, match="shapes is made"):
        datasets.resolve_name("shapes", "somewhere")


def test_an_imagenet_subset_takes_its_labels_from_the_class_list(tmp_path):
    wnids = tuple(f"n{i:08}" for i in range(60))
    tree(tmp_path / "in", splits=("train", "val"), classes=wnids, each=1, size=(70, 70))
    lines = [f"{wnid} name of {int(wnid[1:])}" for wnid in reversed(wnids[:50])]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    data = datasets.load("ImageNet50", str(tmp_path / "in"), "train", class_list=str(tmp_path / "list.txt"))
    assert len(data) == 50 and data.classes[0] == "name of 49"
    assert data.paths[0].endswith("n00000049/0.png") and data.labels.tolist() == list(range(50))
    with pytest.raises(UserError, match="lists 50 classes, ImageNet100 has 100"):
        datasets.load("ImageNet100", str(tmp_path / "in"), "train", class_list=str(tmp_path / "list.txt"))
    (tmp_path / "in" / "train").rename(tmp_path / "in" / "Training")
    again = datasets.load("ImageNet50", str(tmp_path / "in"), "train", class_list=str(tmp_path / "list.txt"))
    assert again.classes == data.classes and len(again) == 50
    for wrong, said in {"../etc x": "no class of ImageNet", "n0160169 x": "n and 8 digits", lines[1]: "twice"}.items():
        (tmp_path / "list.txt").write_text("\n".join([wrong, *lines[1:]]))
        with pytest.raises(UserError, match=said):
            datasets.load("ImageNet50", str(tmp_path / "in"), "train", class_list=str(tmp_path / "list.txt"))
    with pytest.raises(UserError, match=r"such as imagenet_50.txt, .* of github.com/wvangansbeke"):
        datasets.load("ImageNet50", str(tmp_path / "in"), "train")


def test_a_class_list_that_is_not_the_published_one_is_said(tmp_path, capsys, monkeypatch):
    wnids = tuple(f"n{i:08}" for i in range(51))
    tree(tmp_path / "in", splits=("train", "val"), classes=wnids, each=1, size=(70, 70))

    def said(chosen, split="train") -> str:
        (tmp_path / "list.txt").write_text("\n".join(f"{wnid} name" for wnid in chosen))
        datasets.load("ImageNet50", str(tmp_path / "in"), split, class_list=str(tmp_path / "list.txt"))
        return capsys.readouterr().out

    monkeypatch.setitem(SUBSETS, "ImageNet50", hashlib.sha256("\n".join(wnids[:50]).encode()).hexdigest())
    assert said(wnids[:50]) == said(wnids[49::-1]) == ""  # labels follow the list's order, the classes are the same
    assert "not the ImageNet50 of Van Gansbeke et al." in said(wnids[1:])
    assert said(wnids[1:], "test") == ""  # once is enough


def test_two_classes_of_one_name_are_told_apart_by_their_wnid_or_refused(tmp_path):
    names = [*(f"n{i:08}" for i in range(48)), "n02012849", "n03126707"]
    tree(tmp_path / "in", splits=("train", "val"), classes=names, each=1)
    lines = [f"{wnid} class {wnid}" for wnid in names[:48]] + ["n02012849 crane", "n03126707 crane"]
    (tmp_path / "list").write_text("\n".join(lines))
    for split in ("train", "test"):
        data = datasets.load("ImageNet50", str(tmp_path / "in"), split, class_list=str(tmp_path / "list"))
        assert data.classes[47:] == ["class n00000047", "crane (n02012849)", "crane (n03126707)"]
    assert classes.distinct(["crane", "dog", "crane"], ["n1", "n2", "n3"]) == ["crane (n1)", "dog", "crane (n3)"]
    (tmp_path / "list").write_text("\n".join([*lines[:47], "n00000047 crane (n02012849)", *lines[48:]]))
    with pytest.raises(UserError, match=r"ImageNet50 has several classes called 'crane \(n02012849\)'"):
        datasets.load("ImageNet50", str(tmp_path / "in"), "train", class_list=str(tmp_path / "list"))


def test_a_data_set_with_two_classes_of_one_name_is_refused(monkeypatch):
    data = Images("CIFAR10", torch.arange(3), ["a", "b", "a"], resident=torch.zeros(3, 3, 8, 8, dtype=torch.uint8))
    monkeypatch.setattr(datasets, "_torchvision", lambda *_, **__: data)
    with pytest.raises(UserError, match="CIFAR10 has several classes called 'a'"):
        datasets.load("CIFAR10", None, "train")


def test_torchvision_sets_are_read(tmp_path):
    import pickle

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    from torchvision.datasets import CIFAR10

    try:
        check = CIFAR10._check_integrity
        CIFAR10._check_integrity = lambda self: True
        CIFAR10._load_meta = lambda self: setattr(self, "classes", [str(i) for i in range(10)])
        for name, _ in CIFAR10.train_list + CIFAR10.test_list:
            data = {"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": list(range(10))}
            (folder / name).write_bytes(pickle.dumps(data))
        train = datasets.load("CIFAR10", str(tmp_path), "train")
        test = datasets.load("CIFAR10", str(tmp_path), "test")
    finally:
        CIFAR10._check_integrity = check
    assert train.resident.shape == (50, 3, 32, 32) and test.resident.shape == (10, 3, 32, 32)
    assert train.resident.is_contiguous() and train.labels[:10].tolist() == list(range(10))


# fake


def test_fake_small_images_are_resident_and_by_seed():
    train, again, other, test = (
        datasets.load("fake", None, split, image_size=16, seed=seed)
        for split, seed in (("unlabelled", 0), ("train", 0), ("train", 1), ("test", 0))
    )
    assert train.resident.shape == (50_000, 3, 16, 16) and test.resident.shape == (10_000, 3, 16, 16)
    assert torch.equal(train.resident, again.resident) and torch.equal(train.labels, again.labels)
    assert not torch.equal(train.resident, other.resident) and not torch.equal(train.labels, other.labels)
    assert not torch.equal(train.resident[:10_000], test.resident)
    assert train.labels.bincount(minlength=10).min() > 4500 and len(train.classes) == 10


def test_fake_large_images_take_the_way_of_files_without_the_memory():
    data = datasets.load("fake", None, "unlabelled", image_size=96)
    assert len(data) == 1_281_167 and data.resident is None
    assert data.pixels(1_281_166).shape == (3, 110, 110) and data.pixels(0).float().std() > 70
    assert len(data.subset(torch.arange(7))) == 7
    order = Order(len(data), 4, 1, 1, seed=0)
    for workers in (0, 1):
        (batch,) = training_batches(data, [View(size=96)] * 2, order, 3, 4, workers, CPU)
        assert [pixels.shape for pixels, _ in batch.views] == [(4, 3, 96, 96)] * 2
        assert torch.equal(batch.labels, data.labels[batch.index])


def test_fake_has_nothing_to_be_read_from():
    with pytest.raises(UserError, match="fake is made"):
        datasets.resolve_name("fake", "somewhere")


# splits and order


def test_the_validation_split_is_stratified_disjoint_and_by_seed():
    labels = torch.arange(1000) % 7
    train, held = split_validation(labels, 0.1, seed=0)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(1000))
    assert labels[held].bincount().tolist() == [14] * 7
    assert not torch.equal(held, split_validation(labels, 0.1, seed=1)[1])


@pytest.mark.parametrize("labels", [[], [2], [-1, 5, -1, 0, 5, 5, -1] * 9, list(range(40)) * 3])
def test_the_first_of_every_class_are_those_of_a_plain_loop(labels):
    labels = torch.tensor(labels, dtype=torch.long)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(3)).tolist()
    expected = torch.zeros(len(labels), dtype=torch.bool)
    for label in set(labels.tolist()):
        of_class = [place for place in order if labels[place] == label]
        expected[of_class[: (len(of_class) + 1) // 2]] = True
    assert torch.equal(first_of_classes(labels, 3, lambda count: (count + 1) // 2), expected)


def test_a_class_of_one_image_stays_in_train():
    train, _ = split_validation(torch.tensor([0, 0, 0, 1]), 0.1, seed=0)
    assert 3 in train.tolist()


def test_global_batches_are_the_same_for_any_processes_and_accumulation():
    def step_of(batch_size, accumulate, world, step):
        order = Order(100, batch_size, accumulate, world, seed=5)
        return [order.indices(step, m, r)[1].tolist() for r in range(world) for m in range(accumulate)]

    for step in (0, 7, 13):  # the last two are in the second epoch and the third
        whole = sum(step_of(16, 1, 1, step), [])
        assert sum(step_of(4, 1, 4, step), []) == sum(step_of(4, 4, 1, step), []) == sum(step_of(4, 2, 2, step), [])
        assert whole == sum(step_of(4, 1, 4, step), [])


def test_an_epoch_shows_every_image_at_most_once_and_epochs_differ():
    order = Order(100, 10, 1, 1, seed=0)
    first = sum((order.indices(step, 0, 0)[1].tolist() for step in range(10)), [])
    assert sorted(first) == list(range(100))
    assert order.indices(10, 0, 0)[0] == 1
    assert permutation(100, 0, 0).tolist() != permutation(100, 0, 1).tolist() != permutation(100, 1, 1).tolist()
    assert permutation(100, 0, 0).tolist() != permutation(100, 2**32, 0).tolist()


def uneven(count=400, seed=0):
    """Labels of four classes, one of them absent, in the shares 80, 15 and 5 %."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return torch.tensor([0] * (count * 16 // 20) + [1] * (count * 3 // 20) + [3] * (count // 20))[order]


def test_a_balanced_epoch_shows_classes_alike_and_the_images_of_a_class_alike():
    labels = uneven(count=100)
    draws = torch.cat([balanced(labels, 0, epoch)[0] for epoch in range(400)])
    assert len(draws) == 400 * len(labels)
    assert chisquare(labels[draws].bincount()[[0, 1, 3]]).pvalue > 1e-3
    times = draws.bincount(minlength=100)
    for label in (0, 1, 3):
        assert chisquare(times[labels == label]).pvalue > 1e-3
    plain = torch.cat([permutation(100, 0, epoch) for epoch in range(400)])  # the control
    assert chisquare(labels[plain].bincount()[[0, 1, 3]]).pvalue < 1e-9


def test_balanced_batches_are_the_same_for_any_processes_and_accumulation():
    labels = uneven()

    def step_of(batch_size, accumulate, world, step):
        order = Order(400, batch_size, accumulate, world, 5, labels.clone())
        parts = [order.indices(step, m, r) for r in range(world) for m in range(accumulate)]
        return [(epoch, *pair) for epoch, *rows in parts for pair in zip(*(x.tolist() for x in rows))]

    for step in (0, 7, 25, 26):  # the last is in the second epoch
        whole = step_of(16, 1, 1, step)
        assert whole == step_of(4, 1, 4, step) == step_of(8, 1, 2, step) == step_of(4, 2, 2, step)
    assert step_of(16, 1, 1, 0) != step_of(16, 1, 1, 25)


def test_repeats_count_how_often_the_epoch_has_shown_an_image():
    index, repeats = balanced(uneven(), 3, 1)
    before: dict[int, int] = {}
    for i, times in zip(index.tolist(), repeats.tolist()):
        assert times == before.get(i, 0)
        before[i] = times + 1
    assert max(before.values()) > 5
    assert Order(400, 16, 1, 1, 5).indices(3, 0, 0)[2].tolist() == [0] * 16


@pytest.mark.parametrize("kind", ["resident", "files"])
def test_an_image_that_stands_twice_in_a_batch_is_shown_otherwise(tmp_path, kind):
    labels = uneven(40)
    pixels = torch.randint(0, 256, (40, 3, 40, 40), generator=torch.Generator().manual_seed(0)).byte()
    data = Images("x", labels, list("abcd"), **{"resident" if kind == "resident" else "pool": pixels})
    views = [View(size=32, blur_prob=0.5, solarize_prob=0.5)] * 2

    def show(order):
        (batch,) = training_batches(data, views, order, 1, 2, 0, CPU)
        return batch

    batch = show(Order(40, 20, 1, 1, 2, labels))
    rows, counts = batch.index.unique(return_counts=True)
    assert (counts > 1).sum() >= 2
    for pixels, params in batch.views:
        for i in rows[counts > 1]:
            same = (batch.index == i).nonzero()[:, 0]
            for a, b in zip(same, same[1:]):
                assert not torch.equal(pixels[a], pixels[b]) and not torch.equal(params[a], params[b])
    crop, params = draw(2, 0, batch.index, 0, views[0])  # the control: what the counter gives without `repeats`
    twice = (batch.index == rows[counts > 1][0]).nonzero()[:2, 0]
    assert torch.equal(crop[twice[0]], crop[twice[1]]) and torch.equal(params[twice[0]], params[twice[1]])
    # Images that the epoch has not shown before look as they do in any order of this seed.
    _, _, repeats = Order(40, 20, 1, 1, 2, labels).indices(1, 0, 0)
    assert torch.equal(batch.views[0][1][repeats == 0], params[repeats == 0]) and (repeats == 0).any()


def test_balanced_batches_that_start_in_the_middle_are_those_of_the_whole_run():
    data = Images("x", uneven(40), list("abcd"), resident=torch.randint(0, 256, (40, 3, 32, 32)).byte())
    views = [View(size=32)]
    whole = list(training_batches(data, views, Order(40, 8, 1, 1, 2, data.labels), 0, 8, 0, CPU))
    tail = list(training_batches(data, views, Order(40, 8, 1, 1, 2, data.labels.clone()), 6, 8, 0, CPU))
    for a, b in zip(whole[6:], tail, strict=True):
        assert torch.equal(a.index, b.index) and torch.equal(a.views[0][0], b.views[0][0])
        assert torch.equal(a.views[0][1], b.views[0][1]) and torch.equal(a.labels, data.labels[a.index])


def test_a_balanced_order_refuses_images_without_labels():
    with pytest.raises(UserError, match=r"balanced: 2 of 5 images have no label"):
        Order(5, 2, 1, 1, 0, torch.tensor([0, -1, 1, -1, 1]))


def test_even_slices_cover_every_row_once():
    slices, counts = _even_slices(10, 4)
    assert [(s.start, s.stop) for s in slices] == [(0, 4), (4, 8), (8, 10)] and counts == [[4], [4], [2]]


@pytest.mark.parametrize("workers", [0, 2])
def test_views_from_files_do_not_depend_on_workers_or_batch_size(tmp_path, workers):
    rng = np.random.default_rng(0)
    for i in range(12):
        (tmp_path / "train" / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (70 + i, 90, 3), dtype=np.uint8)).save(
            tmp_path / "train" / "a" / f"{i:02}.png"
        )
    data = datasets.load("folder", str(tmp_path), "unlabelled")
    views = [View(size=32), View(size=24)]

    def by_image(batch_size, workers):
        batches = training_batches(data, views, Order(12, batch_size, 1, 1, seed=1), 0, 12 // batch_size, workers, CPU)
        return {
            i: [v[0][r] for v in b.views] + [v[1][r] for v in b.views]
            for b in batches
            for r, i in enumerate(b.index.tolist())
        }

    expected, got = by_image(4, 0), by_image(6, workers)
    assert len(got) == 12
    for i, parts in expected.items():
        assert all(torch.equal(a, b) for a, b in zip(parts, got[i]))


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_many_views_are_of_one_decode_and_the_first_two_are_those_of_two(tmp_path, monkeypatch, kind):
    tree(tmp_path, splits=("train",), each=4, size=(100, 80) if kind == "files" else (32, 32))
    data = datasets.load("folder", str(tmp_path), "unlabelled")
    assert (data.resident is None) == (kind == "files")
    views, decoded, pixels = [View(size=24), View(size=24, blur_prob=0.1)] * 4, [], Images.pixels
    monkeypatch.setattr(
        Images, "pixels", lambda data, index, *more: decoded.append(index) or pixels(data, index, *more)
    )
    (two,), (eight,) = (
        training_batches(data, views[:count], Order(8, 8, 1, 1, seed=3), 0, 1, 0, CPU) for count in (2, 8)
    )
    assert len(decoded) == (2 * 8 if kind == "files" else 0)
    assert torch.equal(two.index, eight.index) and len(eight.views) == 8
    for few, many in zip(two.views, eight.views):
        assert all(torch.equal(a, b) for a, b in zip(few, many))
    params = torch.stack([params for _, params in eight.views])
    assert len(params.flatten(1).unique(dim=0)) == 8  # no view is drawn twice


def test_an_image_is_reduced_only_as_far_as_the_smallest_crop_of_many_views_allows(monkeypatch):
    """Every crop stays at least twice its final size."""
    views = [View(size=16, crop_scale=(0.3, 1.0))] * 6
    pool = torch.zeros(1, 3, 300, 400, dtype=torch.uint8)
    boxes, spare = [], []
    monkeypatch.setattr(worker, "crop_boxes", lambda *given: boxes.append(crop_boxes(*given)) or boxes[-1])
    monkeypatch.setattr(worker, "reduction_to", lambda most: spare.append(most) or 1)
    monkeypatch.setattr(Images, "pixels", lambda data, index, reduction: reduction(300, 400) and data.pool[0])
    data = Images("x", torch.zeros(2).long(), ["a"], pool=pool)
    (batch,) = training_batches(data, views, Order(2, 2, 1, 1, seed=0), 0, 1, 0, CPU)
    sides = torch.cat(boxes)[:, 2:].min(1).values.view(2, 6)
    assert spare == pytest.approx((sides.min(1).values / 32).tolist()) and len(batch.views) == 6
    assert (sides[:, :2].min(1).values > sides.min(1).values).any()  # or the first two would have sufficed


def test_a_run_that_starts_in_the_middle_sees_what_the_whole_run_saw_there():
    data = Images("x", torch.zeros(40).long(), ["a"], resident=torch.randint(0, 256, (40, 3, 32, 32)).byte())
    order, views = Order(40, 8, 1, 1, seed=2), [View(size=32)]
    whole = list(training_batches(data, views, order, 0, 8, 0, CPU))
    tail = list(training_batches(data, views, order, 6, 8, 0, CPU))
    for a, b in zip(whole[6:], tail):
        assert torch.equal(a.index, b.index) and torch.equal(a.views[0][0], b.views[0][0])


def test_finished_views_are_those_of_apply_on_the_whole_batch():
    data = Images("x", torch.zeros(300).long(), ["a"], resident=torch.randint(0, 256, (300, 3, 32, 32)).byte())
    views = [View(size=32), View(size=32, blur_prob=0.1, solarize_prob=0.2)]
    (batch,) = training_batches(data, views, Order(300, 300, 1, 1, seed=2), 0, 1, 0, CPU)
    mean, std = torch.rand(3), torch.rand(3) + 0.1
    for x, (pixels, params), view in zip(finish(batch, views, mean, std), batch.views, views):
        assert x.is_contiguous(memory_format=torch.channels_last)
        whole = apply(pixels, params, view, mean, std)
        # a pixel on the solarisation threshold may fall either way
        assert ((x - whole).abs() < 1e-4).double().mean() > 0.999


def test_resident_and_file_crops_agree(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    for i, pixels in enumerate(render(torch.arange(4), 60, seed=0)):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "train" / "a" / f"{i}.png")
    held = datasets.load("folder", str(tmp_path), "unlabelled")
    files = Images("folder", held.labels, held.classes, paths=held.paths)
    order = Order(4, 4, 1, 1, seed=0)
    (a,), (b,) = (list(training_batches(d, [View(size=32)], order, 0, 1, 0, CPU)) for d in (held, files))
    assert ((a.views[0][0] * 255).round() - b.views[0][0].float()).abs().max() <= 1
    assert torch.equal(a.views[0][1], b.views[0][1])


def test_plain_batches_show_every_image_once_in_order(tmp_path):
    tree(tmp_path, splits=("train",), each=5, size=(100, 80))
    data = datasets.load("folder", str(tmp_path), "unlabelled")
    parts = list(plain_batches(data, 56, 4, 2, CPU))
    pixels = torch.cat([pixels for pixels, _, _ in parts])
    assert pixels.shape == (10, 3, 56, 56) and [c for _, c, _ in parts] == [[4], [4], [2]]
    expected = torch.tensor([i * 10 / 255 for i in range(5)] * 2)
    assert torch.allclose(pixels[:, 0, 0, 0], expected, atol=1e-6)


def test_real_cifar_reads_as_an_image_folder(real_data):
    data = datasets.load("folder", str(real_data / "cifar10_jpeg"), "test")
    assert data.resident.shape == (10_000, 3, 32, 32) and len(data.classes) == 10


def test_real_folders_of_every_kind_read(real_data):
    flowers = datasets.load("folder", str(real_data / "flowers_227_small"), "test")
    assert len(flowers) == 200 and flowers.pixels(0).shape == (3, 227, 227)
    tiny = datasets.load("folder", str(real_data / "tiny-imagenet-20"), "train")
    assert tiny.resident.shape == (4000, 3, 64, 64)
    photos = datasets.load("folder", str(real_data / "photos"), "unlabelled")
    assert len(photos) + len(datasets.load("folder", str(real_data / "photos"), "test")) == 72
    assert photos.classes == ["ants", "bees"]
    tiles = datasets.load("folder", str(real_data / "histo_samples"), "unlabelled")
    assert all(tiles.pixels(i).shape[0] == 3 for i in range(len(tiles)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_see_the_same_however_they_are_started(tmp_path, method):
    for i in range(8):
        path = tmp_path / "train" / "a" / f"{i}.jpg"
        picture(path, (20 * i, 90, 200 - i), (90, 70 + i))
    data = datasets.load("folder", str(tmp_path), "unlabelled")
    order, before = Order(8, 4, 1, 1, seed=1), torch.multiprocessing.get_start_method(allow_none=True)
    plain = list(training_batches(data, [View(size=32)], order, 0, 4, 0, CPU))
    torch.multiprocessing.set_start_method(method, force=True)
    try:
        started = list(training_batches(data, [View(size=32)], order, 0, 4, 1, CPU))
    finally:
        torch.multiprocessing.set_start_method(before, force=True)
    for a, b in zip(plain, started, strict=True):
        assert torch.equal(a.index, b.index) and a.seed == b.seed
        assert all(torch.equal(p, q) for p, q in zip(a.views[0], b.views[0]))


def test_a_large_jpeg_decoded_small_gives_nearly_the_same_crop(tmp_path):
    rough = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    large = Image.fromarray(rough).resize((1600, 1200), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    large.save(tmp_path / "a.jpg", quality=95, exif=exif)
    Image.fromarray(decode(tmp_path / "a.jpg").permute(1, 2, 0).numpy()).save(tmp_path / "b.png")
    files = [str(tmp_path / name) for name in ("a.jpg", "b.png")]
    views = [View(size=64, crop_scale=(0.3, 1.0)), View(size=48, crop_scale=(0.3, 1.0))]
    asked = []
    small = decode(files[0], lambda height, width: asked.append((height, width)) or 4)
    assert asked == [(1600, 1200)] and small.shape == (3, 400, 300)
    for seed in range(4):
        crops = []
        for path in files:  # the JPEG may be decoded small, the PNG never is
            data = Images("x", torch.zeros(2).long(), ["a"], paths=[path, path])
            (batch,) = training_batches(data, views, Order(2, 2, 1, 1, seed), 0, 1, 0, CPU)
            crops.append([pixels.float() for pixels, _ in batch.views])
        for of_jpeg, of_png in zip(*crops):
            assert (of_jpeg - of_png).abs().mean() < 1  # a shift by a quarter pixel gives 10 and more


@pytest.mark.parametrize(
    "files, environment, expected",
    [
        ({}, {}, 64),
        ({"cpu.max": "max 100000"}, {}, 64),
        ({"cpu.max": "350000 100000"}, {}, 3),
        ({"cpu.max": "50000 100000"}, {}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, {}, 64),
        ({"cpu/cpu.cfs_quota_us": "800000", "cpu/cpu.cfs_period_us": "100000"}, {}, 8),
        ({}, {"SLURM_CPUS_PER_TASK": "16"}, 16),
        ({"cpu.max": "400000 100000"}, {"SLURM_CPUS_PER_TASK": "16"}, 4),
    ],
)
def test_cores_are_those_a_process_may_use(tmp_path, monkeypatch, files, environment, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert usable_cores(tmp_path) == expected


@pytest.mark.parametrize("cores_here, processes, share, workers", [(64, 8, 8, 7), (16, 1, 16, 15), (64, 100, 1, 1)])
def test_processes_of_one_machine_share_its_cores(monkeypatch, cores_here, processes, share, workers):
    monkeypatch.setattr(cores, "usable_cores", lambda: cores_here)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert core_share() == share
    assert auto_workers() == workers  # one core stays free for the training, where there is more than one


@pytest.mark.parametrize("words, told", [("worker 7 exited\nlater lines", "worker 7 exited"), ("", "EOFError")])
def test_workers_killed_too_often_end_the_run_with_a_reason(monkeypatch, words, told):
    """A broken connection may be an error without a message."""

    class Broken:
        def __init__(self, *args, **kwargs):
            pass

        def __iter__(self):
            return self

        def __next__(self):
            raise EOFError(*[words] * bool(words))

    monkeypatch.setattr(loader, "DataLoader", Broken)
    monkeypatch.setattr(loader.multiprocessing.connection, "wait", lambda processes, timeout: ["a dead one"])
    with pytest.raises(UserError, match=rf"killed {loader.RESTARTS + 1} times \({told}\)"):
        next(loader._worker_batches(None, [0], 1, torch.device("cpu")))
