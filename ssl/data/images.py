"""`Images`: the images of a data set with their labels. They are in memory, in an array, or in files."""

import contextlib
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ssl.data.decode import BadImage, Range, Reduction, decode
from ssl.data.held import Held
from ssl.data.reduced import decode_reduced
from ssl.data.stack import Stack


class Paths(Sequence):
    """Paths in one array of bytes, which forked workers share.

    A list of a million strings would take 155 MB in each worker: Python writes a reference count beside every string
    that is read, so the worker gets a copy.
    """

    def __init__(self, paths: Iterable[str]):
        encoded = [os.fsencode(path) for path in paths]
        self.ends = np.cumsum([0, *map(len, encoded)])
        self.bytes = np.frombuffer(b"".join(encoded), np.uint8)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        start, end = self.ends[:-1][index], self.ends[1:][index]  # IndexError as from a list
        return os.fsdecode(self.bytes[start:end].tobytes())

    def __eq__(self, other) -> bool:
        return list(self) == list(other)


@dataclass(frozen=True)
class Images:
    """N images. They are in one of four places: `resident` (N, C, H, W) in memory, files at `paths`, an array `stored`
    (N, C, H, W), or a `pool` (P, C, H, W) whose images are repeated.

    Pixels are uint8 or uint16, over the whole range of the type; uint16 in some array files and wherever a
    `value_range` (low, high) is set: the numbers in the files that are black and white.

    labels: (N,) int64, -1 for none. groups: (N,) which images belong together (of one patient, lesion or slide); None
    where that is not known. named: a table gave the names of the files, so one name is one image in any folder.
    rows: (N,) of images in memory that are no files: their places in the array or data set.
    short_side: files are reduced to this short side as they are read (`decode_reduced`). held: the content of the
    files, already in memory (`preload.hold`). bad: (path, reason) of files that were left out, as they cannot be read.
    left_out: classes whose images were left out.
    """

    name: str
    labels: Tensor
    classes: list[str]
    resident: Tensor | None = None
    paths: Sequence[str] | None = None
    stored: Stack | None = None
    pool: Tensor | None = None
    groups: Sequence[str | None] | None = None
    named: bool = False
    rows: np.ndarray | None = None
    bad: tuple[tuple[str, str], ...] = ()
    short_side: int | None = None
    held: Held | None = None
    value_range: Range | None = None
    left_out: tuple[str, ...] = ()

    @classmethod
    def of_files(cls, paths: Sequence[str]) -> "Images":
        """Files without labels."""
        return cls("folder", torch.full((len(paths),), -1), [], paths=Paths(paths))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def array(self) -> Tensor | Stack | None:
        """The images, or the pool of them, (N, C, H, W); None for files."""
        return next((held for held in (self.resident, self.stored, self.pool) if held is not None), None)

    @property
    def channels(self) -> int:
        """Channels of every image. Image files are decoded to RGB."""
        return 3 if self.array is None else self.array.shape[1]

    def pixels(self, index: int, reduction: Reduction | None = None) -> Tensor:
        """Image `index` as (C, H, W). `reduction` as in `decode`. Raises `BadImage`."""
        if self.held is not None:
            return self.held.pixels(index, self.paths[index], reduction)
        if self.paths is not None and self.short_side is None:
            return decode(self.paths[index], reduction, value_range=self.value_range)
        pixels = self._whole(index)
        if reduction is not None:
            reduction(*pixels.shape[1:])  # tells the caller the size; the pixels are not reduced
        return pixels

    def _whole(self, index: int) -> Tensor:
        if self.paths is not None:
            return decode_reduced(self.paths[index], self.short_side, self.value_range)
        held = self.resident if self.stored is None else self.stored
        return held[index] if self.pool is None else self.pool[index % len(self.pool)]

    def sample_name(self, index: int) -> str:
        """The path of a file; of an image of an array its place in the array."""
        if self.paths is not None:
            return self.paths[index]
        rows = self.stored.rows if self.rows is None and self.stored is not None else self.rows
        return f"{self.name}/{index if rows is None else rows[index]}"

    def fingerprint(self, root: str | None) -> str:
        """The number of images and a checksum: of names below `root`, or of labels and some pixels."""
        if self.paths is None:
            seen = zlib.crc32(self.labels.numpy().tobytes())
            for index in evenly_spaced(len(self), 50):
                with contextlib.suppress(BadImage):  # an array's numbers outside its value range
                    seen = zlib.crc32(self.pixels(index).numpy().tobytes(), seen)
            return f"{len(self)} images, labels and pixels {seen:08x}"
        names = "\n".join(path.removeprefix(str(root)) for path in self.paths)
        return f"{len(self)} images, names {zlib.crc32(os.fsencode(names)):08x}"

    def label_checksum(self) -> str:
        """A checksum of the labels and the names of the classes."""
        return f"{zlib.crc32(os.fsencode('|'.join(self.classes)), zlib.crc32(self.labels.numpy().tobytes())):08x}"

    def among(self, others: "Images") -> "Images":
        """The images that are also in `others`, by their names."""
        names = {others.sample_name(i) for i in range(len(others))}
        return self.subset(
            torch.tensor([i for i in range(len(self)) if self.sample_name(i) in names], dtype=torch.int64)
        )

    def subset(self, indices: Tensor) -> "Images":
        """The images `indices`, which keep their names."""
        named_by_place = self.paths is None and self.stored is None and self.rows is None
        rows = indices.numpy() if named_by_place else None if self.rows is None else self.rows[indices.numpy()]
        return replace(
            self,
            labels=self.labels[indices],
            resident=None if self.resident is None else self.resident.index_select(0, indices),
            paths=None if self.paths is None else Paths(self.paths[i] for i in indices.tolist()),
            stored=None if self.stored is None else self.stored.subset(indices.numpy()),
            groups=None if self.groups is None else [self.groups[i] for i in indices.tolist()],
            rows=rows,
            held=None if self.held is None else self.held.subset(indices.numpy()),
        )


def evenly_spaced(count: int, most: int) -> range:
    """At most `most` of `count` indices, evenly spaced."""
    return range(0, count, max(1, -(-count // most)))
