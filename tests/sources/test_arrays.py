"""Data sets in array files: 1 to 16 channels, 8 and 16 bits, in memory and from the disk; and files that are not so."""

import json
import pickle
import re

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from running import run, tiny
from torchvision.transforms import InterpolationMode

from ssl.augment import View
from ssl.data import keys, loader
from ssl.data.images import Images, evenly_spaced
from ssl.data.order import Order
from ssl.data.worker import resized_crop
from ssl.encoders import SmallResNet, build_encoder
from ssl.errors import UserError
from ssl.sources import arrays, datasets

CPU = torch.device("cpu")


def pictures(count, side=20, channels=(), dtype=np.uint8, seed=0):
    """Smooth (N, H, W[, C]) images, brighter from class to class of three."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((count, *channels, 4, 4)).reshape(count, -1, 4, 4))
    x = TF.resize(coarse, [side, side], InterpolationMode.BILINEAR).permute(0, 2, 3, 1).numpy()
    x = (0.5 * x + 0.25 * (np.arange(count) % 3)[:, None, None, None]) * np.iinfo(dtype).max
    return (x if channels else x[..., 0]).astype(dtype)


def medmnist(path, side=20, channels=(), dtype=np.uint8):
    """A file in MedMNIST's layout: 48 images to train on, 9 to validate, 12 to test, three classes."""
    parts = {}
    for seed, (split, count) in enumerate({"train": 48, "val": 9, "test": 12}.items()):
        parts[f"{split}_images"] = pictures(count, side, channels, dtype, seed)
        parts[f"{split}_labels"] = (np.arange(count) % 3)[:, None].astype(np.uint8)
    np.savez_compressed(path, **parts)
    return parts


def load(path, split="unlabelled", **options):
    return datasets.load(datasets.resolve_name(None, str(path)), str(path), split, **options)


def test_val_is_its_own_split_where_test_is_there_and_judges_where_it_is_not(tmp_path):
    parts = medmnist(tmp_path / "a.npz")
    assert load(tmp_path / "a.npz", "val").labels.tolist() == parts["val_labels"][:, 0].tolist()
    np.savez(tmp_path / "b.npz", **{name: array for name, array in parts.items() if not name.startswith("test")})
    assert load(tmp_path / "b.npz", "val") is None and len(load(tmp_path / "b.npz", "test")) == 9
    np.savez(tmp_path / "c.npz", images=parts["train_images"], labels=parts["train_labels"])
    np.save(tmp_path / "d.npy", parts["train_images"])
    assert load(tmp_path / "c.npz", "val") is None and load(tmp_path / "d.npy", "val") is None


# Reading ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [(), (1,), (2,), (3,), (4,), (16,)])
def test_every_channel_count_and_depth_reads_to_the_pixels_that_were_written(tmp_path, channels, dtype):
    parts = medmnist(tmp_path / "a.npz", 20, channels, dtype)
    for split, name in (("unlabelled", "train"), ("train", "train"), ("test", "test")):
        data = load(tmp_path / "a.npz", split)
        expected = parts[f"{name}_images"].reshape(len(data), 20, 20, -1).transpose(0, 3, 1, 2)
        assert np.array_equal(data.resident.numpy(), expected) and data.resident.is_contiguous()
        assert data.channels == expected.shape[1] and data.classes == ["0", "1", "2"]
        assert data.labels.tolist() == parts[f"{name}_labels"][:, 0].tolist()


@pytest.mark.parametrize("kind, side, value_range", [("u2", 70, None), ("f4", 70, (0.0, 255.0)), ("f4", 20, (0, 255))])
def test_an_array_in_foreign_byte_order_is_the_one_in_native_order(tmp_path, kind, side, value_range):
    x = pictures(30, side)
    for order in "<>":
        np.save(tmp_path / f"{order}.npy", x.astype(order + kind))
        np.savez(
            tmp_path / f"{order}.npz", images=x.astype(order + kind), labels=(np.arange(30) % 3).astype(order + "i8")
        )
    for name in ("npy", "npz"):
        native, foreign = (load(tmp_path / f"{order}.{name}", value_range=value_range) for order in "<>")
        assert len(native) == len(foreign) > 20 and torch.equal(native.labels, foreign.labels)
        assert all(torch.equal(native.pixels(index), foreign.pixels(index)) for index in range(len(native)))
        assert np.array_equal(keys.of_pixels(native), keys.of_pixels(foreign))


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_numbers_that_torch_does_not_have_are_refused_with_a_value_range_too(tmp_path, name):
    x = pictures(9, 70).astype(np.longdouble)
    np.savez(tmp_path / name, images=x) if name.endswith("npz") else np.save(tmp_path / name, x)
    with pytest.raises(UserError, match=r"data_dir: .* has numbers of type .*128; expected uint8 or uint16"):
        load(tmp_path / name, value_range=(0.0, 255.0))


def test_a_file_without_splits_is_cut_without_overlap(tmp_path):
    x = pictures(60)
    np.savez(tmp_path / "a.npz", images=x, labels=np.arange(60) % 3 + 5)
    train, test = (load(tmp_path / "a.npz", split) for split in ("unlabelled", "test"))
    assert len(train) + len(test) == 60 and len(test.labels.unique()) == 3 and test.classes == ["5", "6", "7"]
    seen = {image.tobytes() for data in (train, test) for image in data.resident.numpy()}
    assert seen == {image.tobytes() for image in x}


def test_val_stands_in_for_test_and_labels_may_be_missing_or_no_classes(tmp_path):
    x = pictures(12)
    for labels in ({}, {"train_labels": np.ones((12, 2), int)}, {"train_labels": np.ones(12) / 3}):
        np.savez(tmp_path / "a.npz", train_images=x, val_images=x[:5], **labels)
        data = load(tmp_path / "a.npz", "test")
        assert len(data) == 5 and data.labels.tolist() == [-1] * 5 and data.classes == []
        assert load(tmp_path / "a.npz").classes == []
    np.savez(tmp_path / "a.npz", train_images=x, train_labels=np.arange(12) % 4 - 1)
    assert load(tmp_path / "a.npz").labels.tolist() == [-1, 0, 1, 2] * 3


def test_only_the_splits_own_labels_are_labels_and_the_others_are_named(tmp_path, capsys):
    parts = medmnist(tmp_path / "a.npz")
    others = {"train_patient_labels": np.arange(48), "soft_labels": np.ones((48, 3)) / 3, "labels": np.arange(7)}
    np.savez(tmp_path / "b.npz", **parts, **others)
    for split in ("unlabelled", "train", "val", "test"):
        ours, without = (load(tmp_path / name, split) for name in ("b.npz", "a.npz"))
        assert ours.classes == without.classes == ["0", "1", "2"] and torch.equal(ours.labels, without.labels)
    named = "'train_patient_labels', 'soft_labels', 'labels'"
    assert capsys.readouterr().out == f"data        arrays of {tmp_path / 'b.npz'} that are not read: {named}\n"


def test_an_array_that_is_called_nearly_like_the_labels_is_told_of(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", images=pictures(12), label=np.arange(12) % 3)
    assert load(tmp_path / "a.npz").classes == []
    assert capsys.readouterr().out.endswith("that are not read: 'label'; did you mean 'labels'?\n")
    np.savez(tmp_path / "b.npz", images=pictures(12), labels=np.arange(12) % 3, label=np.arange(12))
    assert load(tmp_path / "b.npz").classes == ["0", "1", "2"]
    assert "that are not read: 'label'\n" in capsys.readouterr().out  # control: the labels are there


@pytest.mark.parametrize("names", [("training", "valid", "testing"), ("Train", "dev", "TEST")])
def test_splits_of_arrays_have_many_names(tmp_path, names):
    parts, renamed = medmnist(tmp_path / "a.npz"), {}
    for split, name in zip(("train", "val", "test"), names):
        renamed |= {f"{name}_{kind}": parts[f"{split}_{kind}"] for kind in ("images", "labels")}
    np.savez(tmp_path / "b.npz", **renamed)
    for split in ("unlabelled", "train", "val", "test", "all"):
        ours, theirs = (load(tmp_path / name, split) for name in ("a.npz", "b.npz"))
        assert torch.equal(ours.resident, theirs.resident) and torch.equal(ours.labels, theirs.labels)
    np.savez(tmp_path / "c.npz", **parts, validation_images=parts["val_images"])
    with pytest.raises(UserError, match="has val_images and validation_images, both the split 'val'"):
        load(tmp_path / "c.npz", "train")


@pytest.mark.parametrize(
    "make, classes, expected",
    [
        (lambda y: y[:, None].astype(np.uint8), ["0", "1", "2"], lambda y: y),
        (lambda y: y.astype(float), ["0", "1", "2"], lambda y: y),
        (lambda y: np.where(y == 1, np.nan, y), ["0", "2"], lambda y: np.array([0, -1, 1])[y]),
        (lambda y: y == 2, ["0", "1"], lambda y: y == 2),
        (lambda y: np.eye(4, dtype=np.uint8)[y + (y == 2)], ["0", "1", "3"], lambda y: y),
        (lambda y: np.eye(3)[y], ["0", "1", "2"], lambda y: y),
        (lambda y: np.eye(3, dtype=bool)[y], ["0", "1", "2"], lambda y: y),
        (lambda y: np.array(["dog ", "NaN", "ant"])[y], ["ant", "dog"], lambda y: np.array([1, -1, 0])[y]),
        (
            lambda y: np.char.encode(np.array(["dög", "ant", "bee"]), "utf-8")[y],
            ["ant", "bee", "dög"],
            lambda y: np.array([2, 0, 1])[y],
        ),
    ],
    ids=["column", "floats", "floats with NaN", "bool", "one-hot", "one-hot floats", "one-hot bool", "text", "bytes"],
)
def test_labels_of_many_forms_are_read_to_their_classes(tmp_path, capsys, make, classes, expected):
    train, test = np.arange(60) % 3, np.arange(9) % 2  # the test lacks class 2
    np.savez(
        tmp_path / "a.npz",
        train_images=pictures(60),
        train_labels=make(train),
        test_images=pictures(9),
        test_labels=make(test),
    )
    for split, y in (("train", train), ("unlabelled", train), ("test", test)):
        data, wanted = load(tmp_path / "a.npz", split), expected(y).astype(int)
        wanted = wanted if split == "unlabelled" else wanted[wanted >= 0]
        assert data.classes == classes and data.labels.tolist() == wanted.tolist()
    is_told = "train_labels in" in (said := capsys.readouterr().out) and "are one-hot; the class is the number" in said
    assert is_told == (make(train).ndim == 2 and make(train).shape[1] > 1)


@pytest.mark.parametrize(
    "labels, expected",
    [
        (np.eye(3, dtype=int)[[0, 1, 2] * 4] | [1, 0, 0], "give some images several labels, or none (multi-label)"),
        (np.zeros((12, 14), bool), "give some images several labels, or none (multi-label)"),
        (np.full((12, 3), 1 / 3), "have shape (12, 3), several numbers an image"),
        (np.arange(24).reshape(12, 2), "have shape (12, 2), several numbers an image"),
        (np.zeros((12, 20, 20), np.uint8), "have shape (12, 20, 20), several numbers an image"),
        (np.linspace(0, 1, 12), "hold quantities such as 0.0909091, no classes"),
        (np.array([0.0, np.inf] * 6), "hold quantities such as inf"),
        (np.array(["0.5", "1e-05"] * 6), "hold quantities such as 0.5, no classes"),
        (np.array([2**63 + 5, 1] * 6, np.uint64), "hold numbers such as 9223372036854775813, too large for a class"),
        (np.array([1j] * 12), "have shape (12,) and type complex128"),
        (np.array([["a", "b"]] * 12), "have shape (12, 2) and type <U1"),
        (np.array([b"\xff"] * 12), "are bytes that are no UTF-8"),
    ],
)
def test_labels_that_are_not_one_class_an_image_say_what_they_are(tmp_path, capsys, labels, expected):
    np.savez(tmp_path / "a.npz", images=pictures(12), labels=labels)
    for split in ("train", "test"):
        with pytest.raises(UserError) as raised:
            load(tmp_path / "a.npz", split)
        assert re.search(
            f"^data_dir: (the )?labels (in|of) {tmp_path / 'a.npz'} {re.escape(expected)}", str(raised.value)
        )
        assert "expected one class an image, (N,) or (N, 1)" in str(raised.value)
    data = load(tmp_path / "a.npz", "unlabelled")  # which needs none
    assert len(data) == 12 and data.classes == [] and data.labels.tolist() == [-1] * 12
    assert re.search(f"labels      not used: (the )?labels (in|of) {tmp_path / 'a.npz'}", capsys.readouterr().out)


def test_labels_as_bytes_in_one_split_and_as_text_in_the_other_are_the_same_classes(tmp_path):
    words = np.array(["ant", "dög"] * 6)
    parts = dict(train_images=pictures(12), test_images=pictures(12))
    np.savez(tmp_path / "a.npz", train_labels=words, test_labels=np.char.encode(words[::-1], "utf-8"), **parts)
    for split, labels in (("train", [0, 1] * 6), ("test", [1, 0] * 6)):
        data = load(tmp_path / "a.npz", split)
        assert data.classes == ["ant", "dög"] and data.labels.tolist() == labels


@pytest.mark.parametrize("dtype", [np.int8, np.float32])
@pytest.mark.parametrize("missing", [False, True])
def test_labels_of_minus_one_and_one_are_not_read_as_one_class(tmp_path, capsys, dtype, missing):
    signs, x = np.array([1, -1] * 6, dtype), pictures(12)
    if missing:  # only floats have it
        signs = np.where(np.arange(12) == 3, np.nan, signs)
    np.savez(tmp_path / "a.npz", train_images=x, train_labels=signs, test_images=x, test_labels=signs[:, None])
    for split in ("train", "test"):
        with pytest.raises(UserError, match=r"train_labels, test_labels in .* are -1 and 1, but -1 means no label"):
            load(tmp_path / "a.npz", split)
    assert load(tmp_path / "a.npz").classes == [] and "not used: train_labels" in capsys.readouterr().out
    np.savez(tmp_path / "b.npz", train_images=x, train_labels=signs, test_images=x, test_labels=np.arange(12) % 3)
    assert load(tmp_path / "b.npz", "train").classes == ["0", "1", "2"]  # control: other labels are there


def test_labels_as_text_are_read_as_those_of_a_table(tmp_path, capsys):
    words = np.array(["1", "1.0", "Cat", "cat"] * 3)
    np.savez(
        tmp_path / "a.npz",
        train_images=pictures(12),
        train_labels=words,
        test_images=pictures(12),
        test_labels=words[::-1],
    )
    data, test = (load(tmp_path / "a.npz", split) for split in ("train", "test"))
    assert data.classes == ["1", "Cat", "cat"] and data.labels.tolist() == [0, 0, 1, 2] * 3
    assert test.labels.tolist() == [2, 1, 0, 0] * 3
    said = capsys.readouterr().out
    assert f"1 values of the labels of {tmp_path / 'a.npz'} are written in several ways, such as '1', '1.0'" in said
    assert f"*** 'Cat' and 'cat' of {tmp_path / 'a.npz'} are two classes; should they be one? ***" in said


def test_names_that_join_several_labels_are_refused_and_not_needed_to_pre_train(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", images=pictures(12), labels=np.array(["a", "b", "a|b"] * 4))
    with pytest.raises(UserError, match=r"data_dir: 'a\|b' in .*a\.npz joins the labels 'a', 'b'"):
        load(tmp_path / "a.npz", "train")
    assert load(tmp_path / "a.npz").classes == []
    assert f"labels      not used: 'a|b' in {tmp_path / 'a.npz'}" in capsys.readouterr().out


def test_images_of_an_array_without_a_label_are_pre_trained_on_and_not_judged(tmp_path, capsys):
    x, labels = pictures(60), np.arange(60) % 3
    labels[::4] = -1
    np.savez(tmp_path / "a.npz", images=x, labels=labels)
    learnt, train, test = (load(tmp_path / "a.npz", split) for split in ("unlabelled", "train", "test"))
    assert len(train) + len(test) == 45 and len(learnt) == len(train) + 15 and (learnt.labels < 0).sum() == 15
    kept = {image.tobytes() for image in test.resident.numpy()}
    assert not kept & {image.tobytes() for image in learnt.resident.numpy()} and train.labels.min() == 0
    assert (
        f"15 of 60 images of {tmp_path / 'a.npz'} have none (a negative number or an empty text): judging"
        in capsys.readouterr().out
    )
    np.savez(tmp_path / "b.npz", train_images=x, train_labels=labels, test_images=x[:5], test_labels=[-1] * 5)
    assert len(load(tmp_path / "b.npz", "train")) == 45 and len(load(tmp_path / "b.npz")) == 60
    with pytest.raises(UserError, match=r"no image of the split 'test' of .* has a label"):  # as competitions give it
        load(tmp_path / "b.npz", "test")


def test_labels_of_two_kinds_are_refused_and_python_objects_get_the_way_out(tmp_path):
    x = pictures(12)
    np.savez(tmp_path / "a.npz", train_images=x, train_labels=np.arange(12), test_images=x, test_labels=["a"] * 12)
    with pytest.raises(UserError, match=r"train_labels, test_labels in .* some are text, others numbers"):
        load(tmp_path / "a.npz", "test")
    np.savez(tmp_path / "a.npz", images=x, labels=np.array(["a", "b"] * 6, dtype=object))
    with pytest.raises(UserError, match=r"save text with \.astype\(str\)"):
        load(tmp_path / "a.npz", "train")


def test_a_bare_npy_stays_on_the_disk_and_any_process_finds_it(tmp_path):
    x = pictures(9, 70, (2,), np.uint16)
    np.save(tmp_path / "a.npy", x)
    data = load(tmp_path / "a.npy")
    assert data.resident is None and isinstance(data.stored.array, np.memmap) and data.channels == 2
    part = data.subset(torch.tensor([7, 2]))
    sent = pickle.dumps(part)
    assert len(sent) < 2000  # a path, not the pixels
    for images in (part, pickle.loads(sent)):
        assert isinstance(images.stored.array, np.memmap)
        assert np.array_equal(images.pixels(0).numpy(), x[7].transpose(2, 0, 1))
    with pytest.raises(UserError, match="holds images without labels"):
        load(tmp_path / "a.npy", "test")


def test_other_pixels_are_another_data_set(tmp_path):
    x = pictures(9, 70)
    prints = []
    for i in range(2):
        np.save(tmp_path / f"{i}.npy", x + i)
        prints.append(load(tmp_path / f"{i}.npy").fingerprint(str(tmp_path)))
    assert prints[0] != prints[1] and load(tmp_path / "0.npy").fingerprint("") == prints[0]


def broken(path):
    np.savez(path, images=pictures(9))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def scrambled(path):
    np.savez_compressed(path, images=pictures(9))
    content = bytearray(path.read_bytes())
    content[100:140] = bytes(40)
    path.write_bytes(content)


def short(path):
    np.save(path, pictures(9))
    path.write_bytes(path.read_bytes()[:500])


class Trap:
    def __reduce__(self):
        return print, ("this ran",)


OBJECTS = np.array([[[Trap()]]], dtype=object)


@pytest.mark.parametrize(
    "name, make, expected",
    [
        ("a.npz", lambda p: np.savez(p, images=pictures(3).astype(np.float32)), "type float32; expected uint8 or"),
        ("a.npz", lambda p: np.savez(p, train_images=np.zeros((4, 28, 28, 28), np.uint8)), "Volumes are not read"),
        (
            "a.npz",
            lambda p: np.savez(p, images=np.zeros((4, 9, 28, 28, 1), np.uint8)),
            r"\(4, 9, 28, 28, 1\); expected",
        ),
        ("a.npy", lambda p: np.save(p, np.zeros((4, 3, 28, 28), np.uint8)), "channels C in last place"),
        ("a.npy", lambda p: np.save(p, np.zeros((4, 3, 16, 16), np.uint8)), "channels C in last place: save images.tr"),
        ("a.npy", lambda p: np.save(p, np.zeros((4, 1, 8, 8), np.uint8)), "channels C in last place: save images.tr"),
        ("a.npy", lambda p: np.save(p, np.zeros((0, 28, 28), np.uint8)), r"shape \(0, 28, 28\)"),
        ("a.npz", lambda p: np.savez(p, images=pictures(3), labels=np.arange(2)), "3 images but 2 labels"),
        ("a.npz", lambda p: np.savez(p, x=pictures(3)), "has neither images nor train_images, but x"),
        ("a.npz", lambda p: np.savez(p, test_images=pictures(3)), "neither images nor train_images"),
        ("a.npz", lambda p: np.savez(p, images=OBJECTS), "allow_pickle=False"),
        ("a.npy", lambda p: np.save(p, OBJECTS), "cannot be read as numpy arrays"),
        ("a.npz", broken, "cannot be read as numpy arrays"),
        ("a.npz", scrambled, "cannot be read as numpy arrays"),
        ("a.npy", short, "cannot be read as numpy arrays"),
        ("a.npy", lambda p: p.write_bytes(b"hello"), "cannot be read as numpy arrays"),
        ("a.npz", lambda p: np.save(p.open("wb"), pictures(3)), "is one array, not a .npz"),
        ("a.npz", lambda p: None, "is not a file"),
        ("a.npz", lambda p: p.mkdir(), "is not a file"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_named(tmp_path, capfd, name, make, expected):
    make(tmp_path / name)
    with pytest.raises(UserError, match=expected):
        load(tmp_path / name)
    assert "this ran" not in capfd.readouterr().out


def test_what_cannot_fit_into_memory_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    medmnist(tmp_path / "a.npz")
    size = np.load(tmp_path / "a.npz")["train_images"].nbytes
    monkeypatch.setattr(arrays, "free_memory", lambda: (size, "this job's or container's memory limit"))
    with pytest.raises(UserError, match=r"0 GiB, and this job's .* limit has 0\.0 GiB free; save the images alone as"):
        load(tmp_path / "a.npz")
    monkeypatch.setattr(arrays, "free_memory", lambda: (size + 1000, "this machine"))  # of its header, too
    load(tmp_path / "a.npz")


# Pixels -------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_sixteen_bit_crops_are_torchvisions_of_floats_and_never_wrap_around(channels):
    x = torch.from_numpy(pictures(1, 40, (channels,), np.uint16))[0].permute(2, 0, 1)
    edge = torch.where(torch.arange(40) < 20, 0, 65535).to(torch.uint16).expand(channels, 40, 40)  # bicubic overshoots
    for pixels in (x, edge):
        ours = resized_crop(pixels, [3, 2, 30, 33], 17)
        floats = pixels.numpy().astype(np.float32) / 65535
        theirs = TF.resized_crop(
            torch.from_numpy(floats), 3, 2, 30, 33, [17, 17], InterpolationMode.BICUBIC, antialias=True
        )
        torch.testing.assert_close(ours, theirs.clamp(0, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1])
def test_from_the_disk_and_in_memory_give_the_same_views(tmp_path, channels, dtype, workers):
    np.save(tmp_path / "a.npy", pictures(8, 40, (channels,), dtype))
    held = load(tmp_path / "a.npy")
    stored, *_ = arrays.read(tmp_path / "a.npy", "unlabelled")
    files = Images("array", held.labels, [], stored=stored)
    views, order = [View(size=24), View(size=16)], Order(8, 4, 1, 1, seed=0)
    for a, b in zip(*(loader.training_batches(d, views, order, 0, 2, workers, CPU) for d in (held, files))):
        for (in_memory, params), (of_worker, same) in zip(a.views, b.views):
            of_worker = of_worker / 255 if dtype == np.uint8 else of_worker
            assert torch.equal(params, same)
            assert (in_memory - of_worker).abs().max() <= (1.6 / 255 if dtype == np.uint8 else 1e-5)
    plain = [torch.cat([x for x, _, _ in loader.plain_batches(d, 40, 3, workers, CPU)]) for d in (held, files)]
    assert plain[0].shape == plain[1].shape == (8, channels, 40, 40)
    assert (TF.center_crop(plain[0], [35, 35]) - TF.resize(plain[1], [35, 35], antialias=True)).abs().mean() < 0.02


def test_statistics_are_the_channels_own_unless_set(tmp_path):
    x = pictures(30, 20, (4,), np.uint16)
    x[..., 3] = 700  # a channel that is the same everywhere
    np.save(tmp_path / "a.npy", x)
    data = load(tmp_path / "a.npy")
    mean, std = datasets.normalisation(data, None, None)
    unit = x.reshape(-1, 4) / 65535
    np.testing.assert_allclose(mean, unit.mean(0), rtol=1e-4)
    np.testing.assert_allclose(std[:3], unit.std(0)[:3], rtol=1e-4)
    assert std[3] == 1
    given = [0.1, 0.2, 0.3, 0.4]
    assert datasets.normalisation(data, given, None) == (given, std)
    with pytest.raises(UserError, match="std: expected 4 values, one a channel of array, got"):
        datasets.normalisation(data, None, [0.5])
    assert evenly_spaced(2500, 1000) == range(0, 2500, 3)
    assert evenly_spaced(5, 1000) == range(5)


# Encoders ---------------------------------------------------------------------------


@pytest.mark.parametrize("size, channels", [(32, 1), (32, 4), (96, 2), (96, 16)])
def test_a_resnet_reads_any_channels_under_torchvisions_names(size, channels):
    usual, _ = build_encoder("resnet18", size)
    encoder, width = build_encoder("resnet18", size, channels=channels)
    assert encoder(torch.zeros(2, channels, size, size)).shape == (2, width)
    changed = {key for key, value in encoder.state_dict().items() if value.shape != usual.state_dict()[key].shape}
    assert changed == {"conv1.weight"} and set(encoder.state_dict()) == set(usual.state_dict())
    assert encoder.conv1.stride == usual.conv1.stride and encoder.conv1.padding == usual.conv1.padding


class OnlyRGB(SmallResNet):
    def __init__(self):
        super().__init__(4, 1)


class LikeTimm(SmallResNet):
    def __init__(self, in_chans: int = 3):
        super().__init__(4, 1, in_chans)


def test_a_class_is_told_of_the_channels_or_refused():
    _, width = build_encoder("test_arrays.LikeTimm", 32, channels=5)
    assert width == 8
    encoder, _ = build_encoder("ssl.encoders.SmallResNet", 32, kwargs={"width": 4}, channels=2)
    assert encoder(torch.zeros(2, 2, 32, 32)).shape == (2, 32)
    with pytest.raises(UserError, match=r"cannot read a \(1, 5, 32, 32\) image; if it can be made for 5 channels"):
        build_encoder("test_arrays.OnlyRGB", 32, channels=5)


# End to end -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "side, channels, dtype", [(20, (), np.uint8), (20, (2,), np.uint16), (70, (4,), np.uint8), (70, (1,), np.uint16)]
)
def test_arrays_are_trained_on_and_judged(tmp_path, side, channels, dtype):
    medmnist(tmp_path / "a.npz", side, channels, dtype)
    count = channels[0] if channels else 1
    done = run("train.py", *tiny(data_dir=tmp_path / "a.npz", output_dir=tmp_path / "run"))
    assert f"array: 48 images {'in memory' if side == 20 else 'from one file'}" in done.stdout
    assert f"{count} channel{'s' if count > 1 else ''}: saturation, hue and grey are left out" in done.stdout
    assert "(measured)" in done.stdout
    again = run("train.py", *tiny(data_dir=tmp_path / "a.npz", output_dir=tmp_path / "run"))
    assert "nothing is left to do" in again.stdout or "continuing at step 6 of 6" in again.stdout
    judge = ["evaluate.py", "--model_path", tmp_path / "run", "--raw_pixels", "--random_init", "--workers", "1"]
    run(*judge, protocol="all", linear_epochs=2)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["knn"]["acc1"] > 0.5 and results["raw_pixels"]["probe"]["acc1"] > 0.5  # classes differ in brightness
    assert 0 <= results["random_init"]["probe"]["acc1"] <= 1 and "acc1" in results["linear"]


def test_two_processes_train_on_an_array_as_one(tmp_path):
    np.save(tmp_path / "a.npy", pictures(48, 70, (2,), np.uint16))
    encoders = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        run(
            "train.py",
            *tiny(data_dir=tmp_path / "a.npy", output_dir=folder, batch_size=16 // processes),
            processes=processes,
        )
        encoders.append(torch.load(folder / "encoder.pt", weights_only=True))
    for name, value in encoders[0].items():
        torch.testing.assert_close(encoders[1][name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"mean": "[0.5, 0.5, 0.5]"}, "mean: expected 2 values, one a channel of array, got"),
        (
            {"encoder": "torch.nn.Conv2d", "encoder_kwargs": "{in_channels: 3, out_channels: 8, kernel_size: 3}"},
            "cannot read a (1, 2, 32, 32) image",
        ),
        ({"dataset": "folder"}, "is not a folder (it is a file)"),
    ],
)
def test_settings_that_do_not_fit_stop_with_one_line(tmp_path, settings, expected):
    medmnist(tmp_path / "a.npz", 20, (2,))
    done = run("train.py", *tiny(data_dir=tmp_path / "a.npz", **settings), output_dir=tmp_path / "run", check=False)
    assert done.returncode == 2 and expected in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_real_volume_is_refused(real_data):
    with pytest.raises(UserError, match=r"adrenalmnist3d.*expected images \(N, H, W\)"):
        load(real_data / "adrenalmnist3d.npz")
