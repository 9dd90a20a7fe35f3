"""Weights that others have published, by name: `--init imagenet`, `--model_path barlow_twins`.

A name stands for one file at one address. It is downloaded once, into torch.hub's folder, and then used from there.
docs/checkpoints.md has the table, with the sources of the licences. A file or folder of the same name wins.
"""

import errno
import os
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch
import torchvision

from ssl.checkpoints.layouts import Kind
from ssl.console import say
from ssl.distributed import gather_objects, is_main
from ssl.encoders.library import short_name
from ssl.errors import UserError
from ssl.sources.datasets import IMAGENET

META = "https://dl.fbaipublicfiles.com"
UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}  # of a folder or its disk


@dataclass(frozen=True)
class Published:
    """Weights of `encoder` at `url`, kept under the name `file`. All have learnt from ImageNet's training images."""

    name: str
    method: str
    licence: str
    url: str
    file: str
    kind: Kind | None  # how the file is read
    encoder: str = "resnet50"
    size: str = ""  # where it is known
    mean: tuple[float, ...] = tuple(IMAGENET[0])  # of the images in its training
    std: tuple[float, ...] = tuple(IMAGENET[1])

    def __str__(self) -> str:
        return f"{self.name}: {self.encoder}, {self.method}, {saw(self.name)}; licence: {self.licence}"

    def path(self) -> Path:
        """Where the file is, or will be."""
        return Path(torch.hub.get_dir(), "checkpoints", self.file)


OTHERS = {
    weights.name: weights
    for weights in (
        Published(
            "barlow_twins",
            "Barlow Twins, 1000 epochs",
            "MIT",
            f"{META}/barlowtwins/ep1000_bs2048_lrw0.2_lrb0.0048_lambd0.0051/resnet50.pth",
            "barlow_twins_resnet50.pth",  # resnet50.pth in torch.hub's folder may be VICReg's
            "barlow_twins",
            size="94 MB",
        ),
        Published(
            "vicreg",
            "VICReg",
            "MIT",
            f"{META}/vicreg/resnet50.pth",
            "vicreg_resnet50.pth",
            "vicreg",
            size="94 MB",
        ),
        Published(
            "swav",
            "SwAV, 800 epochs",
            "not for commercial use",
            f"{META}/deepcluster/swav_800ep_pretrain.pth.tar",
            "swav_800ep_pretrain.pth.tar",
            "swav",
            std=(0.228, 0.224, 0.225),
        ),
        Published(
            "moco_v2",
            "MoCo v2, 800 epochs",
            "MIT",
            f"{META}/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar",
            "moco_v2_800ep_pretrain.pth.tar",
            "moco",
        ),
        Published(
            "moco_v3",
            "MoCo v3, 1000 epochs",
            "CC-BY-NC 4.0",
            f"{META}/moco-v3/r-50-1000ep/r-50-1000ep.pth.tar",
            "r-50-1000ep.pth.tar",
            "moco_v3",
        ),
        Published(
            "dino",
            "DINO",
            "Apache 2.0",
            f"{META}/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth",
            "dino_resnet50_pretrain.pth",
            None,
            size="94 MB",
        ),
    )
}
NAMES = ("imagenet", *OTHERS)


def is_name(value: str | Path | None) -> bool:
    """Whether `value`, of --init or --model_path, means published weights: there is no file or folder called so."""
    return value in NAMES and not Path(value).exists()


def saw(name: str) -> str:
    """What the weights called `name` have learnt from."""
    return f"learnt from ImageNet's training images, {'with' if name == 'imagenet' else 'without'} labels"


def find(value: str | Path, encoder: str | None) -> Published | None:
    """The published weights that `value` names; None where it is a path. imagenet are those of `encoder`, if set.

    Raises `UserError` where torchvision has none of `encoder`.
    """
    if not is_name(value):
        return None
    return of_torchvision(encoder or "resnet50") if value == "imagenet" else OTHERS[value]


def of_torchvision(encoder: str) -> Published:
    """torchvision's IMAGENET1K_V1 of its classifier called `encoder`. These do not change with its version."""
    called = short_name(encoder)
    try:
        weights = torchvision.models.get_model_weights(called).IMAGENET1K_V1
    except (ValueError, AttributeError):
        raise UserError(
            f"encoder: torchvision has no weights IMAGENET1K_V1 of {encoder!r}; pass an --encoder that it has them "
            "of, such as resnet18, resnet50, convnext_tiny or vit_b_16, or name a file of weights"
        ) from None
    size = weights.meta.get("_file_size")
    preset = weights.transforms()
    statistics = preset.mean, preset.std
    if called in ("googlenet", "inception_v3"):  # their torchvision models turn ImageNet's normalisation into this
        statistics = [0.5] * 3, [0.5] * 3
    return Published(
        "imagenet",
        "torchvision's IMAGENET1K_V1",
        "BSD-3-Clause code; ImageNet's terms may bind the weights",
        weights.url,
        weights.url.rpartition("/")[2],
        "baseline",
        encoder,
        f"{size:.0f} MB" if size else "",
        *map(tuple, statistics),
    )


def fetch(weights: Published) -> Path:
    """The file of the weights, downloaded if it is not there. All ranks call it; the first of each machine downloads.

    Raises the same `UserError` on all ranks where a download fails.
    """
    path, trouble = weights.path(), None
    if int(os.environ.get("LOCAL_RANK") or 0) == 0:
        try:
            if not path.is_file():
                _download(weights, path)
        except (OSError, RuntimeError, HTTPException) as error:
            trouble = str(error) or type(error).__name__
            if isinstance(error, OSError) and error.errno in UNWRITABLE:
                trouble += "; TORCH_HOME can name another folder"
    troubles = [found for found in gather_objects(trouble) if found]
    if troubles:
        raise UserError(
            f"the published weights {weights.name!r} cannot be downloaded ({troubles[0]}). Fetch {weights.url} on "
            f"another machine, and put it here as {path}"
        )
    return path


def _download(weights: Published, path: Path) -> None:
    say(f"download    {weights.url}{weights.size and f' ({weights.size})'} to {path}")
    digest = torch.hub.HASH_REGEX.search(path.name)  # torchvision's file names end with their SHA-256
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.hub.download_url_to_file(weights.url, str(path), digest and digest[1], progress=is_main())
