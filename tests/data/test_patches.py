"""Patches are those that a plain loop over every place finds, and a slide is done whole or done again."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import forked
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssl.data import masks as mask_files
from ssl.data import patches as room
from ssl.data.decode import decode
from ssl.data.listing import list_images
from ssl.data.patches import patches
from ssl.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "ssl.data.patches"]
NAME = "TCGA-A1-A0SK-DX1"
SLIDE, MASK = f"slides/{NAME}.png", f"masks/{NAME}.png"
# Two codes are one class; a class is dropped by its name; the published tables have more columns.
CODES = """group,overlay_order,GT_code,color,main_classes,main_codes,super_classes
outside_roi,1,0,white,EXCLUDE,0,EXCLUDE
tumor,2,1,red,Tumor,1,TUMOR
angioinvasion,3,19,red,Tumor,1,TUMOR
stroma,4,2,blue,StromaNOS,2,STROMA
"fat, and glands",5,9,white,white_space,11,WHITE
"""
MAIN = {0: "EXCLUDE", 1: "Tumor", 19: "Tumor", 2: "StromaNOS", 9: "white_space"}


def slide(path: Path, height: int, width: int, seed: int = 0, cell: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """A slide of noise, blank in places, and its mask of blocks; written as images."""
    rng = np.random.default_rng(seed)
    blocks = (-(-height // cell), -(-width // cell))
    spread = lambda values: np.kron(values, np.ones((cell, cell), np.uint8))[:height, :width]  # noqa: E731
    mask = spread(rng.choice(list(MAIN), blocks, p=[0.25, 0.15, 0.1, 0.25, 0.25])).astype(np.uint8)
    blank = spread(rng.random(blocks) < 0.4).astype(bool)
    pixels = rng.integers(0, 200, (height, width, 3), dtype=np.uint8)
    pixels[blank] = rng.integers(220, 256, (int(blank.sum()), 3))
    for folder, image in (("slides", pixels), ("masks", mask)):
        (path / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / folder / f"{NAME}.png")
    (path / "codes.csv").write_text(CODES)
    return pixels, mask


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def cut(path: Path, **options) -> dict[str, int]:
    with_masks = {"masks": path / "masks", "codes": path / "codes.csv"} if options.pop("with_masks", True) else {}
    return patches(path / "slides", path / "out", **with_masks, **{"workers": 0, "patch": 16, "step": 8} | options)


def found(path: Path) -> dict[str, np.ndarray]:
    return {str(p.relative_to(path / "out")): np.asarray(Image.open(p)) for p in (path / "out").rglob("*.png")}


def expected(pixels, mask, size, step, share, white) -> dict[str, np.ndarray]:
    """Every place, one after the other, pixel by pixel."""
    wanted = {}
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            patch = pixels[y : y + size, x : x + size]
            if y % step or x % step or patch.shape != (size, size, 3):
                continue
            names = Counter(MAIN[code] for row in mask[y : y + size, x : x + size].tolist() for code in row)
            order = list(dict.fromkeys(MAIN.values()))
            name = min(names, key=lambda key: (-names[key], order.index(key)))
            pale = sum(r >= 220 and g >= 220 and b >= 220 for row in patch.tolist() for r, g, b in row)
            if name in ("EXCLUDE", "white_space") or names[name] < share * size**2 or pale > white * size**2:
                continue
            wanted[f"{name}/{NAME}_{len(wanted)}_{round(names[name] / size**2, 3)}.png"] = patch
    return wanted


@settings(max_examples=25, deadline=None)
@given(
    st.integers(10, 50),
    st.integers(10, 50),
    st.integers(8, 16),
    st.integers(3, 16),
    st.sampled_from([0.25, 0.5, 0.75]),
    st.sampled_from([0.25, 0.5, 1.0]),
    st.integers(0, 99),
)
def test_patches_are_those_of_a_plain_loop(tmp_path_factory, height, width, size, step, share, white, seed):
    path = tmp_path_factory.mktemp("case")
    pixels, mask = slide(path, height, width, seed)
    total = cut(path, patch=size, step=step, share=share, white=white)
    wanted, made = expected(pixels, mask, size, step, share, white), found(path)
    assert made.keys() == wanted.keys()
    assert all((made[name] == wanted[name]).all() for name in wanted)
    assert total == {name: sum(key.startswith(name + "/") for key in wanted) for name in ("Tumor", "StromaNOS")}


def test_control_the_slides_of_that_test_are_not_trivial(tmp_path):
    """They lose patches to the threshold, to white, and to the dropped classes, and their last row counts."""
    pixels, mask = slide(tmp_path, 50, 50, 1)
    everything = expected(pixels, mask, 16, 8, 0.25, 1.0)
    assert 0 < len(expected(pixels, mask, 16, 8, 0.5, 1.0)) < len(everything) < len(room.corners(50, 50, 16, 8))
    assert 0 < len(expected(pixels, mask, 16, 8, 0.25, 0.5)) < len(everything)
    assert {name.split("/")[0] for name in everything} == {"Tumor", "StromaNOS"}


def test_the_last_row_and_column_are_cut():
    """Without them four of nine would be left."""
    assert room.corners(32, 32, 16, 8) == [(y, x) for y in (0, 8, 16) for x in (0, 8, 16)]
    assert room.corners(31, 33, 16, 8) == [(y, x) for y in (0, 8) for x in (0, 8, 16)]
    assert room.corners(15, 99, 16, 8) == []


def test_without_masks_every_patch_that_is_not_white(tmp_path):
    pixels, _ = slide(tmp_path, 40, 48, 3)
    pixels[:, :24] = 255
    Image.fromarray(pixels).save(tmp_path / "slides" / f"{NAME}.png")
    assert cut(tmp_path, with_masks=False) == {"": 4 * 3}
    assert {f"{NAME}_{x}_{y}.png" for x in (16, 24, 32) for y in (0, 8, 16, 24)} == found(tmp_path).keys()
    assert (found(tmp_path)[f"{NAME}_24_8.png"] == pixels[8:24, 24:40]).all()


def test_white_is_white_in_all_channels():
    """Blue or red alone is no white, whichever channel comes first."""
    for channels, white in (
        ((255, 255, 255), True),
        ((220, 220, 220), True),
        ((219, 255, 255), False),
        ((255, 219, 255), False),
        ((255, 255, 219), False),
    ):
        assert room.is_white(np.full((4, 4, 3), channels, np.uint8), 0.9) is white


@pytest.mark.data
def test_the_default_tells_glass_from_tissue(real_data):
    """Of 30 tiles of colon, three are glass, or glass with a thread in a corner; of lung tissue, none."""
    folders = (real_data / "histo_samples" / "kather2016_unlabelled", real_data / "lc25000_lung_224_small" / "train")
    white = {
        path.stem
        for folder in folders
        for path in list_images(folder)
        if room.is_white(decode(folder / path).permute(1, 2, 0).numpy(), 0.9)
    }
    assert white == {"test_img_16", "test_img_20", "test_img_23"}


def test_codes_are_told_by_the_column_that_is_asked_for(tmp_path):
    slide(tmp_path, 40, 40)
    assert cut(tmp_path, class_column="super_classes", white=1.0).keys() == {"TUMOR", "STROMA", "WHITE"}
    assert {name.split("/")[0] for name in found(tmp_path)} <= {"TUMOR", "STROMA", "WHITE"}


def test_what_is_dropped_can_be_said(tmp_path):
    slide(tmp_path, 40, 40)
    assert cut(tmp_path, drop=["Tumor"]).keys() == {"EXCLUDE", "StromaNOS", "white_space"}
    shutil.rmtree(tmp_path / "out")
    assert cut(tmp_path, drop=[]).keys() == {"EXCLUDE", "Tumor", "StromaNOS", "white_space"}


@pytest.mark.parametrize("kind", ["palette", "RGB", "16 bits"])
def test_masks_of_other_kinds_read_the_same(tmp_path, kind):
    _, mask = slide(tmp_path, 40, 40)
    cut(tmp_path)
    grey = found(tmp_path)
    shutil.rmtree(tmp_path / "out")
    image = Image.fromarray(mask)
    if kind == "palette":
        image.putpalette(list(range(255, -1, -1)) * 3)
    else:
        image = Image.fromarray(mask.astype(np.uint16)) if kind == "16 bits" else image.convert("RGB")
    image.save(tmp_path / "masks" / f"{NAME}.png")
    cut(tmp_path)
    again = found(tmp_path)
    assert grey and again.keys() == grey.keys() and all((again[name] == grey[name]).all() for name in grey)


BACK = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transposition of the upright image to the stored one


def turn(path: Path, orientation: int, name: str = "") -> None:
    """Store the image turned, with the EXIF orientation that makes it upright."""
    exif, image = Image.Exif(), Image.open(path)
    exif[0x0112] = orientation
    image.transpose(Image.Transpose(BACK[orientation])).save(path.with_name(name or path.name), exif=exif)


@pytest.mark.parametrize("orientation", BACK)
@pytest.mark.parametrize("size", [(40, 40), (40, 48)])
@pytest.mark.parametrize("kind", ["png", "tif"])
def test_a_mask_is_made_upright_as_its_slide_is(tmp_path, orientation, size, kind):
    pixels, mask = slide(tmp_path, *size)
    wanted = expected(pixels, mask, 16, 8, 0.3, 0.9)
    turn(tmp_path / MASK, orientation, f"{NAME}.{kind}")
    if kind == "tif":
        (tmp_path / MASK).unlink()
    cut(tmp_path)  # the mask is turned by its own orientation
    made = found(tmp_path)
    assert wanted and made.keys() == wanted.keys() and all((made[name] == wanted[name]).all() for name in wanted)
    shutil.rmtree(tmp_path / "out")
    turn(tmp_path / SLIDE, orientation)
    cut(tmp_path)  # and so are both
    assert found(tmp_path).keys() == wanted.keys()
    shutil.rmtree(tmp_path / "out")
    shutil.rmtree(tmp_path / "masks")
    for stored in (mask, np.asarray(Image.open(tmp_path / SLIDE).convert("L")) * 0):  # upright, and as the slide lies
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(stored).save(tmp_path / MASK)
        with pytest.raises(
            UserError, match=r"does not fit .* when both are upright; EXIF data turn .*: save it upright"
        ):
            cut(tmp_path)
        assert not found(tmp_path)


def test_a_mask_of_the_exchanged_size_is_refused(tmp_path):
    _, mask = slide(tmp_path, 40, 48)
    Image.fromarray(mask.T).save(tmp_path / MASK)
    with pytest.raises(UserError, match=r"masks: .* does not fit .* when both are upright$"):
        cut(tmp_path)


def test_slides_and_masks_are_paired_by_name_and_one_image_by_hand(tmp_path):
    slide(tmp_path, 40, 40, 5)
    slide(tmp_path / "other", 32, 32, 6)
    for kind in ("slides", "masks"):
        shutil.copy(tmp_path / "other" / kind / f"{NAME}.png", tmp_path / kind / "TCGA-A1-A000-DX1.png")
    alone = patches(
        tmp_path / "slides" / f"{NAME}.png",
        tmp_path / "one",
        tmp_path / "other" / ".." / "masks" / f"{NAME}.png",
        tmp_path / "codes.csv",
        patch=16,
        step=8,
        workers=0,
    )
    both = cut(tmp_path)
    of_first = [name for name in found(tmp_path) if NAME in name]
    assert sum(alone.values()) == len(of_first) < sum(both.values()) == len(found(tmp_path))


def test_two_processes_make_what_one_makes(tmp_path):
    slide(tmp_path, 40, 40, 5)
    for kind in ("slides", "masks"):
        for i in range(4):
            shutil.copy(tmp_path / kind / f"{NAME}.png", tmp_path / kind / f"TCGA-A1-A00{i}-DX1.png")
    cut(tmp_path, workers=2)
    two = found(tmp_path)
    shutil.rmtree(tmp_path / "out")
    cut(tmp_path)
    assert two.keys() == found(tmp_path).keys()


# again


def test_a_second_run_cuts_what_is_missing_or_changed(tmp_path, capsys):
    slide(tmp_path, 40, 40, 5)
    for kind in ("slides", "masks"):
        shutil.copy(tmp_path / kind / f"{NAME}.png", tmp_path / kind / "TCGA-A1-A000-DX1.png")
    first = cut(tmp_path)
    inodes = {p: p.stat().st_ino for p in (tmp_path / "out").rglob("*.png")}
    assert cut(tmp_path) == first and "2 of which were cut already" in capsys.readouterr().out
    assert {p: p.stat().st_ino for p in (tmp_path / "out").rglob("*.png")} == inodes

    pixels, mask = slide(tmp_path, 32, 48, 9)  # another slide of that name
    cut(tmp_path)
    wanted = expected(pixels, mask, 16, 8, 0.3, 0.9)
    assert {name for name in found(tmp_path) if NAME in name} == wanted.keys()
    assert {p.stat().st_ino for p in inodes if "A000" in p.name} == {inodes[p] for p in inodes if "A000" in p.name}


@pytest.mark.parametrize("with_masks", [True, False])
def test_patches_of_a_slide_that_was_taken_out_are_refused_until_they_are_removed(tmp_path, with_masks):
    slide(tmp_path, 40, 40, 5)
    other = "TCGA-A1-A0SK-DX1_2"  # begins like the other
    for kind in ("slides", "masks"):
        shutil.copy(tmp_path / kind / f"{NAME}.png", tmp_path / kind / f"{other}.png")
    both = cut(tmp_path, with_masks=with_masks)
    everything = found(tmp_path).keys()
    (tmp_path / "slides" / f"{other}.png").rename(tmp_path / "other.png")
    old = sorted(name for name in everything if re.search(rf"{other}_\d+_", name))
    words = f"has {len(old)} images that are not of slides in .*/slides, the first is {re.escape(old[0])}; remove them"
    for _ in range(2):
        with pytest.raises(UserError, match=words):
            cut(tmp_path, with_masks=with_masks)
        assert found(tmp_path).keys() == everything
    for name in old:
        (tmp_path / "out" / name).unlink()
    half = cut(tmp_path, with_masks=with_masks)
    assert sum(half.values()) == len(everything) - len(old) == len(found(tmp_path))
    (tmp_path / "other.png").rename(tmp_path / "slides" / f"{other}.png")
    assert cut(tmp_path, with_masks=with_masks) == both and found(tmp_path).keys() == everything


def test_single_slides_are_cut_one_after_the_other_into_one_folder(tmp_path):
    slide(tmp_path, 40, 40, 5)
    for name in ("a", "b"):
        shutil.copy(tmp_path / SLIDE, tmp_path / f"{name}.png")
        patches(tmp_path / f"{name}.png", tmp_path / "out", patch=16, step=8, workers=0)
    assert {Path(name).stem[0] for name in found(tmp_path)} == {"a", "b"}


def test_a_slide_that_was_left_half_cut_is_cut_again(tmp_path, monkeypatch):
    pixels, mask = slide(tmp_path, 50, 50, 1)
    wanted = expected(pixels, mask, 16, 8, 0.3, 0.9)
    left, whole = [3], room.write

    def full(path, content, *shape):
        if path.suffix == ".png":
            left[0] -= 1
        if left[0] < 0:
            raise OSError("no space left on device")
        whole(path, content, *shape)

    monkeypatch.setattr(room, "write", full)
    with pytest.raises(UserError, match=r"OUT: cannot write .*no space"):
        cut(tmp_path)
    assert len(found(tmp_path)) == 3 < len(wanted)
    monkeypatch.undo()
    cut(tmp_path)
    assert found(tmp_path).keys() == wanted.keys()


@pytest.mark.slow
def test_a_killed_run_is_continued(tmp_path):
    pixels, mask = slide(tmp_path, 300, 300, 1)
    arguments = ["slides", "out", "--masks", "masks", "--codes", "codes.csv", "--patch", "16", "--step", "2"]
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--workers", "1"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    while len(list((tmp_path / "out").rglob("*.png"))) < 20:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert all(image.shape == (16, 16, 3) for image in found(tmp_path).values())  # whole, every one
    wanted = expected(pixels, mask, 16, 2, 0.3, 0.9)
    assert 20 <= len(found(tmp_path)) < len(wanted)
    cut(tmp_path, step=2)
    made = found(tmp_path)
    assert made.keys() == wanted.keys() and all((made[name] == wanted[name]).all() for name in made)


# refusals


def replaced(what: str, content) -> None:
    def change(path: Path) -> None:
        target = path / what
        if callable(content):
            content(target)
        else:
            target.write_text(content)

    return change


def smaller(path: Path) -> None:
    Image.open(path).crop((0, 0, 39, 40)).save(path)


def colours(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (40, 40, 3), dtype=np.uint8)).save(path)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def lossy(path: Path) -> None:
    Image.open(path).save(path, "JPEG")


def linked(path: Path) -> None:
    cut(path)
    shutil.rmtree(path / "out" / "Tumor")
    (path / "out" / "Tumor").symlink_to(path)


@pytest.mark.parametrize(
    "change, options, words",
    [
        (replaced(MASK, smaller), {}, r"has 40×40 pixels, its mask .* 39×40"),
        (replaced(MASK, os.unlink), {}, "masks: .* has no images"),
        (replaced(MASK, lambda path: path.rename(path.with_name("other.png"))), {}, "1 of 1 slides have no mask"),
        (replaced(MASK, colours), {}, "holds colours"),
        (replaced(MASK, lossy), {}, "is a JPEG"),
        (replaced(MASK, cut_short), {}, "masks: .* cannot be read"),
        (replaced(MASK, "no image"), {}, "masks: .* cannot be read"),
        (replaced(SLIDE, cut_short), {}, "SLIDES: .* truncated"),
        (replaced(SLIDE, lambda path: shutil.copy(path, path.with_suffix(".tif"))), {}, "have the same name"),
        (replaced("slides", shutil.rmtree), {}, "neither an image nor a folder"),
        (replaced("codes.csv", CODES.replace(",9,", ",8,")), {}, "codes that are not in the table: 9"),
        (replaced("codes.csv", CODES.replace(",9,", ",1,")), {}, "code 1 has two classes"),
        (replaced("codes.csv", CODES.replace(",9,", ",x,")), {}, "row 5: 'x' .* is no code"),
        (replaced("codes.csv", CODES.replace("Tumor", "../../x")), {}, "cannot be the name of a folder"),
        (replaced("codes.csv", CODES.replace("Tumor", ".patches")), {}, "cannot be the name of a folder"),
        (replaced("codes.csv", CODES.replace("Tumor", "")), {}, "cannot be the name of a folder"),
        (lambda path: None, {"class_column": "classes"}, "'classes' is not among the columns"),
        (lambda path: None, {"drop": ["tumour"]}, "drop: 'tumour' is none of"),
        (lambda path: None, {"patch": 0}, "patch: 0"),
        (lambda path: None, {"step": -1}, "step: -1"),
        (lambda path: None, {"workers": -1}, "workers: -1 is no number of processes"),
        (lambda path: None, {"share": 1.5}, "share: 1.5"),
        (lambda path: None, {"white": float("nan")}, "white: nan"),
        (lambda path: (path / "out").mkdir() or (path / "out" / "mine").write_text(""), {}, "OUT: .* is not empty"),
        (lambda path: (path / "out").write_text(""), {}, "OUT: .* is a file"),
        (lambda path: (path / "out").symlink_to(path / "slides"), {}, "OUT: .* keep them apart"),
        (lambda path: cut(path, step=9), {}, "other settings"),
        (linked, {}, "OUT: .*Tumor is a link"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change, options, words):
    slide(tmp_path, 40, 40)
    change(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        cut(tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_masks_and_codes_go_together(tmp_path):
    slide(tmp_path, 40, 40)
    with pytest.raises(UserError, match="pass both, or neither"):
        patches(tmp_path / "slides", tmp_path / "out", masks=tmp_path / "masks")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("factor", [1.5, 3])
def test_a_slide_too_large_is_refused_by_its_header(tmp_path, monkeypatch, factor):
    slide(tmp_path, 40, 40)
    monkeypatch.setattr(mask_files, "LARGEST_IMAGE", int(1600 / factor))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(1600 / factor))
    with pytest.raises(UserError, match=r"more than the .* cut slide and mask into regions"):
        cut(tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command(tmp_path):
    slide(tmp_path, 64, 64)
    arguments = ["slides", "out", "--masks", "masks", "--codes", "codes.csv", "--patch", "16", "--step", "8"]

    def launch(*more):
        return forked.run("-m", "ssl.data.patches", *arguments, *more, cwd=tmp_path, env=environment())

    done = launch()
    assert done.returncode == 0, done.stderr
    assert f"{len(found(tmp_path))} patches of 1 slides" in done.stdout and not done.stderr
    done = launch("--share", "0.9")
    assert done.returncode == 2
    assert done.stderr.startswith("patches: error: OUT: ") and done.stderr.count("\n") == 1
