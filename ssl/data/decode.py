"""An image file is decoded into pixels: upright, as stored or in RGB. A file that cannot be read is a `BadImage`."""

import contextlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from ssl.data import png, tiff
from ssl.errors import UserError, one_line

# The formats that are read. The content counts, not the name. (For PostScript Pillow would start ghostscript.)
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
LARGEST_FILE = 1 << 30  # bytes
LARGEST_IMAGE = 200_000_000  # pixels: a file whose header claims more is not decoded
Image.MAX_IMAGE_PIXELS = LARGEST_IMAGE  # Pillow's own limit is a little lower

Reduction = Callable[[int, int], int]  # (height, width) -> 1, 2, 4 or 8
Range = tuple[float, float]  # the values that are black and white

# By EXIF orientation: what makes stored rows upright.
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
}
LYING = (5, 6, 7, 8)  # orientations that exchange height and width


class BadImage(UserError):
    """An image that cannot be read: its `path` and the `reason`."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(path, reason)  # both, so that it can be pickled
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def decode(
    path: str | Path,
    reduction: Reduction | None = None,
    held: bytes | None = None,
    value_range: Range | None = None,
) -> Tensor:
    """The image at `path` as (3, H, W) uint8, upright and in RGB. `held` are the bytes of the file, if known already.

    Grey, palette and CMYK are converted. Transparent pixels become white. EXIF orientation is applied. Of several pages
    or frames the first is read. Unsigned grey of up to 16 bits is scaled from the whole range of its type. With
    `value_range` (low, high) low is black, high is white, and the result is uint16 over its whole range.

    `reduction(height, width)` is called with the size of the upright image. It returns 1, 2, 4 or 8: how much smaller
    an image is enough for the caller. A JPEG is then decoded at ceil(size / that), which is much faster (not with a
    `value_range`). Raises `BadImage` for a file that is truncated, empty, none of FORMATS, over LARGEST_IMAGE pixels
    or LARGEST_FILE bytes, or a kind of TIFF that is not read, and for values of an unknown range or outside the range.
    """
    found = stored(path, reduction, held, whole=value_range is not None)
    return torch.from_numpy(rgb(path, found, value_range)).permute(2, 0, 1)


def rgb(path: str | Path, found: "Stored", value_range: Range | None = None) -> np.ndarray:
    """(H, W, 3), as `decode` has it, of the numbers that are stored at `path`."""
    try:
        pixels = found.eight_bits() if value_range is None else found.scaled(value_range)
    except ValueError as error:
        raise BadImage(path, str(error)) from None
    return np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels


def reduction_to(spare: float) -> int:
    """How much smaller an image may be decoded, 1, 2, 4 or 8, if it is `spare` times as large as it has to be."""
    return max(factor for factor in (1, 2, 4, 8) if factor == 1 or factor <= spare)


def content(path: str | Path) -> bytes:
    """The bytes of the file. Pillow reads from them, so a header that claims too much cannot make it take memory."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise BadImage(path, "is no ordinary file")
    if status.st_size > LARGEST_FILE:
        raise BadImage(path, f"{status.st_size:,} bytes is more than any photograph has")
    with open(path, "rb") as file:
        return file.read()


# Numbers ------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """The numbers of an upright image: grey (H, W) of any type, or RGB (H, W, 3) uint8.

    `kind` describes them for messages. `most` is the largest number of the type. It is None for signed, floating-point
    and 32-bit numbers: images do not use their whole range. `exact`: the numbers are as in the file, not converted to 8
    bits and not scaled. `turned`: EXIF orientation has turned or flipped it.
    """

    numbers: np.ndarray
    kind: str
    most: int | None
    exact: bool
    turned: bool

    def eight_bits(self) -> np.ndarray:
        """As uint8, scaled from the whole range of the type. Raises `ValueError` for a type without a known range."""
        if self.most is None:
            raise ValueError(
                f"has {self.kind}, here from {self.numbers.min():g} to {self.numbers.max():g}, without a known range; "
                "pass --value_range BLACK WHITE, or save it with 8 or 16 bits"
            )
        return self.numbers if self.most == 255 else _to_eight_bits(self.most)[self.numbers]

    def scaled(self, value_range: Range) -> np.ndarray:
        """As uint16: `value_range` becomes 0..65535. Raises `ValueError` for numbers outside it."""
        if not self.exact:
            raise ValueError(f"has {self.kind}, so --value_range cannot be used; save it as an array (.npy, .npz)")
        require_fitting(self.kind, self.most, value_range)
        return scaled(self.numbers, value_range)


def require_fitting(kind: str, most: int | None, value_range: Range) -> None:
    """Raise `ValueError` for a `value_range` that is not in 0..`most`."""
    low, high = value_range
    if most is not None and not 0 <= low < high <= most:
        raise ValueError(f"has {kind}, 0 to {most}; --value_range {low:g} {high:g} goes beyond them")


def scaled(numbers: np.ndarray, value_range: Range) -> np.ndarray:
    """`numbers` (H, …) of any type as uint16: `value_range` (low, high) becomes 0..65535.

    Raises `ValueError` if a number is outside the range or NaN.
    """
    low, high = value_range
    least, largest = numbers.min(), numbers.max()
    if not (low <= least and largest <= high):  # NaN, too
        raise ValueError(f"its numbers, from {least:g} to {largest:g}, leave --value_range {low:g} {high:g}")
    result = np.empty(numbers.shape, np.uint16)
    for start in range(0, len(numbers), 256):  # few rows at a time, as float64 takes eight bytes a number
        rows = numbers[start : start + 256].astype(np.float64)
        result[start : start + 256] = np.rint((rows - low) * (65535 / (high - low)))
    return result


@lru_cache(maxsize=4)
def _to_eight_bits(most: int) -> np.ndarray:
    """Levels (most + 1,) uint8, rounded: `most` is 255."""
    return ((np.arange(most + 1) * 255 + most // 2) // most).astype(np.uint8)


# Pillow -------------------------------------------------------------------------


def stored(
    path: str | Path, reduction: Reduction | None = None, held: bytes | None = None, *, whole: bool = False
) -> Stored:
    """The numbers of the image at `path`. `reduction`, `held` and errors as in `decode`. With `whole` the image is
    never reduced, and grey of 16 bits keeps its transparent level: white may be outside a value range."""
    with opened(path, held) as (image, tags):
        exact = _is_exact(image, tags)
        if not isinstance(image, JpegImageFile):
            image.load()  # a PNG's orientation may come after its pixels
        turn = orientation(image, tags)
        if reduction is not None:
            width, height = image.size
            factor = reduction(*((width, height) if turn in LYING else (height, width)))
            if factor > 1 and not whole:
                image.draft(None, (width // factor, height // factor))  # does nothing except for a JPEG
        image.load()
        numbers, most = _numbers(image, tags, whole)
        kind = {255: "8-bit", 65535: "16-bit"}.get(most, "float") + " pixels" if exact else "pixels changed in reading"
        upright = TURNS[turn](numbers).copy() if turn in TURNS else np.ascontiguousarray(numbers)
        return Stored(upright, str(tags or kind), most, exact, turn in TURNS)


@contextlib.contextmanager
def opened(path: str | Path, held: bytes | None = None) -> Iterator[tuple[Image.Image, tiff.Tiff | None]]:
    """Pillow's image of a file, not loaded and without needless metadata, and its tags if it is a TIFF.

    Every error, also one inside the `with` block, is raised as `BadImage`.
    """
    tags = None
    try:
        data = content(path) if held is None else held
        tags = tiff.read(data)
        if tags is None:
            data = png.needed_chunks(data)
        elif tags.wrongly_read():
            raise UnidentifiedImageError
        else:
            data = tags.alone(data)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > LARGEST_IMAGE:
                raise BadImage(path, f"{width}×{height} pixels is more than any photograph has")
            png.scale_transparent(image)
            yield image, tags
    except (MemoryError, BadImage):
        raise
    except UnidentifiedImageError:
        if tags is None:
            raise BadImage(path, f"its content is none of {', '.join(FORMATS)}") from None
        raise BadImage(path, f"is a TIFF of {tags}, which is not read; save it as PNG, or as an array (.npy)") from None
    except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError, struct.error and others
        reason = one_line(str(error).replace(str(path), "it"))
        what = "cannot be read as an image" if tags is None else f"is a TIFF of {tags} that cannot be read"
        raise BadImage(path, f"{what} ({type(error).__name__}: {reason})") from None


def has_pages(path: str | Path) -> bool:
    """Whether a file has more pages or frames than the first. Raises `BadImage`."""
    with opened(path) as (image, tags):
        return tags.pages if tags else image.format in ("GIF", "PNG", "WEBP") and getattr(image, "is_animated", False)


def orientation(image: Image.Image, tags: tiff.Tiff | None) -> int:
    """EXIF orientation, 1 where it is not known or cannot be read."""
    if tags is not None:
        return tags.value(tiff.ORIENTATION, 1)
    with contextlib.suppress(Exception):  # damaged metadata
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
        return found if isinstance(found, int) else 1
    return 1


def _is_exact(image: Image.Image, tags: tiff.Tiff | None) -> bool:
    """Whether Pillow gives the numbers of the file unchanged, for an image that is not loaded yet."""
    if image.mode[0] in "IF" and image.format != "PPM":
        return True
    if tags:
        return tags.bits == 8
    if image.format == "PPM":
        return image.tile[0][0] == "raw"  # else scaled by the largest that the file declares
    return image.mode != "1" and (image.format != "PNG" or image.tile[0][3] in (image.mode, "P;4", "P;2", "P;1"))


def _numbers(image: Image.Image, tags: tiff.Tiff | None, whole: bool) -> tuple[np.ndarray, int | None]:
    """(numbers of a loaded image, not turned; `most`, as in `Stored`). With `whole` 16-bit grey keeps its levels."""
    if tags and tags.number == "int" and tags.bits == 8:
        return np.asarray(image).view(np.int8), None
    if image.mode[0] not in "IF":
        return np.array(_to_rgb(image)), 255
    numbers = np.asarray(image)
    if image.mode == "F" or (tags and (tags.number != "uint" or tags.bits > 16)):
        return numbers.view(np.uint32) if tags and tags.number == "uint" else numbers, None
    numbers = numbers.astype(np.uint16)
    if not whole:
        numbers = png.on_white(image, numbers)
    return 65535 - numbers if tags and tags.inverted else numbers, 2**tags.bits - 1 if tags else 65535


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "La":  # grey multiplied by its alpha
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
