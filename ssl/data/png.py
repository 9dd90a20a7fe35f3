"""The parts of a PNG that its pixels need, and its transparent level."""

import struct
import zlib

import numpy as np
from PIL import Image

SCALED = {"L;2": 85, "L;4": 17}  # Pillow scales pixels of 2 and 4 bits to 8, but not their transparent level


def needed_chunks(data: bytes) -> bytes:
    """A PNG without the chunks that its pixels do not need: Pillow refuses the file if one of them is damaged or too
    large. Other files as they are."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    kept, place, view = [data[:8]], 8, memoryview(data)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        chunk = view[place : place + 12 + length]
        if not kind[0] & 32 or _is_needed(kind, chunk):  # an upper-case letter: critical
            kept.append(chunk)
        place += 12 + length
    return b"".join(kept)


def _is_needed(kind: bytes, chunk: memoryview) -> bool:
    """Whether an ancillary chunk of a PNG is whole and about transparency, frames or orientation."""
    texts = kind in (b"tEXt", b"zTXt", b"iTXt") and len(chunk) < 65536
    if not (
        kind in (b"tRNS", b"acTL", b"fcTL", b"fdAT", b"eXIf")
        or (texts and bytes(chunk[8:40]).startswith((b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")))
    ):
        return False
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")


def scale_transparent(image: Image.Image) -> None:
    """Make the transparent level of grey of 2 or 4 bits that of the pixels, before these are loaded."""
    if image.format == "PNG" and image.mode == "L" and "transparency" in image.info:
        image.info["transparency"] *= SCALED.get(image.tile[0][3], 1)


def on_white(image: Image.Image, numbers: np.ndarray) -> np.ndarray:
    """16-bit grey, with white in the place of the transparent level, which Pillow leaves as it is."""
    clear = image.info.get("transparency")
    return numbers if clear is None else np.where(numbers == clear, np.uint16(65535), numbers)
