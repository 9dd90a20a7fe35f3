"""What the documents name is there."""

import re
import shlex
from pathlib import Path

import pytest

import evaluate
import finetune
import train
from ssl import config

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_tests_and_files_that_a_document_names_are_there(document):
    text = document.read_text("utf-8")
    for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
        assert (ROOT / file).is_file(), file
        assert not test or re.search(rf"^def {test}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE), test
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (document.parent / link).exists(), link
    for room in re.findall(r"^  (?:  )?(\w+\.py)  ", text, re.MULTILINE):
        assert (ROOT / "ssl" / room).is_file() or (ROOT / "ssl" / "data" / room).is_file(), room


def test_the_architecture_names_every_room():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    for path in [*(ROOT / "ssl").glob("*.py"), *(ROOT / "ssl" / "data").glob("[!_]*.py")]:
        assert re.search(rf"^ +{path.name} ", text, re.MULTILINE), f"{path.name} is not in docs/architecture.md"


def commands(document: Path) -> list[tuple[str, list[str]]]:
    """(script, arguments) of every command line of a document that starts one of the scripts."""
    blocks = re.findall(r"^```bash\n(.*?)^```", document.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    lines = re.sub(r"\\\n", " ", "\n".join(blocks)).splitlines()
    found = []
    for words in (shlex.split(line, comments=True) for line in lines):
        for place, word in enumerate(words):
            script = {"slurm/train.sbatch": "train.py", "slurm/evaluate.sbatch": "evaluate.py",
                      "slurm/finetune.sbatch": "finetune.py"}.get(word, word)  # fmt: skip
            if script in SCRIPTS:
                found.append((script, words[place + 1 :]))
    return found


SCRIPTS = {"train.py": train, "evaluate.py": evaluate, "finetune.py": finetune}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_of_a_document_has_settings_that_exist(document, monkeypatch):
    monkeypatch.chdir(ROOT)
    for script, arguments in commands(document):
        if "--help" not in arguments and not (arguments and "rows" in _text(arguments) and "--row" not in arguments):
            config.parse(SCRIPTS[script].Settings, arguments)


def _text(arguments: list[str]) -> str:
    """The settings file that a command names."""
    return Path(arguments[arguments.index("--config") + 1]).read_text("utf-8") if "--config" in arguments else ""


def test_the_documents_hold_commands():
    assert sum(len(commands(document)) for document in DOCUMENTS) > 20
