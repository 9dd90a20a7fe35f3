"""What a person sees of a run: a bar or plain lines, and metrics.jsonl. As a command: report.html of runs.

python -m ssl.report RUN [RUN ...]
    One file, report.html in the first folder, or --output FILE: settings and their origin,
    curves, pictures, verdicts, speed and evaluations, of several runs side by side. It opens
    from disk, needs no network and runs no script; a run may still be going on. Where
    matplotlib is installed, each run's curves are also curves.png in its folder.
--pictures first looks at the encoder: neighbours, projection, correlation and spectrum of some
    thousand of the run's own images, kept in its folder.
"""

import argparse
import contextlib
import functools
import json
import math
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from ssl.board import Board
from ssl.checkpoint import write_text
from ssl.distributed import is_main
from ssl.errors import UserError, one_line, one_line_errors


def say(text: str = "") -> None:
    """Print on rank 0, past any progress bar; where nobody can be told any more, the work goes on."""
    with contextlib.suppress(OSError):
        if is_main():
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()


@functools.cache
def say_once(text: str) -> None:
    """`say` it, as one printable line, unless this process has said it before: every split finds the same."""
    say(one_line(text))


def duration(seconds: float) -> str:
    """3725 -> '1:02:05'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Progress:
    """A bar on a terminal, a line every half minute elsewhere; rank 0 only."""

    def __init__(self, total: int, start: int, unit: str = "step"):
        self.total, self.start, self.unit, self.began, self.spoke = total, start, unit, time.monotonic(), 0.0
        self.terminal = is_main() and sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=start, unit=unit, dynamic_ncols=True, disable=not self.terminal)

    def update(self, step: int, note: str = "") -> None:
        """`step` steps are done; `note` is shown beside them."""
        self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(step - self.bar.n)
        now = time.monotonic()
        if is_main() and not self.terminal and (now - self.spoke > 30 or step == self.total):
            self.spoke = now
            left = (now - self.began) / max(step - self.start, 1) * (self.total - step)
            say(f"{self.unit} {step}/{self.total}  {note}  left {duration(left)}")

    def close(self) -> None:
        self.bar.close()


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


def json_lines(path: Path) -> list[dict]:
    """What a file of JSON objects holds, a line each; none where there is no file. A line cut short is left out."""
    found = []
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        found += [value] if isinstance(value, dict) else []
    return found


def json_text(value) -> str:
    """JSON to read: indented, but a list of plain values, as a row of a matrix, on one line."""
    text = json.dumps(value, indent=2)  # a line break in it is layout: within words it is written \\n
    return re.sub(r'\[\n([^][{}"]*)\n *\]', lambda row: f"[{' '.join(row[1].split())}]", text) + "\n"


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


def table(rows: list[list[str]]) -> str:
    """Rows of words in aligned columns, a rule under the first."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths)))
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def main() -> None:
    from ssl import page, pictures, runfiles

    about, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m ssl.report", description=about, epilog=details, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="output_dir of train.py or finetune.py")
    parser.add_argument("--output", metavar="FILE", type=Path, help="default: report.html in the first run folder")
    parser.add_argument("--pictures", action="store_true", help="look at the encoders, some minutes each")
    options = parser.parse_args()
    if options.pictures:
        from ssl import looks

        for folder in options.runs:
            looks.make(folder, runfiles.read(folder))
    path = options.output or options.runs[0] / "report.html"
    found = [runfiles.read(folder) for folder in options.runs]
    for folder, run in zip(options.runs, found):
        try:
            pictures.curves(folder / "curves.png", run)
        except OSError as error:  # a folder that is only for reading
            say(f"*** {folder / 'curves.png'} could not be written ({error}) ***")
    text = page.page(found)
    try:
        write_text(text, path)
    except OSError as error:
        raise UserError(f"output: cannot write {path} ({error})") from None
    say(f"report      {path}")


if __name__ == "__main__":
    with one_line_errors("report"):
        main()
