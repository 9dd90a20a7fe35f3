"""Who stands still is named, and a run with others that wait is ended."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from ssl.training.watchdog import Watchdog

ROOT = Path(__file__).resolve().parents[2]
HEAD = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import ssl
ssl.__path__ = [{str(ROOT / "ssl")!r}]
import os, signal, time
import torch.distributed as dist
from ssl.training.watchdog import Watchdog
folder, (rank, world, port) = sys.argv[1], map(int, sys.argv[2:])
if world > 1:
    store = dist.TCPStore("127.0.0.1", port, world, False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
def told(words):
    with open(folder + f"/told-{{rank}}", "w") as file:
        file.write(words)
"""


def run(source: str, folder: Path, world: int) -> list[subprocess.Popen]:
    """The processes, when all have ended; whoever stands still on purpose is killed then."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    store = dist.TCPStore("127.0.0.1", 0, world, is_master=True, wait_for_workers=False)  # outlives them, as torchrun's
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HEAD + source, folder, str(rank), str(world), str(store.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=env,
        )
        for rank in range(world)
    ]
    for process in processes[:1] + processes[2:]:
        process.wait(300)
    for process in processes[1:2]:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
    for process in processes:
        process.printed, process.told = process.communicate()
    return processes


TRAIN = """
watchdog = Watchdog(4.0, told)
for step in range(5):
    watchdog.beat(step, "reading data")
    if rank == 1 and step == 3:
        READING
    watchdog.beat(step, "computing")
    if rank == 1 and step == 3:
        COMPUTING
    while step == 3:
        time.sleep(0.1)  # the others wait in a collective
"""


STOP = "time.sleep(0.5); os.kill(os.getpid(), signal.SIGSTOP)"


@pytest.mark.parametrize(
    "reading, computing, words",
    [
        (STOP, "pass", "rank 1 gives no sign of life since step 3, reading data"),
        ("time.sleep(60)", "pass", "rank 1 is still at step 3, reading data"),
        ("pass", STOP, "rank 1 gives no sign of life since step 3, computing"),
    ],
)
def test_the_rank_that_others_wait_for_is_named_once(tmp_path, reading, computing, words):
    processes = run(TRAIN.replace("READING", reading).replace("COMPUTING", computing), tmp_path, world=3)
    assert [processes[0].returncode, processes[2].returncode] == [1, 1]
    expected = f"no progress for 4 s: {words}; the others wait at step 3, computing"
    assert (tmp_path / "told-0").read_text() == expected and not (tmp_path / "told-2").exists()
    assert expected in processes[0].told and "rank 0 stands here" in processes[0].told
    assert "time.sleep" not in processes[0].told and "line " in processes[0].told  # where: a traceback
    assert "no progress" not in processes[2].told


def test_a_rank_whose_own_heartbeat_is_late_still_names_the_one_that_hangs(tmp_path):
    deaf = "if rank == 0:\n    Watchdog._heartbeat = lambda self: None\n"
    processes = run(deaf + TRAIN.replace("READING", STOP).replace("COMPUTING", "pass"), tmp_path, world=2)
    words = "rank 1 gives no sign of life since step 3, reading data; the others wait at step 3, computing"
    assert processes[0].returncode == 1 and words in processes[0].told


def test_where_all_stand_that_is_what_is_said(tmp_path):
    source = TRAIN.replace("READING", "pass").replace("COMPUTING", "pass")
    run(source, tmp_path, world=2)
    assert (tmp_path / "told-0").read_text() == "no progress for 4 s: all ranks stand at step 3, computing"


def test_a_run_that_moves_or_has_ended_is_left_alone(tmp_path):
    source = """
watchdog = Watchdog(3.0, told)
for step in range(35):
    watchdog.beat(step, "computing")
    time.sleep(0.1)
watchdog.rest()
time.sleep(4)
dist.barrier()
print("end")
"""
    for process in run(source, tmp_path, world=2):
        assert (process.returncode, process.printed) == (0, "end\n")
    assert not list(tmp_path.glob("told-*"))


def test_what_is_told_may_hang_too(tmp_path):
    """The status goes to a disk that may be what hangs; the run ends all the same."""
    source = "told = lambda words: time.sleep(1000)\n" + TRAIN.replace("READING", "time.sleep(60)").replace(
        "COMPUTING", "pass"
    )
    assert run(source, tmp_path, world=3)[0].returncode == 1


def test_one_process_alone_is_told_and_goes_on(tmp_path):
    source = """
watchdog = Watchdog(1.0, told)
watchdog.beat(7, "reading data")
time.sleep(3)
watchdog.beat(8, "computing")
print("end")
"""
    (process,) = run(source, tmp_path, world=1)
    assert (process.returncode, process.printed) == (0, "end\n")
    assert process.told.count("no progress for 1 s: step 7, reading data; it stands here:") == 1
    assert not list(tmp_path.glob("told-*"))


def test_where_stderr_is_no_file_as_in_a_notebook_the_place_is_told_all_the_same(monkeypatch):
    monkeypatch.setattr(sys, "stderr", said := io.StringIO())
    watchdog = Watchdog(0.1, pytest.fail)
    watchdog.beat(7, "computing")
    until(lambda: watchdog.since is None)
    watchdog.rest()
    assert said.getvalue().startswith("no progress for 0 s: step 7, computing; it stands here:\nthread ")
    assert "\nthread MainThread\n" in said.getvalue()  # beside those that other tests have left
    assert f"  {__file__}, line " in said.getvalue() and ", in until\n" in said.getvalue()


def test_where_stderr_is_closed_the_watch_goes_on(monkeypatch):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    watchdog = Watchdog(0.1, pytest.fail)
    for step in (1, 2):
        watchdog.beat(step, "computing")
        until(lambda: watchdog.since is None)
    watchdog.rest()


def until(true) -> None:
    end = time.monotonic() + 300
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
