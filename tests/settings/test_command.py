"""A printed command: a shell, and then the script's parser, read the words that were meant."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from ssl.settings import config
from ssl.settings.command import ROOT, command, flags, quoted

HOSTILE = [
    "plain",
    "two words",
    "it's",
    'a "b"',
    "$HOME `id` $(id) !1 \\n",
    "star*; rm -r x & #",
    "line\nbreak\ttab\x1b[31m",
    "ä 鳥",
    os.fsdecode(b"\xff\x80.png"),
]


def words_of(line: str, cwd: Path) -> list[str]:
    """What bash would pass to python."""
    script = f'python() {{ printf \'%s\\0\' "$PYTHONPATH" "$@"; }}; unset PYTHONPATH; {line}'
    printed = subprocess.run(["bash", "-c", script], cwd=cwd, capture_output=True, check=True).stdout
    return [os.fsdecode(word) for word in printed.split(b"\0")[:-1]]


@pytest.mark.parametrize("word", HOSTILE)
def test_a_shell_reads_the_word_that_was_meant_and_a_terminal_is_not_controlled(word, monkeypatch):
    monkeypatch.chdir(ROOT)
    line = command("evaluate.py", model_path=word)
    assert words_of(line, ROOT) == ["", "evaluate.py", "--model_path", word]
    assert line.isprintable()


def test_control_a_word_as_it_is_would_be_read_as_others():
    assert words_of("python evaluate.py --model_path two words", ROOT)[-2:] == ["two", "words"]


@dataclass
class Some:
    csv: str | None = None
    positive: list[str] | None = None
    mean: list[float] | None = None
    encoder_kwargs: dict | None = None
    value_range: tuple[float, float] | None = None
    test_only: bool = False
    download: bool = True


def test_the_parser_reads_the_settings_that_were_meant(monkeypatch):
    monkeypatch.chdir(ROOT)
    meant = {
        "csv": "--odd, name",
        "positive": ["a, b", 'c "d"', "é: [x]", "no"],
        "mean": [1e-05, 0.5],
        "encoder_kwargs": {"width": 8, "name": "x y"},
        "value_range": [0.0, 4095.0],
        "test_only": True,
        "download": False,
    }
    settings, _ = config.parse(Some, words_of(command("finetune.py", **meant), ROOT)[2:])
    assert vars(settings) == meant
    assert command("finetune.py", csv=None) == "python finetune.py"


@pytest.mark.parametrize(
    "words",
    [
        ["07", "weed, one"],
        [os.fsdecode(b"caf\xe9")],
        ["😀", "-x"],
        ["--odd", "a"],
        ["-h"],
        ["--odd", os.fsdecode(b"caf\xe9"), "😀\x7f"],
        ["[a]"],
        ["null"],
        ["[", "null"],
        [],
    ],
)
def test_the_parser_reads_the_list_of_words_that_was_meant(words):
    settings, _ = config.parse(Some, flags({"positive": words}))
    assert settings.positive == words


def test_scripts_and_modules_are_found_from_another_folder(tmp_path, monkeypatch):
    other = tmp_path / "else where"
    other.mkdir()
    monkeypatch.chdir(other)
    _, script, *_ = words_of(command("evaluate.py"), other)
    assert (other / script).resolve() == ROOT / "evaluate.py"
    line = command("ssl.export", "a run")
    path, *module = words_of(line, other)
    assert module == ["-m", "ssl.export", "a run"] and (other / path).resolve() == ROOT
    assert quoted("a b") == "'a b'"
