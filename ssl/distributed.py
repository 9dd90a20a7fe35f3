"""Processes: start and join them, and let them exchange tensors and objects.

On one process every function gives what one rank alone has. So no caller asks whether there are several.
"""

import datetime
import inspect
import os
import signal
import sys
import time

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ssl.errors import UserError
from ssl.failures import no_gpu
from ssl.signals import die_with_parent

# Variables by which torchrun, or a cluster job, describes the group of a process. Others begin with TORCHELASTIC_.
OF_A_GROUP = set(
    "RANK LOCAL_RANK LOCAL_WORLD_SIZE WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_NAME ROLE_WORLD_SIZE "
    "MASTER_ADDR MASTER_PORT".split()
)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """True on the one process that prints and writes: rank 0 of the group.

    A script asks also before it joins the group and after it has left it: then it is rank 0 of torchrun.
    """
    return (rank() if dist.is_initialized() else int(os.environ.get("RANK") or 0)) == 0


def alone_environment() -> dict[str, str]:
    """The environment without what it says of a group: that of a process which is alone."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in OF_A_GROUP and not name.startswith("TORCHELASTIC_")
    }


def be_alone() -> None:
    """Be no process of a group, whatever the environment says. A command of one process begins with this: it prints
    and writes, also in the shell of a cluster job, where RANK may be left over.

    Raises `UserError` where torchrun has started several.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("this command is one process; leave out torchrun")
    for name in os.environ.keys() - alone_environment().keys():
        del os.environ[name]


def start(
    gpus: int | None = None, device: str = "auto", patience: float = 10, deterministic: bool | None = None
) -> torch.device:
    """Become `gpus` processes, if that is set and torchrun has not started any, and join them: see `join`.

    `deterministic`: True for the same bits every time, False for a GPU's fastest kernels, None for PyTorch's choice.
    """
    if gpus is not None and not os.environ.get("RANK"):
        start_processes(gpus)
    place = join(device, patience)
    if deterministic is not None:
        torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return place


def join(device: str = "auto", patience: float = 10) -> torch.device:
    """Join the process group that torchrun describes, if any, and return this process's device.

    `device` is 'auto' (a GPU if there is one), 'cpu' or 'cuda'. A rank waits `patience` minutes for the others. When
    torchrun dies, this process receives SIGTERM. On a GPU, TF32 is switched off. Raises `UserError` if there is no GPU
    for this process, or if the environment has a part of torchrun's description.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent(signal.SIGTERM)
    place = _place(device)
    if os.environ.get("RANK") and not dist.is_initialized():
        if missing := [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
            raise UserError(
                f"RANK is in the environment, but {', '.join(missing)} {'are' if missing[1:] else 'is'} not: start "
                "several processes with torchrun, and for a single one unset RANK"
            )
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo",  # what is on the CPU waits for no GPU
            timeout=datetime.timedelta(minutes=patience),
            device_id=place if place.type == "cuda" else None,
        )
    return place


def _place(device: str) -> torch.device:
    """This process's device. Each process of a machine has its own GPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return torch.device("cpu")
    if device != "cuda":
        raise UserError(f"device: {device!r} is none of auto, cpu, cuda")
    local_rank, count = int(os.environ.get("LOCAL_RANK") or 0), torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(
            f"process {local_rank} on this machine wants a GPU of its own, but PyTorch sees {count}"
            + (
                f" ({no_gpu()}). Pass --device cpu, in Python device='cpu', to do without"
                if count == 0
                else f". Start {count} processes (--nproc_per_node, --gpus), or pass --device cpu"
            )
        )
    torch.cuda.set_device(local_rank)
    torch.backends.cudnn.allow_tf32 = False  # float32 is then float32 in convolutions, too, as on a CPU,
    torch.backends.cuda.matmul.allow_tf32 = False  # and in products; NVIDIA's containers switch it on
    return torch.device("cuda", local_rank)


def describe(device: torch.device, setting: str) -> str:
    """'CPU, 2 threads × 4 processes (no GPU: …)': where all processes compute. `setting` is what --device says."""
    threads = torch.get_num_threads()
    cpu = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    processes = f"{world_size()} process{'es' if world_size() > 1 else ''}"
    reason = f" (no GPU: {no_gpu()})" if device.type == "cpu" and setting == "auto" else ""
    return f"{name} × {processes}{reason}"


def start_processes(count: int) -> None:
    """Replace this process by torchrun with `count` processes of this same command."""
    if count < 1:
        raise UserError(f"gpus: {count} is not a number of processes")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    os.execv(sys.executable, [sys.executable, *launch, os.path.abspath(sys.argv[0]), *sys.argv[1:]])


def leave() -> None:
    """Leave the process group, if there is one. All ranks do so together.

    In torch 2.6 the end of a group waits for Gloo's threads, and keeps Python to itself. A thread that still has to
    free the tensor of the last collective needs Python: both would wait for ever.
    """
    if dist.is_initialized():
        dist.barrier()
        time.sleep(0.1)  # until it is free
        dist.destroy_process_group()


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def broadcast_object(value):
    """Rank 0's `value` (plain Python), on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value) -> list:
    """Every rank's `value` (plain Python), in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    box = [None] * world_size()
    dist.all_gather_object(box, value)
    return box


def require_same(values: dict) -> None:
    """Raise `UserError`, on all ranks, for a value (plain Python, by name) that differs between ranks.

    All ranks call it, before a difference could let them wait for each other.
    """
    everyone = gather_objects(values)
    for name in everyone[0]:
        require_one_value(name, [own.get(name) for own in everyone])


def require_one_value(name: str, found: list) -> None:
    """Raise `UserError` where what the ranks have `found`, in rank order, is not the same on all."""
    if any(value != found[0] for value in found):
        raise UserError(f"{name}: every process needs the same value, got {found} on ranks 0, 1, …")


def gather_numbers(numbers: list[int]) -> list[list[int]]:
    """Every rank's whole numbers, equally many on each, in rank order, on every rank. Waits for no GPU."""
    if world_size() == 1:
        return [numbers]
    # A group that the user has made may lack a backend for the CPU.
    place = "cpu" if "cpu:" in dist.get_backend_config() else "cuda"
    return gather_rows(torch.tensor([numbers], device=place), [1] * world_size()).tolist()


def share_buffers(module: nn.Module) -> None:
    """Give every rank the buffers of rank 0: batch norm's running statistics, where each rank has its own."""
    for buffer in module.buffers() if world_size() > 1 else ():
        whole = buffer.detach().contiguous()  # a backend sends what lies side by side, and not every type
        dist.broadcast(whole.reshape(-1).view(torch.uint8), src=0)
        if whole.data_ptr() != buffer.data_ptr():
            buffer.data = whole


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum of `x` over all ranks, written into `x`. No gradient."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


# Two things under two names each: from torch 2.14 on the older ones warn.
all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_ddp_names = inspect.signature(DistributedDataParallel).parameters
# Batch norm's running statistics stay each rank's own. Training does not read them.
_OWN_BUFFERS = {"forward_sync_buffers" if "forward_sync_buffers" in _ddp_names else "broadcast_buffers": False}


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` whose backward averages gradients over the ranks; `model` itself on one process."""
    if world_size() == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        **_OWN_BUFFERS,
    )


def gather_rows(x: Tensor, counts: list[int]) -> Tensor:
    """Rows of every rank's `x` (n, ...), in rank order; rank r holds counts[r] of them. No gradient."""
    if world_size() == 1:
        return x.detach()
    longest = max(counts)
    padded = x.detach().contiguous()
    if x.shape[0] < longest:
        padded = x.new_zeros((longest, *x.shape[1:]))
        padded[: x.shape[0]] = x.detach()
    rows = x.new_empty((longest * len(counts), *x.shape[1:]))
    all_gather(rows, padded)
    if min(counts) == longest:
        return rows
    return torch.cat([part[:count] for part, count in zip(rows.split(longest), counts)])
