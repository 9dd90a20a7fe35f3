"""Scripts started in a process that has imported torch already: a start costs a tenth of a second instead of three.

A server imports once what the scripts import, and starts no thread. For every start it forks; the child takes the
folder, environment, arguments and streams it is given, and runs the script as `__main__`. Several processes are
started as torchrun starts them. What a fresh interpreter or torchrun itself does is tested with real starts
(test_stdlib_ssl.py, tests/faults, tests/slurm).
"""

import atexit
import importlib
import json
import os
import random
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

import numpy
import torch
from ports import free_ports

ROOT = Path(__file__).resolve().parents[1]
MODULES = (
    "train",
    "evaluate",
    "finetune",
    "ssl.export",
    "ssl.data.prepare",
    "ssl.data.patches",
    "torch._dynamo",
    "torch.utils.tensorboard",
    "PIL.BmpImagePlugin",
    "PIL.PngImagePlugin",
    "PIL.JpegImagePlugin",
)
PLAIN = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
SERVER: list[subprocess.Popen] = []  # of this process, while it is idle


def run(*arguments, processes: int = 1, cwd=ROOT, env: dict | None = None, timeout: float = 300):
    """What `subprocess.run` gives for python with these arguments, a script or -m and a module, output as text.

    `env` is all of its environment; unset: this process's, one thread, no GPU.
    """
    env = os.environ | PLAIN if env is None else env
    server = SERVER.pop() if SERVER else start_server()
    words = [str(word) for word in arguments]
    with tempfile.TemporaryDirectory() as folder:
        request = {"arguments": words, "processes": processes, "cwd": str(cwd), "env": env, "streams": folder}
        server.stdin.write(json.dumps(request).encode() + b"\n")
        child = int(server.stdout.readline())
        late = True
        try:
            late = not select.select([server.stdout], [], [], timeout)[0]
        finally:  # also where the test's own time is over
            if late:
                os.killpg(child, signal.SIGKILL)
        status = int(server.stdout.readline())
        SERVER.append(server)
        said = [Path(folder, name).read_text("utf-8", errors="replace") for name in ("stdout", "stderr")]
    if late:
        raise subprocess.TimeoutExpired(words, timeout, *said)
    return subprocess.CompletedProcess(words, status, *said)


def start_server() -> subprocess.Popen:
    command = [sys.executable, str(Path(__file__).resolve())]
    env = os.environ | PLAIN
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=env)


# The server -----------------------------------------------------------------------------


def serve() -> dict:
    """Fork for every request on stdin. Returns in the children alone, the request."""
    while line := sys.stdin.buffer.raw.readline():
        threads = len(os.listdir("/proc/self/task"))
        assert threads == 1, f"a process of {threads} threads cannot be copied"
        child = os.fork()
        if not child:
            return json.loads(line)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os._exit(0)


def become(request: dict) -> None:
    """Take streams, folder and environment, as a process that was started with them."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{request['streams']}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    random.seed()
    numpy.random.seed()


def as_torchrun(count: int) -> None:
    """Returns in `count` processes of one group. Where one fails the others are asked to end, and the status is 1."""
    (port,) = free_ports(1)
    group = {
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": port,
    }
    ranks = []
    for rank in range(count):
        ranks.append(os.fork())
        if not ranks[-1]:
            os.environ.update({key: str(value) for key, value in (group | {"RANK": rank, "LOCAL_RANK": rank}).items()})
            return
    failed = 0
    while ranks:
        ended, status = os.wait()
        ranks.remove(ended)
        if status and not failed:
            failed = 1
            for rank in ranks:
                os.kill(rank, signal.SIGTERM)
    os._exit(failed)


def begin(arguments: list[str]) -> None:
    """Run it as `__main__`, and end as an interpreter does, except that what it has imported is not taken apart."""
    try:
        execute(arguments)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(status)


def execute(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        sys.argv, sys.path[0] = arguments[1:], os.getcwd()
        sys.modules.pop(arguments[1], None)
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).resolve().parent)
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    for module in MODULES:
        importlib.import_module(module)
    asked = serve()
    become(asked)
    if asked["processes"] > 1:
        as_torchrun(asked["processes"])
    begin(asked["arguments"])
