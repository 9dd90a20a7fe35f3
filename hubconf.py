"""torch.hub.load(THIS_FOLDER, "encoder", path=RUN_OR_FILE, source="local"): a pre-trained encoder with its weights."""

from pathlib import Path
from typing import Any

import ssl

ssl.__path__ = [str(Path(__file__).resolve().with_name("ssl"))]  # see ssl/__init__.py

from torch import nn

from ssl.checkpoints.restore import restore

dependencies = ["numpy", "torch", "torchvision", "tqdm", "yaml"]


def encoder(path: str, **settings: Any) -> nn.Module:
    """The encoder of a run folder, encoder.pt, or any file or name that train.py's `--init` takes, in eval mode.

    Images (N, C, H, W), normalised as in its training, -> representations (N, width). `settings` are encoder,
    encoder_kwargs, stem, image_size and init_format, as in `python evaluate.py --help`; unset ones come from the
    config.yaml beside the file. A class that only config.yaml names is not imported unless it is of this project,
    torchvision or timm. The encoder's `normalisation` is {mean, std} for images in 0..1; None where they are not
    recorded.
    """
    network, source, _ = restore(path, **settings)
    network.normalisation = {"mean": source.mean, "std": source.std}
    return network
