"""What every test shares: the package under its name, and few threads."""

import os
import sys
from pathlib import Path

import ssl

ROOT = Path(__file__).resolve().parents[1]
ssl.__path__ = [str(ROOT / "ssl")]  # see ssl/__init__.py
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from drawn import class_folders

from ssl.training.tensorboard import Board

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images named by SSL_TEST_DATA, or a skip."""
    folder = os.environ.get("SSL_TEST_DATA")
    if not folder:
        pytest.skip("SSL_TEST_DATA is not set: no real images here")
    return Path(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A class folder of small pictures: 64 to train on and 21 to judge, which no two processes divide evenly."""
    return class_folders(tmp_path_factory.mktemp("images"), {"train": (64, 0), "test": (21, 1)})


@pytest.fixture(autouse=True)
def closed_event_files(request, monkeypatch):
    """The threads of TensorBoard end before the folder of a test is removed; they would raise in a later test."""
    if "tmp_path" in request.fixturenames:
        request.getfixturevalue("tmp_path")  # then its folder is removed after this
    opened, begin = [], Board._open

    def open_one(board):
        opened.append(begin(board))
        return opened[-1]

    monkeypatch.setattr(Board, "_open", open_one)
    yield
    for writer in opened:
        writer.close()
