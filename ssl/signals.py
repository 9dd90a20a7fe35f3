"""Signals that ask a run to stop, and what the processes that a run starts make of them."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # each asks a run to stop
ORPHANED = 60.0  # seconds that a process whose launcher has died may take to save and leave
heard: set[int] = set()  # those that this run has received


def die_with_parent(number: int, parent: int | None = None) -> None:
    """Have the kernel send this process a signal when the process that started it ends. Linux alone can.

    `parent`: that process, if it is known; if it has ended already, this one ends at once.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, number)
        if parent not in (None, os.getppid()):
            os._exit(1)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """SIGNALS to this thread, and to the processes that it starts, wait.

    A loader worker has the handlers of its trainer until it has begun: a Ctrl-C would count twice, and so at once end a
    run without saving.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker(_: int) -> None:
    """What a loader worker does first. torchrun and Slurm signal it, too, but only its trainer may end it."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # see signals_held
    sys.excepthook = _tell_unless_left
    trainer = multiprocessing.parent_process()
    known = trainer and multiprocessing.get_start_method() != "forkserver"  # whose processes are the server's
    die_with_parent(signal.SIGKILL, trainer.pid if known else None)


def _tell_unless_left(kind: type[BaseException], error: BaseException, trace) -> None:
    """An excepthook of a worker. Its thread that hands batches over fails where Ctrl-C ends the trainer meanwhile."""
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)
