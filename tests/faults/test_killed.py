"""A run that is killed ends in the weights of one that was not, whoever is killed, and whenever."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssl.checkpoints import torch_file
from ssl.faultcheck.small_run import STEPS, SmallRun, descendants, gone, kill, ranks

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("SSL_KILLS", 8))  # of one run
SOON = (2, 8)  # steps between which most moments lie


def kill_one(run: SmallRun, process: subprocess.Popen, victim: int) -> None:
    """SIGKILL, and wait until everybody of this launch is gone."""
    everybody = [process.pid, *descendants(process.pid)]
    kill(victim, signal.SIGKILL)
    assert run.finish(process) != 0
    gone(everybody)


@pytest.mark.timeout(180 * (KILLS + 2))  # a start takes a minute and more on a busy core
def test_many_kills_in_one_run_leave_no_trace(new_run, chance):
    length = 6 * KILLS
    options = {"epochs": -(-length // 12), "max_steps": length}
    run, whole = (new_run(name=name, options=options) for name in ("run", "whole"))
    whole.finished()
    begins, lost = [], 0
    # Steps from a start to its kill: two are gained on average, and up to two lost: a checkpoint is due every third.
    distances = [1 + i % 5 for i in range(KILLS)]
    chance.shuffle(distances)
    for i, distance in enumerate(distances):
        process = run.launch()
        newest = torch_file.kept(run.folder)
        begins.append(torch_file.load(newest[0])["step"] if newest else 0)
        assert run.wait_for_step(min(begins[-1] + distance, length - 2), process), run.last_words()
        time.sleep(chance.random() * 0.05)
        kill_one(run, process, process.pid if i % 4 == 3 else chance.choice(ranks(process)))
        lost += run.step() - torch_file.load(torch_file.kept(run.folder)[0])["step"]
    run.finished()
    print(f"continued at steps {begins}, {lost} steps were lost and trained again")
    assert len(set(begins)) > KILLS // 4 and lost > 0  # or the kills would have tested nothing
    assert run.digest() == whole.digest()


def test_torchrun_restarts_ranks_itself_where_its_store_is_not_shared(new_run, undisturbed, chance):
    variables = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    run = new_run(launcher=["--max_restarts=3"], environment=variables, options={"max_steps": STEPS})
    process, before = run.launch(), set()
    for step in (3, 7, 11):
        assert run.wait_for_step(step, process), run.last_words()
        victim = chance.choice([pid for pid in ranks(process) if pid not in before])
        before |= set(ranks(process))
        run.before = run._mark()
        kill(victim, signal.SIGKILL)
    assert run.finish(process) == 0 and run.status()["state"] == "finished"
    assert run.digest() == undisturbed(2, STEPS).digest()


NO_REHEARSAL = "from ssl.training import forward\nforward.rehearse = lambda *arguments: None"


def test_four_processes_continue_to_the_last_bit(new_run, undisturbed, altered):
    """With three processes and more the order of DDP's sums matters: see forward.rehearse."""
    run, control = new_run(4), new_run(4, "control", script=altered(NO_REHEARSAL))
    run.options["max_steps"] = 7
    run.finished()
    shutil.copytree(run.folder, control.folder)
    run.options["max_steps"] = control.options["max_steps"]
    for one in (run, control):
        one.finished()
    assert run.digest() == undisturbed(4).digest()
    assert control.digest() != undisturbed(4).digest()


SAVER = """
import json, os, random, signal, sys, time
sys.path.insert(0, {root!r})
import ssl
ssl.__path__ = [{root!r} + "/ssl"]
from pathlib import Path
import torch
from ssl.checkpoints import torch_file
torch.set_num_threads(1)
folder, save = Path(sys.argv[1]), {save}
chance = random.Random(sys.argv[2])
state = {{"weights": torch.randn(500_000), "step": 0}}
for trial in range(25):
    child = os.fork()
    if not child:
        for state["step"] in range(1_000_000 * trial, 1_000_000 * (trial + 1)):
            save(state, folder)
    while not torch_file.kept(folder):  # a machine may be slow
        time.sleep(0.001)
    time.sleep(0.05 + chance.random() * 0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = []
    for path in torch_file.kept(folder):
        try:
            found.append(torch_file.load(path)["step"])
        except ValueError:
            found.append(None)
    print(json.dumps(found))
"""


def saves_under_fire(folder: Path, save: str, chance) -> list[list]:
    """25 times: what the checkpoints hold, newest first, after a process that did nothing but save was killed."""
    folder.mkdir()
    source = SAVER.format(root=str(Path(torch_file.__file__).parents[2]), save=save)
    done = subprocess.run(
        [sys.executable, "-c", source, folder, str(chance.random())], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_kill_in_the_midst_of_a_save_leaves_whole_checkpoints(tmp_path, chance):
    found = saves_under_fire(tmp_path / "ours", "lambda state, folder: torch_file.rotate(state, folder, 2)", chance)
    assert len(found) == 25
    assert all(steps and None not in steps and steps == sorted(steps, reverse=True) for steps in found), found
    direct = saves_under_fire(tmp_path / "direct", "lambda s, folder: torch.save(s, folder / 'checkpoint.pt')", chance)
    assert [None] in direct  # the control: written straight to its name, a killed save is a lost checkpoint


def test_a_killed_loader_worker_is_started_again(new_run, undisturbed, chance):
    run = new_run(options={"workers": 2, "max_steps": STEPS})
    process = run.launch()
    assert run.wait_for_step(chance.randint(*SOON), process)
    workers = descendants(chance.choice(ranks(process)))
    kill(chance.choice(workers), signal.SIGKILL)
    assert run.finish(process) == 0, run.last_words()
    assert "loader workers died; new ones are started" in run.printed()
    assert run.digest() == undisturbed(2, STEPS).digest()


def test_a_rank_that_hangs_is_named_and_the_job_ended(new_run, chance):
    run = new_run(options={"timeout_minutes": 0.2, "max_steps": STEPS})
    process = run.launch()
    assert run.wait_for_step(chance.randint(*SOON), process)
    everybody = [process.pid, *descendants(process.pid)]
    rank_1 = next(pid for pid in ranks(process) if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
    kill(rank_1, signal.SIGSTOP)
    assert run.finish(process) != 0
    gone(everybody)
    status = run.status()
    assert status["state"] == "failed"
    told = re.fullmatch(
        r"no progress for 12 s: rank 1 gives no sign of life since step (\d+), .*; "
        r"the others wait at step (\d+), computing",
        status["reason"],
    )
    assert told and int(told[1]) <= int(told[2]) == run.step(), status
    assert status["reason"] in run.printed() and "rank 0 stands here" in run.printed()
    assert torch_file.load(torch_file.kept(run.folder)[0])["step"] == status["saved_step"]
