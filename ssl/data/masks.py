"""Masks of slides: which belongs to which slide, their region code in every pixel, and the tables of codes."""

import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from ssl.data.decode import FORMATS, LARGEST_IMAGE, TURNS, BadImage, Stored, opened, orientation
from ssl.data.listing import list_images, no_images
from ssl.data.tables import read_table
from ssl.errors import UserError

LARGEST_CODE = 65535


def pair_up(slides: Path, masks: Path | None) -> list[tuple[Path, Path | None]]:
    """(slide, its mask) by name. Raises `UserError` for what is wrong with any of them, by their headers."""
    if masks is not None and slides.is_file() and masks.is_file():
        pairs = [(slides, masks)]
    else:
        by_name, masks_by_name = _by_name(slides, "SLIDES"), {} if masks is None else _by_name(masks, "masks")
        alone = [name for name in by_name if masks is not None and name not in masks_by_name]
        if alone:
            raise UserError(
                f"masks: {len(alone)} of {len(by_name)} slides have no mask of their name in {masks}, "
                f"the first is {alone[0]!r}"
            )
        pairs = [(path, masks_by_name.get(name)) for name, path in by_name.items()]
    for slide, mask in pairs:
        size = _size(slide, "SLIDES")
        if mask is not None and sorted(_size(mask, "masks")) != sorted(size):  # EXIF orientation may exchange them
            sizes = "{}×{} pixels, its mask {} {}×{}".format(*size, mask, *_size(mask, "masks"))
            raise UserError(f"masks: {slide} has {sizes}; a mask has a code for every pixel of its slide")
    return pairs


def _by_name(path: Path, argument: str) -> dict[str, Path]:
    """{name without extension: image} of a folder or of one file."""
    if not path.is_dir() and not path.is_file():
        raise UserError(f"{argument}: {path} is neither an image nor a folder of images")
    found: dict[str, Path] = {}
    for file in [path / name for name in list_images(path)] if path.is_dir() else [path]:
        if file.stem in found:
            raise UserError(f"{argument}: {found[file.stem]} and {file} have the same name; patches are named after it")
        found[file.stem] = file
    if not found:
        raise UserError(f"{argument}: {no_images(path)}")
    return found


def _size(path: Path, argument: str) -> tuple[int, int]:
    """(width, height) by the header."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about its size, which is checked below
            with Image.open(path, formats=FORMATS) as image:
                (width, height), lossy = image.size, image.format == "JPEG"
    except Image.DecompressionBombError:
        width, height, lossy = LARGEST_IMAGE, 2, False  # or more
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{argument}: {path} cannot be read as an image ({error})") from None
    if width * height > LARGEST_IMAGE:
        raise UserError(
            f"{argument}: {path} has more than the {LARGEST_IMAGE:,} pixels that are read at once; cut slide and mask "
            "into regions, or export them at a lower magnification, with the tool that wrote them (vips, OpenSlide)"
        )
    if lossy and argument == "masks":
        raise UserError(f"masks: {path} is a JPEG, which changes codes; export it without loss, as PNG or TIFF")
    return width, height


def read_codes(path: Path, code_column: str, class_column: str) -> tuple[list[str], dict[int, int]]:
    """(class names in the order of the table, {code: class number}). Raises `UserError` for a wrong code or name."""
    classes: dict[str, int] = {}
    table: dict[int, int] = {}
    for row, (code, name) in enumerate(read_table(path, [code_column, class_column]), 1):
        code, name = code.strip(), name.strip()
        if not (code.isascii() and code.isdecimal() and len(code) < 6 and int(code) <= LARGEST_CODE):
            raise UserError(f"codes: {path} row {row}: {code!r} in {code_column!r} is no code, 0 to {LARGEST_CODE}")
        if not name or name.startswith(".") or re.search(r"[/\\\0]", name) or not name.isprintable():
            raise UserError(f"codes: {path} row {row}: {name!r} in {class_column!r} cannot be the name of a folder")
        number = classes.setdefault(name, len(classes))
        if table.setdefault(int(code), number) != number:
            raise UserError(f"codes: {path} row {row}: code {code} has two classes; the other is in a row before")
    return list(classes), table


def read_mask(path: Path, slide: Path, found: Stored) -> np.ndarray:
    """The codes (H, W) of the mask, upright, of a slide that was read as `found`.

    Raises `UserError` for an image of colours, and for a mask that is not as its slide: of another size, or not turned
    where EXIF orientation turns the slide.
    """
    try:
        with opened(path) as (image, tags):
            codes = np.asarray(image)
            turn = orientation(image, tags)
    except BadImage as error:
        raise UserError(f"masks: {error}") from None
    if codes.ndim == 3 and codes.shape[2] == 3 and (codes == codes[..., :1]).all():
        codes = codes[..., 0]
    if codes.ndim != 2 or codes.dtype.kind not in "bui":
        raise UserError(f"masks: {path} holds colours; expected one code a pixel, as a grey or palette image")
    codes = TURNS[turn](codes) if turn in TURNS else codes
    if codes.shape != found.numbers.shape[:2] or (found.turned and turn not in TURNS):
        turned = f"; EXIF data turn {slide.name}: save it upright, without them" if found.turned else ""
        raise UserError(f"masks: {path} does not fit {slide} when both are upright{turned}")
    return codes.astype(np.uint8) if codes.dtype == bool else codes


def label(codes: np.ndarray, table: dict[int, int], path: Path) -> np.ndarray:
    """The class numbers (H, W) uint16 of codes (H, W). Raises `UserError` for a code that `table` does not have."""
    if codes.min() < 0 or codes.max() > LARGEST_CODE:
        raise UserError(f"masks: {path} holds codes outside 0 to {LARGEST_CODE}")
    parts = np.array_split(codes, codes.size // 2**24 + 1)  # bincount makes a copy of 8 bytes a pixel
    present = sum(np.bincount(part.ravel(), minlength=LARGEST_CODE + 1) for part in parts).nonzero()[0]
    unknown = [code for code in present.tolist() if code not in table]
    if unknown:
        raise UserError(f"codes: {path} has codes that are not in the table: {', '.join(map(str, unknown[:10]))}")
    numbers = np.zeros(LARGEST_CODE + 1, np.uint16)
    numbers[list(table)] = list(table.values())
    return numbers[codes]
