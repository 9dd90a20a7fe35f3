"""Write metrics.jsonl, one line for each log step, and the same numbers for TensorBoard."""

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path

from ssl.distributed import is_main
from ssl.errors import UserError
from ssl.files import write_text
from ssl.training.tensorboard import Board


class Metrics:
    """The file `path`. A run that continues at `step` drops the lines that its checkpoint had not reached.

    These are the lines of later steps, and those for which `reached` is false. A full disk does not stop the run: lines
    wait until there is room. Raises `UserError` where the file cannot be written at the beginning, and in `close` where
    lines still wait.
    """

    def __init__(self, path: Path, step: int, reached: Callable[[dict], bool] = lambda line: True):
        self.path, self.file, self.waiting = path, None, b""
        self.board = Board(path.parent, step)
        if not is_main():
            return
        try:
            lines = path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []
            kept = [line for line in lines if _step(line) <= step and reached(json.loads(line))]
            write_text("".join(line + "\n" for line in kept), path)
            self.file = open(path, "ab", buffering=0)  # noqa: SIM115, open as long as the run
        except OSError as error:
            raise UserError(f"output_dir: cannot write {path} ({error})") from None

    def write(self, **values) -> None:
        if self.file:
            self.waiting += (json.dumps({k: _tidy(v) for k, v in values.items()}) + "\n").encode()
            self._flush()
            self.board.scalars(values["step"], values)

    def _flush(self) -> None:
        with contextlib.suppress(OSError):
            while self.waiting:
                self.waiting = self.waiting[self.file.write(self.waiting) :]  # a nearly full disk takes a part

    def close(self) -> None:
        if self.file:
            self._flush()
            self.file.close()
            self.board.close()
        if self.waiting:
            raise UserError(f"{self.path}: the last {self.waiting.count(10)} lines could not be written")


def _tidy(value):
    """Floats, also in lists, with six digits; None for NaN and Inf, which JSON does not have."""
    if isinstance(value, list):
        return [_tidy(one) for one in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _step(line: str) -> float:
    """The step of a line; infinity for a line that a crash has cut."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError, RecursionError, OverflowError):
        return math.inf
