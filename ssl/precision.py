"""Mixed precision: which, on which machine."""

from pathlib import Path

import torch


def choose_precision(amp: str, device: torch.device) -> torch.dtype | None:
    """The dtype of mixed precision, or None for float32 throughout. `amp` is auto, bf16, fp16 or off.

    auto is bf16 where the hardware multiplies it, else fp16 on a GPU and float32 on a CPU.
    """
    if amp == "auto" and device.type == "cuda":
        amp = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    elif amp == "auto":
        cpuinfo = Path("/proc/cpuinfo")
        fast = cpuinfo.exists() and any(flag in cpuinfo.read_text() for flag in ("avx512_bf16", "amx_bf16"))
        amp = "bf16" if fast else "off"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp]
