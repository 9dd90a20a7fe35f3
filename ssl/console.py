"""Lines and the progress bar of a run. Only rank 0 prints."""

import argparse
import contextlib
import functools
import sys
import time
import weakref
from collections.abc import Sequence

from tqdm import tqdm

from ssl.distributed import is_main
from ssl.errors import CLEARED, on_failure, on_terminal, one_line


def say(text: str = "") -> None:
    """Print on rank 0, above any progress bar. A closed stdout is ignored; what its encoding lacks is escaped."""
    with contextlib.suppress(OSError):
        if is_main() and sys.stdout is not None:  # it is None where it was closed before the start
            tqdm.write(_spelled(text), file=sys.stdout)
            sys.stdout.flush()


def _spelled(text: str) -> str:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


@functools.cache
def say_once(text: str) -> None:
    """`say` one printable line once per process: several splits of the data lead to the same words."""
    say(one_line(text))


def argument_parser(command: str, about: str) -> argparse.ArgumentParser:
    """The parser of `python -m command`. `about`, the docstring of its module, is the text of --help."""
    description, _, details = about.partition("\n\n")
    return argparse.ArgumentParser(
        prog=f"python -m {command}",
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def redraws() -> bool:
    """Whether stderr can draw a line again: a terminal, or the output of a notebook's cell."""
    return on_terminal() or type(sys.stderr).__module__.startswith("ipykernel.")


class _Bar(tqdm):
    """A bar that leaves room at the end of its line, where a terminal writes the ^C of Ctrl-C.

    Of a terminal that does not know its size, and says 0, tqdm would make -1 columns and rows, and draw nothing.
    """

    nrows = property(lambda self: None, lambda self, rows: None)  # tqdm's default, enough for one bar

    @property
    def format_dict(self) -> dict:
        found = super().format_dict
        known = (found["ncols"] or 0) > 0
        return found | {"ncols": max(found["ncols"] - 3, 1) if known else None}


_bars: weakref.WeakSet[_Bar] = weakref.WeakSet()


def _close_bars(reason: str) -> None:
    """Leave what the bars show as whole lines. `reason`, why the script fails, is printed after them."""
    for bar in _bars:
        with contextlib.suppress(OSError, ValueError):
            if not bar.disable and on_terminal():
                sys.stderr.write(CLEARED)  # the ^C, which stands behind the bar
            bar.close()


on_failure(_close_bars)


class Progress:
    """A progress bar on a terminal or in a notebook, drawn at most twice a second; else a line every half minute.

    Only rank 0 prints.
    """

    PAUSE = 0.5  # seconds between two drawings of the bar

    def __init__(self, total: int, start: int, unit: str = "step"):
        self.total, self.start, self.unit = total, start, unit
        self.began, self.spoke, self.noted = time.monotonic(), 0.0, 0.0
        self.terminal = is_main() and redraws()
        self.bar = _Bar(
            total=total,
            initial=start,
            unit=unit,
            mininterval=self.PAUSE,
            miniters=1,  # it looks at the clock after every step, not after a number of steps
            dynamic_ncols=True,
            disable=not self.terminal,
        )
        _bars.add(self.bar)

    def move(self, step: int) -> None:
        """Move the bar to `step` and keep its note. Without a terminal this prints nothing."""
        self.bar.update(step - self.bar.n)

    def update(self, step: int, note: str = "") -> None:
        """`step` steps are done; `note` is shown beside them."""
        now = time.monotonic()
        self.move(step)
        shown = now - self.noted < self.PAUSE
        self.bar.set_postfix_str(note, refresh=not shown)
        self.noted = self.noted if shown else now
        if is_main() and not self.terminal and (now - self.spoke > 30 or step == self.total):
            self.spoke = now
            left = (now - self.began) / max(step - self.start, 1) * (self.total - step)
            say(f"{self.unit} {step}/{self.total}  {note}  left {tqdm.format_interval(left)}")

    def close(self) -> None:
        self.bar.close()


def counted(count: int, thing: str) -> str:
    """'1 step', '2 steps'."""
    return f"{count} {thing}{'' if count == 1 else 's'}"


def some_of(names: Sequence[str], count: int = 3) -> str:
    """The first `count` names, quoted, and how many more there are."""
    return ", ".join(map(repr, names[:count])) + (f" and {len(names) - count} more" if len(names) > count else "")


def table(rows: list[list[str]]) -> str:
    """Rows of words in aligned columns, with a line under the first row."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(row, widths)))
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
