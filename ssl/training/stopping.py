"""Being asked to stop: who asks, how ranks agree on the step, and what a launcher's end does to its processes.

SIGTERM, SIGUSR1, SIGINT and the file `stop` in the run folder all mean the same: finish this
step, save, leave. Nothing is done in a signal handler; a thread takes note, since the main
thread may be waiting inside a collective, where Python hears no signals.
"""

import contextlib
import datetime
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

from ssl.distributed import ORPHANED, SIGNALS, is_main, world_size
from ssl.errors import tell

STOP_FILE = 1000  # what stands for the file among the signals' numbers
# Seconds in which a repeated signal is the same one: Slurm and torchrun both deliver it, and the kernel tells of a
# launcher's death once for each of its threads.
ECHO = 5.0
EX_TEMPFAIL = 75  # exit status of sysexits.h: try again


class StopRequests:
    """Listens from now on. `ask` at the beginning of a step, `answer` at its end, alike on all ranks.

    A second signal ends the process at once (status 128 + its number), unless it repeats the
    first within ECHO seconds. A rank whose torchrun has died hears it as SIGTERM. Ranks wait for
    each other up to `patience` minutes.
    """

    def __init__(self, folder: Path, patience: float):
        self.file = folder / "stop"
        self.heard = self.since = self.looked = 0
        self.file_seen = False
        limit = datetime.timedelta(minutes=patience)
        self.group = dist.new_group(backend="gloo", timeout=limit) if world_size() > 1 else None
        self.pending = None
        if is_main():
            self.file.unlink(missing_ok=True)  # meant for an earlier run
        ears, mouth = os.pipe()
        os.set_blocking(mouth, False)
        threading.Thread(target=self._listen, args=(ears,), daemon=True).start()
        signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)  # the number in the pipe is what is heard

    def _listen(self, ears: int) -> None:
        launcher = os.getppid()
        for number in iter(lambda: os.read(ears, 1)[0], None):
            if number not in SIGNALS:
                continue
            orphaned = os.getppid() != launcher
            if orphaned:
                threading.Timer(ORPHANED, os._exit, [128 + number]).start()
            if not self.heard:
                self.heard, self.since = number, time.monotonic()
                if is_main():
                    tell(f"{signal.Signals(number).name}: saving after this step, then leaving; again: at once")
            elif number == signal.SIGINT or time.monotonic() - self.since > ECHO:
                tell(f"{signal.Signals(number).name} again: leaving at once")
                os._exit(128 + number)

    def ask(self) -> None:
        """Begin to ask all ranks whether one was told to stop; the step's computation hides the exchange."""
        if is_main() and time.monotonic() - self.looked > 1:
            self.looked = time.monotonic()
            self.file_seen = self.file_seen or os.path.exists(self.file)
        self.asked = torch.tensor([self.heard or self.file_seen * STOP_FILE])
        if self.group is not None:
            self.pending = dist.all_reduce(self.asked, dist.ReduceOp.MAX, group=self.group, async_op=True)

    def answer(self) -> str | None:
        """What asked some rank to stop before this step began, the same words on all ranks; None: go on."""
        if self.pending is not None:
            self.pending.wait()
        number = int(self.asked)
        if number == STOP_FILE:
            with contextlib.suppress(OSError):
                self.file.unlink(missing_ok=True)
            return "the file `stop`"
        return signal.Signals(number).name if number else None


def leave_preempted() -> None:
    """End with the status that says so, where the launcher passes it on: torchrun calls all but 0 a failure."""
    sys.exit(0 if "TORCHELASTIC_RUN_ID" in os.environ else EX_TEMPFAIL)
