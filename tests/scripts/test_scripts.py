"""The scripts as a person runs them: real processes, small encoders, every promise of the README."""

import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from running import ROOT, metrics, run, tiny, weights

import evaluate
import finetune
import train
from ssl.augment import View
from ssl.checkpoints import inherit, pretrained
from ssl.data.worker import Batch
from ssl.encoders import SmallResNet
from ssl.errors import UserError
from ssl.heads import projector
from ssl.settings import auto, config
from ssl.sources.shapes import CLASSES, render
from ssl.training.accumulation import accumulate_exact, accumulate_split


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    done = run("train.py", "--data_dir", images, "--output_dir", folder, *tiny())
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def test_the_run_folder_says_where_settings_came_from(trained):
    about = json.loads((trained / "about.json").read_text())
    assert about["origin"]["data_dir"] == "command line" and about["origin"]["momentum"] == "default"
    assert len(about["views"]) == 2 and about["images"] == 64 and len(about["mean"]) == len(about["std"]) == 3


# scripts/demo


@pytest.mark.slow
def test_the_demo_leaves_the_promised_table(tmp_path):
    for name in ("scripts", "ssl", "configs", "train.py", "evaluate.py"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    done = subprocess.run([tmp_path / "scripts" / "demo", "--max_steps", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    table = json.loads((tmp_path / "runs" / "demo" / "results.json").read_text())
    assert table.pop("of")["data"]["test_images"] == 4000
    assert set(table) == {"raw_pixels", "random_init", "trained"}
    for row in table.values():
        assert set(row) == {"probe", "knn", "probe_interval", "knn_interval"}
        for judge in ("probe", "knn"):
            low, high = row[f"{judge}_interval"]
            assert 0 < low < row[judge] < high < 1
    for words in ("raw pixels", "untrained encoder", "trained encoder", "linear probe", "k-NN"):
        assert words in done.stdout


# train.py


def test_a_run_leaves_a_folder_that_says_everything(trained, images):
    assert {"config.yaml", "metrics.jsonl", "checkpoint.pt", "encoder.pt"} <= set(os.listdir(trained))
    lines = metrics(trained)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert {
        "epoch",
        "loss",
        "on_diagonal",
        "off_diagonal",
        "lr_weights",
        "lr_biases",
        "samples_per_second",
        "data_wait",
    } <= set(lines[0])
    saved = yaml.safe_load((trained / "config.yaml").read_text())
    assert saved["data_dir"] == str(images) and saved["dataset"] == "folder"
    state = torch.load(trained / "checkpoint.pt", weights_only=True)
    assert state["step"] == 8 and any(name.startswith("encoder.") for name in state["model"])


def test_the_first_and_last_lines_tell_what_and_why_and_what_next(trained):
    printed = (trained / "printed.txt").read_text()
    for words in (
        "configs/barlow_twins_cifar10.yaml",
        "CPU",
        "16 per process × 1 × accumulate 1 = 16 (global)",
        "(0.3 × global batch 16 / 256)",
        f"python evaluate.py --model_path {trained}",
    ):
        assert words in printed


def test_the_saved_settings_rerun_the_run(trained, tmp_path):
    run("train.py", "--config", trained / "config.yaml", "--output_dir", tmp_path)
    assert torch.equal(weights(tmp_path), weights(trained))


def test_an_interrupted_run_continues_to_the_same_weights_and_metrics(trained, images, tmp_path):
    again = ["train.py", "--data_dir", images, "--output_dir", tmp_path, *tiny()]
    run(*again, "--max_steps", "3")
    with open(tmp_path / "metrics.jsonl", "a") as file:  # steps a crash threw away, the last cut short
        file.write('{"step": 4, "loss": 1.0}\n{"step": 5, "lo')
    assert "continuing at step 3 of 8" in run(*again).stdout
    assert torch.equal(weights(tmp_path), weights(trained))
    drop = ("samples_per_second", "data_wait")
    assert [{k: v for k, v in line.items() if k not in drop} for line in metrics(tmp_path)] == [
        {k: v for k, v in line.items() if k not in drop} for line in metrics(trained)
    ]


def test_what_was_forced_to_change_has_changed_and_another_precision_continues(images, tmp_path):
    again = ["train.py", "--data_dir", images, "--output_dir", tmp_path, *tiny("--amp", "off")]
    run(*again, "--max_steps", "3")
    force = ["--lr", "0.5", "--weight_decay", "0.25", "--resume_force"]
    done = run(*again[:-1], "fp16", *force, "--max_steps", "5")
    assert "lr: 0.3 -> 0.5" in done.stdout and "amp: 'off' -> 'fp16'" in done.stdout
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    weights_group = state["optimizer"]["param_groups"][0]
    assert weights_group["base_lr"] == pytest.approx(0.5 * 16 / 256) and weights_group["weight_decay"] == 0.25
    assert state["step"] == 5 and state["scaler"]["scale"] > 0


@pytest.mark.parametrize("method", ["barlow_twins", "simclr", "supcon --balanced"])
def test_two_processes_train_as_one(images, tmp_path, method):
    # At SimCLR's low temperature, and at its full rate to the end, eight steps let rounding grow to a ten-thousandth.
    calm = ["--temperature", "0.2", "--schedule", "cosine", "--warmup_start", "0"]
    common = ["train.py", "--data_dir", images, "--method", *method.split(), *calm]
    run(*common, "--output_dir", tmp_path / "one", *tiny())
    run(*common, "--output_dir", tmp_path / "two", *tiny("--batch_size", 8), processes=2)
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two")):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert torch.allclose(weights(tmp_path / "one"), weights(tmp_path / "two"), rtol=1e-3, atol=1e-3)


def test_accumulation_is_several_processes_in_turn(images, tmp_path):
    common = ["train.py", "--data_dir", images, *tiny("--batch_size", 4, "--sync_bn", "false")]
    run(*common, "--output_dir", tmp_path / "four", processes=4)
    run(*common, "--output_dir", tmp_path / "turns", "--accumulate", "4")
    for a, b in zip(metrics(tmp_path / "four"), metrics(tmp_path / "turns")):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    four, turns = (torch.load(tmp_path / f / "checkpoint.pt", weights_only=True)["model"] for f in ("four", "turns"))
    for name, value in turns.items():
        if "running" not in name and "num_batches" not in name:  # a rank counts its own share
            assert torch.allclose(value, four[name], rtol=1e-3, atol=1e-4), name


def test_an_interrupted_balanced_run_continues_to_the_same_weights(images, tmp_path):
    common = ["train.py", "--data_dir", images, "--method", "supcon", "--balanced", *tiny(), "--output_dir"]
    run(*common, tmp_path / "whole")
    run(*common, tmp_path / "parts", "--max_steps", "3")
    assert "continuing at step 3 of 8" in run(*common, tmp_path / "parts").stdout
    assert torch.equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def test_gpus_starts_torchrun_by_itself(images, tmp_path):
    done = run("train.py", "--gpus", "2", "--device", "cpu", "--data_dir", images, "--output_dir", tmp_path, *tiny())
    assert "× 2 processes" in done.stdout and "= 32 (global)" in done.stdout


def test_judging_takes_gpus_too(trained, judged, tmp_path):
    """The command of Barlow Twins in Lightning, with fewer processes."""
    done = run(
        "evaluate.py",
        "--gpus=2",
        "--batch_size",
        256,
        "--model_path",
        trained,
        "--device",
        "cpu",
        "--protocol",
        "knn",
        "--output_dir",
        tmp_path,
    )
    assert re.search(r"^device      CPU, \d+ threads × 2 processes", done.stdout, re.M)
    assert json.loads((tmp_path / "results.json").read_text())["knn"] == judged[0]["knn"]
    done = run("evaluate.py", "--gpus=2", "--features", trained, check=False)
    assert "one process judges a features file" in done.stderr


def test_without_any_data_set_the_embedded_one_is_taken_loudly(tmp_path):
    done = run("train.py", "--max_steps", "1", "--output_dir", tmp_path, *tiny())
    assert "EMBEDDED" in done.stdout and "shapes: 20000 images" in done.stdout


def test_split_accumulation_is_the_mean_of_the_losses_and_trains_on_it(images, tmp_path):
    common = ["train.py", "--data_dir", images, *tiny("--batch_size", 8, "--max_steps", 1), "--warmup_start", "1"]
    for mode in ("exact", "split"):
        run(*common, "--output_dir", tmp_path / mode, "--accumulate", "2", "--accumulate_mode", mode)
    exact, split = (metrics(tmp_path / mode)[0] for mode in ("exact", "split"))
    assert split["loss"] != pytest.approx(exact["loss"], rel=1e-3)
    # lambd 0.005 and loss_scale 0.1 of the recipe: the parts are means, too
    assert split["loss"] == pytest.approx(0.1 * (split["on_diagonal"] + 0.005 * split["off_diagonal"]), rel=1e-4)


class Dropping(SmallResNet):
    """An encoder that draws while it trains."""

    def forward(self, x):
        return torch.nn.functional.dropout(super().forward(x), 0.5, self.training)


DROPPING = ("test_scripts.Dropping", {"width": 8, "stages": 1})
WIDE = ("wide_resnet_28_10", {"depth": 10, "widen_factor": 1})


@pytest.mark.parametrize(
    "method, micro_batches, encoder",
    [
        ("barlow_twins", 2, DROPPING),
        ("barlow_twins", 4, DROPPING),
        ("supcon", 4, DROPPING),
        ("simclr", 2, WIDE),
    ],
)
def test_exact_accumulation_has_the_gradient_of_the_whole_batch_also_with_dropout(method, micro_batches, encoder):
    settings = train.Settings(
        method=method, image_size=16, projector="12-8", sync_bn=False, encoder=encoder[0], encoder_kwargs=encoder[1]
    )
    torch.manual_seed(0)
    model = train.Model(settings).train()
    criterion = train.make_criterion(settings)
    views = [torch.randn(16, 3, 16, 16) for _ in range(2)]
    labels = torch.tensor([0, 1, 1, 2, -1, 0, 2, 2, 0, 1, -1, 2, 0, 0, 1, 1])
    batches = [
        Batch(
            list(zip(*(view.chunk(micro_batches) for view in views)))[i],
            torch.arange(16 // micro_batches),
            labels.chunk(micro_batches)[i],
            seed=i,
        )
        for i in range(micro_batches)
    ]

    def embed(batch):
        torch.manual_seed(batch.seed)
        return model(*batch.views)

    embed.net = model
    with torch.no_grad():  # with the graph of all of it in memory, as one would wish to do it
        before = {k: v.clone() for k, v in model.state_dict().items()}
    z1, z2 = (torch.cat(view) for view in zip(*(embed(batch) for batch in batches)))
    whole = criterion(z1, z2, labels) if method == "supcon" else criterion(z1, z2)
    whole.backward()
    expected = [p.grad.clone() for p in model.parameters()]
    statistics = {k: v.clone() for k, v in model.state_dict().items()}

    model.zero_grad()
    model.load_state_dict(before)
    loss = accumulate_exact(batches, embed, criterion, lambda loss: loss.backward())
    assert loss.item() == pytest.approx(whole.item(), rel=1e-5)
    for p, grad in zip(model.parameters(), expected):
        assert torch.allclose(p.grad, grad, rtol=1e-4, atol=1e-6)
    for name, value in model.state_dict().items():  # running statistics count each micro-batch once
        assert torch.allclose(value, statistics[name], rtol=1e-5), name


def test_split_accumulation_takes_the_labels_of_each_micro_batch():
    criterion = train.make_criterion(train.Settings(method="supcon"))
    z, labels = torch.randn(2, 3, 8, 6).unbind(), torch.randint(3, (3, 8))
    batches = [Batch([], torch.arange(8), of_batch, seed=i) for i, of_batch in enumerate(labels)]

    def embed(batch):
        return tuple(view[batch.seed] for view in z)

    embed.net = torch.nn.Identity()
    loss = accumulate_split(batches, embed, criterion, lambda loss: None)
    each = [criterion(a, b, of_batch) for a, b, of_batch in zip(*z, labels)]
    assert loss.item() == pytest.approx(sum(each).item() / 3, rel=1e-6)


def test_supcon_learns_from_labels_and_says_so(images, tmp_path):
    common = ["train.py", "--data_dir", images, *tiny("--max_steps", 1), "--base_temperature", "null"]
    done = run(*common, "--method", "supcon", "--temperature", "0.2", "--output_dir", tmp_path / "supcon")
    assert "labels      of 64 images, 3 classes" in done.stdout and "supcon_cifar10.yaml" in done.stdout
    run(*common, "--method", "simclr", "--temperature", "0.2", "--output_dir", tmp_path / "simclr")
    with_labels, without = (metrics(tmp_path / name)[0]["loss"] for name in ("supcon", "simclr"))
    assert with_labels != pytest.approx(without, rel=1e-3)  # where they start from the same weights
    done = run(*common, "--method", "supcon", "--output_dir", tmp_path / "balanced", "--balanced")
    assert "3 classes, every class shown as often" in done.stdout


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--method", "supcon"], "method supcon: needs labels, and folder has none here"),
        (["--method", "simclr", "--balanced"], "balanced: needs labels, and folder has none here"),
    ],
)
def test_without_labels_nothing_starts_that_learns_from_them(tmp_path, arguments, expected):
    for i, pixels in enumerate(render(torch.zeros(20, dtype=torch.long), 32, 0)):
        (tmp_path / "flat").mkdir(exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "flat" / f"{i}.png")
    done = run(
        "train.py", "--data_dir", tmp_path / "flat", "--output_dir", tmp_path / "run", *tiny(), *arguments, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith(f"train.py: error: {expected}")
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_run_that_learns_from_labels_is_not_continued_with_others(tmp_path):
    pixels = render(torch.arange(32) % 3, 32, 0).permute(0, 2, 3, 1).numpy()
    labels = (torch.arange(32) % 3).numpy()
    common = [
        "train.py",
        "--data_dir",
        tmp_path / "data.npz",
        "--output_dir",
        tmp_path / "run",
        *tiny("--max_steps", 1),
        "--method",
        "supcon",
    ]
    np.savez(tmp_path / "data.npz", images=pixels, labels=labels)
    run(*common)
    np.savez(tmp_path / "data.npz", images=pixels, labels=labels[::-1].copy())
    done = run(*common, check=False)
    assert done.returncode == 2 and "labels: '" in done.stderr


@pytest.mark.parametrize("optimizer", ["lamb", "sgd", "adam", "adamw"])
def test_every_optimizer_and_clipping_run(images, tmp_path, optimizer):
    options = ["--optimizer", optimizer, "--clip_grad", "1", "--lr_scaling", "none", "--lr", "1e-3", "--max_steps", "2"]
    run("train.py", "--data_dir", images, "--output_dir", tmp_path, *tiny(), *options)
    assert len(metrics(tmp_path)) == 2


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_follows_float32(trained, images, tmp_path, amp):
    run("train.py", "--data_dir", images, "--output_dir", tmp_path, *tiny("--amp", amp, "--max_steps", 2))
    for half, full in zip(metrics(tmp_path), metrics(trained)):
        assert half["loss"] == pytest.approx(full["loss"], rel=0.1)


def test_training_starts_from_another_runs_encoder(trained, images, tmp_path):
    common = ["train.py", "--data_dir", images, *tiny(), "--init", trained, "--max_steps", "1"]
    assert f"{trained / 'encoder.pt'}" in run(*common, "--output_dir", tmp_path).stdout
    # The learning rate of the first step is 0: only running statistics have moved.
    key = "stem.0.weight"
    before, after = (torch.load(f / "encoder.pt", weights_only=True)[key] for f in (trained, tmp_path))
    assert torch.equal(before, after)


def test_the_encoder_is_that_of_the_run_of_init_unless_another_is_asked_for(tmp_path):
    shown = {"encoder": "resnet18", "encoder_kwargs": {}, "stem": "small"}  # not as the recipe of shapes has it
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "encoder.pt").touch()
    config.write_yaml(tmp_path / "run" / "config.yaml", shown | {"image_size": 96})
    config.write_yaml(tmp_path / "mine.yaml", {"encoder": "resnet34"})

    def chosen(*arguments) -> dict:
        words = ["--init", str(tmp_path / "run"), *map(str, arguments)]
        settings, origin = config.parse(train.Settings, words, recipe=train.find_recipe)
        inherit.take_architecture(settings, origin)
        assert list(origin.values())[-1] == origin["encoder"] or origin["encoder"] != "the run of --init"  # it has won
        return {name: getattr(settings, name) for name in shown} | {"origin": origin["encoder"]}

    assert chosen() == shown | {"origin": "the run of --init"}
    assert chosen("--encoder", "resnet50")["encoder"] == "resnet50"
    assert chosen("--stem", "imagenet") == shown | {"stem": "imagenet", "origin": "the run of --init"}
    assert chosen("--config", tmp_path / "mine.yaml")["encoder"] == "resnet34"
    config.write_yaml(tmp_path / "run" / "config.yaml", {"encoder": "somebody.Net"})
    with pytest.raises(UserError, match="importing that runs its code"):
        chosen()


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (
            ["--batch_size", "100"],
            "global batch, 100 per process × 1 processes × accumulate 1 = 100, is larger than the",
        ),
        (["--warmup_epochs", "2"], "warmup_epochs: 2.0 must be fewer than epochs (2)"),
        (["--dataset", "CIFAR11"], "dataset: 'CIFAR11' is none of"),
        (["--projector", "16-x"], "projector: '16-x' is not a list of widths"),
        (["--encoder", "resnet99"], "encoder: 'resnet99' is neither"),
        (["--lerning_rate", "1"], "unknown setting --lerning_rate"),
        (["--init", "nowhere"], "nowhere: no such file or run folder"),
        (["--resume", "nowhere.pt"], "resume: nowhere.pt does not exist"),
        (["--gpus", "0"], "gpus: 0 is not a number of processes"),
        (["--dataset", "ImageNet"], "is not ImageNet"),
    ],
)
def test_a_bad_setting_stops_with_one_line(images, tmp_path, arguments, expected):
    done = run("train.py", "--data_dir", images, "--output_dir", tmp_path / "r", *tiny(*arguments), check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("train.py: error: ") and expected in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "r" / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ("--batch_size 1", "batch_size: 1 is too small"),
        ("--workers -1", "workers: -1 must not be negative"),
        ("--momentum -1", "momentum: -1.0 must not be negative"),
        ("--seed 9223372036854775808", "seed: 9223372036854775808 is too large"),
        ("--std 0 0 0", "std: [0.0, 0.0, 0.0] must be positive"),
        ("--jitter -1 9 3 4", "jitter: [-1.0, 9.0, 3.0, 4.0] must not be negative"),
        ("--blur_sigma 2 1", "blur_sigma: expected 0 < smallest <= largest, got 2 and 1"),
        ("--crop_scale 0.5 2", "crop_scale: expected 0 < smallest <= largest <= 1, got 0.5 and 2"),
        ("--crop_ratio 0 1", "crop_ratio: expected 0 < smallest"),
        ("--blur_prob 0.5", "blur_prob: expected two values, of view 1 and view 2, got [0.5]"),
        ("--rotation 200", "rotation: 200.0 degrees is not in 0..180"),
        ("--rotation_prob 2", "rotation_prob: 2.0 is not in 0..1"),
        ("--vertical_flip -1", "vertical_flip: -1.0 is not in 0..1"),
        ("--blur_prob 0.5 2", "blur_prob: [0.5, 2.0] is not in 0..1"),
        ("--blur_kernel 4", "blur_kernel: 4 must be odd"),
        ("--warmup_start 2", "warmup_start: 2.0 is not in 0..1"),
        ("--schedule step", "decay_epochs: schedule step needs"),
        ("--schedule cosine_by_epoch --warmup_epochs 1.5", "warmup_epochs: 1.5 must be whole"),
        ("--temperature 0", "temperature: 0.0 must be positive"),
    ],
)
def test_values_that_cannot_work_are_named(arguments, expected):
    settings, _ = config.parse(train.Settings, arguments.split())
    with pytest.raises(UserError, match=re.escape(expected)):
        train.check(settings)


def test_schedules_follow_the_epochs():
    by_epoch = train.Settings(epochs=20, warmup_epochs=10, schedule="cosine_by_epoch", warmup_start=0.01, final_lr=0.0)
    factors = [train.lr_factor(by_epoch, step, 5) for step in range(100)]
    assert factors[0] == factors[4] == 0.01 and factors[5] == pytest.approx(0.01 + 0.99 / 10) and factors[50] == 1
    steps = train.Settings(epochs=20, warmup_epochs=2, schedule="step", decay_epochs=[5, 15], decay_rate=0.1)
    factors = [train.lr_factor(steps, step, 5) for step in (5, 10, 24, 25, 74, 75)]
    assert factors == pytest.approx([0.5, 1, 1, 0.1, 0.1, 0.01])
    short = train.Settings(epochs=2, warmup_epochs=1.6)  # at one step an epoch
    assert [train.lr_factor(short, step, 1) for step in range(2)] == [0, 1]


def test_a_bad_setting_is_told_once_under_torchrun_and_is_its_last_word(images, tmp_path):
    done = run(
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "train.py",
        "--data_dir",
        images,
        "--output_dir",
        tmp_path,
        *tiny("--batch_size", 100),
        check=False,
    )
    assert done.returncode != 0 and done.stderr.startswith("train.py: error: batch_size")
    assert done.stderr.count("\ntrain.py: error: ") == 0
    assert "traceback : train.py: error: batch_size: the global batch, 100" in done.stderr


def test_two_machines_train_as_one(images, tmp_path):
    """Two torchruns that find each other, as on two nodes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc_per_node=1",
        "--rdzv_backend=c10d",
        f"--rdzv_endpoint=127.0.0.1:{port}",
        "--local_addr=127.0.0.1",
        "train.py",
        "--data_dir",
        str(images),
        "--output_dir",
        str(tmp_path / "nodes"),
        *tiny("--batch_size", 8),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    nodes = [
        subprocess.Popen(launch, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env) for _ in range(2)
    ]
    printed = [node.communicate(timeout=300)[0].decode() for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "".join(printed)
    assert sum("judge it" in text for text in printed) == 1
    run("train.py", "--data_dir", images, "--output_dir", tmp_path / "one", *tiny("--batch_size", 8), processes=2)
    for a, b in zip(metrics(tmp_path / "nodes"), metrics(tmp_path / "one"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)


def test_nodes_without_a_shared_folder_are_told(images, tmp_path):
    first = ["train.py", "--data_dir", images, "--output_dir", tmp_path / "0"]
    run(*first, *tiny("--max_steps", 1, "--batch_size", 32))
    wrapper = tmp_path / "own_disk.py"  # every rank with a folder of its own, as on disks of their own
    wrapper.write_text(
        "import os, runpy, sys\n"
        f"sys.argv = ['train.py', *sys.argv[1:], '--output_dir', {str(tmp_path)!r} + '/' + os.environ['RANK']]\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
    )
    done = run(wrapper, "--data_dir", images, *tiny("--batch_size", 16), processes=2, check=False)
    assert done.returncode != 0 and "is not the same folder on all nodes" in done.stderr


def test_resume_none_wants_a_fresh_folder(trained, images, tmp_path):
    run("train.py", "--data_dir", images, "--output_dir", tmp_path / "new", *tiny("--max_steps", 1), "--resume", "none")
    assert len(metrics(tmp_path / "new")) == 1
    done = run("train.py", "--data_dir", images, "--output_dir", trained, *tiny(), "--resume", "none", check=False)
    assert done.returncode == 2 and "already holds a run" in done.stderr


def test_a_run_continues_from_a_checkpoint_elsewhere_and_then_from_its_own(trained, images, tmp_path):
    common = ["train.py", "--data_dir", images, *tiny()]
    run(*common, "--output_dir", tmp_path / "first", "--max_steps", "3")
    again = [*common, "--output_dir", tmp_path / "second", "--resume", tmp_path / "first" / "checkpoint.pt"]
    assert "continuing at step 3 of 5" in run(*again, "--max_steps", "5").stdout
    assert (tmp_path / "second" / "config.yaml").exists()
    assert "continuing at step 5 of 8" in run(*again).stdout
    assert torch.equal(weights(tmp_path / "second"), weights(trained))


def test_a_run_on_other_images_is_not_continued(trained, images, tmp_path):
    shutil.copytree(images, tmp_path / "moved")
    shutil.copytree(trained, tmp_path / "run")  # whose config.yaml then names these images; others judge `trained`
    common = ["train.py", "--data_dir", tmp_path / "moved", "--output_dir", tmp_path / "run", *tiny()]
    assert "continuing at step 8 of 8" in run(*common).stdout  # the same images elsewhere
    next((tmp_path / "moved" / "train").rglob("*.png")).rename(tmp_path / "moved" / "train" / CLASSES[0] / "z.png")
    done = run(*common, check=False)
    assert done.returncode == 2 and "data: '64 images, names " in done.stderr


@pytest.mark.parametrize("method", ["barlow_twins", "supcon"])
def test_a_rate_that_is_far_too_high_ends_the_run_and_saves_no_ruins(images, tmp_path, method):
    done = run(
        "train.py",
        "--data_dir",
        images,
        "--output_dir",
        tmp_path,
        *tiny(),
        "--lr",
        "1e30",
        "--method",
        method,
        "--warmup_start",
        "1",
        "--save_steps",
        "1",
        "--max_bad_steps",
        "2",
        check=False,
    )
    assert done.returncode == 2 and "training has diverged" in done.stderr and "no finite gradient" in done.stderr
    assert weights(tmp_path).isfinite().all()  # of the step before


@pytest.mark.slow
def test_a_compiled_run_follows_the_eager_one(images, tmp_path):
    few_kernels = tiny("--max_steps", 2, "--encoder_kwargs", "{width: 8, stages: 1}", "--projector", "8")
    for name, option in (("compiled", ["--compile"]), ("eager", [])):
        run("train.py", "--data_dir", images, "--output_dir", tmp_path / name, *few_kernels, *option)
    losses = [[line["loss"] for line in metrics(tmp_path / name) if "loss" in line] for name in ("compiled", "eager")]
    assert len(losses[0]) == 2 and losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_run_with_other_settings_is_not_continued(trained, images):
    done = run("train.py", "--data_dir", images, "--output_dir", trained, *tiny(), "--lambd", "0.1", check=False)
    assert done.returncode == 2 and "lambd: 0.005 -> 0.1" in done.stderr


def test_a_damaged_checkpoint_is_not_started_over(trained, images, tmp_path):
    content = (trained / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    done = run("train.py", "--data_dir", images, "--output_dir", tmp_path, *tiny(), check=False)
    assert done.returncode == 2 and f"{tmp_path / 'checkpoint.pt'}: damaged" in done.stderr


def test_help_is_a_manual():
    printed = run("train.py", "--help").stdout
    assert "images per process" in printed and "Views" in printed


@pytest.mark.parametrize("script", [train, evaluate, finetune])
def test_help_names_every_setting_with_a_comment_and_its_choices(script):
    manual = config.manual(script.Settings)
    for field in dataclasses.fields(script.Settings):
        line = next(line for line in manual.splitlines() if line.startswith(f"  --{field.name} "))
        assert len(line.split()) > 2
        assert "[[" not in line and "[(" not in line
    assert "(linear|probe|knn|fixed|features|all) [probe knn]" in config.manual(evaluate.Settings)


def rows(path: Path) -> list[train.Settings]:
    """The settings of a recipe of train.py: of each of its rows, or the only ones."""
    numbers = range(1, 1 + len(config.read_yaml(path).get("rows", [])))
    chosen = [["--row", str(number)] for number in numbers] or [[]]
    return [config.parse(train.Settings, ["--config", str(path), *row], train.find_recipe)[0] for row in chosen]


RECIPES = [
    path
    for path in sorted((ROOT / "configs").glob("*.yaml"))
    if {"projector", "extends"} & config.read_yaml(path).keys()
]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(path):
    for settings in rows(path):
        assert path.stem.startswith((settings.method, "lesions", "tissue"))
        train.check(settings)


def test_there_are_recipes():
    assert {"barlow_twins_imagenet", "simclr_svhn", "supcon_imagenet", "lesions_ucl"} <= {path.stem for path in RECIPES}


@pytest.mark.parametrize(
    "asked, expected",
    [
        ({}, "barlow_twins_shapes"),
        ({"method": "simclr", "dataset": "SVHN"}, "simclr_svhn"),
        ({"dataset": "SVHN"}, "barlow_twins_cifar10"),
        ({"dataset": "CIFAR100", "method": "supcon"}, "supcon_cifar10"),
        ({"data_dir": "x", "method": "supcon"}, "supcon_imagenet"),
        ({"data_dir": "x", "image_size": 32}, "barlow_twins_cifar10"),
        ({"data_dir": "x"}, "barlow_twins_folder"),
        ({"dataset": "CIFAR100", "method": "simclr"}, "simclr_cifar10"),
        ({"dataset": "ImageNet", "image_size": 64}, "barlow_twins_imagenet"),
        ({"dataset": "ImageNet100", "image_size": 64}, "barlow_twins_imagenet100"),
        ({"dataset": "ImageNet50"}, "barlow_twins_imagenet100"),
        ({"dataset": "ImageNet200", "method": "simclr"}, "simclr_imagenet100"),
        ({"dataset": "ImageNet200", "method": "supcon"}, "supcon_imagenet"),
        ({"dataset": "STL10"}, "barlow_twins_stl10"),
    ],
)
def test_the_recipe_under_a_run_is_that_of_the_method_and_the_data(asked, expected):
    assert train.find_recipe(asked).stem == expected


EPOCH = 14_805 // 80  # steps of ISIC 2019's training images


def test_the_lesion_recipes_are_the_tables_best_five_and_the_originals_views():
    def table(name):
        return [
            (s.temperature, s.batch_size, (s.max_steps or s.epochs * EPOCH) / EPOCH, s.balanced)
            for s in rows(ROOT / "configs" / name)[:5]
        ]

    assert table("lesions_ucl.yaml") == [
        (0.1, 80, 50, False),
        (0.1, 512, 200, True),
        (0.5, 512, 200, False),
        (0.1, 80, 50, True),
        (1.0, 512, 200, False),
    ]
    assert table("lesions_scl.yaml") == [
        (1.0, 80, 50, True),
        (1.0, 80, 200, True),
        (0.5, 80, 200, True),
        (0.5, 80, 200, False),
        (0.5, 80, 50, False),
    ]
    for name in ("lesions_ucl.yaml", "lesions_scl.yaml"):
        for settings in rows(ROOT / "configs" / name):
            first, second = train.make_views(settings)
            assert (
                first
                == second
                == View(
                    size=224,
                    crop_scale=(0.75, 1.0),
                    flip=0.5,
                    vertical_flip=0.5,
                    jitter=(0.8, 0.8, 0.8, 0.2),
                    jitter_prob=0.8,
                    grayscale=0.2,
                    blur_prob=0.0,
                    solarize_prob=0.0,
                )
            )
            factors = [train.lr_factor(settings, step, 1) for step in range(settings.epochs)]
            assert (
                max(factors) <= 1 and settings.lr == 0.001 and settings.mean == [0, 0, 0] and settings.std == [1, 1, 1]
            )
            if not settings.warmup_epochs:  # m + (lr - m)(1 + cos(πe/E))/2 with m = lr · 0.1³
                m, e = 1e-3, torch.arange(settings.epochs).double() / settings.epochs
                assert factors == pytest.approx((m + (1 - m) * (1 + torch.cos(torch.pi * e)) / 2).tolist())
            assert settings.encoder == "resnet50"
            head = projector(2048, settings.projector, batch_norm=settings.method == "barlow_twins")
            assert [tuple(p.shape) for p in head.parameters()] == [(2048, 2048), (2048,), (128, 2048), (128,)]


def test_the_imagenet_recipe_is_the_published_one():
    asked = ["--dataset", "ImageNet", "--data_dir", "x", "--batch_size", "256"]
    settings, _ = config.parse(train.Settings, asked, recipe=train.find_recipe)
    bare = train.Settings(dataset="ImageNet", data_dir="x")
    assert vars(settings) == vars(bare)
    model = train.Model(settings)
    assert sum(p.numel() for p in model.projector.parameters()) == 2048 * 8192 + 2 * 8192**2 + 4 * 8192
    scale = train.lr_scale(settings, 2048)
    optimizer = train.make_optimizer(settings, model, scale)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1.6, 0.0384])
    first, second = train.make_views(settings)
    assert (first.blur_prob, first.solarize_prob, second.blur_prob, second.solarize_prob) == (1.0, 0.0, 0.1, 0.2)


@pytest.mark.parametrize("name, parameters", [("ResNet20V2", 9_503_792), ("ResNet50V2", 40_374_784)])
def test_the_tissue_recipes_are_the_studys(name, parameters):
    baseline, no_drop, no_color, blur_only, identity = rows(ROOT / "configs" / f"tissue_{name.lower()}.yaml")
    model = train.Model(dataclasses.replace(baseline, image_size=32))
    assert baseline.encoder == f"ssl.preact.{name}"
    # as Keras counts: with running statistics
    assert sum(v.numel() for key, v in model.state_dict().items() if "num_batches" not in key) == parameters
    whole = View(
        size=224,
        crop_scale=(1, 1),
        crop_ratio=(1, 1),
        flip=0.5,
        vertical_flip=0.5,
        jitter=(0.4, 0.4, 0.2, 0.1),
        jitter_prob=0.8,
        grayscale=0.2,
        blur_sigma=(1, 1),
        blur_kernel=23,
        blur_prob=1.0,
        solarize_prob=0.0,
        solarize_threshold=0.5,
    )
    second = dataclasses.replace(whole, blur_prob=0.1, solarize_prob=0.2)
    grey, color = dict(grayscale=0), dict(grayscale=0, jitter_prob=0)
    plain = dict(**color, flip=0, vertical_flip=0, solarize_prob=0)
    for settings, off in (
        (baseline, {}),
        (no_drop, grey),
        (no_color, color),
        (blur_only, plain),
        (identity, plain | {"blur_prob": 0}),
    ):
        assert train.make_views(settings) == [dataclasses.replace(view, **off) for view in (whole, second)]
        auto.settle(settings, 512, 10_000)
        factors = [train.lr_factor(settings, step, 10) for step in range(300)]
        t = torch.arange(270).double()
        expected = [i / 30 for i in range(30)] + (0.5 * (1 + torch.cos(torch.pi * t / 270))).tolist()
        assert factors == pytest.approx(expected)
    optimizer = train.make_optimizer(baseline, model, train.lr_scale(baseline, 512))
    assert type(optimizer).__name__ == "LAMB" and {group["lr"] for group in optimizer.param_groups} == {2e-3}


# evaluate.py


@pytest.fixture(scope="module")
def judged(trained, tmp_path_factory) -> tuple[dict, Path, str]:
    folder = tmp_path_factory.mktemp("judged")
    done = run(
        "evaluate.py",
        "--model_path",
        trained,
        "--protocol",
        "all",
        "--linear_epochs",
        "2",
        "--random_init",
        "--raw_pixels",
        "--output_dir",
        folder,
    )
    return json.loads((folder / "results.json").read_text()), folder, done.stdout


def test_results_have_the_promised_form(judged):
    results, _, printed = judged
    for subject in (results, results["random_init"]):
        assert {"acc1", "acc5", "lr", "weight_decay"} <= set(subject["probe"])
        for judge in ("probe", "knn", "linear"):
            low, high = subject[judge]["acc1_interval"]
            assert 0 <= low <= subject[judge]["acc1"] <= high <= 1 and high - low > 0.1 and subject[judge]["n"] == 21
            assert subject[judge]["balanced_accuracy"] == pytest.approx(subject[judge]["acc1"])  # seven of every class
    assert results["linear"]["acc5"] == results["probe"]["acc5"] == "undefined"  # three classes
    assert {"probe", "knn"} == set(results["raw_pixels"])
    assert "untrained encoder" in printed and "raw pixels" in printed


def test_features_are_plain_tensors_in_order(judged, images):
    features = torch.load(judged[1] / "features.pt", weights_only=True)
    assert features["train"]["features"].shape == (64, 32) and features["test"]["features"].shape == (21, 32)
    for name, label in zip(features["test"]["names"], features["test"]["labels"].tolist()):
        assert features["classes"][label] == Path(name).parent.name


def test_judging_on_two_processes_counts_every_image_once(trained, judged, tmp_path):
    run(
        "evaluate.py",
        "--model_path",
        trained,
        "--protocol",
        "all",
        "--linear_epochs",
        "2",
        "--output_dir",
        tmp_path,
        "--batch_size",
        "4",
        processes=2,
    )
    one, two = (torch.load(f / "features.pt", weights_only=True) for f in (judged[1], tmp_path))
    for split in ("train", "test"):
        assert one[split]["names"] == two[split]["names"]
        assert torch.allclose(one[split]["features"], two[split]["features"], atol=1e-5)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["knn"] == judged[0]["knn"]
    for judge in ("linear", "probe"):  # by rounding alone, a score on the edge may fall to the other side: one image
        assert results[judge]["acc1"] == pytest.approx(judged[0][judge]["acc1"], abs=1.01 / 21)


def test_a_share_of_the_labels_and_a_list_of_files(trained, images, tmp_path):
    done = run("evaluate.py", "--model_path", trained, "--train_percent", "10", "--output_dir", tmp_path)
    assert "6 train, 21 test" in done.stdout
    names = sorted(p.name for p in (images / "train").rglob("*.png"))[:30]
    (tmp_path / "list.txt").write_text("\n".join(names))
    listed = ["evaluate.py", "--model_path", trained, "--train_files", tmp_path / "list.txt", "--output_dir", tmp_path]
    assert "30 train, 21 test" in run(*listed).stdout
    (tmp_path / "list.txt").write_text("nowhere.png\n")
    assert "1 of the 1 names" in run(*listed, check=False).stderr


def test_a_run_is_judged_with_its_own_seed_size_and_normalisation(tmp_path):
    run(
        "train.py",
        "--output_dir",
        tmp_path,
        *tiny("--max_steps", 1, "--image_size", 24, "--seed", 7),
        "--mean",
        "0.5",
        "0.4",
        "0.3",
        "--std",
        "0.2",
        "0.2",
        "0.3",
    )
    settings = evaluate.Settings(model_path=str(tmp_path))
    inherit.fill(settings, pretrained.run_settings(settings.model_path))
    assert (settings.dataset, settings.seed, settings.image_size, settings.stem) == ("shapes", 7, 24, "small")
    source = pretrained.load_encoder(SmallResNet(8, 2), tmp_path)
    assert (source.mean, source.std) == ([0.5, 0.4, 0.3], [0.2, 0.2, 0.3])
    elsewhere = evaluate.Settings(model_path=str(tmp_path), dataset="CIFAR10")
    inherit.fill(elsewhere, pretrained.run_settings(elsewhere.model_path))
    assert (elsewhere.mean, elsewhere.seed, elsewhere.image_size) == (None, 7, None)
    assert elsewhere.encoder == "ssl.encoders.SmallResNet" and elsewhere.encoder_kwargs == {"width": 8, "stages": 2}


def test_an_encoder_file_is_judged_too_and_earlier_numbers_stay(trained, tmp_path):
    common = ["evaluate.py", "--model_path", trained / "encoder.pt", "--output_dir", tmp_path]
    run(*common, "--protocol", "knn")
    first = (tmp_path / "results.json").read_text()
    assert list(json.loads(first)) == ["knn", "of"]
    for protocols in (["knn", "probe"], ["knn", "probe"], ["probe"]):  # the second finds what the first has found
        done = run(*common, "--protocol", *protocols)
        now = json.loads((tmp_path / "results.json").read_text())
        assert set(now) == {*protocols, "of"}
    assert "results.json (those before are in results.2.json)" in done.stdout
    assert (tmp_path / "results.1.json").read_text() == first
    assert set(json.loads((tmp_path / "results.2.json").read_text())) == {"knn", "probe", "of"}
    assert not (tmp_path / "results.3.json").exists()


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--model_path", "nowhere"], "nowhere: no such file or run folder"),
        (["--k", "0"], "k: 0 must be at least 1"),
        (
            ["--protocol", "lnear"],
            "'lnear' is none of linear, probe, knn, fixed, features, all; did you mean 'linear'?",
        ),
        (["--encoder", "resnet18"], "not weights of this encoder"),
        (["--image_size", "0"], "image_size: 0 must be at least 1"),
        (["--output_dir", "/dev/null"], "output_dir: cannot make /dev/null"),
    ],
)
def test_bad_settings_of_evaluate_stop_with_one_line(trained, arguments, expected):
    settings = {"--model_path": str(trained)} | dict(zip(arguments[::2], arguments[1::2]))
    done = run("evaluate.py", *[word for pair in settings.items() for word in pair], check=False)
    assert done.returncode == 2 and expected in done.stderr and "Traceback" not in done.stderr


def test_without_a_model_path_or_a_network_the_message_says_what_to_do(images, tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    done = run("evaluate.py", "--data_dir", images, check=False)
    assert done.returncode == 2 and "cannot be downloaded" in done.stderr and "--model_path" in done.stderr
