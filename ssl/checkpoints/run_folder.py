"""Write the folder of a run: status.json, and the checkpoints that the run continues from.

Only rank 0 writes. A thread writes checkpoints from a copy, so training goes on meanwhile. Training also goes on when
the disk is full, and the save is tried again.
"""

import contextlib
import json
import math
import os
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from ssl import files
from ssl.checkpoints import alive, overwritten, torch_file
from ssl.checkpoints.lock import lock
from ssl.console import say
from ssl.distributed import barrier, broadcast_object, is_main
from ssl.errors import UserError, first_line, on_failure, one_line
from ssl.files import json_text

RETRY = 60.0  # seconds after which a failed save is tried again
START = ("status.json", "config.yaml", "about.json", "trained_on.pt", "stop", "lock")  # what a start writes; lock last
DIVERGED = "training has diverged: lower --lr, lengthen --warmup_epochs, set --clip_grad 1, or try --amp off"


class RunFolder:
    """A folder that this run alone uses until its process ends. All ranks make one; rank 0 writes.

    Raises `UserError` where the folder cannot be written, another run uses it, or a run that `begins` would write over
    weights in it.
    """

    def __init__(self, folder: Path, keep: int, begins: bool = False):
        self.folder, self.keep = folder, keep
        self.pool = ThreadPoolExecutor(1)
        self.pending: Future | None = None
        self.trouble: str | None = None  # why the last save failed
        self.step = self.length = 0
        self.saved_step: int | None = None
        self.best: dict = {}  # on rank 0: the best encoder ("weights"), and why ("about"); part of a checkpoint
        self.begun: str | None = None  # when its first step began
        self.seconds: float | None = 0.0  # how long earlier processes computed; None: not known
        self.started = time.monotonic()
        self.state, self.reason = "running", ""
        self.status_lock = threading.Lock()
        self.tried = time.monotonic()
        self.made = files.missing_folders(folder)  # by this start
        if is_main():
            if begins:
                overwritten.require_no_weights(folder)
            try:
                self.lock = lock(folder / "lock")
                partial = folder.glob(f"*{files.PARTIAL}*")  # older versions put the name of the file before it
                files.remove_abandoned(path for path in partial if not path.is_dir())
            except OSError as error:
                raise UserError(f"output_dir: cannot write to {folder} ({error})") from None
            before = self._written_status()
            self.step, self.length = before.get("step", 0), before.get("of", 0)
            self.saved_step, self.begun = before.get("saved_step"), before.get("begun")
            self.seconds = before.get("seconds") if before else 0.0
            self.status("running")
        # If rank 0 was refused, no other rank goes on.
        self.made, self.seconds = broadcast_object((self.made, self.seconds))
        on_failure(self.failed)

    def begin(self, step: int, length: int) -> None:
        """Training begins at `step` of `length`, the step of the folder's newest checkpoint if it has any."""
        self.step, self.length, self.saved_step = step, length, step if torch_file.kept(self.folder) else None
        if step == 0:
            self.begun, self.seconds = now(), 0.0
        if is_main():
            self.status("running")

    def end(self, state: str, reason: str) -> None:
        if is_main():
            self.status(state, reason)

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        """Let `write` write the file `name`, whole or not at all. Raises `UserError` where it cannot be written."""
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
                "time": now(),
                "begun": self.begun,
                "seconds": self._seconds(),
                **alive.where(),
            }
            files.write_text(json.dumps(words, indent=2) + "\n", self.folder / "status.json")

    def _seconds(self) -> float | None:
        """How long the run has computed, without the pauses between its processes."""
        known = isinstance(self.seconds, int | float)
        return round(self.seconds + time.monotonic() - self.started, 1) if known else None

    def failed(self, reason: str) -> None:
        """Write that the run ended with an error. Any rank may call it; the first reason is kept.

        If this start has made the folder and saved nothing yet, it removes the folder instead.
        """
        if self.made and self.pending is None and files.remove_start(self.folder, START):
            files.remove_empty(self.made)
            return
        written = self._written_status()
        if written.get("state") == "failed":
            self.state, self.reason = "failed", written.get("reason", "")  # in case a save ends after this
            return
        if not is_main():
            self.saved_step, self.begun = written.get("saved_step"), written.get("begun")
        self.status("failed", reason)

    def _written_status(self) -> dict:
        return files.json_object(self.folder / "status.json")

    # Continuing -----------------------------------------------------------------------

    def newest(self, is_ours: Callable[[object], bool], up_to: float = math.inf) -> dict | None:
        """The newest checkpoint that is whole and `is_ours`, on all ranks; None where the folder has none.

        One of a step after `up_to` is taken only where there is no other. Damaged ones are named and renamed. Raises
        `UserError` where all are damaged, or the system does not let one be read: a run whose checkpoints cannot be
        read must not start again from step 0.
        """
        name = state = None
        if is_main():
            name, state = self._newest(is_ours, up_to)
        name = broadcast_object(name)
        if name is not None and state is None:
            path = self.folder / name
            if not path.is_file():
                raise UserError(f"output_dir: {self.folder} is not the same folder on all nodes; use a disk they share")
            state = torch_file.load(path)
        barrier()  # the next save renames files that another rank may still read
        return state

    def _newest(self, is_ours: Callable[[object], bool], up_to: float) -> tuple[str | None, dict | None]:
        """(file name, content) of `newest`, on rank 0."""
        found, problems, others = torch_file.kept(self.folder), {}, 0
        chosen: tuple[str, dict] | None = None
        for path in found:
            try:
                state = torch_file.load(path)
                if not is_ours(state):
                    others += 1
                    raise UserError(f"{path}: not a checkpoint of this script")
            except torch_file.Unreadable:
                raise
            except UserError as error:
                problems[path] = str(error)
                continue
            if chosen is None or state["step"] <= up_to:
                chosen = path.name, state
            if state["step"] <= up_to:
                break
        if chosen:
            for worse, problem in problems.items():  # or the next save would keep them, and remove whole ones
                os.replace(worse, worse.with_name(worse.name + ".damaged"))
                say(f"*** {one_line(problem)}; set aside as {worse.name}.damaged, continuing from {chosen[0]} ***")
            return chosen
        if found and others == len(found):
            raise UserError(f"output_dir: {self.folder} holds a run of another script; choose another --output_dir")
        if found or any(self.folder.glob("checkpoint*.pt.damaged")):
            raise UserError(
                f"output_dir: {self.folder} has checkpoints, but none is whole, and the run does not start again over "
                f"them ({'; '.join(problems.values())}). Put back a copy, or choose another --output_dir"
            )
        return None, None

    # Saving ---------------------------------------------------------------------------

    def due(self, minutes: float) -> bool:
        """Whether it is time to save, on rank 0: `minutes` after the last try, or sooner if that failed."""
        if self.pending and self.pending.done():
            self.settle()
        wait = minutes * 60 if self.trouble is None else min(minutes * 60, RETRY)
        return is_main() and self.pending is None and time.monotonic() - self.tried > wait

    def save(self, state: dict, encoder: dict, wait: bool = False) -> None:
        """Write checkpoint.pt from `state` and encoder.pt from `encoder`, in the background. Only rank 0 calls it.

        A failed save leaves its reason in `trouble`. With `wait` this returns when the save has ended, and raises
        `UserError` after three failures. Weights that are not finite are never saved: `UserError`.
        """
        for pause in (5, 5, 0):
            self.settle()
            self.tried = time.monotonic()
            self.pending = self.pool.submit(self._save, *copied([state, encoder]))
            if not wait:
                return
            self.settle()
            if self.trouble is None:
                return
            time.sleep(pause)
        at = "nothing" if self.saved_step is None else f"step {self.saved_step}"
        raise UserError(
            f"step {state['step']} could not be saved ({self.trouble}); the last that was is {at}. "
            "Make room, then run the same command again: it continues from there"
        )

    def settle(self) -> None:
        """Wait until a save in the background has ended, and say if it failed, or works again."""
        if self.pending is None:
            return
        error, before = self.pending.exception(), self.trouble
        self.pending = None
        if error is not None and not isinstance(error, OSError | RuntimeError):
            raise error
        self.trouble = None if error is None else first_line(error)
        if self.trouble and not before:
            say(f"*** could not save: {self.trouble}; training goes on, and it is tried again ***")
        elif before and not self.trouble:
            say(f"*** saved again, at step {self.saved_step} ***")

    def keep_best(self, encoder: dict, about: dict) -> None:
        """Keep this encoder; the next save of a state that holds it writes encoder_best.pt and best.json."""
        if is_main():
            self.best = {"weights": copied(encoder), "about": dict(about)}

    def _save(self, state: dict, encoder: dict) -> None:
        step = state["step"]
        if not all(weight.isfinite().all() for weight in state["model"].values()):
            raise UserError(f"the weights are not finite at step {step}, and were not saved; {DIVERGED}")
        torch_file.save(encoder, self.folder / "encoder.pt")  # if this fails, no checkpoint is renamed
        self._write_best(state.get("encoder_best"))
        torch_file.rotate(state, self.folder, self.keep)
        self.saved_step = step
        self.status()

    def _write_best(self, best: dict | None) -> None:
        """Write encoder_best.pt and best.json, unless they are of this encoder already.

        Files there may be of steps that were lost. best.json never describes another encoder than encoder_best.pt.
        """
        about = self.folder / "best.json"
        words = best and json_text(best["about"])
        if words and not files.holds(about, words):
            about.unlink(missing_ok=True)
            torch_file.save(best["weights"], self.folder / "encoder_best.pt")
            files.write_text(words, about)


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


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
