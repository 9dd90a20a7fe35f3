"""What digest.py starts, with the code of a checkout: a script of ours, or the `fit` of an estimator.

digest_run.py .../train.py --SETTING VALUE ...        a script, whose --encoder may be digest_run.Probe
digest_run.py BarlowTwins --output_dir FOLDER         an estimator; its file is FOLDER/checkpoint.pt
"""

import contextlib
import os
import runpy
import signal
import sys
from pathlib import Path

import torch
from torch import nn


class Probe(nn.Sequential):
    """An encoder. At its STOP-th call in training, rank 0 is told to stop; at its NAN-th call there it gives NaN."""

    calls = 0

    def __init__(self):
        first = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1)
        super().__init__(*first, nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, x):
        blank = (x == x[:, :, :1, :1]).all()
        if self.training and not blank and os.environ.get("RANK", "0") == "0":
            Probe.calls += 1
            if str(Probe.calls) == os.environ.get("STOP"):
                os.kill(os.getpid(), signal.SIGTERM)
            if str(Probe.calls) == os.environ.get("NAN"):
                x = x * float("nan")
        return super().forward(x)


def noisy(sample):
    return sample + 0.1 * torch.randn_like(sample)


def fit(name: str, folder: Path) -> None:
    """Fit an estimator, or continue; with STOP in the environment leave at step 3."""
    from ssl import estimators  # of the checkout that has started this process

    kind, path, stop = getattr(estimators, name), folder / "checkpoint.pt", os.environ.pop("STOP", None)
    small = dict(proj_input_dim=8, proj_hidden_dim=16, proj_output_dim=16, batch_size=4, device="cpu")
    begun = path.exists()
    model = (
        kind.load(path, Probe, views=noisy)
        if begun
        else kind(Probe, views=noisy, max_epochs=3, random_state=0, **small)
    )

    def step(batch, number):
        if stop and model.step == 3:
            raise KeyboardInterrupt
        return kind.training_step(model, batch, number)

    model.training_step = step
    with contextlib.suppress(KeyboardInterrupt):
        model.fit(torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(0)), resume=begun)
    folder.mkdir(exist_ok=True)
    model.save(path)


if __name__ == "__main__":
    del sys.argv[0]
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        fit(sys.argv[0], Path(sys.argv[2]))
