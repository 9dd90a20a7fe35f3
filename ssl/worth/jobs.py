"""Jobs: runs of train.py, evaluate.py and finetune.py, each a process of its own and in a folder of its own.

A job whose result is there is not run again. One that was stopped goes on from its last checkpoint. Jobs run side by
side where the plan says so.
"""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ssl import files
from ssl.console import counted, say
from ssl.errors import UserError
from ssl.settings.command import ROOT, flags
from ssl.signals import die_with_parent

LOOK = 0.1  # seconds between two looks at whether a job has ended


@dataclass(frozen=True)
class Job:
    """`script` with these settings. `what` says in a few words what it does."""

    what: str
    script: str
    folder: Path  # its --output_dir
    settings: dict[str, object]
    threads: int | None = None  # of its process; None: as it settles itself
    needs: Path | None = None  # the folder of the job that makes its weights
    seconds: float = 0.0  # that its pair still takes from its start on
    pair: object = None  # the jobs that are compared: where one is left out, so are the others; None: it is always run

    def done(self) -> bool:
        """Whether its result is there: features.pt, which is written last, or a run that has ended by itself."""
        if self.script == "evaluate.py":
            return (self.folder / "features.pt").is_file()
        return files.json_object(self.folder / "status.json").get("state") == "finished"

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    def start(self) -> subprocess.Popen:
        """Its process, which writes into the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        words = [self.script, *flags(self.settings | {"output_dir": self.folder})]
        return start_python(words, self.log, self.threads)

    def check(self, status: int) -> None:
        """Raises `UserError` with its own last words if it has ended with this status and without its result."""
        if status or not self.done():
            raise UserError(
                f"{self.what}: {_last_words(self.log, status)}; its output is {self.log}. The same command tries again"
            )

    def run(self) -> float:
        """Run it unless it is done; the seconds that it took. Raises `UserError` as `check`."""
        if self.done():
            return 0.0
        began, process = time.monotonic(), self.start()
        try:
            process.wait()
        finally:
            _stop([process])
        self.check(process.returncode)
        return time.monotonic() - began


@dataclass(frozen=True)
class Running:
    """A job that was begun and has not been seen to end."""

    label: str
    job: Job
    process: subprocess.Popen
    began: float


def run_all(jobs: list[Job], at_once: int = 1, until: float = math.inf) -> None:
    """Run the jobs in their order, at most `at_once` side by side, and say so.

    A job waits for the one that makes its weights; the next one goes first. One whose pair cannot end `until` then,
    on the clock of `time.monotonic`, is left out with it. Raises `UserError` of the first job that fails. Then, or at
    Ctrl-C, the others save and end.
    """
    waiting = [(f"[{number}/{len(jobs)}]", job) for number, job in enumerate(jobs, 1) if not job.done()]
    running: list[Running] = []
    left_out = 0
    try:
        while waiting or running:
            undone = {job.folder for _, job in waiting} | {one.job.folder for one in running}
            ready = [(label, job) for label, job in waiting if job.needs not in undone]
            for label, job in ready:
                if len(running) == at_once:
                    break
                if job.pair is not None and time.monotonic() + job.seconds > until:
                    left_out += sum(other.pair == job.pair for _, other in waiting)
                    waiting = [one for one in waiting if one[1].pair != job.pair]
                    break
                waiting.remove((label, job))
                say(f"{label} {job.what}")
                running.append(Running(label, job, job.start(), time.monotonic()))
            time.sleep(LOOK)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                one.job.check(one.process.returncode)
                say(f"{one.label} done in {time.monotonic() - one.began:.0f} s")
        if left_out:
            say(f"*** {counted(left_out, 'job')} left out: no minutes are left; the same command makes them ***")
    finally:
        _stop([one.process for one in running])


def _stop(processes: list[subprocess.Popen]) -> None:
    """End those that still run. A training saves first."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait()


def start_python(words: list[str], log: Path, threads: int | None) -> subprocess.Popen:
    """Start python with these words, its output in the file `log`. It is killed if this command is."""
    environment = os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
    with open(log, "wb") as output:
        ends_with_this = partial(die_with_parent, signal.SIGKILL, os.getpid())  # so none stays behind
        how = {"cwd": ROOT, "env": environment, "stdout": output, "stderr": output}
        return subprocess.Popen([sys.executable, *words], **how, preexec_fn=ends_with_this)


def _last_words(log: Path, status: int) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line]
    return (errors or lines or [f"it ended with status {status} and said nothing"])[-1][:500]
