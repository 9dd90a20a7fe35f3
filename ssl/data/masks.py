"""Masks of slides: images with a region code in every pixel, and the tables that give the class of every code."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from ssl.data.decode import FORMATS
from ssl.data.tables import read_table
from ssl.errors import UserError

LARGEST_CODE = 65535


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


def read_mask(path: Path) -> np.ndarray:
    """The codes (H, W) of a mask. Raises `UserError` for an image of colours."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            codes = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"masks: {path} cannot be read ({error})") from None
    if codes.ndim == 3 and codes.shape[2] == 3 and (codes == codes[..., :1]).all():
        codes = codes[..., 0]
    if codes.ndim != 2 or codes.dtype.kind not in "bui":
        raise UserError(f"masks: {path} holds colours; expected one code a pixel, as a grey or palette image")
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
