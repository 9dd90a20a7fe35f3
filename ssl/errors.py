"""Errors a person can act on: one line, said once, no traceback."""

import contextlib
import difflib
import json
import os
import signal
import sys
import time
from collections.abc import Callable

_heirs: list[Callable[[str], None]] = []


def one_line(text) -> str:
    """`text` as one printable line: a name or a file's words must not forge lines or steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))


def nearest(name, names, cutoff: float = 0.5) -> str:
    """'; did you mean …?' for the end of an error about a name that is none of `names`, if one is like it in any case.

    `cutoff` in [0, 1] is how alike they must be (`difflib.get_close_matches`).
    """
    spelled = {str(n).lower(): str(n) for n in names}
    close = difflib.get_close_matches(str(name).lower(), spelled, n=1, cutoff=cutoff)
    return f"; did you mean {spelled[close[0]]!r}?" if close else ""


def on_failure(heir: Callable[[str], None]) -> None:
    """Have `heir` called with the reason when an error ends the script."""
    _heirs.append(heir)


def tell(text: str) -> None:
    """Print on stderr, whatever that is here: in a notebook it is no file. Where it is closed, the work goes on."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


class UserError(ValueError):
    """Something the user can put right: a setting, a folder, a file.

    The message says what was wrong, what was expected and what to do.
    """


@contextlib.contextmanager
def one_line_errors(script: str, explain: Callable[[Exception], str | None] = lambda error: None):
    """Turn a `UserError`, and what `explain` has words for, into one line and exit status 2.

    Most errors are met by every rank. Rank 0 speaks at once, and its end makes torchrun end the
    others; one that is still there after some seconds met the error alone, and speaks too.
    """
    try:
        yield
    except Exception as error:
        words = str(error) if isinstance(error, UserError) else explain(error)
        rank = int(os.environ.get("RANK", 0))
        if words is None:
            _tell_heirs(one_line(f"{script}: rank {rank}: {type(error).__name__}: {error}"))
            raise
        if rank:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun's, which the run heard as a request to save
            time.sleep(10)
        line = f"{script}: error: {f'rank {rank}: ' if rank else ''}{one_line(words)}"
        _tell_heirs(line)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        tell(line)
        report = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if report:  # so that torchrun's own closing lines, too, give this reason
            with contextlib.suppress(OSError), open(report, "w", encoding="utf-8") as file:
                json.dump({"message": line, "timestamp": int(time.time())}, file)
        os._exit(2)  # not sys.exit: leaving the process group could wait for the other ranks


def _tell_heirs(reason: str) -> None:
    for heir in _heirs:
        heir(reason)
