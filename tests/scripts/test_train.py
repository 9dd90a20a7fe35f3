"""train.py as a person runs it: real processes, small encoders, every promise of the README."""

import json
import math
import os
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from running import metrics, run, small_finetuning, tiny, weights

import finetune
import train
from ssl.checkpoints import inherit
from ssl.errors import UserError
from ssl.settings import config, unread
from ssl.sources import datasets
from ssl.sources.shapes import CLASSES, render
from ssl.training import introduce


def test_the_run_folder_says_where_settings_came_from(trained):
    about = json.loads((trained / "about.json").read_text())
    assert about["origin"]["data_dir"] == "command line" and about["origin"]["momentum"] == "default"
    assert len(about["views"]) == 2 and about["images"] == 64 and len(about["mean"]) == len(about["std"]) == 3


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
    run("train.py", config=trained / "config.yaml", output_dir=tmp_path)
    assert torch.equal(weights(tmp_path), weights(trained))


def test_an_interrupted_run_continues_to_the_same_weights_and_metrics(trained, images, tmp_path):
    again = ["train.py", *tiny(data_dir=images, output_dir=tmp_path)]
    run(*again, max_steps=3)
    with open(tmp_path / "metrics.jsonl", "a") as file:  # steps a crash threw away, the last cut short
        file.write('{"step": 4, "loss": 1.0}\n{"step": 5, "lo')
    assert "continuing at step 3 of 8" in run(*again).stdout
    assert torch.equal(weights(tmp_path), weights(trained))
    drop = ("samples_per_second", "data_wait")
    assert [{k: v for k, v in line.items() if k not in drop} for line in metrics(tmp_path)] == [
        {k: v for k, v in line.items() if k not in drop} for line in metrics(trained)
    ]


def test_many_views_are_trained_judged_and_continued_to_the_same_bits_and_no_other_number_of_them(images, tmp_path):
    settings = {"data_dir": images, "method": "simclr", "ssl_val_interval": 1, "health_every": 1, "accumulate": 2}

    def train_on(views, folder, **more):
        return run("train.py", *tiny(**settings, views=views, batch_size=8, **more), output_dir=tmp_path / folder)

    assert "4 views of 32 px" in train_on(4, "whole").stdout
    assert len(json.loads((tmp_path / "whole" / "about.json").read_text())["views"]) == 4
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert len([line for line in lines if "val_loss" in line]) == 2
    first = next(line for line in lines if "health_alignment" in line)
    share = metrics(tmp_path / "whole")[0]["loss"] / math.log(4 * 16 - 1)  # of the loss of unrelated views
    assert first["health_loss_of_unrelated"] == pytest.approx(share, rel=1e-3) and 0 < first["health_alignment"] < 2
    train_on(4, "parts", max_steps=3)
    with pytest.raises(AssertionError, match="views: 4 -> 3"):
        train_on(3, "parts")
    assert "continuing at step 3 of 8" in train_on(4, "parts").stdout
    assert torch.equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def test_what_was_forced_to_change_has_changed_and_another_precision_continues(images, tmp_path):
    where = {"data_dir": images, "output_dir": tmp_path}
    run("train.py", *tiny(amp="off", max_steps=3), **where)
    forced = tiny(amp="fp16", max_steps=5, lr=0.5, weight_decay=0.25, resume_force=True)
    done = run("train.py", *forced, **where)
    assert "lr: 0.3 -> 0.5" in done.stdout and "amp: 'off' -> 'fp16'" in done.stdout
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    weights_group = state["optimizer"]["param_groups"][0]
    assert weights_group["base_lr"] == pytest.approx(0.5 * 16 / 256) and weights_group["weight_decay"] == 0.25
    assert state["step"] == 5 and state["scaler"]["scale"] > 0


def test_an_interrupted_balanced_run_continues_to_the_same_weights(images, tmp_path):
    common = ["train.py", *tiny(data_dir=images, method="supcon", balanced=True)]
    run(*common, output_dir=tmp_path / "whole")
    run(*common, output_dir=tmp_path / "parts", max_steps=3)
    assert "continuing at step 3 of 8" in run(*common, output_dir=tmp_path / "parts").stdout
    assert torch.equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def test_without_any_data_set_the_embedded_one_is_taken_loudly(tmp_path):
    done = run("train.py", *tiny(), max_steps=1, output_dir=tmp_path)
    assert "EMBEDDED" in done.stdout and "shapes: 20000 images" in done.stdout


@pytest.mark.parametrize("arguments, loud", [("--data_dir none", True), ("--dataset shapes", False)])
def test_the_embedded_data_set_is_announced_unless_it_is_named(capsys, arguments, loud):
    settings, origin = config.parse(train.Settings, arguments.split())
    datasets.resolve(settings)
    introduce.tell_choice(settings, origin, torch.device("cpu"))
    assert settings.dataset == "shapes" and ("EMBEDDED" in capsys.readouterr().out) == loud


def test_split_accumulation_is_the_mean_of_the_losses_and_trains_on_it(images, tmp_path):
    def train(mode, batch_size, accumulate, steps, **how):
        how |= {"output_dir": tmp_path / mode, "accumulate_mode": mode, "accumulate": accumulate, "max_steps": steps}
        return run("train.py", *tiny(data_dir=images, warmup_start=1, batch_size=batch_size), **how)

    for mode in ("exact", "split"):
        train(mode, 8, 2, 1)
    exact, split = (metrics(tmp_path / mode)[0] for mode in ("exact", "split"))
    assert split["loss"] != pytest.approx(exact["loss"], rel=1e-3)
    # lambd 0.005 and loss_scale 0.1 of the recipe: the parts are means, too
    assert split["loss"] == pytest.approx(0.1 * (split["on_diagonal"] + 0.005 * split["off_diagonal"]), rel=1e-4)
    # A run goes on with other micro-batches only where they do not change the loss.
    for mode, status in (("exact", 0), ("split", 2)):
        done = train(mode, 4, 4, 2, check=False)
        assert done.returncode == status, done.stderr
    assert "micro batch: 8 -> 4" in done.stderr


def test_supcon_learns_from_labels_and_says_so(images, tmp_path):
    how = {"data_dir": images, "base_temperature": "null", "max_steps": 1}
    done = run("train.py", *tiny(method="supcon", **how), temperature=0.2, output_dir=tmp_path / "supcon")
    assert "labels      of 64 images, 3 classes" in done.stdout and "supcon_cifar10.yaml" in done.stdout
    run("train.py", *tiny(method="simclr", **how), temperature=0.2, output_dir=tmp_path / "simclr")
    with_labels, without = (metrics(tmp_path / name)[0]["loss"] for name in ("supcon", "simclr"))
    assert with_labels != pytest.approx(without, rel=1e-3)  # where they start from the same weights
    done = run("train.py", *tiny(method="supcon", **how), output_dir=tmp_path / "balanced", balanced=True)
    assert "3 classes, every class shown as often" in done.stdout


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"method": "supcon"}, "method supcon: needs labels, and folder has none here"),
        ({"method": "simclr", "balanced": True}, "balanced: needs labels, and folder has none here"),
    ],
)
def test_without_labels_nothing_starts_that_learns_from_them(tmp_path, settings, expected):
    for i, pixels in enumerate(render(torch.zeros(20, dtype=torch.long), 32, 0)):
        (tmp_path / "flat").mkdir(exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(tmp_path / "flat" / f"{i}.png")
    done = run("train.py", *tiny(**settings), data_dir=tmp_path / "flat", output_dir=tmp_path / "run", check=False)
    assert done.returncode == 2 and done.stderr.startswith(f"train.py: error: {expected}")
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_run_that_learns_from_labels_is_not_continued_with_others(tmp_path):
    pixels = render(torch.arange(32) % 3, 32, 0).permute(0, 2, 3, 1).numpy()
    labels = (torch.arange(32) % 3).numpy()
    learning = tiny(data_dir=tmp_path / "data.npz", output_dir=tmp_path / "run", method="supcon", max_steps=1)
    np.savez(tmp_path / "data.npz", images=pixels, labels=labels)
    run("train.py", *learning)
    np.savez(tmp_path / "data.npz", images=pixels, labels=labels[::-1].copy())
    done = run("train.py", *learning, check=False)
    assert done.returncode == 2 and "labels: '" in done.stderr


@pytest.mark.parametrize("optimizer", ["lamb", "sgd", "adam", "adamw"])
def test_every_optimizer_and_clipping_run(images, tmp_path, optimizer):
    options = tiny(optimizer=optimizer, clip_grad=1, lr_scaling="none", lr=1e-3, max_steps=2)
    run("train.py", *options, data_dir=images, output_dir=tmp_path)
    assert len(metrics(tmp_path)) == 2


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_follows_float32(trained, images, tmp_path, amp):
    run("train.py", *tiny(amp=amp, max_steps=2), data_dir=images, output_dir=tmp_path)
    for half, full in zip(metrics(tmp_path), metrics(trained)):
        assert half["loss"] == pytest.approx(full["loss"], rel=0.1)


def test_training_starts_from_another_runs_encoder(trained, images, tmp_path):
    common = ["train.py", *tiny(data_dir=images, init=trained, max_steps=1)]
    assert f"{trained / 'encoder.pt'}" in run(*common, output_dir=tmp_path).stdout
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
    "settings, expected",
    [
        (
            {"batch_size": 100},
            "global batch, 100 per process × 1 processes × accumulate 1 = 100, is larger than the",
        ),
        ({"warmup_epochs": "2"}, "warmup_epochs: 2.0 must be fewer than epochs (2)"),
        ({"dataset": "CIFAR11"}, "dataset: 'CIFAR11' is none of"),
        ({"projector": "16-x"}, "projector: '16-x' is not a list of widths"),
        ({"encoder": "resnet99"}, "encoder: 'resnet99' is no image classifier of torchvision"),
        ({"lerning_rate": "1"}, "unknown setting --lerning_rate"),
        ({"init": "nowhere"}, "nowhere: no such file or run folder"),
        ({"resume": "nowhere.pt"}, "resume: nowhere.pt does not exist"),
        ({"gpus": "0"}, "gpus: 0 is not a number of processes"),
        ({"dataset": "ImageNet"}, "is not ImageNet"),
    ],
)
def test_a_bad_setting_stops_with_one_line(images, tmp_path, settings, expected):
    done = run("train.py", *tiny(**settings), data_dir=images, output_dir=tmp_path / "r", check=False)
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
        ("--stain_jitter 0.2 1.5", "stain_jitter: [0.2, 1.5] is not in 0..1"),
        ("--stain_prob 0 1 0", "stain_prob: expected one value for all views, two that the views take in turn; got 3"),
        ("--stain_prob 0 1.5", "stain_prob: [0.0, 1.5] is not in 0..1"),
        ("--blur_sigma 2 1", "blur_sigma: expected 0 < smallest <= largest, got 2 and 1"),
        ("--crop_scale 0.5 2", "crop_scale: expected 0 < smallest <= largest <= 1, got 0.5 and 2"),
        ("--crop_ratio 0 1", "crop_ratio: expected 0 < smallest"),
        ("--blur_prob 0 0.5 1", "blur_prob: expected one value for all views, two that the views take in turn; got 3"),
        ("--views 4 --solarize_prob 0 1 0", "two that the views take in turn, or 4, one for each view; got 3: [0.0, 1"),
        ("--views 3 --blur_prob []", "blur_prob: expected one value for all views"),
        ("--views 1", "views: 1 is not in 2..16"),
        ("--views 17", "views: 17 is not in 2..16"),
        ("--rotation 200", "rotation: 200.0 degrees is not in 0..180"),
        ("--rotation_prob 2", "rotation_prob: 2.0 is not in 0..1"),
        ("--vertical_flip -1", "vertical_flip: -1.0 is not in 0..1"),
        ("--blur_prob 0.5 2", "blur_prob: [0.5, 2.0] is not in 0..1"),
        ("--blur_kernel 4", "blur_kernel: 4 must be odd"),
        ("--solarize_threshold 128", "solarize_threshold: 128.0 is not in 0..1"),
        ("--mean 123.675 116.28 103.53", "is not in 0..1: pixels are; divide numbers of 0..255 by 255"),
        ("--std 58.395 57.12 57.375", "is not in 0..1: pixels are"),
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


@pytest.mark.parametrize(
    "script, arguments, read",
    [
        (train, "--temperature 0.5", "--method simclr"),
        (train, "--base_temperature 0.5", "--method supcon"),
        (train, "--lambd 0.1 --method simclr", "--method barlow_twins"),
        (train, "--loss_scale 1 --method supcon", "--method barlow_twins"),
        (train, "--momentum 0.5 --optimizer adamw", "--optimizer sgd"),
        (train, "--final_lr 0.5 --schedule step --decay_epochs 60", "--schedule cosine"),
        (train, "--decay_epochs 60 80", "--schedule step"),
        (train, "--decay_rate 0.5", "--schedule step --decay_epochs 60"),
        (train, "--eval_head fixed", "--eval_every 1"),
        (finetune, "--momentum 0.5 --optimizer adam", "--optimizer sgd"),
        (finetune, "--plateau_patience 3 --schedule cosine", "--schedule plateau"),
        (finetune, "--lr_backbone 0.5 --freeze", "--freeze false"),
    ],
)
def test_a_setting_of_the_command_line_that_nothing_reads_is_refused(script, arguments, read):
    name, words = arguments.split()[0].removeprefix("--"), arguments.split()

    def check(arguments, begins=True):
        unread.check(*config.parse(script.Settings, arguments), begins)

    with pytest.raises(UserError, match=rf"^{name}: .*(leave it out|set that, too)$"):
        check(words)
    other = read.split()[0]
    kept = words[: words.index(other)] if other in words else words
    check([*kept, *read.split()])  # with another choice it is read
    check(words, begins=False)  # a run that has begun so goes on


def test_a_recipe_may_set_what_nothing_reads(tmp_path):
    (tmp_path / "mine.yaml").write_text("temperature: 0.5\nlambd: 0.1\neval_head: fixed\n")
    for method in ("barlow_twins", "simclr"):
        words = ["--config", str(tmp_path / "mine.yaml"), "--method", method]
        unread.check(*config.parse(train.Settings, words), begins=True)


@pytest.mark.parametrize(
    ("arguments", "blurs"),
    [
        ("", [1, 0.1]),
        ("--views 5", [1, 0.1, 1, 0.1, 1]),
        ("--blur_prob 0.5", [0.5, 0.5]),
        ("--views 3 --blur_prob 0.5", [0.5, 0.5, 0.5]),
        ("--views 4 --blur_prob 0.3 0.7", [0.3, 0.7, 0.3, 0.7]),
        ("--views 4 --blur_prob 0.1 0.2 0.3 0.4", [0.1, 0.2, 0.3, 0.4]),
        ("--views 4 --blur_prob 0.5 --solarize_prob 0 0 0 0.2", [0.5] * 4),
    ],
)
def test_views_have_one_probability_or_two_in_turn_or_one_each(arguments, blurs):
    settings, _ = config.parse(train.Settings, arguments.split())
    train.check(settings)
    views = train.make_views(settings)
    assert [view.blur_prob for view in views] == blurs
    if len(settings.solarize_prob) == 2:
        assert [view.solarize_prob for view in views] == [0.0, 0.2, 0.0, 0.2, 0.0][: len(views)]
    else:
        assert [view.solarize_prob for view in views] == settings.solarize_prob


def test_views_change_stains_where_they_are_told_to():
    settings, _ = config.parse(train.Settings, "--views 3 --stain_jitter 0.2 0.1 --stain_prob 1 0.5".split())
    views = train.make_views(settings)
    assert [view.stain_prob for view in views] == [1, 0.5, 1] and {view.stain_jitter for view in views} == {(0.2, 0.1)}
    settings, _ = config.parse(train.Settings, [])
    assert not any(any(view.stain_jitter) for view in train.make_views(settings))
    settings, _ = config.parse(finetune.Settings, ["--stain_jitter", "0.2", "0.1"])
    settings.image_size = 32
    assert finetune.random_view(settings).stain_jitter == (0.2, 0.1) and finetune.random_view(settings).stain_prob == 1


@pytest.mark.parametrize("script", ["train.py", "finetune.py"])
def test_stains_of_grey_images_are_refused_in_one_line(script, tmp_path):
    grey = np.random.default_rng(0).integers(256, size=(40, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "grey.npz", images=grey, labels=np.arange(40) % 2)
    words = {"train.py": tiny, "finetune.py": small_finetuning}[script](stain_jitter=[0.2, 0])
    done = run(script, *words, data_dir=tmp_path / "grey.npz", output_dir=tmp_path / "run", check=False)
    expected = "error: stain_jitter: it reads the stains from red, green and blue, and these images have 1 channel;"
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and expected in done.stderr


def test_schedules_follow_the_epochs():
    by_epoch = train.Settings(epochs=20, warmup_epochs=10, schedule="cosine_by_epoch", warmup_start=0.01, final_lr=0.0)
    factors = [train.lr_factor(by_epoch, step, 5) for step in range(100)]
    assert factors[0] == factors[4] == 0.01 and factors[5] == pytest.approx(0.01 + 0.99 / 10) and factors[50] == 1
    steps = train.Settings(epochs=20, warmup_epochs=2, schedule="step", decay_epochs=[5, 15], decay_rate=0.1)
    factors = [train.lr_factor(steps, step, 5) for step in (5, 10, 24, 25, 74, 75)]
    assert factors == pytest.approx([0.5, 1, 1, 0.1, 0.1, 0.01])
    short = train.Settings(epochs=2, warmup_epochs=1.6)  # at one step an epoch
    assert [train.lr_factor(short, step, 1) for step in range(2)] == [0, 1]


def test_resume_none_wants_a_fresh_folder(trained, images, tmp_path):
    run("train.py", *tiny(max_steps=1), data_dir=images, output_dir=tmp_path / "new", resume="none")
    assert len(metrics(tmp_path / "new")) == 1
    done = run("train.py", *tiny(), data_dir=images, output_dir=trained, resume="none", check=False)
    assert done.returncode == 2 and "already holds a run" in done.stderr


def test_a_run_continues_from_a_checkpoint_elsewhere_and_then_from_its_own(trained, images, tmp_path):
    common = ["train.py", *tiny(data_dir=images)]
    run(*common, output_dir=tmp_path / "first", max_steps=3)
    again = [*common, "--output_dir", tmp_path / "second", "--resume", tmp_path / "first" / "checkpoint.pt"]
    assert "continuing at step 3 of 5" in run(*again, max_steps=5).stdout
    assert (tmp_path / "second" / "config.yaml").exists()
    assert "continuing at step 5 of 8" in run(*again).stdout
    assert torch.equal(weights(tmp_path / "second"), weights(trained))


def test_a_run_on_other_images_is_not_continued(trained, images, tmp_path):
    shutil.copytree(images, tmp_path / "moved")
    shutil.copytree(trained, tmp_path / "run")  # whose config.yaml then names these images; others judge `trained`
    common = ["train.py", *tiny(data_dir=tmp_path / "moved", output_dir=tmp_path / "run")]
    assert "continuing at step 8 of 8" in run(*common).stdout  # the same images elsewhere
    next((tmp_path / "moved" / "train").rglob("*.png")).rename(tmp_path / "moved" / "train" / CLASSES[0] / "z.png")
    done = run(*common, check=False)
    assert done.returncode == 2 and "data: '64 images, names " in done.stderr


@pytest.mark.parametrize("method", ["barlow_twins", "supcon"])
def test_a_rate_that_is_far_too_high_ends_the_run_and_saves_no_ruins(images, tmp_path, method):
    done = run(
        "train.py",
        *tiny(data_dir=images, lr=1e30, method=method, warmup_start=1, save_steps=1, max_bad_steps=2),
        output_dir=tmp_path,
        check=False,
    )
    assert done.returncode == 2 and "training has diverged" in done.stderr and "no finite gradient" in done.stderr
    assert weights(tmp_path).isfinite().all()  # of the step before


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_compiled_run_follows_the_eager_one(processes, images, tmp_path):
    if processes > 1 and torch.__version__.startswith("2.6."):
        pytest.skip("the compiler of PyTorch 2.6 makes wrong code of the sums of batch norm on several CPU processes")
    small = tiny(data_dir=images, max_steps=2, encoder_kwargs="{width: 8, stages: 1}", projector=8)  # few kernels
    for name in ("compiled", "eager"):
        run("train.py", *small, compile=name == "compiled", output_dir=tmp_path / name, processes=processes)
    losses = [[line["loss"] for line in metrics(tmp_path / name) if "loss" in line] for name in ("compiled", "eager")]
    assert len(losses[0]) == 2 and losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_run_with_other_settings_is_not_continued(trained, images):
    done = run("train.py", *tiny(), data_dir=images, output_dir=trained, lambd=0.1, check=False)
    assert done.returncode == 2 and "lambd: 0.005 -> 0.1" in done.stderr


def test_a_damaged_checkpoint_is_not_started_over(trained, images, tmp_path):
    content = (trained / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    done = run("train.py", *tiny(), data_dir=images, output_dir=tmp_path, check=False)
    assert done.returncode == 2 and f"{tmp_path / 'checkpoint.pt'}: damaged" in done.stderr
