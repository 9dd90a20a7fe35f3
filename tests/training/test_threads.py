"""How many threads compute: as cores allow, fewer where others use them, as before where a run continues."""

import json
import os
import shutil

import forked
import pytest
import torch
from drawn import class_folders
from running import tiny

from ssl.checkpoints import about
from ssl.data.cores import usable_cores
from ssl.training import threads


@pytest.fixture
def machine(monkeypatch):
    """Make one of 8 cores, on which a timing takes the seconds given for a number of threads."""
    before = torch.get_num_threads()

    def make(cores=8, **took) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 64)  # what PyTorch takes on its own
        monkeypatch.setattr(threads, "core_share", lambda: cores)
        monkeypatch.setattr(threads, "seconds", lambda number, cores: took[f"on_{number}"])
        monkeypatch.setattr(torch, "set_num_threads", make.chosen.append)

    make.chosen = []
    yield make
    monkeypatch.undo()
    torch.set_num_threads(before)


IDLE = dict(on_8=1.0, on_4=1.9, on_2=3.8, on_1=7.5)
HALF = dict(on_8=20.0, on_4=1.9, on_2=3.8, on_1=7.5)
BUSY = dict(on_8=90.0, on_4=60.0, on_2=40.0, on_1=9.0)


@pytest.mark.parametrize("took, chosen", [(IDLE, 8), (HALF, 4), (BUSY, 1)])
def test_threads_are_the_cores_and_fewer_where_others_use_them(machine, capsys, took, chosen):
    machine(**took)
    threads.settle_threads()
    assert machine.chosen == [chosen]
    said = (
        ""
        if chosen == 8
        else (
            f"threads     {chosen} for 8 cores: other programs use the cores, and more would wait for each other; "
            "OMP_NUM_THREADS sets another number\n"
        )
    )
    assert capsys.readouterr().out == said


def test_a_quota_of_four_cores_is_four_threads_whatever_the_host_has(machine):
    machine(cores=4, **IDLE)
    threads.settle_threads()
    assert machine.chosen == [4]


def test_omp_num_threads_has_the_last_word(machine, monkeypatch, capsys):
    machine(**BUSY)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    threads.settle_threads(kept=5)
    assert machine.chosen == [] and capsys.readouterr().out == ""


def test_a_run_goes_on_with_the_number_it_had_while_there_are_so_many_cores(machine, capsys):
    machine(**BUSY)
    threads.settle_threads(kept=8)
    machine(**IDLE)
    threads.settle_threads(kept=2)
    assert "threads     2 for 8 cores: as the run had" in capsys.readouterr().out
    threads.settle_threads(kept=64)  # it began on a larger machine
    assert machine.chosen == [8, 2, 8]


def test_a_timing_takes_moments_and_is_on_the_threads_it_is_of():
    before = torch.get_num_threads()
    try:
        for number in (2, 1):
            assert 0 < threads.seconds(number, cores=2) < 60
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)


def test_a_run_folder_says_its_number(tmp_path):
    assert about.threads_of(tmp_path) is None
    for content in ("", "[]", "{}", '{"versions": {"threads": "x"}}', "[" * 100_000):
        (tmp_path / "about.json").write_text(content)
        assert about.threads_of(tmp_path) is None
    (tmp_path / "about.json").write_text(json.dumps({"versions": about.versions()}))
    assert about.threads_of(tmp_path) == torch.get_num_threads()


@pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")
def test_scripts_continue_and_test_with_the_threads_of_the_run(tmp_path):
    images = class_folders(tmp_path / "images", {"train": (36, 0), "test": (12, 1)})
    free = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    small = tiny(data_dir=images, output_dir=tmp_path / "run", max_steps=2)
    longer = tiny(data_dir=images, output_dir=tmp_path / "again", max_steps=3)
    on = "threads     1 for "
    assert on not in forked.run("train.py", *small).stdout  # OMP_NUM_THREADS=1 is no surprise
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    again = forked.run("train.py", *longer, env=free)
    assert again.returncode == 0 and on in again.stdout and "as the run had" in again.stdout
    assert "changed     threads" not in again.stdout and about.threads_of(tmp_path / "again") == 1
