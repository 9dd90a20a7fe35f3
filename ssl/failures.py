"""What a failure of the machine means and what to do about it: memory, and processes that cannot reach each other."""

import contextlib
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"  # in PyTorch's words
_advice: list[Callable[[], str]] = []


def advise(words: Callable[[], str]) -> None:
    """Have `words` called, for what to do, should memory run out from here on."""
    _advice[:] = [words]


@contextlib.contextmanager
def advising(words: str):
    """Within, `words` say what to do should memory run out; after an error they stay, for `explain`."""
    before = list(_advice)
    advise(lambda: words)
    yield
    _advice[:] = before


def explain(error: Exception) -> str | None:
    """A line for an error that is no fault of the program, or None."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or NO_MEMORY in str(error):
        traceback.clear_frames(error.__traceback__)  # they hold what memory ran out of
    if isinstance(error, torch.OutOfMemoryError):
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "the GPU"
        return f"out of memory on {name}: {_what_to_do()}"
    if isinstance(error, MemoryError) or NO_MEMORY in str(error):
        return f"out of memory on this machine: {_what_to_do()}"
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        return (
            f"the processes could not find each other at {where} ({str(error).splitlines()[0]}); the same --nnodes and "
            "address on every node? the port free there, and open between the nodes? On one machine leave address and "
            "port to --gpus or torchrun --standalone"
        )
    if isinstance(error, dist.DistBackendError):
        return (
            f"the processes lost each other ({str(error).splitlines()[0]}). If another rank has failed, its error "
            "comes first and is the reason. Else NCCL says more with NCCL_DEBUG=INFO; most often it is the network "
            "interface (set NCCL_SOCKET_IFNAME), too little /dev/shm in a container, or two processes on one GPU"
        )
    return None


def _what_to_do() -> str:
    try:
        return _advice[0]() if _advice else "pass a smaller --batch_size or --image_size"
    except Exception as error:  # advice is a kindness, and must not hide what happened
        return f"pass a smaller --batch_size or --image_size (and none could be tried: {type(error).__name__})"


def batch_that_fits(
    model: nn.Module, shape: tuple[int, int, int], batch_size: int, accumulate: int, dtype: torch.dtype | None, *kept
) -> str:
    """Words for a batch that fits, the largest of those that divide `batch_size`, tried with two views of `shape`
    (C, H, W).

    The same global batch is made of more micro-batches. `kept` is what training holds besides the model.
    """
    device = next(model.parameters()).device
    model.eval()  # batch norm then waits for no other rank
    smaller = [size for size in range(batch_size // 2, 1, -1) if batch_size % size == 0]
    for size in smaller:
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if _fits(model, torch.zeros(size, *shape), device, dtype):
            return (
                f"--batch_size {size} --accumulate {accumulate * batch_size // size} should fit, and is the same "
                "global batch and loss (with accumulate_mode exact)"
            )
    if not smaller:
        return f"pass a smaller --batch_size or --image_size (none that divides {batch_size} could be tried)"
    return f"not even --batch_size {smaller[-1]} fits; choose a smaller --encoder, --projector or --image_size"


def _fits(model: nn.Module, pixels: Tensor, device: torch.device, dtype: torch.dtype | None) -> bool:
    try:
        x = pixels.to(device, memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype or torch.float32, enabled=dtype is not None):
            sum(z.float().sum() for z in model(x, x.clone())).backward()
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or NO_MEMORY in str(error):
            return False
        raise
    return True


def no_gpu() -> str:
    """Why PyTorch sees no GPU, as far as can be told."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"this PyTorch, {torch.__version__}, is built without CUDA"
    if not Path("/proc/driver/nvidia/version").exists() and torch.version.cuda:
        return "there is no NVIDIA driver here; in a container or a Slurm job, ask for the GPU"
    return "the driver may be too old for this PyTorch, or CUDA_VISIBLE_DEVICES hides the GPU; nvidia-smi tells"
