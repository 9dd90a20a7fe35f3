"""Disks that fill, break and vanish: training goes on where it can, and no checkpoint is lost."""

import os
import re
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forked_run import ForkedRun
from running import without_roots_rights
from waiting import wait_for_save

from ssl.checkpoints import torch_file
from ssl.faultcheck.__main__ import damage
from ssl.faultcheck.small_run import TRAIN, SmallRun, descendants, gone, kill

pytestmark = pytest.mark.slow


def newest(run: SmallRun) -> int:
    return torch_file.load(torch_file.kept(run.folder)[0])["step"]


@pytest.fixture(scope="module")
def until_8(images, tmp_path_factory) -> Path:
    """The folder of a run of one process that ended after step 8; steps 8 and 6 are kept."""
    run = ForkedRun(tmp_path_factory.mktemp("half") / "run", images, 1, {"max_steps": 8})
    run.finished()
    return run.folder


@pytest.fixture
def half(new_run, until_8) -> SmallRun:
    """The same run to be continued to step 16, in a folder of its own."""
    run = new_run(1)
    shutil.copytree(until_8, run.folder)
    return run


def test_a_damaged_newest_checkpoint_costs_its_steps_and_nothing_else(half, undisturbed, chance):
    kinds = ["with a flipped bit", "cut short", "emptied", "foreign"]
    for kind in kinds:
        run = replace(half, folder=half.folder.with_name(kind.replace(" ", "_")))
        shutil.copytree(half.folder, run.folder)
        path = run.folder / "checkpoint.pt"
        if kind == "foreign":
            torch.save({"state_dict": {"w": torch.zeros(3)}}, path)
        else:
            damage(path, kind, chance)
        run.finished()
        assert f"{path}: " in run.printed() and "continuing from checkpoint.1.pt" in run.printed(), kind
        assert "continuing at step 6 of 16" in run.printed(), kind
        assert run.digest() == undisturbed(1).digest(), kind


def test_where_all_checkpoints_are_damaged_nothing_is_touched(half):
    for path in torch_file.kept(half.folder):
        path.write_bytes(path.read_bytes()[:1000])
    before = {path.name: path.read_bytes() for path in half.folder.iterdir() if path.is_file()}
    assert half.finish() == 2
    assert "the run does not start again" in half.last_words() and half.status()["state"] == "failed"
    after = {path.name: path.read_bytes() for path in half.folder.iterdir() if path.is_file()}
    assert {name for name in before if before[name] != after[name]} <= {"lock", "status.json"}


def test_a_full_disk_stops_no_training_and_loses_no_step(new_run, undisturbed, altered):
    run = new_run(1)
    run.folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", run.folder], capture_output=True).returncode:
        pytest.skip("no tmpfs may be mounted here; tests/faultcheck/test_faultcheck.py fills the disk another way")
    try:
        run.options["max_steps"] = 8
        run.finished()
        run.options["max_steps"] = 16
        run.script = altered(slowly=True)
        process = run.launch()
        run.script = TRAIN
        ballast = run.folder / "ballast"
        wait_for_save(run, 9, process)
        with pytest.raises(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        assert run.finish(process) == 2
        kept = newest(run)
        assert run.printed().count("*** could not save") == 1 and "training goes on" in run.printed()
        # The reason is the system's words or PyTorch's, by who met the end of the disk.
        assert re.search(rf"step 16 could not be saved \(.+\); the last that was is step {kept}\.", run.printed())
        assert "16/16" in run.printed() and 9 <= kept < 16  # it trained to the end
        ballast.unlink()
        run.finished()
        assert run.digest() == undisturbed(1).digest()
    finally:
        subprocess.run(["umount", "-l", run.folder], check=True)


def test_a_folder_that_becomes_read_only(new_run, undisturbed, altered):
    run = new_run(1, script=altered(slowly=True))
    process = run.launch(preexec_fn=without_roots_rights)
    wait_for_save(run, 3, process)
    os.chmod(run.folder, 0o555)
    try:
        assert run.finish(process) == 2
        assert run.printed().count("*** could not save") == 1 and "Permission denied" in run.printed()
        assert run.step() == 16 and 3 <= newest(run) < 16
        words = "output_dir: cannot write to"
        assert run.finish(run.launch(preexec_fn=without_roots_rights)) == 2 and words in run.last_words()
    finally:
        os.chmod(run.folder, 0o755)
    run.finished()
    assert run.digest() == undisturbed(1).digest()


def test_a_data_folder_that_vanishes_is_one_error_and_comes_back(new_run, undisturbed, altered, tmp_path, chance):
    images = shutil.copytree(undisturbed().images, tmp_path / "images")
    run = new_run(script=altered(slowly=True))
    run.images = images
    process = run.launch()
    assert run.wait_for_step(chance.randint(4, 7), process), run.last_words()
    everybody = [process.pid, *descendants(process.pid)]
    images.rename(tmp_path / "away")
    assert run.finish(process) != 0
    gone(everybody)
    told = [line for line in run.printed().splitlines() if line.startswith("train.py: error: ")]
    assert len(told) == 1, told
    assert "images in a row cannot be read; is the data still there?" in told[0] and "No such file" in told[0]
    assert run.status()["state"] == "failed" and told[0] == run.status()["reason"]
    assert newest(run) == run.status()["saved_step"]
    assert run.finish() != 0 and "data_dir" in run.last_words()  # still away
    (tmp_path / "away").rename(images)
    run.finished()
    assert run.digest(metrics=False) == undisturbed().digest(metrics=False)


def test_a_foreign_file_under_a_checkpoints_name_is_no_checkpoint(half):
    (half.folder / "checkpoint.old.pt").write_bytes(b"mine")
    kill(half.launch().pid, signal.SIGKILL)
    assert half.finish() in (0, 2) and (half.folder / "checkpoint.old.pt").read_bytes() == b"mine"
