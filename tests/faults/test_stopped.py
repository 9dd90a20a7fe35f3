"""A run that is told to stop leaves by itself, saved, and continues to the weights of one that was not told."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import options, tiny
from terminal import interrupt
from waiting import wait_for_words

from ssl import files
from ssl.checkpoints import torch_file
from ssl.faultcheck.small_run import STEPS, TRAIN, SmallRun, descendants, gone, kill, ranks

pytestmark = pytest.mark.slow
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
EX_TEMPFAIL = 75


def stop(run: SmallRun, process: subprocess.Popen, victim: int, number: int) -> tuple[int, dict]:
    """Send the signal, wait until all of this launch are gone; (exit status, status.json)."""
    everybody = [process.pid, *descendants(process.pid)]
    kill(victim, number)
    code = run.finish(process)
    gone(everybody)
    status = run.status()
    assert status["state"] == "preempted", (status, run.last_words())
    assert status["saved_step"] == status["step"] == torch_file.load(run.folder / "checkpoint.pt")["step"]
    return code, status


@pytest.mark.parametrize("whom", ["plain python", "torchrun", "one rank"])
def test_every_signal_saves_and_leaves(new_run, undisturbed, chance, whom):
    processes = 1 if whom == "plain python" else 2
    launcher = ["--signals-to-handle=SIGTERM,SIGINT,SIGUSR1"] if whom == "torchrun" else []
    run, step = new_run(processes, launcher=launcher, options={"max_steps": STEPS}), 0
    for number in SIGNALS:
        process = run.launch()
        assert run.wait_for_step(step + chance.randint(1, 3), process), run.last_words()
        victim = chance.choice(ranks(process)) if whom == "one rank" else process.pid
        code, status = stop(run, process, victim, number)
        assert status["reason"] == number.name and step < status["step"] < STEPS
        assert code == {"plain python": EX_TEMPFAIL, "torchrun": 1, "one rank": 0}[whom]
        step = status["step"]
    assert "DataLoader worker" not in run.printed() and "workers died" not in run.printed()
    run.finished()
    assert run.digest() == undisturbed(processes, STEPS).digest()


def test_when_torchrun_dies_its_ranks_save_and_leave(new_run, undisturbed, chance):
    """SIGKILL, and SIGUSR1, of which torchrun dies where it was not told to pass it on."""
    run, step = new_run(options={"max_steps": STEPS}), 0
    for number in (signal.SIGKILL, signal.SIGUSR1):
        process = run.launch()
        assert run.wait_for_step(step + chance.randint(1, 3), process), run.last_words()
        code, status = stop(run, process, process.pid, number)
        assert code == -number and status["reason"] == "SIGTERM"
        step = status["step"]
    run.finished()
    assert run.digest() == undisturbed(2, STEPS).digest()


def test_loader_workers_outlive_the_signal_that_ends_a_run(new_run, altered, chance):
    """torchrun signals the whole process group of a rank. The control: workers that heed it end the run."""
    alone = "from ssl.data import loader\nloader.RESTARTS = 0\n"
    heed = "import signal\nheed = signal.pthread_sigmask\n"
    heed += "loader.begin_worker = lambda number: heed(signal.SIG_UNBLOCK, [signal.SIGTERM])\n"
    for name, first in (("run", alone), ("control", alone + heed)):
        run = new_run(2, name, script=altered(first, slowly=True), options={"max_steps": STEPS})
        process = run.launch()
        step = chance.randint(2, 6)
        assert run.wait_for_step(step, process), run.last_words()
        for rank in ranks(process):
            for worker in descendants(rank):
                kill(worker, signal.SIGTERM)
        if name == "run":
            assert run.wait_for_step(step + 8, process), run.last_words()  # more than workers have read ahead
            stop(run, process, process.pid, signal.SIGTERM)
        else:
            run.finish(process)
            assert run.status()["state"] == "failed" and "loader processes were killed" in run.status()["reason"]


def test_ctrl_c_while_workers_are_started_is_heard_once(new_run, undisturbed, altered):
    """A worker has the handlers of its trainer until it has begun. Heard by both, Ctrl-C would end the run unsaved."""
    signalled = "import os, signal\nfrom ssl.data import loader\nbegin = loader.begin_worker\n"
    signalled += "loader.begin_worker = lambda number: (os.kill(os.getpid(), signal.SIGINT), begin(number))"
    run = new_run(1, script=altered(signalled))
    run.finished()
    assert "SIGINT" not in run.printed() and run.digest() == undisturbed(1).digest()


@pytest.mark.parametrize("processes", [1, 2])
def test_the_file_stop_is_a_signal_too(new_run, undisturbed, altered, processes):
    run = new_run(processes, script=altered(slowly=True), options={"max_steps": STEPS})
    process = run.launch()
    assert run.wait_for_step(2, process), run.last_words()
    (run.folder / "stop").touch()
    assert run.finish(process) == (EX_TEMPFAIL if processes == 1 else 0)
    status = run.status()
    assert (status["state"], status["reason"]) == ("preempted", "the file named stop")
    assert status["saved_step"] == status["step"] < STEPS and not (run.folder / "stop").exists()
    run.script = TRAIN
    run.finished()
    assert run.digest() == undisturbed(processes, STEPS).digest()


def test_a_signal_while_data_is_looked_for_is_not_lost(new_run, altered):
    run = new_run(
        1,
        script=altered(
            "import time\nfrom ssl.sources import datasets\nload = datasets.load_as\n"
            "datasets.load_as = lambda *a, **k: (print('looking', flush=True), time.sleep(2), load(*a, **k))[2]"
        ),
    )
    process = run.launch()
    wait_for_words(run, "looking", process)
    assert stop(run, process, process.pid, signal.SIGTERM) == (EX_TEMPFAIL, run.status())
    assert run.status()["step"] == 1


def test_a_second_interrupt_is_immediate_and_costs_no_checkpoint(new_run, altered):
    slow = "import time\nfrom ssl.checkpoints import torch_file\nsave = torch_file.rotate\n"
    slow += "torch_file.rotate = lambda state, *rest: (time.sleep(99 if state['step'] else 0), save(state, *rest))"
    run = new_run(1, script=altered(slow), options={"save_steps": 1000})
    process = run.launch()
    assert run.wait_for_step(2, process), run.last_words()
    everybody = [process.pid, *descendants(process.pid)]
    kill(process.pid, signal.SIGINT)
    wait_for_words(run, "SIGINT: the run ends after the next step and saves; again: at once", process)
    kill(process.pid, signal.SIGINT)
    assert run.finish(process) == 128 + signal.SIGINT
    gone(everybody)
    assert torch_file.load(run.folder / "checkpoint.pt")["step"] == 0


def test_to_run_a_finished_run_again_changes_nothing(new_run):
    run = new_run(2)
    run.finished()
    content = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    run.finished()
    again = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    assert content.keys() == again.keys()
    assert {name for name in content if content[name] != again[name]} <= {"lock", "status.json"}  # when, and by whom
    assert run.status() | {"state": "finished", "step": 16, "saved_step": 16} == run.status()


def labelled(images: Path, folder: Path) -> Path:
    """`folder` with the images in two classes."""
    for i, path in enumerate(sorted(images.iterdir())):
        target = folder / "ab"[i % 2] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    return folder


@pytest.mark.parametrize("launcher, number", [([], signal.SIGINT), (["torchrun"], signal.SIGTERM)])
def test_judging_can_be_interrupted(undisturbed, tmp_path, chance, launcher, number):
    """It has no state: nothing half written, nobody left."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and their children, ignore it
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"] if launcher else []
    (tmp_path / "results.json").write_text("{}")
    labelled(undisturbed(1).images, tmp_path / "data")
    command = [
        sys.executable,
        *torchrun,
        TRAIN.with_name("evaluate.py"),
        *options(model_path=undisturbed(1).folder, data_dir=tmp_path / "data", output_dir=tmp_path),
        *options(protocol="linear", linear_epochs=100_000, linear_batch=8, workers=1),
    ]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            list(map(str, command)), stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    everybody = [process.pid]
    try:
        while "linear  loss" not in (tmp_path / "log").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        time.sleep(chance.random())
        everybody += descendants(process.pid)
        assert len(everybody) >= 2
        kill(process.pid, number)
        assert process.wait(300) != 0
        gone(everybody)
    except BaseException:
        for pid in everybody:  # an evaluation of hours would slow the tests that follow
            kill(pid, signal.SIGKILL)
        raise
    assert (tmp_path / "results.json").read_text() == "{}"
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_ctrl_c_on_a_terminal_leaves_whole_lines(images, altered, tmp_path):
    words = tiny(data_dir=images, output_dir=tmp_path / "run", epochs=500, max_steps=500)
    code, screen = interrupt([str(altered(slowly=True)), *words], r"[1-9]\d*/500", tmp_path)
    assert code == EX_TEMPFAIL and files.json_object(tmp_path / "run" / "status.json")["reason"] == "SIGINT"
    assert not [line for line in screen if "^" in line]
    said = screen.index("SIGINT: the run ends after the next step and saves; again: at once")
    stopped = next(i for i, line in enumerate(screen) if line.startswith("stopped by SIGINT at step"))
    assert said < stopped and screen[-1] == "" and all("step/s" not in line for line in screen[stopped:])


def test_ctrl_c_in_an_evaluation_is_one_line(undisturbed, tmp_path):
    data = labelled(undisturbed(1).images, tmp_path / "data")
    words = options(model_path=undisturbed(1).folder, data_dir=data, output_dir=tmp_path / "new", protocol="linear")
    words += options(linear_epochs=10**6, linear_batch=8, workers=1)
    code, screen = interrupt([str(TRAIN.with_name("evaluate.py")), *words], "linear  loss", tmp_path)
    assert code == -signal.SIGINT and screen[-2:] == ["evaluate.py: interrupted", ""]
    assert not [line for line in screen if "^" in line or "Traceback" in line]
    assert not (tmp_path / "new").exists()
