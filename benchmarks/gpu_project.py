"""Part `project` of gpu.sh: what 8 and 32 GPUs would do, from one GPU's measured rate and counted bytes.

python benchmarks/gpu_project.py --json FILE --measured RESNET50.json

A projection, not a measurement: a step on W GPUs is the step of one plus the time that its messages take at the
assumed bandwidth and delay. Input is assumed to keep up, as the measurement with real JPEGs says it does or not.
Two bounds: the gradients' all-reduce hidden behind backward as far as backward goes, and not hidden at all. What
the loss sends is counted by running it on W pretended ranks; gradients are 4 bytes a parameter; batch norm sends
2C + 1 numbers a layer and view forward, 2C back. Beside it the paper's time: 1000 epochs
of ImageNet at batch 2048 in about 124 hours on 32 V100.
"""

import sys
from pathlib import Path

import ssl

ROOT = Path(__file__).resolve().parents[1]
ssl.__path__ = [str(ROOT / "ssl")]  # see ssl/__init__.py
sys.path.append(str(ROOT))  # for train.py

import argparse
import json

import torch
import torch.distributed as dist
from measure import write_json
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore
from traffic import Counted

import train
from ssl.console import table
from ssl.errors import UserError, one_line_errors
from ssl.losses import barlow_twins

IMAGES, EPOCHS, PAPER_HOURS = 1_281_167, 1000, 124
VIEWS = 2
# Bytes per second that a GPU sends while all do, and seconds until the first of a message arrives; both cautious.
LINKS = {
    "one machine": dict(bandwidth=300e9, delay=20e-6),  # NVLink and NVSwitch, 450e9 in one direction on paper
    "between machines": dict(bandwidth=40e9, delay=40e-6),  # 400 Gb/s a GPU, 50e9 on paper
}
# (GPUs, how they are connected, batch per GPU): the published global batch, 2048
PLANS = [(8, "one machine", 256), (32, "between machines", 64)]


def loss_messages(world: int, n: int, d: int, dtype: torch.dtype) -> list[float]:
    """Bytes that one of `world` ranks sends in a ring, collective by collective, for the loss and its backward.

    The other ranks are pretended (`fake`): what arrives from them means nothing, but as much is sent.
    """
    z1, z2 = (torch.randn(n, d).to(dtype).requires_grad_() for _ in range(2))
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    try:
        with Counted(world, pretended=True) as counted:
            barlow_twins(z1, z2, check=False)[0].backward()
    finally:
        dist.destroy_process_group()
    return counted.sent


def norm_messages(model: nn.Module, world: int) -> list[float]:
    """Bytes that one rank sends for synchronised batch norm, message by message, in a step of two views."""
    widths = [m.num_features for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    forward = [4 * (2 * width + 1) * (world - 1) for width in widths]
    backward = [2 * (world - 1) / world * 4 * 2 * width for width in widths]
    return VIEWS * (forward + backward)


def project(model: nn.Module, plan: tuple[int, str, int], row: dict, dimensions: int) -> dict:
    """`row`: what was measured on one GPU at this plan's batch per GPU, as `turns.summary` says it."""
    world, link, batch = plan
    speed = LINKS[link]
    loss = loss_messages(world, batch, dimensions, torch.bfloat16)
    norms = norm_messages(model, world)
    gradients = 2 * (world - 1) / world * 4 * sum(p.numel() for p in model.parameters())
    at_once = sum(loss + norms) / speed["bandwidth"] + len(loss + norms) * speed["delay"]
    later = gradients / speed["bandwidth"] + speed["delay"]
    alone = batch / row["samples_per_second"]
    hidden = min(later, row["shares"]["backward"] * alone)
    seconds = dict(best=alone + at_once + later - hidden, worst=alone + at_once + later)
    rates = {name: world * batch / step for name, step in seconds.items()}
    return dict(
        gpus=world,
        link=link,
        batch_per_gpu=batch,
        measured_samples_per_second=row["samples_per_second"],
        megabytes=dict(gradients=gradients / 1e6, loss=sum(loss) / 1e6, batch_norm=sum(norms) / 1e6),
        messages=dict(loss=len(loss), batch_norm=len(norms)),
        step_seconds=dict(one_gpu=alone, **seconds),
        samples_per_second=rates,
        hours={name: EPOCHS * IMAGES / rate / 3600 for name, rate in rates.items()},
        efficiency={name: alone / step for name, step in seconds.items()},
    )


def measured_at(results: dict, batch: int) -> dict:
    """The fastest measured row of synthetic input at this batch per GPU; tiny: whatever there is."""
    rows = {name: row for name, row in results["rows"].items() if name.startswith("synthetic")}
    own = (
        {name: row for name, row in rows.items() if f"batch {batch}" in name}
        if batch != results["batch_size"]
        else {name: row for name, row in rows.items() if "batch" not in name}
    )
    own = own or (rows if results["tiny"] else {})
    if not own:
        raise UserError(f"measured: no synthetic rate at batch {batch}; run part resnet50 to its end first")
    return max(own.values(), key=lambda row: row["samples_per_second"])


def show(results: dict) -> str:
    head = ["GPUs", "batch each", "MB gradients", "loss", "batch norm", "messages"]
    rows = [[*head, "samples/s", "efficiency", "hours, 1000 epochs"]]
    for plan in results["rows"]:
        span = lambda key, form, plan=plan: " to ".join(form.format(plan[key][end]) for end in ("worst", "best"))  # noqa: E731
        rows.append(
            [
                f"{plan['gpus']}, {plan['link']}",
                str(plan["batch_per_gpu"]),
                *(f"{plan['megabytes'][part]:.1f}" for part in ("gradients", "loss", "batch_norm")),
                str(sum(plan["messages"].values())),
                span("samples_per_second", "{:.0f}"),
                span("efficiency", "{:.0%}"),
                span("hours", "{:.1f}"),
            ]
        )
    links = "; ".join(
        f"{name}: {speed['bandwidth'] / 1e9:.0f} GB/s a GPU, {1e6 * speed['delay']:.0f} µs a message"
        for name, speed in LINKS.items()
    )
    real = results["of_synthetic"]
    return (
        f"{table(rows)}\nassumed, not measured: {links}; input keeps up"
        + ("" if real is None else f" (real JPEGs reached {real:.0%} of synthetic on one GPU)")
        + f"\nthe paper: {PAPER_HOURS} hours on 32 V100"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, help="write the numbers to this file")
    parser.add_argument("--measured", required=True, help="what part resnet50 has written")
    options = parser.parse_args()
    if not Path(options.measured).exists():
        raise UserError(f"measured: {options.measured} is not there; run part resnet50 first")
    measured = json.loads(Path(options.measured).read_text())
    settings = train.Settings(encoder=measured["encoder"], projector=measured["projector"])
    if measured["tiny"]:
        settings.encoder_kwargs = {"width": 16, "stages": 2}
    with torch.device("meta"):  # sizes are enough
        model = train.Model(settings)
    dimensions = int(settings.projector.split("-")[-1])
    results = dict(
        tiny=measured["tiny"],
        measured_on=measured["machine"],
        images=IMAGES,
        epochs=EPOCHS,
        links=LINKS,
        paper_hours=PAPER_HOURS,
        of_synthetic=measured.get("of_synthetic"),
        rows=[project(model, plan, measured_at(measured, plan[2]), dimensions) for plan in PLANS],
    )
    write_json(options.json, results)
    print(show(results))


if __name__ == "__main__":
    with one_line_errors("gpu_project.py"):
        main()
