"""The folder called ssl takes the standard module from nobody, however Python is started."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PREAMBLE = """
import sys
already = "ssl" in sys.modules
import ssl
from pathlib import Path

ssl.__path__ = [str(Path(__file__).resolve().with_name("ssl"))]
"""
# The standard module, whole, the same one for everybody, and ours under it. No torch: a start costs seconds.
CHECK = """
import asyncio.sslproto, http.client, inspect, ssl, urllib.request
from ssl.schedules import warmup_cosine
assert warmup_cosine(5, 100, 10) == 0.5
assert asyncio.sslproto.ssl is http.client.ssl is ssl
assert isinstance(ssl.create_default_context(), ssl.SSLContext) and urllib.request.HTTPSHandler()
assert ssl.TLSVersion.TLSv1_2 is ssl.TLSVersion["TLSv1_2"] and inspect.getsource(ssl.SSLContext)
print("whole")
"""
SCRIPT = PREAMBLE + CHECK


def python(*args, cwd, **env):
    """What a fresh interpreter prints; the test fails if it does."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("PYTHON") and key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env=inherited | dict(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1") | env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def clone(folder, script=SCRIPT):
    """A project folder: our ssl and one script beside it."""
    folder.mkdir()
    (folder / "ssl").symlink_to(ROOT / "ssl", target_is_directory=True)
    (folder / "script.py").write_text(script)
    return folder


@pytest.fixture
def project(tmp_path):
    return clone(tmp_path / "project")


def test_script_from_the_root(project):
    assert python("script.py", cwd=project) == "whole"


def test_script_from_another_folder(project, tmp_path):
    assert python(project / "script.py", cwd=tmp_path) == "whole"


def test_script_as_a_module(project):
    assert python("-m", "script", cwd=project) == "whole"


def test_script_under_safe_path(project):
    assert python("-P", "script.py", cwd=project) == "whole"


def test_statement_in_the_root(project):
    assert python("-c", CHECK, cwd=project) == "whole"


def test_pythonpath_names_the_root(project, tmp_path):
    assert python("-c", CHECK, cwd=tmp_path, PYTHONPATH=str(project)) == "whole"


@pytest.mark.parametrize("args", [["script.py"], ["-m", "script"], ["-P", "script.py"]], ids=" ".join)
def test_standard_module_imported_before_the_script(project, tmp_path, args):
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text("import ssl\nassert not hasattr(ssl, '__path__')\n")
    (project / "script.py").write_text(SCRIPT + "assert already\n")
    assert python(*args, cwd=project, PYTHONPATH=str(hook)) == "whole"


def test_two_clones_on_the_path(project, tmp_path):
    other = clone(tmp_path / "other")
    assert python(project / "script.py", cwd=tmp_path, PYTHONPATH=str(other)) == "whole"
    both = os.pathsep.join([str(project), str(other)])
    code = CHECK + "import ssl.schedules; print(ssl.schedules.__file__)"
    used = python("-c", code, cwd=tmp_path, PYTHONPATH=both).splitlines()[-1]
    assert Path(used).parent == project / "ssl"


WORKERS = """
import torch
from torch.utils.data import DataLoader, Dataset

class Factors(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        from ssl.schedules import warmup_cosine
        import asyncio.sslproto
        assert asyncio.sslproto.ssl is sys.modules["ssl"] and ssl.create_default_context()
        return warmup_cosine(i, 10, 4)

if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        loader = DataLoader(Factors(), batch_size=4, num_workers=1, multiprocessing_context=method)
        print(method, [batch.tolist() for batch in loader])
"""


def test_loader_workers_by_every_start_method(project):
    (project / "script.py").write_text(PREAMBLE + WORKERS)
    lines = python("script.py", cwd=project).splitlines()
    assert lines == [f"{method} [[0.0, 0.25, 0.5, 0.75]]" for method in ("fork", "spawn", "forkserver")]


RANKS = """
import torch
from ssl.distributed import is_main, join, leave, rank, sum_over_ranks

device = join("cpu")
total = sum_over_ranks(torch.tensor(rank() + 1.0))
if is_main():
    ssl.create_default_context()
    print("total", total.item())
leave()
"""


def test_torch_distributed_run_from_the_root(project):
    (project / "script.py").write_text(PREAMBLE + RANKS)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "script.py"]
    assert python(*launch, cwd=project, GLOO_SOCKET_IFNAME="lo") == "total 3.0"


@pytest.fixture(scope="module")
def standard_names():
    return set(ast.literal_eval(python("-I", "-c", "import ssl; print(dir(ssl))", cwd=ROOT)))


def test_the_module_is_the_standard_one_plus_our_path(standard_names):
    ours = set(ast.literal_eval(python("-c", "import ssl; print(dir(ssl))", cwd=ROOT)))
    assert ours - standard_names == {"__path__"}
    assert standard_names <= ours


def test_only_submodules_join_the_standard_names(standard_names):
    code = "import ssl.errors, ssl.schedules; print(dir(ssl))"
    ours = set(ast.literal_eval(python("-c", code, cwd=ROOT)))
    assert ours - standard_names == {"__path__", "errors", "schedules", "signals"}
    assert standard_names <= ours


def test_no_file_of_ours_hides_a_standard_name(standard_names):
    ours = {path.stem for path in (ROOT / "ssl").iterdir()} - {"__init__", "__pycache__"}
    assert {"losses", "optim", "augment"} <= ours
    assert not ours & standard_names
