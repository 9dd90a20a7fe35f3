"""Images held in memory: the same bits, one copy for all, nothing left behind, and a refusal before it is too much."""

import contextlib
import os
import pickle
from dataclasses import replace
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from PIL import Image

from ssl.augment import View
from ssl.data import images, preload
from ssl.data.decode import BadImage, decode
from ssl.data.images import Images
from ssl.data.loader import plain_batches, training_batches
from ssl.data.order import Order
from ssl.data.prepare import prepare
from ssl.errors import UserError
from ssl.settings.shared import ImageSettings
from ssl.sources import datasets

CPU = torch.device("cpu")
VIEWS = [View(size=32, crop_scale=(0.08, 1.0))] * 2


def photograph(path, width, height, **options):
    """A picture that has something at every place."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([x * 255 / width, y * 255 / height, 128 + 100 * np.sin(x * y / 300)], -1)
    Image.fromarray(pixels.astype(np.uint8)).save(path, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Small and large JPEGs, a turned one, a PNG with transparency, a large PNG, and three that cannot be read."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(8):
        photograph(folder / f"small_{number}.jpg", 90 + number, 70)
    turned = Image.Exif()
    turned[0x0112] = 6
    photograph(folder / "turned.jpg", 100, 70, exif=turned)
    photograph(folder / "large.jpg", 400, 300)
    photograph(folder / "large_turned.jpg", 300, 280, exif=turned)
    photograph(folder / "large.png", 400, 300)
    Image.new("RGBA", (80, 90), (10, 200, 30, 90)).save(folder / "clear.png")
    whole = (folder / "small_0.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no picture")
    (folder / "zero.png").write_bytes(b"")
    return folder


def load(folder, size=32):
    return datasets.load("folder", str(folder), "unlabelled", image_size=size)


def batches(data, workers, steps=4):
    """What a run is fed: every number of a few batches, in order."""
    order = Order(len(data), 4, 1, 1, seed=3)
    return [
        (batch.index, [part for view in batch.views for part in view], batch.labels, sorted(batch.bad))
        for batch in training_batches(data, VIEWS, order, 0, steps, workers, CPU)
    ]


def same(some, others) -> bool:
    return len(some) == len(others) and all(
        torch.equal(a[0], b[0]) and all(map(torch.equal, a[1], b[1])) and a[3] == b[3] for a, b in zip(some, others)
    )


def test_batches_have_the_same_bits_with_and_without(folder):
    plain = load(folder)
    held = preload.hold(plain, size=32)
    expected = batches(plain, 0)
    assert same(batches(held, 0), expected) and same(batches(held, 2), expected)
    spawned = pickle.loads(pickle.dumps(held))  # as a worker gets it that is not forked
    assert same(batches(spawned, 0), expected) and spawned.held.fd != held.held.fd
    assert os.fstat(spawned.held.fd).st_ino == os.fstat(held.held.fd).st_ino
    assert any(bad for *_, bad in expected)  # files that cannot be read are among them
    assert held.fingerprint(str(folder)) == plain.fingerprint(str(folder))


def test_a_large_jpeg_held_as_pixels_would_give_other_bits(folder):
    """The control: what is held for smaller views is whole, and large crops would be made of it."""
    plain, wrongly = load(folder), preload.hold(load(folder), size=500)
    assert not same(batches(wrongly, 0), batches(plain, 0))


def test_what_is_held_is_not_read_again_and_what_is_not_is_told(folder, monkeypatch):
    held = preload.hold(load(folder), size=32)
    kinds = {Path(path).name: bool(row[2]) for path, row in zip(held.paths, held.held.table) if row[1]}
    assert {name for name, as_pixels in kinds.items() if not as_pixels} == {"large.jpg", "large_turned.jpg"}
    assert {Path(path).name for path in held.paths} - set(kinds) == {"cut.jpg", "text.jpg", "zero.png"}
    read = []
    monkeypatch.setattr("ssl.data.decode.content", lambda path: read.append(Path(path).name) or b"")
    for index in range(len(held)):
        with contextlib.suppress(BadImage):
            held.pixels(index)
    assert sorted(read) == ["cut.jpg", "text.jpg", "zero.png"]


def test_judging_and_subsets_see_the_same(folder):
    chosen = torch.tensor([9, 2, 3, 0])
    plain, held = (data.subset(chosen) for data in (load(folder), preload.hold(load(folder), 32)))
    for (a, _, bad), (b, _, same_bad) in zip(*(plain_batches(data, 24, 3, 1, CPU) for data in (plain, held))):
        assert torch.equal(a, b) and bad == same_bad
    assert torch.equal(held.pixels(0), decode(plain.paths[0]))


@pytest.mark.parametrize("size, said", [(41, True), (40, False), (None, False), ("auto", False)])
def test_a_short_side_below_the_views_is_told_of(folder, capsys, size, said):
    datasets.load("folder", str(folder), "unlabelled", short_side=40, image_size=size)
    assert ("short_side 40 is below image_size" in capsys.readouterr().out) == said


@pytest.mark.parametrize("side", [40, 75])
def test_with_a_short_side_larger_images_are_reduced_as_prepare_reduces_them(folder, tmp_path, side):
    prepare(folder, tmp_path / "small", side, quality=100, workers=0)
    held = datasets.load("folder", str(folder), "unlabelled", short_side=side)
    assert held.held is not None and all(row[2] for row in held.held.table if row[1])  # as pixels, large JPEGs, too
    for index, path in enumerate(held.paths):
        copy = tmp_path / "small" / Path(path).name
        if not copy.exists():  # it cannot be read
            with pytest.raises(BadImage):
                held.pixels(index)
            continue
        whole, found, expected = decode(path), held.pixels(index), decode(copy)
        assert found.shape == expected.shape and min(found.shape[1:]) == min(side, *whole.shape[1:])
        if min(whole.shape[1:]) <= side:
            assert torch.equal(found, whole)
        kept = slice(None) if copy.suffix == ".png" else slice(2)  # a JPEG loses the fine pattern of the third
        assert (found.float() - expected.float())[kept].abs().mean() < 4  # of 255


def test_images_reduced_as_they_are_read_have_the_bits_of_those_held(folder):
    plain = load(folder)
    held, reduced = preload.hold(plain, 32, 40), replace(plain, short_side=40)
    assert same(batches(reduced, 2), batches(held, 0)) and not same(batches(plain, 0), batches(held, 0))
    for (a, _, bad), (b, _, same_bad) in zip(*(plain_batches(data, 24, 4, 0, CPU) for data in (reduced, held))):
        assert torch.equal(a, b) and bad == same_bad


def test_a_short_side_keeps_a_value_range(tmp_path):
    y, x = np.mgrid[:80, :120]
    Image.fromarray((x * 30 + y).astype(np.uint16)).save(tmp_path / "deep.png")
    data = datasets.load("folder", str(tmp_path), "unlabelled", value_range=(0, 4095), short_side=40)
    found = data.pixels(0)
    assert found.dtype == torch.uint16 and found.shape == (3, 40, 60)
    expected = (x * 30 + y).reshape(40, 2, 60, 2).mean((1, 3)) / 4095 * 65535
    assert abs(found[0].numpy().astype(float) - expected)[2:-2, 2:-2].max() < 100  # of 65535


def test_with_a_value_range_large_jpegs_are_held_as_pixels(tmp_path):
    for quality in range(70, 100):  # until the file has an odd number of bytes
        photograph(tmp_path / "0.jpg", 200, 200, quality=quality)
        if (tmp_path / "0.jpg").stat().st_size % 2:
            break
    photograph(tmp_path / "1.png", 60, 60)
    plain = datasets.load("folder", str(tmp_path), "unlabelled", value_range=(0, 255))
    held = preload.hold(plain, 32)
    assert all(torch.equal(held.pixels(index), plain.pixels(index)) for index in range(2))
    assert held.held.table[:, 2:].tolist() == [[200, 200], [60, 60]]


def test_settings_hold_images_whole_or_reduced(folder):
    plain = load(folder)
    for settings, shape in ((ImageSettings(preload=True), (3, 300, 400)), (ImageSettings(short_side=30), (3, 30, 40))):
        settings.image_size = 32
        held = preload.as_asked(settings, plain)
        assert held.pixels([Path(path).name for path in plain.paths].index("large.png")).shape == shape
        assert preload.as_asked(settings, held) is held
    assert preload.as_asked(ImageSettings(), plain) is plain


def test_what_is_in_memory_already_stays_as_it_is():
    noise = Images("fake", torch.zeros(4), [], resident=torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    assert preload.hold(noise, 8) is noise


def test_a_held_image_cannot_be_written_to(folder):
    held = preload.hold(load(folder), 32)
    with pytest.raises((TypeError, ValueError)):
        memoryview(held.held.table).cast("B")[0] = 1


# Several processes ----------------------------------------------------------------

RANKS = r"""
import os, sys
import ssl
ssl.__path__ = [sys.argv[1] + "/ssl"]
from ssl import distributed
from ssl.sources import datasets
from ssl.data import preload
from ssl.errors import UserError

def attempt(word):
    try:
        held = preload.hold(data, 32)
        result = os.fstat(held.held.fd).st_ino
        assert all((held.pixels(i) == data.pixels(i)).all() for i in range(len(data)))
    except UserError as error:
        result = error
    os.write(1, f"\n{word}|{rank}|{result}\n".encode())

distributed.join("cpu")
data = datasets.load("folder", sys.argv[2], "unlabelled", image_size=32)
rank = distributed.rank()
fill, free_memory = preload._fill, preload.free_memory
if rank == 1:
    def no_more(*_):
        raise MemoryError("no more")
    preload._fill = no_more
attempt("memory")
preload._fill = fill
if rank == 1:
    preload.free_memory = lambda *_: (1000, "this machine")
attempt("shortage")
preload.free_memory = free_memory
attempt("held")
distributed.barrier()
os.kill(os.getpid(), 9)
"""


def test_the_processes_of_a_machine_hold_one_copy_and_meet_one_error(tmp_path, folder):
    """A fault of one, twice, and then none; at the end they are killed, after which nothing is left."""
    script, small = tmp_path / "ranks.py", tmp_path / "eight"
    small.mkdir()
    for number in range(8):
        os.link(folder / f"small_{number}.jpg", small / f"{number}.jpg")
    script.write_text(RANKS)
    before = os.listdir("/dev/shm")
    done = forked.run(script, Path(preload.__file__).parents[2], small, processes=2)
    said = [line.split("|") for line in done.stdout.splitlines() if "|" in line]
    results = {word: {result for other, _, result in said if other == word} for word, *_ in said}
    assert len(said) == 6, done.stdout + done.stderr
    assert all(len(found) == 1 for found in results.values())  # both ranks: the same error, the same file
    assert "could not be held in memory (MemoryError: no more)" in min(results["memory"])
    assert "leave --preload out" in min(results["shortage"]) and min(results["held"]).isdecimal()
    assert not {name for name in os.listdir("/dev/shm") if "preload" in name} - set(before)


# Does it fit? ---------------------------------------------------------------------


def tree(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


MEMINFO = "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n"


@pytest.mark.parametrize(
    "files, free, whose",
    [
        ({"proc/meminfo": MEMINFO}, 8000 * 1024, "this machine"),
        ({}, 1 << 62, "this machine"),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/job/step\n",
                "cg/job/memory.max": "5000000",
                "cg/job/memory.current": "2000000",
                "cg/job/memory.stat": "inactive_file 300000\nactive_file 100000\nfile 9\n",
                "cg/job/step/memory.max": "max",
                "cg/job/step/memory.current": "1",
                "cg/job/step/memory.stat": "",
            },
            3_400_000,
            "this job's or container's memory limit",
        ),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "5:cpu:/x\n4:memory:/not/mounted/here\n0::/\n",
                "cg/memory/memory.limit_in_bytes": "5000000",
                "cg/memory/memory.usage_in_bytes": "6000000",
                "cg/memory/memory.stat": "total_inactive_file 500000\nactive_file 7\n",
            },
            0,
            "this job's or container's memory limit",
        ),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "4:memory:/\n",
                "cg/memory/memory.limit_in_bytes": f"{2**63 - 4096}",
                "cg/memory/memory.usage_in_bytes": "1",
                "cg/memory/memory.stat": "",
            },
            8000 * 1024,
            "this machine",
        ),
    ],
)
def test_free_memory_is_that_of_the_machine_or_a_tighter_limit(tmp_path, files, free, whose):
    tree(tmp_path, files)
    assert preload.free_memory(tmp_path / "proc", tmp_path / "cg") == (free, whose)


def test_too_much_is_refused_before_anything_is_decoded_with_what_to_do(folder, monkeypatch):
    monkeypatch.setattr(preload, "free_memory", lambda *_: (500_000, "this machine"))
    data = load(folder)
    monkeypatch.setattr(images, "decode", None)
    with pytest.raises(UserError) as raised:
        preload.hold(data, 32)
    for words in ("preload: the decoded images take 0.0 GB", "this machine has free", "ssl.data.prepare", "--preload"):
        assert words in str(raised.value)


def test_images_that_do_not_fit_reduced_are_reduced_as_they_are_read(folder, monkeypatch, capsys):
    held = preload.hold(load(folder), 32, 40)
    monkeypatch.setattr(preload, "free_memory", lambda *_: (50_000, "this machine"))
    unheld = preload.hold(load(folder), 32, 40)
    assert unheld.held is None and "decoded every time it is read" in capsys.readouterr().out
    readable = [index for index, path in enumerate(held.paths) if "small" in path]
    assert readable and all(torch.equal(held.pixels(index), unheld.pixels(index)) for index in readable)


def test_where_memory_cannot_be_shared_that_is_said(folder, monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(UserError, match="preload: needs Linux; leave --preload out"):
        preload.hold(load(folder), 32)


def test_a_file_that_has_changed_since_its_header_was_read_is_read_as_without(folder, monkeypatch):
    measured = preload._size
    monkeypatch.setattr(preload, "_size", lambda *arguments: tuple(2 * part for part in measured(*arguments)))
    held, plain = preload.hold(load(folder), 32), load(folder)
    assert not held.held.table[:, 1].any()
    assert torch.equal(
        held.pixels(list(plain.paths).index(str(folder / "small_3.jpg"))), decode(folder / "small_3.jpg")
    )
