"""Receive requests to stop a run: signals, or a file named `stop` in its folder. All ranks stop at the same step.

SIGTERM, SIGUSR1, SIGINT and the file all mean: finish this step, save, leave. A thread receives the signals: the main
thread may wait inside a collective, where Python runs no signal handlers.
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

from ssl.distributed import is_main, world_size
from ssl.errors import tell
from ssl.signals import ORPHANED, SIGNALS, heard

STOP_FILE = 1000  # stands for the file, among the numbers of signals
# Seconds within which a repeated signal counts as the same one: Slurm and torchrun both deliver it, and the kernel
# sends one for each thread of a launcher that has died.
ECHO = 5.0
EX_TEMPFAIL = 75  # exit status of sysexits.h: try again


class StopRequests:
    """Receives requests from now on. All ranks call `ask` at the beginning of a step and `answer` at its end.

    Since `answer`, `due` says on all ranks whether one of them said in `ask` that a save is due.

    A second signal ends the process at once (status 128 + its number), unless it comes within ECHO seconds of the
    first. When torchrun dies, its ranks get SIGTERM. Ranks wait for each other up to `patience` minutes.
    """

    def __init__(self, folder: Path, patience: float):
        self.file = folder / "stop"
        self.heard = self.since = self.looked = 0
        self.file_seen = False
        self.due = 0
        limit = datetime.timedelta(minutes=patience)
        self.group = dist.new_group(backend="gloo", timeout=limit) if world_size() > 1 else None
        self.pending = None
        if is_main():
            self.file.unlink(missing_ok=True)  # it was meant for an earlier run
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        threading.Thread(target=self._listen, args=(read_end,), daemon=True).start()
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)  # Python writes the number into the pipe; the handler does nothing

    def _listen(self, read_end: int) -> None:
        launcher = os.getppid()
        for number in iter(lambda: os.read(read_end, 1)[0], None):
            if number not in SIGNALS:
                continue
            orphaned = os.getppid() != launcher
            if orphaned:
                threading.Timer(ORPHANED, os._exit, [128 + number]).start()
            heard.add(number)
            if not self.heard:
                self.heard, self.since = number, time.monotonic()
                if is_main():
                    tell(f"{signal.Signals(number).name}: the run ends after the next step and saves; again: at once")
            elif number == signal.SIGINT or time.monotonic() - self.since > ECHO:
                tell(f"{signal.Signals(number).name} again: leaving at once")
                os._exit(128 + number)

    def ask(self, due: bool = False) -> None:
        """Begin to ask all ranks whether one has a request, or a save due. The exchange runs while a step computes."""
        if is_main() and time.monotonic() - self.looked > 1:
            self.looked = time.monotonic()
            self.file_seen = self.file_seen or os.path.exists(self.file)
        self.asked = torch.tensor([self.heard or self.file_seen * STOP_FILE, int(due)])
        if self.group is not None:
            self.pending = dist.all_reduce(self.asked, dist.ReduceOp.MAX, group=self.group, async_op=True)

    def answer(self) -> str | None:
        """What asked any rank to stop before this step began, the same words on all ranks; None: go on."""
        if self.pending is not None:
            self.pending.wait()
        number, self.due = self.asked.tolist()
        if number == STOP_FILE:
            with contextlib.suppress(OSError):
                self.file.unlink(missing_ok=True)
            return "the file named stop"
        return signal.Signals(number).name if number else None


def leave_preempted() -> None:
    """Exit with EX_TEMPFAIL; under torchrun with 0, since it reports any other status as a failure."""
    sys.exit(0 if "TORCHELASTIC_RUN_ID" in os.environ else EX_TEMPFAIL)
