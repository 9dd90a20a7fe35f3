"""A command: kill, stop and damage a small run on this machine, and check that it ends in the same weights.

python -m ssl.faultcheck --output_dir DIR

Run it before a job of a week: it takes a few minutes and tests this machine's disks, launcher and GPUs. DIR should be
on the disk where the job will write. A small run of train.py is made once undisturbed, then once for each trial. Each
must end in the undisturbed run's weights and optimizer, bit for bit.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from ssl import failures
from ssl.checkpoints import torch_file
from ssl.console import argument_parser, say, table
from ssl.distributed import be_alone
from ssl.errors import UserError, one_line_errors
from ssl.faultcheck.small_run import STEPS, SmallRun, descendants, gone, kill, make_images, ranks

# Trials -------------------------------------------------------------------------------
# Each disturbs a run, lets it finish, and says what it did.


def killed(run: SmallRun, chance: random.Random, kills: int, whom: str) -> str:
    """SIGKILL of a random rank, or of the launcher, at `kills` random moments."""
    for i in range(kills):
        process = launch(run, (i + 1) * STEPS // (kills + 1) + chance.randint(-1, 1))
        time.sleep(chance.random() * 0.1)
        victims = ranks(process) if whom == "rank" else [process.pid]
        if not victims:
            raise UserError(f"the run ended before a rank could be killed: {run.last_words()}")
        left = [process.pid, *descendants(process.pid)]
        kill(chance.choice(victims), signal.SIGKILL)
        run.finish(process)
        gone(left)
    run.finished()
    return f"{kills} times SIGKILL of a {whom}"


def launch(run: SmallRun, step: int) -> subprocess.Popen:
    """Launch the run, and wait until it has trained up to `step`. Raises `UserError` if it ends before."""
    process = run.launch()
    if not run.wait_for_step(step, process):
        run.finish(process)
        raise UserError(f"the run ended before step {step}: {run.last_words()}")
    return process


def preempt(run: SmallRun, step: int) -> int:
    """Launch the run, and end it by SIGTERM after `step`. Returns the step that it saved."""
    process = launch(run, step)
    kill(process.pid, signal.SIGTERM)
    run.finish(process)
    return run.status()["saved_step"]


def stopped(run: SmallRun, chance: random.Random, number: int) -> str:
    """Send a signal to the launcher; the run must save and end by itself."""
    process = launch(run, chance.randint(5, STEPS // 2))
    left = [process.pid, *descendants(process.pid)]
    began = time.monotonic()
    kill(process.pid, number)
    run.finish(process)
    gone(left)
    status, took = run.status(), time.monotonic() - began
    if status.get("state") != "preempted" or status["saved_step"] != status["step"]:
        raise UserError(f"after {signal.Signals(number).name} status.json says {status}")
    run.finished()
    return f"{signal.Signals(number).name} at step {status['step']}: saved and ended in {took:.1f} s"


def disk_full(run: SmallRun, chance: random.Random) -> str:
    """Let no file of this run grow beyond half a checkpoint, as on a full disk, once it trains.

    Not before: the limit holds for shared memory, too, of which NCCL makes files when it begins.
    """
    before = preempt(run, chance.randint(5, 15))
    limit = (run.folder / "checkpoint.pt").stat().st_size // 2
    process = launch(run, before + 1)
    for rank in ranks(process):
        resource.prlimit(rank, resource.RLIMIT_FSIZE, (limit, limit))
    if run.finish(process) == 0 or run.step() != STEPS:
        raise UserError(f"with a full disk the run went to step {run.step()} and did not end with an error")
    saved = torch_file.load(torch_file.kept(run.folder)[0])["step"]
    if not before <= saved < STEPS:
        raise UserError(f"with a full disk the last checkpoint is of step {saved}")
    run.finished()
    return f"full after the save of step {saved}: trained to the end, ended with an error, saved when there was room"


def damaged(run: SmallRun, chance: random.Random, how: str) -> str:
    """Damage the newest checkpoint; the run must continue from the one before."""
    step = preempt(run, chance.randint(12, STEPS // 2))
    damage(run.folder / "checkpoint.pt", how, chance)
    run.finished()
    if "set aside as" not in run.printed():
        raise UserError("the damaged checkpoint was not named")
    return f"checkpoint of step {step} {how}: named, and the one before it used"


def damage(path: Path, how: str, chance: random.Random) -> None:
    """Damage a file of `torch.save` as `how` says: "with a flipped bit", "cut short" or "emptied"."""
    content = bytearray(path.read_bytes())
    if how == "with a flipped bit":  # of a tensor: a bit of the padding would change nothing
        with zipfile.ZipFile(path) as records:
            largest = records.read(max(records.infolist(), key=lambda record: record.file_size))
        content[content.index(largest) + chance.randrange(len(largest))] ^= 1 << chance.randrange(8)
    elif how == "cut short":
        del content[chance.randrange(1, len(content)) :]
    elif how == "emptied":
        content.clear()
    path.write_bytes(content)


# All of them --------------------------------------------------------------------------


def trials(kills: int, chance: random.Random) -> dict[str, Callable[[SmallRun], str]]:
    """{name: a function that disturbs a run and says what it did}."""
    return {
        "ranks killed": lambda run: killed(run, chance, kills, "rank"),
        "launcher killed": lambda run: killed(run, chance, 2, "launcher"),
        "terminated": lambda run: stopped(run, chance, signal.SIGTERM),
        "interrupted": lambda run: stopped(run, chance, signal.SIGINT),
        "disk full": lambda run: disk_full(run, chance),
        "flipped bit": lambda run: damaged(run, chance, "with a flipped bit"),
        "cut short": lambda run: damaged(run, chance, "cut short"),
    }


def surroundings(folder: Path) -> str:
    """The time to flush a file to this disk, and the shared memory that loader workers have for their batches."""
    began = time.monotonic()
    with open(folder / "probe", "wb") as file:
        file.write(os.urandom(64 << 20))
        file.flush()
        os.fsync(file.fileno())
    took = time.monotonic() - began
    (folder / "probe").unlink()
    shared = Path("/dev/shm")
    room = f"{shutil.disk_usage(shared).free >> 20} MiB free in {shared}" if shared.is_dir() else f"no {shared}"
    return f"64 MiB written and flushed in {took:.2f} s; {room}"


def parse() -> argparse.Namespace:
    parser = argument_parser("ssl.faultcheck", __doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="new folder, on the disk the job will use")
    parser.add_argument("--processes", type=int, help="1, 2, 4 or 8, on GPUs one each (default 2; 1 where is one GPU)")
    parser.add_argument("--kills", type=int, default=5, help="SIGKILLs of ranks in one run (default 5)")
    parser.add_argument("--seed", type=int, help="decides the moments of all faults (default: drawn, and printed)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    options = parser.parse_args()
    if options.processes is None:
        options.processes = 1 if options.device != "cpu" and torch.cuda.device_count() == 1 else 2
    if options.processes not in (1, 2, 4, 8):
        raise UserError(f"processes: {options.processes} is none of 1, 2, 4, 8")
    if not 1 <= options.kills <= STEPS:
        raise UserError(f"kills: {options.kills} is not in 1..{STEPS}")
    if options.output_dir.exists():
        raise UserError(f"output_dir: {options.output_dir} exists already; name a new folder")
    return options


def main() -> None:
    be_alone()
    options = parse()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    try:
        options.output_dir.mkdir(parents=True)
        images = make_images(options.output_dir / "images")
        around = surroundings(options.output_dir)
    except OSError as error:
        raise UserError(f"output_dir: cannot write to {options.output_dir} ({error})") from None
    chosen = trials(options.kills, random.Random(seed))
    say(f"seed {seed}; {len(chosen) + 1} runs of {STEPS} steps, some of them launched many times\n{around}\n")

    def new_run(name: str) -> SmallRun:
        folder = options.output_dir / name.replace(" ", "_")
        return SmallRun(folder, images, options.processes, {"device": options.device})

    began = time.monotonic()
    whole = new_run("undisturbed")
    whole.finished()
    expected = whole.digest()
    say(f"undisturbed: {time.monotonic() - began:.0f} s")
    rows, failed = [["trial", "weights", "seconds", "what happened"]], 0
    for name, trial in chosen.items():
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
            run.log.unlink()
    say("\n" + table(rows))
    if failed:
        raise UserError(f"{failed} of {len(chosen)} trials failed; their runs are in {options.output_dir}")
    say("\nafter every trial the run ended in the same weights")


if __name__ == "__main__":
    with one_line_errors("faultcheck", failures.explain):
        main()
