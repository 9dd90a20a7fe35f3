"""What a reading of the run's health costs, as a share of a training step: python benchmarks/health.py

Steps with and without a reading alternate; process time, median.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import ssl

ROOT = Path(__file__).resolve().parents[1]
ssl.__path__ = [str(ROOT / "ssl")]  # see ssl/__init__.py
sys.path.insert(0, str(ROOT))

import torch

import train
from ssl.guard import gradient_norm
from ssl.health import Health
from ssl.report import Metrics

SHAPES = {"encoder": "ssl.encoders.SmallResNet", "encoder_kwargs": {"width": 16}, "projector": "512-512",
          "image_size": 32, "batch_size": 128, "optimizer": "adamw", "lr": 2e-3}  # fmt: skip
RESNET18 = {"encoder": "resnet18", "projector": "2048-2048-2048", "image_size": 64, "batch_size": 32}


def measure(name: str, settings: dict, pairs: int = 3) -> None:
    settings = train.Settings(**settings)
    torch.manual_seed(0)
    model, criterion = train.Model(settings).train(), train.make_criterion(settings)
    optimizer = train.make_optimizer(settings, model, 1.0)
    health = Health(2, 10**6, 0, model.encoder, criterion, optimizer)
    size = settings.image_size
    x = torch.randn(settings.batch_size, 3, size, size)
    times = ([], [])
    with tempfile.TemporaryDirectory() as folder:
        metrics = Metrics(Path(folder) / "metrics.jsonl", 0)
        health.open(Path(folder), 0)
        for step in range(1, 2 * pairs + 3):
            began = time.process_time()
            health.begin(step)
            loss = criterion(*model(x, x + 0.1 * torch.randn_like(x)))
            loss.backward()
            norm = gradient_norm(optimizer)
            health.before_update()
            optimizer.step()
            health.after_update()
            optimizer.zero_grad(set_to_none=True)
            if health.watching:
                health.read(step, 0.0, loss, norm, 0, 0.0, metrics)
            if step > 2:
                times[step % 2].append(time.process_time() - began)
    plain, read = statistics.median(times[1]), statistics.median(times[0])
    cost = read - plain
    print(f"{name:<12} step {1e3 * plain:7.1f} ms  a reading adds {1e3 * cost:6.1f} ms = {cost / plain:.2f} steps; "
          f"every 100 steps {cost / plain:.2f} %")  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    measure("shapes", SHAPES)
    measure("ResNet-18", RESNET18)
