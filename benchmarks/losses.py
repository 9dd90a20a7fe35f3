"""Losses beside their plain forms: time, peak memory and bytes sent, forward and backward, same inputs.

python benchmarks/losses.py [--device cuda] [--json FILE] [--only barlow|contrastive|views|bytes]

Ours and the plain form take turns in one process; the medians are compared. Peak memory is what
a fresh process needs beyond its inputs: resident memory on a CPU, the allocator's on a GPU.
"""

from pathlib import Path

import ssl

ssl.__path__ = [str(Path(__file__).resolve().parents[1] / "ssl")]  # see ssl/__init__.py

import argparse
import json
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import combinations

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from measure import machine, medians, own_memory, write_json
from torch import Tensor
from traffic import Counted

from ssl.console import table
from ssl.losses import barlow_twins, info_nce, sup_con

# Plain forms -----------------------------------------------------------------------


def plain_barlow(*data: Tensor, lambd: float = 5e-3) -> Tensor:
    """The published form, of (z1, …, zV, labels) the mean over pairs: batch norm, D×D matrices, off-diagonal copies."""
    views = [F.batch_norm(z, None, None, training=True) for z in data[:-1]]
    losses = []
    for a, b in combinations(views, 2):
        c = a.T @ b / len(a)
        off = c.flatten()[:-1].view(len(c) - 1, len(c) + 1)[:, 1:].flatten()
        losses.append((c.diagonal() - 1).pow(2).sum() + lambd * off.pow(2).sum())
    return sum(losses) / len(losses)


def plain_info_nce(z1: Tensor, z2: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """The whole 2N×2N matrix of similarities, itself masked, and cross-entropy."""
    z = F.normalize(torch.cat([z1, z2]), dim=1)
    scores = z @ z.T / temperature
    scores = scores.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), float("-inf"))
    n = len(z1)
    return F.cross_entropy(scores, torch.cat([torch.arange(n) + n, torch.arange(n)]).to(z.device))


def broadcast_info_nce(z1: Tensor, z2: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """As some libraries write it: cosine similarity by broadcasting, (2N)²·D numbers."""
    z = torch.cat([z1, z2])
    scores = F.cosine_similarity(z[:, None], z[None], dim=2) / temperature
    scores = scores.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), float("-inf"))
    n = len(z1)
    return F.cross_entropy(scores, torch.cat([torch.arange(n) + n, torch.arange(n)]).to(z.device))


def plain_sup_con(*data: Tensor, temperature: float = 0.1) -> Tensor:
    """The whole VN×VN matrix of log-probabilities of (z1, …, zV, labels), averaged over a mask of positives."""
    *views, labels = data
    z = F.normalize(torch.cat(views), dim=1)
    alone = torch.eye(len(z), dtype=torch.bool, device=z.device)
    scores = (z @ z.T / temperature).masked_fill(alone, float("-inf"))
    log_prob = scores - scores.logsumexp(1, keepdim=True)
    labels = labels.repeat(len(views))
    positives = (labels[:, None] == labels) & ~alone
    return -(log_prob.masked_fill(~positives, 0).sum(1) / positives.sum(1)).mean()


def plain_info_nce_of_views(*data: Tensor) -> Tensor:
    """Of (z1, …, zV, labels): every image is a class of its own."""
    return plain_sup_con(*data[:-1], torch.arange(len(data[0]), device=data[0].device))


def ours(loss: str, *data: Tensor) -> Tensor:
    *views, labels = data
    losses = {"barlow": barlow_twins, "info_nce": info_nce, "sup_con": partial(sup_con, labels=labels)}
    return losses[loss](*views, check=False)[0]


PLAIN = {
    "barlow": plain_barlow,
    "info_nce": plain_info_nce,
    "sup_con": plain_sup_con,
    "info_nce of views": plain_info_nce_of_views,
    "broadcast": broadcast_info_nce,
}
# (loss, what it stands beside, samples N, dimensions D, views V if they are not two)
BARLOW = [
    ("barlow", "barlow", n, d)
    for d, ns in (
        (8192, (64, 256, 1024, 2048, 4096)),
        (2048, (64, 256, 1024, 2048, 4096)),
        (128, (64, 256, 1024, 4096)),
    )
    for n in ns
]
CONTRASTIVE = [("info_nce", "info_nce", n, 128) for n in (256, 1024, 4096, 8192)]
CONTRASTIVE += [("sup_con", "sup_con", n, 128) for n in (256, 1024, 4096, 8192)]
CONTRASTIVE += [("info_nce", "broadcast", n, 128) for n in (256, 512)]
# Not 8 views at D = 8192: one step of the plain form takes more than a minute of a CPU.
VIEWS = [("barlow", "barlow", n, d, v) for n, d in ((256, 2048), (512, 512), (4096, 256)) for v in (2, 4, 8)]
VIEWS += [("barlow", "barlow", 256, 8192, v) for v in (2, 4)]
VIEWS += [("info_nce", "info_nce of views", 2048 // v, 128, v) for v in (2, 4, 8)]


# Measuring -------------------------------------------------------------------------


def inputs(n: int, d: int, device: str, views: int = 2) -> list[Tensor]:
    """z1, …, zV, labels."""
    generator = torch.Generator().manual_seed(0)
    z1 = torch.randn(n, d, generator=generator)
    others = [z1 + 0.5 * torch.randn(n, d, generator=generator) for _ in range(views - 1)]
    labels = torch.randint(0, 10, (n,), generator=generator)
    return [*(z.to(device).requires_grad_() for z in (z1, *others)), labels.to(device)]


def step(function, *data: Tensor) -> None:
    for z in data:
        z.grad = None
    function(*data).backward()


def peak_bytes(loss: str, beside: str | None, n: int, d: int, device: str, views: int) -> int:
    """What one forward and backward needs beyond inputs and their gradients; to be called in a process of its own."""
    function = partial(ours, loss) if beside is None else PLAIN[beside]
    step(function, *inputs(8, 16, device))  # load libraries
    data = inputs(n, d, device, views)
    for z in data[:-1]:
        z.grad = torch.zeros_like(z)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function(*data).backward()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = own_memory("VmRSS")
    function(*data).backward()
    return own_memory("VmHWM") - before


def compare(device: str, loss: str, beside: str, n: int, d: int, views: int = 2) -> dict:
    data = inputs(n, d, device, views)
    seconds = medians([partial(step, partial(ours, loss), *data), partial(step, PLAIN[beside], *data)], device)
    context = mp.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as fresh:
        memory = [fresh.submit(peak_bytes, loss, form, n, d, device, views).result() for form in (None, beside)]
    return dict(
        loss=loss,
        beside=beside,
        n=n,
        d=d,
        views=views,
        seconds=seconds[0],
        plain_seconds=seconds[1],
        speedup=seconds[1] / seconds[0],
        peak_mb=memory[0] / 1e6,
        plain_peak_mb=memory[1] / 1e6,
        memory_ratio=memory[1] / max(memory[0], 1),
    )


# Bytes -----------------------------------------------------------------------------


def count_bytes(rank: int, world: int, n: int, d: int, folder: str) -> None:
    """Run each form on `world` processes, count what its collectives carry, and say what a ring sends for that."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/join", rank=rank, world_size=world)
    result = {}
    with Counted(world) as counted:
        for dtype in (torch.float32, torch.bfloat16):
            z1, z2 = (z.detach().to(dtype).requires_grad_() for z in inputs(n // world, d, "cpu")[:2])
            for form in ("gram", "cross"):
                counted.sent.clear()
                barlow_twins(z1, z2, form=form, check=False)[0].backward()
                result[f"{form}, {str(dtype).removeprefix('torch.')} embeddings"] = sum(counted.sent)
    if rank == 0:
        Path(folder, "bytes.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def bytes_of_both_forms(world: int = 4, n: int = 2048, d: int = 8192) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(count_bytes, (world, n, d, folder), nprocs=world)
        counted = json.loads(Path(folder, "bytes.json").read_text())
    return dict(processes=world, n=n, d=d, bytes_sent_per_rank_and_step=counted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("--only", choices=["barlow", "contrastive", "views", "bytes"])
    options = parser.parse_args()
    print(machine(options.device))
    cases = {"barlow": BARLOW, "contrastive": CONTRASTIVE, "views": VIEWS, "bytes": []}
    chosen = cases[options.only] if options.only else BARLOW + CONTRASTIVE + VIEWS
    results, rows = [], [["loss", "beside", "N", "D", "V", "ours", "plain", "faster", "ours", "plain", "less memory"]]
    for case in chosen:
        found = compare(options.device, *case)
        results.append(found)
        rows.append(
            [
                found["loss"],
                f"plain {found['beside']}",
                str(found["n"]),
                str(found["d"]),
                str(found["views"]),
                f"{1e3 * found['seconds']:.1f} ms",
                f"{1e3 * found['plain_seconds']:.1f} ms",
                f"{found['speedup']:.2f}×",
                f"{found['peak_mb']:.0f} MB",
                f"{found['plain_peak_mb']:.0f} MB",
                f"{found['memory_ratio']:.1f}×",
            ]
        )
        print("  ".join(rows[-1]), flush=True)
    if results:
        print("\n" + table(rows))
    counted = None
    if options.only in (None, "bytes"):
        counted = bytes_of_both_forms()
        print(
            f"\nBytes each of {counted['processes']} ranks sends a step (ring), N = {counted['n']}, D = {counted['d']}:"
        )
        for form, sent in counted["bytes_sent_per_rank_and_step"].items():
            print(f"  {form:<28} {sent / 1e6:8.1f} MB")
    if options.json:
        write_json(options.json, dict(machine=machine(options.device), losses=results, bytes=counted))


if __name__ == "__main__":
    main()
