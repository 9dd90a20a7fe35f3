"""Being asked to stop: in small processes of their own, since a signal has no other place."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAD = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import ssl
ssl.__path__ = [{str(ROOT / "ssl")!r}]
import os, signal, time
from pathlib import Path
from ssl import signals
from ssl.training import stopping
folder = Path(sys.argv[1])
"""
LOOP = """
requests = stopping.StopRequests(folder, patience=1)
print("listening", flush=True)
for step in range(10_000):
    requests.ask()
    time.sleep(0.01)
    asked = requests.answer()
    if asked:
        print(f"asked by {asked}", flush=True)
        break
"""


def start(source: str, folder: Path, **environment) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD + source, folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    assert process.stdout.readline() == "listening\n", process.communicate(timeout=300)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_answered_at_a_step(tmp_path, number):
    process = start(LOOP + "stopping.leave_preempted()", tmp_path)
    process.send_signal(number)
    printed, told = process.communicate(timeout=300)
    assert printed == f"asked by {number.name}\n" and process.returncode == 75
    assert told == f"{number.name}: the run ends after the next step and saves; again: at once\n"


def test_under_torchrun_leaving_politely_is_no_failure(tmp_path):
    process = start(LOOP + "stopping.leave_preempted()", tmp_path, TORCHELASTIC_RUN_ID="x")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == 0


def test_a_signal_is_heard_while_python_stands_still(tmp_path):
    """The main thread is inside a C function, as in a collective; a handler in Python would not run."""
    standing = "    (folder / str(step)).touch()\n    ctypes.PyDLL(None).usleep(900_000)\n"
    process = start("import ctypes\n" + LOOP.replace("    time.sleep(0.01)\n", standing), tmp_path)
    while not (tmp_path / "0").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=300)[0] == "asked by SIGTERM\n"
    assert not (tmp_path / "3").exists()


def test_the_file_stop_is_a_request_and_an_old_one_is_not(tmp_path):
    (tmp_path / "stop").touch()
    process = start(LOOP, tmp_path)
    assert not (tmp_path / "stop").exists()
    (tmp_path / "stop").touch()
    assert process.communicate(timeout=300)[0] == "asked by the file named stop\n" and process.returncode == 0
    assert not (tmp_path / "stop").exists()


AFTER = LOOP + "print('saving', flush=True)\ntime.sleep(60)\n"


@pytest.mark.parametrize(
    "before, then, immediate",
    [
        (signal.SIGINT, signal.SIGINT, True),  # somebody at a keyboard
        (signal.SIGTERM, signal.SIGINT, True),
        (signal.SIGTERM, signal.SIGTERM, False),  # Slurm's and torchrun's, the same one
        (None, signal.SIGTERM, False),  # after the file, a signal is the first
    ],
)
def test_a_second_signal_is_immediate_unless_it_is_the_first_again(tmp_path, before, then, immediate):
    process = start("stopping.ECHO = 300\n" + AFTER, tmp_path)
    process.send_signal(before) if before else (tmp_path / "stop").touch()
    assert process.stdout.readline().startswith("asked by ") and process.stdout.readline() == "saving\n"
    process.send_signal(then)
    if immediate:
        assert process.wait(300) == 128 + then
        assert f"{then.name} again: leaving at once" in process.stderr.read()
    else:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.kill()
    process.communicate()


def test_a_repeated_signal_is_immediate_after_a_while(tmp_path):
    process = start("stopping.ECHO = 0.5\n" + AFTER, tmp_path)
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() and process.stdout.readline()
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 128 + signal.SIGTERM
    process.communicate()


def test_a_second_signal_ends_the_process_although_nobody_can_be_told(tmp_path):
    """A terminal that is gone, a pipe that is closed: the thread that listens must not die of it."""
    process = start("sys.stderr.close()\n" + AFTER, tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "asked by SIGTERM\n" and process.stdout.readline() == "saving\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 128 + signal.SIGINT
    process.communicate()


PARENT = """
import subprocess, sys, threading, time
for _ in range(8):
    threading.Thread(target=time.sleep, args=(60,)).start()
child = subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1]])
time.sleep(60)
"""


def test_the_death_of_the_launcher_is_a_request_to_stop(tmp_path):
    """One request, although the kernel tells of each of its threads; and who does not leave by itself is ended."""
    source = "from ssl.signals import die_with_parent\ndie_with_parent(signal.SIGTERM)\nstopping.ORPHANED = 1\n" + (
        LOOP + "(folder / 'asked').write_text(asked)\ntime.sleep(60)\n"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", PARENT, tmp_path, HEAD + source], stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout.readline() == "listening\n"
    launcher.kill()
    assert launcher.stdout.read() == "asked by SIGTERM\n"  # returns when the child has gone and closed it
    assert (tmp_path / "asked").read_text() == "SIGTERM"
    launcher.wait()


ERROR = """
from ssl import errors
errors.PATIENCE = 0.5
with errors.one_line_errors("train.py"):
    requests = stopping.StopRequests(folder, patience=1)
    print("listening", flush=True)
    while not (folder / "error").exists():
        time.sleep(0.01)
    raise errors.UserError("of all ranks")
"""


@pytest.mark.parametrize("heard", [False, True])
def test_a_rank_that_comes_to_an_error_after_sigterm_lets_torchrun_end_it(tmp_path, heard):
    """Rank 0 has told the error, and torchrun ends the others. A rank that nothing ends has met it alone."""
    process = start(ERROR, tmp_path, RANK="1")
    if heard:
        process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    (tmp_path / "error").touch()
    assert process.wait(300) == 2
    assert time.monotonic() - began > (2.0 if heard else 0.5)
    assert process.communicate()[1] == "train.py: error: rank 1: of all ranks\n"


def test_a_loader_worker_is_deaf_to_all_but_its_trainers_end(tmp_path):
    source = """
requests = stopping.StopRequests(folder, patience=1)
child = os.fork()
if not child:
    signals.begin_worker(0)
    print("listening", flush=True)
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""
    process = start(source, tmp_path)
    (worker,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        os.kill(int(worker), number)
    time.sleep(0.2)
    assert Path(f"/proc/{worker}/stat").read_text().split()[2] == "S"
    process.kill()  # which heard none of them, or it would have said so
    assert process.communicate(timeout=300) == ("", "")  # returns when the worker has gone, too


def test_a_loader_worker_is_silent_where_the_trainer_breaks_off_the_handing_over_of_a_batch():
    source = """
import os, socket, sys
from multiprocessing import reduction, resource_sharer
from ssl.signals import begin_worker
reading, writing = os.pipe()
begin_worker(0)
handed = reduction.DupFd(writing)  # a thread waits for whoever takes the file
with socket.socket(socket.AF_UNIX) as trainer:
    trainer.connect(resource_sharer._resource_sharer._address)
os.write(handed.detach(), b"whole")
print(os.read(reading, 5).decode(), flush=True)
sys.excepthook(ValueError, ValueError("of the worker's own"), None)
"""
    ended = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout) == (0, "whole\n")
    assert ended.stderr == "ValueError: of the worker's own\n"


def test_a_loader_worker_that_begins_when_its_trainer_has_died_ends(tmp_path):
    source = """
import multiprocessing
trainer = os.getpid()
def begin():
    print("listening", flush=True)
    while os.getppid() == trainer:
        time.sleep(0.01)
    signals.begin_worker(0)
    time.sleep(300)
multiprocessing.get_context("fork").Process(target=begin).start()
time.sleep(300)
"""
    process = start(source, tmp_path)
    process.kill()
    assert process.communicate(timeout=100) == ("", "")  # returns when the worker has gone, too
