"""A command as one types it into a shell: for the hints that the scripts print."""

import json
import os
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the folder of the scripts


def command(program: str, *words: str | os.PathLike, **settings) -> str:
    """'python PROGRAM WORD ... --name value ...', as a POSIX shell reads it from the current folder.

    `program` is a script (`evaluate.py`) or a module (`ssl.report`). Settings that are None are left out. True is
    the name alone.
    """
    folder = os.path.relpath(ROOT)
    where = "" if folder == "." or program.endswith(".py") else f"PYTHONPATH={quoted(folder)} "
    start = [os.path.normpath(os.path.join(folder, program))] if program.endswith(".py") else ["-m", program]
    return where + " ".join(map(quoted, ["python", *start, *map(os.fspath, words), *flags(settings)]))


def flags(settings: dict[str, object]) -> list[str]:
    """The words `--name value ...`, as `config.parse` reads them. Settings that are None are left out."""
    return [word for name, value in settings.items() if value is not None for word in _flag(name, value)]


def quoted(word: str) -> str:
    """`word` as a POSIX shell reads it. If it cannot be printed, its bytes are written as bash and zsh read them."""
    if word.isprintable():
        return shlex.quote(word)
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}" for byte in os.fsencode(word))
    return f"$'{''.join(plain)}'"


def _flag(name: str, value: object) -> list[str]:
    """The words of one setting, as `config.parse` reads them."""
    if value is True:
        return [f"--{name}"]
    if isinstance(value, list) and _are_plain_words(value):
        return [f"--{name}", *value]
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else _json(value)
    return [f"--{name}={text}"] if text.startswith("--") else [f"--{name}", text]


def _json(value: object) -> str:
    """JSON that YAML reads: bytes of file names that are no UTF-8 are escaped."""
    return re.sub("[\ud800-\udfff\x7f]", lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def _are_plain_words(values: list) -> bool:
    """Whether these are words that, one after another, are read as they are."""
    words = bool(values) and all(
        isinstance(word, str) and word and not word.startswith(("--", "-h")) for word in values
    )
    return words and (len(values) > 1 or not (values[0].startswith("[") or values[0] == "null"))
