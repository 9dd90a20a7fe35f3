"""Which numbers are black and white: levels are kept, what leaves the range is refused, a sliver of it is told."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image
from running import ROOT
from torchvision.transforms import InterpolationMode

import evaluate
import finetune
from ssl.augment import View, to_unit
from ssl.checkpoints import inherit
from ssl.data import preload
from ssl.data.decode import BadImage, decode
from ssl.data.loader import plain_batches, training_batches
from ssl.data.order import Order
from ssl.data.prepare import prepare
from ssl.data.values import tell_values
from ssl.data.worker import central_crop
from ssl.errors import UserError
from ssl.settings import ranges
from ssl.sources import datasets

CPU = torch.device("cpu")
# 376 levels of 12 bits, in 16
SCANS = np.random.default_rng(0).integers(100, 476, (6, 90, 70), dtype=np.uint16)
RANGE = (0, 4095)


@pytest.fixture
def scans(tmp_path):
    for number, levels in enumerate(SCANS):
        Image.fromarray(levels).save(tmp_path / f"{number}.png")
    return tmp_path


def load(path, **options):
    return datasets.load(datasets.resolve_name(None, str(path)), str(path), "unlabelled", image_size=32, **options)


def levels_of(data) -> int:
    return len(torch.stack([data.pixels(i)[0].int() for i in range(len(data))]).unique())


def test_twelve_bits_in_sixteen_keep_their_levels_in_files_as_in_arrays(scans, tmp_path):
    assert levels_of(load(scans)) == 3  # the control
    files = load(scans, value_range=RANGE)
    assert levels_of(files) == 376
    np.save(tmp_path / "a.npy", SCANS)
    array = load(tmp_path / "a.npy", value_range=RANGE)
    expected = np.round(SCANS[4] * (65535 / 4095)).astype(np.uint16)
    for data in (files, array, pickle.loads(pickle.dumps(array))):
        assert all(np.array_equal(channel, expected) for channel in data.pixels(4).numpy())


def test_workers_judging_and_preload_see_the_same_numbers(scans):
    views = [View(size=32)] * 2
    data = load(scans, value_range=RANGE)
    held = preload.hold(data, 32)
    seen = []
    for some in (data, held):
        (batch,) = training_batches(some, views, Order(6, 6, 1, 1, seed=3), 0, 1, 0, CPU)
        ((plain, _, bad),) = plain_batches(some, 24, 6, 0, CPU)
        assert not batch.bad and not bad
        seen.append([*(pixels for pixels, _ in batch.views), plain])
    assert all(map(torch.equal, *seen))
    assert seen[0][0].is_floating_point() and len(seen[0][0].unique()) > 1000  # not 3 levels, blended


def test_a_large_jpeg_is_read_whole_where_a_range_is_given(tmp_path):
    """Without one it would be reduced, as 8 bits."""
    Image.linear_gradient("L").resize((1200, 1200)).convert("RGB").save(tmp_path / "a.jpg")
    Image.linear_gradient("L").resize((1200, 1200)).convert("RGB").save(tmp_path / "b.jpg")
    view = [View(size=32, crop_scale=(0.9, 1.0))]
    shown = []
    for value_range in (None, (0, 255)):
        data = load(tmp_path, value_range=value_range)
        (batch,) = training_batches(data, view, Order(2, 2, 1, 1, seed=3), 0, 1, 0, CPU)
        shown.append(to_unit(batch.views[0][0]))
    assert (shown[0] - shown[1]).abs().max() < 0.02 and not torch.equal(*shown)


def test_small_images_held_in_memory_are_scaled_once(tmp_path):
    np.savez(tmp_path / "a.npz", images=SCANS[:, :32, :32])
    data = load(tmp_path / "a.npz", value_range=RANGE)
    assert data.resident is not None and data.resident.dtype == torch.uint16
    assert np.array_equal(data.pixels(2)[0], np.round(SCANS[2, :32, :32] * (65535 / 4095)))


def test_what_leaves_the_range_or_cannot_use_it_is_refused(tmp_path):
    def refused(image, value_range, words):
        image.save(tmp_path / "a.png")
        with pytest.raises(BadImage, match=words):
            decode(tmp_path / "a.png", value_range=value_range)

    refused(Image.fromarray(SCANS[0]), (0, 300), "its numbers, from 100 to 475, leave --value_range 0 300")
    refused(Image.fromarray(SCANS[0]), (200, 4095), "its numbers, from 100 to 475, leave --value_range 200 4095")
    refused(Image.new("L", (4, 4)), RANGE, "has 8-bit pixels, 0 to 255; --value_range 0 4095 goes beyond them")
    refused(Image.new("1", (4, 4)), (0, 255), "has pixels changed in reading, so --value_range cannot")
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(BadImage, match="its numbers, from nan to nan, leave"):
        decode(tmp_path / "a.tif", value_range=(0, 1))
    Image.new("RGB", (4, 4), (9, 99, 51)).save(tmp_path / "b.png")
    assert decode(tmp_path / "b.png", value_range=(0, 255))[:, 0, 0].tolist() == [9 * 257, 99 * 257, 51 * 257]


def test_colours_of_sixteen_bits_have_no_range(tmp_path):
    """Pillow reads them in 8 bits, so a range of 12 would leave 16 levels."""
    (tmp_path / "a.ppm").write_bytes(b"P6 2 1 65535\n" + bytes(12))
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 4095\n" + bytes(4))  # scaled by its own range already
    (tmp_path / "a.pfm").write_bytes(b"Pf 2 1 -1.0\n" + np.array([0.25, 1.5], "<f4").tobytes())
    with pytest.raises(BadImage, match=r"has float pixels, here from 0\.25 to 1\.5, without a known range"):
        decode(tmp_path / "a.pfm")
    assert decode(tmp_path / "a.pfm", value_range=(0, 1.5))[0].tolist() == [[10922, 65535]]
    for name in ("a.ppm", "a.pgm"):
        assert decode(tmp_path / name).shape == (3, 1, 2)
        with pytest.raises(BadImage, match="so --value_range cannot be used; save it as an array"):
            decode(tmp_path / name, value_range=(0, 255))


def test_arrays_of_other_types_need_a_range(tmp_path):
    hounsfield = np.random.default_rng(0).integers(-1000, 3000, (4, 70, 80), dtype=np.int16)
    hounsfield[3, 0, 0] = 3001
    np.save(tmp_path / "a.npy", hounsfield)
    with pytest.raises(UserError, match="has numbers of type int16; expected uint8 or uint16, or --value_range"):
        load(tmp_path / "a.npy")
    data = load(tmp_path / "a.npy", value_range=(-1000, 3000))
    expected = torch.from_numpy((hounsfield[1] + 1000.0) / 4000)
    assert (to_unit(data.pixels(1))[0] - expected).abs().max() < 1e-5
    with pytest.raises(BadImage, match=r"array/3: its numbers, from .* to 3001, leave --value_range -1000 3000"):
        data.pixels(3)
    mean, std = datasets.normalisation(data, None, None)  # of those that can be read
    assert 0 < mean[0] < 1 and 0 < std[0] < 1 and "4 images" in data.fingerprint(None)
    np.save(tmp_path / "b.npy", SCANS)
    with pytest.raises(UserError, match="numbers of type uint16, 0 to 65535; --value_range -1 4095 goes beyond"):
        load(tmp_path / "b.npy", value_range=(-1, 4095))


def told(capsys, data) -> str:
    capsys.readouterr()  # what was said while it was loaded
    tell_values(data)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "largest, depth, said",
    [
        (375, 65535, "0 1023"),
        (4095, 65535, "0 4095"),
        (255, 65535, "0 255"),
        (31, 255, "0 31"),
        (40000, 65535, None),
        (200, 255, None),
        (0, 255, None),
    ],
)
def test_a_sliver_of_the_range_is_told_with_the_setting_to_pass(tmp_path, capsys, largest, depth, said):
    dtype = np.uint16 if depth == 65535 else np.uint8
    levels = np.full((70, 80), largest, dtype)
    Image.fromarray(levels).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", levels[None])
    for path in (tmp_path, tmp_path / "a.npy"):
        out = told(capsys, load(path))
        assert (f"pass --value_range {said} ***" in out) if said else out == ""
    if said and largest < 4095:
        data = load(tmp_path, value_range=(0, float(said.split()[1])))
        assert told(capsys, data) == f"values      0 is black, {said.split()[1]} is white (value_range)\n"


def test_dark_colours_of_sixteen_bits_are_told_to_make_an_array(tmp_path, capsys):
    """12 bits of colour in 16: 0 to 15 of 255 once Pillow has read them."""
    levels = np.full((80, 70, 3), 4095, ">u2")
    (tmp_path / "a.ppm").write_bytes(b"P6 70 80 65535\n" + levels.tobytes())
    said = told(capsys, load(tmp_path))
    assert "up to 16 of 255" in said and "as an array (.npy)" in said and "pass" not in said


def test_several_pages_are_told_once(tmp_path, capsys):
    frames = [Image.new("L", (80, 70), level) for level in (200, 10)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "c.png")
    expected = "pages       2 of 3 files looked at hold several pages or frames: the first is read\n"
    assert told(capsys, load(tmp_path)) == expected


def test_the_range_goes_with_the_run_and_must_be_one(tmp_path):
    run = {"value_range": [0, 4095], "dataset": "folder", "data_dir": "/a", "encoder": "resnet18"}
    for script in (evaluate, finetune):
        for options in ({}, {"data_dir": "/b"}):
            settings = script.Settings(**options)
            inherit.fill(settings, run)
            assert list(settings.value_range) == [0, 4095]
        settings = script.Settings(value_range=(0, 255), dataset="CIFAR10")
        inherit.fill(settings, run)
        assert settings.value_range == (0, 255)
    with pytest.raises(UserError, match="value_range: expected black < white, got 5 and 5"):
        ranges.check(evaluate.Settings(value_range=(5, 5)))
    with pytest.raises(UserError, match="value_range: is for image files and arrays; shapes uses the whole"):
        datasets.load("shapes", None, "train", value_range=RANGE)


def test_prepare_keeps_sixteen_bits_and_their_numbers(scans, tmp_path):
    Image.fromarray(SCANS[0].astype(np.int32)).save(scans / "signed.tif")
    Image.fromarray(SCANS[0]).save(scans / "wrong.png")
    (scans / "wrong.png").rename(scans / "wrong.jpg")
    target = tmp_path.parent / (tmp_path.name + "-small")
    assert prepare(scans, target, 40, workers=0) == 2  # a type without a range, and a name that cannot hold 16 bits
    for number, levels in enumerate(SCANS):
        made = np.asarray(Image.open(target / f"{number}.png")).astype(float)
        expected = Image.fromarray(levels.astype(np.float32)).resize((40, 51), Image.Resampling.BICUBIC)
        assert made.shape == (51, 40) and np.abs(made - np.asarray(expected)).max() <= 0.5 + 1e-3


# Crops ----------------------------------------------------------------------------------


@pytest.mark.parametrize("height, width", [(480, 640), (301, 200), (90, 100), (224, 224), (3, 4000), (7, 5)])
@pytest.mark.parametrize("size", [224, 33])
def test_the_central_crop_is_that_of_the_published_protocol(height, width, size):
    """Resize the short side, then crop; here the crop comes first."""
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8))
    for x, tolerance in ((pixels, 1), (to_unit(pixels), 1e-3)):
        resized = TF.resize(x, [round(size * 256 / 224)], InterpolationMode.BILINEAR, antialias=True)
        expected = TF.center_crop(resized, [size, size])
        found = central_crop(x, size)
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert (found.float() - expected.float()).abs().max() <= tolerance


LONG = r"""
import resource, sys
import ssl
ssl.__path__ = [sys.argv[1] + "/ssl"]
import torch
from pathlib import Path
from ssl.augment import View
from ssl.sources import datasets
from ssl.data import preload
from ssl.data.loader import plain_batches, training_batches
from ssl.data.order import Order
from ssl.data.prepare import prepare

def work(folder, data):
    for some in (data, preload.hold(data, 224)):
        list(training_batches(some, [View(size=224)] * 2, Order(2, 2, 1, 1, seed=0), 0, 1, 0, torch.device("cpu")))
        list(plain_batches(some, 224, 2, 0, torch.device("cpu")))
    prepare(folder, Path(f"{folder}-small"), 2, workers=0)

usual, long = (Path(sys.argv[2]) / name for name in ("usual", "long"))
load = lambda folder: datasets.load("folder", str(folder), "unlabelled", image_size=224)
work(usual, load(usual))  # so that all that is loaded once is there
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
work(long, load(long))
print("KB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_long_thin_image_takes_little_memory(tmp_path):
    for name, sizes in (("usual", [(400, 300)] * 2), ("long", [(40_000, 3), (3, 40_000)])):
        (tmp_path / name).mkdir()
        for number, size in enumerate(sizes):
            Image.new("RGB", size, (9, 99, 51)).save(tmp_path / name / f"{number}.png")
    done = subprocess.run([sys.executable, "-c", LONG, str(ROOT), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) < 100_000
