"""Errors that a user can put right: one line, printed once, without a traceback."""

import contextlib
import difflib
import json
import os
import signal
import sys
import time
from collections.abc import Callable

from ssl.signals import heard

PATIENCE = 10.0  # seconds in which the end of rank 0 ends the other ranks
CLEARED = "\r\x1b[K"  # a terminal goes back to the beginning of the line, and clears it
_failure_callbacks: list[Callable[[str], None]] = []


def one_line(text) -> str:
    """`text` as one printable line. Text from a file must not print further lines, or control a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def nearest(name, names, cutoff: float = 0.5) -> str:
    """'; did you mean …?', the end of an error about a name that is none of `names`; '' where none is similar.

    Upper and lower case count as the same. `cutoff` in [0, 1]: how similar they must be (`difflib.get_close_matches`).
    """
    spelled = {str(n).lower(): str(n) for n in names}
    close = difflib.get_close_matches(str(name).lower(), spelled, n=1, cutoff=cutoff)
    return f"; did you mean {spelled[close[0]]!r}?" if close else ""


def on_failure(callback: Callable[[str], None]) -> None:
    """Call `callback` with the reason when an error ends the script."""
    _failure_callbacks.append(callback)


def tell(text: str) -> None:
    """Print on stderr, also in a notebook, where it is no file. A closed stderr is ignored.

    On a terminal the line begun there is cleared first: a progress bar, or the ^C of Ctrl-C.
    """
    with contextlib.suppress(OSError, ValueError):
        print(CLEARED * on_terminal() + text, file=sys.stderr, flush=True)


def on_terminal() -> bool:
    """Whether stderr is a terminal."""
    with contextlib.suppress(AttributeError, ValueError):
        return sys.stderr.isatty()
    return False


class UserError(ValueError):
    """Something the user can put right: a setting, a folder, a file.

    The message is one line: what was wrong, what was expected, what to do.
    """


@contextlib.contextmanager
def one_line_errors(script: str, explain: Callable[[Exception], str | None] = lambda error: None):
    """Print a `UserError`, and an error that `explain` returns words for, as one line, and exit with status 2.

    Most errors happen on every rank. Rank 0 prints at once and ends, and torchrun then ends the others. A rank that
    still runs after PATIENCE has met the error alone, and prints it too.
    """
    try:
        yield
    except KeyboardInterrupt:  # Ctrl-C where nothing is saved: at the start of a run, or in an evaluation
        _tell_failure("interrupted")
        _tell_last(f"{script}: interrupted")
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)  # ends the process so that a shell's loop ends, too
    except Exception as error:
        words = str(error) if isinstance(error, UserError) else explain(error)
        rank = int(os.environ.get("RANK") or 0)
        if words is None:
            _tell_failure(one_line(f"{script}: rank {rank}: {type(error).__name__}: {error}"))
            raise
        if rank:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # end at torchrun's SIGTERM, which asked a run to save
            time.sleep(PATIENCE)
            if signal.SIGTERM in heard:  # before the error: if torchrun's, it kills this rank 30 seconds later
                time.sleep(3 * PATIENCE)
        line = f"{script}: error: {f'rank {rank}: ' if rank else ''}{one_line(words)}"
        _tell_failure(line)
        _tell_last(line)
        report = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if report:  # torchrun's last lines then give this reason, too
            with contextlib.suppress(OSError), open(report, "w", encoding="utf-8") as file:
                json.dump({"message": line, "timestamp": int(time.time())}, file)
        os._exit(2)  # not sys.exit, which may wait for the other ranks to leave the process group


def _tell_last(line: str) -> None:
    """Print on stderr, after all of stdout."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    tell(line)


def _tell_failure(reason: str) -> None:
    for callback in _failure_callbacks:
        callback(reason)
