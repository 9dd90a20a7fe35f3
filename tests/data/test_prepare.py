"""A folder of large images becomes one of small images: same names, whole files, whatever happens on the way."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image, ImageOps

from ssl import files
from ssl.data import keys
from ssl.data import prepare as room
from ssl.data.decode import decode, stored
from ssl.data.prepare import prepare
from ssl.errors import UserError
from ssl.sources import datasets

ROOT = Path(__file__).resolve().parents[2]


def levels(width=240, height=160, seed=0) -> np.ndarray:
    """A smooth picture (H, W, 3), all three channels different."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def picture(path: Path, size=(240, 160), seed=0, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels(*size, seed)).save(path, **options)
    return path


def tree(root: Path, each=3) -> Path:
    for seed, name in enumerate(("train/cat", "train/dog/brown", "val/cat", "val/dog")):
        for i in range(each):
            picture(root / name / f"image {i}.{('jpg', 'png', 'JPEG')[i % 3]}", seed=10 * seed + i)
    return root


def contents(root: Path) -> dict[str, bytes]:
    """Every file below `root`, hidden ones too; what the copies were made of is test_learnt_from.py's."""
    found = (path for path in root.rglob("*") if path.is_file() and path.name != keys.SOURCES)
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def small(tmp_path: Path, **options) -> Path:
    prepare(tmp_path / "src", tmp_path / "dst", options.pop("short_side", 64), workers=0, **options)
    return tmp_path / "dst"


# what is made


def test_tree_names_and_labels_stay_and_only_images_are_taken(tmp_path, capsys):
    source = tree(tmp_path / "src")
    (source / "train" / "notes.txt").write_text("mine")
    (source / "train" / ".hidden.png").write_bytes(b"x")
    target = small(tmp_path, short_side=100)
    assert "12 images" in capsys.readouterr().out.splitlines()[-1]
    images = {name for name in contents(source) if name.endswith(("jpg", "png", "JPEG")) and "hidden" not in name}
    assert contents(target).keys() == images | {"prepare.json"}
    for split in ("train", "test"):
        before, after = (datasets.load("folder", str(root), split) for root in (source, target))
        assert [Path(p).relative_to(source) for p in before.paths] == [Path(p).relative_to(target) for p in after.paths]
        assert before.classes == after.classes == ["cat", "dog"] and torch.equal(before.labels, after.labels)
        assert before.fingerprint(str(source)) == after.fingerprint(str(target))
        assert {tuple(after.pixels(i).shape) for i in range(len(after))} == {(3, 100, 150)}


@pytest.mark.parametrize("size", [(240, 160), (160, 240), (101, 100), (100, 101), (333, 90), (65, 65), (1300, 1297)])
def test_the_size_is_that_of_torchvision_resize(tmp_path, size):
    path = picture(tmp_path / "src" / "a.jpg", size)
    assert decode(small(tmp_path) / "a.jpg").shape == TF.resize(decode(path), [64]).shape


@pytest.mark.parametrize("size", [(64, 64), (200, 64), (64, 200), (30, 20)])
def test_a_small_image_is_copied_byte_for_byte(tmp_path, size):
    path = picture(tmp_path / "src" / "a.jpg", size, quality=40)
    assert (small(tmp_path) / "a.jpg").read_bytes() == path.read_bytes()


def test_a_small_animation_and_small_16_bits_are_copied_whole(tmp_path):
    frames = [Image.new("L", (20, 20), level) for level in (0, 99, 200)]
    (tmp_path / "src").mkdir()
    frames[0].save(tmp_path / "src" / "a.gif", save_all=True, append_images=frames[1:])
    Image.new("I;16", (20, 20), 1000).save(tmp_path / "src" / "b.png")
    target = contents(small(tmp_path))
    target.pop("prepare.json")
    assert target == contents(tmp_path / "src")


def rgba() -> Image.Image:
    alpha = np.linspace(0, 255, 240).astype(np.uint8)[None, :, None].repeat(160, 0)
    return Image.fromarray(np.concatenate([levels(), alpha], 2))


def on_white(image: Image.Image) -> Image.Image:
    colour, alpha = np.split(np.asarray(image, dtype=float), [3], axis=2)
    return Image.fromarray((colour * alpha / 255 + 255 - alpha).round().astype(np.uint8))


RGB = Image.fromarray(levels())
DEEP = (levels()[..., 0].astype(int) * 257 + 3).clip(0, 65535).astype(np.uint16)


@pytest.mark.parametrize(
    "name, image, reference, kind, tolerance",
    [
        ("a.png", RGB, RGB, "PNG", 0),
        ("a.bmp", RGB, RGB, "BMP", 0),
        ("a.ppm", RGB, RGB, "PPM", 0),
        ("a.tif", RGB, RGB, "TIFF", 0),
        ("a.tiff", RGB.convert("L"), RGB.convert("L"), "TIFF", 0),
        ("a.pgm", RGB.convert("L"), RGB.convert("L"), "PPM", 0),
        ("a.jpg", RGB, None, "JPEG", 2),
        ("a.JPEG", RGB.convert("L"), None, "JPEG", 2),
        ("a.jpg", RGB.convert("CMYK"), None, "JPEG", 2),
        ("a.webp", RGB, None, "WEBP", 2),
        ("a.png", Image.fromarray(DEEP), RGB.getchannel(0), "PNG", 0.6),
        ("a.png", rgba(), on_white(rgba()), "PNG", 0.6),
        ("a.png", RGB.quantize(64), RGB.quantize(64).convert("RGB"), "PNG", 0),
        ("a.gif", RGB.quantize(64), RGB.quantize(64).convert("RGB"), "GIF", 4),
    ],
    ids=lambda value: getattr(value, "mode", value),
)
def test_pixels_are_those_of_an_independent_resize(tmp_path, name, image, reference, kind, tolerance):
    """`reference` None: the file itself, as Pillow reads it. Tolerance: mean difference in grey levels."""
    (tmp_path / "src").mkdir()
    image.save(tmp_path / "src" / name)
    if reference is None:
        reference = Image.open(tmp_path / "src" / name)
    whole = reference.convert("RGB")
    expected = np.asarray(whole.resize((96, 64), Image.Resampling.BICUBIC), dtype=float)
    expected = expected.clip(np.min(whole), np.max(whole))  # no number that the source does not reach
    made = small(tmp_path) / name
    assert Image.open(made).format == kind  # the extension tells the truth
    deep = image.mode.startswith("I")
    assert (Image.open(made).mode in ("L", "I;16", "I")) == (reference.mode == "L")  # grey stays grey
    assert Image.open(made).mode.startswith("I") == deep  # and 16 bits 16 bits
    difference = np.abs(decode(made).permute(1, 2, 0).numpy() - expected).mean()
    assert difference <= tolerance
    assert np.abs(expected[:, ::-1] - expected).mean() > 20  # a flat picture would agree with anything


@pytest.mark.parametrize("dtype, white", [(np.uint16, 4095), (np.uint8, 100)])
def test_a_value_range_of_the_source_holds_its_copy(tmp_path, dtype, white):
    """Bicubic overshoots at a square's edge."""
    (tmp_path / "src").mkdir()
    square = np.full((240, 160), white // 5, dtype)
    square[70:170, 40:120] = white
    for name in ("a.png", "a.tif"):
        Image.fromarray(square).save(tmp_path / "src" / name)
    target = small(tmp_path)
    for name in ("a.png", "a.tif"):
        levels = decode(target / name, value_range=(white // 5, white))[0].numpy()
        assert levels.min() == 0 and levels.max() == 65535
        assert abs(levels / 65535 - (levels > 32767)).mean() < 0.02  # the square, with soft edges


def test_deep_grey_is_scaled_to_16_bits_and_what_has_no_range_is_listed_in_words_of_this_command(tmp_path):
    y, x = np.mgrid[:240, :160]
    levels = (x * 20 + y * 3).astype(np.uint16)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.pgm").write_bytes(b"P5\n160 240\n4095\n" + levels.astype(">u2").tobytes())
    (tmp_path / "src" / "b.tif").write_bytes(twelve_bits(levels))
    Image.fromarray((levels / 4095).astype(np.float32)).save(tmp_path / "src" / "c.tif")
    Image.fromarray(levels.astype(np.int32)).save(tmp_path / "src" / "d.tif")
    assert prepare(tmp_path / "src", tmp_path / "dst", 80, workers=0) == 2
    for name in ("a.pgm", "b.tif"):
        copy, before = decode(tmp_path / "dst" / name).float(), decode(tmp_path / "src" / name).float()
        assert copy.shape == (3, 120, 80)
        assert (copy - before.unfold(1, 2, 2).unfold(2, 2, 2).mean((3, 4)))[:, 2:-2, 2:-2].abs().max() < 2  # of 255
    listed = [json.loads(line) for line in (tmp_path / "dst" / "bad_images.jsonl").read_text().splitlines()]
    assert [Path(entry["path"]).name for entry in listed] == ["c.tif", "d.tif"]
    for entry in listed:
        assert "without a known range" in entry["reason"] and "--short_side" in entry["reason"]
        assert "--value_range" not in entry["reason"]  # which this command does not have


def twelve_bits(levels: np.ndarray) -> bytes:
    """A TIFF of one strip of packed 12-bit grey."""
    a, b = (levels.reshape(-1, 2)[:, i].astype(int) for i in (0, 1))
    data = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1).astype(np.uint8).tobytes()
    height, width = levels.shape
    entries = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(entries)) + tags + bytes(4)


def test_a_jpeg_decoded_at_a_fraction_of_its_size_looks_the_same(tmp_path, monkeypatch):
    path = tmp_path / "src" / "a.jpg"
    path.parent.mkdir()
    coarse = np.random.default_rng(0).integers(0, 256, (20, 27), dtype=np.uint8)  # grey: JPEG blurs colour by itself
    Image.fromarray(coarse).resize((1603, 1205), Image.Resampling.BICUBIC).save(path, quality=95)
    decoded = []
    monkeypatch.setattr(room, "stored", lambda *args: decoded.append(stored(*args)) or decoded[-1])
    made = decode(small(tmp_path, quality=100) / "a.jpg")
    assert [found.numbers.shape for found in decoded] == [(151, 201, 3)]
    expected = np.asarray(Image.open(path).resize((85, 64), Image.Resampling.BICUBIC), dtype=float)
    assert np.abs(made[0].numpy() - expected).mean() < 1  # 4 where the ragged last column and row are forgotten


def test_exif_orientation_is_obeyed_once(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    path = picture(tmp_path / "src" / "a.jpg", exif=exif)
    made = decode(small(tmp_path) / "a.jpg")
    upright = ImageOps.exif_transpose(Image.open(path)).resize((64, 96), Image.Resampling.BICUBIC)
    assert made.shape == (3, 96, 64)
    assert np.abs(made.permute(1, 2, 0).numpy() - np.asarray(upright, dtype=float)).mean() < 2


def test_an_animation_gives_its_first_frame(tmp_path):
    (tmp_path / "src").mkdir()
    frames = [Image.new("L", (200, 100), level) for level in (40, 99, 200)]
    frames[0].save(tmp_path / "src" / "a.gif", save_all=True, append_images=frames[1:])
    made = small(tmp_path) / "a.gif"
    assert Image.open(made).n_frames == 1
    assert torch.equal(decode(made), torch.full((3, 64, 128), 40, dtype=torch.uint8))


def test_quality_decides_over_the_bytes(tmp_path):
    picture(tmp_path / "src" / "a.jpg")
    sizes = []
    for quality in (30, 95):
        prepare(tmp_path / "src", tmp_path / str(quality), 64, quality, workers=0)
        sizes.append((tmp_path / str(quality) / "a.jpg").stat().st_size)
    assert sizes[0] < 0.8 * sizes[1]


def test_two_processes_make_what_one_makes(tmp_path):
    tree(tmp_path / "src")
    picture(tmp_path / "src" / "train" / "cat" / "ruin.jpg").write_bytes(b"")
    assert prepare(tmp_path / "src", tmp_path / "two", 64, workers=2) == 1
    assert prepare(tmp_path / "src", tmp_path / "one", 64, workers=0) == 1
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert len(contents(tmp_path / "one")) == 12 + 2


# bad images


def test_a_bad_image_is_listed_and_the_rest_made_until_it_is_repaired(tmp_path, capsys):
    tree(tmp_path / "src")
    cut, empty = tmp_path / "src" / "train" / "cat" / "image 0.jpg", tmp_path / "src" / "val" / "empty.png"
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-300])
    empty.write_bytes(b"")
    assert prepare(tmp_path / "src", tmp_path / "dst", 64, workers=0) == 2
    listed = [json.loads(line) for line in (tmp_path / "dst" / "bad_images.jsonl").read_text().splitlines()]
    assert [entry["path"] for entry in listed] == [str(cut), str(empty)]
    assert "truncated" in listed[0]["reason"] and not listed[0]["reason"].startswith(str(cut))
    last = capsys.readouterr().out.splitlines()[-1]
    assert "11 images" in last and "2 bad" in last and "bad_images.jsonl" in last
    assert len(contents(tmp_path / "dst")) == 11 + 2

    cut.write_bytes(whole)
    empty.unlink()
    assert prepare(tmp_path / "src", tmp_path / "dst", 64, workers=0) == 0
    assert len(contents(tmp_path / "dst")) == 12 + 1


def test_a_source_that_went_bad_leaves_no_old_copy(tmp_path):
    picture(tmp_path / "src" / "b.png")
    path = picture(tmp_path / "src" / "a.png")
    target = small(tmp_path)
    path.write_bytes(b"ruined")
    os.utime(path, (1e9, 1e9))
    assert prepare(tmp_path / "src", target, 64, workers=0) == 1
    assert contents(target).keys() == {"b.png", "prepare.json", "bad_images.jsonl"}


# again


def identities(root: Path) -> dict[str, int]:
    """A file that is written anew is another inode."""
    return {name: (root / name).stat().st_ino for name in contents(root)}


def test_a_second_run_makes_what_is_missing_or_changed_and_no_more(tmp_path, capsys):
    source = tree(tmp_path / "src")
    target = small(tmp_path)
    before = identities(target)
    (target / "val/cat/image 0.jpg").rename(tmp_path / "kept, so that its inode is not given again")
    picture(source / "val/dog/image 1.png", seed=99)
    os.utime(source / "val/dog/image 1.png", (2e9, 2e9))  # newer
    picture(source / "val/dog/image 0.jpg", seed=99)
    os.utime(source / "val/dog/image 0.jpg", (1e9, 1e9))  # replaced by an older file
    (target / "val/cat/image 1.png").write_bytes(b"")  # what a power cut leaves
    os.utime(target / "val/cat/image 1.png", ns=(0, (source / "val/cat/image 1.png").stat().st_mtime_ns))
    picture(source / "val/dog/new.png", seed=98)
    small(tmp_path)
    assert "8 were there already" in capsys.readouterr().out.splitlines()[-1]
    after = identities(target)
    redone = {name for name in after if after[name] != before.get(name)}
    assert redone == {
        "val/cat/image 0.jpg",
        "val/cat/image 1.png",
        "val/dog/image 0.jpg",
        "val/dog/image 1.png",
        "val/dog/new.png",
    }
    prepare(source, tmp_path / "fresh", 64, workers=0)
    assert contents(target) == contents(tmp_path / "fresh")


def test_what_a_killed_run_left_is_no_image_and_goes_in_time(tmp_path, monkeypatch):
    tree(tmp_path / "src")
    target = small(tmp_path)
    leftover = target / "val" / "cat" / (files.PARTIAL + "0123")
    leftover.write_bytes(b"half an im")
    small(tmp_path)
    assert leftover.exists()  # it could be another run's
    assert len(datasets.load("folder", str(target), "test")) == 6
    monkeypatch.setattr(files, "ABANDONED", -1)
    small(tmp_path)
    assert not leftover.exists() and len(contents(target)) == 12 + 1


def environment() -> dict[str, str]:
    dropped = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "PYTHONPATH")
    return {key: value for key, value in os.environ.items() if key not in dropped} | {"OMP_NUM_THREADS": "1"}


def launch(*args) -> subprocess.CompletedProcess:
    return forked.run("-m", "ssl.data.prepare", *args, env=environment())


def stopped_in_the_middle(tmp_path: Path, number: int, whole_group: bool) -> tuple[int, str]:
    """Send a signal to a run that has made some of its 150 images; (its exit status, what it said)."""
    first = picture(tmp_path / "src" / "000.png", (700, 500))
    for i in range(1, 150):
        shutil.copy(first, tmp_path / "src" / f"{i:03}.png")
    folders = [str(tmp_path / "src"), str(tmp_path / "dst")]
    command = [sys.executable, "-m", "ssl.data.prepare", *folders, "--short_side", "200", "--workers", "2"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test in the background ignores it
    ) as process:
        while len(list((tmp_path / "dst").glob("*.png"))) < 3:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        (os.killpg if whole_group else os.kill)(process.pid, number)
        said = process.communicate(timeout=300)[1]
    made = list((tmp_path / "dst").glob("*.png"))
    assert 3 <= len(made) < 150
    assert {tuple(decode(path).shape) for path in made} == {(3, 200, 280)}  # whole, every one
    return process.returncode, said


@pytest.mark.slow
def test_a_killed_run_is_continued(tmp_path):
    status, _ = stopped_in_the_middle(tmp_path, signal.SIGKILL, whole_group=True)
    assert status == -signal.SIGKILL
    before = identities(tmp_path / "dst")
    small(tmp_path, short_side=200)
    after = identities(tmp_path / "dst")
    assert all(after[name] == before[name] for name in before)
    assert len(list((tmp_path / "dst").glob("*.png"))) == 150
    assert (tmp_path / "dst" / "149.png").read_bytes() == (tmp_path / "dst" / "000.png").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [True, False], ids=["control-C", "kill -INT"])
def test_an_interrupted_run_leaves_no_debris(tmp_path, whole_group):
    status, said = stopped_in_the_middle(tmp_path, signal.SIGINT, whole_group)
    assert status == -signal.SIGINT  # a shell calls this 130, and its loops end, too
    assert "interrupted" in said and "the same command makes what is missing" in said and "Traceback" not in said
    assert not list((tmp_path / "dst").glob(files.PARTIAL + "*"))


SLOW_FILES = """
import sys, time
from pathlib import Path
from torch.utils.data import dataloader
from ssl import files
from ssl.data import made_folder

dataloader.MP_STATUS_CHECK_INTERVAL = 0.1  # seconds that a DataLoader's end waits for a worker, twice

def attempt(name):
    with files.replacing(Path(sys.argv[1], name)) as partial:
        partial.write_text("half")
        time.sleep(1)
        partial.write_text("whole")

made_folder.run("slow", lambda: made_folder.in_workers([str(i) for i in range(99)], attempt, 2, 99))
"""


def test_control_c_waits_for_the_files_that_are_being_written(tmp_path):
    """Each takes a second and more than a DataLoader's end would wait: some are half written when the signal comes."""
    command = [sys.executable, "-c", SLOW_FILES, str(tmp_path)]
    options = {"cwd": ROOT, "env": environment(), "stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    with subprocess.Popen(command, **options, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as run:
        while len(list(tmp_path.glob("[0-9]*"))) < 2:
            assert run.poll() is None, run.stderr.read()
            time.sleep(0.01)
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=300)[1]
    assert run.returncode == -signal.SIGINT, said
    assert 2 <= len(list(tmp_path.iterdir())) < 99 and {path.read_text() for path in tmp_path.iterdir()} == {"whole"}


def _die(name):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_was_killed_ends_the_run_with_a_word():
    with pytest.raises(UserError, match=r"workers: .*fewer --workers"):
        room.in_workers(["a", "b"], _die, 1, 2)


# refusals


def prepared(root: Path, **options):
    prepare(root / "src", root / "dst", **{"short_side": 64, "workers": 0} | options)


@pytest.mark.parametrize(
    "before, options, expected",
    [
        (lambda root: shutil.rmtree(root / "src"), {}, "SRC: .*src is not a folder$"),
        (lambda root: (shutil.rmtree(root / "src"), (root / "src").write_text("")), {}, "SRC: .* is a file"),
        (lambda root: (shutil.rmtree(root / "src"), (root / "src").mkdir()), {}, "SRC: .* has no images"),
        (lambda root: (root / "dst").write_text(""), {}, "DST: .* is a file"),
        (lambda root: (root / "dst").symlink_to(root / "src"), {}, "DST: .* are the same folder"),
        (lambda root: (root / "dst").symlink_to(root / "src" / "train"), {}, "DST: .* one is in the other"),
        (lambda root: (root / "dst").symlink_to(root), {}, "DST: .* one is in the other"),
        (lambda root: picture(root / "dst" / "mine.jpg"), {}, "DST: .* not empty, and this command did not make it"),
        (
            lambda root: (prepared(root), picture(root / "dst" / "x" / "9.jpg")),
            {},
            "1 images that are not in .*x/9.jpg",
        ),
        (lambda root: prepared(root, short_side=65), {}, 'other settings, .*"short_side": 65, .*"short_side": 64'),
        (lambda root: prepared(root, quality=94), {}, 'other settings, .*"quality": 94'),
        (lambda root: (prepared(root), (root / "dst" / "prepare.json").write_bytes(b"\xff{")), {}, "other settings"),
        (
            lambda root: (prepared(root), (root / "src" / "x").symlink_to(root / "dst")),
            {},
            "SRC: .* is a link into DST",
        ),
        (lambda root: None, {"short_side": 0}, "short_side: 0"),
        (lambda root: None, {"short_side": -3}, "short_side: -3"),
        (lambda root: None, {"quality": 101}, "quality: 101"),
        (lambda root: None, {"quality": 0}, "quality: 0"),
        (lambda root: None, {"workers": -1}, "workers: -1 is no number of processes"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_touched(tmp_path, before, options, expected):
    tree(tmp_path / "src", each=1)
    before(tmp_path)
    found = contents(tmp_path)
    with pytest.raises(UserError, match=expected):
        prepared(tmp_path, **options)
    assert contents(tmp_path) == found


@pytest.mark.parametrize("link", ["train", "train/cat"])
def test_links_in_the_destination_are_not_followed(tmp_path, link):
    tree(tmp_path / "src", each=1)
    target, outside = small(tmp_path), tmp_path / "outside"
    shutil.rmtree(target / link)
    outside.mkdir()
    (target / link).symlink_to(outside)
    with pytest.raises(UserError, match=f"DST: .*{link}.* is a link"):
        small(tmp_path)
    assert not list(outside.iterdir())
    outside.rmdir()  # a link to nowhere, which mkdir would follow
    with pytest.raises(UserError, match=f"DST: .*{link}.* is a link"):
        small(tmp_path)
    assert not outside.exists()


@pytest.mark.parametrize("name", ["a.png", "bad_images.jsonl"])
def test_a_linked_file_is_replaced_not_written_through(tmp_path, name):
    path = picture(tmp_path / "src" / "a.png")
    (tmp_path / "src" / "ruin.png").write_bytes(b"")
    target, outside = small(tmp_path), tmp_path / "precious"
    outside.write_text("mine")
    (target / name).unlink()
    (target / name).symlink_to(outside)
    stamp = path.stat().st_mtime_ns
    os.utime(target / name, ns=(stamp, stamp), follow_symlinks=False)  # even one that looks as if made by us
    small(tmp_path)
    assert outside.read_text() == "mine"
    assert not (target / name).is_symlink() and (target / name).stat().st_size > 100


def test_a_file_that_cannot_be_written_ends_the_run(tmp_path):
    picture(tmp_path / "src" / "a.png")
    target = small(tmp_path)
    (target / "a.png").unlink()
    (target / "a.png").mkdir()
    with pytest.raises(UserError, match=r"DST: cannot write .*a\.png"):
        small(tmp_path)
    assert not list(target.rglob(files.PARTIAL + "*"))


@pytest.mark.parametrize("content", [b"", b"not an image", None], ids=["empty", "rubbish", "another size"])
def test_what_does_not_read_back_is_not_kept(tmp_path, monkeypatch, content):
    path = picture(tmp_path / "src" / "a.png")
    monkeypatch.setattr(room, "shrink", lambda *_: (path.read_bytes() if content is None else content, 64, 96))
    with pytest.raises(UserError, match=r"DST: cannot write .*a\.png"):
        small(tmp_path)
    assert contents(tmp_path / "dst").keys() == {"prepare.json"}


# as a command


@pytest.mark.slow
def test_the_command(tmp_path):
    tree(tmp_path / "src", each=1)
    done = launch(tmp_path / "src", tmp_path / "dst", "--short_side", "80")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-2].startswith("image 4/4") and lines[-1].startswith("4 images, ") and not done.stderr
    assert decode(tmp_path / "dst" / "val" / "dog" / "image 0.jpg").shape == (3, 80, 120)

    (tmp_path / "src" / "val" / "ruin.png").write_bytes(b"")
    done = launch(tmp_path / "src", tmp_path / "dst", "--short_side", "80")
    assert done.returncode == 1 and "4 were there already, 1 bad" in done.stdout

    done = launch(tmp_path / "src", tmp_path / "dst")
    assert done.returncode == 2
    assert done.stderr.startswith("prepare: error: DST: ") and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_command_with_workers_that_start_afresh(tmp_path):
    """As on macOS and from Python 3.14: a worker imports the module anew."""
    tree(tmp_path / "src", each=1)
    code = (
        "import multiprocessing, runpy, sys; multiprocessing.set_start_method('spawn')\n"
        "runpy.run_module('ssl.data.prepare', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "src"), str(tmp_path / "dst"), "--workers", "1"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "4 images, " in done.stdout
