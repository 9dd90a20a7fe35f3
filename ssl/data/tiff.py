"""The tags of a TIFF file, read before Pillow reads its pixels: kind of pixels, orientation, pages.

Pillow reads some kinds of TIFF wrongly without an error and others not at all, and damaged metadata can keep it from
good pixels. So Pillow gets the first page with only the tags that its pixels need (`Tiff.alone`). No more is read than
the file is long. Tags are those of TIFF 6.0 and of BigTIFF.
"""

import struct
from dataclasses import dataclass

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION = 256, 257, 258, 259, 262, 274
SAMPLES, PLANAR, COLORMAP, EXTRA, FORMAT, SUBSAMPLING = 277, 284, 320, 338, 339, 530
# The tags that the pixels need: these, and those of strips, tiles, predictor and JPEG's tables.
KINDS = {WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR, COLORMAP, EXTRA, FORMAT, SUBSAMPLING}
PLACES = {266, 273, 278, 279, 292, 293, 317, 322, 323, 324, 325, 332, 347, *range(512, 522), 529, 531, 532}
NEEDED = KINDS | PLACES
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}  # bytes by type
CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # unsigned integers by type
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
COMPRESSIONS = {
    1: "",
    5: "LZW",
    6: "JPEG",
    7: "JPEG",
    8: "Deflate",
    32773: "PackBits",
    32946: "Deflate",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    34925: "LZMA",
    50000: "Zstandard",
    50001: "WebP",
    50002: "JPEG XL",
}
MOST = 65535  # tags of a page that are read


@dataclass(frozen=True)
class Tiff:
    """The first page of a TIFF. `tags`: number -> (type, count, bytes); `pages`: whether there are more."""

    order: str  # "<" or ">"
    tags: dict[int, tuple[int, int, bytes]]
    pages: bool

    def values(self, tag: int, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The integers of a tag; the default if it is not there or has no integers."""
        kind, count, data = self.tags.get(tag, (0, 0, b""))
        if kind not in CODES or not data:
            return default
        return struct.unpack(f"{self.order}{count}{CODES[kind]}", data)

    def value(self, tag: int, default: int) -> int:
        return self.values(tag, (default,))[0]

    @property
    def bits(self) -> int:
        """Bits of the widest sample."""
        return max(self.values(BITS, (1,)))

    @property
    def number(self) -> str:
        """The type of a sample: uint, int, float or other."""
        kinds = set(self.values(FORMAT, (1,)))
        return {1: "uint", 2: "int", 3: "float"}.get(*kinds, "other") if len(kinds) == 1 else "other"

    @property
    def inverted(self) -> bool:
        """Whether it is 16-bit grey where 0 is white, which Pillow does not invert."""
        return self.value(PHOTOMETRIC, -1) == WHITE_IS_ZERO and self.bits == 16

    def __str__(self) -> str:
        """In words: '64-bit float pixels', '16-bit colours in separate planes, with LZW compression'."""
        samples, photometric = self.value(SAMPLES, 1), self.value(PHOTOMETRIC, -1)
        number = {"uint": "", "int": " signed", "float": " float", "other": " other"}[self.number]
        what = "colours" if photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO) and samples > 1 else "pixels"
        several = f" of {samples} channels" if samples > 1 and (what == "pixels" or samples > 4) else ""
        planes = " in separate planes" if samples > 1 and self.value(PLANAR, 1) == 2 else ""
        white = {WHITE_IS_ZERO: " where 0 is white", -1: " that do not say whether 0 is black"}.get(photometric, "")
        code = self.value(COMPRESSION, 1)
        packed = COMPRESSIONS.get(code, f"number {code}")
        return f"{self.bits}-bit{number} {what}{several}{planes}{white}" + (packed and f", with {packed} compression")

    def wrongly_read(self) -> bool:
        """Whether Pillow would read wrong pixels without an error."""
        photometric = self.value(PHOTOMETRIC, -1)
        if self.value(SAMPLES, 1) > 1 and self.value(PLANAR, 1) == 2:
            return self.bits > 8 or photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE)
        if photometric == YCBCR and self.value(COMPRESSION, 1) == 1:
            return self.values(SUBSAMPLING, (2, 2)) != (1, 1)
        return photometric == -1 or (photometric == WHITE_IS_ZERO and self.number != "uint")

    def alone(self, content: bytes) -> bytes:
        """The file as Pillow reads it: only this page, with only its needed tags, which are written at the end.

        It is always an ordinary TIFF: a BigTIFF becomes one, as its offsets are below 4 GiB. A colour map of 8-bit
        levels becomes one of 16 bits, as the standard asks. `inverted` grey is marked as black-is-zero; the caller
        inverts it.
        """
        tags = {tag: entry for tag, entry in self.tags.items() if tag in NEEDED}
        if self.inverted:
            tags[PHOTOMETRIC] = self._shorts(BLACK_IS_ZERO)
        colours = self.values(COLORMAP)
        if colours and max(colours) < 256:
            tags[COLORMAP] = self._shorts(*(257 * level for level in colours))
        start = len(content) + len(content) % 2
        entries, data = [], []
        place = start + 2 + 12 * len(tags) + 4
        for tag, (kind, count, value) in sorted(tags.items()):
            if kind == 16:  # eight bytes, only in a BigTIFF
                kind = 4
                value = struct.pack(f"{self.order}{count}I", *struct.unpack(f"{self.order}{count}Q", value))
            if len(value) > 4:
                data.append(value + bytes(len(value) % 2))
                value = struct.pack(self.order + "I", place)
                place += len(data[-1])
            entries.append(struct.pack(self.order + "HHI", tag, kind, count) + value.ljust(4, b"\0"))
        header = (b"II" if self.order == "<" else b"MM") + struct.pack(self.order + "HI", 42, start)
        count = struct.pack(self.order + "H", len(tags))
        return b"".join([header, content[8:], bytes(len(content) % 2), count, *entries, bytes(4), *data])

    def _shorts(self, *values: int) -> tuple[int, int, bytes]:
        return 3, len(values), struct.pack(f"{self.order}{len(values)}H", *values)


def read(content: bytes) -> Tiff | None:
    """The tags of the first page; None if it is no TIFF. Raises `ValueError` if the list of tags is damaged."""
    order = {b"II": "<", b"MM": ">"}.get(content[:2])
    if order is None or {*content[2:4]} not in ({0, 42}, {0, 43}):
        return None
    big = 43 in content[2:4]
    try:
        (start,) = struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), content, start)
        entry, offset, inline = (order + "HHQ8s", "Q", 8) if big else (order + "HHI4s", "I", 4)
        if count > MOST:
            raise ValueError(f"a TIFF that claims {count} tags")
        start += 8 if big else 2
        tags, left = {}, len(content)
        for number in range(count):
            tag, kind, length, value = struct.unpack_from(entry, content, start + number * struct.calcsize(entry))
            size = length * SIZES.get(kind, 0)
            if tag in tags or size == 0 or (tag not in NEEDED and tag != ORIENTATION):
                continue
            if size > inline:
                left -= size  # values that do not overlap are together no longer than the file
                if left < 0:
                    raise ValueError("a TIFF whose tags are longer than the file")
                (place,) = struct.unpack(order + offset, value)
                value = content[place : place + size]
                if len(value) < size:
                    continue
            tags[tag] = kind, length, value[:size]
        (following,) = struct.unpack_from(order + offset, content, start + count * struct.calcsize(entry))
    except (struct.error, OverflowError):
        raise ValueError("a TIFF whose list of tags is cut off") from None
    return Tiff(order, tags, following != 0)
