"""Mixed precision: which one suits a device."""

import functools
from pathlib import Path

import torch

from ssl.console import say

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}
CPUINFO = Path("/proc/cpuinfo")
# auto takes the first that the hardware computes in. That bf16 is faster than fp16 on a GPU is assumed; the rows
# "synthetic" and "synthetic, fp16" of benchmarks/gpu_resnet50.py measure it.
AUTO = {"cuda": ("bf16", "fp16"), "cpu": ("bf16", "off")}


def resolve_precision(amp: str, device: torch.device) -> str:
    """bf16, fp16 or off: `amp` itself, or what auto means on `device`."""
    if amp != "auto":
        if device.type == "cpu":
            _tell_if_imitated(amp)
        return amp
    return next(kind for kind in AUTO[device.type] if has_precision(kind, device))


@functools.cache
def _tell_if_imitated(amp: str) -> None:
    """Warn once per process: two steps of eight images took 13 minutes in fp16 on such a CPU."""
    if not has_precision(amp, torch.device("cpu")):
        say(
            f"*** amp {amp}: this CPU has no instructions for it, and PyTorch imitates them, in fp16 up to hundreds of "
            "times slower than float32; --amp off (precision off in Python) is fast here ***"
        )


def choose_precision(amp: str, device: torch.device) -> torch.dtype | None:
    """The dtype of mixed precision, or None for float32 throughout. `amp` is auto, bf16, fp16 or off."""
    return DTYPES[resolve_precision(amp, device)]


def autocast(dtype: torch.dtype | None, device: torch.device) -> torch.autocast:
    """The context in which a network computes in mixed precision; None: in float32."""
    return torch.autocast(device.type, dtype or torch.float32, enabled=dtype is not None)


def name_of(amp: str, device: torch.device) -> str:
    """bf16, fp16 or float32, as the first lines of a run say it. Only a GPU has TF32."""
    float32 = "float32 (not TF32)" if device.type == "cuda" else "float32"
    return float32 if amp == "off" else amp


def has_precision(amp: str, device: torch.device) -> bool:
    """Whether the hardware computes in `amp` (bf16, fp16 or off). PyTorch imitates it elsewhere, slowly."""
    if amp == "off":
        return True
    if device.type == "cuda":
        return amp == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    return any(f"{unit}_{amp}" in _cpu_flags() for unit in ("avx512", "amx"))


@functools.cache
def _cpu_flags() -> frozenset[str]:
    """What this CPU can compute, as Linux names it; nothing where Linux does not say."""
    return frozenset(CPUINFO.read_text().split() if CPUINFO.exists() else ())
