"""Small pictures, their folders and their parts, and clouds of features, drawn for a test."""

import struct
import zlib
from pathlib import Path

import torch
from PIL import Image

from ssl.sources.shapes import CLASSES, render


def class_folders(folder: Path, splits: dict[str, tuple[int, int]], size: int = 32) -> Path:
    """`folder`/SPLIT/CLASS/SPLIT000.png and so on: of {split: (count, seed)}, in three classes by turns."""
    for split, (count, seed) in splits.items():
        labels = torch.arange(count) % 3
        for i, (pixels, label) in enumerate(zip(render(labels, size, seed), labels.tolist())):
            path = folder / split / CLASSES[label] / f"{split}{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    return folder


def picture(path: Path, colour: tuple[int, int, int] = (0, 0, 0), size: tuple[int, int] = (70, 70)) -> None:
    """A picture of one colour, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def chunk(kind: bytes, body: bytes, whole: bool = True) -> bytes:
    """A part of a PNG; where it is not `whole`, with a wrong checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ (not whole))


def hollow_png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def blobs(count: int, seed: int, width: int = 12, classes: int = 4, spread: float = 1.6, middle: float = 0.0):
    """(features, labels): classes as clouds around the same centres for every seed."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0)) + middle
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return centres[labels] + spread * torch.randn(count, width, generator=generator), labels
