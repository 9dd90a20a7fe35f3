"""Kinds of TIFF: the right pixels, or a refusal that names the kind. The files are made here, byte by byte."""

import struct

import numpy as np
import pytest
from PIL import Image

from ssl.data.decode import BadImage, decode, has_pages

GREY = np.linspace(0, 255, 6 * 8).round().astype(np.uint8).reshape(6, 8)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], 2)
TYPES = {"u": 1, "i": 2, "f": 3}


def tiff(*strips: bytes, order="<", big=False, following=False, **tags) -> bytes:
    """A TIFF of 8 × 6 pixels in strips, with tags as t258=(8, 8, 8), or t262=None for one that is left out."""
    head, inline, wide, entry = (16, 8, "Q", "HHQ") if big else (8, 4, "I", "HHI")
    starts = [head + sum(map(len, strips[:number])) for number in range(len(strips))]
    numbers = {
        256: (8,),
        257: (6,),
        258: (8,),
        259: (1,),
        262: (1,),
        273: starts,
        277: (1,),
        278: (6,),
        279: [len(strip) for strip in strips],
    }
    numbers |= {int(tag[1:]): values for tag, values in tags.items()}
    numbers = {tag: values for tag, values in sorted(numbers.items()) if values}
    start = head + sum(map(len, strips))
    place = start + (8 if big else 2) + len(numbers) * (20 if big else 12) + inline
    entries, data = b"", b""
    for tag, values in numbers.items():
        kind, code = ((16, "Q") if big else (4, "I")) if tag in (273, 279) else (3, "H")
        body = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(body) > inline:
            data, body = data + body, struct.pack(order + wide, place + len(data))
        entries += struct.pack(order + entry, tag, kind, len(values)) + body.ljust(inline, b"\0")
    mark = b"II" if order == "<" else b"MM"
    header = mark + (struct.pack(order + "HHHQ", 43, 8, 0, start) if big else struct.pack(order + "HI", 42, start))
    count = struct.pack(order + ("Q" if big else "H"), len(numbers))
    after = struct.pack(order + wide, start if following else 0)
    return b"".join([header, *strips, count, entries, after, data])


def of(levels: np.ndarray, order="<", **tags) -> bytes:
    """Of an array (6, 8) or (6, 8, 3), one sample after another."""
    samples = 1 if levels.ndim == 2 else levels.shape[2]
    kind = {
        "t258": (8 * levels.itemsize,) * samples,
        "t339": (TYPES[levels.dtype.kind],) * samples,
        "t277": (samples,),
        "t262": (1 if samples == 1 else 2,),
    }
    return tiff(levels.astype(levels.dtype.newbyteorder(order)).tobytes(), order=order, **(kind | tags))


def written(tmp_path, content: bytes):
    (tmp_path / "a.tif").write_bytes(content)
    return tmp_path / "a.tif"


DEEP = GREY.astype(np.uint16) * 257
PLANES = [plane.tobytes() for plane in COLOUR.transpose(2, 0, 1)]
TWELVE = np.packbits(
    np.unpackbits((GREY.astype(">u2") * 16 + GREY // 16).astype(">u2").view(np.uint8)).reshape(-1, 16)[:, 4:]
).tobytes()
COLOUR_MAP = (*range(256), *range(0, 512, 2)[:128], *[7] * 128, *range(255, -1, -1))


@pytest.mark.parametrize(
    "content, expected",
    [
        (of(GREY), GREY),
        (of(COLOUR), COLOUR),
        (of(GREY, t262=(0,)), 255 - GREY),
        (of(DEEP), GREY),
        (of(DEEP, ">"), GREY),
        (of(DEEP, t262=(0,)), 255 - GREY),
        (of(DEEP, ">", t262=(0,)), 255 - GREY),
        (tiff(TWELVE, t258=(12,)), GREY),
        (tiff(COLOUR.tobytes(), big=True, t258=(8, 8, 8), t277=(3,), t262=(2,)), COLOUR),
        (tiff(COLOUR.tobytes(), order=">", big=True, t258=(8, 8, 8), t277=(3,), t262=(2,)), COLOUR),
        (tiff(DEEP.astype(">u2").tobytes(), order=">", big=True, t258=(16,)), GREY),
        (tiff(*PLANES, t258=(8, 8, 8), t277=(3,), t262=(2,), t284=(2,)), COLOUR),
        (tiff(GREY.tobytes(), t262=(3,), t320=tuple(257 * level for level in COLOUR_MAP)), "map"),
        (tiff(GREY.tobytes(), t262=(3,), t320=COLOUR_MAP), "map"),
    ],
    ids=[
        "grey",
        "colour",
        "white is zero",
        "16",
        "16 big-endian",
        "16 white is zero",
        "16 both",
        "12",
        "BigTIFF",
        "BigTIFF big-endian",
        "BigTIFF big-endian 16",
        "planes",
        "colour map",
        "colour map of 8 bits",
    ],
)
def test_kinds_that_are_read(tmp_path, content, expected):
    if isinstance(expected, str):
        expected = np.array(COLOUR_MAP, np.uint8).reshape(3, 256).T[GREY]
    found = decode(written(tmp_path, content)).permute(1, 2, 0).numpy()
    assert np.array_equal(found, expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, 2))


def test_control_pillow_alone_reads_some_of_these_wrongly(tmp_path):
    with Image.open(written(tmp_path, tiff(GREY.tobytes(), t262=(3,), t320=COLOUR_MAP))) as image:
        assert not np.asarray(image.convert("RGB")).any()
    with Image.open(written(tmp_path, of(DEEP, t262=(0,)))) as image:
        assert np.array_equal(np.asarray(image), DEEP)  # not inverted


@pytest.mark.parametrize(
    "content, words",
    [
        (of(GREY / 255.0), "a TIFF of 64-bit float pixels"),
        (of((GREY / 255.0).astype(np.float16)), "a TIFF of 16-bit float pixels"),
        (of((COLOUR / 255.0).astype(np.float32)), "a TIFF of 32-bit float colours"),
        (of(DEEP[..., None].repeat(3, 2), t284=(2,)), "a TIFF of 16-bit colours in separate planes"),
        (tiff(TWELVE, order=">", t258=(12,), t262=(0,)), "a TIFF of 12-bit pixels where 0 is white"),
        (of((GREY / 255.0).astype(np.float32), t262=(0,)), "32-bit float pixels where 0 is white"),
        (of(COLOUR, t259=(34712,)), "8-bit colours, with JPEG 2000 compression"),
        (of(COLOUR, t259=(12345,)), "8-bit colours, with number 12345 compression"),
        (of(COLOUR, t262=(6,), t530=(2, 2)), "a TIFF of 8-bit colours"),
        (of(GREY, t262=None), "that do not say whether 0 is black"),
        (of(np.stack([GREY] * 5, 2), t262=(1,)), "8-bit pixels of 5 channels"),
        (of(GREY.astype(np.int16) - 100), r"16-bit signed pixels, here from -100 to 155, without a known range"),
        (of(GREY.view(np.int8)), "8-bit signed pixels, here from -126 to 125, without a known range"),
        (of(GREY.astype(np.uint32) << 24), "32-bit pixels, here from 0 to 4.27819e\\+09, without a known range"),
        (of((GREY / 250).astype(np.float32)), "32-bit float pixels, here from 0 to 1.02, without a known range"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_kinds_that_are_refused_by_name(tmp_path, content, words):
    with pytest.raises(BadImage, match=words):
        decode(written(tmp_path, content))


@pytest.mark.parametrize(
    "levels, black, white",
    [
        (GREY.astype(np.int16) * 16 - 1000, -1000, 3080),
        (GREY.astype(np.uint32) << 24, 0, 255 << 24),  # numbers that would be negative with a sign
        (GREY.view(np.int8), -128, 127),
        ((GREY / 250).astype(np.float32), 0, 1.02),
        (GREY.astype(np.uint16) * 16, 0, 4080),
        (GREY, 0, 255),
    ],
    ids=lambda value: str(getattr(value, "dtype", value)),
)
def test_a_value_range_says_what_black_and_white_are(tmp_path, levels, black, white):
    found = decode(written(tmp_path, of(levels)), value_range=(black, white)).numpy()
    expected = (levels.astype(np.float64) - black) / (white - black) * 65535
    assert found.dtype == np.uint16 and found.shape == (3, 6, 8)
    assert np.abs(found - expected).max() <= 0.5 + 1e-3


def test_more_pages_are_seen(tmp_path):
    assert has_pages(written(tmp_path, tiff(GREY.tobytes(), following=True)))
    assert not has_pages(written(tmp_path, tiff(GREY.tobytes())))


@pytest.mark.parametrize(
    "content",
    [
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"II+\0\x08\0\0\0" + b"\xff" * 8,
        b"MM\0+\0\x08\0\0\0\0\0\0\0\0\0\x10" + b"\xff" * 100,
        tiff(GREY.tobytes())[:60],
        tiff(GREY.tobytes(), t257=(60000,), t256=(60000,)),
        tiff(GREY.tobytes(), t258=(0,)),
    ],
    ids=["header", "offset", "BigTIFF offset", "2^64 tags", "tags cut off", "size", "no bits"],
)
def test_a_damaged_list_of_tags_is_one_bad_image(tmp_path, content):
    with pytest.raises(BadImage):
        decode(written(tmp_path, content))
