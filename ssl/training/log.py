"""metrics.jsonl: a line for each log step."""

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
    """metrics.jsonl: a line a log step; a resumed run drops the lines its checkpoint had not reached.

    Those are lines of later steps, and lines of which `reached` says no.
    A full disk stops nobody: lines wait until there is room. Raises `UserError` where the file
    cannot be written at the beginning, and at the end where lines still wait.
    """

    def __init__(self, path: Path, step: int, reached: Callable[[dict], bool] = lambda line: True):
        self.path, self.file, self.waiting = path, None, b""
        self.board = Board(path.parent, step)
        if not is_main():
            return
        try:
            lines = path.read_text("utf-8", errors="replace").splitlines() if step and path.exists() else []
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
    """Six digits of a float, in lists too; null for what JSON has no number for."""
    if isinstance(value, list):
        return [_tidy(one) for one in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _step(line: str) -> float:
    """The step of a metrics line; a line cut short by a crash counts as never reached."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, LookupError, TypeError, RecursionError, OverflowError):
        return math.inf
