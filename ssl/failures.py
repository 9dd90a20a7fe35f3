"""Say what a failure of the machine means and what to do: no memory, a disk, processes that do not reach each other."""

import contextlib
import errno
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from ssl.errors import first_line

# Messages of PyTorch when memory has run out and no OutOfMemoryError says so: the machine's memory, a GPU's.
NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory",)
NO_GPU_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)
NO_NCCL_MEMORY = (
    "out of memory",
    "Failed to CUDA calloc",
    "Failed to CUDA malloc",
)  # in the last line of an error of NCCL
OF_A_DISK = set("EACCES EPERM EROFS ENOSPC EDQUOT EFBIG EIO ESTALE ENAMETOOLONG ELOOP".split())  # it refuses a file
_advice: list[Callable[[], str]] = []  # at most one


def advise(words: Callable[[], str]) -> None:
    """From here on, if memory runs out, `words()` says what to do."""
    _advice[:] = [words]


@contextlib.contextmanager
def advising(words: str):
    """Within, if memory runs out, `words` say what to do. After an error they stay, for `explain`."""
    before = list(_advice)
    advise(lambda: words)
    yield
    _advice[:] = before


def explain(error: Exception) -> str | None:
    """What to tell the user about an error that is not the program's fault; None for any other error."""
    words = str(error)
    first = first_line(error)
    if whose := memory_of(error):
        traceback.clear_frames(error.__traceback__)  # they hold tensors, and the advice needs memory
        return f"out of memory on {whose}: {_what_to_do()}"
    if "no kernel image is available" in words:
        return (
            f"this PyTorch, {torch.__version__}, has no code for {_gpu()} (only for "
            f"{' '.join(torch.cuda.get_arch_list()) or 'no GPU'}); install the one for your GPU, as "
            "https://pytorch.org/get-started/locally says, or pass --device cpu"
        )
    if isinstance(error, OSError) and errno.errorcode.get(error.errno) in OF_A_DISK:
        return f"{error.filename}: {error.strerror}" if error.filename else first
    if "does not have a deterministic implementation" in words:
        return f"deterministic: {first.split('. ')[0]}. Leave --deterministic out, or choose another encoder"
    if "connectFullMesh failed" in words:
        return (
            f"the processes could not connect ({first}): Gloo, which runs on GPUs use too, has chosen a network "
            "interface that the other nodes do not reach. On every node, set GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME to the interface that they share (`ip addr` lists them), and check that no firewall "
            "is between them"
        )
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError):
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        return (
            f"the processes could not find each other at {where} ({first}). Check that --nnodes and the address are "
            "the same on every node, and that the port is free there and open between the nodes. On one machine, leave "
            "address and port to --gpus or torchrun --standalone"
        )
    lost = f"the processes lost each other ({first}). If another rank has failed, its error is the reason"
    if isinstance(error, RuntimeError) and "gloo/transport/" in first:  # what Gloo raises is a plain RuntimeError
        return lost
    if isinstance(error, dist.DistBackendError):
        return (
            f"{lost}. If not, set NCCL_DEBUG=INFO to hear more from NCCL. Frequent reasons: the network interface (set "
            "NCCL_SOCKET_IFNAME), too little /dev/shm in a container, two processes on one GPU"
        )
    return None


def memory_of(error: Exception) -> str | None:
    """Whose memory has run out: the name of the GPU, or 'this machine'; None if `error` is another one."""
    words = str(error)
    last = words.strip().splitlines()[-1:]  # of an NCCL error: the reason
    nccl = isinstance(error, dist.DistBackendError) and any(word in line for line in last for word in NO_NCCL_MEMORY)
    if isinstance(error, torch.OutOfMemoryError) or nccl or any(word in words for word in NO_GPU_MEMORY):
        return _gpu()
    no_memory = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    if no_memory or any(word in words for word in NO_MEMORY):
        return "this machine"
    return None


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "the GPU"


def _what_to_do() -> str:
    try:
        return _advice[0]() if _advice else "pass a smaller --batch_size or --image_size"
    except Exception as error:  # it must not hide what happened
        return f"pass a smaller --batch_size or --image_size (and none could be tried: {type(error).__name__})"


def batch_that_fits(step: Callable[[int], None], batch_size: int, accumulate: int) -> str:
    """Try smaller batches, and advise the largest that divides `batch_size` and fits, with more micro-batches.

    The global batch stays the same. `step(size)` takes as much memory as a training step with `size` images.
    """
    smaller = [size for size in range(batch_size // 2, 1, -1) if batch_size % size == 0]
    for size in smaller:
        if _fits(step, size):
            return (
                f"--batch_size {size} --accumulate {accumulate * batch_size // size} should fit, and is the same "
                "global batch and loss (with accumulate_mode exact)"
            )
    if not smaller:
        return f"pass a smaller --batch_size or --image_size (none that divides {batch_size} could be tried)"
    return f"not even --batch_size {smaller[-1]} fits; choose a smaller --encoder, --projector or --image_size"


def _fits(step: Callable[[int], None], size: int) -> bool:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        step(size)
    except (MemoryError, RuntimeError) as error:
        if memory_of(error) is None:
            raise
        return False
    return True


def no_gpu() -> str:
    """Why PyTorch sees no GPU, as far as can be told."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"this PyTorch, {torch.__version__}, is built without CUDA"
    if not Path("/proc/driver/nvidia/version").exists() and torch.version.cuda:
        return "there is no NVIDIA driver here; in a container or a Slurm job, ask for the GPU"
    return "the driver may be too old for this PyTorch, or CUDA_VISIBLE_DEVICES hides the GPU; nvidia-smi tells"
