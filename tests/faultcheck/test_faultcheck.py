"""The check that users run on their own machine: it passes where all is well, and says so where it is not."""

import os
import random
import sys

import pytest
import torch

from ssl.checkpoints import torch_file
from ssl.errors import UserError
from ssl.faultcheck import __main__ as faultcheck
from ssl.faultcheck import small_run


def check(monkeypatch, *arguments, trials=None) -> None:
    monkeypatch.setattr(sys, "argv", ["faultcheck", *map(str, arguments)])
    if trials is not None:
        monkeypatch.setattr(faultcheck, "trials", lambda kills, chance: trials)
    faultcheck.main()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--processes", 3], "processes: 3 is none of 1, 2, 4, 8"),
        (["--kills", 0], "kills: 0 is not in 1..48"),
        (["--kills", 100], "kills: 100 is not in"),
    ],
)
def test_wrong_arguments_are_named(monkeypatch, tmp_path, arguments, words):
    with pytest.raises(UserError, match=words):
        check(monkeypatch, "--output_dir", tmp_path / "new", *arguments)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("device", "gpus", "expected"), [("auto", 0, 2), ("auto", 1, 1), ("cuda", 1, 1), ("cpu", 1, 2), ("auto", 4, 2)]
)
def test_one_gpu_has_one_process(monkeypatch, tmp_path, device, gpus, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(sys, "argv", ["faultcheck", "--output_dir", str(tmp_path / "new"), "--device", device])
    assert faultcheck.parse().processes == expected


def test_a_folder_that_is_there_is_left_alone(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="exists already; name a new folder"):
        check(monkeypatch, "--output_dir", tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="output_dir: cannot write to"):
        check(monkeypatch, "--output_dir", tmp_path / "file" / "new")


@pytest.mark.slow
def test_trials_end_in_the_undisturbed_weights_and_a_broken_promise_is_seen(monkeypatch, tmp_path, capsys):
    chance = random.Random(0)

    def broken(run) -> str:
        run.finished()
        state = torch_file.load(run.folder / "checkpoint.pt")
        weight = next(iter(state["model"].values()))
        weight[(0,) * weight.ndim] += 1e-6
        torch_file.save(state, run.folder / "checkpoint.pt")
        return "a weight that is a little off"

    # NCCL makes a file in shared memory when it begins. A disk that is full has room for it.
    (tmp_path / "begins.py").write_text(
        "import runpy, sys, tempfile\n"
        "tempfile.TemporaryFile().truncate(9_637_888)\n"
        f"sys.path[0] = {str(small_run.TRAIN.parent)!r}\n"
        f"runpy.run_path({str(small_run.TRAIN)!r}, run_name='__main__')\n"
    )

    def disk_full(run) -> str:
        run.script = tmp_path / "begins.py"
        return all_trials["disk full"](run)

    all_trials = faultcheck.trials(1, chance)
    trials = {"ranks killed": all_trials["ranks killed"], "disk full": disk_full, "broken": broken}
    with pytest.raises(UserError, match=r"1 of 3 trials failed; their runs are in .*new"):
        check(monkeypatch, "--output_dir", tmp_path / "new", "--processes", 1, "--device", "cpu", trials=trials)
    said = capsys.readouterr().out
    assert "ranks killed: identical, 1 times SIGKILL of a rank" in said
    assert "disk full: identical, full after the save of step" in said
    assert "broken: DIFFERENT, a weight that is a little off" in said
    assert "64 MiB written and flushed in" in said
    assert sorted(os.listdir(tmp_path / "new")) == ["broken", "broken.log", "images", "undisturbed", "undisturbed.log"]


@pytest.mark.slow
def test_a_run_that_cannot_start_or_hangs_is_an_error_not_a_traceback(monkeypatch, tmp_path):
    run = small_run.SmallRun(tmp_path / "run", tmp_path / "nowhere", 1)
    with pytest.raises(UserError, match=r"the run did not finish: train.py: error: .*nowhere"):
        run.finished()
    monkeypatch.setattr(small_run, "PATIENCE", 0.5)
    began = run.launch()
    with pytest.raises(UserError, match=r"a launch did not end within 0.5 s"):
        run.finish(began)
    assert began.returncode is not None
