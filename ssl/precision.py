"""Mixed precision: which, on which machine."""

from pathlib import Path

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}
CPUINFO = Path("/proc/cpuinfo")


def resolve_precision(amp: str, device: torch.device) -> str:
    """bf16, fp16 or off: `amp`, or where that is auto what suits the device.

    auto is bf16 where the hardware multiplies it, else fp16 on a GPU and off on a CPU.
    """
    if amp != "auto":
        return amp
    if has_precision("bf16", device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "off"


def choose_precision(amp: str, device: torch.device) -> torch.dtype | None:
    """The dtype of mixed precision, or None for float32 throughout. `amp` is auto, bf16, fp16 or off."""
    return DTYPES[resolve_precision(amp, device)]


def name_of(amp: str) -> str:
    """bf16, fp16 or float32."""
    return "float32" if amp == "off" else amp


def has_precision(amp: str, device: torch.device) -> bool:
    """Whether the hardware multiplies in `amp` (bf16, fp16 or off). PyTorch imitates what it has not, slowly."""
    if amp == "off":
        return True
    if device.type == "cuda":
        return amp == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    flags = {"bf16": ("avx512_bf16", "amx_bf16"), "fp16": ("avx512_fp16", "amx_fp16")}[amp]
    return CPUINFO.exists() and any(flag in CPUINFO.read_text() for flag in flags)
