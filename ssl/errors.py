"""Errors a person can act on: one line, said once, no traceback."""

import contextlib
import json
import os
import sys
import time


class UserError(ValueError):
    """Something the user can put right: a setting, a folder, a file.

    The message says what was wrong, what was expected and what to do.
    """


@contextlib.contextmanager
def one_line_errors(script: str):
    """Turn a `UserError` into one line and exit status 2.

    Most errors are met by every rank. Rank 0 speaks at once, and its end makes torchrun end the
    others; one that is still there after some seconds met the error alone, and speaks too.
    """
    try:
        yield
    except UserError as error:
        rank = int(os.environ.get("RANK", 0))
        if rank:
            time.sleep(10)
        line = f"{script}: error: {f'rank {rank}: ' if rank else ''}{error}"
        sys.stdout.flush()
        print(line, file=sys.stderr, flush=True)
        report = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if report:  # so that torchrun's own closing lines, too, give this reason
            with contextlib.suppress(OSError), open(report, "w", encoding="utf-8") as file:
                json.dump({"message": line, "timestamp": int(time.time())}, file)
        os._exit(2)  # not sys.exit: leaving the process group could wait for the other ranks
