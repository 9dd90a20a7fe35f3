"""torch.hub.load(THIS_FOLDER, "encoder", path=RUN_OR_FILE, source="local"): a pre-trained encoder with its weights."""

from pathlib import Path

import ssl

ssl.__path__ = [str(Path(__file__).resolve().with_name("ssl"))]  # see ssl/__init__.py

from torch import nn

from ssl.checkpoints.restore import restore

dependencies = ["numpy", "torch", "torchvision", "tqdm", "yaml"]


def encoder(path: str, **settings) -> nn.Module:
    """The encoder of a run folder, encoder.pt, or anybody's file that train.py's `--init` reads, in eval mode.

    Images (N, C, H, W), normalised as in its training, -> representations (N, width). It is built as the config.yaml
    beside the file says, or by the settings given: encoder, encoder_kwargs, stem, image_size, init_format,
    as in `python evaluate.py --help`. A class that only config.yaml names is not imported unless it is of this
    project or torchvision. Its `normalisation` is {mean, std} of images in 0..1, None where nothing says so.
    """
    network, source, _ = restore(path, **settings)
    network.normalisation = {"mean": source.mean, "std": source.std}
    return network
