"""Settings of a script, a dataclass, read from YAML files and the command line.

A later layer overrides an earlier one:
1. the defaults of the dataclass,
2. the file of `--config FILE`, or without it the recipe of the method and data set,
3. if the file has `rows`: the row that `--row N` chooses,
4. `--key value` on the command line.

A file can extend another: `extends: FILE` (a path relative to the file), or `extends: auto`, the recipe of the method
and data set. `kinds.coerce` checks the values of every layer.
"""

import re
import sys
import typing
from collections.abc import Callable, Iterable
from pathlib import Path

import yaml

from ssl.console import say, table
from ssl.errors import UserError
from ssl.settings.hints import hint
from ssl.settings.kinds import coerce, plain
from ssl.settings.manual import manual

LARGEST_FILE = 100_000  # bytes
DEEPEST = 50  # levels of nested brackets
LONGEST = 5  # files, each of which extends the next


class _Loader(yaml.SafeLoader):
    """YAML without its traps: 1e-3 is a number, 010 is ten, `no` and 12:30 are words, and no key may be set twice."""

    depth = 0

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed in settings")
        if getattr(self.peek_event(), "tag", None) is not None:
            raise yaml.YAMLError(f"tags ({self.peek_event().tag}) are not allowed in settings")
        if self.depth > DEEPEST:
            raise yaml.YAMLError("it is nested too deeply")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError("a setting's name must be a word")
            if key.value in seen:
                raise yaml.YAMLError(f"{key.value!r} is set twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))  # YAML's 010 would be eight


class _Dumper(yaml.SafeDumper):
    """Writes values so that `_Loader` reads them back: the word 1e-3 is quoted, a repeated list is written twice."""

    def ignore_aliases(self, data):
        return True


_Loader.yaml_implicit_resolvers, _Dumper.yaml_implicit_resolvers = {}, {}
for _tag, _pattern, _first in [
    ("tag:yaml.org,2002:bool", r"^(?:true|True|false|False)$", "tTfF"),
    ("tag:yaml.org,2002:int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("tag:yaml.org,2002:float", r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("tag:yaml.org,2002:null", r"^(?:~|null|)$", ["~", "n", ""]),
]:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))


def _parse_yaml(text: str, where: str):
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise UserError(f"{where}: cannot be read as YAML: {reason}") from None


def read_yaml(path: str | Path) -> dict:
    """The mapping in a YAML file. Raises `UserError` naming the file for anything else."""
    path = Path(path)
    try:
        if not path.is_file():  # reading a pipe would wait for its writer
            raise UserError(f"{path}: cannot read this settings file (it is not there, or no ordinary file)")
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path}: {path.stat().st_size:,} bytes is too large for a settings file")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read this settings file ({error})") from None
    values = _parse_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"{path}: expected lines of 'setting: value', found a {type(values).__name__}")
    return values


def write_yaml(path: str | Path, values: dict) -> None:
    Path(path).write_text(yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=None), encoding="utf-8")


def _check(values: dict, cls, where: str) -> dict:
    """`values` coerced to the types of the fields of `cls`. Raises `UserError` for an unknown name or a wrong value."""
    kinds = typing.get_type_hints(cls)
    for key in values:
        if key not in kinds:
            raise UserError(f"{where}: unknown setting {key!r}{hint(key, kinds)}")
        if values[key] == "":
            raise UserError(f"{where}: {key} is an empty word; give it a value, or leave it out")
    return {key: coerce(value, kinds[key], f"{where}: {key}") for key, value in values.items()}


# Files ------------------------------------------------------------------------


def chain(path: str) -> tuple[list[tuple[str, dict]], bool]:
    """(path, values) of a settings file and, before it, of those that it extends; whether the first extends auto."""
    files: list[tuple[str, dict]] = []
    while True:
        try:
            values = read_yaml(path)
        except UserError as error:
            raise UserError(f"{files[0][0]}: extends: {error}") if files else error from None
        base = coerce(values.pop("extends", None), str | None, f"{path}: extends")
        files.insert(0, (path, values))
        if base in (None, "auto"):
            return files, base == "auto"
        path = str(Path(path).parent / base)
        if len(files) == LONGEST:
            raise UserError(
                f"{files[-1][0]}: extends: {' extends '.join(where for where, _ in reversed(files))} extends {path}; "
                f"a chain has at most {LONGEST} files, and no file may extend itself"
            )


def _of_file(path: str, cls, row: int | None) -> tuple[list[tuple[str, dict]], bool]:
    """(layers of a settings file, the last wins; whether the recipe of method and data set lies under them).

    The layers are the files that it extends, the file without its rows and, if it has `rows`, the chosen one. Raises
    `UserError` for a mistake in any file or row, and where a file has rows and none is chosen.
    """
    files, on_recipe = chain(path)
    shared = files[-1][1]
    has_rows, rows = "rows" in shared, shared.pop("rows", None)
    for where, values in files:
        if "rows" in values:
            raise UserError(f"{where}: has rows, which only the file that --config names may have; {path} extends it")
    layers = [(where, _check(values, cls, where)) for where, values in files]
    _refuse_words_of_the_command_line(layers)
    if not has_rows:
        if row is not None:
            raise UserError(f"command line: row: {path} has no rows to choose from")
        return layers, on_recipe
    if "row" not in typing.get_type_hints(cls):
        raise UserError(f"{path}: has rows of settings, but this script has no --row to choose one")
    if not isinstance(rows, list) or not rows or not all(isinstance(values, dict) and values for values in rows):
        raise UserError(f"{path}: rows: expected a list of mappings like - {{lr: 0.1}}")
    named = ((f"{path} row {number}", values) for number, values in enumerate(rows, 1))
    rows = [(where, _check(values, cls, where)) for where, values in named]
    _refuse_words_of_the_command_line(rows)
    if row is None or not 1 <= row <= len(rows):
        say(_rows_table([values for _, values in rows]))
        wrong = "" if row is None else f"row {row} is not there; "
        raise UserError(f"{path}: {wrong}choose one of its rows with --row 1 to --row {len(rows)}")
    return [*layers, rows[row - 1]], on_recipe


def _refuse_words_of_the_command_line(layers: list[tuple[str, dict]]) -> None:
    """Raise `UserError` for a file or row that sets `config` or `row`. A run's config.yaml says which its were."""
    for where, values in layers:
        is_of_a_run = Path(where).with_name("about.json").is_file() or {"output_dir", "resume"} <= values.keys()
        if not is_of_a_run and any(values.get(name) is not None for name in ("config", "row")):
            raise UserError(
                f"{where}: row and config can only be set on the command line; to build on a file, write extends: FILE"
            )


def _rows_table(rows: list[dict]) -> str:
    names = list(dict.fromkeys(name for values in rows for name in values))
    cells = [[str(number), *(str(values.get(name, "")) for name in names)] for number, values in enumerate(rows, 1)]
    return table([["row", *names], *cells])


# Command line -----------------------------------------------------------------


def _from_arguments(cls, arguments: list[str]) -> dict:
    """`--key value` and `--key=value`; a bare `--key` is true for a bool. Words are not YAML; [a, b] is."""
    kinds = typing.get_type_hints(cls)
    values: dict = {}
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if not argument.startswith("--"):
            name, equals, value = argument.partition("=")
            meant = "" if not equals else f"; write --{name} {value}" if name in kinds else hint(name, kinds)
            raise UserError(
                f"command line: {argument!r} is not a setting; settings are written --key value (see --help){meant}"
            )
        key, equals, text = argument[2:].partition("=")
        key = key.replace("-", "_")
        if key not in kinds:
            raise UserError(f"command line: unknown setting --{key}{hint(key, kinds)}")
        following = [text]
        if not equals:
            following = []
            takes_many = typing.get_origin(plain(kinds[key])) in (list, tuple)
            while position < len(arguments) and not arguments[position].startswith("--"):
                following.append(arguments[position])
                position += 1
                if not takes_many:
                    break
            if not following and kinds[key] is not bool:
                raise UserError(f"command line: --{key} needs a value")
            text = following[0] if len(following) == 1 else f"[{', '.join(following)}]" if following else "true"
        if key in values:
            raise UserError(f"command line: --{key} is given twice")
        if "" in following:
            raise UserError(f"command line: --{key} is empty (an unset variable?); give it a value, or leave it out")
        unset = {str | None: ("null", "none", "None"), list[str] | None: ("null",)}  # none may be a class
        if text in unset.get(kinds[key], ()):
            values[key] = None
        elif plain(kinds[key]) == list[str] and not (len(following) == 1 and text.startswith("[")):
            values[key] = following
        elif kinds[key] in (str, str | None):
            values[key] = text
        else:
            values[key] = _parse_yaml(text, f"command line: {key}")
    return _check(values, cls, "command line")


def parse(cls, arguments: list[str] | None = None, recipe: Callable[[dict], Path | None] | None = None):
    """(settings of a script, {field: where its value came from}).

    `recipe` maps the values set so far to the path of the recipe under them, or None. It is called if no file is named,
    or one that says `extends: auto`. A value comes from 'default', a file, 'FILE row N' or 'command line'; the fields
    that were set last come last. `--help` prints the manual and exits.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments or "-h" in arguments:
        say(manual(cls))
        raise SystemExit(0)
    layers = [("command line", _from_arguments(cls, arguments))]
    config, row = layers[0][1].get("config"), layers[0][1].get("row")
    on_recipe = recipe is not None
    if config is not None:
        files, on_recipe = _of_file(config, cls, row)
        layers = [*files, *layers]
        if on_recipe and recipe is None:
            raise UserError(f"{config}: extends: auto is for train.py, which has a recipe for a data set; name a file")
    elif row is not None:
        raise UserError("command line: row: is one of the rows of a settings file; pass it as --config FILE")
    if on_recipe:
        asked = {key: value for _, values in layers for key, value in values.items()}
        path = recipe(asked)
        if path is not None:
            layers[:0] = _of_file(str(path), cls, None)[0]
    values = vars(cls())
    origin = dict.fromkeys(values, "default")
    for where, layer in layers:
        encoder_changes = layer.get("encoder", values.get("encoder")) != values.get("encoder")
        if encoder_changes and origin["encoder"] != "default" and origin["encoder"] == origin.get("encoder_kwargs"):
            layer = {"encoder_kwargs": {}} | layer  # those so far came with the encoder that is replaced
        values.update(layer)
        lay_over(origin, layer, where)
    return cls(**values), origin


def lay_over(origin: dict[str, str], names: Iterable[str], where: str) -> None:
    """Record that `where` has set `names`, later than all others: the order of `origin` is that of the layers."""
    for name in names:
        origin.pop(name)
        origin[name] = where
