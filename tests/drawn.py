"""Class folders of small pictures, drawn for a test."""

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
