"""When slurm/*.sbatch put their job back into the queue, with stand-ins for Slurm's programs."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import pytest
from cluster import wait_for

ROOT = Path(__file__).resolve().parents[2]
SCONTROL = """#!/usr/bin/env bash
case $1-$2 in
  show-hostnames) printf '%s\\n' n7 n8 ;;
  show-job) cat "$FAKE/job" ;;
  requeue-*) echo "$2" >>"$FAKE/requeued"; [ ! -e "$FAKE/refuse" ] ;;
esac
"""
SRUN = """#!/usr/bin/env bash
printf '%s\\0' "$@" >"$FAKE/arguments"
source "$FAKE/body"
"""


@dataclass
class Fake:
    """A job of a Slurm that is not there; `run` is what srun does, in bash."""

    folder: Path
    run: str = ""
    state: str = "RUNNING"
    preempted: str = "None"
    restarts: int = 0
    name: str = "name"
    log: int | TextIO = subprocess.PIPE

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen:
        for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o755)
        (self.folder / "body").write_text(self.run)
        (self.folder / "job").write_text(
            f"JobId=7 JobName={self.name}\n   JobState={self.state} Reason=None\n"
            f"   PreemptEligibleTime=2030-01-01T00:00:00 PreemptTime={self.preempted}\n"
        )
        path = os.pathsep.join([str(self.folder), str(Path(sys.executable).parent), os.environ["PATH"]])
        slurm = {"SLURM_JOB_ID": "64321", "SLURM_JOB_NODELIST": "n[7-8]", "SLURM_JOB_NUM_NODES": "2"}
        slurm |= {"SLURM_RESTART_COUNT": str(self.restarts)} if self.restarts else {}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        return subprocess.Popen(
            ["bash", ROOT / "slurm" / script, *arguments],
            cwd=ROOT,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=kept | slurm | {"PATH": path, "FAKE": str(self.folder)} | environment,
        )

    def end(self, process: subprocess.Popen) -> str:
        """What the batch script printed until it ended by itself."""
        try:
            return process.communicate(timeout=300)[0]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def requeued(self) -> list[str]:
        path = self.folder / "requeued"
        return path.read_text().split() if path.exists() else []

    def arguments(self) -> list[str]:
        return (self.folder / "arguments").read_text().split("\0")[:-1]


def leaves(folder: Path, state: str, saved_step: int, exit_status: int) -> str:
    """What a run does that leaves this status, in bash."""
    status = json.dumps({"state": state, "step": 90, "saved_step": saved_step, "pid": os.getpid()})
    return f"echo '{status}' >{shlex.quote(str(folder / 'status.json'))}; exit {exit_status}"


AWAY = "2030-01-01T00:00:00"
NOTHING = ""  # the run writes no status


@pytest.mark.parametrize(
    "left, job, requeued, exit_status, words",
    [
        (("finished", 90, 0), {}, False, 0, "finished at step 90"),
        (("finished", 90, 0), {"preempted": AWAY}, False, 0, "finished at step 90"),
        (("finished", 90, 1), {}, False, 0, "finished at step 90"),
        (("preempted", 80, 0), {}, True, 0, "requeued: asked to stop, saved at step 80"),
        (("preempted", 80, 1), {}, True, 0, "requeued: asked to stop, saved at step 80"),
        (("preempted", 40, 0), {}, False, 1, "not requeued: stopped at step 40 and began at 40"),
        (("preempted", 40, 1), {"preempted": AWAY}, True, 0, "requeued: Slurm wants the nodes"),
        (("failed", 80, 1), {}, False, 1, "not requeued: the run did not stop because it was asked to"),
        (("failed", 80, 1), {"preempted": AWAY}, True, 0, "requeued: Slurm wants the nodes"),
        (
            ("running", 80, 1),
            {},
            False,
            1,
            "asked to (its state: running)",
        ),
        (NOTHING, {}, False, 1, "not requeued: the run did not stop because it was asked to (its state: none)"),
        (NOTHING, {"preempted": AWAY}, True, 0, "requeued: Slurm wants the nodes"),
        (("preempted", 80, 1), {"state": "COMPLETING"}, False, 1, "Slurm itself ends this job (COMPLETING)"),
        (("preempted", 80, 1), {"state": "CANCELLED", "preempted": AWAY}, False, 1, "Slurm itself ends this job"),
        (("preempted", 80, 1), {"restarts": 199}, True, 0, "requeued: asked to stop"),
        (("preempted", 80, 1), {"restarts": 200}, False, 1, "restarted 200 times is enough"),
        (("preempted", 80, 1), {"restarts": 200, "preempted": AWAY}, False, 1, "restarted 200 times is enough"),
        (("preempted", 80, 1), {"name": "a JobState=CANCELLED b"}, True, 0, "requeued: asked to stop"),
        (("failed", 80, 1), {"name": "a PreemptTime=2030"}, False, 1, "its state: failed"),
    ],
)
def test_a_run_is_requeued_only_if_it_was_asked_to_stop_and_gained_a_step(
    tmp_path, left, job, requeued, exit_status, words
):
    (tmp_path / "status.json").write_text(json.dumps({"state": "preempted", "saved_step": 40}))
    fake = Fake(tmp_path, leaves(tmp_path, *left) if left else "exit 1", **job)
    process = fake.start("train.sbatch", "--output_dir", str(tmp_path))
    said = fake.end(process)
    assert (fake.requeued(), process.returncode) == (["64321"] if requeued else [], exit_status), said
    assert words in said.splitlines()[-1]


@pytest.mark.parametrize("state", ["finished", "running"])
def test_a_status_of_an_earlier_start_is_not_taken_for_this_ones(tmp_path, state):
    """The run ends before it has a folder, for example because of a misspelt setting."""
    (tmp_path / "status.json").write_text(json.dumps({"state": state, "saved_step": 40}))
    fake = Fake(tmp_path, "exit 1")
    process = fake.start("train.sbatch", "--output_dir", str(tmp_path))
    said = fake.end(process)
    assert process.returncode == 1 and "(its state: none)" in said and fake.requeued() == []


@pytest.mark.parametrize("script", ["train", "finetune"])
def test_the_first_start_needs_no_folder_and_one_step(tmp_path, script):
    run = tmp_path / "runs" / "new"
    fake = Fake(tmp_path, f"mkdir -p '{run}'; {leaves(run, 'preempted', 1, 0)}")
    fake.end(fake.start(f"{script}.sbatch", f"--output_dir={run}"))
    assert fake.requeued() == ["64321"]


def test_a_run_that_never_gained_a_step_is_not_requeued(tmp_path):
    fake = Fake(tmp_path, leaves(tmp_path, "preempted", 0, 0))
    fake.end(fake.start("train.sbatch", f"--output_dir={tmp_path}"))
    assert fake.requeued() == []


@pytest.mark.parametrize("broken, words", [("requeue", "scontrol could not requeue"), ("job", "cannot ask Slurm")])
def test_a_scontrol_that_fails_is_named_and_the_exit_status_says_so(tmp_path, broken, words):
    fake = Fake(tmp_path, leaves(tmp_path, "preempted", 80, 0))
    if broken == "requeue":
        (tmp_path / "refuse").touch()
    else:
        fake.run = f"rm '{tmp_path}/job'; {fake.run}"
    process = fake.start("train.sbatch", "--output_dir", str(tmp_path))
    said = fake.end(process)
    assert process.returncode == 1 and words in said.splitlines()[-1] and "submit it again" in said


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_to_the_batch_script_stops_the_run_by_its_stop_file(tmp_path, number):
    """Also one that removes the first file, as it does while it is starting."""
    run = tmp_path / "run"
    stop = f"until [ -e '{run}/stop' ]; do sleep 0.05; done; rm '{run}/stop'"
    fake = Fake(tmp_path, f"mkdir '{run}'; {stop}; {stop}; {leaves(run, 'preempted', 80, 0)}")
    process = fake.start("train.sbatch", "--output_dir", str(run))
    wait_for(run.exists, "the run", 30)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(number)
    said = fake.end(process)
    assert fake.requeued() == ["64321"] and process.returncode == 0, said
    assert "asking the run to save and stop" in said and not (run / "stop").exists()


def test_a_log_on_a_full_disk_decides_nothing(tmp_path):
    run = tmp_path / "run"
    stop = f"until [ -e '{run}/stop' ]; do sleep 0.05; done"
    with open("/dev/full", "w") as log:
        fake = Fake(tmp_path, f"mkdir '{run}'; {stop}; {leaves(run, 'preempted', 80, 0)}", log=log)
        process = fake.start("train.sbatch", "--output_dir", str(run))
        wait_for(run.exists, "the run", 30)
        process.send_signal(signal.SIGUSR1)
        fake.end(process)
    assert fake.requeued() == ["64321"] and process.returncode == 0


@pytest.mark.parametrize("script", ["train", "finetune"])
def test_arguments_reach_the_script_as_they_were_written(tmp_path, script):
    run = tmp_path / "a  run $(touch PWNED) `touch PWNED` *\n'\""
    run.mkdir()
    words = ["--output-dir", str(run), "--encoder_kwargs", "{width: 8}", "--data_dir", "$(touch PWNED); *", ""]
    fake = Fake(tmp_path, leaves(run, "finished", 90, 0), restarts=3)
    process = fake.start(f"{script}.sbatch", *words, SLURM_GPUS_ON_NODE="4", SLURM_CPUS_PER_TASK="9")
    said = fake.end(process)
    assert fake.arguments() == [
        "--ntasks=2",
        "--ntasks-per-node=1",
        "--cpus-per-task=9",
        "python",
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc_per_node=4",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=n7:14321",
        "--rdzv_id=64321.3",
        f"{script}.py",
        *words,
    ]
    assert "finished at step 90" in said and not (ROOT / "PWNED").exists(), said


def test_without_gpus_there_is_one_process_a_node(tmp_path):
    fake = Fake(tmp_path, "exit 0")
    fake.end(fake.start("evaluate.sbatch", "--model_path", "runs/x"))
    assert "--nproc_per_node=1" in fake.arguments() and fake.arguments()[-3:] == [
        "evaluate.py",
        "--model_path",
        "runs/x",
    ]


def test_a_run_without_output_dir_is_refused_before_it_starts(tmp_path):
    fake = Fake(tmp_path, "exit 0")
    process = fake.start("train.sbatch", "--dataset", "shapes")
    said = fake.end(process)
    assert process.returncode == 2 and "error: no --output_dir" in said and not (tmp_path / "arguments").exists()


@pytest.mark.parametrize(
    "exit_status, job, requeued, words",
    [
        (0, {}, False, "finished"),
        (0, {"preempted": AWAY}, False, "finished"),
        (1, {}, False, "not requeued: see above"),
        (1, {"preempted": AWAY}, True, "requeued: Slurm wants the nodes"),
        (1, {"preempted": AWAY, "restarts": 200}, False, "is enough"),
        (1, {"state": "COMPLETING"}, False, "Slurm itself ends this job"),
    ],
)
def test_an_evaluation_is_requeued_only_if_slurm_preempted_it(tmp_path, exit_status, job, requeued, words):
    fake = Fake(tmp_path, f"exit {exit_status}", **job)
    process = fake.start("evaluate.sbatch", "--model_path", "runs/x")
    said = fake.end(process)
    assert fake.requeued() == (["64321"] if requeued else []) and words in said.splitlines()[-1]
    assert process.returncode == (0 if requeued else exit_status)


def test_shellcheck_has_no_objections():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed here")
    files = [*(ROOT / "slurm").iterdir()]
    done = subprocess.run(["shellcheck", "--external-sources", *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and len(files) >= 3, done.stdout
