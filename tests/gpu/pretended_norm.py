"""Steps through one synchronised batch norm, of two processes, on the pretended GPU.

Arguments: ssl or torch, whose batch norm; how many steps. The other process says the same as this one.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import ssl

ssl.__path__ = [str(ROOT / "ssl")]  # see ssl/__init__.py

import kernels  # noqa: F401
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore


def all_gather(out: torch.Tensor, own: torch.Tensor, *_, **__) -> None:
    """On the pretended GPU, which has no NCCL."""
    out.view(2, -1).copy_(own)


dist.all_gather_single = dist.all_gather_into_tensor = all_gather
from ssl.batch_norm import SyncBatchNorm

GPU = torch.device("cuda", 0)
dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
norm = {"ssl": SyncBatchNorm, "torch": nn.SyncBatchNorm}[sys.argv[1]](6).to(GPU)
x = torch.rand(4, 6, 5, 5, device=GPU).requires_grad_()
for _ in range(int(sys.argv[2])):
    norm(x).sum().backward()
assert x.grad.shape == x.shape and norm.weight.grad.shape == (6,)
