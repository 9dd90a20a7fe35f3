"""Run a function on several processes joined by gloo, and hand back what each returns."""

import os
from pathlib import Path

import ssl

ssl.__path__ = [str(Path(__file__).resolve().parents[2] / "ssl")]  # see ssl/__init__.py

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(function, worlds: list[int], folder: Path) -> dict[int, list]:
    """{world_size: [what function() returned on rank 0, on rank 1, …]} for every size in `worlds`.

    One set of processes serves all sizes, since starting them is what takes time.
    `function` is a module-level function without arguments; it returns tensors and containers of them.
    """
    # A fork server imports once for all; forking this process would copy its threads' locks.
    mp.set_forkserver_preload(["torchvision", "torch._dynamo"])
    mp.start_processes(_process, (function, worlds, folder), nprocs=max(worlds), start_method="forkserver")
    return {world: [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)] for world in worlds}


def _process(rank: int, function, worlds: list[int], folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    for world in worlds:
        if rank < world:
            dist.init_process_group("gloo", init_method=f"file://{folder}/join-{world}", rank=rank, world_size=world)
            torch.save(function(), folder / f"{world}-{rank}.pt")
            dist.destroy_process_group()
