"""Imports in ssl/ go one way: to a layer further left, or to a neighbour, and nowhere in a circle."""

import ast
import graphlib
import shutil
from importlib.util import resolve_name
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ssl"
SCRIPTS = {"train", "evaluate", "finetune", "hubconf", "benchmarks", "tests"}
GROUND = "signals errors failures files console distributed".split()
METHOD = "losses optim schedules pixels augment batch_norm encoders wide preact heads".split()
WINGS = ["ground", "settings", "method", "data", "sources", "checkpoints", "evaluation", "training"]
LAYERS = {wing: layer for layer, wing in enumerate(WINGS)}
LAYERS |= dict.fromkeys(["report", "estimators", "export", "faultcheck"], len(WINGS))  # none imports another
LAYERS["worth"] = len(WINGS) + 1  # it makes pages, too


def wing(module: str) -> str:
    name = module.split(".")[1]
    return "ground" if name in GROUND else "method" if name in METHOD else name


def imports(package: Path) -> dict[str, set[str]]:
    """Module -> the modules of the project that it imports, anywhere in it."""
    paths = {".".join(path.relative_to(package.parent).with_suffix("").parts): path for path in package.rglob("*.py")}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    found = {}
    for name, path in paths.items():
        parent = name if path.stem == "__init__" else name.rpartition(".")[0]
        words = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                words |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                origin = resolve_name("." * node.level + (node.module or ""), parent)
                words |= {f"{origin}.{alias.name}" for alias in node.names}
        modules = {word if word in paths else word.rpartition(".")[0] for word in words if word.startswith("ssl.")}
        found[name] = modules | {word for word in words if word.split(".")[0] in SCRIPTS}
    return found


def mistakes(package: Path) -> list[str]:
    graph = imports(package)
    wrong = [f"{name} imports a script, {other}" for name in graph for other in graph[name] if other not in graph]
    arrows = [(name, other) for name in graph for other in graph[name] if other in graph and other != "ssl"]
    for name, other in arrows:
        if wing(name) != wing(other) and LAYERS[wing(name)] <= LAYERS[wing(other)]:
            wrong.append(f"{name} imports {other}")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        wrong.append(f"circle: {' <- '.join(error.args[1])}")
    return wrong


def test_imports_go_one_way_and_nowhere_in_a_circle():
    assert mistakes(PACKAGE) == []


def test_few_files_lie_flat_and_every_file_has_its_layer():
    flat = {path.stem for path in PACKAGE.glob("*.py")}
    assert len(flat) <= 16
    folders = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert flat == {"__init__", *GROUND, *METHOD, "export"} - {"losses", "encoders"}
    assert folders == {"losses", "encoders"} | LAYERS.keys() - {"ground", "method", "export"}


@pytest.mark.parametrize(
    "file, line, said",
    [
        ("data/images.py", "def f():\n    from ssl.report import svg", "ssl.data.images imports ssl.report.svg"),
        ("report/page.py", "import ssl.faultcheck.small_run", "ssl.report.page imports ssl.faultcheck.small_run"),
        ("errors.py", "if TYPE_CHECKING:\n    from ssl.distributed import rank", "circle: "),
        ("data/decode.py", "from . import images", "circle: "),
        ("training/guard.py", "from train import main", "ssl.training.guard imports a script, train.main"),
    ],
)
def test_a_wrong_import_is_found(tmp_path, file, line, said):
    copy = shutil.copytree(PACKAGE, tmp_path / "ssl", ignore=shutil.ignore_patterns("__pycache__"))
    with open(copy / file, "a") as source:
        source.write(f"\n\n{line}\n")
    found = mistakes(copy)
    assert len(found) == 1 and found[0].startswith(said)


@pytest.mark.parametrize("name", ["settings", "data", "sources"])
def test_the_docstring_of_a_wing_names_its_files(name):
    words = ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text("utf-8")))
    assert [path.stem for path in (PACKAGE / name).glob("[!_]*.py") if f"`{path.stem}" not in words] == []
