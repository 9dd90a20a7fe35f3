"""Settings: layers, types, and messages that name what to do."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl.errors import UserError
from ssl.settings import config


@dataclass
class Example:
    """An example."""

    # What to learn
    config: str | None = None  # a file
    method: Literal["barlow_twins", "simclr"] = "barlow_twins"  # the loss
    epochs: int = 100  # passes over the data
    lr: float = 0.2  # before scaling
    bias_lr: float | None = 0.0048  # of biases
    compile: bool = False  # torch.compile
    name: str = "x"  # anything
    scale: tuple[float, float] = (0.1, 1.0)  # two numbers
    mean: tuple[float, float, float] | None = None  # three numbers, or not set
    probs: list[float] = field(default_factory=lambda: [1.0, 0.1])  # some numbers
    labels: list[str] | None = None  # some words
    kwargs: dict = field(default_factory=lambda: {})  # arguments


def parse(*arguments, **options):
    return config.parse(Example, list(arguments), **options)[0]


def message(*arguments, **options) -> str:
    with pytest.raises(UserError) as raised:
        parse(*arguments, **options)
    return str(raised.value)


def test_defaults_hold_where_nothing_is_set():
    assert parse() == Example()


def test_every_kind_of_value_is_read_from_the_command_line():
    words = "--method simclr --epochs=3 --lr 1e-3 --bias_lr null --compile --name 1e-3 --scale 0.2 0.9".split()
    read = parse(*words, "--probs", "[0, 0.2]", "--kwargs", "{width: 16, deep: true}")
    assert (read.method, read.epochs, read.lr, read.bias_lr, read.compile) == ("simclr", 3, 0.001, None, True)
    assert (read.name, read.scale, read.probs) == ("1e-3", [0.2, 0.9], [0.0, 0.2])
    assert read.kwargs == {"width": 16, "deep": True}


def test_an_optional_list_takes_bare_words():
    assert parse("--mean", "0.5", "0.4", "0.3").mean == [0.5, 0.4, 0.3]
    assert parse("--mean", "null").mean is None


@pytest.mark.parametrize(
    "words", [["0012"], ["08", "1e3"], ["melanoma, invasive", "nv"], ["a #b"], ["a: b", "true"], ["'a'", "[b", "c]"]]
)
def test_words_of_a_list_are_taken_as_they_are(words):
    assert parse("--labels", *words).labels == words
    assert parse(f"--labels={words[0]}").labels == words[:1]


def test_a_list_of_words_can_be_yaml_or_unset():
    assert parse("--labels", "[a, 'b, c']").labels == ["a", "b, c"]
    assert parse("--labels=[a]").labels == ["a"]
    assert parse("--labels", "null").labels is None
    assert parse("--labels", "none").labels == ["none"]  # a class may be called so


def test_whole_numbers_are_decimal(tmp_path):
    (tmp_path / "a.yaml").write_text("epochs: 0064\nlr: 010\nprobs: [08, -010]\n")
    read = parse("--config", str(tmp_path / "a.yaml"))
    assert (read.epochs, read.lr, read.probs) == (64, 10.0, [8.0, -10.0])
    assert parse("--epochs", "064").epochs == 64


def test_dashes_and_false_are_understood():
    assert parse("--bias-lr", "0.5").bias_lr == 0.5
    assert parse("--compile", "false").compile is False


def test_the_command_line_wins_over_the_file_and_the_file_over_the_recipe_that_it_extends(tmp_path):
    (tmp_path / "recipe.yaml").write_text("epochs: 1\nlr: 1\nname: recipe\n")
    (tmp_path / "mine.yaml").write_text("extends: auto\nlr: 2\nname: file\n")
    read, origin = config.parse(
        Example,
        ["--config", str(tmp_path / "mine.yaml"), "--name", "line"],
        recipe=lambda asked: tmp_path / "recipe.yaml",
    )
    assert (read.epochs, read.lr, read.name, read.bias_lr) == (1, 2.0, "line", 0.0048)
    assert origin["name"] == "command line" and origin["bias_lr"] == "default"
    files = [Path(where).name for where in dict.fromkeys(origin.values())]
    assert files == ["default", "recipe.yaml", "mine.yaml", "command line"]  # what wins comes later
    assert origin["epochs"].endswith("recipe.yaml") and origin["lr"].endswith("mine.yaml")


def test_the_recipe_is_chosen_from_what_was_asked(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: auto\nmethod: simclr\n")
    asked = {}
    parse("--config", str(tmp_path / "a.yaml"), "--epochs", "7", recipe=lambda values: asked.update(values))
    assert asked["method"] == "simclr" and asked["epochs"] == 7


@pytest.mark.parametrize(
    "text, value",
    [("1e-3", 0.001), ("1.0e-3", 0.001), ("1E5", 1e5), (".5", 0.5), ("-2", -2.0), ("+3.", 3.0)],
)
def test_numbers_of_every_notation_are_numbers_in_yaml(tmp_path, text, value):
    (tmp_path / "a.yaml").write_text(f"lr: {text}\n")
    assert parse("--config", str(tmp_path / "a.yaml")).lr == value


@pytest.mark.parametrize("text", ["no", "off", "12:30:45", "0x10", "1_000"])
def test_words_that_yaml_would_turn_into_something_else_stay_words(tmp_path, text):
    (tmp_path / "a.yaml").write_text(f"name: {text}\n")
    assert parse("--config", str(tmp_path / "a.yaml")).name == text


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--lrr", "1"], "command line: unknown setting --lrr; did you mean 'lr'?"),
        (["--epochs", "2.5"], "command line: epochs: 2.5 is not an integer"),
        (["--epochs", "true"], "command line: epochs: True is not an integer"),
        (["--lr", "fast"], "command line: lr: 'fast' is not a number"),
        (["--lr", "true"], "command line: lr: True is not a number"),
        (["--compile", "1"], "command line: compile: 1 is not true or false"),
        (
            ["--method", "simcrl"],
            "command line: method: 'simcrl' is none of barlow_twins, simclr; did you mean 'simclr'?",
        ),
        (["--scale", "1"], "command line: scale: expected 2 values, got [1]"),
        (["--kwargs", "3"], "command line: kwargs: 3 is not a mapping like {key: value}"),
        (["--epochs"], "command line: --epochs needs a value"),
        (["--name", ""], "command line: --name is empty (an unset variable?)"),
        (["--bias_lr="], "command line: --bias_lr is empty"),
        (["--labels", "a", ""], "command line: --labels is empty"),
        (["--epochs", "1", "--epochs", "2"], "command line: --epochs is given twice"),
        (["epochs", "1"], "command line: 'epochs' is not a setting; settings are written --key value (see --help)"),
        (["--ep", "3"], "command line: unknown setting --ep; --help lists the settings"),
        (
            ["--scope", "1"],
            "command line: unknown setting --scope; --help lists the settings",
        ),  # scale is hardly like it
    ],
)
def test_mistakes_on_the_command_line_are_named(arguments, expected):
    assert message(*arguments).startswith(expected)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--n_epochs", "1"], "unknown setting --n_epochs; here that is 'epochs', see docs/from-other-projects.md"),
        (["--learning-rate-biases", "1"], "here that is 'bias_lr'"),
        (["--model.optimizer.base_lr", "1"], "here that is 'lr'"),
        (
            ["model.n_epochs=3"],
            "is not a setting; settings are written --key value (see --help); here that is 'epochs'",
        ),
        (["epochs=3"], "see --help); write --epochs 3"),
        (["--n_cpus", "1"], "--n_cpus; here that is 'workers' of train.py and evaluate.py and finetune.py, see"),
        (["--workers", "1"], "--workers; it is a setting of train.py and evaluate.py and finetune.py"),
    ],
)
def test_other_projects_names_are_told_ours(arguments, expected):
    assert expected in message(*arguments)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("learning_rate: 1\n", "unknown setting 'learning_rate'; here that is 'lr'"),
        ("lr: 1\nlr: 2\n", "'lr' is set twice"),
        ("epochs: many\n", "epochs: 'many' is not an integer"),
        ("lr: .inf\n", "lr: '.inf' is not a number"),
        ("name: ''\n", "name is an empty word"),
        ("config: other.yaml\nlr: 0.1\n", "row and config can only be set on the command line; to build on a file"),
        ("- 1\n- 2\n", "expected lines of 'setting: value', found a list"),
        ("a: &x [1]\nb: *x\n", "aliases (*name) are not allowed"),
        ("name: !!python/object/apply:os.system ['true']\n", "cannot be read as YAML"),
        ("lr: [1\n", "cannot be read as YAML"),
        ("kwargs: " + "[" * 5000, "nested too deeply"),
    ],
)
def test_mistakes_in_a_file_are_named_with_the_file(tmp_path, text, expected):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    said = message("--config", str(path))
    assert said.startswith(str(path)) and expected in said


def test_a_file_that_is_missing_or_huge_is_refused(tmp_path):
    assert "cannot read this settings file" in message("--config", str(tmp_path / "none.yaml"))
    (tmp_path / "huge.yaml").write_text("# " + "x" * config.LARGEST_FILE)
    assert "too large" in message("--config", str(tmp_path / "huge.yaml"))


def test_written_settings_read_back_as_themselves(tmp_path):
    before = Example(lr=1e-7, scale=[0.3, 1.0], kwargs={"width": 16}, bias_lr=None, name="no")
    config.write_yaml(tmp_path / "config.yaml", dataclasses.asdict(before))
    copied = dataclasses.asdict(before) | {"output_dir": "x", "resume": "auto"}  # as a run's config.yaml has them
    layer = f"{tmp_path / 'mine.yaml'}", copied
    config._refuse_words_of_the_command_line([layer])
    assert parse("--config", str(tmp_path / "config.yaml")) == dataclasses.replace(
        before, config=str(tmp_path / "config.yaml")
    )


# Files that extend others -------------------------------------------------------


def never(asked):
    raise AssertionError("no recipe is looked for")


def test_under_a_named_file_lies_only_what_it_extends(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "ground.yaml").write_text("lr: 1\nepochs: 1\nname: ground\n")
    (tmp_path / "middle.yaml").write_text("extends: ground.yaml\nlr: 2\nepochs: 2\n")
    (tmp_path / "own" / "top.yaml").write_text("extends: ../middle.yaml\nepochs: 3\n")  # as seen from its folder
    (tmp_path / "alone.yaml").write_text("lr: 3\n")
    read, origin = config.parse(Example, ["--config", str(tmp_path / "own" / "top.yaml")], recipe=never)
    assert (read.lr, read.epochs, read.name, read.bias_lr) == (2.0, 3, "ground", 0.0048)
    files = [Path(where).name for where in dict.fromkeys(origin.values())]
    assert files == ["default", "ground.yaml", "middle.yaml", "top.yaml", "command line"]
    assert parse("--config", str(tmp_path / "alone.yaml"), recipe=never).name == "x"


def test_a_file_below_may_ask_for_the_recipe_of_the_data_set(tmp_path):
    (tmp_path / "recipe.yaml").write_text("lr: 1\nepochs: 1\nname: recipe\n")
    (tmp_path / "middle.yaml").write_text("extends: auto\nlr: 2\n")
    (tmp_path / "top.yaml").write_text("extends: middle.yaml\nepochs: 3\n")
    read = parse("--config", str(tmp_path / "top.yaml"), recipe=lambda asked: tmp_path / "recipe.yaml")
    assert (read.name, read.lr, read.epochs) == ("recipe", 2.0, 3)
    assert "extends: auto is for train.py" in message(
        "--config", str(tmp_path / "top.yaml")
    )  # a script without recipes


@pytest.mark.parametrize(
    "files, expected",
    [
        ({"top": "extends: top.yaml"}, "a chain has at most 5 files, and no file may extend itself"),
        ({"top": "extends: b.yaml", "b": "extends: top.yaml"}, "top.yaml extends"),
        ({"top": "extends: 1.yaml"} | {str(i): f"extends: {i + 1}.yaml" for i in range(1, 9)}, "at most 5 files"),
        ({"top": "extends: none.yaml"}, "none.yaml: cannot read this settings file"),
        ({"top": "extends: ."}, "no ordinary file"),
        ({"top": "extends: [a.yaml, b.yaml]"}, "extends: ['a.yaml', 'b.yaml'] is not a word"),
        ({"top": "extends: b.yaml", "b": "lrr: 1"}, "b.yaml: unknown setting 'lrr'"),
        ({"top": "extends: b.yaml", "b": "rows: [{lr: 1}]"}, "b.yaml: has rows, which only the file that --config"),
        ({"top": "rows: [{extends: b.yaml}]", "b": "lr: 1"}, "top.yaml row 1: unknown setting 'extends'"),
    ],
)
def test_what_cannot_be_extended_is_refused(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text + "\n")
    row = ["--row", "1"] if "rows" in files["top"] else []
    with pytest.raises(UserError) as raised:
        config.parse(WithRows, ["--config", str(tmp_path / "top.yaml"), *row], recipe=never)
    assert expected in str(raised.value)


# Rows ---------------------------------------------------------------------------


@dataclass
class WithRows(Example):
    row: int | None = None  # which row


ROWS = """
epochs: 7
lr: 0.5
rows:
  - {lr: 0.1, compile: true}
  - {lr: 1e-3, bias_lr: null}
  - {name: third}
"""


def of_rows(tmp_path, *arguments, text=ROWS, cls=WithRows):
    path = tmp_path / "rows.yaml"
    path.write_text(text)
    return config.parse(cls, ["--config", str(path), *arguments])


def refused_rows(tmp_path, *arguments, **options) -> str:
    with pytest.raises(UserError) as raised:
        of_rows(tmp_path, *arguments, **options)
    return str(raised.value)


def test_a_row_lies_over_what_the_file_shares_and_under_the_command_line(tmp_path):
    read, origin = of_rows(tmp_path, "--row", "2", "--epochs", "9")
    assert (read.lr, read.bias_lr, read.epochs, read.compile, read.row) == (0.001, None, 9, False, 2)
    path = str(tmp_path / "rows.yaml")
    assert (origin["lr"], origin["epochs"], origin["name"]) == (f"{path} row 2", "command line", "default")
    read, origin = of_rows(tmp_path, "--row", "3")
    assert (read.lr, read.name, read.epochs, origin["lr"]) == (0.5, "third", 7, path)
    first, _ = of_rows(tmp_path, "--row", "1")
    assert (first.lr, first.compile, first.name) == (0.1, True, "x")  # control: rows differ


def test_without_a_row_the_rows_are_shown_to_choose_from(tmp_path, capsys):
    assert "choose one of its rows with --row 1 to --row 3" in refused_rows(tmp_path)
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == ["row", "lr", "compile", "bias_lr", "name"]
    assert shown[2:] == [["1", "0.1", "True"], ["2", "0.001", "None"], ["3", "third"]]
    for row in ("0", "4", "-1"):
        assert f"row {row} is not there; choose one of its rows" in refused_rows(tmp_path, "--row", row)


@pytest.mark.parametrize(
    "rows, expected",
    [
        ("- {lr: 1}\n  - {lrr: 2}", "rows.yaml row 2: unknown setting 'lrr'; did you mean 'lr'?"),
        ("- {lr: 1}\n  - {epochs: many}", "rows.yaml row 2: epochs: 'many' is not an integer"),
        ("- {lr: 1}\n  - {row: 1}", "row 2: row and config can only be set on the command line"),
        ("- {lr: 1}\n  - {rows: 1}", "row 2: unknown setting 'rows'"),
        ("- {lr: 1}\n  - 3", "rows: expected a list of mappings"),
        ("- {lr: 1}\n  - {}", "rows: expected a list of mappings"),
        ("{lr: 1}", "rows: expected a list of mappings"),
        ("[]", "rows: expected a list of mappings"),
        ("", "rows: expected a list of mappings"),
    ],
)
def test_mistakes_in_any_row_are_found_whichever_is_chosen(tmp_path, rows, expected):
    assert expected in refused_rows(tmp_path, "--row", "1", text=f"rows:\n  {rows}\n")


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.one_of(st.none(), st.integers(-3, 3), st.text(max_size=4)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(st.sampled_from(["lr", "epochs", "row", "rows", "name", "config", "x"]), inner, max_size=3),
        ),
    ),
    st.sampled_from(["-1", "1", "2"]),
)
def test_any_rows_are_read_or_refused_with_the_file(tmp_path_factory, rows, row):
    path = tmp_path_factory.getbasetemp() / "any_rows.yaml"
    path.write_text(yaml.safe_dump({"rows": rows}), encoding="utf-8")
    try:
        read, _ = config.parse(WithRows, ["--config", str(path), "--row", row])
        assert isinstance(rows, list) and read.lr == rows[int(row) - 1].get("lr", 0.2)
    except UserError as error:
        assert str(error).startswith(str(path))


def test_rows_where_there_are_none_to_choose_are_refused(tmp_path):
    assert "has no rows to choose from" in refused_rows(tmp_path, "--row", "1", text="lr: 1\n")
    assert "has rows of settings, but this script has no --row" in refused_rows(tmp_path, cls=Example)
    with pytest.raises(UserError, match="pass it as --config FILE"):
        config.parse(WithRows, ["--row", "1"])


def test_the_settings_of_a_row_are_written_and_read_back_without_the_rows(tmp_path):
    before, _ = of_rows(tmp_path, "--row", "2", "--scale", "0.2", "0.9")
    config.write_yaml(tmp_path / "config.yaml", dataclasses.asdict(before))
    copied = dataclasses.asdict(before) | {"output_dir": "x", "resume": "auto"}  # as a run's config.yaml has them
    layer = f"{tmp_path / 'mine.yaml'}", copied
    config._refuse_words_of_the_command_line([layer])
    with pytest.raises(UserError, match="row and config can only be set on the command line"):
        config.parse(WithRows, ["--config", str(tmp_path / "config.yaml")])
    (tmp_path / "about.json").write_text("{}")  # it is that of a run
    again, _ = config.parse(WithRows, ["--config", str(tmp_path / "config.yaml")])
    assert dataclasses.replace(again, config=before.config) == before


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=8), st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=8))))
def test_any_mapping_is_read_or_refused_with_a_message(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("yaml") / "any.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    try:
        parse("--config", str(path))
    except UserError as error:
        assert str(error).startswith(str(path))


def test_help_prints_every_field_with_its_comment(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    assert "What to learn" in printed
    for name in (f.name for f in dataclasses.fields(Example)):
        assert f"--{name} " in printed
    assert (
        "passes over the data [100]" in printed and "a file [unset]" in printed and "some numbers [1.0 0.1]" in printed
    )


@dataclass
class Shared:
    """Of several scripts."""

    # Data
    size: int | None = None  # pixels
    path: str | None = None  # a folder


@dataclass
class OfAScript(Example, Shared):
    """A script's."""

    # Its own
    rounds: int = 3  # how often
    size: int = 224  # pixels of a view


def test_inherited_settings_are_read_and_explained_where_they_are_defined():
    read, origin = config.parse(OfAScript, ["--path", "here", "--rounds", "4", "--lr", "1"])
    assert (read.path, read.rounds, read.lr, read.size) == ("here", 4, 1.0, 224)
    assert set(origin) == {f.name for f in dataclasses.fields(OfAScript)}
    printed = [line.split(maxsplit=1) for line in config.manual(OfAScript).splitlines() if line]
    names = [line[0] for line in printed]
    assert names.index("--rounds") < names.index("--method") < names.index("--size") < names.index("--path")
    assert ["--size", "pixels of a view [224]"] in printed and names.count("--size") == 1
    assert names[names.index("--size") - 1] == "Data"
