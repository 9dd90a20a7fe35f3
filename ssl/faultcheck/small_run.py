"""Launch, watch and compare a run of train.py that takes seconds; ssl.faultcheck and the tests disturb it."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image

from ssl import files
from ssl.checkpoints import torch_file
from ssl.errors import UserError
from ssl.sources.shapes import render

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
IMAGES = 96
STEPS = 48  # of a run: 2 epochs of 24 steps on one process, 16 epochs of 3 steps on eight
TIMES = ("samples_per_second", "data_wait", "health_data_wait")  # in metrics.jsonl; they differ from run to run
PATIENCE = 300  # seconds until a launch counts as hanging


@dataclass
class SmallRun:
    """How to launch a small run in `folder`, and how to look at it. Its output is in the file FOLDER.log."""

    folder: Path
    images: Path
    processes: int = 2
    options: dict[str, object] = field(default_factory=dict)  # settings of train.py, over those below
    launcher: list[str] = field(default_factory=list)  # more arguments of torchrun
    script: Path = TRAIN  # or one that patches train.py first
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return self.folder.with_name(self.folder.name + ".log")

    def launch(self, **popen) -> subprocess.Popen:
        """Start the run, or continue it. `popen` are options of Popen."""
        command = [sys.executable]
        if self.processes > 1 or self.launcher:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.processes}"]
        settings = {
            "config": TRAIN.parent / "configs" / "barlow_twins_cifar10.yaml",
            "data_dir": self.images,
            "output_dir": self.folder,
            "image_size": 32,
            "projector": "64-64",
            "encoder": "ssl.encoders.SmallResNet",
            "encoder_kwargs": "{width: 8, stages: 2}",
            "batch_size": 4,
            "epochs": STEPS * 4 * self.processes // IMAGES,
            "warmup_epochs": 1,
            "log_every": 1,
            "save_steps": 3,
            "workers": 1,
            "deterministic": "true",
            "amp": "off",
            "health_every": 100,
            **self.options,
        }
        arguments = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
        self.before = self._mark()
        with open(self.log, "a") as log:
            return subprocess.Popen(
                [*command, *self.launcher, str(self.script), *arguments],
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", **self.environment},
                start_new_session=True,
                **popen,
            )

    def finish(self, process: subprocess.Popen | None = None) -> int:
        """Wait for `process`, or for a new launch, and return its exit status. Raises `UserError` if it hangs."""
        process = process or self.launch()
        try:
            return process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise UserError(f"a launch did not end within {PATIENCE} s: {self.last_words()}") from None
        finally:
            if process.poll() is None:
                for pid in [*descendants(process.pid), process.pid]:
                    kill(pid, signal.SIGKILL)
                process.wait()

    def finished(self) -> None:
        """Launch the run. Raises `UserError` unless that finishes it."""
        if self.finish() != 0 or self.status().get("state") != "finished":
            raise UserError(f"the run did not finish: {self.last_words()}")

    def step(self) -> int:
        """The last step in metrics.jsonl; 0 while there is none."""
        try:
            return json.loads((self.folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        except (OSError, ValueError, IndexError):
            return 0

    def wait_for_step(self, step: int, process: subprocess.Popen) -> bool:
        """Wait until the launch has trained up to `step`. Returns False if it ends before."""
        began = time.monotonic()
        while process.poll() is None and time.monotonic() - began < PATIENCE:
            if self._mark() != self.before and self.step() >= step:
                return True
            time.sleep(0.01)
        return False

    def _mark(self) -> tuple | None:
        """A value that changes when a launch begins to train: it then rewrites metrics.jsonl."""
        with contextlib.suppress(OSError):
            found = (self.folder / "metrics.jsonl").stat()
            return found.st_ino, found.st_mtime_ns
        return None

    def status(self) -> dict:
        return files.json_object(self.folder / "status.json")

    def printed(self) -> str:
        return self.log.read_text(errors="replace")

    def last_words(self) -> str:
        lines = self.printed().splitlines()
        errors = [line for line in lines if "rror" in line]
        return (errors or lines or ["it said nothing"])[-1][:300]

    def digest(self, metrics: bool = True) -> str:
        """A checksum of the run's end: weights, optimizer, step and, with `metrics`, every line of metrics.jsonl."""
        state = torch_file.load(self.folder / "checkpoint.pt")
        found = [state[part] for part in ("model", "optimizer", "scaler", "step")]
        for line in (self.folder / "metrics.jsonl").read_text().splitlines() if metrics else []:
            found.append({name: value for name, value in json.loads(line).items() if name not in TIMES})
        plain = lambda x: [str(x.dtype), x.shape, x.numpy().tobytes().hex()]  # noqa: E731
        return hashlib.sha256(json.dumps(found, sort_keys=True, default=plain).encode()).hexdigest()


def make_images(folder: Path) -> Path:
    """Write IMAGES JPEGs, large enough to need loader workers."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(render(torch.arange(IMAGES) % 10, 72, seed=0)):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{i:03}.jpg")
    return folder


# Processes, as Linux shows them -------------------------------------------------------


def descendants(pid: int) -> list[int]:
    """The processes that `pid` started, those that they started, and so on."""
    parents = {int(entry.name): _stat(entry.name)[1] for entry in Path("/proc").iterdir() if entry.name.isdecimal()}
    found, new = [], [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


def ranks(process: subprocess.Popen) -> list[int]:
    """The processes of the ranks, the oldest first. Loader workers are their children."""
    children = sorted(pid for pid in descendants(process.pid) if _stat(pid)[1] == process.pid)
    return children if "torch.distributed.run" in process.args else [process.pid]


def kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def gone(pids: list[int]) -> None:
    """Wait until all processes have ended. Raises `UserError` if one stays longer than 90 s."""
    end = time.monotonic() + 90
    while alive := [pid for pid in pids if _stat(pid)[0] not in "ZX"]:
        if time.monotonic() > end:
            raise UserError(f"process {alive[0]} was left behind by a run that ended")
        time.sleep(0.05)


def _stat(pid: int | str) -> tuple[str, int]:
    """(state, parent) of a process; state X, dead, where there is none."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
        return state, int(parent)
    except (OSError, ValueError):
        return "X", 0
