"""Features in files: written in shards, read as needed, and judged to the bit as from the images."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from running import options, run

import evaluate
from ssl.checkpoints import torch_file
from ssl.data.images import Images
from ssl.encoders import build_encoder
from ssl.errors import UserError
from ssl.evaluation import feature_origin, features, npz, probes
from ssl.evaluation.feature_rows import Rows, statistics

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def samples(count, seed, width=6, classes=3):
    """Images of which only names and labels count, and features that say something of the labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    x = torch.randn(count, width, generator=generator) + labels[:, None]
    names = [f"/data/{seed}/{'abc'[y]}/{i}.png" for i, y in enumerate(labels.tolist())]
    return Images("folder", labels, ["a", "b", "c"][:classes], paths=names), x


def batches(x, size, unread=()):
    read = torch.tensor([i not in unread for i in range(len(x))])
    return zip(x.split(size), read.split(size))


def write_split(folder, name, data, batches, shard):
    writer = features.SplitWriter(folder, name, data, shard)
    for x, read in batches:
        writer.add(x, read)
    return writer.finish()


def write(folder, shard=10 * 6 * 4, size=7, unread=(), seed=1):
    """A features file of 35 training samples in shards of ten, 12 for testing; the training features."""
    train, x = samples(35, seed)
    test, test_x = samples(12, seed + 1)
    splits = {
        "train": write_split(folder, "train", train, batches(x, size, unread), shard),
        "test": write_split(folder, "test", test, batches(test_x, size), 1 << 20),
    }
    features.finish(folder, splits, train.classes, "e" * 64, {"data_dir": "/data", "seed": 3})
    return x


def everything(rows):
    return torch.cat(list(rows.split(4)))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Writing and reading


def test_what_was_written_comes_back_in_order_from_shards(tmp_path):
    x = write(tmp_path)
    found = features.load(tmp_path)
    train = found.splits["train"]
    assert [len(part) for part in train.rows.parts] == [10, 10, 10, 5] and train.rows.shape == (35, 6)
    assert torch.equal(everything(train.rows), x) and train.labels.tolist() == [i % 3 for i in range(35)]
    assert train.paths == list(samples(35, 1)[0].paths)
    index = torch.randperm(35, generator=torch.Generator().manual_seed(0))
    assert torch.equal(train.rows[index], x[index])
    assert torch.equal(train.rows.subset(index[:20]).subset(torch.arange(5))[torch.tensor([4, 0])], x[index[[4, 0]]])
    plain = torch.load(tmp_path / "features.pt", weights_only=True)
    assert plain["test"]["features"].shape == (12, 6) and set(plain["train"]) == {"shards"}
    for name in plain["train"]["shards"]:
        assert torch.load(tmp_path / name, weights_only=True, mmap=True)["features"].shape[1] == 6


@pytest.mark.parametrize("shard", [1, 240, 1 << 20])
def test_batches_leave_no_trace_in_the_files(tmp_path, shard):
    for size in (1, 7, 35):
        (tmp_path / str(size)).mkdir()
        write(tmp_path / str(size), shard, size)
    assert files(tmp_path / "1") == files(tmp_path / "7") == files(tmp_path / "35")


def test_the_name_of_a_shard_tells_groups_apart(tmp_path):
    """Another writing must not write over the shards of a features.pt that is there."""
    data, x = samples(35, 1)
    one, other, none = (dataclasses.replace(data, groups=groups) for groups in (["a"] * 35, ["b"] * 35, None))
    entries = [write_split(tmp_path, "train", part, batches(x, 7), 240)["shards"] for part in (one, other, none, one)]
    assert entries[0] == entries[3] and not set(entries[0]) & set(entries[1]) and not set(entries[0]) & set(entries[2])
    assert len(files(tmp_path)) == 12


def test_images_that_cannot_be_read_stay_out(tmp_path):
    x = write(tmp_path, unread=(0, 9, 10, 34))
    found = features.load(tmp_path).splits["train"]
    kept = [i for i in range(35) if i not in (0, 9, 10, 34)]
    assert torch.equal(everything(found.rows), x[kept]) and found.labels.tolist() == [i % 3 for i in kept]
    assert found.paths == [samples(35, 1)[0].paths[i] for i in kept]


def test_a_crash_at_any_moment_leaves_the_old_features_or_the_new(tmp_path, monkeypatch):
    old, real, moments = write(tmp_path), os.replace, 0
    for crash in range(6):
        done = []

        def replace(source, target, crash=crash, done=done):
            if len(done) == crash:
                raise KeyboardInterrupt
            done.append(target)
            return real(source, target)

        monkeypatch.setattr(torch_file.os, "replace", replace)
        try:
            new = write(tmp_path, seed=5)
        except KeyboardInterrupt:
            moments += 1
            assert torch.equal(everything(features.load(tmp_path).splits["train"].rows), old)
    assert moments == 5
    assert torch.equal(everything(features.load(tmp_path).splits["train"].rows), new)
    assert len(files(tmp_path)) == 5  # the old shards, and those of writings that crashed, are gone


def test_what_a_killed_writer_left_goes_in_time(tmp_path, monkeypatch):
    (tmp_path / ".partial-0123").touch()
    write(tmp_path)
    assert ".partial-0123" in files(tmp_path)  # another process may be writing it
    monkeypatch.setattr(torch_file.files, "ABANDONED", -1)
    write(tmp_path)
    assert ".partial-0123" not in files(tmp_path)


def test_an_unfinished_first_writing_does_not_look_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "finish", lambda *_: None)
    write(tmp_path)
    with pytest.raises(UserError, match=r"features\.pt: no such file"):
        features.load(tmp_path)


def test_what_a_file_cannot_hold_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"features: .*features\.pt cannot be written .*frozenset is neither"):
        features.finish(tmp_path, {}, ["a"], "", {"unknown": frozenset()})
    assert not list(tmp_path.iterdir())


def test_files_of_others_are_not_removed(tmp_path):
    (tmp_path / "features-old.pt").write_text("precious")
    write(tmp_path), write(tmp_path, seed=5)
    assert (tmp_path / "features-old.pt").read_text() == "precious"


def test_npz_holds_the_same(tmp_path):
    write(tmp_path)
    one = features.load(tmp_path)
    one.splits["test"].paths[0] = "\udcff.png"
    npz.write(one, tmp_path / "features.npz")
    two = features.load(tmp_path / "features.npz")
    assert (two.classes, two.encoder, two.settings) == (one.classes, one.encoder, one.settings)
    for name, split in one.splits.items():
        assert torch.equal(everything(two.splits[name].rows), everything(split.rows))
        assert torch.equal(two.splits[name].labels, split.labels)
    assert two.splits["train"].paths == one.splits["train"].paths and two.splits["test"].paths[0] == r"\udcff.png"
    with np.load(tmp_path / "features.npz", allow_pickle=False) as arrays:
        assert arrays["train_features"].shape == (35, 6) and arrays["classes"].tolist() == ["a", "b", "c"]


def test_a_crash_while_a_npz_is_written_leaves_the_old_one(tmp_path, monkeypatch):
    write(tmp_path)
    found, path = features.load(tmp_path), tmp_path / "features.npz"
    npz.write(found, path)
    old = files(tmp_path)

    def half(file, **arrays):
        file.write(old[path.name][:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(npz.np, "savez", half)
    with pytest.raises(KeyboardInterrupt):
        npz.write(found, path)
    assert files(tmp_path) == old


# Bad input


def spoil(folder, change):
    content = torch.load(folder / "features.pt", weights_only=True)
    change(content)
    torch.save(content, folder / "features.pt")


def put(key, value):
    return lambda content: content["test"].__setitem__(key, value)


BAD = {
    "a checkpoint": (lambda c: (c.clear(), c.update(model={}, step=3)), r"is no features file; it holds .*model.*step"),
    "fewer labels": (put("labels", torch.zeros(9, dtype=torch.long)), "12 features but 9 labels and 12 names"),
    "fewer names": (put("names", ["x"]), "12 features but 12 labels and 1 names"),
    "a class too many": (put("labels", torch.arange(12)), "labels from 0 to 11, and there are 3 classes"),
    "labels of no kind": (put("labels", torch.full((12,), -2)), "labels from -2 to -2"),
    "no label to judge": (
        put("labels", torch.full((12,), -1)),
        "labels of 35 of 35 in train, 0 of 12 in test; to judge",
    ),
    "no test": (lambda c: c.pop("test"), "labels of 35 of 35 in train; to judge, some of train and of test"),
    "labels of floats": (put("labels", torch.zeros(12)), "has not labels"),
    "other width": (put("features", torch.zeros(12, 5)), "features of different widths"),
    "other type": (put("features", torch.zeros(12, 6, dtype=torch.int32)), "torch.int32 of shape .* expected float32"),
    "no features": (put("features", None), "features that are NoneType"),
    "nothing": (put("features", torch.zeros(0, 6)), r"shape \(0, 6\)"),
    "NaN": (lambda c: c["test"]["features"][4].fill_(float("nan")), "NaN or Inf, first in those of /data/2/b/4"),
    "Inf": (lambda c: c["test"]["features"][4, 2].fill_(float("inf")), "NaN or Inf"),
    "one class": (
        lambda c: (c.update(classes=["a"]), c["test"]["labels"].zero_(), c.update(train=c["test"])),
        "of one class, 'a'",
    ),
    "classes twice": (lambda c: c.update(classes=["a", "a", "b"]), "not a list of names, each once"),
    "a shard elsewhere": (lambda c: c["train"]["shards"].__setitem__(0, "../x.pt"), "list of shards in .* is damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_one_clear_error(tmp_path, name):
    write(tmp_path)
    features.load(tmp_path)
    spoil(tmp_path, BAD[name][0])
    with pytest.raises(UserError, match=BAD[name][1]):
        features.with_labels(features.load(tmp_path), "x")


def test_a_shard_that_is_missing_damaged_or_of_another_writing(tmp_path):
    write(tmp_path)
    (tmp_path / "other").mkdir()
    write(tmp_path / "other", seed=5)
    first, second = sorted(tmp_path.glob("features-train-0000[01]*"))
    content = first.read_bytes()
    for put_there, words in (
        (lambda: first.unlink(), "a part of train is missing, .*belong in one folder"),
        (lambda: first.write_bytes(second.read_bytes()), "is of another writing than"),
        (lambda: first.write_bytes(next((tmp_path / "other").glob("*00000*")).read_bytes()), "is of another writing"),
        (lambda: first.write_bytes(content[:-100]), "damaged"),
        (lambda: first.write_bytes(content.replace(content[400:410], b"\0" * 10)), "damaged|refused"),
    ):
        put_there()
        with pytest.raises(UserError, match=words):
            features.load(tmp_path)
        first.write_bytes(content)
    features.load(tmp_path)


def test_npz_with_objects_or_claims_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    np.savez(path, train_features=np.array([{}], dtype=object))
    with pytest.raises(UserError, match=r"cannot be read as numpy arrays .*(pickle|Object)"):
        features.load(path)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(UserError, match=r"is no features file; it holds 'a'\. Expected"):
        features.load(path)
    split = dict(train_features=np.zeros((2, 3), np.float32), train_labels=np.zeros(2, int), train_names=["a", "b"])
    whole = split | {name.replace("train", "test"): array for name, array in split.items()} | {"classes": ["c"]}
    for spoilt, words in (
        ({"train_features": np.zeros((2, 3), np.longdouble)}, "train in .* has features that are NoneType"),
        ({"train_labels": np.full(2, 0.5)}, "train in .* has not labels"),
        ({"settings": "[" * 100_000}, "the settings in .* are no JSON"),
    ):
        np.savez(path, **whole | spoilt)
        with pytest.raises(UserError, match=words):
            features.load(path)
    np.savez(path, **whole)
    assert features.load(path).settings == {}
    monkeypatch.setattr(npz, "free_memory", lambda: (48, "this job's or container's memory limit"))
    with pytest.raises(
        UserError, match=r"unpacks to .*and this job's .* limit has 0\.0 GiB free; features\.pt is read from the disk"
    ):
        features.load(path)
    path.write_bytes(b"PK\3\4 no more")
    with pytest.raises(UserError, match="cannot be read as numpy arrays"):
        features.load(path)


@pytest.mark.parametrize("form", ["features.pt", "shards", "features.npz"])
def test_features_in_float64_are_judged_as_those_in_float32(tmp_path, monkeypatch, form):
    """As numpy writes them by itself."""

    def judged(kind: type, folder: Path) -> dict:
        folder.mkdir()
        generator, parts = np.random.default_rng(0), {}
        for split, count in (("train", 60), ("test", 21)):
            labels = np.arange(count) % 3
            rows = (np.eye(3, 6)[labels] + generator.normal(size=(count, 6))).astype(np.float32).astype(kind)
            parts[split] = {"features": rows, "labels": labels, "names": [f"{split} {i}" for i in range(count)]}
        path = folder / ("features.npz" if form == "features.npz" else "features.pt")
        if form == "features.npz":
            arrays = {f"{split}_{key}": value for split, part in parts.items() for key, value in part.items()}
            np.savez(path, classes=["a", "b", "c"], **arrays)
        else:
            for split, part in parts.items():
                part |= {key: torch.from_numpy(part[key]) for key in ("features", "labels")}
                if form == "shards":
                    name = f"features-{split}-00000-00000000.pt"
                    torch_file.save({"shard": name, **part}, folder / name)
                    parts[split] = {"shards": [name]}
            torch_file.save(parts | {"classes": ["a", "b", "c"]}, path)
        judges = ["--protocol", "probe", "knn", "fixed", "card", "--standardize"]
        in_process(monkeypatch, "--features", path, "--device", "cpu", "--output_dir", folder, *judges)
        return judgement(folder)

    assert judged(np.float64, tmp_path / "64") == judged(np.float32, tmp_path / "32")


def test_float64_features_that_are_no_numbers_in_float32_are_refused(tmp_path):
    write(tmp_path)
    spoil(tmp_path, put("features", torch.full((12, 6), 1e300, dtype=torch.float64)))
    with pytest.raises(UserError, match="NaN or Inf"):
        features.load(tmp_path)


def test_another_encoder_and_another_data_set_are_refused(tmp_path):
    write(tmp_path)
    found = features.load(tmp_path)
    encoder, _ = build_encoder("ssl.encoders.SmallResNet", 32, kwargs={"width": 4, "stages": 1})
    with pytest.raises(UserError, match="x is of another encoder, with weights eeeeeeeeeeee, than model_path y"):
        feature_origin.require_encoder(found, encoder, "x", "y")
    own = dataclasses.replace(found, encoder=features.encoder_checksum(encoder))
    feature_origin.require_encoder(own, encoder.to(memory_format=torch.channels_last), "x", "y")
    with torch.no_grad():
        next(encoder.parameters()).add_(1e-3)
    with pytest.raises(UserError, match="of another encoder"):
        feature_origin.require_encoder(own, encoder, "x", "y")

    train, _ = samples(35, 1)
    feature_origin.require_images(found, {"train": train}, "x", "/data")
    moved = dataclasses.replace(train, paths=[path.replace("/data", "/elsewhere") for path in train.paths])
    feature_origin.require_images(found, {"train": moved}, "x", "/elsewhere")
    with pytest.raises(UserError, match=r"of another data set: 1/b/1\.png, in train, 'b' there, 'a' here"):
        feature_origin.require_images(
            found, {"train": dataclasses.replace(train, labels=train.labels * 0)}, "x", "/data"
        )
    with pytest.raises(UserError, match=r"1/a/0\.png, in train, is not here"):
        feature_origin.require_images(found, {"train": samples(35, 9)[0]}, "x", "/data")


def test_samples_without_a_label_are_read_and_not_judged(tmp_path, capsys):
    write(tmp_path)
    labels = torch.arange(12) % 3
    spoil(tmp_path, put("labels", torch.where(torch.arange(12) < 5, labels, -1)))
    found = features.load(tmp_path)
    assert len(found.splits["test"]) == 12
    judged = features.with_labels(found, "x")
    assert judged.splits["test"].labels.tolist() == [0, 1, 2, 0, 1]
    assert judged.splits["test"].paths == found.splits["test"].paths[:5]
    assert torch.equal(everything(judged.splits["test"].rows), everything(found.splits["test"].rows)[:5])
    assert judged.splits["train"] is found.splits["train"]
    assert "7 of 12 samples of test have none: not judged" in capsys.readouterr().out


# Judging from them


def test_probe_and_knn_of_pieces_are_those_of_a_tensor_to_the_bit(monkeypatch):
    (train, x), (test, y) = samples(300, 1), samples(100, 2)
    monkeypatch.setattr("ssl.evaluation.feature_rows.BLOCK", 64 * 6)  # many blocks
    pieces = [Rows(tuple(part.split(37)), CPU) for part in (x, y)]
    for whole, parts in ((x, pieces[0]), (y, pieces[1])):
        assert all(torch.equal(*both) for both in zip(statistics(whole), statistics(parts)))
    held = torch.arange(200, 300)
    of_tensor = (x[:200], train.labels[:200]), (x[held], train.labels[held]), (y, test.labels)
    of_pieces = (pieces[0].subset(torch.arange(200)), train.labels[:200]), (pieces[0].subset(held), train.labels[held])
    assert probes.probe(*of_tensor, 3, epochs=3) == probes.probe(*of_pieces, (pieces[1], test.labels), 3, epochs=3)
    assert probes.knn((x, train.labels), (y, test.labels), 3) == probes.knn(
        (pieces[0], train.labels), (pieces[1], test.labels), 3
    )


def test_knn_in_blocks_is_knn_at_once(monkeypatch):
    (train, x), (test, y) = samples(500, 1), samples(200, 2)
    pairs = (x, train.labels), (y, test.labels)
    once = [probes.knn(*pairs, 3, k) for k in (1, 5, 500)]
    monkeypatch.setattr("ssl.evaluation.feature_rows.BLOCK", 6 * 9)
    assert [probes.knn(*pairs, 3, k) for k in (1, 5, 500)] == once


def test_statistics_are_those_of_float64():
    x = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0)) + 100
    mean, std = statistics(x)
    assert torch.equal(mean, x.double().mean(0).float()) and torch.allclose(
        std, x.double().std(0, correction=0).float()
    )
    standard = Rows((x,), CPU).standardised(mean, std)
    assert torch.equal(standard[torch.tensor([3, 1])], (x[[3, 1]] - mean) / std)


@pytest.mark.parametrize("size", [1e-30, 1e-8, 1e-3, 1.0, 1e8])
def test_the_probe_is_the_same_for_features_of_any_size(size):
    """A power of two changes no rounding. Constant dimensions, also at 0 and up to rounding, tell it nothing."""
    power = 2.0 ** round(math.log2(size))
    (train, x), (test, y) = samples(300, 1), samples(200, 2)
    pairs = [(power * x, train.labels), (power * y, test.labels)]
    found = probes.probe(*probes.hold_out_tenth((Rows((pairs[0][0],), CPU), train.labels), 0), pairs[1], 3, epochs=3)
    expected = probes.probe(*probes.hold_out_tenth((Rows((x,), CPU), train.labels), 0), (y, test.labels), 3, epochs=3)
    assert found == expected and found["acc1"] > 0.6
    constant = power * torch.tensor([0.0, 1.0, 1.0]) * torch.ones(300, 1)
    constant[::2, 2] *= 1 + 1e-6
    assert statistics(torch.cat([pairs[0][0], constant], 1))[1].isinf().tolist() == [False] * x.shape[1] + [True] * 3
    wide = [torch.cat([rows, constant[: len(rows)]], 1) for rows, _ in pairs]
    heads = probes.fit_heads(wide[0], train.labels, 3, [(0.1, 0.0)], 3, 64, 0)
    assert heads.scores(wide[1] + power, 0).isfinite().all() and not heads.weight[..., -3:].any()


# The script

ENCODER = ["--encoder", "ssl.encoders.SmallResNet", "--encoder_kwargs", '{"width": 4, "stages": 2}']


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """(images with train, val and test, an encoder, folder of features and results on two processes)."""
    folder = tmp_path_factory.mktemp("judged")
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 61), ("val", 12), ("test", 23)):
        arrays[f"{split}_labels"] = np.arange(count) % 3
        light = 40 + 60 * arrays[f"{split}_labels"][:, None, None, None]
        arrays[f"{split}_images"] = (
            (generator.integers(0, 90, (count, 16, 16, 3)) + light).clip(0, 255).astype(np.uint8)
        )
    np.savez(folder / "images.npz", **arrays)
    torch.manual_seed(0)
    encoder, _ = build_encoder(ENCODER[1], 16, kwargs=json.loads(ENCODER[3]))
    torch.save(encoder.state_dict(), folder / "encoder.pt")
    done = run(
        "evaluate.py",
        *model(folder),
        protocol=["features", "probe", "knn"],
        npz=True,
        output_dir=folder / "two",
        processes=2,
    )
    return folder, done.stdout


def model(folder):
    return ["--model_path", folder / "encoder.pt", *shown(folder)]


def shown(folder):
    return [*ENCODER, *options(stem="small", data_dir=folder / "images.npz", batch_size=4, device="cpu")]


def judgement(folder):
    """The numbers of results.json, without what they are of."""
    return {name: value for name, value in json.loads((folder / "results.json").read_text()).items() if name != "of"}


def in_process(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    evaluate.main()


def test_one_and_two_processes_write_the_same_bytes_and_features_give_the_numbers_of_images(
    judged, tmp_path, monkeypatch
):
    folder, _ = judged
    in_process(monkeypatch, *model(folder), "--protocol", "features", "--output_dir", tmp_path)
    one, two = (torch.load(where / "features.pt", weights_only=True) for where in (tmp_path, folder / "two"))
    assert {split: len(one[split]["labels"]) for split in ("train", "val", "test")} == dict(train=61, val=12, test=23)
    for split in ("train", "val", "test"):
        assert one[split]["features"].numpy().tobytes() == two[split]["features"].numpy().tobytes()
        assert one[split]["names"] == two[split]["names"] and one["encoder"] == two["encoder"]
    assert not (tmp_path / "results.json").exists()

    def numbers(*arguments):
        in_process(monkeypatch, *arguments, "--output_dir", tmp_path)
        return judgement(tmp_path)

    judges = ["--protocol", "probe", "knn"]
    assert numbers(*model(folder), *judges) == judgement(folder / "two")
    for more in ([], ["--standardize"], ["--train_percent", "40"]):
        of_images = numbers(*model(folder), *judges, *more)
        assert numbers("--features", folder / "two" / "features.pt", "--device", "cpu", *more) == of_images
        assert numbers("--features", folder / "two" / "features.npz", "--device", "cpu", *more) == of_images
    named = ["--features", folder / "two" / "features.pt", *model(folder)]
    assert set(numbers(*named)) == {"probe", "knn"}
    in_process(monkeypatch, "--features", tmp_path, "--device", "cpu", "--protocol", "knn")
    assert set(judgement(tmp_path)) == {"knn"}  # in the folder that was named
    for ineffective, words in (
        (["--npz"], "npz: features are"),
        (["--protocol", "features", "--standardize"], "as the"),
    ):
        with pytest.raises(UserError, match=words):
            in_process(monkeypatch, *model(folder), *ineffective, "--output_dir", tmp_path)


def test_results_say_what_they_are_of_and_a_run_of_0_steps_is_not_called_trained(judged, tmp_path, monkeypatch, capsys):
    folder, _ = judged
    (tmp_path / "encoder.pt").write_bytes((folder / "encoder.pt").read_bytes())
    weights = torch.load(folder / "encoder.pt", weights_only=True)
    saved = {"step": 0, "model": {f"encoder.{name}": weight for name, weight in weights.items()}}
    arguments = ["--model_path", tmp_path / "encoder.pt", *shown(folder), "--random_init"]

    def of(*more) -> dict:
        in_process(monkeypatch, *arguments, "--protocol", "knn", *more)
        return json.loads((tmp_path / "results.json").read_text())["of"]

    torch.save(saved, tmp_path / "checkpoint.pt")
    found = of("--k", "7", "--standardize")
    printed = capsys.readouterr().out
    assert "not trained (0 steps)" in printed and "has made 0 steps" in printed and "\ntrained encoder" not in printed
    checksum = torch.load(folder / "two" / "features.pt", weights_only=True)["encoder"]
    assert found["weights"] | {"sha256": checksum, "steps": 0} == found["weights"]
    assert (
        found["data"]
        | {
            "dataset": "array",
            "data_dir": str(folder / "images.npz"),
            "split": "test",
            "test_images": 23,
            "train_images": 61,
            "classes": 3,
            "image_size": 16,
        }
        == found["data"]
    )
    assert len(found["data"]["mean"]) == 3 and found["seed"] == 0 and "torch" in found["versions"]
    assert found["protocols"] == {"knn": {"k": 7, "knn_temperature": 0.07, "standardize": True}}
    # Its features do not hide it either.
    in_process(monkeypatch, *arguments[:-1], "--protocol", "features")
    in_process(monkeypatch, "--features", tmp_path, "--device", "cpu", "--protocol", "probe")
    said = json.loads((tmp_path / "results.json").read_text())["of"]
    assert said["weights"]["sha256"] == checksum and said["data"]["test_images"] == 23
    assert "not trained (0 steps)" in capsys.readouterr().out

    torch.save(saved | {"step": 12}, tmp_path / "checkpoint.pt")
    assert of()["weights"]["steps"] == 12
    next(iter(saved["model"].values())).add_(1)  # a checkpoint of other weights says nothing of these
    torch.save(saved, tmp_path / "checkpoint.pt")
    assert of()["weights"]["steps"] is None and "\ntrained encoder" in capsys.readouterr().out
    (tmp_path / "encoder_best.pt").write_bytes((folder / "encoder.pt").read_bytes())
    (tmp_path / "best.json").write_text('{"step": 0}')
    arguments[1] = tmp_path / "encoder_best.pt"
    assert of()["weights"]["steps"] == 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--protocol", "linear"], "protocol: linear needs images"),
        (["--random_init"], "random_init, raw_pixels and npz need images"),
        (["--model_path", "OTHER", *ENCODER, "--stem", "small"], "is of another encoder"),
        (["--data_dir", "OTHER_IMAGES"], "is of another data set: array/1, in train, '1' there, '0' here"),
    ],
)
def test_features_that_do_not_belong_end_with_words(judged, tmp_path, monkeypatch, arguments, words):
    folder, _ = judged
    other, _ = build_encoder(ENCODER[1], 16, kwargs=json.loads(ENCODER[3]))
    torch.save(other.state_dict(), tmp_path / "other.pt")
    images = dict(np.load(folder / "images.npz"))
    np.savez(tmp_path / "other.npz", **images | {"train_labels": images["train_labels"] // 2})
    there = {"OTHER": tmp_path / "other.pt", "OTHER_IMAGES": tmp_path / "other.npz"}
    arguments = [there.get(word, word) for word in arguments]
    with pytest.raises(UserError, match=words):
        in_process(monkeypatch, "--features", folder / "two" / "features.pt", "--output_dir", tmp_path, *arguments)


def test_a_class_of_test_that_train_has_not(tmp_path, monkeypatch):
    write(tmp_path, unread=range(2, 35, 3))
    with pytest.raises(UserError, match="1 of 3 classes have no training images: 'c'"):
        in_process(monkeypatch, "--features", tmp_path)


MEASURE = """
import sys, threading, time, torch, ssl
ssl.__path__ = [sys.argv[1] + "/ssl"]
from ssl.evaluation import features, probes, feature_rows
feature_rows.BLOCK = 1 << 20
torch.set_num_threads(1)

def own():  # memory of this process that is not pages of files
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024

def peak(judge):
    highest, over, before = own(), False, own()
    def watch():
        nonlocal highest
        while not over:
            highest = max(highest, own())
            time.sleep(0.005)
    watcher = threading.Thread(target=watch)
    watcher.start()
    judge()
    over = True
    watcher.join()
    print(highest - before)

def judge(whole):
    found = features.load(sys.argv[2])
    x, labels = found.splits["train"].pair()
    probes.knn((torch.cat(x.parts) if whole else x, labels), found.splits["test"].pair(), 3)

peak(lambda: judge(False))
peak(lambda: judge(True))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_features_larger_than_its_memory_are_judged_a_block_at_a_time(tmp_path):
    data, _ = samples(100_000, 1)
    x = torch.randn(100_000, 512)  # 205 MB; what the process itself needs beside them is about 40
    few, _ = samples(30, 2)
    splits = {
        "train": write_split(tmp_path, "train", data, batches(x, 5000), 16 << 20),
        "test": write_split(tmp_path, "test", few, batches(x[:30], 30), 1 << 20),
    }
    features.finish(tmp_path, splits, data.classes, "", {})

    command = [sys.executable, "-c", MEASURE, ROOT, tmp_path]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    mapped, whole = map(int, re.findall(r"\d+", told))
    assert mapped < x.nbytes / 2 < x.nbytes * 0.9 < whole
