"""The scripts as a person runs them: real processes, small encoders, every promise of the README."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ssl import config
from ssl.data.shapes import CLASSES, render

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import train  # the script itself, for its recipe

TINY = {
    "--encoder": "ssl.encoders.SmallResNet", "--encoder_kwargs": "{width: 8, stages: 2}", "--projector": "16-16",
    "--image_size": "32", "--batch_size": "16", "--epochs": "2", "--warmup_epochs": "1", "--log_every": "1",
    "--workers": "1",
}  # fmt: skip


def tiny(*arguments) -> list[str]:
    """The settings of a run of seconds, some of them replaced: '--key', 'value', ..."""
    settings = TINY | dict(zip(map(str, arguments[::2]), map(str, arguments[1::2])))
    return [word for pair in settings.items() for word in pair]


def run(*arguments, processes=1, check=True, cwd=ROOT):
    """Run a script, under torchrun for several processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    done = subprocess.run(
        [sys.executable, *launch, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """A class folder of small pictures: 64 to train on and 21 to judge, which no two processes divide evenly."""
    folder = tmp_path_factory.mktemp("images")
    for split, count, seed in (("train", 64, 0), ("test", 21, 1)):
        labels = torch.arange(count) % 3
        for i, (pixels, label) in enumerate(zip(render(labels, 32, seed), labels.tolist())):
            path = folder / split / CLASSES[label] / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    return folder


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    done = run("train.py", "--data_dir", images, "--output_dir", folder, *tiny())
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([v.flatten().float() for v in torch.load(folder / "encoder.pt", weights_only=True).values()])


# train.py


def test_a_run_leaves_a_folder_that_says_everything(trained, images):
    assert {"config.yaml", "metrics.jsonl", "checkpoint.pt", "encoder.pt"} <= set(os.listdir(trained))
    lines = metrics(trained)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert {"epoch", "loss", "on_diagonal", "off_diagonal", "lr_weights", "lr_biases", "samples_per_second",
            "data_wait"} <= set(lines[0])  # fmt: skip
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


@pytest.mark.parametrize("method", ["barlow_twins", "simclr"])
def test_two_processes_train_as_one(images, tmp_path, method):
    common = ["train.py", "--data_dir", images, "--method", method]
    run(*common, "--output_dir", tmp_path / "one", *tiny())
    run(*common, "--output_dir", tmp_path / "two", *tiny("--batch_size", 8), processes=2)
    for a, b in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two")):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert torch.allclose(weights(tmp_path / "one"), weights(tmp_path / "two"), rtol=1e-3, atol=1e-3)


def test_accumulation_is_several_processes_in_turn(images, tmp_path):
    common = ["train.py", "--data_dir", images, *tiny("--batch_size", 8, "--sync_bn", "false")]
    run(*common, "--output_dir", tmp_path / "two", processes=2)
    run(*common, "--output_dir", tmp_path / "turns", "--accumulate", "2")
    for a, b in zip(metrics(tmp_path / "two"), metrics(tmp_path / "turns")):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_gpus_starts_torchrun_by_itself(images, tmp_path):
    done = run("train.py", "--gpus", "2", "--device", "cpu", "--data_dir", images, "--output_dir", tmp_path, *tiny())
    assert "× 2 processes" in done.stdout and "= 32 (global)" in done.stdout


def test_without_any_data_set_the_embedded_one_is_taken_loudly(tmp_path):
    done = run("train.py", "--max_steps", "1", "--output_dir", tmp_path, *tiny())
    assert "EMBEDDED" in done.stdout and "shapes: 20000 images" in done.stdout


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
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
        (["--batch_size", "1"], "batch_size: 1 is too small"),
        (["--blur_prob", "0.5"], "blur_prob: expected two values"),
        (["--init", "nowhere"], "nowhere: no such file or run folder"),
        (["--dataset", "ImageNet"], "is not ImageNet"),
    ],
)
def test_a_bad_setting_stops_with_one_line(images, tmp_path, arguments, expected):
    done = run("train.py", "--data_dir", images, "--output_dir", tmp_path / "r", *tiny(*arguments), check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("train.py: error: ") and expected in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "r" / "checkpoint.pt").exists()


def test_a_bad_setting_is_told_once_under_torchrun(images, tmp_path):
    done = run("train.py", "--data_dir", images, "--output_dir", tmp_path, *tiny("--batch_size", 100),
               processes=2, check=False)  # fmt: skip
    assert done.returncode != 0 and done.stderr.count("train.py: error: ") == 1


def test_a_ruined_image_is_named_and_no_rank_hangs(tmp_path):
    (tmp_path / "a").mkdir()
    for i in range(32):
        Image.fromarray(np.full((80, 80, 3), i, np.uint8)).save(tmp_path / "a" / f"{i}.png")
    (tmp_path / "a" / "31.png").write_bytes(b"broken")
    done = run("train.py", "--data_dir", tmp_path, "--output_dir", tmp_path / "r", *tiny("--batch_size", 8),
               processes=2, check=False)  # fmt: skip
    assert done.returncode != 0 and "31.png: cannot be read as an image" in done.stderr


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
    for name in ("method", "dataset", "batch_size", "lambd", "loss_scale", "output_dir", "resume"):
        assert f"--{name} " in printed
    assert "images per process" in printed and "Views" in printed


def test_every_recipe_is_valid():
    recipes = sorted((ROOT / "configs").glob("*.yaml"))
    assert len(recipes) >= 7
    for path in recipes:
        settings, _ = config.parse(train.Settings, ["--config", str(path)])
        assert path.stem.startswith(settings.method)
        train.check(settings)


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


# evaluate.py


@pytest.fixture(scope="module")
def judged(trained, tmp_path_factory) -> tuple[dict, Path, str]:
    folder = tmp_path_factory.mktemp("judged")
    done = run("evaluate.py", "--model_path", trained, "--protocol", "all", "--linear_epochs", "2", "--random_init",
               "--raw_pixels", "--output_dir", folder)  # fmt: skip
    return json.loads((folder / "results.json").read_text()), folder, done.stdout


def test_results_have_the_promised_form(judged):
    results, _, printed = judged
    for subject in (results, results["random_init"]):
        assert {"acc1", "acc5", "lr", "weight_decay"} <= set(subject["probe"])
        assert {"acc1", "k"} == set(subject["knn"]) and {"acc1", "acc5"} == set(subject["linear"])
        assert all(0 <= subject[judge]["acc1"] <= 1 for judge in ("probe", "knn", "linear"))
    assert results["linear"]["acc5"] == 1.0  # three classes
    assert {"probe", "knn"} == set(results["raw_pixels"])
    assert "untrained encoder" in printed and "raw pixels" in printed


def test_features_are_plain_tensors_in_order(judged, images):
    features = torch.load(judged[1] / "features.pt", weights_only=True)
    assert features["train"]["features"].shape == (64, 32) and features["test"]["features"].shape == (21, 32)
    for name, label in zip(features["test"]["names"], features["test"]["labels"].tolist()):
        assert features["classes"][label] == Path(name).parent.name


def test_judging_on_two_processes_counts_every_image_once(trained, judged, tmp_path):
    run("evaluate.py", "--model_path", trained, "--protocol", "all", "--linear_epochs", "2", "--output_dir", tmp_path,
        "--batch_size", "4", processes=2)  # fmt: skip
    one, two = (torch.load(f / "features.pt", weights_only=True) for f in (judged[1], tmp_path))
    for split in ("train", "test"):
        assert one[split]["names"] == two[split]["names"]
        assert torch.allclose(one[split]["features"], two[split]["features"], atol=1e-5)
    results = json.loads((tmp_path / "results.json").read_text())
    for judge in ("linear", "probe", "knn"):
        assert results[judge]["acc1"] == pytest.approx(judged[0][judge]["acc1"], abs=0.05)


def test_a_share_of_the_labels_and_a_list_of_files(trained, images, tmp_path):
    done = run("evaluate.py", "--model_path", trained, "--train_percent", "10", "--output_dir", tmp_path)
    assert "6 train, 21 test" in done.stdout
    names = sorted(p.name for p in (images / "train").rglob("*.png"))[:30]
    (tmp_path / "list.txt").write_text("\n".join(names))
    listed = ["evaluate.py", "--model_path", trained, "--train_files", tmp_path / "list.txt", "--output_dir", tmp_path]
    assert "30 train, 21 test" in run(*listed).stdout
    (tmp_path / "list.txt").write_text("nowhere.png\n")
    assert "1 of the 1 names" in run(*listed, check=False).stderr


def test_an_encoder_file_is_judged_too(trained, tmp_path):
    run("evaluate.py", "--model_path", trained / "encoder.pt", "--protocol", "knn", "--output_dir", tmp_path)
    assert "knn" in json.loads((tmp_path / "results.json").read_text())


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--model_path", "nowhere"], "nowhere: no such file or run folder"),
        (["--k", "0"], "k: 0 must be at least 1"),
        (["--protocol", "lnear"], "'lnear' is none of linear, probe, knn, features, all; did you mean 'linear'?"),
        (["--encoder", "resnet18"], "not weights of this encoder"),
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
