"""What weights have learnt from judges them nowhere: recorded, carried, recognised."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import options, run

import evaluate
import finetune
import train
from ssl.checkpoints import image_keys, learnt_from, torch_file
from ssl.data import keys, prepare
from ssl.data.images import Images, Paths
from ssl.errors import UserError, one_line
from ssl.evaluation import classify
from ssl.settings import config
from ssl.sources import datasets
from ssl.sources.cut import TENTH

SMALL = options(encoder="ssl.encoders.SmallResNet", encoder_kwargs="{width: 4, stages: 1}", device="cpu", workers=0)
TUNE = [*SMALL, *options(image_size=16, batch_size=16, epochs=1)]
TRAIN = [*TUNE, *options(projector="8-8", health_every="null", evaluate_after=False)]


def picture(path: Path, seed: int, size: int = 16) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """200 random pictures with random labels, class folders without splits."""
    root = tmp_path_factory.mktemp("photos")
    for number, label in enumerate(np.random.default_rng(0).integers(0, 2, 200)):
        picture(root / "ab"[label] / f"{number}.png", number)
    return root


@pytest.fixture(scope="module")
def supervised(photos, tmp_path_factory) -> Path:
    """A run that learnt from their labels, with another seed than the default."""
    folder = tmp_path_factory.mktemp("supcon") / "run"
    run("train.py", *TRAIN, data_dir=photos, output_dir=folder, method="supcon", seed=5)
    return folder


@pytest.fixture(scope="module")
def tuned(photos, supervised, tmp_path_factory) -> tuple[Path, str]:
    """A fine-tuning of it on the same images, twice, and what it printed."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    done = run("finetune.py", *TUNE, init=supervised, data_dir=photos, output_dir=folder, runs=2)
    return folder, done.stdout


@pytest.fixture
def changed(photos, tmp_path) -> Path:
    """A copy of the pictures, to be changed."""
    return shutil.copytree(photos, tmp_path / "photos")


@pytest.fixture
def judged(monkeypatch):
    """Call with arguments of evaluate.py or finetune.py: the pictures (their bytes) that were judged."""

    def judge(script, *arguments) -> set[bytes]:
        seen, (place, name) = [], {evaluate: (evaluate, "extract"), finetune: (classify, "score")}[script]
        whole = getattr(place, name)

        def watched(net, data, *others, **options):
            seen.append(data)
            return whole(net, data, *others, **options)

        monkeypatch.setattr(place, name, watched)
        monkeypatch.setattr("sys.argv", [script.__name__, *map(str, arguments)])
        script.main()
        return {Path(path).read_bytes() for path in seen[-1].paths}  # evaluate.py reads train first

    return judge


def part(root: Path, split: str) -> set[bytes]:
    return {Path(path).read_bytes() for path in datasets.load("folder", str(root), split).paths}


def evaluated(weights: Path, *arguments) -> list:
    return ["--model_path", weights, "--protocol", "knn", "--k", 3, "--device", "cpu", "--workers", 0, *arguments]


# The published cases ---------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("named", [True, False])
def test_whatever_the_seed_no_trained_image_is_judged(photos, supervised, judged, tmp_path, seed, named):
    where = ["--data_dir", photos] if named else []
    found = judged(evaluate, *evaluated(supervised, "--seed", seed, "--output_dir", tmp_path, *where))
    assert found == part(photos, "test") and not found & part(photos, "train")


def test_an_image_that_is_added_or_deleted_makes_no_trained_one_judge(photos, changed, supervised, judged, tmp_path):
    trained = part(photos, "train")
    picture(changed / "a" / "new.png", 1000)
    for split in ("train", "test"):
        Path(datasets.load("folder", str(changed), split).paths[0]).unlink()
    found = judged(evaluate, *evaluated(supervised, "--data_dir", changed, "--output_dir", tmp_path))
    assert found and not found & trained


def test_the_seed_of_a_run_is_that_of_its_judging_whoever_names_the_folder(
    photos, supervised, judged, monkeypatch, tmp_path
):
    seeds = []
    monkeypatch.setattr(evaluate.labels, "choose", lambda data, percent, files, seed: seeds.append(seed) or data)
    judged(evaluate, *evaluated(supervised, "--data_dir", photos, "--output_dir", tmp_path))
    assert seeds == [5]


def test_a_fine_tuning_is_not_tested_on_its_training_folder(photos, tuned, judged, tmp_path):
    folder, _ = tuned
    found = judged(finetune, "--test_only", "--model_path", folder / "seed_5", "--output_dir", tmp_path)
    assert found == part(photos, "test")
    count = len(part(photos, "train"))
    for place in (folder, folder / "seed_5", folder / "seed_6" / "best.pt"):
        with pytest.raises(
            UserError,
            match=rf"^leak: {count} of the 200 test images are among those that .* learnt "
            r"from, with labels: .*; images that weights learnt from cannot judge them",
        ):
            judged(finetune, "--test_only", "--model_path", place, "--data_dir", photos, "--output_dir", tmp_path)


def test_control_without_the_rule_the_leak_is_back(photos, tuned, judged, monkeypatch, tmp_path):
    monkeypatch.setattr(learnt_from, "check", lambda *arguments, **options: None)
    found = judged(
        finetune, "--test_only", "--model_path", tuned[0] / "seed_5", "--data_dir", photos, "--output_dir", tmp_path
    )
    assert part(photos, "train") < found


def test_a_trained_image_under_a_name_that_would_judge_is_refused(changed, supervised, judged, tmp_path):
    path = Path(datasets.load("folder", str(changed), "train").paths[0])
    name = next(name for name in map(str, range(1000, 2000)) if keys.of_words([f"{path.parent.name}/{name}"]) < TENTH)
    path.rename(path.with_name(f"{name}.png"))
    with pytest.raises(UserError, match=rf"leak: 1 of the \d+ test images are .*{name}\.png"):
        judged(evaluate, *evaluated(supervised, "--data_dir", changed, "--output_dir", tmp_path))


def test_a_fine_tuning_on_the_same_folder_is_told_that_its_validation_flatters(photos, tuned):
    _, printed = tuned
    held = len(datasets.load("folder", str(photos), "train")) // 10
    line = next(line for line in printed.splitlines() if "validation numbers will be too good" in line)
    assert "learnt      *** " in line and abs(int(line.split()[2]) - held) <= 1 and printed.count("too good") == 1


def test_the_online_judge_is_refused_what_init_learnt_from(photos, supervised, monkeypatch, tmp_path):
    judged = options(data_dir=photos, init=supervised, eval_every=1, method="barlow_twins", output_dir=tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["train.py", *TRAIN, *judged])
    with pytest.raises(UserError, match=r"leak: (\d+) of the \1 validation images are among those that .* learnt from"):
        train.main()
    assert not list((tmp_path / "run").glob("*.pt"))


@pytest.mark.slow
def test_two_processes_are_refused_with_one_line_and_the_chain_is_carried(photos, tuned, supervised, tmp_path):
    folder, _ = tuned
    record = learnt_from.read(folder)
    assert [part.use for part in record.parts] == ["labels", *["labels", "choice"] * 2] and not record.unknown
    assert np.array_equal(record.parts[0].keys["file"], learnt_from.read(supervised).parts[0].keys["file"])
    done = run(
        "finetune.py", test_only=True, model_path=folder, data_dir=photos, output_dir=tmp_path, processes=2, check=False
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("finetune.py: error: ")]
    assert done.returncode and len(lines) == 1 and "leak: " in lines[0]


# The record ------------------------------------------------------------------------------


def files(root: Path, numbers: range, **options) -> Images:
    for number in numbers:
        if not (root / f"p{number}.png").exists():
            picture(root / f"p{number}.png", number, 100)
    paths = Paths(str(root / f"p{number}.png") for number in numbers)
    return Images("folder", torch.zeros(len(numbers)).long(), ["a"], paths=paths, **options)


def weights(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    torch_file.save({}, folder / "encoder.pt")
    return folder


def recorded(folder: Path, data: Images, root, use="labels", before=None, apart=()) -> Path:
    learnt_from.write(weights(folder), before, [(data, use)], apart, root)
    return folder


def said(capsys, *arguments, **options) -> str:
    capsys.readouterr()
    learnt_from.check(*arguments, **options)
    return capsys.readouterr().out


def refused(*arguments) -> str:
    with pytest.raises(UserError) as raised:
        learnt_from.check(*arguments)
    return str(raised.value)


def test_what_was_learnt_with_labels_is_refused_what_was_only_seen_is_said(tmp_path, capsys):
    root = tmp_path / "images"
    data, others = files(root, range(10)), files(root, range(10, 20))
    mixed = files(root, range(7, 17))
    labels, pixels = (recorded(tmp_path / use, data, root, use) for use in ("labels", "pixels"))
    chosen = recorded(tmp_path / "choice", data, root, "choice")
    assert refused(labels, mixed, root).startswith("leak: 3 of the 10 test images are among those that ")
    assert said(capsys, pixels, mixed, root) == (
        "learnt      3 of the 10 test images were pre-trained on, without labels\n"
    )
    assert "*** 3 of the 10 test images chose the best epoch" in said(capsys, chosen, mixed, root)
    assert [said(capsys, folder, others, root) for folder in (labels, pixels, chosen)] == ["", "", ""]
    assert "3 of the 10 validation" in said(capsys, labels, others, root, chooses=mixed)


def test_a_copy_is_known_by_its_content_and_another_of_the_name_is_only_told(tmp_path, capsys):
    root = tmp_path / "images"
    folder = recorded(tmp_path / "run", files(root, range(10)), root)
    (tmp_path / "copy").mkdir()
    for number in range(5):
        shutil.copy(root / f"p{number}.png", tmp_path / "copy" / f"p{number + 50}.png")
    assert "5 of the 5" in refused(folder, files(tmp_path / "copy", range(50, 55)), tmp_path / "copy")
    picture(tmp_path / "other" / "p3.png", 3000)
    other = Images("folder", torch.zeros(1).long(), ["a"], paths=Paths([str(tmp_path / "other" / "p3.png")]))
    assert "*** 1 of the 1 test images have the names of images that" in said(capsys, folder, other, tmp_path / "other")


@pytest.mark.parametrize("seen", ["large", "small"])
def test_a_copy_that_prepare_made_smaller_is_known_by_what_it_was_made_of(tmp_path, capsys, seen):
    roots = {name: tmp_path / name for name in ("large", "small", "smaller")}
    files(roots["large"], range(10))
    for name, side in (("small", 50), ("smaller", 20)):
        prepare.prepare(roots["large"], roots[name], short_side=side, workers=0)
    folder = recorded(tmp_path / "run", files(roots[seen], range(6)), roots[seen])
    for name in roots.keys() - {seen}:
        data = files(roots[name], range(4, 9))
        assert "2 of the 5" in refused(folder, data, roots[name])
        (roots[name] / "prepared_from.pt").unlink(missing_ok=True)
        if name != "large":  # control: by its bytes it is another
            assert "2 of the 5 test images have the names of images" in said(capsys, folder, data, roots[name])


def test_a_larger_data_set_is_known_by_name_and_size(tmp_path, capsys, monkeypatch):
    root = tmp_path / "images"
    monkeypatch.setattr(image_keys, "MOST_FILES", 5)
    monkeypatch.setattr(keys, "_of_file", None)  # nothing is opened
    folder = recorded(tmp_path / "run", files(root, range(10)), root)
    assert "10 images are recorded by their names and sizes" in capsys.readouterr().out
    shutil.copytree(root, tmp_path / "there" / "below")
    moved = files(tmp_path / "there" / "below", range(8, 12))
    assert "2 of the 4" in refused(folder, moved, tmp_path / "there")


def test_pixels_are_known_in_arrays_and_files(photos, tmp_path):
    data = datasets.load("folder", str(photos), "train")
    folder = recorded(tmp_path / "run", data, photos)
    assert data.resident is not None
    array = Images("array", data.labels, data.classes, resident=data.resident[:7])
    array = replace(array, labels=data.labels[:7])
    assert "7 of the 7" in refused(folder, array, None)
    by_array = recorded(tmp_path / "array", array, None)
    assert f"7 of the {len(data)}" in refused(by_array, data, photos)
    as_files = replace(data, resident=None)  # as it is read with one picture of another size among them
    assert f"{len(data)} of the {len(data)}" in refused(folder, as_files, photos)


def test_names_of_tables_are_told_of_patients_are_known_and_mere_numbers_are_not(tmp_path, capsys):
    root, there = tmp_path / "images", tmp_path / "other"
    options = dict(named=True, groups=["ann", None, "7"])
    folder = recorded(tmp_path / "run", files(root, range(3), **options), root)
    files(there, range(10, 15))
    (there / "p10.png").rename(there / "p1_downsampled.png")
    smaller = Images("folder", torch.zeros(1).long(), ["a"], paths=Paths([str(there / "p1_downsampled.png")]))
    assert said(capsys, folder, smaller, there) == ""  # a folder's names may begin anywhere
    warning = "*** 1 of the 1 test images have the names of images that"
    assert warning in said(capsys, folder, replace(smaller, named=True), there)  # hospitals may count alike
    assert "1 of the 1" in refused(folder, replace(smaller, named=True, name="isic2020"), there)  # ids
    patients = files(there, range(11, 14), groups=["ann", "7", None])
    assert "1 of the 3" in refused(folder, patients, there)


def test_what_a_runs_own_splits_have_on_both_sides_is_told(tmp_path, capsys):
    root = tmp_path / "images"
    data, test = files(root, range(10)), files(root, range(10, 20))
    shutil.copy(root / "p3.png", root / "p12.png")  # as published sets do
    folder = recorded(tmp_path / "run", data, root, apart=[test])
    words = said(capsys, folder, test, root)
    assert "*** 1 of the 10 test images are equal to images that" in words and words.count("\n") == 1
    shutil.copy(root / "p4.png", root / "p13.png")  # since then
    assert "leak: 1 of the 10" in refused(folder, test, root)


def test_a_record_is_carried_on_and_a_continued_run_adds_what_is_new(tmp_path, capsys):
    root = tmp_path / "images"
    parts = [files(root, range(start, start + 5)) for start in (0, 5, 10, 15)]
    first = recorded(tmp_path / "first", parts[0], root)
    second = recorded(tmp_path / "second", parts[1], root, "pixels", before=first)
    assert "5 of the 5" in refused(second, parts[0], root)
    assert "pre-trained on" in said(capsys, second, parts[1], root)
    recorded(second, parts[1], root, "pixels", before=second)
    assert [part.use for part in learnt_from.read(second).parts] == ["labels", "pixels"]
    recorded(second, parts[2], root, before=second)
    assert "5 of the 5" in refused(second, parts[2], root)
    assert said(capsys, second, parts[3], root) == ""
    fresh = recorded(tmp_path / "second", parts[3], root)  # begun anew in that folder
    assert said(capsys, fresh, parts[0], root) == ""


def test_a_run_goes_on_with_the_record_of_what_it_continues(tmp_path):
    settings = train.Settings(init="first.pt", resume=str(tmp_path / "elsewhere" / "checkpoint.pt"))
    assert learnt_from.begun_with(tmp_path, None, settings) == "first.pt"
    assert learnt_from.begun_with(tmp_path, {}, settings) == settings.resume
    torch_file.save({}, tmp_path / "checkpoint.pt")
    assert learnt_from.begun_with(tmp_path, {}, settings) == tmp_path


def test_where_there_is_no_record_that_is_said_and_said_on(tmp_path, capsys):
    root = tmp_path / "images"
    data, test = files(root, range(5)), files(root, range(5, 10))
    alone = weights(tmp_path / "alone")
    assert said(capsys, alone, test, root) == f"learnt      nothing is recorded of what {alone} learnt from\n"
    after = recorded(tmp_path / "after", data, root, before=alone)
    assert said(capsys, after, test, root) == f"learnt      nothing is recorded of what {alone} learnt from\n"
    for settings in ({"method": "supcon"}, {"method": "simclr", "balanced": True}, {"freeze": False}):
        config.write_yaml(alone / "config.yaml", settings)
        assert f"*** {alone} learnt from labels and has no trained_on.pt" in said(capsys, alone, test, root)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_unknown_weights_with_a_name_that_is_no_path_are_told(tmp_path, capsys, name):
    root = tmp_path / "images"
    alone = weights(tmp_path / "alone")
    torch_file.save({"unknown": [name], "parts": []}, alone / "trained_on.pt")
    words = said(capsys, alone, files(root, range(5)), root)
    assert words == f"learnt      nothing is recorded of what {one_line(name)} learnt from\n"


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"parts": [{}], "unknown": []},
        {"parts": 3, "unknown": []},
        {"unknown": [], "parts": [{"use": "x", "keys": {}, "shared": {}}]},
        {"unknown": [], "parts": [{"use": "labels", "keys": {"file": torch.zeros(2)}, "shared": {}}]},
        {"unknown": [], "parts": [{"use": "labels", "keys": {"file": 3}, "shared": {}}]},
        {"unknown": [], "parts": [{"use": "labels", "keys": {"x": torch.zeros(2).long()}, "shared": {}}]},
    ],
)
def test_what_is_no_record_is_refused(tmp_path, content):
    folder = weights(tmp_path / "run")
    torch_file.save(content, folder / learnt_from.FILE)
    assert "is no record of what weights have learnt from" in refused(folder, files(tmp_path, range(2)), tmp_path)
    (folder / learnt_from.FILE).write_bytes(b"junk")
    assert "damaged, or not a PyTorch file" in refused(folder, files(tmp_path, range(2)), tmp_path)


@pytest.mark.parametrize("content", [b"junk", [], {"name": torch.zeros(2).long()}, {"name": 1, "file": 2}])
def test_a_list_of_sources_that_is_none_is_refused(tmp_path, content):
    data, test = (files(tmp_path / name, range(2)) for name in ("seen", "images"))
    folder = recorded(tmp_path / "run", data, tmp_path / "seen")
    path = tmp_path / "images" / keys.SOURCES
    path.write_bytes(content) if isinstance(content, bytes) else torch_file.save(content, path)
    words = refused(folder, test, tmp_path / "images")
    assert words.startswith(f"{path}: ") and ("damaged" in words or "was not written by ssl.data.prepare" in words)


def test_the_splits_that_are_set_apart_are_those_that_there_are(tmp_path):
    def load(split: str) -> Images | None:
        if split == "test":
            raise UserError("there is none")
        return data

    data = files(tmp_path, range(2))
    assert learnt_from.set_apart(load) == [data]
    assert learnt_from.set_apart(lambda split: None if split == "val" else data) == [data]
