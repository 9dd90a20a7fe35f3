"""A ViT and a ConvNeXt through all scripts: pre-training, judging, fine-tuning, export, and the promise of resume."""

import importlib.util
import json

import pytest
import torch
from running import run, tiny, weights

import hubconf

VIT = {
    "method": "simclr",  # whose projector has no batch norm: the network has no running statistics
    "encoder": "torchvision.models.VisionTransformer",
    "encoder_kwargs": "{patch_size: 8, num_layers: 2, num_heads: 2, hidden_dim: 32, mlp_dim: 64, dropout: 0.1}",
}
CONVNEXT = {
    "encoder": "timm/convnext_atto",
    "encoder_kwargs": "{depths: [1, 1, 1, 1], dims: [8, 16, 32, 64], drop_path_rate: 0.4}",
}
EFFICIENTNET = {"encoder": "efficientnet_b0", "encoder_kwargs": "{stochastic_depth_prob: 0.4}"}
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
WIDTH = {"vit": 32, "convnext": 64}


@pytest.fixture(scope="module", params=["vit", pytest.param("convnext", marks=needs_timm)])
def pretrained(request, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    encoder = {"vit": VIT, "convnext": CONVNEXT}[request.param]
    done = run("train.py", *tiny(**encoder), data_dir=images, output_dir=folder, eval_every=1, health_every=2)
    (folder / "printed.txt").write_text(done.stdout)
    return request.param, folder


def test_it_is_trained_and_judged(pretrained, images):
    name, folder = pretrained
    printed = (folder / "printed.txt").read_text()
    assert "auto        stem" not in printed
    readings = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if "health_" in line]
    groups = [reading[f"health_update_ratio_{group}"] for reading in readings for group in ("weights", "biases")]
    assert groups and all(0 < ratio < 1 for ratio in groups) and "health      " in printed
    done = run("evaluate.py", model_path=folder, workers=1, random_init=True, protocol=["knn", "probe", "linear"])
    assert f"{WIDTH[name]} features" in done.stdout
    assert {"knn", "probe", "linear", "random_init"} <= json.loads((folder / "results.json").read_text()).keys()


def test_a_vit_is_judged_at_the_size_of_its_training_or_not_at_all(pretrained):
    name, folder = pretrained
    done = run("evaluate.py", model_path=folder, workers=1, protocol="knn", image_size=48, check=False)
    if name == "vit":
        assert done.returncode == 2 and "--image_size 32" in done.stderr and done.stderr.count("\n") == 1
    else:
        assert done.returncode == 0


def test_it_is_fine_tuned_and_tested(pretrained, images, tmp_path):
    _, folder = pretrained
    common = {"epochs": 2, "workers": 1, "batch_size": 16, "output_dir": tmp_path / "tuned"}
    run("finetune.py", init=folder, **common)
    tuned = json.loads((tmp_path / "tuned" / "results.json").read_text())["test"]
    again = {"workers": 1, "batch_size": 16, "output_dir": tmp_path / "again"}  # another batch may round otherwise
    done = run("finetune.py", test_only=True, model_path=tmp_path / "tuned", **again)
    assert json.loads((tmp_path / "again" / "results.json").read_text())["test"] == tuned, done.stdout


@torch.no_grad()
def test_it_is_exported_and_read_again(pretrained, tmp_path):
    name, folder = pretrained
    targets = [target for target in ("safetensors", "onnxruntime") if importlib.util.find_spec(target)]
    targets = [target.removesuffix("runtime") for target in targets] + ["timm"] * (name == "convnext")
    done = run("-m", "ssl.export", folder, to=targets, output_dir=tmp_path)
    assert done.stdout.count("identical features") + done.stdout.count("features equal to") == len(targets)
    encoder, x = hubconf.encoder(str(folder)), torch.randn(2, 3, 32, 32)
    assert encoder(x).shape == (2, WIDTH[name]) and encoder.normalisation["mean"] is not None
    if name == "convnext":
        import timm

        theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
        assert torch.equal(theirs(x), encoder(x))


@pytest.mark.parametrize("kind, processes", [("vit", 1), ("vit", 2), ("convnext", 1), ("efficientnet", 1)])
def test_an_interrupted_run_continues_to_the_same_weights(images, tmp_path, kind, processes):
    """Although dropout and stochastic depth draw random numbers."""
    if kind == "convnext":
        pytest.importorskip("timm")
    encoder = {"vit": VIT, "convnext": CONVNEXT, "efficientnet": EFFICIENTNET}[kind]
    common = tiny(**encoder, data_dir=images, batch_size=8, epochs=1, warmup_epochs=0, accumulate=2)
    run("train.py", *common, output_dir=tmp_path / "whole", max_steps=3, processes=processes)
    run("train.py", *common, output_dir=tmp_path / "parts", max_steps=1, processes=processes)
    run("train.py", *common, output_dir=tmp_path / "parts", max_steps=3, processes=processes)
    assert torch.equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
