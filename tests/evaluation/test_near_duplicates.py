"""Near duplicates: found block by block, they are those of plain N × N cosines; very many are counted, not held."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from running import options, run

from ssl.encoders import SmallResNet
from ssl.errors import UserError
from ssl.evaluation import near_duplicates
from ssl.evaluation.feature_rows import Rows
from ssl.evaluation.features import Features, Split

CPU = torch.device("cpu")


def features_of(**splits) -> Features:
    """Features (N, F) of each split, in parts of 40."""
    found = {}
    for name, x in splits.items():
        paths = [f"/data/{name}/{i}.png" for i in range(len(x))]
        found[name] = Split(name, Rows(x.split(40), CPU), torch.full((len(x),), -1), [], paths)
    return Features(found, [], None, {"data_dir": "/data"})


def some(count, seed, width=8):
    """Features whose dimensions differ in size; every tenth image is nearly the one before it."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=generator)
    x[::10] = x[torch.arange(0, count, 10) - 1] + 0.1 * torch.randn(x[::10].shape, generator=generator)
    return x * torch.arange(1, width + 1) + 20


def plain(threshold, **splits):
    """{(number, number): cosine} across splits and within splits, from all N × N cosines."""
    x = torch.cat(list(splits.values())).double().numpy()
    owner = np.repeat(np.arange(len(splits)), [len(part) for part in splits.values()])
    z = (x - x.mean(0)) / x.std(0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    cosine = z @ z.T
    found = {(i, j): cosine[i, j] for i, j in np.argwhere(np.triu(cosine > threshold, 1)).tolist()}
    across = {pair: value for pair, value in found.items() if owner[pair[0]] != owner[pair[1]]}
    return across, {pair: value for pair, value in found.items() if pair not in across}


def as_dict(pairs):
    return dict(zip(zip(pairs.first.tolist(), pairs.second.tolist()), pairs.cosine.tolist()))


@pytest.mark.parametrize("block", [1, 7, 50, 4096])
def test_pairs_are_those_of_plain_cosines_whatever_the_block(block):
    splits = {"train": some(130, 0), "val": some(20, 1), "test": some(47, 2)}
    splits["test"][5] = splits["train"][77]
    for threshold in (0.6, 0.9):
        found = near_duplicates.find(features_of(**splits), threshold, CPU, block)
        for pairs, expected in zip((found.across, found.within), plain(threshold, **splits)):
            assert as_dict(pairs) == pytest.approx(expected) and expected
            assert pairs.total == len(expected) and (pairs.cosine[1:] <= pairs.cosine[:-1]).all()
    assert as_dict(found.across)[77, 155] == pytest.approx(1)


def test_a_size_that_all_features_share_does_not_make_images_alike():
    x = some(60, 3) + 1000  # every plain cosine is above 0.99
    assert torch.nn.functional.cosine_similarity(x[:30], x[30:]).min() > 0.99
    assert len(near_duplicates.find(features_of(all=x), 0.95, CPU).within) < 20
    constant = torch.cat([x, torch.full((60, 2), 5.0) + 5e-6 * torch.randn(60, 2)], 1)  # rounding says nothing
    assert as_dict(near_duplicates.find(features_of(all=constant), 0.8, CPU).within) == pytest.approx(
        as_dict(near_duplicates.find(features_of(all=x), 0.8, CPU).within), abs=1e-9
    )


def test_of_very_many_pairs_the_highest_are_kept_and_all_are_counted(monkeypatch):
    monkeypatch.setattr(near_duplicates, "KEPT", 50)
    splits = {"train": some(90, 0, width=3), "test": some(60, 1, width=3)}
    _, expected = plain(0.5, **splits)
    assert len(expected) > 500
    for block in (8, 30, 4096):
        found = near_duplicates.find(features_of(**splits), 0.5, CPU, block).within
        highest = dict(sorted(expected.items(), key=lambda item: -item[1])[:50])
        assert as_dict(found) == pytest.approx(highest) and found.total == len(expected)


def test_an_encoder_that_tells_nothing_is_an_error_not_a_list(monkeypatch):
    monkeypatch.setattr(near_duplicates, "KEPT", 50)
    monkeypatch.setattr(near_duplicates, "TOO_MANY", 5000)
    same = torch.ones(300, 6) + 1e-7 * torch.randn(300, 6)
    with pytest.raises(UserError, match="all 300 images have the same features"):
        near_duplicates.find(features_of(all=same), 0.9, CPU)
    line = torch.randn(300, 1, generator=torch.Generator().manual_seed(0)) * torch.ones(1, 6)  # one direction alone
    with pytest.raises(
        UserError, match=r"more than 5,000 pairs have a cosine above 0\.9; .* 50 of them are above 1\.0"
    ):
        near_duplicates.find(features_of(all=line), 0.9, CPU, 64)
    with pytest.raises(UserError, match="2 are too few"):
        near_duplicates.find(features_of(train=same[:1], test=same[:1]), 0.9, CPU)


def test_the_table_names_files_below_the_folder_those_across_splits_first(tmp_path):
    splits = {"train": some(30, 0), "test": some(30, 1)}
    splits["test"][4] = splits["train"][2] + 1e-3
    features = features_of(**splits)
    features.splits["train"].paths[2] = "/data/=cmd.png"  # a spreadsheet would run it
    found = near_duplicates.find(features, 0.9, CPU)
    near_duplicates.write(found, features, tmp_path / "near_duplicates.csv")
    with open(tmp_path / "near_duplicates.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "image_a": "'=cmd.png",
        "split_a": "train",
        "image_b": "test/4.png",
        "split_b": "test",
        "cosine": "1.000000",
    }
    differ = [row["split_a"] != row["split_b"] for row in rows]
    assert len(rows) == len(found.across) + len(found.within) and differ == sorted(differ, reverse=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> list[str]:
    """The options of evaluate.py for a small encoder that was never trained."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("encoder") / "encoder.pt"
    torch.save(SmallResNet(8, 2).state_dict(), path)
    return options(
        model_path=path,
        encoder="ssl.encoders.SmallResNet",
        encoder_kwargs="{width: 8, stages: 2}",
        stem="small",
        image_size=32,
        workers=0,
        device="cpu",
    )


@pytest.mark.parametrize("processes", [1, 2])
def test_a_copy_of_a_training_image_among_the_test_images_is_shown_first(processes, images, tmp_path, weights):
    """Also where the copy is saved anew, smaller and as a JPEG."""
    folder = tmp_path / "images"
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        for file in sorted((images / split).rglob("*.png"))[::2]:
            Image.open(file).resize((80, 80)).save(folder / split / file.name)
    original = sorted((folder / "train").iterdir())[3]
    Image.open(original).resize((72, 72)).save(folder / "test" / "copy.jpg", quality=80)
    out = tmp_path / "out"
    done = run(
        "evaluate.py", *weights, data_dir=folder, near_duplicates=0.9, output_dir=out, processes=processes, batch_size=9
    )
    with open(out / "near_duplicates.csv", newline="", encoding="utf-8") as file:
        first = next(csv.reader(list(file)[1:]))
    assert first[:4] == [f"train/{original.name}", "train", "test/copy.jpg", "test"]
    page = (out / "near_duplicates.html").read_text("utf-8")
    assert page.index("test/copy.jpg") < page.index("Within a split") and "data:image/jpeg;base64," in page
    assert "pairs across splits" in done.stdout.replace("1 pair ", "1 pairs ") and not (out / "results.json").exists()
