"""slurm/*.sbatch on a real Slurm of two nodes: preempted, at the time limit, cancelled, failed."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cluster
import pytest
from cluster import output, wait_for

from ssl.faultcheck.small_run import SmallRun, make_images

ROOT = Path(__file__).resolve().parents[2]
STEPS = 40
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
PATIENCE = 180  # seconds for whatever a job has to do next
pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory):
    reason = cluster.why_not()
    if reason:
        pytest.skip(reason)
    with cluster.running(tmp_path_factory.mktemp("slurm")), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # for slow.py
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Class folders of small pictures."""
    folder = tmp_path_factory.mktemp("images")
    for i, path in enumerate(sorted(make_images(folder).iterdir())):
        (folder / f"class{i % 3}").mkdir(exist_ok=True)
        path.rename(folder / f"class{i % 3}" / path.name)
    return folder


def settings(run: SmallRun) -> list[str]:
    """Arguments of train.py for `run`: steps enough to be disturbed in, small ones."""
    values = {
        "config": ROOT / "configs" / "barlow_twins_cifar10.yaml",
        "data_dir": run.images,
        "output_dir": run.folder,
        "image_size": 32,
        "encoder": "slow.SlowResNet",
        "encoder_kwargs": "{width: 8, stages: 2}",
        "projector": "64-64",
        "batch_size": 4,
        "epochs": 5,
        "max_steps": STEPS,
        "warmup_epochs": 1,
        "log_every": 1,
        "workers": 1,
        "device": "cpu",
        "amp": "off",
    }
    return [str(word) for name, value in values.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory) -> SmallRun:
    """The run as two processes of one torchrun make it."""
    run = SmallRun(tmp_path_factory.mktemp("undisturbed") / "run", images)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run([*launch, ROOT / "train.py", *settings(run)], check=True, capture_output=True, cwd=ROOT)
    return run


@dataclass
class Job:
    """A job of Slurm's: what Slurm and its log say of it."""

    id: str
    log: Path

    def says(self, name: str) -> str:
        """A field of `scontrol show job`, such as JobState."""
        words = output("scontrol", "--oneliner", "show", "job", self.id).split()
        return dict(word.partition("=")[::2] for word in words).get(name, "")  # Slurm may not answer at once

    def wait_for(self, condition, what: str) -> None:
        try:
            wait_for(condition, what, PATIENCE)
        except TimeoutError as error:
            raise AssertionError(
                f"{error}; the job is {self.says('JobState')}, its log: {self.log.read_text()}"
            ) from None

    def ends(self) -> str:
        self.wait_for(lambda: self.says("JobState") in ENDS, "the job's end")
        return self.says("JobState")

    def start_again(self) -> None:
        """Have a requeued job start in some seconds, not in two minutes; a node refuses it in the second of its end."""
        self.wait_for(lambda: self.says("JobState") == "PENDING", "the job in the queue again")
        subprocess.run(["scontrol", "update", f"JobId={self.id}", "StartTime=now+3", "TimeLimit=10"], check=True)


def submit(log: Path, *words) -> Job:
    """`words`: options of sbatch, the batch script, its arguments."""
    command = ["sbatch", "--parsable", f"--output={log}", *map(str, words)]
    return Job(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip(), log)


def preempt(job: Job) -> None:
    """Submit a job that wants the same nodes and is more important; it runs before the other starts again."""
    other = submit(job.log.with_name("other.txt"), "--partition=high", "--nodes=2", "--wrap=true")
    assert other.ends() == "COMPLETED"


def come_near_the_time_limit(job: Job) -> None:
    """Leave it less time than the script's --signal asks for."""
    subprocess.run(["scontrol", "update", f"JobId={job.id}", "TimeLimit=5"], check=True)


def test_cancelled_preempted_and_out_of_time_a_run_ends_in_the_weights_of_an_undisturbed_one(undisturbed, tmp_path):
    run = SmallRun(tmp_path / "a run", undisturbed.images)
    command = ["--nodes=2", "--time=10", "slurm/train.sbatch", *settings(run)]

    job = submit(tmp_path / "first.txt", *command)
    at_step(run, job, 3)
    subprocess.run(["scancel", job.id], check=True)
    assert job.ends() == "CANCELLED" and job.says("Restarts") == "0"
    cancelled = saved_step(run)

    job = submit(tmp_path / "second.txt", *command)
    at_step(run, job, cancelled + 2)
    preempt(job)
    job.start_again()
    preempted = saved_step(run)

    at_step(run, job, preempted + 2)
    come_near_the_time_limit(job)
    job.start_again()
    out_of_time = saved_step(run)

    assert job.ends() == "COMPLETED" and job.says("Restarts") == "2"
    assert 3 <= cancelled < preempted < out_of_time < STEPS
    log = job.log.read_text()
    assert "requeued: Slurm wants the nodes" in log and "requeued: asked to stop" in log and "2 processes" in log
    for step in (cancelled, preempted, out_of_time):
        assert f"continuing at step {step} of {STEPS}" in log
    assert run.status()["state"] == "finished" and not (run.folder / "stop").exists()
    assert run.digest() == undisturbed.digest()


def at_step(run: SmallRun, job: Job, step: int) -> None:
    job.wait_for(lambda: run.step() >= step, f"step {step}")


def saved_step(run: SmallRun) -> int:
    """The step that a run saved which was asked to stop."""
    status = run.status()
    assert status["state"] == "preempted" and status["saved_step"] == status["step"]
    return status["step"]


def test_a_failed_job_is_not_requeued(undisturbed, tmp_path):
    run = SmallRun(tmp_path / "run", undisturbed.images / "nowhere")
    job = submit(tmp_path / "log.txt", "slurm/train.sbatch", *settings(run))
    assert job.ends() == "FAILED" and job.says("Restarts") == "0"
    assert "nowhere" in job.log.read_text() and "not requeued: the run did not stop because" in job.log.read_text()


def test_an_encoder_is_judged_on_two_nodes(undisturbed, tmp_path):
    where = ["--model_path", undisturbed.folder, "--output_dir", tmp_path]
    how = ["--probe_epochs", 1, "--device", "cpu", "--encoder", "slow.SlowResNet", "--encoder_kwargs"]
    script = [*where, *how, "{width: 8, stages: 2}"]
    job = submit(tmp_path / "log.txt", "--nodes=2", "slurm/evaluate.sbatch", *script)
    assert job.ends() == "COMPLETED"
    assert set(json.loads((tmp_path / "results.json").read_text())) == {"probe", "knn", "of"}
