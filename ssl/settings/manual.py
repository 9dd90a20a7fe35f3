"""The text of `--help`, from the source of a script's settings: the comment behind a field explains it."""

import dataclasses
import inspect
import re
import typing

from ssl.settings.kinds import plain


def manual(cls) -> str:
    """The text of --help: the settings of a class and of its base classes, with the comments in their source.

    The class's own settings come first. A setting that a base class also has stands among those of the base class.
    """
    kinds, found = typing.get_type_hints(cls), {}
    bases = [part for base in cls.__bases__ for part in reversed(base.__mro__)]
    for part in filter(dataclasses.is_dataclass, [cls, *bases]):
        heading = ""
        for line in inspect.getsource(part).splitlines():
            if match := re.match(r"\s+# (.+)", line):
                heading = match[1]
            elif match := re.match(r"\s+(\w+): .+? = (.+?)  # (.+)", line):
                name, default, comment = match.groups()
                _, shown = found.pop(name, (heading, _help_line(name, default, comment, kinds[name])))
                found[name] = heading, shown
    lines = [inspect.cleandoc(cls.__doc__ or ""), "", "Settings, each --key value (defaults in brackets):"]
    for heading in dict.fromkeys(heading for heading, _ in found.values()):
        lines += ["", heading, *(shown for own, shown in found.values() if own == heading)]
    return "\n".join(lines)


def _help_line(name: str, default: str, comment: str, kind) -> str:
    listed = re.match(r"field\(default_factory=lambda: (.+)\)", default)
    default = re.sub(r"[\[\](),\"]", "", listed[1] if listed else default)  # as typed on the command line
    choices = _choices(kind)
    comment = f"{comment} ({choices})" if choices else comment
    return f"  --{name:<26} {comment} [{'unset' if default in ('None', '') else default}]"


def _choices(kind) -> str:
    """'a|b' where a field's values are words of a list."""
    kind = plain(kind)
    inner = typing.get_args(kind)[0] if typing.get_origin(kind) is list else kind
    return "|".join(map(str, typing.get_args(inner))) if typing.get_origin(inner) is typing.Literal else ""
