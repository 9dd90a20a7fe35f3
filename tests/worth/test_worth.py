"""The command, from images to a verdict: on small pictures, killed and continued, and with input that cannot work.

Jobs of most tests run in forked processes (`forked`); where they are killed or fail side by side they are real ones.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import forked
import numpy as np
import pytest
import torch
from drawn import class_folders
from PIL import Image

from ssl.checkpoints import image_keys, learnt_from, published
from ssl.data.images import Images
from ssl.encoders import build_encoder
from ssl.errors import UserError
from ssl.faultcheck.small_run import gone
from ssl.settings.shared import ImageSettings
from ssl.sources import datasets, shapes
from ssl.sources.shapes import render
from ssl.worth import __main__ as worth
from ssl.worth import jobs, kept, look, measure, plan, scores, splits, starts, unlabelled
from ssl.worth.work import METHOD

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def quick(monkeypatch) -> list[list[str]]:
    """Short trainings in forked processes, two side by side; the commands of the jobs, as they run."""
    ran = []

    def start(words: list[str], log: Path, threads: int | None) -> SimpleNamespace:
        assert threads is not None
        done = forked.run(*words)
        log.write_text(done.stdout + done.stderr)
        ran.append(words)
        return SimpleNamespace(poll=lambda: done.returncode, wait=lambda: None, returncode=done.returncode)

    monkeypatch.setattr(jobs, "start_python", start)
    monkeypatch.setattr(measure, "jobs_at_once", lambda *machine: 2)
    monkeypatch.setattr(measure, "beside", lambda *others: contextlib.nullcontext())
    monkeypatch.setattr(plan, "EPOCHS", {"own": (2, 2), "public": (1, 1)})
    monkeypatch.setattr(plan, "MOST_EPOCHS", 3)
    monkeypatch.setattr(starts, "_reachable", lambda url: False)
    monkeypatch.setattr(published.Published, "path", lambda self: Path("/nowhere", self.file))
    return ran


def compare(monkeypatch, *words) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["worth", *map(str, words)])
    try:
        worth.main()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Three classes of 26 pictures, without splits: the cut makes them."""
    folder = class_folders(tmp_path_factory.mktemp("pictures"), {"one": (78, 0)}, size=24)
    for path in sorted((folder / "one").iterdir()):
        path.rename(folder / path.name)
    (folder / "one").rmdir()
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("whole") / "compared"


def scripts(ran: list[list[str]]) -> list[str]:
    return [words[0] for words in ran]


def test_from_images_to_a_verdict(monkeypatch, capsys, quick, pictures, whole):
    compare(monkeypatch, pictures, "--minutes", 60, "--seeds", 1, "--workers", 1, "--output_dir", whole)
    said = capsys.readouterr().out
    assert "left out    imagenet: " in said and "cannot be reached" in said and "left out    barlow_twins: " in said
    assert said.index("plan ") < said.index("[1/")
    assert scripts(quick)[0] == "train.py" and scripts(quick).count("evaluate.py") == 2
    assert all(words[words.index("--method") + 1] == "simclr" for words in quick if words[0] == "train.py")
    found = json.loads((whole / "worth.json").read_text())
    cells = [(cell["count"], cell["seed"]) for cell in found["plan"]["cells"]]
    assert cells == [(0, 0), (5, 0)] and scripts(quick).count("finetune.py") == 2 * len(cells)
    assert found["labels"].keys() == {"1", "5", "all"}
    for start in ("nothing", "own"):
        of_start = found["accuracies"][start]
        assert of_start["frozen"].keys() == {"1", "5", "all"} and of_start["fine-tuned"].keys() == {"5", "all"}
        assert all(
            0 <= one["low"] <= one["value"] <= one["high"] <= 1 for use in of_start.values() for one in use.values()
        )
        assert of_start["frozen"]["1"]["seeds"] == plan.DRAWS and of_start["frozen"]["1"]["validation"] == {}
    assert found["verdict"]["outcome"] in ("nothing", "own", "cannot be told")
    page = (whole / "worth.html").read_text()
    assert found["verdict"]["headline"] in page and page.count("<svg") == 2 and "<script" not in page
    assert all(f"<h3>{title}</h3>" in page for title in found["verdict"]["words"])


def test_pre_training_and_fine_tuning_see_no_test_image(whole, pictures):
    test = datasets.load("folder", str(pictures), "test")
    for folder in (whole / "own" / "pretrained", *(whole / "own" / "tuned").glob("*/")):
        record = learnt_from.read(folder)
        own = image_keys.find(test, str(pictures), ["file"])["file"]
        assert record.parts and all(not np.isin(own, part.keys["file"]).any() for part in record.parts)
        assert all(part.use != "choice" for part in record.parts)  # the last epoch is taken: none chose it


def test_the_same_command_again_runs_no_job_and_says_the_same(monkeypatch, quick, pictures, whole):
    before = (whole / "worth.json").read_text()
    compare(monkeypatch, pictures, "--minutes", 60, "--seeds", 1, "--workers", 1, "--output_dir", whole)
    assert quick == [] and (whole / "worth.json").read_text() == before


def test_the_same_images_elsewhere_are_refused_before_any_job(monkeypatch, quick, tmp_path, pictures, whole):
    """The lists of labels and the features name the files as they were."""
    moved = shutil.copytree(pictures, tmp_path / "moved")
    with pytest.raises(UserError, match=f"holds a comparison with another data_dir .*{moved}"):
        compare(monkeypatch, moved, "--minutes", 60, "--seeds", 1, "--workers", 1, "--output_dir", whole)
    assert quick == []


def test_a_plan_for_which_nothing_was_done_is_made_again(monkeypatch, capsys, quick, tmp_path, pictures):
    for minutes in (60, 90):
        words = ["--minutes", minutes, "--public", "none", "--plan", "--output_dir", tmp_path / "out"]
        compare(monkeypatch, pictures, *words)
        assert f"of {minutes} minutes" in capsys.readouterr().out
        assert json.loads((tmp_path / "out" / "plan.json").read_text())["plan"]["minutes"] == minutes


@pytest.mark.parametrize("changed", [{"--minutes": 4}, {"--seeds": 2}, {"--public": "none"}])
def test_another_question_in_the_same_folder_is_refused(monkeypatch, quick, pictures, whole, changed):
    given = {"--minutes": 60, "--seeds": 1, "--workers": 1, "--output_dir": whole} | changed
    with pytest.raises(UserError, match=f"holds a comparison with another {next(iter(changed))[2:]}"):
        compare(monkeypatch, pictures, *(word for pair in given.items() for word in pair))
    assert quick == []


def test_other_images_in_the_same_folder_are_refused(monkeypatch, quick, tmp_path, pictures, whole):
    one = next((pictures / "disc").iterdir())
    one.rename(tmp_path / one.name)
    try:
        with pytest.raises(UserError, match="holds a comparison with another t"):
            compare(monkeypatch, pictures, "--minutes", 60, "--seeds", 1, "--workers", 1, "--output_dir", whole)
    finally:
        (tmp_path / one.name).rename(one)


def test_a_plan_of_two_jobs_at_once_goes_on_where_one_fits(monkeypatch, capsys, quick, pictures, whole, tmp_path):
    """And one job at once stays one, with all cores, where more fit later."""
    words = [pictures, "--minutes", 60, "--seeds", 1, "--workers", 1, "--plan", "--output_dir"]
    monkeypatch.setattr(measure, "jobs_at_once", lambda *machine: 1)
    compare(monkeypatch, *words, whole)
    assert "2 jobs side by side were planned, and 1 fit now: it takes longer" in capsys.readouterr().out
    planned = json.loads((whole / "plan.json").read_text())
    planned["plan"]["at_once"] = 1
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "plan.json").write_text(json.dumps(planned))
    shared = []
    monkeypatch.setattr(measure, "jobs_at_once", lambda *machine: 4)
    monkeypatch.setattr(worth, "of_jobs", lambda settings, at_once: shared.append(at_once) or ({}, None))
    compare(monkeypatch, *words, tmp_path / "one")
    assert shared == [1] and "side by side" not in capsys.readouterr().out


def test_killed_in_pre_training_and_continued_it_says_the_same(monkeypatch, quick, tmp_path, pictures, whole):
    """SIGKILL of the command alone: its jobs end with it, and the folder is free at once."""
    folder = tmp_path / "killed"
    folder.mkdir()
    shutil.copy(whole / "plan.json", folder)
    words = [pictures, "--minutes", 60, "--seeds", 1, "--workers", 1, "--output_dir", folder]
    command = [sys.executable, "-m", "ssl.worth", *map(str, words)]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | forked.PLAIN, stdout=subprocess.DEVNULL)
    status = folder / "own" / "pretrained" / "status.json"
    began = time.monotonic()
    while not status.exists() and process.poll() is None and time.monotonic() - began < 120:
        time.sleep(0.05)
    assert status.exists() and process.poll() is None
    others = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    gone([json.loads(status.read_text())["pid"], *map(int, others)])
    assert json.loads(status.read_text())["state"] == "running"  # it was killed, too; else it would have finished
    assert not (folder / "worth.json").exists()
    compare(monkeypatch, *words)
    assert json.loads((folder / "worth.json").read_text()) == json.loads((whole / "worth.json").read_text())


# What else to pre-train on ----------------------------------------------------------------------


def test_more_images_without_labels_join_and_test_images_among_them_do_not(
    monkeypatch, capsys, quick, tmp_path, pictures
):
    test, train = (datasets.load("folder", str(pictures), split) for split in ("test", "train"))
    more = class_folders(tmp_path / "more", {"a": (12, 5)}, size=24)
    for number, path in enumerate([*list(test.paths)[:3], *list(train.paths)[:4]]):
        shutil.copy(path, more / f"copy{number}.png")
    folder = tmp_path / "out"
    compare(monkeypatch, pictures, "--minutes", 60, "--unlabelled", more, "--plan", "--output_dir", folder)
    said = capsys.readouterr().out
    assert f"left out: 3 images of {more} that test or validation has, too" in said
    assert f"12 of 19 images of {more} join {len(train)}" in said
    assert len(list((folder / "images").iterdir())) == len(train) + 12
    assert scripts(quick) == ["train.py"] and str(folder / "images") in quick[0]


def test_validation_images_among_more_images_are_left_out(monkeypatch, capsys, quick, tmp_path):
    data = class_folders(tmp_path / "data", {"train": (24, 0), "val": (12, 1), "test": (12, 2)}, size=24)
    more = class_folders(tmp_path / "more", {"a": (12, 5)}, size=24)
    for number, path in enumerate(sorted((data / "val").rglob("*.png"))[:2]):
        shutil.copy(path, more / f"copy{number}.png")
    words = ["--minutes", 60, "--unlabelled", more, "--public", "none", "--plan", "--output_dir", tmp_path / "out"]
    compare(monkeypatch, data, *words)
    said = capsys.readouterr().out
    assert f"left out: 2 images of {more} that test or validation has, too" in said and "12 of 14 images" in said


@pytest.mark.parametrize("held", ["more/images", "own/images"])
def test_files_in_the_place_of_links_are_kept(monkeypatch, quick, tmp_path, pictures, held):
    """A folder that holds nothing but `images`, as people have it, and one of ours into which somebody put files."""
    images = class_folders(tmp_path / held, {"a": (5, 5)}, size=24)
    more = class_folders(tmp_path / "c", {"a": (5, 6)}, size=24)
    if held == "own/images":
        (tmp_path / "own" / "plan.json").write_text("{}")
    before = {path: path.read_bytes() for path in images.rglob("*.png")}
    words = ["--public", "none", "--plan", "--output_dir", tmp_path / held.split("/")[0], "--unlabelled", more]
    with pytest.raises(UserError, match=r"output_dir: .*holds other files|is not a plan of this version"):
        compare(monkeypatch, pictures, *words)
    data = datasets.load("folder", str(pictures), "train")
    with pytest.raises(UserError, match="is for links to images and holds other files"):
        unlabelled.link(data, images)
    assert {path: path.read_bytes() for path in images.rglob("*.png")} == before


def test_refused_images_leave_no_links_and_others_take_the_place_of_earlier_ones(
    monkeypatch, quick, tmp_path, pictures
):
    first, second = (class_folders(tmp_path / name, {"a": (5, seed)}, size=24) for name, seed in (("b", 5), ("c", 6)))
    folder = tmp_path / "out"
    words = [pictures, "--minutes", 60, "--plan", "--public", "none", "--output_dir", folder, "--unlabelled"]
    (folder / "images").mkdir(parents=True)
    (folder / "lock").touch()
    (folder / "images" / "00000000.png").symlink_to(next(first.rglob("*.png")))
    (folder / "images" / "99999999.png").symlink_to(next(first.rglob("*.png")))
    compare(monkeypatch, *words, first)
    train = datasets.load("folder", str(pictures), "train")
    linked = {path.name: os.readlink(path) for path in (folder / "images").iterdir()}
    assert len(linked) == len(train) + 5 and set(linked.values()) == {*train.paths, *map(str, first.rglob("*.png"))}
    (folder / "nothing").mkdir()  # its jobs have begun
    with pytest.raises(UserError, match=r"holds a comparison with another (unlabelled|pre-training)"):
        compare(monkeypatch, *words, second)
    assert {path.name: os.readlink(path) for path in (folder / "images").iterdir()} == linked
    next(first.rglob("*.png")).rename(first / "renamed.png")  # as many images, but another list
    with pytest.raises(UserError, match="holds a comparison with another pre-training"):
        compare(monkeypatch, *words, first)


def array_file(folder: Path, pixels: np.ndarray) -> Path:
    """30 images of three classes to train on, and the same upside down for the test."""
    arrays = {"train_images": pixels, "test_images": pixels[:, ::-1]}
    np.savez(folder / "array.npz", **arrays, **{f"{split}_labels": np.arange(30) % 3 for split in ("train", "test")})
    return folder / "array.npz"


def test_public_weights_in_a_file_have_two_starts_and_images_may_be_in_an_array(monkeypatch, quick, tmp_path):
    images = array_file(tmp_path, render(torch.arange(30) % 3, 24, 0).permute(0, 2, 3, 1).numpy())
    monkeypatch.setattr(plan, "FEW", ())
    name = "ssl.encoders.SmallConvNet"
    encoder, _ = build_encoder(name, 96)
    torch.save(encoder.state_dict(), tmp_path / "theirs.pt")
    given = ["--minutes", 60, "--seeds", 1, "--image_size", 24, "--output_dir", tmp_path / "out"]
    with pytest.raises(UserError, match=r"does not say which encoder it is of; write .*theirs\.pt=ENCODER"):
        compare(monkeypatch, images, *given, "--public", tmp_path / "theirs.pt")
    compare(monkeypatch, images, *given, "--public", f"{tmp_path / 'theirs.pt'}={name}")
    found = json.loads((tmp_path / "out" / "worth.json").read_text())
    assert list(found["accuracies"]) == ["nothing", "theirs", "own", "theirs+own"]
    assert set(found["facts"]["epochs"]) == {"own", "theirs+own"}


def test_published_weights_never_share_a_folder_with_files_of_the_comparison(tmp_path):
    name = "ssl.encoders.SmallConvNet"
    torch.save(build_encoder(name, 96)[0].state_dict(), tmp_path / "labels.pt")
    for own in ("measured", "images", "own", "lock"):
        shutil.copy(tmp_path / "labels.pt", tmp_path / f"{own}.pt")
    files = [f"{path}={name}" for path in sorted(tmp_path.glob("*.pt"))]
    data = Images("array", torch.zeros(1), ["one"], resident=torch.zeros(1, 3, 24, 24, dtype=torch.uint8))
    found, _ = starts.find_public(files, True, True, {"train": data, "val": None, "test": data}, None)
    assert [public.name for public in found] == ["images_2", "labels_2", "lock_2", "measured_2", "own_2"]


def test_a_file_may_have_equals_signs_in_its_path(tmp_path):
    name, folder = "ssl.encoders.SmallConvNet", tmp_path / "lr=0.1"
    folder.mkdir()
    assert starts._parts(str(folder)) == (str(folder), "")
    assert starts._parts(f"{folder}={name}") == (str(folder), name)
    assert starts._parts(f"imagenet={name}") == ("imagenet", name) and starts._parts("imagenet") == ("imagenet", "")


def test_all_starts_are_judged_on_images_drawn_at_one_size(monkeypatch, quick, tmp_path):
    """Drawn at another size they would be other images. The few steps of train.py that are measured are made up."""
    monkeypatch.setattr(shapes, "_IMAGES", {"train": 60, "test": 30})
    name = "ssl.encoders.SmallConvNet"
    torch.save(build_encoder(name, 32)[0].state_dict(), tmp_path / "theirs.pt")

    def settled(job: jobs.Job) -> measure.ShortRun:
        size = job.settings["image_size"] or 32  # that of the recipe
        about = {"encoder": name, "encoder_kwargs": None, "stem": "auto", "lr": 1, "epochs": 1, "short_side": None}
        return measure.ShortRun(about | {"image_size": size}, 1.0, 1.0, 60)

    def stop(some: list[jobs.Job], *how, **until) -> None:
        asked[:] = some
        raise InterruptedError

    def tasks(networks, sizes, epochs, cells) -> list[plan.Task]:
        planned[:] = made(networks, sizes, epochs, cells)
        return planned

    asked: list[jobs.Job] = []
    planned: list[plan.Task] = []
    made = plan.tasks
    monkeypatch.setattr(plan, "tasks", tasks)
    monkeypatch.setattr(measure, "short_run", settled)
    monkeypatch.setattr(worth, "run_all", stop)
    given = ["--public", f"{tmp_path / 'theirs.pt'}={name}", "--seeds", 1, "--minutes", 60]
    for size in (32, 24):
        words = ["--dataset", "shapes", *given, "--output_dir", tmp_path / f"out_{size}"]
        with pytest.raises(InterruptedError):
            compare(monkeypatch, *words, *([] if size == 32 else ["--image_size", size]))
        sizes = {job.what: job.settings["image_size"] or 32 for job in asked}
        assert {words.split()[0] for words in sizes} == {"features", "pre-train", "fine-tune"}
        assert {f"features of {start}" for start in ("nothing", "theirs", "own", "theirs+own")} <= sizes.keys()
        assert set(sizes.values()) == {size}
        # The plan knows each job, at its place, and which weights it makes and needs.
        assert [task.needs for task in planned] == [job.needs.parent.name if job.needs else "" for job in asked]
        makes = [job.folder.parent.name if job.folder.name == "pretrained" else "" for job in asked]
        assert [task.makes for task in planned] == makes and "theirs+own" in makes


def test_where_all_labels_take_too_long_fewer_of_each_class_stand_for_them(
    monkeypatch, capsys, quick, tmp_path, pictures
):
    def make(seconds, spent, networks, sizes, *rest):
        if sum(sizes.of_draw[splits.ALL]) > 30:
            raise UserError("minutes: too few")
        return made(seconds, spent, networks, sizes, *rest)

    def stop(some: list[jobs.Job], *how, **until):
        raise InterruptedError

    made = plan.make
    monkeypatch.setattr(plan, "make", make)
    monkeypatch.setattr(plan, "MOST", (1000, 12, 8))
    monkeypatch.setattr(worth, "run_all", stop)
    words = [pictures, "--minutes", 60, "--seeds", 1, "--public", "none", "--output_dir", tmp_path / "out"]
    for _ in range(2):  # the plan is made, and read
        with pytest.raises(InterruptedError):
            compare(monkeypatch, *words)
        said = capsys.readouterr().out
        assert re.search(r"`all` stands for 24 of \d+ labels, 8 of each class at most", said)
        lists = {path.stem: path.read_text().split() for path in (tmp_path / "out" / "labels").iterdir()}
        assert len(lists["labels_all_seed_0"]) == 24 and set(lists["labels_5_seed_0"]) < set(lists["labels_all_seed_0"])
    assert len(quick) == 1  # only the measuring
    monkeypatch.setattr(plan, "MOST", (12,))
    with pytest.raises(UserError, match="minutes: too few"):
        compare(monkeypatch, *words[:-1], tmp_path / "other")


def test_a_process_of_a_group_is_refused(monkeypatch, quick, pictures):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "of torchrun")
    with pytest.raises(UserError, match="this command is one process; leave out torchrun"):
        compare(monkeypatch, pictures)


# What cannot work -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, expected",
    [
        ([], "data_dir: which images"),
        (["{pictures}", "--minutes", "0"], "minutes: 0 must be positive"),
        (["{pictures}", "--seeds", "0"], "seeds: 0 must be at least 1"),
        (["{pictures}", "--public", "nobody"], "public: nobody is no file, and none of the published weights"),
        (["{pictures}", "--unlabelled", "nowhere"], "unlabelled: nowhere is not a folder"),
        (["{pictures}", "--unlabelled", "{pictures}"], "images of .* are among the images with labels already"),
        (["{pictures}/disc"], "judging needs class folders|without class folders"),
        (["nowhere"], "is not a folder"),
    ],
)
def test_input_that_cannot_work_is_refused_before_any_job(monkeypatch, quick, tmp_path, pictures, words, expected):
    given = [word.format(pictures=pictures) for word in words]
    with pytest.raises(UserError, match=expected):
        compare(monkeypatch, *given, "--output_dir", tmp_path / "out")
    assert quick == []


def test_an_output_folder_that_is_not_its_own_is_refused_and_kept(monkeypatch, quick, tmp_path, pictures):
    for folder in (pictures, pictures / "disc" / "new"):
        with pytest.raises(UserError, match="is in data_dir"):
            compare(monkeypatch, pictures, "--output_dir", folder)
    with pytest.raises(UserError, match="is in unlabelled"):
        compare(monkeypatch, tmp_path, "--unlabelled", pictures, "--output_dir", pictures / "new")
    (tmp_path / "run").mkdir()
    for name in ("config.yaml", "lock"):
        (tmp_path / "run" / name).touch()
    for folder, expected in ((tmp_path / "run", "holds other files"), (tmp_path / "run" / "lock", "is a file")):
        with pytest.raises(UserError, match=f"output_dir: .* {expected}"):
            compare(monkeypatch, pictures, "--output_dir", folder)
    assert quick == [] and len(list((tmp_path / "run").iterdir())) == 2


def test_more_images_go_with_images_in_files(monkeypatch, quick, tmp_path, pictures):
    images = array_file(tmp_path, np.random.default_rng(0).integers(0, 256, (30, 24, 24, 3), np.uint8))
    with pytest.raises(UserError, match="unlabelled: goes with images in files"):
        compare(monkeypatch, images, "--unlabelled", pictures, "--output_dir", tmp_path / "out")


def grey_classes(folder: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((24, 24, 3), 5 * i + len(name), np.uint8)).save(folder / name / f"{i}.png")
    return folder


def test_one_class_and_two_of_which_one_is_too_small_are_refused(monkeypatch, quick, tmp_path):
    data = grey_classes(tmp_path / "data", {"cats": 30, "dogs": 2})
    with pytest.raises(UserError, match=r"class 'dogs' has 1 training images to use; one to learn .* Add images$"):
        compare(monkeypatch, data, "--output_dir", tmp_path / "out")
    shutil.rmtree(data / "dogs")
    with pytest.raises(UserError, match="images of one class, 'cats'"):
        compare(monkeypatch, data, "--output_dir", tmp_path / "out")
    assert quick == []


def test_classes_of_one_training_image_are_left_out_and_the_others_compared(
    monkeypatch, capsys, quick, tmp_path, pictures
):
    """`alone` has one image, `a pair` one to learn from and one to test with."""
    data = shutil.copytree(pictures, tmp_path / "data")
    grey_classes(data, {"alone": 1, "a pair": 2})
    given = data, "--minutes", 60, "--seeds", 1, "--workers", 1, "--output_dir", tmp_path / "out"
    compare(monkeypatch, *given)
    said = capsys.readouterr().out
    assert "*** 2 of 5 have fewer than two training images" in said
    assert "left out: 'a pair', 'alone'. The answer is of the other 3 ***" in said
    for words in quick:
        at = words.index("--leave_out")
        assert words[at + 1 : at + 3] == ["a pair", "alone"]
    found = json.loads((tmp_path / "out" / "worth.json").read_text())
    assert found["verdict"]["outcome"] in ("nothing", "own", "cannot be told")
    ran = len(quick)
    compare(monkeypatch, *given)  # goes on
    assert len(quick) == ran


def test_groups_that_are_the_classes_are_refused(monkeypatch, quick, tmp_path, pictures):
    rows = [f"{path.relative_to(pictures)},{path.parent.name},{path.parent.name}" for path in pictures.rglob("*.png")]
    (tmp_path / "table.csv").write_text("\n".join(["image,label,patient", *rows]))
    given = ["--csv", tmp_path / "table.csv", "--label_column", "label", "--group_column", "patient"]
    with pytest.raises(UserError, match="every class has one image, or is in one group"):
        compare(monkeypatch, pictures, *given, "--output_dir", tmp_path / "out")
    assert quick == []


def test_groups_of_the_rare_class_are_few_although_groups_are_many(capsys):
    """40 patients, one of whom has all test images of the rare class."""
    splits = {}
    for name, patients in (("train", 40), ("test", 40)):
        own = [f"{name}{i}" for i in range(patients) for _ in range(5)]
        marks = torch.tensor([int(i == 0) for i in range(patients) for _ in range(5)])
        splits[name] = Images(
            "folder", marks, ["a", "b"], paths=[f"{p}/{i}.png" for i, p in enumerate(own)], groups=own
        )
    for balanced, warned in ((True, True), (False, False)):
        look._tell(look.Look(splits | {"val": None}, [], set(), balanced, True))
        said = capsys.readouterr().out
        assert "the test images are of 40" in said
        assert ("very few: 40 test groups (as many as 3.9 of equal weight)" in said) is warned


def test_folders_that_splits_share_and_classes_that_are_not_tested_are_named(capsys):
    def images(*paths: str) -> Images:
        marks = torch.tensor([["ants", "bees"].index(path.split("/")[2]) for path in paths])
        return Images("folder", marks, ["ants", "bees"], paths=list(paths))

    train = images(
        "/train/ants/video1/1.png", "/train/ants/video2/1.png", "/train/bees/1.png", "/train/bees/video1/1.png"
    )
    shared = "/test/ants/video1/2.png", "/test/ants/video1/3.png"
    for test, warned in [(shared, True), (("/test/ants/1.png", "/test/bees/1.png", "/test/bees/video3/1.png"), False)]:
        look._tell(look.Look({"train": train, "val": None, "test": images(*test)}, [], set(), False, True))
        said = capsys.readouterr().out
        assert ("share 1 folder below the classes, as ants/video1. If" in said) is warned
        assert ("no test image of 'bees'" in said) is warned


def test_copies_among_very_many_images_are_not_looked_for_and_that_is_said(monkeypatch, capsys, tmp_path):
    data = class_folders(tmp_path / "data", {"train": (24, 0), "test": (24, 0)}, size=24)
    monkeypatch.setattr(image_keys, "MOST_FILES", 20)
    assert not look.look(folder_settings(data), 1).copies
    assert "over 20 images: copies of other splits' images are not looked for" in capsys.readouterr().out


def test_another_grouping_is_another_comparison(tmp_path):
    """And so is one that says nothing of groups, or of the version of its files."""
    train = Images("folder", torch.arange(9) % 3, ["a", "b", "c"], paths=[""] * 9, groups=list("aabbccdde"))
    found = look.Look({"train": train, "val": None, "test": train}, [], set(), False, True)
    splits = found.splits | {"train": replace(train, groups=list("aabbccddd"))}
    was, now = (look.identity(one, "") for one in (found, replace(found, splits=splits)))
    assert {name for name in was if was[name] != now[name]} == {"grouping of train"}
    older = {name: value for name, value in was.items() if "grouping" not in name}
    agreed = kept.Agreed([], plan.Plan(1, 1, 1, 1, {}, 1, [], 1, [], 0), [])
    (tmp_path / "nothing").mkdir()
    for before, refused in ((older, True), (now, False), (was, True)):
        kept.write(tmp_path / "plan.json", {"images": before}, agreed)
        expected = pytest.raises(UserError, match="another grouping of t") if refused else contextlib.nullcontext()
        with expected:
            assert kept.read(tmp_path / "plan.json", {"images": now}) == agreed
    method = {"held_out": METHOD["held_out"]}
    kept.write(tmp_path / "plan.json", {"method": method}, agreed)
    with pytest.raises(UserError, match="another version"):
        kept.read(tmp_path / "plan.json", {"method": method | {"version": METHOD["version"]}})


def folder_settings(path: Path, **more) -> ImageSettings:
    return ImageSettings("folder", str(path), **more)


def test_test_images_that_are_training_images_do_not_count(capsys, tmp_path):
    data = class_folders(tmp_path / "data", {"train": (24, 0), "test": (12, 2)}, size=24)
    train, test = (sorted((data / split).rglob("*.png")) for split in ("train", "test"))
    for number in (0, 5):
        shutil.copy(train[number], test[number].with_name(f"copy{number}.png"))
    found = look.look(folder_settings(data), 1)
    assert {Path(name).name for name in found.copies} == {"copy0.png", "copy5.png"}
    assert "not counted: 2 images that other splits have, too" in capsys.readouterr().out
    names = {split: [of.sample_name(i) for i in range(len(of))] for split, of in found.splits.items() if of}
    parts = {
        split: {"features": torch.rand(len(own), 4), "labels": found.splits[split].labels, "names": own}
        for split, own in names.items()
    }
    torch.save(parts | {"classes": found.train.classes, "settings": {}}, tmp_path / "features.pt")
    judges, counts = scores.readable_test(tmp_path, found.splits["test"], False, found.copies)
    left_out = {Path(name).name for name, does in zip(names["test"], counts) if not does}
    assert len(judges) == 14 and left_out == {"copy0.png", "copy5.png"}
    kept = scores.Features.load(tmp_path, found.splits, found.copies, torch.device("cpu"))
    judged = scores.judge_frozen(kept, found.draw(5, 0), found.train, False)
    assert len(judged["right"]) == len(kept.test[1]) == 12
    low, high = judged["interval"]  # of 3 validation images
    assert low <= judged["validation"] <= high and high - low > 0.5
    for number, path in enumerate(sorted((data / "test").rglob("test*.png"))):
        shutil.copy(train[number], path)
    with pytest.raises(UserError, match="all test images are copies"):
        look.look(folder_settings(data), 1)


def test_pre_training_sees_validation_images_that_are_a_part_of_train(tmp_path):
    data = class_folders(tmp_path / "data", {"train": (24, 0), "val": (12, 1), "test": (12, 2)}, size=24)
    assert not look.look(folder_settings(data), 1).seen
    shutil.rmtree(data / "val")
    assert look.look(folder_settings(data), 1).seen


def test_weights_of_the_users_own_runs_are_known_by_their_record(tmp_path):
    """Pre-trained on the images that validate, they are flattered; with labels, they say nothing of fewer labels."""
    data = class_folders(tmp_path / "data", {"train": (24, 0), "test": (12, 2)}, size=24)
    splits = {name: datasets.load("folder", str(data), name) for name in ("train", "val", "test")}
    name = "ssl.encoders.SmallConvNet"
    for use in ("pixels", "labels"):
        (tmp_path / use).mkdir()
        torch.save(build_encoder(name, 24)[0].state_dict(), tmp_path / use / "encoder.pt")
        learnt_from.write(tmp_path / use, None, [(splits["train"], use)], [], str(data))
    torch.save(build_encoder(name, 24)[0].state_dict(), tmp_path / "theirs.pt")
    asked = [f"{tmp_path / 'theirs.pt'}={name}", f"{tmp_path / 'pixels' / 'encoder.pt'}={name}"]
    found, _ = starts.find_public(asked, True, True, splits, str(data))
    assert [public.seen for public in found] == [False, True]
    assert [public.saw_test for public in found] == [False, False]
    (tmp_path / "both").mkdir()
    torch.save(build_encoder(name, 24)[0].state_dict(), tmp_path / "both" / "encoder.pt")
    learnt_from.write(tmp_path / "both", None, [(splits["test"], "pixels")], [], str(data))
    [public], _ = starts.find_public([f"{tmp_path / 'both' / 'encoder.pt'}={name}"], True, True, splits, str(data))
    assert public.saw_test and not public.seen
    apart = class_folders(tmp_path / "apart", {"val": (12, 3)}, size=24)  # a split of its own, which none has seen
    splits["val"] = datasets.load("folder", str(apart / "val"), "all")
    found, _ = starts.find_public(asked, True, True, splits, str(data))
    assert [public.seen for public in found] == [False, False]
    with pytest.raises(UserError, match="has learnt from labels of your images"):
        starts.find_public([f"{tmp_path / 'labels' / 'encoder.pt'}={name}"], True, True, splits, str(data))


def test_a_job_that_fails_is_named_with_its_own_words(monkeypatch, tmp_path):
    def start(words: list[str], log: Path, threads: int | None) -> SimpleNamespace:
        log.write_text("so\nthe error: no room\n")
        return SimpleNamespace(poll=lambda: 2, wait=lambda: None, returncode=2)

    monkeypatch.setattr(jobs, "start_python", start)
    job = jobs.Job("features of own", "evaluate.py", tmp_path / "own" / "features", {})
    for run in (job.run, lambda: jobs.run_all([job])):
        with pytest.raises(UserError, match=r"features of own: the error: no room; its output is .*features.log"):
            run()


# Side by side -----------------------------------------------------------------------------------

FAILS = """
import pathlib, sys, time
while not (pathlib.Path(sys.argv[2]).parent / "begun").exists():
    time.sleep(0.01)
sys.exit("an error of its own")
"""
SAVES = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[2])
folder.mkdir()
signal.signal(signal.SIGTERM, lambda *_: ((folder / "saved").touch(), sys.exit()))
(folder.parent / "begun").touch()
(folder / "begun").touch()
time.sleep(600)
"""


def python_jobs(folder: Path, **sources: str) -> list[jobs.Job]:
    for name, source in sources.items():
        (folder / f"{name}.py").write_text(source)
    return [jobs.Job(name, str(folder / f"{name}.py"), folder / name, {}, 1) for name in sources]


def test_where_one_job_fails_those_beside_it_save_and_end(tmp_path):
    some = python_jobs(tmp_path, fails=FAILS, saves=SAVES, later=SAVES)
    with pytest.raises(UserError, match=r"^fails: an error of its own; its output is "):
        jobs.run_all(some, 2)
    assert (tmp_path / "saves" / "saved").exists() and not some[2].log.exists()  # `later` has never begun


def test_at_ctrl_c_all_jobs_that_run_save_and_end(monkeypatch, tmp_path):
    some = python_jobs(tmp_path, one=SAVES, two=SAVES, later=SAVES)

    def press(seconds: float) -> None:
        pause(seconds)
        if all((job.folder / "begun").exists() for job in some[:2]):
            raise KeyboardInterrupt

    pause = time.sleep
    monkeypatch.setattr(jobs.time, "sleep", press)
    with pytest.raises(KeyboardInterrupt):
        jobs.run_all(some, 2)
    assert all((job.folder / "saved").exists() for job in some[:2]) and not some[2].log.exists()


def test_a_job_has_its_share_of_the_cores(monkeypatch, tmp_path):
    (tmp_path / "tell.py").write_text("import os; print(os.environ.get('OMP_NUM_THREADS'))")
    monkeypatch.setattr(worth, "usable_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    free = [(1, None, None, None), (4, None, 1, 2), (8, None, 0, 1), (4, 3, 3, 2)]
    for settled, cases in ((8, free), (1, [(1, None, None, None), (4, None, 1, 1)])):  # 1: other programs use the cores
        monkeypatch.setattr(torch, "get_num_threads", lambda settled=settled: settled)
        for at_once, given, workers, threads in cases:
            machine, of_a_job = worth.of_jobs(worth.Settings(workers=given), at_once)
            assert (machine["workers"], of_a_job) == (workers, threads)
            job = jobs.Job("tell", str(tmp_path / "tell.py"), tmp_path / "tell", {}, of_a_job)
            job.start().wait()
            assert job.log.read_text().splitlines()[-1] == f"{threads}"


def test_jobs_run_side_by_side_where_cores_and_memory_reach(monkeypatch):
    held = Images("array", torch.zeros(9), ["one"], resident=torch.zeros(9, 1, 100, 100, dtype=torch.uint8))
    files = Images("folder", torch.zeros(10_000), ["one"], paths=[""] * 10_000)
    cases = [(1, 99, held, 1), (3, 99, held, 3), (16, 99, held, 4), (16, 6.1, held, 3), (16, 1, held, 1)]
    cases += [(16, 9, files, 2)]  # 1.4 GB of images for each
    for cores, free, images, expected in cases:
        monkeypatch.setattr(measure, "usable_cores", lambda cores=cores: cores)
        monkeypatch.setattr(measure, "free_memory", lambda free=free: (int(free * 2**30), ""))
        assert measure.jobs_at_once(torch.device("cpu"), [images], None, False) == expected
        assert measure.jobs_at_once(torch.device("cuda"), [images], None, False) == 1
        assert measure.jobs_at_once(torch.device("cpu"), [images], None, True) == 1


def test_loader_processes_of_a_job_share_the_reading(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: 12.0 * next(clock)))
    monkeypatch.setattr(measure, "auto_workers", lambda: 3)
    data = Images("folder", torch.zeros(12), ["one"], paths=["nowhere"] * 12)
    assert [measure.seconds_to_read(data, workers) for workers in (0, 1, 2, None)] == [1, 1, 0.5, pytest.approx(1 / 3)]


def test_other_processes_are_busy_while_the_machine_is_measured_and_end_with_it(monkeypatch, tmp_path):
    def start(*how) -> subprocess.Popen:
        begun.append(jobs.start_python(*how))
        return begun[-1]

    begun: list[subprocess.Popen] = []
    monkeypatch.setattr(measure, "start_python", start)
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), measure.beside(2, 1, tmp_path / "measured" / "beside.log"):
        assert [process.poll() for process in begun] == [None, None] and torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert all(process.returncode for process in begun) and torch.get_num_threads() == before
    ended = pytest.raises(UserError, match="kept a core busy has ended; its output is")
    with ended, measure.beside(1, 1, tmp_path / "beside.log"):
        begun[-1].kill()
        begun[-1].wait()


def test_a_busy_process_computes_until_its_parent_ends(monkeypatch):
    parents = [1, 1, 1, 1, 2]
    trained = []
    monkeypatch.setattr(measure.os, "getppid", lambda: parents.pop(0))
    monkeypatch.setattr(measure, "seconds_per_image", lambda *how, training: trained.append(training))
    measure.keep_busy()
    assert trained == [True, True, True] and not parents
