"""A folder that a command fills with files, in several processes. The same command again makes what is missing."""

import contextlib
import itertools
import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from torch.utils.data import DataLoader

from ssl import failures, files
from ssl.console import Progress
from ssl.data.cores import core_share
from ssl.data.decode import decode
from ssl.distributed import be_alone
from ssl.errors import UserError, one_line_errors
from ssl.signals import begin_worker

WAITS = b"\nends with the files it is writing; the same command makes what is missing. Ctrl-C again does not wait\n"


def open_made(argument: str, target: Path, made_with: Path, settings: dict) -> None:
    """Make the folder `target`, with `settings` in its file `made_with`, and remove what a killed run left in it.

    Raises `UserError`, which begins with `argument`, if something in it was not made with these settings.
    """
    if target.exists() and not target.is_dir():
        raise UserError(f"{argument}: {target} is a file; expected a new folder, or one that this command made")
    words = json.dumps(settings)
    if made_with.exists():
        found = made_with.read_text("utf-8", errors="replace").strip()
        if found != words:
            raise UserError(
                f"{argument}: {target} was made with other settings, {found[:100]}, not {words[:100]}; give those "
                f"(see {made_with}), or another folder"
            )
    elif target.exists() and any(not entry.name.startswith(".") for entry in target.iterdir()):
        raise UserError(
            f"{argument}: {target} is not empty, and this command did not make it; give a new or an empty folder"
        )
    else:
        made_with.parent.mkdir(parents=True, exist_ok=True)
        write(made_with, words.encode() + b"\n")
    files.remove_abandoned(target.rglob(files.PARTIAL + "*"))


def process_count(workers: int | None) -> int:
    """`workers`; unset, one for every core. Raises `UserError` for a negative number."""
    if workers is not None and workers < 0:
        raise UserError(f"workers: {workers} is no number of processes; leave it out to have one for every core")
    return core_share() if workers is None else workers


def in_workers(tasks: list, attempt: Callable, workers: int, total: int) -> dict:
    """Call `attempt` for every task, in `workers` processes; return {task: reason} of those that have one.

    `attempt` returns why the task cannot be done, or the `UserError` that ends the command, or None. `total` counts the
    tasks that were done before, too. Raises `UserError`, also if a worker is killed. After Ctrl-C it raises
    KeyboardInterrupt when each worker has ended the tasks it has.
    """
    bad, start = {}, total - len(tasks)
    progress = Progress(total, start, "image")
    # A DataLoader notices a worker that was killed. Its workers ignore Ctrl-C and end with this process: a worker that
    # Ctrl-C ends while it holds the queue's lock would keep the others for ever.
    used = min(workers, len(tasks))
    try:
        with _until_interrupted(range(len(tasks))) as order:
            outcomes = DataLoader(
                tasks, batch_size=None, sampler=order, num_workers=used, collate_fn=attempt, worker_init_fn=begin_worker
            )
            for done, (task, outcome) in enumerate(zip(tasks, outcomes), start + 1):
                if isinstance(outcome, UserError):
                    raise outcome
                if outcome is not None:
                    bad[task] = outcome
                progress.update(done, f"{len(bad)} bad" if bad else "")
    except RuntimeError as error:
        raise UserError(f"workers: {error}. Is there too little memory? Run the command with fewer --workers") from None
    finally:
        progress.close()
    return bad


@contextlib.contextmanager
def _until_interrupted(order: Iterable[int]) -> Iterator[Iterable[int]]:
    """`order`, which ends early after Ctrl-C; KeyboardInterrupt is raised only at the end of the block. A second Ctrl-C
    raises it at once."""
    interrupted, before = [], signal.getsignal(signal.SIGINT)

    def interrupt(*_) -> None:
        interrupted.append(True)
        signal.signal(signal.SIGINT, before)
        with contextlib.suppress(OSError):  # no print: the signal may have come within one
            os.write(2, WAITS)

    if before is not signal.default_int_handler:  # it is ignored, or a caller's
        yield order
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield itertools.takewhile(lambda _: not interrupted, order)
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted:
        raise KeyboardInterrupt


def write(path: Path, content: bytes, shape: tuple | None = None, time_stamp: int | None = None) -> None:
    """Write the whole file or nothing. With `shape`, it must read back as an image of that shape."""
    with files.replacing(path) as partial:
        partial.write_bytes(content)
        if shape and decode(partial).shape != shape:
            raise OSError("it reads back as another image; is the disk sound?")
        if time_stamp is not None:
            os.utime(partial, ns=(time_stamp, time_stamp))


def run(command: str, work: Callable):
    """What `work` returns. An error is printed as one line, with exit status 2. To a shell Ctrl-C is status 130."""
    with one_line_errors(command, failures.explain):
        be_alone()
        return work()
