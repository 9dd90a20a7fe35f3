"""How much memory this process holds, and how much it may still take."""

import contextlib
import os
from pathlib import Path

UNKNOWN = 1 << 62  # bytes


def free_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> tuple[int, str]:
    """(free bytes, whose): of this machine, or of a tighter limit of the job. Memory of cached files counts as free.

    `UNKNOWN` where the system does not say it, as on a Mac.
    """
    available = _meminfo(proc, "MemAvailable")
    found = [(UNKNOWN if available is None else available, "this machine")]
    with contextlib.suppress(OSError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            number, kinds, path = line.split(":", 2)
            if number == "0":
                found += _of_groups(cgroups, path, "memory.max", "memory.current", "")
            elif "memory" in kinds.split(","):
                limits = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
                found += _of_groups(cgroups / "memory", path, *limits)
    return min(found)


def _of_groups(root: Path, path: str, limit: str, usage: str, prefix: str) -> list[tuple[int, str]]:
    """The free bytes of a control group and of each group above it."""
    group, found = Path(path.lstrip("/")), []
    for part in (group, *group.parents):
        folder = root / part
        with contextlib.suppress(OSError, ValueError):  # 'max' is no limit; a group may not be mounted here
            most = int((folder / limit).read_text())
            used = int((folder / usage).read_text())
            numbers = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cached = sum(int(numbers.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
            found.append((max(0, most - used + cached), "this job's or container's memory limit"))
    return found


def free_swap(proc: Path = Path("/proc")) -> int:
    """Bytes that the system can still put aside on a disk."""
    return _meminfo(proc, "SwapFree") or 0


def held_memory(processes: int = 1, proc: Path = Path("/proc")) -> int:
    """Bytes that so many processes like this one hold; what they share counts once. 0 where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        _, resident, shared = map(int, (proc / "self/statm").read_text().split()[:3])
        return (shared + processes * (resident - shared)) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _meminfo(proc: Path, name: str) -> int | None:
    """The bytes of a line of /proc/meminfo."""
    with contextlib.suppress(OSError, ValueError, IndexError, KeyError):
        lines = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
        return 1024 * int(lines[name].split()[0])
    return None
