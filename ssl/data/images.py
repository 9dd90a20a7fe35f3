"""Files -> RGB pixels."""

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ssl.errors import UserError, one_line

EXTENSIONS = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
# What a file may be, whatever its name says: Pillow looks at the content, and for PostScript would start ghostscript.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
LARGEST_FILE = 1 << 30  # bytes
LARGEST_IMAGE = 200_000_000  # pixels, read from the header: a file that claims more is not decoded
Image.MAX_IMAGE_PIXELS = LARGEST_IMAGE  # Pillow's own limit is a little lower, and from half of it on it warns

EIGHT_BITS = ((np.arange(65536) + 128) // 257).astype(np.uint8)  # 16-bit levels, rounded: 65535 -> 255


class BadImage(UserError):
    """A file that cannot be shown: its `path`, and the `reason`."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(path, reason)  # both, so that it can be sent between processes
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


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


def decode(path: str | Path, reduction: Callable[[int, int], int] | None = None) -> Tensor:
    """The image at `path` as (3, H, W) uint8, upright and in RGB.

    Grey, palette and CMYK are converted; transparency is laid on white; 16-bit grey is
    scaled to 8; EXIF orientation is obeyed; an animation gives its first frame.
    `reduction(height, width)`, called with the size of the upright image, says by how much (1,
    2, 4 or 8) the caller could do with a smaller one; a JPEG is then decoded at ceil(size / that),
    which takes a fraction of the time. Raises `BadImage` for what cannot be read: truncated,
    empty, none of FORMATS, over LARGEST_IMAGE pixels or LARGEST_FILE bytes.
    """
    try:
        with Image.open(io.BytesIO(_content(path)), formats=FORMATS) as image:
            width, height = image.size
            if width * height > LARGEST_IMAGE:
                raise BadImage(path, f"{width}×{height} pixels is more than any photograph has")
            if reduction is not None:
                lying = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
                factor = reduction(*((width, height) if lying else (height, width)))
                if factor > 1:
                    image.draft(None, (width // factor, height // factor))  # for JPEG alone it does anything
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # otherwise a copy, needed or not
            return _to_tensor(_to_rgb(image))
    except (MemoryError, BadImage):
        raise
    except UnidentifiedImageError:
        raise BadImage(path, f"its content is none of {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError, struct.error and more
        reason = one_line(str(error).replace(str(path), "it"))
        raise BadImage(path, f"cannot be read as an image ({type(error).__name__}: {reason})") from None


def _content(path: str | Path) -> bytes:
    """The bytes of the file. From these Pillow cannot take more memory than there are, whatever a header claims."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise BadImage(path, "is no ordinary file")
    if status.st_size > LARGEST_FILE:
        raise BadImage(path, f"{status.st_size:,} bytes is more than any photograph has")
    with open(path, "rb") as file:
        return file.read()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        levels = np.asarray(image).clip(0, 65535).astype(np.uint16)
        return Image.fromarray(EIGHT_BITS[levels]).convert("RGB")
    if image.mode == "F":
        levels = np.asarray(image)
        if not (levels.min() >= 0 and 1 < levels.max() <= 255):  # NaN, too, is refused
            raise ValueError("floating-point pixels without a known range")
        return Image.fromarray(levels.round().astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
