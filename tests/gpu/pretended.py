"""A pretended GPU: tensors that say cuda:0 and hold their numbers on the CPU.

    python tests/gpu/pretended.py EVENTS SCRIPT ARGUMENTS...

runs a script under it and writes to the file EVENTS how often each line of the project made the host wait for the
device, and how often it copied to the device without a wait.

As on a GPU, an operation on tensors of both devices raises. Not as on a GPU: there is one device and no NCCL, autocast
computes in float32, numbers are those of the CPU, and the order of streams is not checked.
"""

import collections
import contextlib
import json
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
import torch._dynamo  # with its tables of PyTorch as it is
import torch.cuda.amp.common
import torchvision  # noqa: F401
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ROOT = Path(__file__).resolve().parents[2]
GPU = torch.device("cuda", 0)
LAYERS = {torch.conv1d, torch.conv2d, torch.conv3d, torch.nn.functional.linear}  # with weights
COPIES = {"_to_copy", "copy_"}  # between devices
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# Operations for which the host waits on CUDA: it needs a number, or a size that depends on numbers.
WAITING = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "unique_dim",
    "unique_consecutive",
    "_unique",
    "_unique2",
    "bincount",
    "histc",
    "repeat_interleave",
    "multinomial",
    "_linalg_eigh",
    "_linalg_svd",
    "_linalg_check_errors",
    "linalg_eig",
    "linalg_lstsq",
    "linalg_matrix_exp",
}

events: collections.Counter[tuple[str, str, str]] = collections.Counter()  # (wait or copy, operation, file:line)
arriving: list[tuple[torch.Tensor, torch.Tensor]] = []  # copies from the GPU that nothing has waited for, their numbers


class OnGpu(torch.Tensor):
    """A tensor on the pretended GPU. `held` has its numbers, on the CPU. PyTorch's C++ takes it to be on `meta`."""

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device("meta"),
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})

    def get_device(self) -> int:
        return 0

    def cpu(self):
        return self.to("cpu")

    def tolist(self):
        note("wait", "tolist")
        return self.held.tolist()

    def numpy(self, **_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def __deepcopy__(self, memo):
        copied = OnGpu(self.held.clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __repr__(self, **_):
        return f"{self.held} on the pretended GPU"


class Mode(TorchDispatchMode):
    """Within, operations go to the pretended GPU where their arguments are or say so."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class Autocast(TorchFunctionMode):
    """Layers get one type of numbers, as under autocast: float32, which a CPU does not imitate."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in LAYERS:
            args = tree_map(lambda x: x.float() if isinstance(x, torch.Tensor) else x, args)
        return func(*args, **(kwargs or {}))


def compute(func, args: tuple, kwargs: dict):
    """What `func` gives, computed on the CPU; counts waits and copies, and raises where devices are mixed."""
    name = func._schema.name.split("::")[1]
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    ours = [x for x in given if isinstance(x, OnGpu)]
    to = kwargs.get("device")
    on_gpu = bool(ours) if to is None else is_gpu(to)  # where the result is
    if name in COPIES:
        note_copy(name, args, kwargs, on_gpu)
    elif ours and name in INDEXING:
        note_indexing(name, *args)
    elif ours:
        strangers = [tuple(x.shape) for x in given if type(x) is not OnGpu and (x.ndim or name.startswith("_fused"))]
        if strangers:
            raise mixed(name, strangers)
    if ours and name in WAITING:
        note("wait", name)
    if on_gpu and to is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    out = func(*tree_map(held, args), **tree_map(held, kwargs))
    if name == "_to_copy" and ours and not on_gpu and kwargs.get("non_blocking"):
        return on_its_way(out)
    known = {id(x.held): x for x in ours}  # what is changed in place is given back itself

    def back(x):
        if not on_gpu or not isinstance(x, torch.Tensor):
            return x
        return known[id(x)] if id(x) in known else OnGpu(x)

    return tree_map(back, out)


def note_copy(name: str, args: tuple, kwargs: dict, to_gpu: bool) -> None:
    target, source = (args[0], args[1]) if name == "copy_" else (None, args[0])
    if target is not None:
        to_gpu = isinstance(target, OnGpu)
    from_gpu = isinstance(source, OnGpu)
    if from_gpu and not to_gpu:
        waits = not (name == "_to_copy" and kwargs.get("non_blocking"))
        note("wait" if waits else "copy", "copy to the CPU")
    elif to_gpu and not from_gpu:
        non_blocking = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        waits = not (non_blocking and getattr(source, "pinned", False))
        note("wait" if waits else "copy", "copy to the GPU")


def on_its_way(copy: torch.Tensor) -> torch.Tensor:
    """A copy from the GPU that is not waited for: zeros until the host has waited."""
    arriving.append((copy, copy.clone()))
    return copy.zero_()


def synchronize(*_) -> None:
    note("wait", "synchronize")
    for copy, numbers in arriving:
        copy.copy_(numbers)
    arriving.clear()


def note_indexing(name: str, base: torch.Tensor, indices, *values) -> None:
    indices = [x for x in indices if x is not None]
    if not isinstance(base, OnGpu):
        raise mixed(name, ["a tensor on the CPU is indexed by one on the GPU"])
    if values and isinstance(values[0], torch.Tensor) and values[0].ndim and not isinstance(values[0], OnGpu):
        raise mixed(name, [tuple(values[0].shape)])
    for x in indices:
        if not isinstance(x, OnGpu):
            note("wait", "index on the CPU")
        elif x.dtype in (torch.bool, torch.uint8):
            note("wait", "index by a mask")


def mixed(name: str, what: list) -> RuntimeError:
    return RuntimeError(
        f"{place()}: {name}: Expected all tensors to be on the same device, but found cuda:0 and cpu: {what}"
    )


def held(x):
    return x.held if isinstance(x, OnGpu) else x


def is_gpu(device) -> bool:
    return device is not None and torch.device(device).type in ("cuda", "meta")


def note(kind: str, operation: str) -> None:
    events[kind, operation, place()] += 1


def place() -> str:
    """The innermost line of the project on the stack."""
    frame = sys._getframe(1)
    while frame:
        file = frame.f_code.co_filename
        if file.startswith(f"{ROOT}/") and "/.venv/" not in file and file != __file__:
            return f"{os.path.relpath(file, ROOT)}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "?"


# PyTorch's own words about GPUs ---------------------------------------------------------


class Stream:
    """One that orders nothing: the pretended GPU has computed everything when a call returns."""

    def __init__(self, *_, **__): ...
    def __enter__(self):
        return self

    def __exit__(self, *_): ...
    def record_event(self):
        return None

    def wait_event(self, event): ...


class Event:
    """A time on the host's clock."""

    def __init__(self, *_, **__):
        self.at = 0.0

    def record(self, *_) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, end: "Event") -> float:
        return 1e3 * (end.at - self.at)


def pin_memory(self: torch.Tensor, *_) -> torch.Tensor:
    if self.device.type == "cuda":
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
    pinned = self.clone()
    pinned.pinned = True
    return pinned


def to(self: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    """`Tensor.to`, for which "cuda" is the pretended GPU; PyTorch's own would look for the driver."""
    named = [GPU if x == "cuda" or (isinstance(x, torch.device) and x.type == "cuda") else x for x in args]
    return plain_to(self, *named, **kwargs)


plain_to = torch.Tensor.to


def in_mode(function: Callable) -> Callable:
    def within(*args):
        with Mode():
            return function(*args)

    return within


def pretend() -> contextlib.ExitStack:
    """PyTorch says, until the stack is closed, that there is one GPU, and computes on it as above."""
    nothing = lambda *_, **__: None  # noqa: E731
    there = lambda *_, **__: True  # noqa: E731
    stack = contextlib.ExitStack()
    for where, names in (
        (
            torch.cuda,
            {
                "_lazy_init": nothing,
                "is_available": there,
                "device_count": lambda: 1,
                "current_device": lambda: 0,
                "set_device": nothing,
                "get_device_name": lambda *_: "pretended GPU",
                "is_bf16_supported": there,
                "manual_seed": nothing,
                "manual_seed_all": nothing,
                "empty_cache": nothing,
                "is_initialized": there,
                "synchronize": synchronize,
                "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
                "set_rng_state": nothing,
                "Stream": Stream,
                "stream": lambda stream: stream,
                "current_stream": Stream,
                "Event": Event,
                "set_sync_debug_mode": nothing,  # the events here say who waits
                "reset_peak_memory_stats": nothing,
                "memory_allocated": lambda *_: 0,
                "max_memory_allocated": lambda *_: 0,
                "mem_get_info": lambda *_: (2**34, 2**34),
                "get_device_capability": lambda *_: (9, 0),
                "is_current_stream_capturing": lambda: False,
            },
        ),
        (threading.Thread, {"run": in_mode(threading.Thread.run)}),  # a mode is its thread's alone
        (
            torch.accelerator,
            {
                "is_available": there,
                "current_accelerator": lambda *_: GPU,
                "current_device_index": lambda: 0,
                "set_device_index": nothing,
            },
        ),
        (torch.cuda.amp.common, {"amp_definitely_not_available": lambda: False}),
        (torch.Tensor, {"pin_memory": pin_memory, "record_stream": nothing, "to": to}),
        (torch.optim.Optimizer, {"_accelerator_graph_capture_health_check": nothing}),
    ):
        for name, pretended in names.items():
            stack.enter_context(mock.patch.object(where, name, pretended, create=True))
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") is made on the CPU, then copied
    stack.callback(torch._C._set_only_lift_cpu_tensors, before)
    stack.enter_context(Mode())
    stack.enter_context(Autocast())
    return stack


def main() -> None:
    file, script, *arguments = sys.argv[1:]
    sys.argv = [script, *arguments]
    sys.path[:1] = [str(Path(script).resolve().parent), str(Path(__file__).parent), str(ROOT / "tests")]
    import kernels  # noqa: F401, of batch norm on several GPUs

    try:
        with pretend():
            runpy.run_path(str(Path(script).resolve()), run_name="__main__")
    finally:
        Path(file).write_text(json.dumps([[*event, count] for event, count in events.items()]))


if __name__ == "__main__":
    main()
