"""Errors a person can act on: one line, on one rank, no traceback."""

import contextlib
import os
import sys


class UserError(ValueError):
    """Something the user can put right: a setting, a folder, a file.

    The message says what was wrong, what was expected and what to do.
    """


class RankError(UserError):
    """The same, met by one process and unknown to the others: it is printed wherever it is raised."""


@contextlib.contextmanager
def one_line_errors(script: str):
    """Turn a `UserError` into one line, on one rank, and exit status 2 on every rank."""
    try:
        yield
    except UserError as error:
        if int(os.environ.get("RANK", 0)) == 0 or isinstance(error, RankError):
            print(f"{script}: error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
