"""Write the folder of a run: a lock, status.json, and the checkpoints that the run continues from.

Only rank 0 writes. A thread writes checkpoints from a copy, so training goes on meanwhile. When the disk is full,
training goes on too, and the save is tried again.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import platform
import socket
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import torch
import torchvision

from ssl import files
from ssl.augment import View
from ssl.checkpoints import alive, torch_file
from ssl.console import say
from ssl.data.order import Order
from ssl.distributed import ORPHANED, barrier, broadcast_object, is_main, world_size
from ssl.errors import UserError, on_failure, one_line, tell
from ssl.files import json_text

LEAVING = ORPHANED + 5  # seconds to wait until an earlier run, whose launcher was killed, has saved and ended
RETRY = 60.0  # seconds until a failed save is tried again
DIVERGED = "training has diverged: lower --lr, lengthen --warmup_epochs, set --clip_grad 1, or try --amp off"


class RunFolder:
    """A folder that this run alone uses until its process ends. All ranks make one; rank 0 writes.

    Raises `UserError` where the folder cannot be written or another run uses it.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep
        self.pool = ThreadPoolExecutor(1)
        self.pending: Future | None = None
        self.trouble: str | None = None  # why the last save failed
        self.step = self.length = 0
        self.saved_step: int | None = None
        self.best: dict = {}  # on rank 0: the best encoder ("weights"), and why ("about"); part of a checkpoint
        self.state, self.reason = "running", ""
        self.status_lock = threading.Lock()
        self.tried = time.monotonic()
        if is_main():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self.lock = _lock(folder / "lock")
            except OSError as error:
                raise UserError(f"output_dir: cannot write to {folder} ({error})") from None
            for partial in folder.glob(f"*{files.PARTIAL}*"):  # left by a process that was killed
                partial.unlink(missing_ok=True)
            before = self._written()
            self.step, self.length = before.get("step", 0), before.get("of", 0)
            self.saved_step = before.get("saved_step")
            self.status("running")
        broadcast_object(None)  # a rank that is refused ends here, and writes nothing into another run's folder
        on_failure(self.failed)

    def begin(self, step: int, length: int) -> None:
        """The run goes on at `step` of `length`. The newest checkpoint of the folder, if any, is of that step."""
        self.step, self.length, self.saved_step = step, length, step if torch_file.kept(self.folder) else None
        if is_main():
            self.status("running")

    def end(self, state: str, reason: str) -> None:
        if is_main():
            self.status(state, reason)

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        """Let `write` make the file `name` in the folder, whole or not at all. Raises `UserError` where it cannot."""
        try:
            with files.replacing(self.folder / name) as partial:
                write(partial)
        except OSError as error:
            raise UserError(f"output_dir: cannot write to {self.folder} ({error})") from None

    # Status ---------------------------------------------------------------------------

    def status(self, state: str | None = None, reason: str = "") -> None:
        """Write status.json. `state` is running, finished, preempted or failed; unset: as before.

        A full disk does not stop the run.
        """
        with self.status_lock, contextlib.suppress(OSError):
            if state is not None:
                self.state, self.reason = state, reason
            words = {
                "state": self.state,
                "step": self.step,
                "of": self.length,
                "saved_step": self.saved_step,
                "reason": self.reason,
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                **alive.where(),
            }
            files.write_text(json.dumps(words, indent=2) + "\n", self.folder / "status.json")

    def failed(self, reason: str) -> None:
        """Write the status of a run that ends with an error. Any rank may call it; the first reason is kept."""
        written = self._written()
        if written.get("state") == "failed":
            self.state, self.reason = "failed", written.get("reason", "")  # in case a save ends after this
            return
        if not is_main():
            self.saved_step = written.get("saved_step")
        self.status("failed", reason)

    def _written(self) -> dict:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            written = json.loads((self.folder / "status.json").read_text("utf-8"))
            return written if isinstance(written, dict) else {}
        return {}

    # Continuing -----------------------------------------------------------------------

    def newest(self, is_ours: Callable[[object], bool]) -> dict | None:
        """The newest checkpoint that is whole and `is_ours`, on all ranks; None where the folder has none.

        A damaged one is named and set aside. Raises `UserError` where all are damaged: a run never starts again from
        step 0 because its checkpoints cannot be read.
        """
        name = state = None
        if is_main():
            name, state = self._choose(is_ours)
        name = broadcast_object(name)
        if name is not None and state is None:
            path = self.folder / name
            if not path.is_file():
                raise UserError(f"output_dir: {self.folder} is not the same folder on all nodes; use a disk they share")
            state = torch_file.load(path)
        barrier()  # the next save moves files that another rank may still read
        return state

    def _choose(self, is_ours: Callable[[object], bool]) -> tuple[str | None, dict | None]:
        found, damage, others = torch_file.kept(self.folder), [], 0
        for path in found:
            try:
                state = torch_file.load(path)
                if not is_ours(state):
                    others += 1
                    raise UserError(f"{path}: not a checkpoint of this script")
            except UserError as error:
                damage.append(str(error))
                continue
            for worse, reason in zip(found, damage):  # else they would take the places of whole ones
                os.replace(worse, worse.with_name(worse.name + ".damaged"))
                say(f"*** {one_line(reason)}; set aside as {worse.name}.damaged, continuing from {path.name} ***")
            return path.name, state
        if found and others == len(found):
            raise UserError(f"output_dir: {self.folder} holds a run of another script; choose another --output_dir")
        if found or any(self.folder.glob("checkpoint*.pt.damaged")):
            raise UserError(
                f"output_dir: {self.folder} has checkpoints, but none that is whole, and is not begun anew over them "
                f"({'; '.join(damage)}). Put back a copy, or choose another --output_dir"
            )
        return None, None

    # Saving ---------------------------------------------------------------------------

    def due(self, minutes: float) -> bool:
        """Whether it is time to save, on rank 0: `minutes` after the last try, or sooner if that failed."""
        self._note_outcome()
        wait = minutes * 60 if self.trouble is None else min(minutes * 60, RETRY)
        return is_main() and self.pending is None and time.monotonic() - self.tried > wait

    def save(self, state: dict, encoder: dict, wait: bool = False) -> None:
        """Write checkpoint.pt from `state` and encoder.pt from `encoder`, in the background. Only rank 0 calls it.

        A failed save leaves its reason in `trouble`; with `wait` it raises `UserError` after three tries. Weights
        that are not finite are never saved: `UserError`.
        """
        for patience in (5, 5, None) if wait else (None,):
            self._note_outcome(block=True)
            self.tried = time.monotonic()
            self.pending = self.pool.submit(self._save, *copied([state, encoder]))
            if wait:
                self._note_outcome(block=True)
                if self.trouble is None:
                    return
                if patience:
                    time.sleep(patience)
        if wait:
            at = "nothing" if self.saved_step is None else f"step {self.saved_step}"
            raise UserError(
                f"step {state['step']} could not be saved ({self.trouble}); the last that was is {at}. "
                "Make room, then run the same command again: it continues from there"
            )

    def keep_best(self, encoder: dict, about: dict) -> None:
        """Keep this encoder; the next save of a state that holds it writes encoder_best.pt and best.json."""
        if is_main():
            self.best = {"weights": copied(encoder), "about": dict(about)}

    def _save(self, state: dict, encoder: dict) -> None:
        step = state["step"]
        if not all(weight.isfinite().all() for weight in state["model"].values()):
            raise UserError(f"the weights are not finite at step {step}, and were not saved; {DIVERGED}")
        torch_file.save(
            encoder, self.folder / "encoder.pt"
        )  # first, since a failure here must not move the checkpoints
        self._write_best(state.get("encoder_best"))
        torch_file.rotate(state, self.folder, self.keep)
        self.saved_step = step
        self.status()

    def _write_best(self, best: dict | None) -> None:
        """Write encoder_best.pt and best.json, unless they are this encoder's already.

        The files there may be of steps that were lost. best.json never describes another encoder than the one beside
        it.
        """
        about = self.folder / "best.json"
        words = best and json_text(best["about"])
        if words and not files.holds(about, words):
            about.unlink(missing_ok=True)
            torch_file.save(best["weights"], self.folder / "encoder_best.pt")
            files.write_text(words, about)

    def _note_outcome(self, block: bool = False) -> None:
        if self.pending is None or not (block or self.pending.done()):
            return
        error, before = self.pending.exception(), self.trouble
        self.pending = None
        if error is not None and not isinstance(error, OSError | RuntimeError):
            raise error
        self.trouble = None if error is None else str(error).splitlines()[0]
        if self.trouble and not before:
            say(f"*** could not save: {self.trouble}; training goes on, and it is tried again ***")
        elif before and not self.trouble:
            say(f"*** saved again, at step {self.saved_step} ***")

    def settle(self) -> None:
        """Wait until a save in the background has ended."""
        self._note_outcome(block=True)


def copied(value: Any) -> Any:
    """`value` with every tensor copied to the CPU, so that a thread can write it while training goes on.

    Copies from a GPU go to pinned memory, so the host waits once for all of them.
    """
    copies = _begin_copies(value)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return copies


def _begin_copies(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", non_blocking=True, copy=True)  # pins the copy
    if isinstance(value, dict):
        return {key: _begin_copies(item) for key, item in value.items()}
    return [_begin_copies(item) for item in value] if isinstance(value, list | tuple) else value


def checksum(weights: dict[str, torch.Tensor]) -> str:
    """A checksum of the bytes of tensors on the CPU."""
    seen = 0
    for value in weights.values():
        seen = zlib.crc32(value.contiguous().flatten().view(torch.uint8).numpy(), seen)
    return f"{seen:08x}"


def _lock(path: Path):
    """Lock the file until this process ends. The kernel releases the lock however it ends."""
    file = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115, open as long as the run
    patience, told = time.monotonic() + LEAVING, time.monotonic() + 5
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock, not inherited by loader workers
            break
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                tell(f"{path}: cannot be locked here ({error}): mind that no second run uses this folder")
                return file
            file.seek(0)
            holder = file.read(200).strip() or "?"
            if time.monotonic() > told:
                told = patience
                tell(f"output_dir: {path.parent} is in use ({holder}); waiting a minute for it to end")
            if time.monotonic() > patience:
                raise UserError(
                    f"output_dir: {path.parent} is in use by another run ({holder}); wait for it, stop it, or choose "
                    "another --output_dir"
                ) from None
            time.sleep(0.2)
    job = os.environ.get("SLURM_JOB_ID")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}{f', Slurm job {job}' if job else ''}\n")
    file.flush()
    return file


def write_about(path: Path, origin: dict[str, str], views: list[View], statistics: tuple, order: Order) -> None:
    """Write about.json for ssl.report: where settings came from, and what followed from them."""
    about = {
        "origin": origin,
        "views": [dataclasses.asdict(view) for view in views],
        "versions": versions(),
        "mean": statistics[0],
        "std": statistics[1],
        "images": order.count,
        "processes": world_size(),
        "global_batch": order.global_batch,
        "steps_per_epoch": order.steps_per_epoch,
    }
    path.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def threads_of(folder: Path) -> int | None:
    """The number of threads with which the run in `folder` computed; None where it is not known."""
    with contextlib.suppress(OSError, ValueError, RecursionError, TypeError, KeyError):
        return int(json.loads((folder / "about.json").read_text("utf-8"))["versions"]["threads"])
    return None


def versions() -> dict[str, str]:
    """What decides the last bits of a result, besides the settings."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": str(numpy.__version__),
        "threads": str(torch.get_num_threads()),
    }
