"""Kill, stop and damage a small run here, on this machine, and see whether it ends in the same weights.

python -m ssl.faultcheck --output_dir DIR

For before a job of a week: a few minutes with this machine's disks, launcher and GPUs. DIR should
be where the job will write. A small run of train.py is made once undisturbed, then once for every trial;
each must end in the undisturbed run's weights and optimizer, bit for bit.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ssl import checkpoint
from ssl.data.shapes import render
from ssl.errors import UserError, one_line_errors
from ssl.report import say, table

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
STEPS = 60
PATIENCE = 300  # seconds that a launch may take


@dataclass
class SmallRun:
    """A run of train.py of a minute: how to launch it, and what became of it."""

    folder: Path
    images: Path
    processes: int = 2
    options: list[str] = field(default_factory=list)
    script: Path = TRAIN  # or one that does something to train.py first
    environment: dict[str, str] = field(default_factory=dict)

    def launch(self, **options) -> subprocess.Popen:
        """Start it, or continue it; its output goes to log.txt in the folder. `options` as of Popen."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable]
        if self.processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.processes}"]
        settings = {
            "data_dir": self.images, "output_dir": self.folder, "image_size": 32, "projector": "64-64",
            "encoder": "ssl.encoders.SmallResNet", "encoder_kwargs": "{width: 8, stages: 2}", "batch_size": 4,
            "epochs": STEPS * 4 * self.processes // COUNT, "warmup_epochs": 1, "log_every": 1, "save_steps": 3,
            "workers": 1, "deterministic": "true", "amp": "off",
        }  # fmt: skip
        arguments = [str(word) for name, value in settings.items() for word in (f"--{name}", value)]
        with open(self.folder / "log.txt", "a") as log:
            return subprocess.Popen(
                [*command, str(self.script), *arguments, *self.options], stdout=log, stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", **self.environment}, start_new_session=True, **options,
            )  # fmt: skip

    def finish(self, process: subprocess.Popen | None = None) -> int:
        """Wait for a launch, a new one where none is given, and return its exit status."""
        process = process or self.launch()
        try:
            return process.wait(PATIENCE)
        finally:
            if process.poll() is None:
                for pid in [process.pid, *descendants(process.pid)]:
                    kill(pid, signal.SIGKILL)

    def finished(self) -> None:
        """Launch until the run has finished; `UserError` where it does not."""
        if self.finish() != 0 or self.status().get("state") != "finished":
            raise UserError(f"the run did not finish: {self.last_words()}")

    def step(self) -> int:
        """The last step in metrics.jsonl; 0 where there is none yet."""
        try:
            return json.loads((self.folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
        except (OSError, ValueError, IndexError):
            return 0

    def wait_for_step(self, step: int, process: subprocess.Popen) -> bool:
        """Whether the run reached `step`; it may also end before."""
        began = time.monotonic()
        while process.poll() is None and time.monotonic() - began < PATIENCE:
            if self.step() >= step:
                return True
            time.sleep(0.01)
        return False

    def status(self) -> dict:
        try:
            return json.loads((self.folder / "status.json").read_text())
        except (OSError, ValueError):
            return {}

    def last_words(self) -> str:
        lines = (self.folder / "log.txt").read_text(errors="replace").splitlines()
        errors = [line for line in lines if "rror" in line]
        return (errors or lines or ["it said nothing"])[-1][:300]

    def digest(self) -> str:
        """A checksum of everything a run ends in: weights, optimizer, step, and each step's loss and rates."""
        state = checkpoint.load(self.folder / "checkpoint.pt")
        sha = hashlib.sha256()
        for part in ("model", "optimizer", "scaler", "step"):
            _feed(sha, state[part])
        for line in (self.folder / "metrics.jsonl").read_text().splitlines():
            values = json.loads(line)
            _feed(sha, {k: values[k] for k in sorted(values) if k not in ("samples_per_second", "data_wait")})
        return sha.hexdigest()


COUNT = 96  # images: three epochs of 20 steps and so on, for 1 to 8 processes


def _feed(sha, value) -> None:
    if isinstance(value, Tensor):
        sha.update(f"{value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    elif isinstance(value, dict):
        for key, item in value.items():
            sha.update(repr(key).encode())
            _feed(sha, item)
    elif isinstance(value, list | tuple):
        for item in value:
            _feed(sha, item)
    else:
        sha.update(repr(value).encode())


def make_images(folder: Path) -> Path:
    """COUNT small JPEGs, large enough that loader workers read them."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(render(torch.arange(COUNT) % 10, 72, seed=0)):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{i:03}.jpg")
    return folder


# Processes ----------------------------------------------------------------------------


def descendants(pid: int) -> list[int]:
    """The processes that `pid` started, those that they started, and so on."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
    found, new = [], [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


def ranks(process: subprocess.Popen) -> list[int]:
    """The trainers' processes, in no order."""
    if b"torch.distributed.run" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
        return [process.pid]
    return [pid for pid in descendants(process.pid) if _parent(pid) == process.pid]


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None


def kill(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


# Trials -------------------------------------------------------------------------------
# Each does something to a run, lets it finish, and says in words what it did.


def killed(run: SmallRun, chance: random.Random, kills: int, whom: str) -> str:
    """SIGKILL of a random rank, or of the launcher, at `kills` random moments."""
    done = 0
    for i in range(kills):
        process = run.launch()
        target = (i + 1) * STEPS // (kills + 1) + chance.randint(-1, 1)
        if not run.wait_for_step(target, process):
            break
        time.sleep(chance.random() * 0.1)
        victims = ranks(process) if whom == "rank" else [process.pid]
        left = [process.pid, *descendants(process.pid)]
        if victims:
            kill(chance.choice(victims), signal.SIGKILL)
            done += 1
        run.finish(process)
        gone(left)
    run.finished()
    return f"{done} times SIGKILL of a {whom}"


def gone(pids: list[int], patience: float = 90.0) -> None:
    """Wait until none of the processes is left; `UserError` for an orphan."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        alive = [pid for pid in pids if _alive(pid)]
        if not alive:
            return
        time.sleep(0.05)
    raise UserError(f"process {alive[0]} was left behind by a run that ended")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def stopped(run: SmallRun, chance: random.Random, number: int) -> str:
    """A signal to the launcher; the run must leave by itself, saved."""
    process = run.launch()
    run.wait_for_step(chance.randint(5, STEPS - 10), process)
    left = [process.pid, *descendants(process.pid)]
    began = time.monotonic()
    kill(process.pid, number)
    run.finish(process)
    gone(left)
    status, took = run.status(), time.monotonic() - began
    if status.get("state") != "preempted" or status["saved_step"] != status["step"]:
        raise UserError(f"after {signal.Signals(number).name} status.json says {status}")
    run.finished()
    return f"{signal.Signals(number).name} at step {status['step']}: saved and left in {took:.1f} s"


def disk_full(run: SmallRun, chance: random.Random) -> str:
    """No file may grow beyond half a checkpoint: as on a full disk, but for this run alone."""
    process = run.launch()
    run.wait_for_step(chance.randint(5, 15), process)
    kill(process.pid, signal.SIGTERM)
    run.finish(process)
    limit = (run.folder / "checkpoint.pt").stat().st_size // 2
    saved = run.status()["saved_step"]
    process = run.launch(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    if run.finish(process) == 0 or run.step() != STEPS:
        raise UserError(f"with a full disk the run went to step {run.step()} and did not end with an error")
    if checkpoint.load(checkpoint.kept(run.folder)[0])["step"] != saved:
        raise UserError("with a full disk the last checkpoint was not left alone")
    run.finished()
    return f"full from step {saved}: trained to the end, said so, and saved when there was room"


def damaged(run: SmallRun, chance: random.Random, how: str) -> str:
    """The newest checkpoint is damaged; the one before it must be taken."""
    process = run.launch()
    run.wait_for_step(chance.randint(12, STEPS - 10), process)
    kill(process.pid, signal.SIGTERM)
    run.finish(process)
    step = run.status()["saved_step"]
    damage(run.folder / "checkpoint.pt", how, chance)
    run.finished()
    if "set aside as" not in (run.folder / "log.txt").read_text():
        raise UserError("the damaged checkpoint was not named")
    return f"checkpoint of step {step} {how}: named, and the one before it taken"


def damage(path: Path, how: str, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if how == "with a flipped bit":
        content[chance.randrange(len(content) // 3, len(content) // 2)] ^= 1 << chance.randrange(8)
    elif how == "cut short":
        del content[chance.randrange(1, len(content)) :]
    elif how == "emptied":
        content.clear()
    path.write_bytes(content)


def main() -> None:
    about, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m ssl.faultcheck", description=about, epilog=details, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--output_dir", type=Path, required=True, help="new folder, on the disk the job will use")
    parser.add_argument("--processes", type=int, default=2, help="1 to 8, as torchrun's --nproc_per_node (default 2)")
    parser.add_argument("--kills", type=int, default=5, help="SIGKILLs of ranks in one run (default 5)")
    parser.add_argument("--seed", type=int, help="of the moments of all faults (default: drawn, and printed)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    options = parser.parse_args()
    if options.processes not in (1, 2, 4, 8):
        raise UserError(f"processes: {options.processes} is none of 1, 2, 4, 8")
    if options.output_dir.exists():
        raise UserError(f"output_dir: {options.output_dir} is there already; faultcheck wants a folder of its own")
    seed = random.randrange(10**6) if options.seed is None else options.seed
    chance = random.Random(seed)
    options.output_dir.mkdir(parents=True)
    images = make_images(options.output_dir / "images")
    trials: dict[str, Callable[[SmallRun], str]] = {
        "ranks killed": lambda run: killed(run, chance, options.kills, "rank"),
        "launcher killed": lambda run: killed(run, chance, 2, "launcher"),
        "terminated": lambda run: stopped(run, chance, signal.SIGTERM),
        "interrupted": lambda run: stopped(run, chance, signal.SIGINT),
        "disk full": lambda run: disk_full(run, chance),
        "flipped bit": lambda run: damaged(run, chance, "with a flipped bit"),
        "cut short": lambda run: damaged(run, chance, "cut short"),
    }
    say(f"seed {seed}; {len(trials) + 1} runs of {STEPS} steps, some of them launched many times\n")

    def new_run(name: str) -> SmallRun:
        folder = options.output_dir / name.replace(" ", "_")
        return SmallRun(folder, images, options.processes, ["--device", options.device])

    began = time.monotonic()
    whole = new_run("undisturbed")
    whole.finished()
    expected = whole.digest()
    say(f"undisturbed: {time.monotonic() - began:.0f} s")
    rows, failed = [["trial", "weights", "seconds", "what happened"]], 0
    for name, trial in trials.items():
        began, run = time.monotonic(), new_run(name)
        try:
            words = trial(run)
            same = run.digest() == expected
        except UserError as error:
            words, same = str(error), False
        failed += not same
        rows.append([name, "identical" if same else "DIFFERENT", f"{time.monotonic() - began:.0f}", words])
        say(f"{name}: {rows[-1][1]}, {words}")
        if same:
            shutil.rmtree(run.folder)
    say("\n" + table(rows))
    if failed:
        raise UserError(f"{failed} of {len(trials)} trials failed; their runs are in {options.output_dir}, see log.txt")
    say("\nwhatever befell it, the run ended in the same weights")


if __name__ == "__main__":
    with one_line_errors("faultcheck"):
        main()
