"""The folder of a run: one writer, a status that is true, checkpoints of which the newest whole one is found."""

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl import files, optim
from ssl.checkpoints import about, alive, lock, resume, run_folder, run_reader, torch_file
from ssl.checkpoints.run_folder import RunFolder
from ssl.errors import UserError
from ssl.files import PARTIAL, json_text
from ssl.report import page
from ssl.training.log import Metrics

ROOT = Path(__file__).resolve().parents[2]
import train

HOLD = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import ssl
ssl.__path__ = [{str(ROOT / "ssl")!r}]
from pathlib import Path
from ssl.checkpoints.run_folder import RunFolder
run = RunFolder(Path(sys.argv[1]), 2)
print("held", flush=True)
sys.stdin.read()
"""


def state(step: int, weight: float = 1.0) -> dict:
    return {"model": {"w": torch.full((100,), weight)}, "step": step}


def save(run: RunFolder, step: int, wait: bool = True, **more) -> None:
    run.save(state(step, **more), {"w": torch.zeros(3)}, wait)


def steps(folder: Path) -> list[int]:
    return [torch_file.load(path)["step"] for path in torch_file.kept(folder)]


def ours(value) -> bool:
    return isinstance(value, dict) and "step" in value


@pytest.fixture
def run(tmp_path) -> RunFolder:
    run = RunFolder(tmp_path / "run", 2)
    run.begin(0, 10)
    return run


# One writer


def test_a_second_run_in_a_folder_is_refused_and_a_dead_one_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LEAVING", 0.5)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    status = (tmp_path / "status.json").read_text()
    with pytest.raises(UserError, match=rf"in use by another run \(process {holder.pid} on .*another --output_dir"):
        RunFolder(tmp_path, 2)
    assert (tmp_path / "status.json").read_text() == status  # whoever is refused says nothing in another's folder
    holder.kill()
    holder.wait()
    assert (tmp_path / "lock").read_text().startswith(f"process {holder.pid} ")
    RunFolder(tmp_path, 2)
    assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} ")


def test_a_run_that_is_leaving_is_waited_for(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    threading.Timer(0.5, holder.kill).start()
    RunFolder(tmp_path, 2)
    holder.wait()


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="output_dir: cannot write to"):
        RunFolder(tmp_path / "file" / "run", 2)


@pytest.mark.parametrize("name", ["encoder.pt", "best.pt", "encoder_best.pt"])
def test_weights_without_a_checkpoint_are_not_written_over(tmp_path, name):
    """They may be all that was kept of a run, or somebody else's. Again and again: nothing of a start stays behind."""
    (tmp_path / name).write_text("weights")
    (tmp_path / "config.yaml").write_text("encoder: resnet50")
    for _ in range(2):
        with pytest.raises(UserError, match=rf"holds {name} and no checkpoint .* name another folder"):
            RunFolder(tmp_path, 2, begins=True)
    assert sorted(os.listdir(tmp_path)) == sorted([name, "config.yaml"])


def test_a_run_whose_checkpoints_were_removed_does_not_begin_again_and_one_that_saved_none_does(tmp_path):
    run = RunFolder(tmp_path / "run", 2)
    torch_file.save({}, run.folder / "best.pt")  # as finetune.py after an epoch; then it was killed
    again = RunFolder(run.folder, 2, begins=True)
    save(again, 3)
    for path in torch_file.kept(run.folder):
        path.unlink()
    with pytest.raises(UserError, match=r"holds encoder.pt and best.pt and no checkpoint"):
        RunFolder(run.folder, 2, begins=True)
    RunFolder(run.folder, 2)  # --resume FILE: it continues a copy


def test_what_a_killed_writer_left_half_written_is_swept_away(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ABANDONED", -1)
    for name in (".partial-0123", "checkpoint.pt.partial-1"):  # the second is of an older version
        (tmp_path / name).touch()
    RunFolder(tmp_path, 2)
    assert not list(tmp_path.glob("*partial*"))


def test_a_start_leaves_what_another_process_is_writing_in_the_folder(tmp_path):
    """As evaluate.py and the report do."""
    with files.replacing(tmp_path / "results.json") as partial:
        partial.write_text("{}")
        RunFolder(tmp_path, 2)
    assert (tmp_path / "results.json").read_text() == "{}"


# A start that fails


def test_a_failed_start_removes_the_folders_that_it_made(tmp_path):
    run = RunFolder(tmp_path / "runs" / "mine", 2)
    for name in ("config.yaml", "about.json", "trained_on.pt"):
        (run.folder / name).write_text("{}")
    run.failed("a misspelt setting")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("held", ["the folder", "a file of the user", "a checkpoint", "a save that goes on", "a run"])
def test_a_failed_start_leaves_what_is_of_value(tmp_path, held):
    folder = tmp_path / "run"
    if held == "a run":
        before = RunFolder(folder, 2)
        save(before, 3)
        before.lock.close()
    elif held == "the folder":
        folder.mkdir()
    run = RunFolder(folder, 2)
    if held == "a file of the user":
        (folder / "notes.txt").write_text("mine")
    elif held in ("a checkpoint", "a save that goes on"):
        run.begin(0, 9)
        save(run, 0, wait=held == "a checkpoint")
    content = {path.name for path in folder.iterdir() if not path.name.startswith(PARTIAL)} - {"status.json"}
    run.failed("a reason")
    run.settle()
    assert (folder / "checkpoint.pt").exists() == (held in ("a checkpoint", "a save that goes on", "a run"))
    assert content <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "status.json").read_text())["reason"] == "a reason"


def test_who_waits_for_a_start_that_fails_locks_a_folder_of_its_own(tmp_path):
    """The lock that it waited for is of a file that is no longer there: it would keep nobody out."""
    folder = tmp_path / "run"
    folder.mkdir()
    held = lock.lock(folder / "lock")
    waiting = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def is_lock(opened: Path) -> bool:
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            return opened.samefile(folder / "lock")
        return False

    while not any(map(is_lock, Path(f"/proc/{waiting.pid}/fd").iterdir())):
        assert waiting.poll() is None
        time.sleep(0.05)
    shutil.rmtree(folder)
    held.close()
    assert waiting.stdout.readline() == "held\n"
    assert (folder / "lock").read_text().startswith(f"process {waiting.pid} ")
    waiting.kill()
    waiting.wait()


# Status


def test_status_follows_the_run(run):
    def said():
        return json.loads((run.folder / "status.json").read_text())

    assert (said()["state"], said()["step"], said()["of"], said()["saved_step"]) == ("running", 0, 10, None)
    run.step = 4
    save(run, 4)
    assert (said()["state"], said()["step"], said()["saved_step"]) == ("running", 4, 4)
    run.end("preempted", "SIGTERM")
    assert (said()["state"], said()["reason"], said()["pid"]) == ("preempted", "SIGTERM", os.getpid())
    begun, run.started = said()["begun"], run.started - 100  # as if it had run so long
    run.end("preempted", "SIGTERM")
    again = RunFolder(run.folder, 2)
    assert (said()["state"], said()["step"], said()["saved_step"]) == ("running", 4, 4)  # until it is known better
    again.failed("first")
    again.failed("second")
    assert (said()["state"], said()["reason"], said()["saved_step"]) == ("failed", "first", 4)
    assert said()["begun"] == begun and 100 <= said()["seconds"] < 160  # of both processes
    again.begin(0, 10)
    assert said()["seconds"] < 60


def test_the_time_computed_counts_once_where_another_rank_fails(tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "run", 2)
    run.begin(0, 9)
    save(run, 0)
    run.started -= 100
    run.status()
    monkeypatch.setattr(run_folder, "is_main", lambda: False)
    run.failed("on rank 1")
    assert 100 <= json.loads((run.folder / "status.json").read_text())["seconds"] < 160


def test_when_a_run_of_an_earlier_version_began_is_not_known(tmp_path):
    (tmp_path / "status.json").write_text('{"state": "preempted", "step": 5}')
    RunFolder(tmp_path, 2).begin(5, 10)
    said = json.loads((tmp_path / "status.json").read_text())
    assert (said["begun"], said["seconds"]) == (None, None)


def test_a_killed_run_is_told_from_one_that_runs(tmp_path):
    def told(**changes):
        status = json.loads((tmp_path / "status.json").read_text()) | changes
        return alive.state(status, 7, moved=0)

    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    assert run_reader.read(tmp_path).state == told() == "running"
    holder.kill()  # and not yet asked how it ended: a zombie has its number still
    while "State:\tZ" not in Path(f"/proc/{holder.pid}/status").read_text():
        pass
    for _ in range(2):
        (tmp_path / "metrics.jsonl").write_text('{"step": 12, "loss": 1.0}\n')
        os.utime(tmp_path / "metrics.jsonl", (2e9, 2e9))
        last = time.strftime("%Y-%m-%d %H:%M", time.localtime(2e9))
        words = f"ended without a status (there is no process {holder.pid} any more); last sign: step 12 at {last}"
        assert run_reader.read(tmp_path).state == words and words in page.page([run_reader.read(tmp_path)])
        holder.wait()
    assert told(pid=os.getpid()).startswith("ended")  # its number was given to another, that began later
    assert told(pid=os.getpid(), started=None) == "running"  # of a version that did not say when
    for elsewhere in ({"host": "node7"}, {"pids": "pid:[1]"}, {"pid": [1]}):
        assert re.match(r"running on .*, which cannot be checked from here; last sign: step 7 at 19", told(**elsewhere))
    assert told(state="finished", host="node7") == "finished" and alive.state({}, None, 0) == "unknown"


def test_a_save_that_ends_after_an_error_does_not_call_the_run_running(run, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    rotate = torch_file.rotate
    monkeypatch.setattr(torch_file, "rotate", lambda *a: (begun.set(), go_on.wait(), rotate(*a)))
    save(run, 3, wait=False)
    begun.wait()
    run.failed("an error of the training thread")
    go_on.set()
    run.settle()
    said = json.loads((run.folder / "status.json").read_text())
    assert (said["state"], said["reason"], said["saved_step"]) == ("failed", "an error of the training thread", 3)


# Rotation and choice


@pytest.mark.parametrize("keep", [2, 3, 5])
def test_the_newest_stay(tmp_path, keep):
    for step in range(9):
        torch_file.rotate(state(step), tmp_path, keep)
        assert steps(tmp_path) == list(range(step, max(-1, step - keep), -1))


def test_fewer_are_kept_from_the_next_save_on(tmp_path):
    for step in range(5):
        torch_file.rotate(state(step), tmp_path, 5)
    torch_file.rotate(state(5), tmp_path, 2)
    assert steps(tmp_path) == [5, 4]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("keep", [2, 3, 4])
def test_killed_between_any_two_renames_the_newest_is_there(tmp_path, monkeypatch, keep, links):
    """Every prefix of a rotation's renames leaves the last step saved loadable, and the next rotation heals it."""
    replace = os.replace
    if not links:

        def no_link(a, b):
            raise PermissionError("this file system has no hard links")

        monkeypatch.setattr(os, "link", no_link)
    for done in range(keep + 1):
        folder = tmp_path / str(done)
        folder.mkdir()
        for step in range(5):
            torch_file.rotate(state(step), folder, keep)
        left = iter(range(done))

        def until_killed(a, b, left=left):
            if next(left, None) is None:
                raise Killed
            replace(a, b)

        monkeypatch.setattr(os, "replace", until_killed)
        try:
            torch_file.rotate(state(5), folder, keep)
            assert done == keep
        except Killed:
            assert done < keep
        monkeypatch.setattr(os, "replace", replace)
        found = steps(folder)
        assert found[0] == (5 if done == keep else 4) and found == sorted(found, reverse=True)
        # Whoever reads while the run goes on finds it under its name, also between two renames.
        assert (folder / "checkpoint.pt").exists() or not links
        torch_file.rotate(state(6), folder, keep)
        found = steps(folder)
        assert found[0] == 6 and found == sorted(set(found), reverse=True) and len(found) <= keep


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign"])
def test_a_damaged_newest_is_named_and_set_aside(run, capsys, damage):
    save(run, 3)
    save(run, 6)
    path = run.folder / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-100])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        torch.save({"weights": 1}, path)
    assert run.newest(ours)["step"] == 3
    assert f"*** {path}: " in (said := capsys.readouterr().out)
    assert "set aside as checkpoint.pt.damaged, continuing from checkpoint.1.pt ***" in said
    assert (run.folder / "checkpoint.pt.damaged").exists()
    save(run, 4)
    assert steps(run.folder) == [4, 3]  # the next save did not move the whole one out


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "Input/output error"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_a_whole_checkpoint_that_cannot_be_read_now_stays(run, monkeypatch, error):
    save(run, 3)
    save(run, 6)
    load_now, left = torch.load, [error]  # the newest alone

    def load(*arguments, **options):
        if left:
            raise left.pop()
        return load_now(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", load)
        with pytest.raises(UserError, match=r"checkpoint\.pt: (cannot be read|too little memory)"):
            run.newest(ours)
    assert steps(run.folder) == [6, 3] and not list(run.folder.glob("*.damaged"))


def test_one_after_a_step_is_taken_only_where_there_is_no_other_and_stays(run, capsys):
    run.keep = 3
    for step in (3, 6, 8):
        save(run, step)
    assert steps(run.folder) == [8, 6, 3]
    assert [run.newest(ours, up_to)["step"] for up_to in (9, 8, 7, 6, 5, 2)] == [8, 8, 6, 6, 3, 8]
    assert steps(run.folder) == [8, 6, 3] and "damaged" not in capsys.readouterr().out
    (run.folder / "checkpoint.1.pt").write_bytes(b"")
    assert run.newest(ours, 6)["step"] == 3
    assert steps(run.folder) == [8, 3] and "set aside as checkpoint.1.pt.damaged" in capsys.readouterr().out


def test_damaged_ones_are_set_aside_where_only_a_later_one_is_whole_too(run, capsys):
    run.keep = 4
    for step in (3, 6, 8, 9):
        save(run, step)
    for name in ("checkpoint.pt", "checkpoint.2.pt"):
        (run.folder / name).write_bytes(b"")
    assert run.newest(ours, up_to=2)["step"] == 8
    assert capsys.readouterr().out.count("continuing from checkpoint.1.pt ***") == 2
    for step in (10, 11):
        save(run, step)
    assert steps(run.folder) == [11, 10, 8, 3]  # the next saves moved no whole one out


def test_where_all_are_damaged_the_run_is_not_begun_anew(run):
    save(run, 3)
    save(run, 6)
    for path in torch_file.kept(run.folder):
        path.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(UserError, match=r"none is whole, and the run does not start again .*Put back a copy"):
            run.newest(ours)
    for path in torch_file.kept(run.folder):
        os.replace(path, f"{path}.damaged")
    with pytest.raises(UserError, match="none is whole"):
        run.newest(ours)


def test_an_empty_folder_has_none(run):
    assert run.newest(ours) is None


# Saving


def test_what_is_saved_is_what_was_there_when_it_was_asked_for(run, monkeypatch):
    """Training goes on while a thread writes."""
    go_on = threading.Event()
    rotate = torch_file.rotate
    monkeypatch.setattr(torch_file, "rotate", lambda *a: (go_on.wait(), rotate(*a)))
    weights = {"model": {"w": torch.ones(3)}, "optimizer": {"state": {0: {"m": torch.ones(3)}}}, "step": 5}
    run.save(weights, weights["model"])
    weights["model"]["w"].zero_()
    weights["optimizer"]["state"][0]["m"].zero_()
    go_on.set()
    run.settle()
    saved = torch_file.load(run.folder / "checkpoint.pt")
    assert saved["model"]["w"].tolist() == saved["optimizer"]["state"][0]["m"].tolist() == [1, 1, 1]


def test_weights_that_are_not_finite_are_never_saved(run):
    save(run, 3)
    with pytest.raises(UserError, match="not finite at step 6, and were not saved"):
        save(run, 6, weight=float("nan"))
    assert steps(run.folder) == [3] and run.saved_step == 3


def test_a_save_that_fails_is_told_once_tried_again_and_told_when_it_works(run, monkeypatch, capsys):
    monkeypatch.setattr(run_folder, "RETRY", 0.0)
    save(run, 1)
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(*_):
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(torch_file, "rotate", fail)
        for step in (2, 3, 4):
            save(run, step, wait=False)
            run.settle()
            assert "No space left" in run.trouble and run.saved_step == 1
        full = RuntimeError("unexpected pos 64 vs 0")  # what PyTorch's writer makes of it
        save(run, 5, wait=False)
        run.settle()
        assert run.due(minutes=1000)  # soon, not when the next is due
    said = capsys.readouterr().out
    assert said.count("could not save") == 1 and "training goes on" in said
    save(run, 6, wait=False)
    run.settle()
    assert run.trouble is None and steps(run.folder) == [6, 1]
    assert "saved again, at step 6" in capsys.readouterr().out


def test_a_last_save_that_fails_is_an_error_that_names_what_is_safe(run, monkeypatch):
    monkeypatch.setattr(run_folder.time, "sleep", lambda seconds: None)
    save(run, 1)
    tries = []

    def no_room(*_):
        tries.append(1)
        raise OSError("no room")

    monkeypatch.setattr(torch_file, "rotate", no_room)
    with pytest.raises(UserError, match=r"step 7 could not be saved \(.*no room.*the last that was is step 1"):
        save(run, 7)
    assert len(tries) == 3


def test_an_encoder_that_cannot_be_written_moves_no_checkpoint(run, monkeypatch):
    save(run, 1)
    save(run, 2)
    (run.folder / "encoder.pt").unlink()
    (run.folder / "encoder.pt").mkdir()
    for _ in range(3):
        save(run, 3, wait=False)
        run.settle()
    assert run.trouble and steps(run.folder) == [2, 1]


def test_saves_come_by_time(run, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(run_folder.time, "monotonic", lambda: now[0])
    run.tried = 0.0
    assert not run.due(1.0)
    now[0] = 61
    assert run.due(1.0)
    save(run, 1)
    assert not run.due(1.0)
    now[0] = 123
    assert run.due(1.0) and not run.due(2.0)


# Metrics


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_have_neither_gaps_nor_duplicates(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = Metrics(path, 0)
    for step in range(1, 8):
        first.write(step=step, loss=0.5)
    with open(path, "a") as file:
        file.write('{"step": 8, "lo')  # killed in the midst of a line
    second = Metrics(path, 4)
    for step in range(5, 9):
        second.write(step=step, loss=0.5)
    second.close()
    assert [line["step"] for line in lines(path)] == list(range(1, 9))
    Metrics(path, 0).close()  # begun anew
    assert lines(path) == []


def test_a_kill_while_metrics_are_cut_back_loses_none(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path, 0)
    metrics.write(step=1)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        Metrics(path, 1)
    assert lines(path) == [{"step": 1}]


class NearlyFull:
    """A file on a disk with room for so many bytes."""

    def __init__(self, file, room: int):
        self.file, self.room = file, room

    def write(self, content: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.file.write(content[: self.room])
        self.room -= written
        return written

    def close(self) -> None:
        self.file.close()


def test_lines_of_metrics_wait_for_room(tmp_path):
    metrics = Metrics(tmp_path / "m.jsonl", 0)
    metrics.file = NearlyFull(metrics.file, 20)
    for step in range(1, 4):
        metrics.write(step=step)
    metrics.file.room = 5
    metrics.write(step=4)
    metrics.file.room = 1000
    metrics.write(step=5)
    metrics.close()
    assert [line["step"] for line in lines(tmp_path / "m.jsonl")] == [1, 2, 3, 4, 5]
    metrics = Metrics(tmp_path / "m.jsonl", 5)
    metrics.file = NearlyFull(metrics.file, 0)
    metrics.write(step=6)
    with pytest.raises(UserError, match="last 1 lines could not be written"):
        metrics.close()


# Continuing only what is the same run


IDENTITY = {"global_batch": 8, "data": "96 images, names 1234"}


def saved_run(tmp_path: Path, **settings) -> tuple[RunFolder, train.Settings]:
    made_by = train.Settings(**settings)
    run = RunFolder(tmp_path / "run", 2)
    run.begin(0, 10)
    content = {
        "model": {},
        "optimizer": {},
        "scaler": {},
        "step": 3,
        "settings": dataclasses.asdict(made_by),
        "identity": IDENTITY,
        "versions": about.versions(),
        "retries": 0,
        "guard": {},
        "bad_images": {},
    }
    run.save(content, {}, wait=True)
    return run, made_by


def test_settings_that_change_what_is_learnt_are_listed_and_refused(tmp_path, capsys):
    run, _ = saved_run(tmp_path)
    now = train.Settings(lambd=0.1, seed=3, log_every=7)
    with pytest.raises(UserError) as refused:
        resume.find_state(run, now, IDENTITY | {"global_batch": 16}, train.CHECKPOINT)
    for words in ("lambd: 0.005 -> 0.1", "seed: 0 -> 3", "global batch: 8 -> 16", "--resume_force"):
        assert words in str(refused.value)
    assert "log_every" not in str(refused.value)
    now.resume_force = True
    assert resume.find_state(run, now, IDENTITY | {"global_batch": 16}, train.CHECKPOINT)["step"] == 3
    assert "lambd: 0.005 -> 0.1" in capsys.readouterr().out


def test_the_best_encoder_is_the_one_that_the_checkpoint_knows(run, tmp_path):
    """Whatever lies in the folder: nothing, one of later steps that were lost, half a writing, junk, or a pipe."""
    weights = {"w": torch.arange(3.0)}
    run.keep_best(weights, {"step": 5, "value": 0.5})
    weights["w"] += 1  # training goes on
    run.save(state(5) | {"encoder_best": run.best}, {}, wait=True)
    known = run.newest(ours)["encoder_best"]
    later, junk = {"best.json": b"{}", "encoder_best.pt": b"later"}, {"best.json": b"\xff" * 30}
    for lies_there in ({}, later, junk, {"encoder_best.pt": b"half"}, {"best.json": None}):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        other = RunFolder(folder, 2)
        for name, content in lies_there.items():
            os.mkfifo(folder / name) if content is None else (folder / name).write_bytes(content)
        other.best = known
        other.save(state(6) | {"encoder_best": other.best}, {}, wait=True)
        assert torch_file.load(folder / "encoder_best.pt")["w"].tolist() == [0, 1, 2]
        assert json.loads((folder / "best.json").read_text()) == {"step": 5, "value": 0.5}


def test_a_folder_of_another_script_is_called_that(tmp_path):
    torch_file.save({"model": {}, "step": 3}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="holds a run of another script; choose another --output_dir"):
        RunFolder(tmp_path, 2).newest(train.CHECKPOINT.fits)
    assert (tmp_path / "checkpoint.pt").exists()


def test_another_optimizer_is_refused_even_by_force(tmp_path):
    run, _ = saved_run(tmp_path)
    with pytest.raises(UserError, match=r"optimizer: 'lars' -> 'adam'.*--init"):
        resume.find_state(run, train.Settings(optimizer="adam", resume_force=True), IDENTITY, train.CHECKPOINT)


def test_other_groups_of_the_optimizer_are_refused(monkeypatch):
    """As of a class token, which an earlier version put among the weights."""
    model = torch.nn.Linear(2, 2)
    model.cls_token = torch.nn.Parameter(torch.ones(1, 1, 2))
    optimizers = []
    for without_decay in (set(), optim.NO_DECAY):
        monkeypatch.setattr(optim, "NO_DECAY", without_decay)
        optimizers.append(optim.build("adam", optim.parameter_groups(model, 0.1, 0.1, 0.1), 0.1))
    state = {"model": model.state_dict(), "optimizer": optimizers[0].state_dict(), "scaler": {}}
    with pytest.raises(UserError, match=r"does not fit this model and optimizer .*--init to begin with its encoder"):
        resume.load_state(state, model, optimizers[1], torch.amp.GradScaler("cpu", enabled=False))
    resume.load_state(state, model, optimizers[0], torch.amp.GradScaler("cpu", enabled=False))


def test_mean_and_std_that_an_older_run_left_to_the_data_are_no_change(tmp_path):
    run, _ = saved_run(tmp_path)  # whose checkpoint says null
    now = train.Settings(mean=[0.5] * 3, std=[0.2] * 3)
    assert resume.find_state(run, now, IDENTITY, train.CHECKPOINT, ["mean", "std"])["step"] == 3
    with pytest.raises(UserError, match=r"mean: None -> \[0\.5, 0\.5, 0\.5\]"):
        resume.find_state(run, now, IDENTITY, train.CHECKPOINT, ["std"])  # the mean was set


def test_settings_that_do_not_may_change_and_are_told(tmp_path, capsys):
    run, _ = saved_run(tmp_path)
    now = train.Settings(workers=7, log_every=3, save_minutes=1, keep_checkpoints=3, timeout_minutes=1, max_steps=5)
    assert resume.find_state(run, now, IDENTITY, train.CHECKPOINT)["step"] == 3
    said = capsys.readouterr().out
    assert "workers: None -> 7" in said and "log_every: 10 -> 3" in said and "max_steps" not in said


def test_a_setting_that_the_checkpoint_is_too_old_to_know_was_at_its_default(tmp_path):
    run, settings = saved_run(tmp_path)
    path = run.folder / "checkpoint.pt"
    state = torch_file.load(path)
    del state["settings"]["vertical_flip"]
    torch_file.save(state, path)
    assert resume.find_state(run, settings, IDENTITY, train.CHECKPOINT)["step"] == 3
    settings.vertical_flip = 0.5
    with pytest.raises(UserError, match=r"vertical_flip: 0\.0 -> 0\.5"):
        resume.find_state(run, settings, IDENTITY, train.CHECKPOINT)


def test_other_images_are_refused(tmp_path):
    run, settings = saved_run(tmp_path)
    with pytest.raises(UserError, match="data: '96 images, names 1234' -> '97 images, names 9'"):
        resume.find_state(run, settings, IDENTITY | {"data": "97 images, names 9"}, train.CHECKPOINT)


def test_other_versions_are_told(tmp_path, capsys, monkeypatch):
    run, settings = saved_run(tmp_path)
    monkeypatch.setattr(about, "versions", lambda: {"torch": "9.9"})
    assert resume.find_state(run, settings, IDENTITY, train.CHECKPOINT)["step"] == 3
    assert "-> 9.9" in capsys.readouterr().out


def test_a_checkpoint_of_another_script_is_refused(tmp_path):
    run = RunFolder(tmp_path / "run", 2)
    for content in ({"model": {}}, [1], dict.fromkeys(train.CHECKPOINT.contents, 1)):
        torch_file.save(content, tmp_path / "other.pt")
        with pytest.raises(UserError, match=r"other.pt: not a checkpoint of train.py \(expected"):
            resume.find_state(run, train.Settings(resume=str(tmp_path / "other.pt")), IDENTITY, train.CHECKPOINT)


# Words for people


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_json_for_people_is_json(value):
    assert json.loads(json_text(value)) == value


def test_rows_stand_on_one_line_and_words_are_left_alone():
    value = {"matrix": [[1, 2], [3, None]], "word": "[  5  ]", "words": ["a", "[\n 5\n]"]}
    text = json_text(value)
    assert json.loads(text) == value and "[1, 2]" in text and "[3, null]" in text
