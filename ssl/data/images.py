"""Files -> RGB pixels."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ssl.errors import UserError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
LARGEST_IMAGE = 200_000_000  # pixels, read from the header: a file that claims more is not decoded


class BadImage(UserError):
    """A file that cannot be shown; the message begins with its path."""


def list_images(folder: Path) -> list[Path]:
    """Every image file below `folder`, relative to it, in byte order. Linked folders are followed once."""
    found, visited = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith("."):
                path = Path(parent, name)
                if path.is_file():  # not a pipe or a device with an image's name
                    found.append(path.relative_to(folder))
    return sorted(found, key=lambda path: os.fsencode(path))


def decode(path: str | Path) -> Tensor:
    """The image at `path` as (3, H, W) uint8, upright and in RGB.

    Grey, palette and CMYK are converted; transparency is laid on white; 16-bit grey is
    scaled to 8; EXIF orientation is obeyed; an animation gives its first frame. Raises
    `BadImage` for what cannot be read: truncated, empty, no image, over LARGEST_IMAGE pixels.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > LARGEST_IMAGE:
                raise BadImage(f"{path}: {width}×{height} pixels is more than any photograph has")
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # otherwise a copy, needed or not
            return _to_tensor(_to_rgb(image))
    except (MemoryError, BadImage):
        raise
    except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError, struct.error and more
        raise BadImage(f"{path}: cannot be read as an image ({type(error).__name__}: {error})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        levels = np.asarray(image, dtype=np.float64)
        if image.mode == "F" and (levels.min() < 0 or levels.max() > 255 or levels.max() <= 1):
            raise ValueError("floating-point pixels without a known range")
        if image.mode != "F":
            levels = levels / 257  # 65535 -> 255
        return Image.fromarray(levels.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
