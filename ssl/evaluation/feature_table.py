"""features.csv: a row for every image, for a spreadsheet, pandas or R."""

import csv
from pathlib import Path

import torch

from ssl.evaluation.feature_rows import block_size
from ssl.evaluation.features import Features
from ssl.evaluation.predictions import cell
from ssl.files import replacing


def write(found: Features, path: Path) -> None:
    """Write name, split, label and one column for each feature, a block of images at a time.

    The label is the name of the class, empty where it is unknown. The numbers read back as the same float32 (or
    float64). Names are written as in predictions.csv. Raises OSError; an earlier file is then unchanged.
    """
    with replacing(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "split", "label", *(f"feature_{number}" for number in range(found.width))])
        classes = [*map(cell, found.classes), ""]  # the last is that of label -1
        for name, split in found.splits.items():
            index = 0
            for block in split.rows.split(max(1, block_size(split.rows) // 16)):
                exact = "%.9g" if block.dtype == torch.float32 else "%.17g"
                for row in block.tolist():
                    numbers = [exact % number for number in row]
                    rows.writerow([cell(found.name_of(name, index)), name, classes[split.labels[index]], *numbers])
                    index += 1
