"""Labels of an array file: one class for every image, or an error that says what the array holds instead."""

import numpy as np

from ssl.console import say_once
from ssl.errors import UserError
from ssl.sources.classes import MISSING, refuse_quantities

EXPECTED = "expected one class an image, (N,) or (N, 1): whole numbers, or names as text"


def one_class_each(array: np.ndarray, where: str) -> np.ndarray:
    """(N,) int64, negative where an image has no label; or (N,) text, empty where it has none.

    The array may hold whole numbers (also as floats, NaN for no label), False and True for 0 and 1, text, or rows
    (N, C) with a single 1 and zeros, where the class is the number of the column. Raises `UserError` for other arrays.
    """
    numeric = array.dtype.kind in "biuf"
    if array.ndim and array.size == len(array):
        array = array.reshape(-1)
        if array.dtype.kind in "US":
            return _text(array, where)
        if numeric:
            return _whole(array, where)
    elif numeric and array.ndim == 2 and np.isin(array, (0, 1)).all():
        if (array.sum(1) == 1).all():
            say_once(f"labels      {where} are one-hot; the class is the number of the column, from 0")
            return array.argmax(1).astype(np.int64)
        raise UserError(f"data_dir: {where} give some images several labels, or none (multi-label); {EXPECTED}")
    elif numeric:
        raise UserError(
            f"data_dir: {where} have shape {array.shape}, several numbers an image (several labels, probabilities, a "
            f"mask?); {EXPECTED}"
        )
    raise UserError(f"data_dir: {where} have shape {array.shape} and type {array.dtype}; {EXPECTED}")


def refuse_signs(arrays: list[np.ndarray], where: str) -> None:
    """Raise `UserError` if all labels of a file are -1 or 1. Many files mean two classes; here -1 means no label."""
    if any(array.dtype.kind not in "biuf" for array in arrays):
        return  # text, whose bytes and characters cannot be joined before they are decoded
    known = np.concatenate([array.reshape(-1) for array in arrays])
    if np.unique(known[~np.isnan(known)]).tolist() == [-1, 1]:
        raise UserError(
            f"data_dir: {where} are -1 and 1, but -1 means no label in arrays: write 0 and 1 for two classes"
        )


def _whole(array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype.kind == "u" and (array >= 2**63).any():
        raise UserError(f"data_dir: {where} hold numbers such as {array.max()}, too large for a class; {EXPECTED}")
    if array.dtype.kind != "f":
        return array.astype(np.int64)
    array = np.where(np.isnan(array), -1, array)
    refuse_quantities(array, f"data_dir: {where}", EXPECTED, largest=2**53)
    return array.astype(np.int64)


def _text(array: np.ndarray, where: str) -> np.ndarray:
    try:
        words = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
    except UnicodeDecodeError as error:
        raise UserError(f"data_dir: {where} are bytes that are no UTF-8 ({error}); {EXPECTED}") from None
    words = np.char.strip(words)
    return np.where(np.isin(words, list(MISSING)), "", words)
