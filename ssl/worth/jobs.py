"""Jobs: runs of train.py, evaluate.py and finetune.py, each a process of its own and in a folder of its own.

A job whose result is there is not run again. One that was stopped goes on from its last checkpoint.
"""

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ssl import distributed, files
from ssl.console import say
from ssl.errors import UserError
from ssl.settings.command import ROOT, flags


@dataclass(frozen=True)
class Job:
    """`script` with these settings. `what` says in a few words what it does."""

    what: str
    script: str
    folder: Path  # its --output_dir
    settings: dict[str, object]

    def done(self) -> bool:
        """Whether its result is there: features.pt, which is written last, or a run that has ended by itself."""
        if self.script == "evaluate.py":
            return (self.folder / "features.pt").is_file()
        return files.json_object(self.folder / "status.json").get("state") == "finished"

    def run(self) -> float:
        """Run it unless it is done; the seconds that it took. Raises `UserError`, with its own last words."""
        if self.done():
            return 0.0
        log, began = self.folder.with_name(f"{self.folder.name}.log"), time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        status = execute([self.script, *flags(self.settings | {"output_dir": self.folder})], log)
        if status or not self.done():
            raise UserError(
                f"{self.what}: {_last_words(log, status)}; its output is {log}. The same command tries again"
            )
        return time.monotonic() - began


def run_all(jobs: list[Job]) -> None:
    """Run the jobs in their order, and say so."""
    for number, job in enumerate(jobs, 1):
        if job.done():
            continue
        say(f"[{number}/{len(jobs)}] {job.what}")
        took = job.run()
        say(f"{' ' * len(f'[{number}/{len(jobs)}]')} done in {took:.0f} s")


def execute(words: list[str], log: Path) -> int:
    """Run python with these words, its output in the file `log`; its exit status. Ctrl-C lets it save and end first."""
    with open(log, "wb") as output:
        command = [sys.executable, *words]
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, preexec_fn=_killed_with_parent)
    try:
        return process.wait()
    except BaseException:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise


def _killed_with_parent() -> None:
    """If this command is killed, no job stays behind and holds its folder."""
    distributed.die_with_parent(signal.SIGKILL)


def _last_words(log: Path, status: int) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line]
    return (errors or lines or [f"it ended with status {status} and said nothing"])[-1][:500]
