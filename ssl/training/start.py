"""How train.py and finetune.py begin: they join the other processes, and settle the precision."""

import torch

from ssl import distributed
from ssl.checkpoints import published
from ssl.settings.shared import TrainingSettings, require_same
from ssl.training.precision import resolve_precision

DOWNLOAD = 360  # minutes that the other ranks may wait for one that downloads a data set or weights


def start(settings: TrainingSettings) -> torch.device:
    """Join the other processes, replace `settings.amp` by what it means on this device, and return the device."""
    limit = DOWNLOAD if settings.download or published.is_name(settings.init) else patience(settings)
    device = distributed.start(settings.gpus, settings.device, limit, settings.deterministic)
    require_same(settings)
    settings.amp = resolve_precision(settings.amp, device)
    return device


def patience(settings: TrainingSettings) -> float:
    """Minutes that ranks wait for each other. The watchdog is faster: it names the rank that hangs."""
    return 1.5 * settings.timeout_minutes
