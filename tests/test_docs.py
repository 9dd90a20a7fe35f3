"""What the documents name is there."""

import re
from pathlib import Path

import pytest

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
