"""Wait for what a run does."""

import subprocess
import time

from ssl.faultcheck.small_run import SmallRun


def wait_for_words(run: SmallRun, words: str, process: subprocess.Popen, times: int = 1) -> None:
    """Wait until the run has printed `words` so many times."""
    while run.printed().count(words) < times:
        assert process.poll() is None, run.last_words()
        time.sleep(0.02)


def wait_for_save(run: SmallRun, step: int, process: subprocess.Popen) -> None:
    """Wait until the run has saved `step`."""
    while (run.status().get("saved_step") or 0) < step:
        assert process.poll() is None, run.last_words()
        time.sleep(0.02)
