"""Read the folder of a run for a report: also half-written, of a run that goes on, or from anybody."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ssl.checkpoints import alive
from ssl.errors import UserError
from ssl.files import parsed
from ssl.settings import config

LARGEST_LOG = 256 << 20  # bytes of metrics.jsonl that are read, from its beginning
LARGEST_TEXT = 8 << 20  # of any other text
LARGEST_PICTURE = 8 << 20  # of a PNG
MOST_CURVES = 200  # different names in metrics.jsonl
# The order of curves in a report; all others follow, by name.
FIRST = "loss train_loss val_loss knn_acc1 linear_acc1 val_acc1 on_diagonal off_diagonal contrastive_acc1".split()
FIRST += ["lr_weights", "lr_head"]
SPEED = ("samples_per_second", "data_wait")
PICTURES = ("views.png", "neighbours.png", "correlation.png", "roc.png", "confusion.png")
MARKS = ("config.yaml", "status.json", "metrics.jsonl", "results.json")  # a folder with one of them is a run folder
DEEPEST = 4  # levels below a folder at which runs are looked for


@dataclass
class Run:
    """A run, as far as its folder tells.

    `curves`: {name: [(step, value), …]}, steps rising. `judged`: the last line of metrics.jsonl with accuracies.
    `results`: {file: its content}. `seeds`: the runs of `finetune.py --runs`; their settings are those of this run.
    `missing`: sentences about files that are not there.
    """

    name: str
    settings: dict = field(default_factory=dict)
    about: dict = field(default_factory=dict)
    status: dict = field(default_factory=dict)
    state: str = "unknown"  # in words, as `alive.state`
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    judged: dict = field(default_factory=dict)
    verdicts: list[dict] = field(default_factory=list)
    results: dict[str, dict] = field(default_factory=dict)
    best: dict = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    projection: dict = field(default_factory=dict)
    bad_steps: int = 0
    seeds: list["Run"] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    parts: int = 1  # of its path, in `short_name`

    @property
    def short_name(self) -> str:
        """The end of its path: the folder's name, of a seed also its run's."""
        parts = os.path.abspath(self.name).split(os.sep)
        return "/".join(parts[-self.parts - parts[-1].startswith("seed_") :])

    @property
    def fine_tuned(self) -> bool:
        """Whether it is a run of finetune.py."""
        return "freeze" in self.settings


def find(folder: Path, depth: int = DEEPEST) -> list[Path]:
    """`folder`, if it is a run folder; else the run folders below it, by name; [] where there are none."""
    if any(os.path.isfile(folder / name) for name in MARKS):  # not Path.is_file, which raises where it may not look
        return [folder]
    try:
        with os.scandir(folder) as entries:
            inner = [Path(entry.path) for entry in entries if not entry.name.startswith(".") and os.path.isdir(entry)]
    except OSError:  # it may not be read
        return []
    return [run for path in sorted(inner) for run in find(path, depth - 1)] if depth else []


def tell_apart(runs: list[Run]) -> None:
    """Show so much of the runs' paths that their names differ, up to six folders."""
    for parts in range(2, 7):
        names = [run.short_name for run in runs]
        for run, name in zip(runs, names):
            run.parts = parts if names.count(name) > 1 else run.parts


def read(folder: Path, figures: bool = True) -> Run:
    """Read the run in `folder`. Raises `UserError` only where there is no such folder.

    Without `figures` pictures are not read, and of a curve the last point is kept: many runs need less memory so.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a run folder; pass the output_dir of train.py or finetune.py")
    run = Run(str(folder))
    try:
        run.settings = config.read_yaml(folder / "config.yaml")
    except UserError as error:
        run.missing.append(str(error))
    for name, needed in (("about", not run.fine_tuned), ("status", True), ("best", False)):
        setattr(run, name, json_object(folder / f"{name}.json", run.missing, needed))
    seeds = sorted(folder.glob("seed_*"), key=lambda path: (len(path.name), path.name))  # of finetune.py --runs
    _read_outcome(folder, run, figures, needed=not seeds)
    run.state = _state(folder, run)
    for path in seeds:
        if not find(path, depth=0):
            continue
        one = Run(str(path), run.settings, run.about, run.status, run.state)
        _read_outcome(path, one, figures, needed=False)
        run.missing += [f"{path.name}: {words}" for words in one.missing]
        run.seeds.append(one)
    return run


def _read_outcome(folder: Path, run: Run, figures: bool, needed: bool) -> None:
    """Read what a run measured. `needed`: whether files that a run always writes must be there."""
    run.projection = json_object(folder / "pictures.json", run.missing, needed=False)
    for path in (folder / "results.json", *sorted(folder.glob("*/results.json"))[:20]):
        if path.parent.name.startswith("seed_") and path.parent != folder:
            continue
        if found := json_object(path, run.missing, needed=False):
            run.results[str(path.relative_to(folder))] = found
    run.curves, run.judged = _curves(folder / "metrics.jsonl", run.missing, needed)
    run.verdicts = list(_objects(folder / "health.jsonl", run.missing, needed=False))[-200:]
    run.bad_steps = sum(1 for _ in _objects(folder / "bad_steps.jsonl", run.missing, needed=False))
    if not figures:
        run.curves = {name: points[-1:] for name, points in run.curves.items()}
        return
    for name in PICTURES:
        views = needed and not run.fine_tuned and name == "views.png"
        content = _content(folder / name, LARGEST_PICTURE, run.missing, needed=views)
        if content.startswith(b"\x89PNG\r\n\x1a\n"):
            run.pictures[name] = content
        elif content:
            run.missing.append(f"{name} is no PNG")


def finite(value: object) -> bool:
    """Whether it is a number that can be drawn."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def numbers(values: object) -> list[float]:
    """A list of numbers that can be drawn, or [] for anything else."""
    return [float(v) for v in values[:20_000]] if isinstance(values, list) and all(map(finite, values)) else []


def names_of_curves(runs: list[Run]) -> tuple[list[str], list[str]]:
    """(names of curves that change, names of constant ones), in the order of a report, without those of speed."""
    names = sorted(
        {name for run in runs for name in run.curves} - set(SPEED),
        key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name),
    )
    constant = [name for name in names if len({v for run in runs for _, v in run.curves.get(name, [])}) <= 1]
    return [name for name in names if name not in constant], constant


def wide(name: str, values: list[float]) -> bool:
    """Whether a curve needs a logarithmic axis: a loss that falls far."""
    return "loss" in name and min(values) > 0 and max(values) / min(values) > 50


def _state(folder: Path, run: Run) -> str:
    steps = [points[-1][0] for points in run.curves.values()] + [run.status.get("step")]
    changed = [
        path.stat().st_mtime
        for name in ("status.json", "metrics.jsonl", "seed_*/metrics.jsonl")
        for path in folder.glob(name)
    ]
    return alive.state(run.status, max(filter(finite, steps), default=None), max(changed, default=0.0))


def _curves(path: Path, missing: list[str], needed: bool) -> tuple[dict[str, list[tuple[float, float]]], dict]:
    """(the curves, the last line with accuracies)."""
    found: dict[str, list] = {}
    judged: dict = {}
    for line in _objects(path, missing, needed):
        judged = line if {"linear_acc1", "val_acc1_interval"} & set(line) else judged
        step = line.get("step")
        if not finite(step):
            continue
        for name, value in line.items():
            if name not in ("step", "epoch") and finite(value) and (name in found or len(found) < MOST_CURVES):
                found.setdefault(name, []).append((float(step), float(value)))
    for points in found.values():
        points.sort(key=lambda point: point[0])
    return found, judged


def _objects(path: Path, missing: list[str], needed: bool) -> Iterator[dict]:
    """The JSON objects of a file with one in each line. Other lines are counted in `missing`."""
    broken = 0
    for line in _content(path, LARGEST_LOG, missing, needed).splitlines():
        value = parsed(line)
        if value is None:
            broken += 1
        else:
            yield value
    if broken:
        missing.append(f"{path.name}: {broken} lines cannot be read")


def json_object(path: Path, missing: list[str], needed: bool) -> dict:
    """The JSON object that is a file; {} where it cannot be read, which `missing` then says."""
    content = _content(path, LARGEST_TEXT, missing, needed)
    value = parsed(content) if content else {}
    if value is None:
        missing.append(f"{path.name} cannot be read")
    return value or {}


def _content(path: Path, limit: int, missing: list[str], needed: bool) -> bytes:
    """At most `limit` bytes of a log; any other file whole or, if it is larger, not at all."""
    if not os.path.isfile(path):  # such as a pipe, on which a read would wait
        if needed:
            missing.append(f"{path.name} is not there")
        return b""
    try:
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        missing.append(f"{path.name} cannot be read ({error.strerror})")
        return b""
    if len(content) <= limit:
        return content
    if limit != LARGEST_LOG:
        missing.append(f"{path.name}: {path.stat().st_size:,} bytes is more than is read, {limit:,}")
        return b""
    missing.append(f"{path.name}: only the first {limit >> 20} MiB were read")
    return content[: content.rfind(b"\n", 0, limit) + 1]
