"""Files that cannot be shown never stop a run, hang a rank or let ranks drift, until they are too many."""

import json

import numpy as np
import pytest
import torch
from drawn import hollow_png
from PIL import Image
from running import metrics, run, tiny, weights

from ssl.augment import View
from ssl.data.bad_images import BadImages
from ssl.data.loader import training_batches
from ssl.data.order import Order, stand_in
from ssl.errors import UserError
from ssl.sources import datasets


def picture(path, number: int, side: int):
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(levels).save(path)
    return path


def folder(root, side=80, train=32):
    """Two classes; large enough to be read from files, unless `side` is at most 64."""
    for i in range(train):
        picture(root / "train" / "ab"[i % 2] / f"{i:02}.png", i, side)
    for i in range(8):
        picture(root / "test" / "ab"[i % 2] / f"{i:02}.png", 100 + i, side)
    return root


def ruin(root) -> list[str]:
    """Spoil four training images and one test image, each in its own way; their paths."""
    chosen = [root / "train" / "ab"[i % 2] / f"{i:02}.png" for i in (3, 10, 17, 31)]
    chosen.append(root / "test" / "b" / "05.png")
    bomb = hollow_png(60_000, 60_000)
    for path, content in zip(chosen, (b"", b"text", bomb, chosen[3].read_bytes()[:200], b"\x89PNG\r\n\x1a\n")):
        path.write_bytes(content)
    return [str(path) for path in chosen]


@pytest.mark.parametrize("side", [80, 32], ids=["from files", "in memory"])
def test_a_run_goes_on_and_says_which_and_another_layout_trains_the_same(tmp_path, side):
    data = folder(tmp_path / "data", side)
    spoilt = ruin(data)
    common = ["train.py", "--data_dir", data, "--warmup_start", "0.5"]
    run(*common, *tiny(batch_size=8, epochs=4), output_dir=tmp_path / "two", processes=2)
    run(*common, *tiny(batch_size=16, epochs=4), output_dir=tmp_path / "one")
    for name in ("one", "two"):
        lines = (tmp_path / name / "bad_images.jsonl").read_text().splitlines()
        listed = [json.loads(line) for line in lines]
        assert sorted(entry["path"] for entry in listed) == sorted(spoilt[:4])
        assert all(entry["reason"] for entry in listed)
        assert metrics(tmp_path / name)[-1]["bad_images"] == 4
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
    assert torch.allclose(weights(tmp_path / "one"), weights(tmp_path / "two"), rtol=1e-2, atol=1e-3)

    done = run("evaluate.py", model_path=tmp_path / "one", batch_size=4, processes=2)
    assert done.stdout.count("left out") == 5 and all(path in done.stdout for path in spoilt)
    results = json.loads((tmp_path / "one" / "results.json").read_text())
    assert (results["knn"]["acc1"] * 7) % 1 == pytest.approx(0, abs=1e-6)  # of 7 test images, not of 8


def test_too_many_stop_the_run_with_one_line_on_all_ranks(tmp_path):
    data = folder(tmp_path / "data")
    for path in list((data / "train" / "a").iterdir())[:11]:
        path.write_bytes(b"")
    done = run(
        "train.py", *tiny(batch_size=8, epochs=4), data_dir=data, output_dir=tmp_path / "r", processes=2, check=False
    )
    assert done.returncode != 0 and "train.py: error: 11 of 32 images cannot be read, more than the 10" in done.stderr
    assert f"all are listed in {tmp_path / 'r' / 'bad_images.jsonl'}" in done.stderr
    assert '/train.py", line' not in done.stderr  # no traceback of ours


def test_a_stand_in_is_another_image_the_same_every_time_and_shown_in_the_view_of_the_bad_one(tmp_path):
    data = folder(tmp_path / "data")
    views, order = [View(size=32)], Order(32, 8, 1, 1, seed=4)
    paths = datasets.load("folder", str(data), "unlabelled").paths
    whole = list(
        training_batches(datasets.load("folder", str(data), "unlabelled"), views, order, 0, 4, 0, torch.device("cpu"))
    )
    spoilt = set(ruin(data)[:4])
    for workers in (0, 2):
        loaded = datasets.load("folder", str(data), "unlabelled")
        batches = list(training_batches(loaded, views, order, 0, 4, workers, torch.device("cpu")))
        assert {path for batch in batches for path, _ in batch.bad} == spoilt
        for before, after in zip(whole, batches):
            for i, j, row in zip(before.index.tolist(), after.index.tolist(), range(8)):
                assert (i != j) == (paths[i] in spoilt)
                assert j == i or j in [stand_in(i, attempt, 32, 4) for attempt in (1, 2, 3, 4)]
                assert torch.equal(before.views[0][1][row], after.views[0][1][row])
                assert (i != j) != torch.equal(before.views[0][0][row], after.views[0][0][row])
            assert torch.equal(after.labels, loaded.labels[after.index])


def test_stand_ins_are_spread_over_the_data_set():
    chosen = torch.tensor([stand_in(i, 1, 1000, seed=0) for i in range(2000)])
    assert chosen.min() >= 0 and chosen.max() < 1000
    assert len(chosen.unique()) > 800 and (chosen.float().mean() - 500).abs() < 30


def test_a_vanished_folder_is_an_error_not_a_search_without_end(tmp_path):
    data = folder(tmp_path / "data")
    loaded = datasets.load("folder", str(data), "unlabelled")
    for path in (data / "train").rglob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match="a dozen images in a row cannot be read; is the data still there"):
        next(training_batches(loaded, [View(size=32)], Order(32, 8, 1, 1, 0), 0, 4, 0, torch.device("cpu")))
    for path in loaded.paths:
        picture(data / path, 0, 32).write_bytes(b"")
    with pytest.raises(UserError, match="none of the first 32 images can be read"):
        datasets.load("folder", str(data), "unlabelled")


def test_a_continued_run_goes_on_counting(tmp_path):
    first = BadImages(tmp_path, 1000, 0.001, {})
    first.note([(f"{i}.png", "empty") for i in range(9)])
    assert first.agree() == 9
    with open(tmp_path / "bad_images.jsonl", "a") as file:
        file.write('{"path": "cut')  # by a crash
    second = BadImages(tmp_path, 1000, 0.001, first.known)
    second.note([("0.png", "empty"), ("9.png", "empty")])
    assert second.agree() == 10
    second.note([("10.png", "empty")])
    with pytest.raises(UserError, match="11 of 1000 images cannot be read, more than the 10 allowed"):
        second.agree()


def test_the_limit_is_a_share_of_large_data_sets(tmp_path):
    bad = BadImages(tmp_path, 100_000, 0.001, {})
    bad.note([(f"{i}.png", "empty") for i in range(100)])
    assert bad.agree() == 100
    bad.note([("100.png", "empty")])
    with pytest.raises(UserError, match="more than the 100 allowed"):
        bad.agree()
