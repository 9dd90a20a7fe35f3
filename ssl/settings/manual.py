"""The text of `--help`, from the source of a script: the comment behind a setting explains it.

It begins with the commands in the script's docstring and the settings in FIRST, an attribute of the settings' class.
"""

import dataclasses
import inspect
import re
import sys
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
    title, _, details = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")
    first = [found[name][1] for name in getattr(cls, "FIRST", ())]
    parts = [title, _examples(cls), "\n".join(["To begin with:", *first]) if first else "", details]
    parts.append("All settings, each --key value (defaults in brackets):")
    for heading in dict.fromkeys(heading for heading, _ in found.values()):
        parts.append("\n".join([heading, *(shown for own, shown in found.values() if own == heading)]))
    return "\n\n".join(filter(None, parts))


def _examples(cls) -> str:
    """The commands in the docstring of the script that defines `cls`, but that of --help."""
    text = sys.modules[cls.__module__].__doc__ or ""
    commands = [line for line in text.splitlines() if re.match(r"(python|torchrun) ", line) and "--help" not in line]
    return "\n".join(f"  {line}" for line in commands)


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
