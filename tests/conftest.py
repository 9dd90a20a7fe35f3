"""What every test shares: the package under its name, and few threads."""

import os
from pathlib import Path

import ssl

ROOT = Path(__file__).resolve().parents[1]
ssl.__path__ = [str(ROOT / "ssl")]  # see ssl/__init__.py
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images named by SSL_TEST_DATA, or a skip."""
    folder = os.environ.get("SSL_TEST_DATA")
    if not folder:
        pytest.skip("SSL_TEST_DATA is not set: no real images here")
    return Path(folder)
