"""Make the runs and files in this folder, with the code of a checkout.

python tests/old_runs/make.py CHECKOUT IMAGES

CHECKOUT is a `git worktree` of the commit, IMAGES the .npz file to draw. The run folders keep the paths of both: choose
paths that say nothing of your machine, such as /data/house and /data/tiny.npz.
"""

import contextlib
import json
import multiprocessing
import os
import runpy
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
COMMANDS = {
    "pretrain": "train.py --encoder ssl.encoders.SmallResNet --encoder_kwargs '{width: 4, stages: 1}' --projector 16-16"
    " --image_size 16 --crop_scale 0.5 1 --batch_size 12 --epochs 3 --warmup_epochs 1 --lr 4 --workers 0 --amp off"
    " --log_every 1 --health_every 2 --eval_every 1",
    "finetune": "finetune.py --init pretrain --image_size 16 --batch_size 12 --epochs 3 --lr 0.05 --seed 1 --workers 0"
    " --amp off",
    "judged": "evaluate.py --model_path pretrain --protocol features probe knn --workers 0",
}
STOPS = {"pretrain": 11, "finetune": 7}  # the encoder's call in training at which the run is told to stop
ESTIMATOR = {
    "encoder_kwargs": {"width": 4, "stages": 1},
    "proj_input_dim": 8,
    "proj_hidden_dim": 16,
    "proj_output_dim": 16,
    "learning_rate": 0.01,
    "batch_size": 8,
    "max_epochs": 2,
    "random_state": 0,
    "device": "cpu",
}
STEPS = 7  # of the fit that is interrupted
PICTURES = shutil.ignore_patterns("views.png", "evaluation.png", "tensorboard")  # large, and never read again


def draw_images(path: Path) -> None:
    """Noise in three classes whose brightness overlaps. numpy promises the numbers of `RandomState` for ever."""
    draw, arrays = np.random.RandomState(0), {}
    for split, count in {"train": 48, "val": 24, "test": 24}.items():
        labels = np.arange(count) % 3
        level = 50 * labels + draw.randint(0, 90, count)
        pixels = level[:, None, None, None] + draw.randint(0, 60, (count, 16, 16, 3))
        arrays |= {f"{split}_images": pixels.astype(np.uint8), f"{split}_labels": labels}
    np.savez(path, **arrays)


def samples() -> torch.Tensor:
    """What the estimator learns from, (40, 3, 16, 16)."""
    return torch.from_numpy(np.random.RandomState(1).standard_normal((40, 3, 16, 16)).astype(np.float32))


def noisy(sample: torch.Tensor) -> torch.Tensor:
    """A view of a sample."""
    return sample + 0.1 * torch.randn_like(sample)


def main(checkout: Path, images: Path) -> None:
    images.parent.mkdir(parents=True, exist_ok=True)
    draw_images(images)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, stop in STOPS.items():
            start(checkout, run_script, name, images, name, stop)
            start(checkout, run_script, name, images, f"whole_{name}")
        start(checkout, run_script, "judged", images, "judged")
        start(checkout, fit, "estimator.pt", STEPS)
        start(checkout, fit, "whole_estimator.pt")
        for name in STOPS:
            shutil.rmtree(HERE / name, ignore_errors=True)
            shutil.copytree(name, HERE / name, ignore=PICTURES)
        for path in ("estimator.pt", "judged/features.pt"):
            shutil.copy(path, HERE)
        reached = {name: torch.load(f"whole_{name}/checkpoint.pt")["model"] for name in STOPS}
        reached |= torch.load("whole_estimator.pt.reached")
        reached["tested"] = json.loads(Path("whole_finetune/results.json").read_text())["test"]
        reached["judged"] = json.loads(Path("judged/results.json").read_text())
        torch.save(reached, HERE / "reached.pt")


def start(checkout: Path, function: Callable, *arguments) -> None:
    """Call `function` in a process that has the package of the checkout."""
    child = multiprocessing.get_context("fork").Process(target=call, args=(checkout, function, *arguments))
    child.start()
    child.join()
    if child.exitcode not in (0, 75):  # 75: it was told to stop
        sys.exit(f"{function.__name__} {arguments} failed")


def call(checkout: Path, function: Callable, *arguments) -> None:
    import ssl

    ssl.__path__ = [str(checkout / "ssl")]
    sys.path.insert(0, str(checkout))
    socket.gethostname = lambda: "elsewhere"  # the run folder keeps the name
    torch.set_num_threads(1)
    function(*arguments)


def run_script(name: str, images: Path, folder: str, stop: int | None = None) -> None:
    """Run one of COMMANDS. At call number `stop` of the encoder in training it is told to stop."""
    from ssl.encoders import SmallResNet

    forward, seen = SmallResNet.forward, []

    def counted(self, x):
        if self.training and not (x == x[:, :, :1, :1]).all():  # a blank batch belongs to no step
            seen.append(1)
            if len(seen) == stop:
                os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, x)

    SmallResNet.forward = counted
    script, *settings = shlex.split(COMMANDS[name])
    sys.argv = [f"{sys.path[0]}/{script}", *settings, "--data_dir", str(images), "--output_dir", folder]
    runpy.run_path(sys.argv[0], run_name="__main__")


def fit(path: str, steps: int | None = None) -> None:
    """Fit an estimator, interrupted after so many steps, and save it. A whole fit also saves what it reached."""
    from ssl.encoders import SmallResNet
    from ssl.estimators import BarlowTwins

    model = BarlowTwins(SmallResNet, views=noisy, **ESTIMATOR)

    def step(batch, number):
        if model.step == steps:
            raise KeyboardInterrupt
        return BarlowTwins.training_step(model, batch, number)

    model.training_step = step
    with contextlib.suppress(KeyboardInterrupt):
        model.fit(samples())
    model.save(path)
    if steps is None:
        reached = {"estimator": model.net.state_dict(), "transformed": model.transform(samples())}
        torch.save(reached, f"{path}.reached")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
