"""The last lines of the scripts: commands that a shell reads and that work as they are, also with blanks in paths."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch
from drawn import class_folders
from PIL import Image
from running import ROOT, options, run, small_finetuning, tiny

import evaluate
import finetune
from ssl.settings import config
from ssl.training import next_steps

QUICK = "--workers 0 --device cpu"


def hint(printed: str, name: str) -> str:
    """The command of the last lines that begins with this name."""
    (line,) = [line for line in printed.splitlines() if line.startswith(f"{name:<12}")]
    return line[12:]


def shell(line: str, folder: Path, start: bool = False) -> str:
    """What a printed command prints. bash reads it; its `python` is this Python, or hands its words to forked.py."""
    (folder / "bin").mkdir(exist_ok=True)
    python = folder / "bin" / "python"
    python.write_text("#!/bin/sh\n" + (f'exec {sys.executable} "$@"\n' if start else "printf '%s\\0' \"$@\"\n"))
    python.chmod(0o755)
    env = os.environ | forked.PLAIN | {"PATH": f"{python.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if not start:
        done = forked.run(*done.stdout.split("\0")[:-1])
        assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def journey(tmp_path_factory) -> tuple[Path, str]:
    """(a folder with a blank in its name, what train.py printed): labelled images in it, and a run on them."""
    home = tmp_path_factory.mktemp("my folder")
    class_folders(home / "my images", {"train": (64, 0), "test": (21, 1)})
    done = run("train.py", *tiny(epochs=1, warmup_epochs=0), data_dir=home / "my images", output_dir=home / "my run")
    return home, done.stdout


def test_the_commands_from_training_to_export_work_as_printed(journey):
    home, printed = journey
    judged = shell(f"{hint(printed, 'judge it')} --protocol knn {QUICK}", home, start=True)
    assert (home / "my run" / "results.json").is_file()
    assert hint(judged, "fine-tune") == hint(printed, "fine-tune")
    quick = f"--epochs 1 --batch_size 12 {QUICK} --output_dir '{home / 'tuned run'}'"
    tuned = shell(f"{hint(judged, 'fine-tune')} {quick}", home)
    assert (home / "tuned run" / "best.pt").is_file()
    shell(hint(tuned, "export"), home)
    assert list((home / "tuned run").glob("*.safetensors"))
    other = f"'{home / 'my images'}'"
    tested = shell(f"{hint(tuned, 'test more').replace('OTHER', other)} {QUICK}", home)
    assert str(home / "tuned run" / "test_my images") in tested
    judged = shell(f"python evaluate.py --model_path '{home}/tuned run' --protocol knn {QUICK}", home)
    assert hint(judged, "predict") == hint(tested, "predict") == hint(tuned, "predict")
    shell(f"{hint(tuned, 'predict').replace('IMAGES', other)} {QUICK}", home)
    table = home / "tuned run" / "predict_my images" / "predictions.csv"
    assert len(table.read_text().splitlines()) == 86


def test_images_without_labels_lead_to_pictures_and_features(tmp_path):
    (tmp_path / "my photos").mkdir()
    for number in range(40):
        pixels = torch.randint(256, (40, 40, 3), dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "my photos" / f"{number}.png")
    settings = tiny(epochs=1, warmup_epochs=0, output_dir=tmp_path / "a run", data_dir=tmp_path / "my photos")
    done = run("train.py", *settings)
    assert len([line for line in done.stdout.splitlines() if "evaluate.py" in line]) == 1
    shell(hint(done.stdout, "look at it"), tmp_path)
    assert (tmp_path / "a run" / "report.html").is_file() and (tmp_path / "a run" / "neighbours.png").is_file()
    written = shell(f"{hint(done.stdout, 'features')} {QUICK}", tmp_path)
    assert (tmp_path / "a run" / "features.csv").read_text().count(".png,all,,") == 40
    shell(f"{hint(written, 'duplicates')} --device cpu", tmp_path)
    assert (tmp_path / "a run" / "near_duplicates.html").is_file()


def test_what_was_said_of_the_images_is_passed_on(journey):
    """Judged on other images than the run's, by a table: the printed command fine-tunes on those."""
    home, _ = journey
    names = [path.relative_to(home / "my images") for path in sorted((home / "my images").rglob("*.png"))]
    table = home / "my table.csv"
    table.write_text("image,kind of\n" + "".join(f"{name},{name.parts[1]}\n" for name in names))
    how = {"data_dir": home / "my images", "csv": table, "label_column": "kind of", "protocol": "features"}
    done = run("evaluate.py", *options(model_path=home / "my run", output_dir=home / "judged", workers=0, **how))
    tuned = home / "by table"
    quick = small_finetuning(epochs=1, workers=0)[4:]
    shell(f"{hint(done.stdout, 'fine-tune')} {' '.join(quick)} --output_dir '{tuned}'", home)
    assert f"csv: {table}" in (tuned / "config.yaml").read_text()
    # The same from the features, which know where they are from
    again = run("evaluate.py", *options(features=home / "judged", protocol="knn"))
    assert f"--csv '{table}'" in hint(again.stdout, "fine-tune")


def test_weights_of_others_are_named_as_before(tmp_path, monkeypatch, capsys):
    """A published name stays a name; what a file is, and of which encoder, is said again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "its weights.pth").touch()
    for words in (
        ["--model_path", "barlow_twins", "--data_dir", "my images"],
        ["--model_path", "its weights.pth", "--init_format", "moco", "--encoder", "resnet18", "--mean", "0.5"],
    ):
        settings, origin = config.parse(evaluate.Settings, words)
        next_steps.after_judging(settings.model_path, next_steps.given(settings, origin))
        _, _, *shown = shlex.split(hint(capsys.readouterr().out, "fine-tune"))
        meant, _ = config.parse(finetune.Settings, shown)
        assert meant.init == settings.model_path and meant.method == settings.init_format
        for name in ("data_dir", "encoder", "mean"):
            assert getattr(meant, name) == getattr(settings, name)
    next_steps.after_judging("gone.pth", {})
    next_steps.after_judging(None, {})
    assert capsys.readouterr().out == ""
