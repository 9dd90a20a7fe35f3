"""LARS and LAMB beside the plain per-parameter loop, on ResNet-50 with the 8192-8192-8192 projector.

python benchmarks/optimizers.py [--device cuda] [--encoder resnet50] [--projector 8192-8192-8192] [--json FILE]

Ours and the loop take turns in one process on the same parameters; the medians are compared. On a
GPU the kernels that one step launches are counted, too.
"""

from pathlib import Path

import ssl

ssl.__path__ = [str(Path(__file__).resolve().parents[1] / "ssl")]  # see ssl/__init__.py

import argparse
from collections.abc import Callable

import torch
from measure import machine, medians, write_json
from torch import Tensor, nn

from ssl.console import table
from ssl.encoders import build_encoder
from ssl.heads import projector
from ssl.optim import LAMB, LARS, parameter_groups


@torch.no_grad()
def plain_lars(
    params: list[Tensor], momenta: list[Tensor], lr=0.2, momentum=0.9, decay=1e-6, trust=0.001, bias_lr=0.2
) -> None:
    """The published loop: weights adapted and decayed, biases and norms neither."""
    for p, mu in zip(params, momenta):
        dp = p.grad
        if p.ndim > 1:
            dp = dp.add(p, alpha=decay)
            p_norm, dp_norm = torch.norm(p), torch.norm(dp)
            one = torch.ones_like(p_norm)
            q = torch.where(p_norm > 0, torch.where(dp_norm > 0, trust * p_norm / dp_norm, one), one)
            dp = dp.mul(q)
        mu.mul_(momentum).add_(dp)
        p.add_(mu, alpha=-(lr if p.ndim > 1 else bias_lr))


@torch.no_grad()
def plain_lamb(params, ms, vs, step: list[int], lr=1e-3, betas=(0.9, 0.999), eps=1e-6, decay=1.5e-6) -> None:
    """The paper's algorithm, parameter by parameter."""
    step[0] += 1
    for p, m, v in zip(params, ms, vs):
        m.mul_(betas[0]).add_(p.grad, alpha=1 - betas[0])
        v.mul_(betas[1]).addcmul_(p.grad, p.grad, value=1 - betas[1])
        u = (m / (1 - betas[0] ** step[0])) / ((v / (1 - betas[1] ** step[0])).sqrt() + eps)
        if p.ndim > 1:
            u = u.add(p, alpha=decay)
            p_norm, u_norm = torch.norm(p), torch.norm(u)
            one = torch.ones_like(p_norm)
            u = u.mul(torch.where(p_norm > 0, torch.where(u_norm > 0, p_norm / u_norm, one), one))
        p.add_(u, alpha=-lr)


def launches(function: Callable) -> int:
    """Kernels that one call starts on the GPU."""
    with torch.profiler.profile(activities=torch.profiler.supported_activities()) as profile:
        function()
        torch.cuda.synchronize()
    return sum(
        event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))
        for event in profile.events()
    )


def network(encoder: str, head: str, device: str) -> nn.Module:
    """A network with gradients."""
    built, width = build_encoder(encoder, 224)
    model = nn.Sequential(built, projector(width, head)).to(device)
    for p in model.parameters():
        p.grad = 1e-3 * torch.randn_like(p)
    return model


def contenders(name: str, model: nn.Module) -> list[Callable]:
    """Steps of LARS or LAMB: ours one tensor after the other, ours all at once, the loop."""
    params = list(model.parameters())
    cls = {"LARS": LARS, "LAMB": LAMB}[name]
    own = [cls(parameter_groups(model, 0.2, 0.2, 1e-6), lr=0.2, foreach=foreach).step for foreach in (False, True)]
    moments = [[torch.zeros_like(p) for p in params] for _ in range(1 if cls is LARS else 2)]
    count = [0]
    if cls is LARS:
        return [*own, lambda: plain_lars(params, *moments)]
    return [*own, lambda: plain_lamb(params, *moments, count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--encoder", default="resnet50")
    parser.add_argument("--projector", default="8192-8192-8192")
    parser.add_argument("--json", help="write the numbers to this file")
    options = parser.parse_args()
    model = network(options.encoder, options.projector, options.device)
    params = list(model.parameters())
    numbers = sum(p.numel() for p in params)
    print(f"{machine(options.device)}\n{len(params)} tensors, {numbers / 1e6:.0f} million parameters")

    rows, results = [["", "one by one", "all at once", "loop", "faster"]], []
    for name in ("LARS", "LAMB"):
        steps = contenders(name, model)
        seconds = medians(steps, options.device)
        default = seconds[1 if options.device == "cuda" else 0]
        rows.append([name, *(f"{1e3 * s:.1f} ms" for s in seconds), f"{seconds[2] / default:.2f}×"])
        results.append(dict(optimizer=name, one_by_one=seconds[0], all_at_once=seconds[1], loop=seconds[2]))
        if options.device == "cuda":
            counts = [launches(step) for step in steps]
            rows.append(["  kernels", *map(str, counts), f"{counts[2] / counts[1]:.1f}× fewer"])
            results[-1]["kernels"] = counts
        del steps
    print("\n" + table(rows))
    if options.json:
        write_json(options.json, dict(machine=machine(options.device), optimizers=results))


if __name__ == "__main__":
    main()
