"""Files as people have them: every mode converted, every ruin named by its path."""

import io
import multiprocessing
import os
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from drawn import chunk, hollow_png
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ssl.data.decode import BadImage, decode
from ssl.data.images import Paths
from ssl.data.listing import list_images


def saved(path, image, **options):
    image.save(path, **options)
    return path


def colour(path) -> list[int]:
    """The one colour of a plain picture."""
    pixels = decode(path)
    assert pixels.dtype == torch.uint8 and pixels.shape[0] == 3
    return pixels.float().mean((1, 2)).round().int().tolist()


def test_rgb_pixels_are_those_of_the_file(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    pixels = decode(saved(tmp_path / "a.png", Image.fromarray(levels)))
    assert torch.equal(pixels, torch.from_numpy(levels).permute(2, 0, 1))


@pytest.mark.parametrize(
    "mode, value, expected",
    [
        ("L", 77, [77, 77, 77]),
        ("1", 1, [255, 255, 255]),
        ("RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("RGBA", (10, 20, 30, 0), [255, 255, 255]),  # transparent lies on white
        ("LA", (40, 255), [40, 40, 40]),
        ("I;16", 32896, [128, 128, 128]),  # half of 65535, not clipped to white
        ("I;16", 65535, [255, 255, 255]),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, value, expected):
    assert colour(saved(tmp_path / "a.png", Image.new(mode, (4, 3), value))) == expected


def test_palette_and_cmyk_become_rgb(tmp_path):
    palette = Image.new("RGB", (4, 3), (250, 10, 90)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert colour(saved(tmp_path / "a.gif", palette)) == [250, 10, 90]
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red, green, blue = colour(saved(tmp_path / "a.jpg", cmyk, quality=95))
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_level_of_grey_becomes_white_at_any_depth(tmp_path, bits):
    most, count = 2**bits - 1, 8
    levels = np.linspace(0, most, count).round().astype(int)
    packed = int("".join(f"{level:0{bits}b}" for level in levels), 2).to_bytes(count * bits // 8, "big")

    for clear in {*levels.tolist()}:
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", count, 1, bits, 0, 0, 0, 0))
        rows = chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")
        for transparent in (b"", chunk(b"tRNS", struct.pack(">H", clear))):
            (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + transparent + rows)
            wanted = [most if transparent and level == clear else level for level in levels]
            assert (decode(tmp_path / "a.png") == torch.tensor([round(255 * level / most) for level in wanted])).all()
        if bits == 16:  # the levels of a value range are kept: white may be outside it
            kept = decode(tmp_path / "a.png", value_range=(0, 65535))
            assert (kept == torch.from_numpy(levels.astype(np.uint16))).all()


UPRIGHT = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((24, 20), 3)
)
BACK = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transposition of the upright image to the stored one


@pytest.mark.parametrize("name", ["a.tif", "lzw.tif", "grey16.tif", "a.png", "grey16.png", "a.webp", "a.jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_gives_the_upright_pixels_and_the_size_that_was_told(tmp_path, name, orientation):
    image = Image.fromarray(UPRIGHT[..., 0].astype(np.uint16) * 257 if "16" in name else UPRIGHT)
    expected = decode(saved(tmp_path / "upright.png", image)).numpy()
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image.transpose(Image.Transpose(BACK[orientation])) if orientation > 1 else image
    kind = {"lzw.tif": {"compression": "tiff_lzw"}, "a.webp": {"lossless": True}, "a.jpg": {"quality": 95}}
    stored.save(tmp_path / name, exif=exif, **kind.get(name, {}))
    told = []
    found = decode(tmp_path / name, lambda height, width: told.append((height, width)) or 1).numpy()
    assert found.shape == (3, *told[0]) == expected.shape == (3, 20, 24)
    difference = np.abs(found.astype(float) - expected)
    assert difference.max() == 0 if name != "a.jpg" else difference.mean() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(1, 5), (5, 1), (1, 1)])
def test_orientation_of_lines(tmp_path, orientation, size):
    upright = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    image, exif = Image.fromarray(upright), Image.Exif()
    exif[0x0112] = orientation
    stored = image.transpose(Image.Transpose(BACK[orientation])) if orientation > 1 else image
    stored.save(tmp_path / "a.png", exif=exif)
    assert torch.equal(decode(tmp_path / "a.png"), torch.from_numpy(upright).permute(2, 0, 1))


def exif_with(kind: int, numerator: int, denominator: int, order: bytes = b"MM") -> bytes:
    """Orientation 6, and a resolution of this type and value."""
    orientation = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    resolution = struct.pack(">HHII", 0x011A, kind, 1, 38) + bytes(4) + struct.pack(">II", numerator, denominator)
    return b"Exif\0\0" + order + struct.pack(">HIH", 42, 8, 2) + orientation + resolution


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.jpg"])
@pytest.mark.parametrize(
    "exif, turned",
    [
        (exif_with(12, 0x7FF80000, 0), True),  # a resolution that is not a number
        (exif_with(10, 2**31, 1), True),
        (exif_with(5, 72, 0), True),
        (exif_with(5, 72, 1)[:-8], True),  # cut off
        (exif_with(5, 72, 1, b"XX"), False),  # no byte order: the orientation cannot be known
        (exif_with(5, 72, 1, b"II"), False),  # the other one
    ],
    ids=["not a number", "too large", "without end", "cut off", "no byte order", "wrong byte order"],
)
def test_damaged_exif_costs_no_pixels(tmp_path, name, exif, turned):
    options = {"lossless": True} if name == "a.webp" else {}
    plain = decode(saved(tmp_path / f"plain-{name}", Image.fromarray(UPRIGHT), **options)).numpy()
    found = decode(saved(tmp_path / name, Image.fromarray(UPRIGHT), exif=exif, **options)).numpy()
    assert np.array_equal(found, plain.swapaxes(1, 2)[:, :, ::-1] if turned else plain)


def test_control_pillow_alone_fails_on_such_exif(tmp_path):
    for exif in (exif_with(12, 0x7FF80000, 0), exif_with(10, 2**31, 1), exif_with(5, 72, 1, b"XX")):
        path = saved(tmp_path / "a.png", Image.fromarray(UPRIGHT), exif=exif)
        with pytest.raises((ValueError, struct.error, SyntaxError)):
            ImageOps.exif_transpose(Image.open(path))


NOISE = np.random.default_rng(0).bytes(2_000_000)


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(NOISE, 0)),
        chunk(b"iCCP", b"profile\0\7"),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2_000_000))),
        chunk(b"eXIf", exif_with(5, 72, 1)[6:], whole=False),
        chunk(b"gAMA", b"\0"),
        chunk(b"pHYs", b"\0\0"),
    ],
    ids=["profile of 2 MB", "profile of no kind", "comment of 2 MB", "checksum of eXIf", "gamma", "resolution"],
)
def test_chunks_that_no_pixel_needs_cost_no_pixels(tmp_path, extra):
    path = saved(tmp_path / "a.png", Image.fromarray(UPRIGHT))
    plain, content = decode(path), path.read_bytes()
    path.write_bytes(content[:33] + extra + content[33:])  # behind the header
    with pytest.raises((ValueError, SyntaxError, OSError)):  # the control
        Image.open(path).load()
    assert torch.equal(decode(path), plain)


def test_the_chunks_that_pixels_need_stay(tmp_path):
    clear = Image.new("P", (4, 3), 1)
    clear.putpalette([9, 9, 9, 200, 100, 50])
    assert colour(saved(tmp_path / "a.png", clear, transparency=1)) == [255, 255, 255]
    path = saved(tmp_path / "b.png", Image.fromarray(UPRIGHT))
    content = path.read_bytes()
    profile = b"Raw profile type exif\0\nexif\n      38\n" + exif_with(5, 72, 1)[:-8].hex().encode()
    path.write_bytes(content[:33] + chunk(b"tEXt", profile) + content[33:])  # as ImageMagick keeps EXIF
    assert decode(path).shape == (3, 24, 20)


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>not found</html>", jpeg()[:500], jpeg()[:-200], hollow_png(20_000, 20_000), hollow_png(8, 8)],
    ids=["empty", "html", "cut early", "cut late", "bomb", "hollow"],
)
def test_a_ruined_file_is_named_by_its_path(tmp_path, content):
    path = tmp_path / "ruin.jpg"
    path.write_bytes(content)
    with pytest.raises(BadImage, match=r"ruin\.jpg: "):
        decode(path)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 700), st.binary(min_size=1, max_size=8))
def test_damaged_bytes_give_pixels_or_bad_image_and_nothing_else(tmp_path_factory, place, junk):
    content = bytearray(jpeg())
    content[place : place + len(junk)] = junk
    path = tmp_path_factory.mktemp("images") / "a.jpg"
    path.write_bytes(content)
    try:
        assert decode(path).shape[0] == 3
    except BadImage as error:
        assert str(path) in str(error)


def test_only_images_are_listed_in_byte_order(tmp_path):
    for name in ("b.JPG", "a.png", "B.jpg", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    assert [str(p) for p in list_images(tmp_path)] == ["B.jpg", "a.png", "b.JPG"]


def test_paths_are_those_that_were_put_in(tmp_path):
    given = ["/a/b.jpg", "", "/ä/\udcff.png", "/c d/é.jpg"]  # the third was not UTF-8 on the disk
    paths = Paths(given)
    assert list(paths) == given and paths == given and len(paths) == 4 and paths[-1] == given[-1]
    assert paths != given[:3] and list(pickle.loads(pickle.dumps(paths))) == given and not Paths([])
    for index in (4, -5):
        with pytest.raises(IndexError):
            paths[index]


def _grown_by_reading(paths, answer):
    def own():
        return sum(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if "Private_Dirty" in line) / 1024

    before = own()
    for index in range(len(paths)):
        paths[index]
    answer.put(own() - before)


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="a process's own memory is not told here")
def test_forked_workers_share_the_paths_that_they_read():
    given = [f"/data/imagenet/train/n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in range(300_000)]
    fork = multiprocessing.get_context("fork")
    grown = []
    for paths in (given, Paths(given)):  # a list is the control
        answer = fork.Queue()
        worker = fork.Process(target=_grown_by_reading, args=(paths, answer))
        worker.start()
        grown.append(answer.get(timeout=300))
        worker.join()
    assert grown[0] > 20 and grown[1] < 5, grown
