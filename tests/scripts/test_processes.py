"""Scripts on several processes, started by torchrun, by --gpus or on two nodes."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from ports import free_ports
from running import ROOT, metrics, run, tiny, weights


@pytest.mark.parametrize(
    "method, balanced, views, processes",
    [
        ("barlow_twins", False, 2, 2),
        ("simclr", False, 2, 2),
        ("supcon", True, 2, 2),
        ("barlow_twins", False, 4, 4),
        ("simclr", False, 3, 2),
        ("supcon", True, 3, 4),
    ],
)
def test_several_processes_train_as_one(images, tmp_path, method, balanced, views, processes):
    # At SimCLR's low temperature, and at its full rate to the end, eight steps let rounding grow to a ten-thousandth.
    calm = {"schedule": "cosine", "warmup_start": 0}
    calm |= {} if method == "barlow_twins" else {"temperature": 0.2 if views == 2 else 0.5}
    settings = calm | {"data_dir": images, "method": method, "balanced": balanced, "views": views}
    run("train.py", *tiny(**settings), output_dir=tmp_path / "one")
    run("train.py", *tiny(**settings, batch_size=16 // processes), output_dir=tmp_path / "many", processes=processes)
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "many"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert torch.allclose(weights(tmp_path / "one"), weights(tmp_path / "many"), rtol=1e-3, atol=1e-3)


def test_accumulation_is_several_processes_in_turn(images, tmp_path):
    common = ["train.py", *tiny(data_dir=images, batch_size=4, sync_bn=False)]
    run(*common, output_dir=tmp_path / "four", processes=4)
    run(*common, output_dir=tmp_path / "turns", accumulate=4)
    for a, b in zip(metrics(tmp_path / "four"), metrics(tmp_path / "turns")):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    four, turns = (torch.load(tmp_path / f / "checkpoint.pt", weights_only=True)["model"] for f in ("four", "turns"))
    for name, value in turns.items():
        if "running" not in name and "num_batches" not in name:  # a rank counts its own share
            assert torch.allclose(value, four[name], rtol=1e-3, atol=1e-4), name


def test_gpus_starts_torchrun_by_itself(images, tmp_path):
    done = run("train.py", *tiny(), gpus=2, device="cpu", data_dir=images, output_dir=tmp_path)
    assert "× 2 processes" in done.stdout and "= 32 (global)" in done.stdout


def test_judging_takes_gpus_too(trained, judged, tmp_path):
    """The command of Barlow Twins in Lightning, with fewer processes."""
    done = run(
        "evaluate.py", gpus=2, batch_size=256, model_path=trained, device="cpu", protocol="knn", output_dir=tmp_path
    )
    assert re.search(r"^device      CPU, \d+ threads? × 2 processes", done.stdout, re.M)
    assert json.loads((tmp_path / "results.json").read_text())["knn"] == judged[0]["knn"]
    done = run("evaluate.py", gpus=2, features=trained, check=False)
    assert "one process judges a features file" in done.stderr


def test_judging_on_two_processes_counts_every_image_once(trained, judged, tmp_path):
    how = {"model_path": trained, "protocol": "all", "linear_epochs": 2, "batch_size": 4}
    run("evaluate.py", **how, output_dir=tmp_path, processes=2)
    one, two = (torch.load(f / "features.pt", weights_only=True) for f in (judged[1], tmp_path))
    for split in ("train", "test"):
        assert one[split]["names"] == two[split]["names"]
        assert torch.allclose(one[split]["features"], two[split]["features"], atol=1e-5)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["knn"] == judged[0]["knn"]
    for judge in ("linear", "probe"):  # by rounding alone, a score on the edge may fall to the other side: one image
        assert results[judge]["acc1"] == pytest.approx(judged[0][judge]["acc1"], abs=1.01 / 21)


def test_a_bad_setting_is_told_once_under_torchrun_and_is_its_last_word(images, tmp_path):
    launch = "-m torch.distributed.run --standalone --nproc_per_node=2 train.py".split()
    done = run(*launch, *tiny(batch_size=100), data_dir=images, output_dir=tmp_path, check=False)
    assert done.returncode != 0 and done.stderr.startswith("train.py: error: batch_size")
    assert done.stderr.count("\ntrain.py: error: ") == 0
    assert "traceback : train.py: error: batch_size: the global batch, 100" in done.stderr


def test_two_machines_train_as_one(images, tmp_path):
    """Two torchruns that find each other, as on two nodes."""
    (port,) = free_ports(1)
    nodes = f"--nnodes=2 --nproc_per_node=1 --rdzv_backend=c10d --rdzv_endpoint=127.0.0.1:{port} --local_addr=127.0.0.1"
    settings = tiny(data_dir=images, output_dir=tmp_path / "nodes", batch_size=8)
    launch = [sys.executable, "-m", "torch.distributed.run", *nodes.split(), "train.py", *settings]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    nodes = [
        subprocess.Popen(launch, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env) for _ in range(2)
    ]
    printed = [node.communicate(timeout=300)[0].decode() for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "".join(printed)
    assert sum("judge it" in text for text in printed) == 1
    run("train.py", *tiny(batch_size=8), data_dir=images, output_dir=tmp_path / "one", processes=2)
    for a, b in zip(metrics(tmp_path / "nodes"), metrics(tmp_path / "one"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def by_rank(path, arguments):
    """A script that runs train.py with further arguments, Python code that may read `rank`."""
    path.write_text(
        "import os, runpy, sys\n"
        "rank = os.environ['RANK']\n"
        f"sys.argv = ['train.py', *sys.argv[1:], *{arguments}]\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
    )
    return path


def test_settings_that_differ_between_processes_are_refused(images, tmp_path):
    script = by_rank(tmp_path / "views.py", "['--views', str(2 + int(rank)), '--device', ['auto', 'cpu'][int(rank)]]")
    done = run(script, *tiny(), data_dir=images, output_dir=tmp_path / "run", processes=2, check=False)
    assert done.returncode != 0 and "views: every process needs the same value, got [2, 3]" in done.stderr
    assert not (tmp_path / "run").exists()


def test_nodes_without_a_shared_folder_are_told(images, tmp_path):
    run("train.py", *tiny(max_steps=1, batch_size=32), data_dir=images, output_dir=tmp_path / "0")
    own_disk = by_rank(tmp_path / "own_disk.py", f"['--output_dir', {str(tmp_path)!r} + '/' + rank]")
    done = run(own_disk, *tiny(batch_size=16), data_dir=images, processes=2, check=False)
    assert done.returncode != 0 and "is not the same folder on all nodes" in done.stderr
