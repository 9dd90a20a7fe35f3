"""Lock a run folder until this process ends, so that no second run writes into it."""

import errno
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import TextIO

from ssl.errors import UserError, tell
from ssl.signals import ORPHANED

LEAVING = ORPHANED + 5  # seconds to wait for an earlier run whose launcher was killed: it saves and ends


def lock(path: Path) -> TextIO:
    """Lock the file at `path`, and write into it who holds it. The kernel releases the lock when the process ends.

    It makes the folder, too. Keep what is returned: closing it releases the lock. Raises `UserError` where another run
    holds the lock, OSError where the file cannot be written. Where the disk knows no locks, a line says so.
    """
    file = _opened(path)
    began, told = time.monotonic(), False
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # loader workers do not inherit it, as they would a flock
            if _is_at(path, file):
                break
            file.close()  # its holder failed when it started, and has removed the folder
            file = _opened(path)
            continue
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                tell(f"{path}: cannot be locked here ({error}): make sure that no second run uses this folder")
                return file
        file.seek(0)
        holder, waited = file.read(200).strip() or "?", time.monotonic() - began
        if waited > LEAVING:
            raise UserError(
                f"output_dir: {path.parent} is in use by another run ({holder}); wait for it, stop it, or choose "
                "another --output_dir"
            )
        if waited > 5 and not told:
            tell(f"output_dir: {path.parent} is in use ({holder}); waiting a minute for it to end")
            told = True
        time.sleep(0.2)
    job = os.environ.get("SLURM_JOB_ID")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}{f', Slurm job {job}' if job else ''}\n")
    file.flush()
    return file


def _is_at(path: Path, file: TextIO) -> bool:
    """Whether the open `file` is still the one at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _opened(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "a+", encoding="utf-8", errors="replace")  # as long as the run
