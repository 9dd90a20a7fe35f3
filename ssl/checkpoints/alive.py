"""Tell a run that is running from one that was killed, by the process that its status.json names."""

import os
import socket
import time
from pathlib import Path

PROC = Path("/proc")


def where() -> dict[str, str | int | None]:
    """What status.json says of this process: `host`, `pid`, `started` and `pids`.

    `started` tells this process from a later one with the same pid. `pids` names the space of process numbers: a
    container has its own.
    """
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "pids": _pids()}


def state(status: dict, step: float | None, moved: float) -> str:
    """The state of a run in words, from its status.json.

    `step`: the last step that is known; `moved`: when a file of the run last changed, in seconds since 1970. A process
    that was killed wrote no new state: its status.json says "running" for ever.
    """
    said = status.get("state", "unknown")
    if said != "running":
        return str(said)
    at = "no step" if step is None else f"step {step:.0f}"
    at += time.strftime(" at %Y-%m-%d %H:%M", time.localtime(moved))
    if not _visible(status):
        return f"running on {status.get('host', 'an unknown host')}, which cannot be checked from here; last sign: {at}"
    pid, started = status["pid"], status.get("started")
    there = _started(pid)
    if there is None or (started is not None and there != started):
        return f"ended without a status (there is no process {pid} any more); last sign: {at}"
    return "running"


def _visible(status: dict) -> bool:
    """Whether this process can see the run's process: same machine, same process numbers, /proc mounted."""
    return (
        (PROC / "1").exists()
        and type(status.get("pid")) is int
        and status.get("host") == socket.gethostname()
        and status.get("pids") in (None, _pids())
    )


def _started(pid: int) -> str | None:
    """When process `pid` began, in ticks of the kernel; None where there is none, or only a zombie.

    The kernel gives the number of an ended process to a new one, which began later.
    """
    try:
        fields = (PROC / str(pid) / "stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _pids() -> str | None:
    try:
        return os.readlink(PROC / "self" / "ns" / "pid")
    except OSError:
        return None
