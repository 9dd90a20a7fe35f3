"""The notebook in examples/ runs from its first cell to its last after `import ssl`, and Jupyter can open its file."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from forked import PLAIN

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "examples" / "first_encoder.ipynb"
CELLS = json.loads(FILE.read_text("utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
LENGTH, SHORT = "IMAGES, EPOCHS = 4000, 8", "IMAGES, EPOCHS = 320, 3"

# As a notebook does: the standard ssl first; one namespace; the value of a cell's last expression is shown.
RUN = """
import ast, json, ssl, sys, urllib.request
assert not hasattr(ssl, "__path__")
cells, names, shown = json.load(sys.stdin), {"__name__": "__main__"}, []
for number, cell in enumerate(cells):
    *body, last = ast.parse(cell).body
    body += [] if isinstance(last, ast.Expr) else [last]
    exec(compile(ast.Module(body, []), f"cell {number}", "exec"), names)
    if isinstance(last, ast.Expr):
        shown.append(eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names))
"""
CHECK = """
import http.client
assert http.client.ssl is ssl and isinstance(ssl.create_default_context(), ssl.SSLContext)
urllib.request.build_opener(urllib.request.HTTPSHandler())
assert [tuple(h.shape) for h in names["untrained"] + names["trained"]] == [(320, 64), (4000, 64)] * 2
first, *_, last = names["losses"]
assert len(names["losses"]) == 3 and last < 0.95 * first, names["losses"]
pictures = [value for value in shown if hasattr(value, "_repr_png_")]
assert [picture.size for picture in pictures] == [(5 * 118 + 6, 4 * 118 + 24), (6 * 118 + 6, 5 * 118 + 24)]
assert shown[-1] is True  # what was loaded gives the features of what was saved
"""


def run(cells, tmp_path, check="", place="examples"):
    """Run `cells` in a fresh process, in the folder `place` of a copy of the project."""
    (tmp_path / "examples").mkdir()
    (tmp_path / "ssl").symlink_to(ROOT / "ssl")
    return subprocess.run(
        [sys.executable, "-I", "-c", RUN + check],
        input=json.dumps(cells),
        capture_output=True,
        text=True,
        cwd=tmp_path / place,
        env=os.environ | PLAIN | {"MPLBACKEND": "agg"},
    )


def test_the_cells_run_in_their_order(tmp_path):
    pytest.importorskip("matplotlib", reason="the notebook draws its loss with matplotlib")
    assert "\n".join(CODE).count(LENGTH) == 1
    done = run([source.replace(LENGTH, SHORT) for source in CODE], tmp_path, CHECK)
    assert done.returncode == 0, done.stderr
    assert "fit: 15 steps in " in done.stdout and "n = 4000 test images" in done.stdout
    assert re.search(r"^trained encoder +\d+\.\d % \(.+\) +\d+\.\d % \(.+\)$", done.stdout, re.MULTILINE)


def test_control_without_the_first_cell_nothing_is_found(tmp_path):
    done = run(CODE[1:], tmp_path)
    assert done.returncode and "'ssl' is not a package" in done.stderr


@pytest.mark.parametrize("place", [".", "ssl/report", ".."])
def test_the_first_cell_finds_the_project_above_or_in_the_working_folder(tmp_path, place):
    """Colab works in the folder above a clone."""
    clone = tmp_path / "clone"
    clone.mkdir()
    done = run([CODE[0], "from ssl.errors import UserError\nprint(UserError.__module__)"], clone, place=place)
    assert done.stdout == "ssl.errors\n", done.stderr


def test_the_first_cell_says_where_it_looked(tmp_path):
    (tmp_path / "clone").mkdir()
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    done = run(CODE[:1], tmp_path / "clone", place=tmp_path / "empty" / "inner")
    assert f"this project is not in {tmp_path / 'empty' / 'inner'}, nor above it" in done.stderr


def test_the_file_is_a_notebook_of_format_4():
    whole = json.loads(FILE.read_text("utf-8"))
    assert set(whole) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (whole["nbformat"], whole["nbformat_minor"]) == (4, 5) and whole["metadata"]["kernelspec"]["name"]
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)
    for cell in CELLS:
        assert re.fullmatch(r"[\w-]{1,64}", cell["id"]) and isinstance(cell["metadata"], dict)
        assert all(isinstance(line, str) for line in cell["source"])
        keys = {"id", "cell_type", "metadata", "source"}
        assert set(cell) == (keys if cell["cell_type"] == "markdown" else keys | {"execution_count", "outputs"})


def test_what_the_notebook_shows_on_github_is_of_one_run_and_small():
    outputs = [output for cell in CELLS for output in cell.get("outputs", [])]
    assert [cell["execution_count"] for cell in CELLS if "outputs" in cell] == [*range(1, len(CODE) + 1)]
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3  # views, loss, neighbours
    assert FILE.stat().st_size < 200_000
    text = "".join(line for output in outputs for line in output.get("text", []))
    accuracy = {
        name: [float(number) for number in re.findall(r"([\d.]+) % \(", found)]
        for name, found in re.findall(r"^(untrained|trained) encoder(.+)$", text, re.MULTILINE)
    }
    assert len(accuracy["trained"]) == 2
    assert all(trained > 1.5 * before for trained, before in zip(accuracy["trained"], accuracy["untrained"]))
