"""The report card: the same from images, a file and two processes; what cannot be said is None with a reason."""

import json
import shutil

import pytest
import torch
from drawn import class_folders
from running import run, tiny

import evaluate
from ssl import failures
from ssl.data.hold_out import few_of_classes
from ssl.evaluation import card, card_table, features, few_shot, probes
from ssl.evaluation.corruptions import EACH, Changed
from ssl.evaluation.feature_rows import Rows, statistics
from ssl.evaluation.neighbours import nearest
from ssl.sources.shapes import CLASSES

CPU = torch.device("cpu")


class How:
    """Settings of evaluate.py that a card reads."""

    seed, k, knn_temperature, corrupted_images = 3, 5, 0.07, 2000


def samples(count, seed, spread=1.5, width=8):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    return Rows(
        (torch.eye(3, width)[labels] * 3 + spread * torch.randn(count, width, generator=generator),), CPU
    ), labels


def make(asked, train=None, test=None):
    train, test = train or samples(120, 1), test or samples(60, 2)
    parts = probes.hold_out_tenth(train, 3)
    head, _ = probes.sweep(*parts, 3, epochs=5, seed=3)
    return card.card(train, test, nearest(train[0], test[0], How.k), (head, parts[1]), *asked, How)


def asked(groups=None, changed="not today"):
    return ["a", "b", "c"], groups or {"train": None, "test": None}, changed


def test_every_accuracy_has_its_number_of_images_and_an_interval():
    found = make(asked())
    shots = found["few_labels"]["shots"]
    assert list(shots) == ["1", "5", "16"] and [shots[name]["labels"] for name in shots] == [3, 15, 48]
    assert found["few_labels"]["percent"]["10"]["labels"] == 12
    for one in [*shots.values(), *found["few_labels"]["percent"].values()]:
        low, high = one["acc1_interval"]
        assert low <= one["acc1"] <= high and one["n"] == 60 and len(one["acc1_of_draws"]) == 5
    assert shots["1"]["acc1"] < shots["16"]["acc1"]
    train, test = samples(120, 1), samples(60, 2)
    draws = [few_of_classes(train[1], 5, How.seed + draw) for draw in range(few_shot.DRAWS)]
    expected = few_shot.accuracies(train, test, 3, draws, statistics(train[0])[0])
    assert shots["5"] == expected | {"smaller_classes": []}
    assert (found["retrieval"]["recall_at_1_queries"], found["calibration"]["n"]) == (60, 60)
    json.dumps(found, allow_nan=False)


def test_without_groups_and_images_the_reasons_are_said():
    found = make(asked())
    assert found["groups"] is None and "--group_column" in found["groups_why"]
    assert found["corruptions"] is None and found["corruptions_why"] == "not today"
    assert next(card_table.missing(found)) == "not measured: corruptions: not today"


def test_unchanged_copies_have_the_accuracies_of_all_test_images():
    test = samples(60, 2)
    same = test[0].parts[0].expand(12, -1, -1)
    worse = same.clone()
    worse[EACH.index(("noise", 0.18))], worse[EACH.index(("noise", 0.38))] = -same[0], torch.nan
    found = make(asked(changed=Changed(torch.arange(60), EACH, worse)))["corruptions"]
    assert found["jpeg"]["7"] == found["blur"]["1"] == found["unchanged"] and (found["n"], found["of"]) == (60, 60)
    train = samples(120, 1)
    assert found["unchanged"]["knn"] == probes.knn(train, test, 3, How.k, How.knn_temperature)
    assert found["noise"]["0.18"]["probe"]["acc1"] < 0.3 < found["noise"]["0.08"]["probe"]["acc1"]
    assert found["noise"]["0.38"] is None and "NaN" in found["noise"]["0.38_why"]
    words = {row.what: row.words for row in card_table.rows({"corruptions": found}) if "probe" in row.section}
    assert words["noise 0.08 / 0.18 / 0.38"].endswith("/ - %")


def test_changed_images_are_standardised_as_the_others_are():
    """With --standardize the features carry a mean and a deviation."""
    train, test = samples(120, 1), samples(60, 2)
    moments = statistics(train[0])
    changed = Changed(torch.arange(60), EACH, test[0].parts[0].expand(12, -1, -1))
    found = make(asked(changed=changed), *((rows.standardised(*moments), y) for rows, y in (train, test)))
    assert found["corruptions"]["blur"]["6"] == found["corruptions"]["unchanged"]


def test_images_of_other_channels_have_no_jpeg():
    ways = [way for way in EACH if way[0] != "jpeg"]
    changed = Changed(torch.arange(60), ways, samples(60, 2)[0].parts[0].expand(9, -1, -1))
    found = make(asked(changed=changed))["corruptions"]
    assert found["jpeg"] is None and "channels" in found["jpeg_why"] and "blur" in found


def test_groups_of_each_split_are_measured_or_their_reason_is_said():
    site = [None if i % 10 == 9 else "north" if i // 3 % 2 else "south" for i in range(120)]
    found = make(asked({"train": site, "test": ["north"] * 60}))["groups"]
    assert found["train"]["without_group"] == 12 and 0 < found["train"]["robustness"]["index"] < 1
    assert found["train"]["told"]["groups"] == 2 and found["train"]["robustness"]["k"] == How.k
    assert found["test"]["robustness"]["index"] is None and found["test"]["told"]["acc1"] is None
    assert "one group" in found["test"]["robustness"]["index_why"]
    found = make(asked({"train": site, "test": None}))["groups"]
    assert found["test"] is None and "of this split" in found["test_why"]


def test_classes_with_fewer_images_are_counted_and_shots_that_no_class_has_are_none():
    few = samples(120, 1)
    keep = torch.cat([(few[1] == 0).nonzero()[:3, 0], (few[1] > 0).nonzero()[:20, 0]])
    found = make(asked(), (few[0].subset(keep), few[1][keep]))["few_labels"]["shots"]
    assert found["5"]["smaller_classes"] == ["a"] and found["5"]["labels"] == 13
    assert found["16"] is None and found["16_why"] == "no class has 16 training images"
    text = card_table.console({"trained": {"few_labels": {"shots": found}}})
    assert "5 a class, 13 in all; 1 classes have fewer" in text and "no class has 16" in text


def test_without_a_probe_the_rest_is_judged():
    train, test = samples(120, 1), samples(60, 2)
    kept = torch.arange(119)[train[1][:119] > 0]
    train = train[0].subset(torch.cat([torch.tensor([0]), kept])), torch.cat([torch.tensor([0]), train[1][kept]])
    changed = Changed(torch.arange(60), EACH, test[0].parts[0].expand(12, -1, -1))
    near = nearest(train[0], test[0], How.k)
    found = card.card(train, test, near, None, *asked(changed=changed), How)
    why = "1 of 3 classes have fewer: 'a'"
    assert found["probe"] is found["calibration"] is None and found["probe_why"].endswith(why)
    knn = probes.knn(train, test, 3, How.k, How.knn_temperature)
    assert found["corruptions"]["unchanged"] == found["corruptions"]["blur"]["6"] == {"knn": knn}
    assert found["few_labels"]["shots"]["1"]["labels"] == 3 and found["retrieval"]["map_queries"] == 60
    text = card_table.console({"trained": found})
    assert f"not measured: probe: {found['probe_why']}" in text and "not measured: calibration" in text
    assert "changed test images, k-NN (n = 60)" in text and "changed test images, probe" not in text
    assert card.why_no_probe(samples(120, 1)[1], ["a", "b", "c"]) is None
    json.dumps(found, allow_nan=False)


def test_without_memory_for_the_card_the_card_is_what_to_leave_out(monkeypatch):
    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 43.00 GiB")

    monkeypatch.setattr(few_shot, "accuracies", no_memory)
    monkeypatch.setattr(failures, "_advice", [])
    names, groups, changed = asked()
    with pytest.raises(torch.OutOfMemoryError) as error:
        evaluate.judge(
            samples(120, 1),
            samples(60, 2),
            names,
            evaluate.Settings(k=5, seed=3),
            ["knn", "card"],
            None,
            groups,
            changed,
        )
    assert "out of memory" in (said := failures.explain(error.value)) and "leave card out" in said


# The script -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(images):
    return hospitals(images)


def hospitals(images):
    """A table of the images with a hospital of every image; hospitals are in one split, and one image has none."""
    lines = ["image,label,hospital,split"]
    for i, path in enumerate(sorted(images.rglob("*.png"))):
        split = path.parent.parent.name
        hospital = "" if path.stem == "train000" else f"{split}-{i % 2}"
        lines.append(f"{path.relative_to(images)},{path.parent.name},{hospital},{split}")
    path = images / "labels.csv"
    path.write_text("\n".join(lines) + "\n")
    return {"data_dir": images, "csv": path, "label_column": "label", "group_column": "hospital"}


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run("train.py", *tiny(epochs=1, warmup_epochs=0, workers=0), data_dir=images, output_dir=folder)
    return folder


@pytest.fixture(scope="module")
def carded(trained, table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    how = {"protocol": ["card", "features"], "random_init": True, "raw_pixels": True, "split_column": "split"}
    done = run("evaluate.py", **table, **how, model_path=trained, output_dir=folder, workers=0)
    return json.loads((folder / "results.json").read_text()), folder, done.stdout


def test_probe_and_knn_are_those_without_a_card(carded, trained, table, tmp_path):
    run("evaluate.py", **table, split_column="split", model_path=trained, output_dir=tmp_path, workers=0)
    plain = json.loads((tmp_path / "results.json").read_text())
    assert {name: carded[0][name] for name in ("probe", "knn")} == {name: plain[name] for name in ("probe", "knn")}
    assert set(plain) == {"probe", "knn", "of"}
    for subject in ("raw_pixels", "random_init"):
        assert set(carded[0][subject]) == {"probe", "knn", "card"}
    assert carded[0]["of"]["protocols"]["card"] == {"corrupted_images": 2000}


def test_the_console_shows_a_column_a_subject(carded):
    results, _, printed = carded
    lines = printed.splitlines()
    head = next(line for line in lines if line.startswith("report card"))
    assert head.split("  ")[0] == "report card" and "raw pixels" in head and "trained encoder" in head
    assert any(line.startswith("  1 a class, 3 in all") and line.count("%") == 3 for line in lines)
    index = next(line for line in lines if line.startswith("  robustness index (n = 63)"))
    assert f"{results['card']['groups']['train']['robustness']['index']:.2f}" in index
    assert results["card"]["groups"]["train"]["without_group"] == 1
    assert "R@1 (n = 21)" in printed and "did not learn from; they also chose its learning rate" in printed
    assert "12 changed copies of 21 of 21 test images, trained" in printed and "Kömen" in printed


def test_a_features_file_gives_the_card_but_for_changed_images(carded, tmp_path):
    results, folder, _ = carded
    printed = run("evaluate.py", features=folder, protocol="card", output_dir=tmp_path).stdout
    found = json.loads((tmp_path / "results.json").read_text())
    assert "not measured: corruptions: they need the images" in printed
    assert {name: found["card"][name] for name in ("few_labels", "retrieval", "calibration", "groups")} == {
        name: results["card"][name] for name in ("few_labels", "retrieval", "calibration", "groups")
    }
    assert found["probe"] == results["probe"] and found["card"]["corruptions"] is None
    assert found["probe"]["groups"] == found["knn"]["groups"] == 2 and found["probe"]["held_out_n"] > 20
    assert "n = 21 test images of 2 groups; in brackets 95 % intervals over groups" in printed


def test_a_file_without_groups_still_gives_the_rest(carded, tmp_path):
    """Files of older versions have no groups."""
    content = torch.load(carded[1] / "features.pt", weights_only=True)
    for split in ("train", "test"):
        del content[split]["groups"]
    torch.save(content, tmp_path / "features.pt")
    run("evaluate.py", features=tmp_path, protocol="card")
    found = json.loads((tmp_path / "results.json").read_text())["card"]
    with_groups = carded[0]["card"]["retrieval"]
    assert found["groups"] is None and found["retrieval"]["map"] == with_groups["map"]
    for name in ("map_interval", "recall_at_1_interval"):  # over two hospitals there is no telling
        (low, high), wide = found["retrieval"][name], with_groups[name]
        assert wide[0] < low and high < wide[1]


def test_a_class_of_one_image_leaves_out_the_probe_and_not_the_card(trained, images, tmp_path):
    few = shutil.copytree(images, tmp_path / "few")
    first, *others = sorted(sorted((few / "train").iterdir())[0].glob("*.png"))
    for path in others:
        path.unlink()
    how = {"model_path": trained, "data_dir": few, "output_dir": tmp_path, "workers": 0}
    printed = run("evaluate.py", **how, protocol="card", corrupted_images=0).stdout
    found = json.loads((tmp_path / "results.json").read_text())
    assert "probe" not in found and found["knn"]["n"] == 21 and found["card"]["retrieval"]["map_queries"] == 21
    assert f"not measured: probe: {found['card']['probe_why']}" in printed and first.parent.name in printed
    done = run("evaluate.py", **how, check=False)  # without a card
    assert done.returncode == 2 and "protocol probe needs at least 2 of every class" in done.stderr


def test_damaged_files_leave_no_nan_and_a_class_without_training_images_is_refused(trained, tmp_path):
    """Images of 80 pixels, which are only read when their features are computed."""
    large = class_folders(tmp_path / "large", {"train": (31, 0), "test": (21, 1)}, size=80)
    few, other = CLASSES[:2]
    last, damaged, *spare = sorted((large / "train" / few).iterdir())
    for path in spare:
        path.unlink()
    for path in [damaged, *(large / "test" / other).iterdir()]:
        path.write_bytes(path.read_bytes()[:300])
    how = hospitals(large) | {"split_column": "split", "protocol": "card", "model_path": trained, "workers": 0}
    printed = run("evaluate.py", **how, output_dir=tmp_path / "one").stdout
    found = json.loads((tmp_path / "one" / "results.json").read_text(), parse_constant=pytest.fail)
    card = found["card"]
    assert printed.count("left out") == 8 and found["knn"]["n"] == card["retrieval"]["recall_at_1_queries"] == 14
    assert few in card["probe_why"] and card["few_labels"]["shots"]["5"]["smaller_classes"] == [few]
    assert card["corruptions"]["of"] == 14 and card["groups"]["test"]["told"]["n"] == 7
    how |= {"output_dir": tmp_path / "two", "check": False}
    done = run("evaluate.py", **how | {"protocol": "probe"})
    assert done.returncode == 2 and f"class '{few}' has 1 training images to use; protocol probe needs" in done.stderr
    last.write_bytes(b"no image")
    for protocol in ("card", ["probe", "knn"], ["features", "knn"]):
        done = run("evaluate.py", **how | {"protocol": protocol}, processes=2)
        assert done.returncode and f"left out    {last}" in done.stdout and "Traceback" not in done.stderr
        assert done.stderr.count(f"error: 1 of 3 classes have no training images: '{few}'") == 1
        assert not (tmp_path / "two" / "results.json").exists()


def test_two_processes_and_other_batches_find_the_same(carded, trained, table, tmp_path):
    how = {"protocol": "card", "split_column": "split", "batch_size": 5}
    run("evaluate.py", **table, **how, model_path=trained, output_dir=tmp_path, processes=2, workers=1)
    found, one = json.loads((tmp_path / "results.json").read_text())["card"], carded[0]["card"]

    def close(a, b, path=""):
        if isinstance(a, dict):
            assert a.keys() == b.keys(), path
            for name in a:
                close(a[name], b[name], f"{path}/{name}")
        elif isinstance(a, list):
            close(dict(enumerate(a)), dict(enumerate(b)), path)
        elif isinstance(a, float):  # another order of sums may move an image over a border
            assert a == pytest.approx(b, abs=0.05, rel=0.02), path
        else:
            assert a == b, path

    close(found, one)


def test_corruptions_can_be_left_out_and_bad_wishes_end_with_one_line(trained, images, carded, tmp_path):
    how = {"model_path": trained, "output_dir": tmp_path, "protocol": "card", "workers": 0}
    printed = run("evaluate.py", **how, corrupted_images=0).stdout
    assert "not measured: corruptions: left out by --corrupted_images 0" in printed and "changed copies" not in printed
    done = run("evaluate.py", **how, corrupted_images=-1, check=False)
    assert done.returncode == 2 and "corrupted_images: -1 must not be negative" in done.stderr
    done = run("evaluate.py", model_path=trained, corrupted_images=9, check=False)
    assert done.returncode == 2 and "only protocol card has it" in done.stderr
    one_class = tmp_path / "one"
    for split in ("train", "test"):
        first = sorted((images / split).iterdir())[0]
        shutil.copytree(first, one_class / split / first.name)
    done = run("evaluate.py", **how, data_dir=one_class, check=False)
    assert done.returncode == 2 and "one class" in done.stderr and "Traceback" not in done.stderr
    content = torch.load(carded[1] / "features.pt", weights_only=True)
    content["test"]["features"][3, 2] = torch.nan
    torch.save(content, tmp_path / "features.pt")
    done = run("evaluate.py", features=tmp_path, protocol="card", check=False)
    assert done.returncode == 2 and "NaN" in done.stderr


def test_a_card_of_anybody_is_shown_as_far_as_it_can_be():
    strange = {
        "few_labels": {"shots": {"1": 7, "5": {"acc1": "high", "acc1_interval": [1]}}, "percent": [], "draws": "five"},
        "retrieval": {"map": None, "map_queries": {}},
        "calibration": {"ece": 0.1, "temperature": "hot"},
        "corruptions": {"noise": {"0.1": 3}, "unchanged": None},
        "groups": {"test": 3, "train": {"told": {"acc1": 1e400}, "robustness": {"index": 0.5, "k": "many"}}},
    }
    for content in (strange, dict.fromkeys(strange, 3), {name: {} for name in strange}):
        assert card_table.console({"trained": content}).startswith("report card")


def test_groups_of_a_features_file_come_back(tmp_path, carded):
    found = features.load(carded[1]).splits["train"]
    assert (
        len(found.groups) == 64 and found.groups.count(None) == 1 and set(found.groups) == {None, "train-0", "train-1"}
    )
    assert found.subset(torch.tensor([3, 1])).groups == [found.groups[3], found.groups[1]]
    content = torch.load(carded[1] / "features.pt", weights_only=True)
    content["train"]["groups"] = content["train"]["groups"][:5]
    torch.save(content, tmp_path / "features.pt")
    with pytest.raises(features.UserError, match="list of the groups of its 64"):
        features.load(tmp_path)
