"""Files by others: whatever their bytes are, they are read right or refused in one line, and nothing else happens.

Each promise has its control beside it: what the same file does where the mechanism is not asked.
"""

import contextlib
import dataclasses
import io
import json
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import chunk
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from running import ROOT, run, tiny
from torchvision.datasets import cifar

import evaluate
import train
from ssl.checkpoints import inherit, pretrained, torch_file
from ssl.checkpoints.run_folder import RunFolder
from ssl.data import decode as decoding
from ssl.data.bad_images import BadImages
from ssl.data.decode import BadImage, decode
from ssl.encoders import build_encoder
from ssl.errors import UserError, one_line
from ssl.settings import config
from ssl.sources import datasets
from ssl.training.bad_steps import BadSteps
from ssl.training.log import Metrics

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow and PyTorch comment on what is fed to them here

few, many = (settings(max_examples=count, deadline=None) for count in (60, 400))


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


# Settings ---------------------------------------------------------------------------

syntax = st.text(st.sampled_from("ab1e-+.:,[]{}!&*?|>'\"#%@`~<= \n\t\\xu0"), max_size=60)
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**64), 2**64),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
        syntax,
        st.sampled_from(["1e-3", "0x10", "089", "no", "1_0", "12:30", "=", "<<", "null"]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=8,
)


@many
@given(st.one_of(syntax.map(str.encode), st.binary(max_size=40), st.text(max_size=40).map(str.encode)))
@example(b"a: !!timestamp x")
@example(b"a: !!int ''")
@example(b"? []\n: 1\n? []\n: 2\n")
@example(b"seed: " + b"9" * 5000)
@example(b"k: " + b"{" * 5000)
@example(b"lr: 1" + b"0" * 400)
def test_any_settings_file_is_settings_or_one_clear_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    try:
        assert isinstance(config.read_yaml(path), dict)
        train.check(config.parse(train.Settings, ["--config", str(path)])[0])
    except UserError as error:
        assert str(error)


@many
@given(values)
def test_settings_that_are_written_read_back_as_they_were(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    config.write_yaml(path, {"key": value})
    assert config.read_yaml(path) == {"key": value}


fields = st.sampled_from([f"--{f.name}" for f in dataclasses.fields(train.Settings)])
numbers = st.sampled_from(["0", "-1", "2", "1e400", "nan", "[1, 2]", "{}"])
words = st.one_of(fields, numbers, syntax, st.text(max_size=10))


@many
@given(st.lists(words.filter(lambda word: word not in ("-h", "--help")), max_size=5))
@example(["--lr", "1" + "0" * 400])
@example(["--output_dir", '"\\0"'])
def test_any_command_line_is_settings_or_one_clear_error(arguments):
    try:
        train.check(config.parse(train.Settings, arguments, recipe=train.find_recipe)[0])
    except UserError as error:
        assert "\n" not in one_line(error)


def test_a_word_that_is_no_path_is_refused_before_it_is_one(tmp_path):
    (tmp_path / "a.yaml").write_text(r'output_dir: "a\0b"' + "\n")
    with pytest.raises(UserError, match=r"output_dir: .* has characters that no file name can have"):
        config.parse(train.Settings, ["--config", str(tmp_path / "a.yaml")])


# PyTorch files -------------------------------------------------------------------------


def saved(value, **options) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def with_pickle(
    content: bytes, compression=zipfile.ZIP_STORED, zeros: int | None = None, called: str = "data.pkl"
) -> bytes:
    """A file of PyTorch with another list of contents, `called` so; `zeros`: and so many bytes of numbers."""
    file = io.BytesIO()
    whole = zipfile.ZipFile(io.BytesIO(saved({"a": torch.arange(6.0).reshape(2, 3)})))
    with zipfile.ZipFile(file, "w", compression) as out:
        for name in whole.namelist():
            part = bytes(zeros) if zeros and name.endswith("data/0") else whole.read(name)
            part = content or part if name.endswith("data.pkl") else part
            record = zipfile.ZipInfo(name.replace("data.pkl", called))
            out.writestr(record, part, compression)
            record.external_attr = 0  # no mode, as torch writes it; the list of contents comes last
    return file.getvalue()


def pickled_tensor(size: bytes, stride: bytes, numel=b"K\6") -> bytes:
    return (
        b"\x80\2}X\1\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0"
        b"0X\3\0\0\0cpu" + numel + b"tQK\0" + size + stride + b"\x89ccollections\nOrderedDict\n)RtRs."
    )


def tensor_of(size: bytes, stride: bytes) -> bytes:
    """A tensor of the file's numbers, alone on the stack of a pickle."""
    whole = pickled_tensor(size, stride)
    return whole[whole.index(b"ctorch._utils") : -2]


PAIRS, THREE = tensor_of(b"K\3K\2\x86", b"K\2K\1\x86"), tensor_of(b"K\3\x85", b"K\1\x85")
TWO = tensor_of(b"K\2\x85", b"K\1\x85")
HUGE = b"J\xff\xff\xff\x0f"  # 2^28 - 1
PICKLES = {
    "stride 0": pickled_tensor(HUGE + HUGE + b"\x86", b"K\0K\0\x86"),
    "beyond its numbers": pickled_tensor(b"K\xffK\xff\x86", b"K\3K\1\x86"),
    "more numbers than there are": pickled_tensor(b"K\2K\3\x86", b"K\3K\1\x86", numel=HUGE),
    "bytearray": b"\x80\2cbuiltins\nbytearray\n" + HUGE + b"\x85R.",
    "Tensor of no numbers": b"\x80\2ctorch\nTensor\n" + HUGE + b"\x85R.",
    "deep": b"\x80\2" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "holds itself": b"\x80\2]q\0h\0a.",
    "doubling": b"\x80\2]q\0" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)) + b".",
    "hidden method": b"\x80\2ccollections\nOrderedDict\n)R}X\5\0\0\0itemsK\1sb.",
    "large integer": b"\x80\2\x8a\xff" + b"\x7f" * 255 + b".",
    "claims a long word": b"\x80\2X\xff\xff\xff\xf0abc",
    "unfinished": b"\x80\2}",
    "set of a tensor": b"\x80\2cbuiltins\nset\n" + THREE + b"\x85R.",
    "set of a kept tensor": b"\x80\2" + THREE + b"q\0cbuiltins\nset\n(h\0tR.",
    "mapping of a tensor": b"\x80\2ccollections\nOrderedDict\n" + PAIRS + b"\x85R.",
    "set of a tensor, another operation between": b"\x80\2cbuiltins\nset\n" + THREE + b"\x80\2\x85R.",
    "mapping of a list of tensors": b"\x80\2ccollections\nOrderedDict\n]" + TWO + b"a\x85R.",
    "attributes of a list of tensors": b"\x80\2ccollections\nOrderedDict\n)R]" + TWO + b"ab.",
    "storage of any size": b"\x80\2ctorch.storage\nUntypedStorage\n\x8a\x08"
    + (10**15).to_bytes(8, "little")
    + b"\x85R.",
    "numbers counted by a tensor": b"\x80\2(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0aX\3\0\0\0cpu"
    + tensor_of(HUGE + HUGE + b"\x86", b"K\0K\0\x86")
    + b"tQ.",
    "tensor of arguments": b"\x80\2ccollections\nOrderedDict\n" + tensor_of(b"K\1K\3K\2\x87", b"K\6K\2K\1\x87") + b"R.",
}
TAKEN_APART = [name for name in PICKLES if "of a" in name and "tensor" in name]


@pytest.mark.parametrize("name", PICKLES)
def test_what_claims_more_than_the_file_has_is_refused(tmp_path, name):
    for file, content in (("zip", with_pickle(PICKLES[name])), ("old", old_format(PICKLES[name]))):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(UserError, match=rf"{file}: (refused|damaged)"):
            torch_file.load(tmp_path / file)


@pytest.mark.parametrize("name", TAKEN_APART)
def test_a_tensor_is_not_made_into_an_object_for_each_number(tmp_path, name):
    torch.load(io.BytesIO(with_pickle(PICKLES[name])), weights_only=True)  # the control
    (tmp_path / "x.pt").write_bytes(with_pickle(PICKLES[name]))
    with pytest.raises(
        UserError, match=r"refused: it holds a(n unexpected BUILD| call that torch.save does not write),"
    ):
        torch_file.load(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["storage of any size", "numbers counted by a tensor"])
def test_a_file_does_not_ask_for_memory(tmp_path, name):
    """Else a file by others would be told as a lack of memory, and the user sent to look for more."""
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        torch.load(io.BytesIO(with_pickle(PICKLES[name])), weights_only=True)  # the control
    (tmp_path / "x.pt").write_bytes(with_pickle(PICKLES[name]))
    for load in (torch_file.load, torch_file.load_foreign):
        with pytest.raises(UserError, match=r"x\.pt: refused"):
            load(tmp_path / "x.pt")


def calls_with_a_tensor(rng: random.Random) -> bytes:
    """A pickle of a few operations in any order, on tensors and on what may be called."""
    names = [f"c{name}\n".encode() for name in ("builtins\nset", "collections\nOrderedDict", "collections\nCounter")]
    others = [b"ctorch\nSize\n", b"]", b"}", b")", b"(", b"q\0", b"h\0", b"\x80\2", b"K\1"]
    ends = [b"\x85", b"\x86", b"t", b"a", b"e", b"s", b"u", b"b", b"\x81"]
    return (
        b"\x80\2"
        + rng.choice(names)
        + b"".join(
            rng.choice([[TWO], [PAIRS], names, others, ends, ends, [b"\x85R"], [b"R"]][rng.randrange(8)])
            for _ in range(rng.randrange(2, 8))
        )
        + b"R."
    )


def test_no_pickle_that_is_taken_goes_through_a_tensor(tmp_path, monkeypatch):
    gone_through, by_torch, taken = [], 0, 0
    through = torch.Tensor.__iter__
    monkeypatch.setattr(torch.Tensor, "__iter__", lambda self: gone_through.append(1) or through(self))
    rng = random.Random(0)
    for _ in range(800):
        content = with_pickle(calls_with_a_tensor(rng))
        with contextlib.suppress(Exception):
            torch.load(io.BytesIO(content), weights_only=True)
        by_torch += bool(gone_through)
        gone_through.clear()
        (tmp_path / "x.pt").write_bytes(content)
        with contextlib.suppress(UserError):
            torch_file.load_foreign(tmp_path / "x.pt")
            taken += 1
        assert not gone_through, content
    assert by_torch > 9 and taken > 9  # the control


@pytest.mark.parametrize("called", ["data.pkl", "DATA.PKL", "Data.pkl"])
def test_the_pickle_is_looked_at_in_upper_and_lower_case(tmp_path, called):
    content = with_pickle(PICKLES["Tensor of no numbers"], called=called)
    assert torch.load(io.BytesIO(content), weights_only=True).numel() > 2**27  # the control: torch finds it
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"refused: it holds torch\.Tensor,"):
        torch_file.load(tmp_path / "x.pt")


def test_a_file_with_two_lists_of_contents_is_refused(tmp_path):
    """Python takes the list before the end; torch the one that the end points to, where two records are exchanged."""
    content = saved({"a": torch.ones(9), "b": torch.zeros(9)})
    end = bytearray(content[-98:])
    (start,) = struct.unpack("<Q", end[48:56])
    true = content[start:-98]
    other = true.replace(b"data/0", b"data/x").replace(b"data/1", b"data/0").replace(b"data/x", b"data/1")
    between = start + len(other)  # a second end of the list
    end[48:56], end[64:72] = struct.pack("<Q", between + 56), struct.pack("<Q", between)
    content = content[:start] + other + content[-98:-42] + true + end
    assert zipfile.ZipFile(io.BytesIO(content)).testzip() is None
    assert torch.load(io.BytesIO(content), weights_only=True)["b"].sum() == 9  # the control: of the other list
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match="not where its end says"):
        torch_file.load(tmp_path / "x.pt")


def test_pytorch_itself_takes_some_of_them():
    """The control: without our look at them these load."""
    taken = {}
    for name in ("stride 0", "Tensor of no numbers", "deep", "holds itself", "doubling", "hidden method"):
        taken[name] = torch.load(io.BytesIO(with_pickle(PICKLES[name])), weights_only=True)
    assert taken["stride 0"]["a"].numel() > 2**50 and taken["Tensor of no numbers"].numel() > 2**27
    bomb = with_pickle(b"", zipfile.ZIP_DEFLATED, zeros=24)
    assert torch.load(io.BytesIO(bomb), weights_only=True)["a"].sum() == 0  # compressed records are read


def old_format(content: bytes) -> bytes:
    """The format before 2020: magic, version, machine, contents, keys of the numbers."""
    first = saved({}, _use_new_zipfile_serialization=False)
    file, ends = io.BytesIO(first), []
    for _ in range(4):
        pickle.load(file)
        ends.append(file.tell())
    return first[: ends[2]] + content + first[ends[3] :]


def test_compressed_and_shifted_records_are_refused(tmp_path):
    bomb = with_pickle(b"", zipfile.ZIP_DEFLATED, zeros=100_000_000)
    assert len(bomb) < 200_000
    (tmp_path / "bomb.pt").write_bytes(bomb)
    with pytest.raises(UserError, match="compressed"):
        torch_file.load(tmp_path / "bomb.pt")
    (tmp_path / "two.pt").write_bytes(b"PK\3\4" + saved({"a": 1}))  # Python finds a zip file that torch does not see
    with pytest.raises(UserError, match="not where its end says"):
        torch_file.load(tmp_path / "two.pt")


def test_old_files_of_tensors_are_still_read(tmp_path):
    value = {"a": torch.randn(3), "b": [1, 2.5, "x", None, (torch.float16, torch.Size([2]))]}
    (tmp_path / "old.pt").write_bytes(saved(value, _use_new_zipfile_serialization=False))
    back = torch_file.load(tmp_path / "old.pt")
    assert torch.equal(back["a"], value["a"]) and back["b"] == value["b"]


@pytest.mark.parametrize("form", ["zip", "old", "pickle 0", "pickle 2", "pickle 4", "tar"])
def test_code_in_a_file_is_named_or_refused_and_never_run(tmp_path, form):
    ran, path = tmp_path / "ran", tmp_path / "x.pt"
    value = {"model": {"w": torch.zeros(2)}, "extra": [Payload(ran)]}
    if form in ("zip", "old"):
        path.write_bytes(saved(value, _use_new_zipfile_serialization=form == "zip"))
    elif form == "tar":
        with tarfile.open(path, "w") as tar:
            for name in ("storages", "tensors", "pickle", "../../escaped"):
                (tmp_path / "part").write_bytes(pickle.dumps(Payload(ran)))
                tar.add(tmp_path / "part", arcname=name)
    else:
        path.write_bytes(pickle.dumps(Payload(ran), protocol=int(form[-1])))
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UserError, match=r"refused: it holds .*\.mkdir" if form in ("zip", "old") else "x.pt: "):
        torch_file.load(path)
    assert sorted(os.listdir(tmp_path)) == before
    if form in ("zip", "old"):
        torch.load(path, weights_only=False)  # the control: this is live
        assert ran.is_dir()


WHOLE = {"a": torch.arange(5), "b": {"c": [1, 2.5, None, "x"]}}
FILES = [saved(WHOLE), saved(WHOLE, _use_new_zipfile_serialization=False)]


@many
@given(
    st.booleans(),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4),
)
def test_any_damage_is_found_or_does_none(tmp_path_factory, old, early, changes):
    """The old format has no checksums: there a damaged file may load, with other numbers."""
    content = bytearray(FILES[old])
    end = min(700, len(content)) if early else len(content)  # most of a small file is padding
    for place, change in changes:
        content[place % end] ^= change
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    path.write_bytes(content)
    try:
        back = torch_file.load(path)
    except UserError as error:
        assert "damaged.pt: " in str(error)
    else:
        assert old or (torch.equal(back["a"], WHOLE["a"]) and back["b"] == WHOLE["b"])


def test_weights_under_names_that_are_no_words_are_refused(tmp_path):
    w = torch.zeros(2)
    for number, value in enumerate(({1: w}, {"model": {1: w}}, {"a\x1b[2J\nb": w})):
        torch_file.save(value, tmp_path / f"{number}.pt")
        with pytest.raises(UserError) as raised:
            pretrained.load_encoder(build_encoder("ssl.encoders.SmallResNet", 32)[0], tmp_path / f"{number}.pt")
        assert one_line(raised.value).isprintable()


# Images ------------------------------------------------------------------------------------


def picture(kind: str, **options) -> bytes:
    levels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, kind, **options)
    return file.getvalue()


LYING = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
PICTURES = [
    picture("JPEG"),
    picture("JPEG", progressive=True, exif=LYING),
    picture("PNG"),
    picture("GIF"),
    picture("BMP"),
    picture("PPM"),
    picture("WEBP"),
    picture("WEBP", lossless=True),
    picture("TIFF"),
    picture("TIFF", compression="tiff_lzw"),
    picture("TIFF", compression="jpeg"),
]


@settings(max_examples=600, deadline=None)
@given(
    st.sampled_from(PICTURES),
    st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=6)), min_size=1, max_size=4),
    st.booleans(),
    st.integers(0, 5000),
)
def test_any_damaged_image_is_pixels_or_a_bad_image(tmp_path_factory, content, changes, early, cut):
    content = bytearray(content)
    for place, junk in changes:  # headers are where the harm is
        place %= min(200, len(content)) if early else len(content)
        content[place : place + len(junk)] = junk
    path = tmp_path_factory.getbasetemp() / "any.jpg"
    path.write_bytes(content[:-cut] if 0 < cut < len(content) else content)
    limit, decoding.LARGEST_IMAGE = decoding.LARGEST_IMAGE, 4_000_000
    try:
        pixels = decode(path, lambda height, width: 2)
        assert pixels.dtype == torch.uint8 and pixels.ndim == 3 and pixels.shape[0] == 3
        assert pixels.numel() <= 3 * decoding.LARGEST_IMAGE
    except BadImage as error:
        assert error.reason.isprintable() and error.reason
    finally:
        decoding.LARGEST_IMAGE = limit


def png(width, height, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(min(height * (1 + 3 * width), 1000)))
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(*tags: tuple) -> bytes:
    """An 8 × 8 grey TIFF with additional (tag, type, count, value) entries."""
    entries = {
        256: (3, 1, 8),
        257: (3, 1, 8),
        258: (3, 1, 8),
        259: (3, 1, 1),
        262: (3, 1, 1),
        273: (4, 1, 8),
        278: (3, 1, 8),
        279: (4, 1, 64),
    }
    entries |= {tag: rest for tag, *rest in tags}
    body = b"".join(struct.pack("<HHII", tag, *rest) for tag, rest in sorted(entries.items()))
    return b"II*\0" + struct.pack("<I", 72) + bytes(64) + struct.pack("<H", len(entries)) + body + bytes(4)


BOMBS = {
    "200k x 200k": png(200_000, 200_000),
    "text that grows": png(4, 4, *[chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50_000_000)))] * 20),
    "profile that grows": png(4, 4, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(200_000_000)))),
    "tag of 4 GB": tiff((700, 1, 0xFFFFFFF0, 8)),
    "strip of 4 GB": tiff((279, 4, 1, 0xFFFFFFF0)),
    "size of 4 G": tiff((256, 4, 1, 0xFFFFFFF0), (257, 4, 1, 0xFFFFFFF0)),
    "million tags": tiff(*((1000 + i, 1, 0xFFFFFFF0, 8) for i in range(5000))),
    "BigTIFF of 2^60 tags": b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1 << 60) + bytes(1000),
    "tags longer than the file": tiff((258, 3, 0x10000000, 8)) + bytes(1000),
    "gif screen": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\2\1\0\0;",
    "bmp palette": b"BM"
    + struct.pack("<IHHI", 100, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 8, 0, 64, 0, 0, 0x7FFFFFF0, 0),
    "webp canvas": b"RIFF\x30\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0" + b"\xff" * 6 + b"ANIM\6\0\0\0" + bytes(6),
    "ppm": b"P6 200000 200000 255\n",
}


def test_image_bombs_take_no_memory(tmp_path):
    """Each in one process that may have 2 GB beyond what it has."""
    for name, content in BOMBS.items():
        (tmp_path / f"{name}.png").write_bytes(content)
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1]); import ssl; ssl.__path__ = [sys.argv[1] + '/ssl']\n"
        "from ssl.data.decode import decode, BadImage; from pathlib import Path\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + (2 << 30),) * 2)\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sorted(Path(sys.argv[2]).iterdir()):\n"
        "    try: print(path.stem, tuple(decode(path).shape))\n"
        "    except BadImage as error: print(path.stem, 'bad', error.reason[:60])\n"
        "print('MB', (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(ROOT), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *outcomes, memory = done.stdout.splitlines()
    assert len(outcomes) == len(BOMBS)
    assert float(memory.split()[1]) < 500


def fake_ghostscript(folder: Path) -> Path:
    (folder / "bin").mkdir()
    (folder / "bin" / "gs").write_text(f"#!/bin/sh\nmkdir -p {folder}/ran\nexit 1\n")
    (folder / "bin" / "gs").chmod(0o755)
    return folder / "bin"


def test_postscript_under_an_images_name_starts_no_interpreter(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{fake_ghostscript(tmp_path)}:{os.environ['PATH']}")
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(BadImage, match="its content is none of JPEG, PNG"):
        decode(path)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(Exception), Image.open(path) as image:  # noqa: B017, the control, whatever it says
        image.load()
    assert (tmp_path / "ran").exists()


def test_files_that_are_something_else_are_bad_images(tmp_path):
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as out:
        out.addfile(tarfile.TarInfo("a.jpg"))
    others = {
        "html": b"<html>404</html>",
        "pickle": pickle.dumps(Payload(tmp_path / "ran")),
        "tar": tar.getvalue(),
        "pdf": b"%PDF-1.4\n",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "torch": saved({"a": 1}),
        "psd": picture_of("ICO"),
        "tga": picture_of("TGA"),
        "pcx": picture_of("PCX"),
        "text": b"x" * 1000,
    }
    for name, content in others.items():
        (tmp_path / f"{name}.jpg").write_bytes(content)
        with pytest.raises(BadImage, match="its content is none of"):
            decode(tmp_path / f"{name}.jpg")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "png.jpg").write_bytes(picture("PNG"))  # a wrong extension of a listed kind is no harm
    assert decode(tmp_path / "png.jpg").shape == (3, 20, 24)


def picture_of(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, kind)
    return file.getvalue()


def test_what_is_no_ordinary_file_is_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "zero.jpg"):
        with pytest.raises(BadImage, match="is no ordinary file"):
            decode(tmp_path / name)
    with pytest.raises(UserError, match="no images"):
        datasets.load("folder", str(tmp_path), "train")


def test_more_bytes_than_a_photograph_has_are_not_read(tmp_path):
    with open(tmp_path / "a.jpg", "wb") as file:
        file.truncate(decoding.LARGEST_FILE + 1)  # takes no room on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImage, match="more than any photograph has"):
        decode(tmp_path / "a.jpg")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def test_the_limit_of_pixels_is_the_one_that_is_said(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(picture("PNG"))
    monkeypatch.setattr(decoding, "LARGEST_IMAGE", 480)
    assert decode(tmp_path / "a.png").shape == (3, 20, 24)
    monkeypatch.setattr(decoding, "LARGEST_IMAGE", 479)
    with pytest.raises(BadImage, match="24×20 pixels is more than any photograph has"):
        decode(tmp_path / "a.png")
    assert Image.MAX_IMAGE_PIXELS == 200_000_000  # so that Pillow does not refuse less


def test_numbers_that_are_none_are_no_pixels(tmp_path):
    for level in (float("nan"), -1.0, 300.0, 0.5):
        Image.fromarray(np.full((4, 4), level, np.float32)).save(tmp_path / "a.tif")
        with pytest.raises(BadImage, match="without a known range"):
            decode(tmp_path / "a.tif")


# Data sets of torchvision ---------------------------------------------------------------------


def test_code_in_a_data_sets_pickles_is_not_run(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    for split in ("train", "test"):
        with pytest.raises(UserError, match="CIFAR10 is not in"):
            datasets.load("CIFAR10", str(tmp_path), split)
    assert not (tmp_path / "ran").exists()
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)  # the control: torchvision's look at the checksum
    with pytest.raises(TypeError):
        datasets.load("CIFAR10", str(tmp_path), "train")
    assert (tmp_path / "ran").exists()


# A run folder somebody gave you ------------------------------------------------------------------


def test_an_encoder_named_by_a_strangers_run_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_room.py").write_text(
        f"import os, torch\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Net(torch.nn.Flatten): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    theirs = {"encoder": "evil_room.Net", "encoder_kwargs": {"start_dim": 1}, "image_size": 32}
    with pytest.raises(UserError, match=r"--encoder evil_room\.Net --encoder_kwargs '\{\"start_dim\": 1\}'"):
        inherit.fill(evaluate.Settings(), theirs)
    assert not (tmp_path / "ran").exists()
    settings = evaluate.Settings(encoder="evil_room.Net")
    inherit.fill(settings, theirs)
    build_encoder(settings.encoder, 32)  # the control: who says so gets it
    assert (tmp_path / "ran").exists()
    for harmless in ("resnet18", "ssl.encoders.SmallResNet", "torchvision.models.resnet.ResNet"):
        inherit.fill(evaluate.Settings(), theirs | {"encoder": harmless})


@pytest.mark.parametrize("name", [".x", "x.", "..", "os.system", "ssl.encoders.nn", "ssl.encoders.", "a b.c", "ssl..x"])
def test_paths_of_no_encoder_are_refused(name):
    with pytest.raises(UserError, match="encoder: "):
        build_encoder(name, 32)


def test_sizes_that_no_encoder_has_are_refused():
    for kwargs in ({"width": -1}, {"width": "x"}, {"width": 10**7}, {"stages": [1]}):
        with pytest.raises(UserError, match="does not take encoder_kwargs"):
            build_encoder("ssl.encoders.SmallResNet", 32, kwargs=kwargs)


junk = st.one_of(
    st.binary(max_size=80),
    st.recursive(
        st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=5)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["step", "path", "reason", "state"]), inner)
        ),
        max_leaves=5,
    ).map(lambda value: json.dumps(value).encode()),
)


@few
@given(st.lists(junk, max_size=4))
@example([b"[" * 100_000])
@example([b'{"step": "x"}', b'{"step": 1e999}', b"\xff\xfe"])
def test_any_lines_in_a_run_folder_are_taken_or_left(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("run")
    for name in ("metrics.jsonl", "bad_images.jsonl", "bad_steps.jsonl", "status.json"):
        (folder / name).write_bytes(b"\n".join(lines))
    metrics = Metrics(folder / "metrics.jsonl", 3)
    metrics.write(step=4)
    metrics.close()
    assert json.loads((folder / "metrics.jsonl").read_text("utf-8").splitlines()[-1]) == {"step": 4}
    BadImages(folder, 100, 1.0, {})
    BadSteps(folder).write(3, 0, [], lambda: [])
    RunFolder(folder, 2).failed("a reason")
    assert json.loads((folder / "status.json").read_bytes())["state"]


@pytest.mark.slow
def test_names_that_steer_terminals_and_links_that_lead_out_do_nothing(tmp_path):
    """Trained and judged from files whose names are as bad as names can be."""
    data, victim, folder = tmp_path / "data", tmp_path / "victim", tmp_path / "run"
    names = [b"a\nb", b"\x1b[2Jc", b"$(touch ran)", b"-rf", b"\xff\xfe", "名前".encode(), b"=1+1", b"a'\"b"]
    for number, name in enumerate(names * 5):
        path = os.fsencode(data) + b"/%c/%d" % (b"xy"[number % 2], number) + name + b".png"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (70, 70, 3), dtype=np.uint8)
        Image.fromarray(noise).save(os.fsdecode(path))
    ruined = os.fsdecode(os.fsencode(data) + b"/x/ruined\x1b[2J\nforged line\xff.png")
    Path(ruined).write_bytes(b"<html>")
    done = run("train.py", *tiny(batch_size=8, epochs=3), data_dir=data, output_dir=folder)
    assert "\x1b" not in done.stdout + done.stderr
    listed = [json.loads(line)["path"] for line in (folder / "bad_images.jsonl").read_text().splitlines()]
    victim.write_text("precious")
    (folder / "results.json").symlink_to(victim)
    done = run("evaluate.py", model_path=folder, protocol=["knn", "features"], batch_size=8)
    assert victim.read_text() == "precious" and not (folder / "results.json").is_symlink()
    assert "\x1b" not in done.stdout and not any(line.startswith("forged") for line in done.stdout.splitlines())
    assert r"ruined\x1b[2J\nforged line\udcff.png" in done.stdout and listed in ([ruined], [])
    features = torch.load(folder / "features.pt", weights_only=True)
    judged = {os.fsencode(name) for split in ("train", "test") for name in features[split]["names"]}
    assert judged == {os.fsencode(path) for path in data.rglob("*.png")} - {os.fsencode(ruined)}


def test_one_line_is_one_printable_line():
    generator = random.Random(0)
    for _ in range(1000):
        text = "".join(chr(generator.randrange(0x3000)) for _ in range(10)) + "\udcff"
        assert one_line(text).isprintable()
    assert one_line("plain × text") == "plain × text"
