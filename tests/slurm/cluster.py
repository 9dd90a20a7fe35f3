"""A real Slurm of two nodes, both played by this machine: its daemons, and words with them."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ports import free_ports

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName={host}-2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=low  Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why no Slurm can be started here; None where it can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=search_path()) is None]
    if missing:
        return f"Slurm is not installed here ({', '.join(missing)} not found): apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "Slurm's daemons want to be started by root"


def search_path() -> str:
    """This Python first, for the jobs; and daemons, which may be where a user's PATH does not lead."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"])


@contextlib.contextmanager
def running(folder: Path) -> Iterator[None]:
    """Within, Slurm's commands and the jobs they submit belong to a Slurm of its own; its files are in `folder`."""
    host = socket.gethostname().partition(".")[0]
    for name in ("munge", "state"):
        (folder / name).mkdir(mode=0o755)
    (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, folder=folder, ports=free_ports(3)))
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    munge = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed", "key-file": "key"}
    commands = [
        ["munged", "--foreground", "--force", *(f"--{name}={folder}/munge/{file}" for name, file in munge.items())],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", host],
        ["slurmd", "-D", "-N", f"{host}-2"],
    ]
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as daemons:
        for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_", "SRUN_"))]:
            patch.delenv(name)  # of a job that runs these tests
        patch.setenv("PATH", search_path())
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        for command in commands:
            daemons.callback(stop, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            if command[0] == "munged":
                wait_for((folder / "munge" / "socket").exists, "munged", 60)
        logs = f"Slurm to start; see the logs in {folder}"
        wait_for(lambda: output("sinfo", "--noheader", "-o", "%T %D", "-p", "low") == "idle 2", logs, 120)
        yield
        subprocess.run(["scancel", "--user=root"], check=True)
        wait_for(lambda: not output("squeue", "--noheader"), "the last jobs to end", 60)


def stop(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def wait_for(condition, what: str, seconds: float):
    """What `condition` returns, once it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    raise TimeoutError(f"waited {seconds} s for {what}")
