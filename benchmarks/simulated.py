"""Many ranks in one process: threads that exchange by torch's own threaded process group, on any device.

Collectives inside backward would wait for each other in the one thread that PyTorch keeps for a GPU's
backward, so every rank runs its backward in its own thread.
"""

import threading
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed import multi_threaded_pg as threaded


def on_ranks(world: int, function: Callable[[int], object], patience: float = 60) -> list:
    """`function(rank)` of every rank at once, in rank order. Raises what a rank raises, or `TimeoutError`."""
    threaded._install_threaded_pg()
    torch._C._distributed_c10d._set_thread_isolation_mode(True)
    store, found, failed = dist.HashStore(), [None] * world, []

    def run(rank: int) -> None:
        try:
            dist.init_process_group("threaded", rank=rank, world_size=world, store=store)
            with torch.autograd.set_multithreading_enabled(False):
                found[rank] = function(rank)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world)]
    try:
        for thread in threads:
            thread.start()
        end, grace = time.monotonic() + patience, 2.0  # who waits for a rank that has failed waits for ever
        while any(thread.is_alive() for thread in threads) and time.monotonic() < end and grace > 0:
            time.sleep(0.001)
            grace -= 0.001 if failed else 0
        if failed:
            raise failed[0]
        if any(thread.is_alive() for thread in threads):
            raise TimeoutError(f"{world} ranks did not end within {patience:g} s")
    finally:
        threaded._uninstall_threaded_pg()
        torch._C._distributed_c10d._set_thread_isolation_mode(False)
    return found


def gradients(loss: Callable, z1: Tensor, z2: Tensor, world: int) -> tuple[Tensor, Tensor]:
    """Value and gradient (2, N, D) of `loss(z1, z2)` where each of `world` ranks holds its share of the rows."""

    def share(rank: int) -> tuple[Tensor, Tensor]:
        own = [z.chunk(world)[rank].detach().clone().requires_grad_() for z in (z1, z2)]
        value = loss(*own)
        value.backward()
        return value.detach(), torch.stack([z.grad for z in own])

    values, grads = zip(*(on_ranks(world, share) if world > 1 else [share(0)]))
    assert all(torch.equal(value, values[0]) for value in values)
    return values[0], torch.cat(grads, 1)
