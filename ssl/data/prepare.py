"""Make small copies of the images in a folder. Training on them is faster.

`python -m ssl.data.prepare SRC DST --short_side 256` keeps folders and file names. So training on DST takes the same
flags as on SRC, and has the same order and labels. (Only grey of 12 bits in a TIFF is scaled to 16: a `--value_range`
does not fit it any more.) Run it again, and it makes only the copies that are missing.

An image is decoded as in training and its short side is reduced, antialiased bicubic. A file that is already small is
copied byte for byte. The extension of the name gives the format: JPEG and WebP with `--quality`; PNG, TIFF, BMP and PPM
without loss, grey of more than 8 bits in 16 bits; GIF in 256 colours without animation. Other files are not copied. An
image that cannot be read is listed in DST/bad_images.jsonl, and the others are made.

Exit status: 0 all is well, 1 some images are bad, 2 an error, 130 interrupted.
"""

import io
import json
import stat
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ssl.console import argument_parser, say
from ssl.data import keys
from ssl.data.decode import reduction_to, scaled, stored
from ssl.data.listing import list_images, no_images
from ssl.data.made_folder import in_workers, open_made, process_count, run, write
from ssl.data.reduced import reduced_size
from ssl.errors import UserError

DEEP = ("PNG", "TIFF", "PPM")  # formats with 16 bits


def prepare(source: Path, target: Path, short_side: int = 256, quality: int = 95, workers: int | None = None) -> int:
    """Fill `target` with small copies of the images below `source`; return the number of images that cannot be read.

    These are listed with path and reason in target/bad_images.jsonl and have no copy. With 0 `workers` this process
    does the work; unset, there is a worker for every core. Raises `UserError` for wrong folders, and if `target` cannot
    be written.
    """
    if short_side < 1:
        raise UserError(f"short_side: {short_side} is no size; expected pixels, at least 1, such as 256")
    if not 1 <= quality <= 100:
        raise UserError(f"quality: {quality} is not in 1 to 100; 95 can hardly be told from the original")
    workers = process_count(workers)
    if not source.is_dir():
        raise UserError(f"SRC: {source} is not a folder{' (it is a file)' if source.exists() else ''}")
    source, target = source.resolve(), target.resolve()
    if source in (target, *target.parents) or target in source.parents:
        raise UserError(f"DST: {target} and SRC {source} are the same folder, or one is in the other; keep them apart")
    names = list_images(source)
    if not names:
        raise UserError(f"SRC: {no_images(source)}")
    try:
        _open_target(source, target, {"short_side": short_side, "quality": quality}, names)
    except OSError as error:
        raise UserError(f"DST: cannot write in {target} ({error})") from None

    missing = [name for name in names if not _is_done(source / name, target / name)]
    attempt = partial(_attempt, source, target, short_side, quality)
    bad = in_workers(missing, attempt, workers, len(names))
    bad_file = target / "bad_images.jsonl"
    bad_file.unlink(missing_ok=True)
    if bad:
        lines = [json.dumps({"path": str(source / name), "reason": reason}) + "\n" for name, reason in bad.items()]
        write(bad_file, "".join(lines).encode())

    good = [name for name in names if name not in bad]
    if list_images(target) != good:
        raise UserError(f"DST: {target} has other images than the {len(good)} made; did another program write there?")
    _record_sources(source, target, good)
    before, after = (sum((root / name).stat().st_size for name in good) / 1e6 for root in (source, target))
    say(
        f"{len(good)} images, {before:,.1f} MB before, {after:,.1f} MB after; {len(names) - len(missing)} were there "
        f"already, {len(bad)} bad{f' (see {bad_file})' if bad else ''}"
    )
    return len(bad)


def _record_sources(source: Path, target: Path, names: list[Path]) -> None:
    """Record the files that the copies were made of, so that weights that have learnt from a file are not judged on
    its copy."""
    paths = [str(source / name) for name in names]
    found = {"name": keys.of_words(keys.names(paths, str(source))), "file": keys.of_files(paths)}
    file = io.BytesIO()
    torch.save({kind: torch.from_numpy(of.view(np.int64)) for kind, of in found.items()}, file)
    try:
        write(target / keys.SOURCES, file.getvalue())
    except OSError as error:
        raise UserError(f"DST: cannot write {target / keys.SOURCES} ({error})") from None


def _open_target(source: Path, target: Path, settings: dict, names: list[Path]) -> None:
    """Make the folders of `target`. Raises `UserError` if something in it was not made by this command."""
    open_made("DST", target, target / "prepare.json", settings)
    surplus = sorted(set(list_images(target)) - set(names))
    if surplus:
        raise UserError(
            f"DST: {target} has {len(surplus)} images that are not in {source}, the first is {surplus[0]}; "
            "remove them, or give an empty folder"
        )
    for folder in sorted({name.parent for name in names}):
        if (source / folder).resolve().is_relative_to(target):
            raise UserError(f"SRC: {source / folder} is a link into DST; remove it")
        if (target / folder).resolve() != target / folder:  # before mkdir, which would follow the link
            raise UserError(f"DST: {target / folder} is a link, or below one, and leads elsewhere; remove it")
        (target / folder).mkdir(parents=True, exist_ok=True)


def _is_done(source: Path, target: Path) -> bool:
    """Whether `target` was made from `source` as it is now: then both have the same time stamp."""
    try:
        made, original = target.lstat(), source.stat()
    except OSError:
        return False
    same_time = abs(made.st_mtime_ns - original.st_mtime_ns) <= 10_000_000  # some file systems round to 0.01 s
    return stat.S_ISREG(made.st_mode) and made.st_size > 0 and same_time


def _attempt(source: Path, target: Path, short_side: int, quality: int, name: Path) -> str | UserError | None:
    """Make one small image, in a worker. Returns why the source is bad, or the error that ends the run, or None.

    The error is returned, as a DataLoader changes the message of one that a worker raises.
    """
    path = source / name
    try:
        taken = path.stat().st_mtime_ns  # before reading: a file that then changes is made again next time
        content, height, width = shrink(path, short_side, quality)
    except (OSError, ValueError) as error:
        (target / name).unlink(missing_ok=True)  # it was made from an earlier state of the source
        return str(error).removeprefix(f"{path}: ")
    try:
        write(target / name, content, (3, height, width), taken)
    except (OSError, ValueError) as error:
        return UserError(f"DST: cannot write {target / name} ({error}); the same command then makes what is missing")


def shrink(path: Path, short_side: int, quality: int) -> tuple[bytes, int, int]:
    """(content, height, width) of the file with the small copy of the image at `path`.

    Raises `BadImage`, and OSError or ValueError if the file's format cannot hold the result.
    """
    full: list[int] = []

    def reduction(height: int, width: int) -> int:  # to twice the final size at least; bicubic does the rest
        full.extend([height, width, reduction_to(min(height, width) / (2 * short_side))])
        return full[-1]

    found = stored(path, reduction)
    if found.most is None:
        raise ValueError(
            f"has {found.kind} without a known range; save it with 8 or 16 bits, or let train.py --short_side reduce it"
        )
    deep = found.most > 255
    levels = scaled(found.numbers, (0, found.most)) if deep else found.eight_bits()
    *size, factor = full
    height, width = reduced_size(*size, short_side)
    if [height, width] == size:
        return path.read_bytes(), height, width
    if list(levels.shape[:2]) == size:
        factor = 1  # it is no JPEG, and was not reduced
    box = (0, 0, size[1] / factor, size[0] / factor)
    kind = Image.registered_extensions()[path.suffix.lower()]
    if deep and kind not in DEEP:
        raise ValueError(f"16-bit pixels cannot be written as {kind}; name it after its format, {', '.join(DEEP)}")
    image = Image.fromarray(levels.astype(np.float32) if deep else levels)
    image = image.resize((width, height), Image.Resampling.BICUBIC, box)
    # Bicubic overshoots, perhaps out of a --value_range that holds the source.
    levels = np.asarray(image).round().clip(levels.min(), levels.max()).astype(np.uint16 if deep else np.uint8)
    image = Image.fromarray(levels)
    if not deep and (levels == levels[..., :1]).all():
        image = image.convert("L")  # grey takes fewer bytes
    options = {"JPEG": {"quality": quality}, "WEBP": {"quality": quality}, "TIFF": {"compression": "tiff_deflate"}}
    file = io.BytesIO()
    image.save(file, kind, **options.get(kind, {}))
    return file.getvalue(), height, width


def main() -> None:
    parser = argument_parser("ssl.data.prepare", __doc__)
    parser.add_argument("source", metavar="SRC", type=Path, help="folder of images, however nested")
    parser.add_argument("target", metavar="DST", type=Path, help="folder to fill: new, empty, or of an earlier run")
    parser.add_argument("--short_side", type=int, default=256, metavar="N", help="pixels; never enlarged (default 256)")
    parser.add_argument("--quality", type=int, default=95, metavar="Q", help="of JPEG and WebP, 1 to 100 (default 95)")
    parser.add_argument("--workers", type=int, metavar="W", help="processes (default: the cores this one may use)")
    sys.exit(1 if run("prepare", partial(prepare, **vars(parser.parse_args()))) else 0)


if __name__ == "__main__":
    main()
