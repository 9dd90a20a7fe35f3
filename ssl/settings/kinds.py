"""The kinds of values that a setting can have, and the check that a value is of its kind."""

import math
import os
import types
import typing

from ssl.errors import UserError
from ssl.settings.hints import word_for

AUTO = typing.Literal["auto"]


def _alternatives(kind) -> tuple:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def plain(kind):
    """X of `X | None`, `X | Literal["auto"]`; any other kind as it is."""
    return next((arg for arg in _alternatives(kind) if arg not in (type(None), AUTO)), kind)


def coerce(value, kind, where: str):
    """`value` as type `kind`, or a `UserError` that begins with `where`.

    Kinds: str, int, float, bool, dict, Literal, list[...], tuple[..., ...], `X | None` and
    `X | Literal["auto"]`. An integer becomes a float, and a number a word, if that is the kind. No other value
    changes its type. Numbers must be finite.
    """
    if plain(kind) is not kind:
        other = type(None) if value is None else AUTO if value == "auto" else None
        return value if other in _alternatives(kind) else coerce(value, plain(kind), where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        if value not in args or isinstance(value, bool) != isinstance(args[0], bool):
            raise UserError(f"{where}: {value!r} is none of {', '.join(map(str, args))}{word_for(value, args)}")
        return value
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            value = [value]
        if origin is tuple and len(value) != len(args):
            raise UserError(f"{where}: expected {len(args)} values, got {value!r}")
        kinds = args if origin is tuple else args * len(value)
        return [coerce(item, item_kind, where) for item, item_kind in zip(value, kinds)]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1000 else math.inf
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if type(value) is not kind:
        raise UserError(f"{where}: {value!r} is not {_ARTICLE[kind]}")
    if kind is int and abs(value) > 2**64:
        raise UserError(f"{where}: an integer of {len(str(value))} digits is too large")
    if kind is str and not _could_name_a_file(value):
        raise UserError(f"{where}: {value!r} has characters that no file name can have")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{where}: {value!r} is not a finite number")
    return value


def _could_name_a_file(word: str) -> bool:
    """Whether a word has neither NUL nor lone surrogates: most words become paths, and the system refuses those."""
    try:
        return b"\0" not in os.fsencode(word)
    except UnicodeEncodeError:
        return False


_ARTICLE = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a word",
    dict: "a mapping like {key: value}",
}
