"""Keys of images: 64 bits of a name, of a file or of pixels, the same on any machine and in any run.

`cut` chooses the images of the test split by their keys. `learnt_from` recognises by them the images that weights have
learnt from.
"""

import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

import numpy as np
import torch

from ssl.data.blocks import in_threads
from ssl.data.images import Images

SECRET = b"self-supervised learning"  # never change it: every test split would change, and no record would match
SOURCES = "prepared_from.pt"  # file in a folder made by ssl.data.prepare: keys of the names and of the original files
BLOCK = 4096  # bytes that are read at the beginning, middle and end of a file
THREADS = 16  # they mostly wait for the disk


def key(content: bytes) -> int:
    """A keyed hash, 0 to 2**64 - 1."""
    return int.from_bytes(blake2b(content, digest_size=8, key=SECRET).digest(), "little")


def of_words(words: Iterable[str]) -> np.ndarray:
    """(N,) uint64. Words that are equal in Unicode's form NFC have the same key."""
    plain = (word if word.isascii() else unicodedata.normalize("NFC", word) for word in words)
    return np.array([key(word.encode("utf-8", "surrogateescape")) for word in plain], np.uint64)


def names(paths: Sequence[str], root: str | None) -> list[str]:
    """The paths below `root`, without extension: a converted copy of a folder has the names of the folder."""
    return [os.path.splitext(path.removeprefix(f"{root}/"))[0] for path in paths]


def of_pixels(data: Images) -> np.ndarray:
    """(N,) uint64, of the pixels of images in memory or in an array, without regard to their value range. A grey image
    has the key of the same image in RGB."""
    found = np.empty(len(data), np.uint64)
    for index in range(len(data)):
        stored = data.stored is not None
        pixels = torch.from_numpy(data.stored.numbers(index)).permute(2, 0, 1) if stored else data.pixels(index)
        pixels = pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels
        found[index] = key(f"{pixels.dtype} {tuple(pixels.shape)}".encode() + pixels.contiguous().numpy().tobytes())
    return found


def of_files(paths: Sequence[str]) -> np.ndarray:
    """(N,) uint64, of a file's size and three blocks of it, or all of a small file; 0 if it cannot be read."""
    return _of_each(_of_file, paths)


def of_sizes(paths: Sequence[str]) -> np.ndarray:
    """(N,) uint64, of a file's own name and size, without opening it; 0 if it is not there."""
    return _of_each(_of_size, paths)


def _of_file(path: str) -> int:
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            starts = (0, BLOCK, 2 * BLOCK) if size <= 3 * BLOCK else (0, (size - BLOCK) // 2, size - BLOCK)
            blocks = [os.pread(file.fileno(), BLOCK, start) for start in starts]
    except OSError:
        return 0
    return key(b"".join([size.to_bytes(8, "little"), *blocks]))


def _of_size(path: str) -> int:
    try:
        return key(f"{os.path.basename(path)} {os.stat(path).st_size}".encode("utf-8", "surrogateescape"))
    except OSError:
        return 0


def _of_each(find: Callable[[str], int], paths: Sequence[str]) -> np.ndarray:
    found = in_threads(lambda place: find(paths[place]), range(len(paths)), THREADS)
    return np.fromiter(found, np.uint64, len(paths))
