"""Every script on a pretended GPU: no operation mixes devices, and a training step waits for nothing.

The controls are encoders that wait, copy or mix on purpose, and are found.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import running
import torch
from drawn import class_folders
from running import tiny

PRETENDED = running.ROOT / "tests" / "gpu" / "pretended.py"
NET = {"encoder": "nets.WithoutBuffers", "encoder_kwargs": "{}"}

# What a step sends to the device without a wait. This list may only become shorter.
SENT = {
    "ssl/data/loader.py sent",  # of a data set in memory: which images, their boxes, operations and labels
    "ssl/data/worker.py <lambda>",  # of files: pixels, operations, index, labels
}


def run(events: Path, script, *words, check: bool = True, **settings):
    """A script on the pretended GPU: (what it printed, {(wait or copy, file function): how often})."""
    done = running.run(PRETENDED, events, script, *words, check=check, **settings)
    counts: Counter[tuple[str, str]] = Counter()
    for kind, _, place, count in json.loads(events.read_text()) if done.returncode == 0 else []:
        counts[kind, re.sub(r":\d+ ", " ", place)] += count
    return done, counts


def train(folder: Path, settings: dict, steps: int, script=running.ROOT / "train.py", **how):
    """train.py on the pretended GPU for `steps` steps, without logs and readings between."""
    quiet = {"log_every": 1000, "health_every": 1000, "workers": 0, "epochs": 9}
    given = {"device": "cuda", "max_steps": steps, "output_dir": folder} | quiet | settings
    return run(folder.with_suffix(".json"), script, *tiny(**given), **how)


def each_step(folder: Path, settings: dict) -> set[tuple[str, str]]:
    """What happens oftener in a longer run than in a shorter: (wait or copy, file function)."""
    _, few = train(folder / "few", settings, steps=2)
    _, many = train(folder / "many", settings, steps=4)
    return set(many - few)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Pictures too large to be held in memory: loaders read them."""
    return class_folders(tmp_path_factory.mktemp("files"), {"train": (64, 0), "test": (21, 1)}, size=80)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "barlow_twins"},
        {"method": "simclr", "accumulate": 2, "clip_grad": 1, "data_dir": "files"},
        {"method": "supcon", "accumulate": 2, "accumulate_mode": "split", "optimizer": "lamb"},
        {"method": "simclr", "optimizer": "adamw", "amp": "fp16"} | NET,
        {"method": "barlow_twins", "views": 4},
        {"method": "simclr", "views": 4, "accumulate": 2, "data_dir": "files"},
        {"method": "supcon", "views": 3, "solarize_prob": "[0, 0, 0.2]"},
        {"method": "simclr", "stain_jitter": "[0.2, 0.1]", "stain_prob": "[1, 0.5]"},
    ],
    ids=[
        "barlow_twins",
        "simclr",
        "supcon",
        "fp16",
        "barlow_twins, 4 views",
        "simclr, 4 views",
        "supcon, 3 views",
        "stains",
    ],
)
def test_a_training_step_waits_for_nothing_and_sends_its_batch_alone(settings, request, tmp_path):
    settings = settings | {"data_dir": request.getfixturevalue(settings.get("data_dir", "images"))}
    every = each_step(tmp_path, settings)
    assert {place for kind, place in every if kind == "wait"} == set()
    assert {place for kind, place in every if kind == "copy"} <= SENT


@pytest.mark.parametrize(
    ("net", "found"),
    [("Waiting", ("wait", "tests/gpu/nets.py forward")), ("Sending", ("wait", "tests/gpu/nets.py forward"))],
)
def test_control_a_wait_in_the_step_is_found(net, found, images, tmp_path):
    assert found in each_step(tmp_path, NET | {"encoder": f"nets.{net}", "method": "simclr", "data_dir": images})


def test_control_mixed_devices_raise(images, tmp_path):
    mixing = NET | {"encoder": "nets.Mixing", "method": "simclr", "data_dir": images}
    done, _ = train(tmp_path / "run", mixing, steps=1, check=False)
    assert done.returncode != 0 and "Expected all tensors to be on the same device" in done.stdout + done.stderr


def test_out_of_memory_names_a_batch_that_fits(images, tmp_path):
    hungry = NET | {"encoder": "nets.Hungry", "method": "simclr", "data_dir": images}
    done, _ = train(tmp_path / "run", hungry, steps=1, check=False)
    expected = "out of memory on pretended GPU: --batch_size 8 --accumulate 2 should fit"
    assert done.returncode != 0 and expected in done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory) -> Path:
    """A run that was judged, read its health, saved and continued."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    judged = {"eval_every": 1, "eval_at_start": True, "ssl_val_interval": 1}
    spoken = {"log_every": 1, "health_every": 1, "save_steps": 3}
    settings = judged | spoken | {"epochs": 2, "optimizer": "lamb", "data_dir": images}
    train(folder, settings, steps=5)
    train(folder, settings, steps=8)
    return folder


def test_a_run_is_judged_and_continued(trained):
    assert json.loads((trained / "status.json").read_text())["state"] == "finished"
    lines = running.metrics(trained)
    assert [line["step"] for line in lines] == list(range(1, 9))


def test_a_reading_of_health_computes_eigenvalues_on_the_cpu(trained):
    happened = {what for _, what, place, _ in json.loads(trained.with_suffix(".json").read_text()) if "spread" in place}
    assert "copy to the CPU" in happened and "_linalg_eigh" not in happened


def test_a_save_waits_once_for_all_its_tensors(images, tmp_path):
    settings = {"data_dir": images, "optimizer": "adamw"}
    _, few = train(tmp_path / "few", settings | {"save_steps": 8}, steps=8)
    _, many = train(tmp_path / "many", settings | {"save_steps": 2}, steps=8)
    waits = {place: count for (kind, place), count in (many - few).items() if kind == "wait"}
    asked = "ssl/training/guard.py last_step_was_bad"  # is this step one to save?
    assert waits == {"ssl/checkpoints/run_folder.py copied": 3, asked: 3}
    one, other = running.weights(tmp_path / "few"), running.weights(tmp_path / "many")
    assert torch.equal(one, other) and one.any()  # copies that nothing waited for would be zeros


def test_evaluate_judges_by_every_protocol(trained, images, tmp_path):
    script, events = running.ROOT / "evaluate.py", tmp_path / "events.json"
    on = {"device": "cuda", "workers": 0, "data_dir": images, "probe_epochs": 2}
    everything = on | {"protocol": "all", "linear_epochs": 2, "random_init": True, "raw_pixels": True}
    run(events, script, **everything, model_path=trained)
    assert {"linear", "probe", "knn", "random_init"} <= set(json.loads((trained / "results.json").read_text()))
    run(events, script, features=trained, device="cuda", probe_epochs=2)
    run(events, script, features=trained, device="cuda", probe_epochs=2, protocol="card", train_percent=50)
    run(events, script, **on, model_path=trained, protocol="fixed")
    assert "fixed" in json.loads((trained / "results.json").read_text())
    paths = [path.relative_to(images) for path in sorted(images.glob("*/*/*.png"))]
    rows = [f"{path},{path.parts[1]},{path.parts[0]},{path.parts[0]}{i % 2}" for i, path in enumerate(paths)]
    (tmp_path / "groups.csv").write_text("\n".join(["image,label,split,group", *rows]))
    table = {f"{name}_column": name for name in ("label", "split", "group")} | {"csv": tmp_path / "groups.csv"}
    run(events, script, **on, **table, model_path=trained, protocol="card", k=5, output_dir=tmp_path)
    card = json.loads((tmp_path / "results.json").read_text())["card"]
    assert card["groups"]["test"]["robustness"]["index"] is not None and card["corruptions"]["jpeg"]["7"]["knn"]
    linear = on | {"model_path": trained, "protocol": "linear", "linear_epochs": 2}
    few, many = (run(events, script, **linear, linear_batch=batch)[1] for batch in (32, 16))
    assert {place for kind, place in many - few if kind == "wait"} == set()


def test_reading_features_waits_once_a_batch_for_the_check(trained, files, tmp_path):
    """`inference.stream` checks the batch before: the device has a batch to compute meanwhile."""
    script, events = running.ROOT / "evaluate.py", tmp_path / "events.json"
    given = {"device": "cuda", "workers": 0, "data_dir": files, "image_size": 32, "protocol": "knn"}
    given |= {"model_path": trained, "output_dir": tmp_path}
    few, many = (run(events, script, **given, batch_size=batch)[1] for batch in (16, 8))
    more = 4 + 1  # batches: of 64 images of train, of 21 of test
    waits = {place: count for (kind, place), count in (many - few).items() if kind == "wait"}
    assert waits == {"ssl/evaluation/inference.py _require_finite": more}


def finetune(folder: Path, **settings) -> Counter:
    return run(folder.with_suffix(".json"), running.ROOT / "finetune.py", output_dir=folder, **settings)[1]


def test_a_step_of_finetune_waits_for_nothing(trained, images, tmp_path):
    given = {"init": trained, "device": "cuda", "workers": 0, "data_dir": images, "epochs": 2}
    few = finetune(tmp_path / "few", **given, batch_size=32)
    many = finetune(tmp_path / "many", **given, batch_size=24)
    assert {place for kind, place in many - few if kind == "wait"} == set()
    assert {place for kind, place in many - few if kind == "copy"} <= SENT
    tested = {"test_only": True, "model_path": tmp_path / "many", "data_dir": images, "device": "cuda"}
    finetune(tmp_path / "tested", **tested, copies=2, workers=0)
    finetune(tmp_path / "frozen", **given, freeze=True, balanced=True, schedule="cosine", amp="fp16")


ESTIMATOR = """
import sys
import torch
sys.path.insert(0, {root!r})
import ssl
ssl.__path__ = [{root!r} + "/ssl"]
from ssl.estimators import SimCLR
from nets import WithoutBuffers

samples = torch.rand(64, 3, 16, 16)
model = SimCLR(WithoutBuffers, None, 8, 8, 8, max_epochs=2, views=lambda x: x + 0.1 * torch.randn_like(x),
               batch_size={batch}, random_state=0, device="cuda", precision={precision!r})
model.fit(samples, torch.utils.data.TensorDataset(samples))
model.save({file!r})
again = SimCLR.load({file!r}, WithoutBuffers, views=lambda x: x, device="cuda", max_epochs=3)
again.fit(samples, resume=True)
assert again.transform(samples).shape == (64, 8)
"""


FORMATS = """
import sys
import torch
from torch import nn
sys.path.insert(0, {root!r})
import ssl
ssl.__path__ = [{root!r} + "/ssl"]
from ssl.encoders import SmallResNet
from ssl.estimators import SimCLR

class Viewing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 4, 4), nn.Linear(8 * 16, 8)

    def forward(self, x):
        h = self.conv(x)
        return self.out(h.view(len(h), -1))


samples = torch.rand(64, 3, 16, 16)
for encoder, conv, expected in ((SmallResNet(4, 1), "stem.0", True), (Viewing(), "conv", False)):
    formats = set()

    def note(layer, inputs):
        formats.update(x.is_contiguous(memory_format=torch.channels_last) for x in (layer.weight, *inputs))

    encoder.get_submodule(conv).register_forward_pre_hook(note)
    model = SimCLR(encoder, None, 8, 8, 8, max_epochs=1, views=lambda x: x, batch_size=32, device="cuda")
    assert model.fit(samples).transform(samples).shape == (64, 8)
    assert formats == {{expected}}, (conv, formats)

how = dict(max_epochs=1, views=lambda x: x, batch_size=32, random_state=0, device="cuda")
here, there = (SimCLR(SmallResNet, {{"width": 4, "stages": 1}}, 8, 8, 8, **how).fit(x).transform(x)
               for x in (samples, samples.to("cuda")))
assert torch.equal(here, there)
"""


def test_images_of_an_estimator_may_be_on_it_and_are_channels_last_for_encoders_we_know_alone(tmp_path):
    script = tmp_path / "formats.py"
    script.write_text(FORMATS.format(root=str(running.ROOT)))
    run(tmp_path / "events.json", script)


def estimate(folder: Path, batch: int, precision: str) -> Counter:
    script = folder / f"estimate{batch}.py"
    file = str(folder / "model.pt")
    script.write_text(ESTIMATOR.format(root=str(running.ROOT), batch=batch, precision=precision, file=file))
    return run(folder / "events.json", script)[1]


@pytest.mark.parametrize("precision", ["off", "fp16"])
def test_estimators_wait_for_nothing_in_a_step_of_fit_validation_and_transform(precision, tmp_path):
    every = estimate(tmp_path, 16, precision) - estimate(tmp_path, 32, precision)
    assert {place for kind, place in every if kind == "wait"} == set()
    assert {place for kind, place in every if kind == "copy"} == {"ssl/data/loader.py sent"}


@pytest.mark.parametrize("net", [{}, NET, {"views": 4}], ids=["batch_norm", "without_buffers", "4 views"])
def test_a_run_goes_back_after_steps_that_are_not_finite(net, images, tmp_path, monkeypatch):
    """To a checkpoint between two log steps, whose record of steps goes on."""
    monkeypatch.setenv("SPOIL", "4,999,0,0")
    script = running.ROOT / "tests" / "faults" / "diverging_train.py"
    settings = {"method": "simclr", "max_bad_steps": 2, "log_every": 3, "save_steps": 2, "data_dir": images}
    done, _ = train(tmp_path / "run", settings | net, steps=8, script=script)
    assert "going back to step 4" in done.stdout
    assert len((tmp_path / "run" / "bad_steps.jsonl").read_text().splitlines()) == 2


def test_the_benchmarks_of_a_gpu_run_on_it(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{PRETENDED}" "{tmp_path}/events.json" "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        [running.ROOT / "benchmarks" / "gpu.sh", "--tiny", "--out", tmp_path / "out"],
        env=os.environ | {"PYTHON": str(python), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    states = [json.loads(line) for line in (tmp_path / "out" / "parts.jsonl").read_text().splitlines()]
    assert [state["state"] for state in states] == ["whole"] * 7, done.stdout + done.stderr
    for state in states:
        results = json.loads((tmp_path / "out" / f"{state['part']}.json").read_text())
        assert "pretended GPU" in results.get("machine", results.get("measured_on"))
