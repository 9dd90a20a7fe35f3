"""Judge a finished run: evaluate.py and ssl.report as processes of their own, as a user would start them."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from ssl.console import say
from ssl.distributed import alone_environment, is_main
from ssl.files import json_object
from ssl.settings.command import ROOT, command
from ssl.signals import SIGNALS
from ssl.training import next_steps

BASELINES = ("random_init", "raw_pixels")


def judge_after(settings: Any, folder: Path, step: int, classes: list[str]) -> None:
    """Judge the encoder of the run in `folder` after its last `step`, unless that is done; and make its pictures.

    Without `evaluate_after` the commands are only printed. Rank 0 does it, after the ranks have left each other.
    Without two `classes` there are only pictures. The run is finished and stays as it is, whatever happens here: Ctrl-C
    ends the judging, and the same command does it again.
    """
    if not settings.evaluate_after:
        next_steps.after_training(folder, classes)
        return
    if not is_main():
        return
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:  # the training has ended and heeds them no more
        signal.signal(number, signal.default_int_handler)
    place, device = str(folder.resolve()), settings.device
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # the other processes need it
    try:
        if len(classes) > 1 and not _is_judged(settings, folder, step):
            shown = None if device == "auto" else device
            _tell(command("evaluate.py", model_path=folder, **dict.fromkeys(BASELINES, True), device=shown))
            _run("evaluate.py", "--model_path", place, *(f"--{name}" for name in BASELINES), "--device", device)
        if not _has_pictures(folder):
            _tell(command("ssl.report", folder, "--pictures"))
            _run("-m", "ssl.report", place, "--pictures")
        say("")
        next_steps.after_training(folder, classes, judged=True)
    except KeyboardInterrupt:
        say("\nthe judging was stopped; the run is finished and whole. The same command as before judges it again")
        sys.exit(128 + signal.SIGINT)


def _tell(words: str) -> None:
    say(f"\n$ {words}")


def _run(*words: str) -> None:
    """Run a script in a process of its own. Ctrl-C reaches this process alone, which then ends the other."""
    own = alone_environment()
    if subprocess.run([sys.executable, *words], cwd=ROOT, env=own, start_new_session=True).returncode:
        say("*** the run is finished and whole; this command alone has failed, for the reason above ***")


def _is_judged(settings: Any, folder: Path, step: int) -> bool:
    """Whether results.json is of the encoder after so many steps, on the run's images, beside both baselines."""
    found = json_object(folder / "results.json")
    of = found.get("of", {})
    same_images = all(of.get("data", {}).get(name) == getattr(settings, name) for name in ("dataset", "data_dir"))
    return same_images and of.get("weights", {}).get("steps") == step and all(name in found for name in BASELINES)


def _has_pictures(folder: Path) -> bool:
    """Whether neighbours.png is newer than the encoder."""
    picture, encoder = folder / "neighbours.png", folder / "encoder.pt"
    return picture.exists() and picture.stat().st_mtime >= encoder.stat().st_mtime
