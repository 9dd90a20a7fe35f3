"""Errors a person can act on: one line, on one rank, no traceback."""

import contextlib
import os
import sys


class UserError(ValueError):
    """Something the user can put right: a setting, a folder, a file.

    The message says what was wrong, what was expected and what to do.
    """


@contextlib.contextmanager
def one_line_errors(script: str):
    """Turn a `UserError` into one line on rank 0 and exit status 2 on every rank."""
    try:
        yield
    except UserError as error:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"{script}: error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
