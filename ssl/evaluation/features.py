"""Features of a data set in files: written a shard at a time, mapped when they are read, and checked.

features.pt holds {train, val, test: split, classes, encoder, settings}; images without splits are one split, `all`. A
split is {features (N, F), labels (N,), names}, with the label -1 for none, and groups where they are known, "" for
none; one that is larger than a shard is {shards: [file names]}. Each shard lies beside features.pt and holds a part of
the split and its own name. The name ends in a checksum of the content, so another writing uses other names, and
features.pt, which is written last, always finds its own shards.
"""

import hashlib
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl import files
from ssl.checkpoints import torch_file
from ssl.console import say, some_of
from ssl.data.images import Images
from ssl.distributed import is_main
from ssl.errors import UserError
from ssl.evaluation import feature_part, inference, npz
from ssl.evaluation.feature_rows import Rows
from ssl.evaluation.inference import Reading

SPLITS = ("train", "val", "test", "all")
SHARD = 1 << 29  # bytes; rank 0 holds one while it writes, and copies the last one
OUR_SHARD = re.compile(r"features-(train|val|test|all)-\d{5}-[0-9a-f]{8}\.pt(\.partial-\d+)?")  # that: older versions


@dataclass(frozen=True)
class Split:
    """The features of a split. `ssl.sources.labels` takes it as it takes `Images`."""

    name: str
    rows: Rows  # (N, F)
    labels: Tensor  # (N,)
    classes: list[str]
    paths: Sequence[str]  # names of the samples
    groups: Sequence[str | None] | None = None  # as of `Images`; None in files of older versions, too

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> "Split":
        paths = [self.paths[i] for i in index.tolist()]
        groups = None if self.groups is None else [self.groups[i] for i in index.tolist()]
        return replace(self, rows=self.rows.subset(index), labels=self.labels[index], paths=paths, groups=groups)

    def pair(self) -> tuple[Rows, Tensor]:
        """(features, labels) as `ssl.evaluation.probes` takes them."""
        return self.rows, self.labels.to(self.rows.device)


@dataclass(frozen=True)
class Features:
    """What a features file holds. `encoder` is the checksum of the weights; None in files of older versions."""

    splits: dict[str, Split]
    classes: list[str]
    encoder: str | None
    settings: dict

    @property
    def width(self) -> int:
        return next(iter(self.splits.values())).rows.shape[1]

    def pairs(self, train: Images) -> list[tuple[Rows, Tensor]]:
        """[those of `train`, test], each (features, labels), to judge by."""
        names, own = {train.sample_name(i) for i in range(len(train))}, self.splits["train"]
        rows = [row for row, name in enumerate(own.paths) if name in names]
        own = own if len(rows) == len(own) else own.subset(torch.tensor(rows))
        return [own.pair(), self.splits["test"].pair()]

    def name_of(self, split: str, index: int) -> str:
        """The name of a sample; of a file its path below the folder `data_dir`."""
        name, root = self.splits[split].paths[index], self.settings.get("data_dir")
        return name.removeprefix(f"{Path(root).expanduser()}/") if isinstance(root, str) else name


def encoder_checksum(encoder: nn.Module) -> str:
    """SHA-256 of an encoder's weights and running statistics: their names, types, shapes and numbers."""
    seen = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        seen.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        seen.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return seen.hexdigest()


# Writing --------------------------------------------------------------------------


def write(
    folder: Path, encoder: nn.Module, splits: dict[str, Images], settings: Any, device: torch.device, about: dict
) -> dict[str, Images]:
    """Write features.pt and its shards, of all images of `splits` that can be read. Returns these images.

    All ranks call it; rank 0 writes. The file keeps the `settings` of evaluate.py, but for the choice of labels, and
    `about`. Raises `UserError` if too many images cannot be read, or if the files cannot be written.
    """
    entries, readable, how = {}, {}, Reading.of(settings, device)
    for name, data in splits.items():
        writer, read, unread = SplitWriter(folder, name, data), [], {}
        for h, own, bad in inference.stream(encoder, data, how, f"features, {name}"):
            if is_main():
                writer.add(h, own)
            read.append(own)
            unread |= bad
        entries[name] = writer.finish() if is_main() else {}
        unread = inference.from_all_ranks(unread)
        readable[name] = inference.readable(data, torch.cat(read), unread, settings.max_bad_fraction)
    if is_main():
        classes = next(iter(splits.values())).classes
        kept = asdict(settings) | {"train_percent": 100.0, "train_files": None} | about
        path = finish(folder, entries, classes, encoder_checksum(encoder), kept)
        say(f"features    {path}")
    return readable


class SplitWriter:
    """Writes the features of a split in shards of at most `shard` bytes. It holds one shard in memory."""

    def __init__(self, folder: Path, split: str, data: Images, shard: int = SHARD):
        self.folder, self.split, self.data, self.shard = folder, split, data, shard
        self.rows: Tensor | None = None  # room for the features of one shard
        self.index: list[int] = []  # which images the filled rows are of
        self.seen = 0  # images so far
        self.shards: list[str] = []

    def add(self, h: Tensor, read: Tensor) -> None:
        """Add features (n, F) of the next n images, without those that could not be read: `read` (n,) is false."""
        if self.rows is None:
            most = max(1, self.shard // (h.shape[1] * h.element_size()))
            self.rows = torch.empty(min(most, len(self.data)), h.shape[1], dtype=h.dtype)
        own = read.nonzero()[:, 0]
        h, index = h[own].cpu(), (own.cpu() + self.seen).tolist()
        self.seen += len(read)
        while index:
            if len(self.index) == len(self.rows):
                self._write_shard()
            filled = len(self.index)
            fits = min(len(index), len(self.rows) - filled)
            self.rows[filled : filled + fits] = h[:fits]
            self.index += index[:fits]
            h, index = h[fits:], index[fits:]

    def finish(self) -> dict:
        """The entry of the split in features.pt: all of it, or the names of its shards."""
        if not self.shards:
            return self._part()
        self._write_shard()
        return {"shards": self.shards}

    def _part(self) -> dict:
        filled = len(self.index)
        # A copy, as torch.save would write the rest of the memory, too.
        rows = self.rows if filled == len(self.rows) else self.rows[:filled].clone()
        names = [self.data.sample_name(i) for i in self.index]
        groups = {} if self.data.groups is None else {"groups": [self.data.groups[i] or "" for i in self.index]}
        return {"features": rows, "labels": self.data.labels[self.index], "names": names, **groups}

    def _write_shard(self) -> None:
        part = self._part()
        checksum = zlib.crc32(part["labels"].numpy(), zlib.crc32(os.fsencode("\n".join(part["names"]))))
        checksum = zlib.crc32(os.fsencode("\n".join(part.get("groups", []))), checksum)
        checksum = zlib.crc32(part["features"].numpy(), checksum)
        name = f"features-{self.split}-{len(self.shards):05}-{checksum:08x}.pt"
        _save({"shard": name, **part}, self.folder / name)
        self.shards.append(name)
        self.index = []


def _save(value, path: Path) -> None:
    try:
        torch_file.save(value, path)
    except (OSError, RuntimeError, TypeError) as error:
        raise UserError(
            f"features: {path} cannot be written ({error}); an earlier features.pt is unchanged. Make room, or set "
            "--output_dir"
        ) from None


def finish(folder: Path, splits: dict[str, dict], classes: list[str], encoder: str, settings: dict) -> Path:
    """Write features.pt, when all shards are written; then remove the shards of earlier writings."""
    path = folder / "features.pt"
    _save({**splits, "classes": classes, "encoder": encoder, "settings": settings}, path)
    ours = {name for split in splits.values() for name in split.get("shards", ())}
    for old in folder.glob("features-*.pt"):
        if OUR_SHARD.fullmatch(old.name) and old.name not in ours:
            old.unlink(missing_ok=True)
    files.remove_abandoned(folder.glob(files.PARTIAL + "*"))
    return path


# Reading --------------------------------------------------------------------------


def load(path: str | Path, device: torch.device | str = "cpu") -> Features:
    """Load features.pt, from the file or its folder, or a .npz of `ssl.evaluation.npz`. Rows are given on `device`.

    Shards stay in their files and are read as needed. Raises `UserError` if anything is missing or does not fit.
    """
    path, device = Path(path), torch.device(device)
    path = path / "features.pt" if path.is_dir() else path
    content = npz.read(path) if path.suffix.lower() == ".npz" else torch_file.load(path, mmap=True)
    if not isinstance(content, dict) or "classes" not in content or not content.keys() & set(SPLITS):
        found = some_of(sorted(map(str, content))) if isinstance(content, dict) and content else "nothing of that"
        raise UserError(
            f"features: {path} is no features file; it holds {found}. Expected classes and train, val, test or all, "
            "as evaluate.py --protocol features writes them"
        )
    classes = content["classes"]
    if not feature_part.all_strings(classes) or len(set(classes)) != len(classes):
        raise UserError(f"features: the classes in {path} are not a list of names, each once")
    splits = {name: _split(path, name, content[name], classes, device) for name in SPLITS if name in content}
    widths = {name: split.rows.shape[1] for name, split in splits.items()}
    if len(set(widths.values())) > 1:
        raise UserError(f"features: the splits in {path} have features of different widths, {widths}")
    encoder, settings = content.get("encoder"), content.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    return Features(splits, classes, encoder if encoder and isinstance(encoder, str) else None, settings)


def with_labels(found: Features, path: str) -> Features:
    """The features that can judge: of samples with a label. Raises `UserError` unless train and test have some."""
    splits = {name: _labelled(split) for name, split in found.splits.items()}
    if not all(name in splits and len(splits[name]) for name in ("train", "test")):
        there = ", ".join(f"{len(splits[name])} of {len(split)} in {name}" for name, split in found.splits.items())
        raise UserError(
            f"features: {path} has labels of {there}; to judge, some of train and of test need labels. Without labels, "
            "--near_duplicates lists pairs of images that are alike"
        )
    if len(found.classes) < 2:
        raise UserError(f"features: {path} has samples of one class, {found.classes[0]!r}; there is nothing to tell")
    for name, split in found.splits.items():
        if len(splits[name]) < len(split):
            say(f"labels      {len(split) - len(splits[name])} of {len(split)} samples of {name} have none: not judged")
    return replace(found, splits=splits)


def _labelled(split: Split) -> Split:
    known = split.labels >= 0
    return split if known.all() else split.subset(known.nonzero()[:, 0])


def _split(path: Path, name: str, entry, classes: list[str], device: torch.device) -> Split:
    sharded = isinstance(entry, dict) and "shards" in entry
    parts = [_shard(path, name, shard) for shard in _shard_names(path, entry)] if sharded else [entry]
    for number, part in enumerate(parts):
        feature_part.require(f"{name} in {path}" + (f", shard {number}," if sharded else ""), part, len(classes))
    kinds = {(part["features"].shape[1], part["features"].dtype) for part in parts}
    if len(kinds) > 1:
        raise UserError(f"features: the shards of {name} in {path} do not belong together: they are {kinds}")
    rows = [part["features"].float() for part in parts]  # other programs write float64, too
    rows = tuple(rows if sharded else [part.to(device) for part in rows])
    labels = torch.cat([part["labels"] for part in parts])
    names = [word for part in parts for word in part["names"]]
    groups = [word or None for part in parts for word in part.get("groups", [])]
    return Split(name, Rows(rows, device), labels, classes, names, groups if len(groups) == len(names) else None)


def _shard_names(path: Path, entry: dict) -> list[str]:
    names = entry["shards"]
    if not feature_part.all_strings(names) or not names or not all(OUR_SHARD.fullmatch(name) for name in names):
        raise UserError(f"features: the list of shards in {path} is damaged; write the features again")
    return names


def _shard(path: Path, split: str, name: str) -> dict:
    file = path.with_name(name)
    if not file.is_file():
        raise UserError(
            f"features: a part of {split} is missing, {file}; {path.name} and its shards, features-*.pt, belong in one "
            "folder. Copy all of them, or write the features again"
        )
    part = torch_file.load(file, mmap=True)
    if not isinstance(part, dict) or part.get("shard") != name:
        raise UserError(f"features: {file} is of another writing than {path}; write the features again")
    return part
