"""Cut slides into patches: with masks into folders of labelled patches, without masks into patches to pre-train on.

`python -m ssl.data.patches SLIDES OUT --masks MASKS --codes CODES.csv` cuts every slide into squares of `--patch`
pixels, `--step` pixels apart. The class of a patch is the one with the largest share of its mask, if that is at least
`--share`; of equal shares, the one that the table names first. The patch is written as OUT/CLASS/SLIDE_N_SHARE.png; N
counts the patches of the slide. Without `--masks` every patch is written as OUT/SLIDE_X_Y.png.

SLIDES and MASKS are two images, or two folders of images with the same names and sizes. A mask has a code in every
pixel, without loss (grey, palette or 16 bits). CODES.csv gives the class of every code. If the table has coarser
classes, too, `--class_column super_classes` takes those. Patches of the classes `--drop` are left out, and so are
patches with more than the share `--white` of white pixels, whose darkest channel is 220 or more. Fat is nearly white,
too. (In published patches white pixels outvoted the mask; --white 0.5 comes near that.)

Run it again, and it cuts the slides that are missing or have changed. Patches in OUT of a slide that is no longer in
the folder SLIDES are an error. Exit status: 0 done, 2 an error, 130 interrupted.
"""

import io
import json
import os
import re
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ssl.console import argument_parser, say
from ssl.data.decode import BadImage, rgb, stored
from ssl.data.listing import list_images
from ssl.data.made_folder import in_workers, open_made, process_count, run, write
from ssl.data.masks import label, pair_up, read_codes, read_mask
from ssl.errors import UserError

WHITE = 220  # a pixel is white if its darkest channel is at least this
DROPPED = ("exclude", "whitespace")  # classes that are left out if --drop is not set, in any case of letters


def patches(
    slides: Path,
    target: Path,
    masks: Path | None = None,
    codes: Path | None = None,
    code_column: str = "GT_code",
    class_column: str = "main_classes",
    drop: list[str] | None = None,
    patch: int = 224,
    step: int = 112,
    share: float = 0.3,
    white: float = 0.9,
    workers: int | None = None,
) -> dict[str, int]:
    """Fill `target` as described above; return the number of patches of each class ('' without masks).

    `drop` unset leaves out the classes EXCLUDE and WhiteSpace. With 0 `workers` this process does the work; unset,
    there is a worker for every core, each with a slide in memory. Before anything is written, it raises `UserError` for
    slides and masks that are no pairs or too large, and for a wrong table. Later, for a slide or mask that cannot be
    read.
    """
    for name, value in (("patch", patch), ("step", step)):
        if value < 1:
            raise UserError(f"{name}: {value} is no size; expected pixels, at least 1")
    for name, value in (("share", share), ("white", white)):
        if not 0 <= value <= 1:
            raise UserError(f"{name}: {value} is no share; expected a number in 0 to 1")
    workers = process_count(workers)
    if (masks is None) != (codes is None):
        raise UserError("codes: the table goes with --masks; pass both, or neither")
    target = target.resolve()
    if any(source.resolve() in (target, *target.parents) for source in (slides, masks or slides)):
        raise UserError(f"OUT: {target} is the folder of the slides or masks, or is in it; keep them apart")
    pairs = pair_up(slides, masks)
    classes, table = ([], {}) if codes is None else read_codes(codes, code_column, class_column)
    kept = _kept(classes, drop)
    cut = {"patch": patch, "step": step, "share": share, "white": white, "kept": kept, "codes": table}
    try:
        _open_target(target, cut)
        if slides.is_dir():  # single slides may come one after the other
            _refuse_surplus(target, slides, {slide.stem for slide, _ in pairs})
        missing = [pair for pair in pairs if not _is_done(target, *pair)]
        attempt = partial(_attempt, target, classes, cut)
        in_workers(missing, attempt, workers, len(pairs))
        total = Counter(dict.fromkeys(kept, 0))
        for slide, _ in pairs:
            total.update(json.loads(_record(target, slide).read_text("utf-8"))["patches"])
    except OSError as error:
        raise UserError(f"OUT: cannot write in {target} ({error}); the same command then goes on") from None
    say(f"{sum(total.values())} patches of {len(pairs)} slides, {len(pairs) - len(missing)} of which were cut already")
    for name in filter(None, kept):
        say(f"{total[name]:>9} {name}")
    return dict(total)


# Classes -----------------------------------------------------------------------


def _kept(classes: list[str], drop: list[str] | None) -> list[str]:
    if not classes:
        return [""]
    unknown = set(drop or ()) - set(classes)
    if unknown:
        raise UserError(f"drop: {sorted(unknown)[0]!r} is none of the classes {', '.join(classes)}")
    if drop is None:
        drop = [name for name in classes if re.sub("[ _-]", "", name).lower() in DROPPED]
    kept = [name for name in classes if name not in drop]
    if not kept:
        raise UserError("drop: no class is left to cut patches of")
    return kept


# Cutting ----------------------------------------------------------------------


def corners(height: int, width: int, patch: int, step: int) -> list[tuple[int, int]]:
    """(y, x) of every patch that fits, row by row."""
    return [(y, x) for y in range(0, height - patch + 1, step) for x in range(0, width - patch + 1, step)]


def majority(labels: np.ndarray, classes: int) -> tuple[int, float]:
    """(the class with the most pixels of labels (H, W), its share). Of several such classes, the first."""
    counts = np.bincount(labels.ravel(), minlength=classes)
    best = int(counts.argmax())
    return best, float(counts[best] / labels.size)


def is_white(pixels: np.ndarray, most: float) -> bool:
    """Whether more than the share `most` of pixels (H, W, 3), RGB, is white."""
    return bool((pixels.min(2) >= WHITE).mean() > most)


def _attempt(target: Path, classes: list[str], cut: dict, pair: tuple[Path, Path | None]) -> UserError | None:
    """Cut a slide, in a worker. The error that ends the run is returned, as `in_workers` asks."""
    try:
        _cut(target, classes, cut, *pair)
    except UserError as error:
        return UserError(str(error))
    except OSError as error:
        return UserError(f"OUT: cannot write in {target} ({error}); the same command then goes on")


def _cut(target: Path, classes: list[str], cut: dict, slide: Path, mask: Path | None) -> None:
    """Write the patches of a slide, and then the record that it is done."""
    state = _state(slide, mask)  # before reading: a file that then changes is cut again next time
    try:
        found = stored(slide)
        pixels = rgb(slide, found)
    except BadImage as error:
        raise UserError(f"SLIDES: {error}") from None
    labels = None if mask is None else label(read_mask(mask, slide, found), cut["codes"], mask)
    _record(target, slide).unlink(missing_ok=True)
    _remove_old(target, slide.stem, cut["kept"])
    size, number, made = cut["patch"], 0, Counter()
    for y, x in corners(*pixels.shape[:2], size, cut["step"]):
        shown = pixels[y : y + size, x : x + size]
        place = target / f"{slide.stem}_{x}_{y}.png"
        name = ""
        if labels is not None:
            best, share = majority(labels[y : y + size, x : x + size], len(classes))
            name = classes[best]
            place = target / name / f"{slide.stem}_{number}_{round(share, 3)}.png"
            if share < cut["share"] or name not in cut["kept"]:
                continue
        if is_white(shown, cut["white"]):
            continue
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(shown)).save(file, "PNG")
        write(place, file.getvalue(), (3, size, size))
        number += 1
        made[name] += 1
    write(_record(target, slide), json.dumps(state | {"patches": made}).encode())


# The target -------------------------------------------------------------------


def _open_target(target: Path, cut: dict) -> None:
    """Make the folders of `target`. Raises `UserError` if something in it was not made by this command."""
    folders = [target / name for name in (".patches", *cut["kept"])]
    for folder in folders:
        if folder.is_symlink():
            raise UserError(f"OUT: {folder} is a link and leads elsewhere; remove it")
    settings = {key: value for key, value in cut.items() if value not in ({}, [""])}
    open_made("OUT", target, target / ".patches" / "settings.json", settings)
    for folder in folders:
        folder.mkdir(exist_ok=True)


def _refuse_surplus(target: Path, slides: Path, stems: set[str]) -> None:
    """Raise `UserError` if `target` has patches of a slide that was taken out of `slides`.

    Without its patches, the record of such a slide is removed: if the slide comes back, it is cut again.
    """
    surplus = [name for name in list_images(target) if name.stem.rsplit("_", 2)[0] not in stems]
    if surplus:
        raise UserError(
            f"OUT: {target} has {len(surplus)} images that are not of slides in {slides}, the first is {surplus[0]}; "
            "remove them, or give an empty folder"
        )
    for record in (target / ".patches").glob("*.slide.json"):
        if record.name.removesuffix(".slide.json") not in stems:
            record.unlink()


def _record(target: Path, slide: Path) -> Path:
    """The file that records that a slide is done, the state of its sources, and the number of its patches."""
    return target / ".patches" / f"{slide.stem}.slide.json"


def _state(slide: Path, mask: Path | None) -> dict:
    return {"sources": [[path.stat().st_size, path.stat().st_mtime_ns] for path in (slide, mask) if path is not None]}


def _is_done(target: Path, slide: Path, mask: Path | None) -> bool:
    try:
        record = json.loads(_record(target, slide).read_text("utf-8"))
        return record["sources"] == _state(slide, mask)["sources"]
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _remove_old(target: Path, stem: str, kept: list[str]) -> None:
    """Remove patches of an earlier state of the slide, or of a run that was killed before the slide was done."""
    of_slide = re.compile(re.escape(stem) + r"_\d+_[\d.]+\.png")
    for name in kept:
        for entry in os.scandir(target / name):
            if of_slide.fullmatch(entry.name):
                os.unlink(entry.path)


def main() -> None:
    parser = argument_parser("ssl.data.patches", __doc__)
    parser.add_argument("slides", metavar="SLIDES", type=Path, help="an image, or a folder of them")
    parser.add_argument("target", metavar="OUT", type=Path, help="folder to fill: new, empty, or of an earlier run")
    parser.add_argument("--masks", type=Path, help="an image, or a folder of them; without, there are no classes")
    parser.add_argument("--codes", type=Path, help="CSV: which class a code of the masks is")
    parser.add_argument("--code_column", default="GT_code", help="of the CSV (default GT_code)")
    parser.add_argument("--class_column", default="main_classes", help="of the CSV (default main_classes)")
    parser.add_argument("--drop", nargs="*", metavar="CLASS", help="left out (default EXCLUDE and WhiteSpace)")
    parser.add_argument("--patch", type=int, default=224, metavar="N", help="pixels of a side (default 224)")
    parser.add_argument("--step", type=int, default=112, metavar="N", help="pixels from patch to patch (default 112)")
    parser.add_argument("--share", type=float, default=0.3, help="of the class, at least (default 0.3)")
    parser.add_argument("--white", type=float, default=0.9, help="share of white pixels, at most (default 0.9); 1: any")
    parser.add_argument("--workers", type=int, metavar="W", help="processes (default: the cores this one may use)")
    run("patches", partial(patches, **vars(parser.parse_args())))


if __name__ == "__main__":
    main()
