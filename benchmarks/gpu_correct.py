"""Part `correct` of gpu.sh: does a GPU compute what float32 and the CPU compute, without waiting?

python benchmarks/gpu_correct.py --json FILE

Each check says what it compares, the difference it found and the largest it allows. Exit status 1 where one is
missed. Without a GPU the same checks run on the CPU, tiny; what compares CPU and GPU then compares two ways of the CPU.
"""

import sys
from pathlib import Path

import ssl

ROOT = Path(__file__).resolve().parents[1]
ssl.__path__ = [str(ROOT / "ssl")]  # see ssl/__init__.py
sys.path.append(str(ROOT))  # for train.py

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from loops import our_loop
from measure import is_tiny, machine, part_parser, write_json
from simulated import gradients, on_ranks
from torch import Tensor

import train
from ssl import distributed
from ssl.augment import View, apply, draw
from ssl.batch_norm import SyncBatchNorm
from ssl.console import table
from ssl.data.images import Images
from ssl.data.loader import finish
from ssl.data.worker import Batch
from ssl.losses import barlow_twins, info_nce, sup_con
from ssl.settings import config
from ssl.sources import datasets

STEPS = 20
# Largest relative difference of the loss from float32's, in any of the first steps of a training: rounding grows
# from step to step. float32 has 24 bits, fp16 11, bf16 8.
TOLERANCE = {"bf16": 0.1, "fp16": 0.05}
TINY = ["--encoder", "ssl.encoders.SmallResNet", "--encoder_kwargs", "{width: 8, stages: 2}", "--projector", "64-64"]
LOSSES: dict[str, Callable[..., Tensor]] = {
    "Barlow Twins, Gram": lambda z1, z2: barlow_twins(z1, z2, form="gram", check=False)[0],
    "Barlow Twins, cross": lambda z1, z2: barlow_twins(z1, z2, form="cross", check=False)[0],
    "InfoNCE": lambda z1, z2: info_nce(z1, z2, check=False)[0],
    "Barlow Twins, 4 views": lambda z1, z2: barlow_twins(*four(z1, z2), check=False)[0],
    "InfoNCE, 4 views": lambda z1, z2: info_nce(*four(z1, z2), check=False)[0],
}


def four(z1: Tensor, z2: Tensor) -> list[Tensor]:
    """Two further views of the same numbers, in another order of dimensions."""
    return [z1, z2, z1.flip(1), z2.flip(1)]


def check(what: str, difference: float, allowed: float) -> dict:
    return dict(check=what, difference=difference, allowed=allowed, holds=difference <= allowed)  # NaN holds nothing


def apart(found: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest expected value."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return ((found - expected).abs().max() / expected.abs().max()).item()


def losses_agree(device: torch.device, tiny: bool) -> Iterator[dict]:
    """Value and gradient on the device in float32, and of embeddings in half precision, against float64 on the CPU."""
    n, d = (16, 64) if tiny else (256, 2048)
    generator = torch.Generator().manual_seed(0)
    z1 = torch.randn(n, d, generator=generator, dtype=torch.float64)
    z2 = z1 + 0.5 * torch.randn(n, d, generator=generator, dtype=torch.float64)
    for name, loss in LOSSES.items():
        for dtype, allowed in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 5e-3)):
            rounded = [z.to(dtype) for z in (z1, z2)]  # the same numbers for both: only what is computed may differ
            value, grad = gradients(loss, *(z.to(device) for z in rounded), world=1)
            expected = gradients(loss, *(z.double() for z in rounded), world=1)
            label = f"{name}, {str(dtype).removeprefix('torch.')} embeddings"
            yield check(f"{label}: loss", apart(value, expected[0]), 1e-4)
            yield check(f"{label}: gradient", apart(grad, expected[1]), allowed)


def ranks_agree(device: torch.device, tiny: bool) -> Iterator[dict]:
    """Eight simulated ranks against one that holds the whole batch."""
    n, d = (32, 64) if tiny else (512, 1024)
    generator = torch.Generator().manual_seed(1)
    z1 = torch.randn(n, d, generator=generator).to(device)
    z2 = z1 + 0.5 * torch.randn(n, d, generator=generator).to(device)
    labels = torch.arange(n // 8, device=device) % 4  # the same on every rank, so that positives are everywhere
    for name, loss in LOSSES.items():
        value, grad = gradients(loss, z1, z2, world=8)
        expected = gradients(loss, z1, z2, world=1)
        yield check(f"{name}, 8 ranks as 1: loss", apart(value, expected[0]), 1e-5)
        yield check(f"{name}, 8 ranks as 1: gradient", apart(grad, expected[1]), 1e-4)
    shared = gradients(lambda a, b: sup_con(a, b, labels=labels, check=False)[0], z1, z2, world=8)
    alone = gradients(lambda a, b: sup_con(a, b, labels=labels.repeat(8), check=False)[0], z1, z2, world=1)
    yield check("SupCon, 8 ranks as 1: loss", apart(shared[0], alone[0]), 1e-5)
    yield check("SupCon, 8 ranks as 1: gradient", apart(shared[1], alone[1]), 1e-4)


def batch_norm_agrees(device: torch.device, tiny: bool) -> Iterator[dict]:
    """Batch norm of four simulated ranks with uneven rows, channels last, against PyTorch's of the whole batch."""
    rows, channels = [1, 5, 2, 8], 8 if tiny else 256
    x = 5 + 2 * torch.randn(sum(rows), channels, 7, 7, generator=torch.Generator().manual_seed(3)).to(device)
    x = x.to(memory_format=torch.channels_last)

    def passed(norm: torch.nn.Module, x: Tensor) -> list[Tensor]:
        x = x.clone().requires_grad_()
        y = norm.to(device)(x)
        y.pow(3).sum().backward()
        return [y.detach(), x.grad, norm.weight.grad, norm.running_mean, norm.running_var]

    shares = on_ranks(4, lambda rank: passed(SyncBatchNorm(channels), x.split(rows)[rank]))
    out, grad, weights, means, variances = zip(*shares)
    found = torch.cat(out), torch.cat(grad), sum(weights), means[0], variances[0]
    expected = passed(torch.nn.BatchNorm2d(channels), x)
    names = "output", "gradient", "gradient of the weight", "running mean", "running variance"
    for name, own, other in zip(names, found, expected):
        yield check(f"batch norm, 4 ranks as 1: {name}", apart(own, other), 1e-3)  # a sum of large numbers


def views_agree(device: torch.device, tiny: bool) -> Iterator[dict]:
    """`apply` on the device, against what a CPU makes of the same bytes and parameters, in grey levels of 255."""
    n, size = (16, 32) if tiny else (128, 224)
    view = View(size=size, blur_prob=0.5, solarize_prob=0.2, rotation=10.0, vertical_flip=0.2, stain_jitter=(0.2, 0.1))
    pixels = torch.randint(256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    pixels = torch.nn.functional.avg_pool2d(pixels.float(), 5, 1, 2).byte()  # smoother than noise, as images are
    index = torch.arange(n)
    params = draw(0, 0, index, 0, view)[1]
    mean, std = torch.zeros(3), torch.ones(3)
    (expected,) = finish(Batch([(pixels, params)], index, index, 0), [view], mean, std)
    found = apply(*(x.to(device) for x in (pixels, params)), view, mean.to(device), std.to(device)).cpu()
    levels = 255 * (found - expected).abs().max().item()
    yield check("views, apply on the device as on the CPU: levels of 255", levels, 2.0)


def host_waits(function: Callable[[], None]) -> int:
    """How often the host waits for the GPU in it. PyTorch does not notice copies from memory that is not pinned."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


def nothing_waits(device: torch.device, tiny: bool) -> Iterator[dict]:
    """Steps are asked for without waiting for those before, or the GPU would wait for the next."""
    if device.type == "cpu":
        return  # it has nobody to wait for
    settings, data = small_training(tiny)
    for amp in ("bf16", "fp16"):
        loop = our_loop(replace(settings, amp=amp), data, device)
        batches = loop.batches(0, 8)

        def steps(loop=loop, batches=batches) -> None:
            for _ in range(4):
                loop.step(loop.prepare(next(batches)), 1.0)

        steps()  # what is brought to the GPU once
        yield check(f"4 steps, {amp}: times that the host waited for the GPU", float(host_waits(steps)), 0.0)


def small_training(tiny: bool) -> tuple[train.Settings, Images]:
    own = ["--dataset", "fake", "--image_size", "32", "--batch_size", "16" if tiny else "256", "--lr", "0.05"]
    settings, _ = config.parse(train.Settings, own + (TINY if tiny else []), recipe=train.find_recipe)
    return settings, datasets.load("fake", None, "unlabelled", image_size=32)


def trainings_agree(device: torch.device, tiny: bool) -> Iterator[dict]:
    """The losses of the first steps of a training, beside float32's."""
    settings, data = small_training(tiny)
    steps = 4 if tiny else STEPS

    def losses(amp: str) -> Tensor:
        loop = our_loop(replace(settings, amp=amp), data, device)
        before = copy.deepcopy(loop.model.state_dict())
        for batch in loop.batches(0, 8):  # a float16 scaler tries out how large a gradient may be, and leaves steps out
            loop.step(loop.prepare(batch), 0.0)
        loop.model.load_state_dict(before)
        loop.optimizer.state.clear()
        return torch.stack([loop.step(loop.prepare(batch), 1.0) for batch in loop.batches(0, steps)])

    expected = losses("off")
    for name in TOLERANCE:
        difference = ((losses(name) - expected) / expected).abs().max().item()
        yield check(f"{steps} steps, {name} as float32: loss", difference, TOLERANCE[name])


# What may take long last: a time limit then loses the least.
CHECKS = [losses_agree, ranks_agree, batch_norm_agrees, views_agree, nothing_waits, trainings_agree]


def show(results: dict) -> str:
    rows = [["", "difference", "allowed", ""]]
    rows += [
        [row["check"], f"{row['difference']:.2g}", f"{row['allowed']:g}", "holds" if row["holds"] else "MISSED"]
        for row in results["rows"]
    ]
    return table(rows)


def main() -> None:
    options = part_parser(__doc__).parse_args()
    tiny = is_tiny(options)
    device = distributed.join("auto")
    results = dict(machine=machine(device.type), tiny=tiny, rows=[])
    for part in CHECKS:
        for row in part(device, tiny):
            results["rows"].append(row)
            write_json(options.json, results)
    print(f"{results['machine']}\n{show(results)}")
    sys.exit(not all(row["holds"] for row in results["rows"]))


if __name__ == "__main__":
    main()
