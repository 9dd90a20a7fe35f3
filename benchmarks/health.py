"""What a reading of the run's health costs, as a share of a training step: python benchmarks/health.py

Steps with and without a reading alternate, and the reading is timed by itself, since a step of seconds varies by more
than it takes; process time, median. On a CPU, where nothing is waited for.
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
from ssl.settings import config
from ssl.training.guard import gradient_norm
from ssl.training.health import Health
from ssl.training.log import Metrics


def measure(name: str, dataset: str, pairs: int = 3) -> None:
    """Of the recipe that `dataset` has in configs/, on noise."""
    settings, _ = config.parse(train.Settings, ["--dataset", dataset], recipe=train.find_recipe)
    torch.manual_seed(0)
    model, criterion = train.Model(settings).train(), train.make_criterion(settings)
    optimizer = train.make_optimizer(settings, model, 1.0)
    health = Health(2, 10**6, 0, model.encoder, criterion, optimizer)
    size = settings.image_size
    x = torch.randn(settings.batch_size, 3, size, size)
    steps, readings = ([], []), []
    with tempfile.TemporaryDirectory() as folder:
        metrics = Metrics(Path(folder) / "metrics.jsonl", 0)
        health.open(Path(folder), 0)
        for step in range(1, 2 * pairs + 3):
            began = time.process_time()
            loss = criterion(*model(x, x + 0.1 * torch.randn_like(x)))
            loss.backward()
            norm = gradient_norm(optimizer)
            stepped = time.process_time()
            health.before_update()
            before = time.process_time() - stepped
            optimizer.step()
            stepped = time.process_time()
            health.after_update()
            optimizer.zero_grad(set_to_none=True)
            if health.watching:
                health.read(step, 0.0, metrics, loss=loss, norm=norm, skipped=0, data_wait=0.0)
            ended = time.process_time()
            health.begin(step + 1)
            if step > 2:
                steps[step % 2].append(ended - began)
                if step % 2 == 0:
                    readings.append(before + ended - stepped)
        metrics.close()
        health.close()
    plain, read = statistics.median(steps[1]), statistics.median(steps[0])
    cost = statistics.median(readings)
    print(
        f"{name:<12} step {1e3 * plain:7.1f} ms, with a reading {1e3 * read:7.1f} ms; the reading by itself "
        f"{1e3 * cost:6.1f} ms: every 100 steps {cost / plain:.4f} % of the time",
        flush=True,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    measure("shapes", "shapes")
    measure("ResNet-18", "CIFAR10")
