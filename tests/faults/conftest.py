"""What tests of faults share: moments drawn from one printed seed, small runs, and what they end in undisturbed."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from forked_run import ForkedRun

from ssl.faultcheck.small_run import TRAIN, SmallRun, make_images

SEED = int(os.environ.get("SSL_FAULT_SEED", random.randrange(10**6)))
LENGTH = 16  # steps of most runs here; a process's start is what takes time


def pytest_report_header() -> str:
    return f"faults at moments of SSL_FAULT_SEED={SEED}"


@pytest.fixture
def chance(request) -> random.Random:
    """Draws this test's moments, whichever other tests are run."""
    print(f"SSL_FAULT_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    return make_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture
def new_run(images, tmp_path) -> Callable[..., SmallRun]:
    """new_run(processes, name, script=…, …) is a small run of LENGTH steps."""

    def new_run(processes: int = 2, name: str = "run", **how) -> SmallRun:
        options = {"max_steps": LENGTH, **how.pop("options", {})}
        return ForkedRun(tmp_path / name, images, processes, options, **how)

    return new_run


@pytest.fixture(scope="session")
def undisturbed(images, tmp_path_factory) -> Callable[..., SmallRun]:
    """undisturbed(processes, steps) is such a run that nothing has befallen, started by python or torchrun itself."""
    made: dict[tuple[int, int], SmallRun] = {}

    def run(processes: int = 2, steps: int = LENGTH) -> SmallRun:
        if (processes, steps) not in made:
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            made[processes, steps] = SmallRun(folder, images, processes, {"max_steps": steps})
            made[processes, steps].finished()
        return made[processes, steps]

    return run


SLOWLY = """
import time
from ssl.training import log
write = log.Metrics.write
log.Metrics.write = lambda self, **values: (time.sleep(0.2), write(self, **values))
"""


@pytest.fixture
def altered(tmp_path) -> Callable[..., Path]:
    """altered(first) is a train.py before which `first` is run.

    For controls, which show what would happen if a mechanism were not there; and with `slowly`, a
    step takes 0.2 s more, so that something can happen between two.
    """

    def altered(first: str = "", slowly: bool = False) -> Path:
        script = tmp_path / f"altered{len(list(tmp_path.iterdir()))}.py"
        script.write_text(
            f"import sys\nsys.path.insert(0, {str(TRAIN.parent)!r})\nimport ssl\n"
            f"ssl.__path__ = [{str(TRAIN.parent / 'ssl')!r}]\n"
            f"exec({first + SLOWLY * slowly!r}, {{}})\n"
            f"__file__ = {str(TRAIN)!r}\n"
            f"exec(compile({TRAIN.read_text()!r}, __file__, 'exec'))\n"
        )
        return script

    return altered
