"""Features of a data set in files: written a shard at a time, mapped when they are read, and checked.

features.pt holds {train, val, test: split, classes, encoder, settings}; a split is {features (N, F), labels (N,),
names}, or {shards: [file names]} where that is more than a shard: each of these files, beside features.pt, holds a part
of the split, and its own name. The name ends in a checksum of the content, so shards of another writing have others:
features.pt, which comes last, is always whole, old or new.
"""

import hashlib
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ssl.checkpoints import torch_file
from ssl.data.images import Images
from ssl.data.tables import first_few
from ssl.errors import UserError, one_line
from ssl.evaluation import npz
from ssl.evaluation.feature_rows import Rows, at_a_time

SPLITS = ("train", "val", "test")
SHARD = 1 << 29  # bytes; what rank 0 holds while it writes, and again while the last one is written
OUR_SHARD = re.compile(r"features-(train|val|test)-\d{5}-[0-9a-f]{8}\.pt(\.partial-\d+)?")


@dataclass(frozen=True)
class Split:
    """Samples of which the features are known. `ssl.sources.labels` takes them as it takes `Images`."""

    name: str
    rows: Rows  # (N, F)
    labels: Tensor  # (N,)
    classes: list[str]
    paths: Sequence[str]  # names of the samples

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> "Split":
        paths = [self.paths[i] for i in index.tolist()]
        return replace(self, rows=self.rows.subset(index), labels=self.labels[index], paths=paths)

    def pair(self) -> tuple[Rows, Tensor]:
        """(features, labels) as `ssl.evaluation.probes` takes them."""
        return self.rows, self.labels.to(self.rows.device)


@dataclass(frozen=True)
class Features:
    """What a features file holds. `encoder` is the checksum of the weights; None in files of old."""

    splits: dict[str, Split]
    classes: list[str]
    encoder: str | None
    settings: dict


def encoder_checksum(encoder: nn.Module) -> str:
    """SHA-256 of the names, types, shapes and numbers of an encoder's weights and running statistics."""
    seen = hashlib.sha256()
    for name, value in sorted(encoder.state_dict().items()):
        seen.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        seen.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return seen.hexdigest()


# Writing --------------------------------------------------------------------------


def write_split(
    folder: Path, split: str, data: Images, batches: Iterable[tuple[Tensor, Tensor]], shard: int = SHARD
) -> dict:
    """Write the shards of a split, of at most so many bytes; return what stands for it in features.pt.

    `batches` gives (features (n, F), read (n,)) of the images of `data` in order; those that are not read stay out.
    """
    held, index, start, count, shards = None, [], 0, 0, []
    for h, read in batches:
        if held is None:
            most = max(1, shard // (h.shape[1] * h.element_size()))
            held = torch.empty(min(most, len(data)), h.shape[1], dtype=h.dtype)
        own = read.nonzero()[:, 0]
        h, own, start = h[own].cpu(), own.cpu() + start, start + len(read)
        while len(h):
            if count == len(held):
                shards.append(_write_shard(folder, split, len(shards), _part(data, held, index)))
                index, count = [], 0
            fits = min(len(h), len(held) - count)
            held[count : count + fits] = h[:fits]
            index.append(own[:fits])
            count, h, own = count + fits, h[fits:], own[fits:]
    part = _part(data, held[:count].clone() if count < len(held) else held, index)
    return {"shards": [*shards, _write_shard(folder, split, len(shards), part)]} if shards else part


def _part(data: Images, rows: Tensor, index: list[Tensor]) -> dict:
    chosen = torch.cat(index) if index else torch.zeros(0, dtype=torch.long)
    names = [data.sample_name(i) for i in chosen.tolist()]
    return {"features": rows, "labels": data.labels[chosen], "names": names}


def _write_shard(folder: Path, split: str, number: int, part: dict) -> str:
    seen = zlib.crc32(part["labels"].numpy(), zlib.crc32(os.fsencode("\n".join(part["names"]))))
    name = f"features-{split}-{number:05}-{zlib.crc32(part['features'].numpy(), seen):08x}.pt"
    _save({"shard": name, **part}, folder / name)
    return name


def _save(value, path: Path) -> None:
    try:
        torch_file.save(value, path)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"features: {path} cannot be written ({error}); features.pt, if there was one, is as it was. Make room, or "
            "set --output_dir"
        ) from None


def finish(folder: Path, splits: dict[str, dict], classes: list[str], encoder: str, settings: dict) -> Path:
    """Write features.pt once all shards are there; then remove those of older writings."""
    path = folder / "features.pt"
    _save({**splits, "classes": classes, "encoder": encoder, "settings": settings}, path)
    ours = {name for split in splits.values() for name in split.get("shards", ())}
    for old in folder.glob("features-*.pt*"):
        if OUR_SHARD.fullmatch(old.name) and old.name not in ours:
            old.unlink(missing_ok=True)
    return path


# Reading --------------------------------------------------------------------------


def load(path: str | Path, device: torch.device | str = "cpu") -> Features:
    """The features in features.pt, a folder that holds it, or a .npz of `ssl.evaluation.npz`; rows come on `device`.

    What is more than a shard stays in its files. Raises `UserError` unless everything is there and fits.
    """
    path, device = Path(path), torch.device(device)
    path = path / "features.pt" if path.is_dir() else path
    content = _content(path)
    if not isinstance(content, dict) or not {"train", "test", "classes"} <= content.keys():
        found = first_few(sorted(map(str, content))) if isinstance(content, dict) and content else "nothing of that"
        raise UserError(
            f"features: {path} is no features file; it holds {found}. Expected train, test and classes, as "
            "evaluate.py --protocol features writes them"
        )
    classes = content["classes"]
    if not _all_strings(classes) or not classes or len(set(classes)) != len(classes):
        raise UserError(f"features: the classes in {path} are not a list of names, each once")
    splits = {name: _split(path, name, content[name], classes, device) for name in SPLITS if name in content}
    widths = {name: split.rows.shape[1] for name, split in splits.items()}
    if len(set(widths.values())) > 1:
        raise UserError(f"features: the splits in {path} have features of different widths, {widths}")
    encoder, settings = content.get("encoder"), content.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    return Features(splits, classes, encoder if encoder and isinstance(encoder, str) else None, settings)


def _content(path: Path):
    return npz.read(path) if path.suffix.lower() == ".npz" else torch_file.load(path, mmap=True)


def _split(path: Path, name: str, entry, classes: list[str], device: torch.device) -> Split:
    sharded = isinstance(entry, dict) and "shards" in entry
    parts = [_shard(path, name, shard) for shard in _shard_names(path, entry)] if sharded else [entry]
    for number, part in enumerate(parts):
        _require_part(f"{name} in {path}" + (f", shard {number}," if sharded else ""), part, len(classes))
    kinds = {(part["features"].shape[1], part["features"].dtype) for part in parts}
    if len(kinds) > 1:
        raise UserError(f"features: the shards of {name} in {path} do not belong together: they are {kinds}")
    rows = tuple(part["features"] if sharded else part["features"].to(device) for part in parts)
    labels = torch.cat([part["labels"] for part in parts])
    return Split(name, Rows(rows, device), labels, classes, [word for part in parts for word in part["names"]])


def _shard_names(path: Path, entry: dict) -> list[str]:
    names = entry["shards"]
    if not _all_strings(names) or not names or not all(OUR_SHARD.fullmatch(name) for name in names):
        raise UserError(f"features: the list of shards in {path} is damaged; write the features again")
    return names


def _shard(path: Path, split: str, name: str) -> dict:
    file = path.with_name(name)
    if not file.is_file():
        raise UserError(
            f"features: a part of {split} is missing, {file}; {path.name} and its shards, features-*.pt, belong in one "
            "folder. Copy them together, or write the features again"
        )
    part = torch_file.load(file, mmap=True)
    if not isinstance(part, dict) or part.get("shard") != name:
        raise UserError(f"features: {file} is of another writing than {path}; write the features again")
    return part


def _require_part(where: str, part, classes: int) -> None:
    """Raise `UserError` unless `part` holds finite features (N, F), N labels of so many classes and N names."""
    x, y, names = (part.get(key) if isinstance(part, dict) else None for key in ("features", "labels", "names"))
    if not isinstance(x, Tensor) or x.ndim != 2 or x.dtype not in (torch.float32, torch.float64) or 0 in x.shape:
        found = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise UserError(f"features: {where} has features that are {found}; expected float32 of shape (N, F)")
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.ndim != 1 or not _all_strings(names):
        raise UserError(f"features: {where} has not labels (N,) of type int64 and a list of names")
    if not len(x) == len(y) == len(names):
        raise UserError(f"features: {where} has {len(x)} features but {len(y)} labels and {len(names)} names")
    if not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise UserError(
            f"features: {where} has labels from {y.min()} to {y.max()}, and there are {classes} classes; expected "
            f"0 to {classes - 1}"
        )
    count = at_a_time(x)
    for number, block in enumerate(x.split(count)):
        finite = block.isfinite().all(1)
        if not finite.all():
            first = names[number * count + int((~finite).nonzero()[0])]
            raise UserError(f"features: {where} has NaN or Inf, first in those of {first}; write the features again")


def _all_strings(words) -> bool:
    return isinstance(words, list) and all(isinstance(word, str) for word in words)


# Belonging ------------------------------------------------------------------------


def require_encoder(found: Features, encoder: nn.Module, path: str, model_path: str) -> None:
    """Raise `UserError` unless the features are of this encoder."""
    own = encoder_checksum(encoder)
    if found.encoder != own:
        told = "which does not say" if found.encoder is None else f"with weights {found.encoder[:12]}"
        raise UserError(
            f"features: {path} is of another encoder, {told}, than model_path {model_path}, with weights {own[:12]}; "
            "leave --model_path away, or write its features with --protocol features"
        )


def require_data(found: Features, splits: dict[str, Images], path: str, root: str | None) -> None:
    """Raise `UserError` unless the features are of these images, wherever they lie: same names, same classes."""
    for name, data in splits.items():
        own = found.splits[name]
        theirs = {_below(data.sample_name(i), root): data.classes[y] for i, y in enumerate(data.labels.tolist())}
        for sample, label in zip(own.paths, own.labels.tolist()):
            short = _below(sample, found.settings.get("data_dir"))
            if theirs.get(short) != own.classes[label]:
                why = f"{own.classes[label]!r} there, {theirs[short]!r} here" if short in theirs else "is not here"
                raise UserError(
                    f"features: {path} is of another data set: {one_line(short)}, in {name}, {why}. Leave --dataset "
                    "and --data_dir away, or name the images that the features are of"
                )


def _below(name: str, root) -> str:
    return name.removeprefix(str(root)).lstrip("/") if root else name
