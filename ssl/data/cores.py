"""How many CPU cores this process may use."""

import contextlib
import os
from pathlib import Path


def auto_workers() -> int:
    """The number of loader workers of this process: its share of the cores but one, which the training needs."""
    return max(1, core_share() - 1)


def core_share() -> int:
    """The usable cores, divided by the processes of this machine; at least one."""
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


def usable_cores(cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """The cores that the processes of this job may use: by affinity, container quota and Slurm."""
    cores = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()]
    with contextlib.suppress(OSError, ValueError):  # version 2: 'max 100000' or '200000 100000'
        quota, period = (cgroups / "cpu.max").read_text().split()
        cores.append(int(quota) // int(period))
    with contextlib.suppress(OSError, ValueError):  # version 1: -1 is no quota
        quota, period = (int((cgroups / f"cpu/cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        cores.append(quota // period if quota > 0 else cores[0])
    with contextlib.suppress(KeyError, ValueError):
        cores.append(int(os.environ["SLURM_CPUS_PER_TASK"]))
    return max(1, min(cores))
