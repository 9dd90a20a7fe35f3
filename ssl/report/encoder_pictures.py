"""Pictures of a trained encoder in its run folder: neighbours.png, correlation.png, and pictures.json for the report.

They are made from encoder.pt, the newest checkpoint and up to three thousand of the run's own images. Training never
looks at them.
"""

import io
import json
import typing
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from ssl import files, heads
from ssl.augment import View
from ssl.checkpoints import torch_file
from ssl.checkpoints.restore import restore
from ssl.checkpoints.run_reader import Run
from ssl.console import say
from ssl.data.cores import auto_workers
from ssl.data.decode import Range
from ssl.data.images import Images, evenly_spaced
from ssl.data.loader import finish, training_batches
from ssl.distributed import join
from ssl.errors import UserError
from ssl.evaluation import inference
from ssl.report import projections
from ssl.report.view_page import OTHER, ROWS, SAME, Chosen, page
from ssl.settings import config
from ssl.sources import datasets
from ssl.training import health_rules
from ssl.training.feature_spread import geometry, redundancy

TEST, TRAIN, EMBEDDED = 1000, 2000, 512  # images at most
COLUMNS = 7  # neighbours of an image
LARGEST_MATRIX = 256  # dimensions that are drawn
# The settings that say which images a run has, as datasets.load calls them.
OF_DATA = {
    "dataset": str | None,
    "data_dir": str | None,
    "image_size": int | None,
    "class_list": str | None,
    "csv": str | None,
    "image_column": str | None,
    "label_column": str | None,
    "positive": list[str] | None,
    "group_column": str | None,
    "split_column": str | None,
    "splits_folder": str | None,
    "test_slides": list[str] | None,
    "value_range": Range | None,
    "seed": int | None,
}


@torch.no_grad()
def make(folder: Path, run: Run) -> None:
    """Write the pictures of the run in `folder`, which `run` has been read from. Raises `UserError` where the
    encoder or its images cannot be read."""
    device = join("auto")
    encoder, source, about = restore(folder)
    say(f"encoder     {about['name']}, weights of {source}")
    train, test, has_test = images_of(run)
    size = inference.judged_size(encoder, test, about["image_size"])
    statistics = _statistics(run, train)
    encoder.requires_grad_(False).to(device)
    how = dict(size=size, batch_size=128, workers=auto_workers(), device=device, mean=statistics[0], std=statistics[1])
    parts = []
    for data, most, title in ((test, TEST, "test images"), (train, TRAIN, "training images")):
        data = data.subset(torch.tensor(evenly_spaced(len(data), most)))
        features, read, _ = inference.outputs(encoder, data, title=title, **how)
        parts += [data.subset(read.nonzero()[:, 0].cpu()), features[read].cpu()]
    test, test_x, train, train_x = parts
    if min(len(test), len(train)) < 2:
        raise UserError(f"{folder}: fewer than two of the run's images can be read")
    files.write_bytes(neighbours_page(test, test_x, train, train_x), folder / "neighbours.png")
    points, explained = projections.pca(test_x)
    said = {
        "x": _rounded(points[:, 0]),
        "y": _rounded(points[:, 1]),
        "explained": _rounded(explained),
        "labels": test.labels.tolist(),
        "classes": test.classes,
        "has_test": has_test,
    }
    if z := embeddings(folder, run, encoder, train, statistics, device):
        said["spectrum"] = _rounded(projections.spectrum(z[0]))
        said["embedded"] = len(z[0])
        matrix = projections.cross_correlation(*(view[:, :LARGEST_MATRIX] for view in z))
        files.write_bytes(heat(matrix), folder / "correlation.png")
        said["reading"] = reading_of(z, train_x, matrix)
    files.write_text(json.dumps(said) + "\n", folder / "pictures.json")


def images_of(run: Run) -> tuple[Images, Images, bool]:
    """(train, test, whether there is a test) of the data set that a run names; without labels every second of its
    images stands for test."""
    given = {
        name: config.coerce(run.settings.get(name), kind, f"config.yaml of the run: {name}")
        for name, kind in OF_DATA.items()
    }
    name = datasets.resolve_name(given.pop("dataset"), given["data_dir"])
    data_dir = given.pop("data_dir")
    options = {key: value for key, value in given.items() if value is not None}
    try:
        train, test = (datasets.load(name, data_dir, split, **options) for split in ("train", "test"))
    except UserError as error:
        if "without labels" not in str(error):
            raise
        everything = datasets.load(name, data_dir, "unlabelled", **options)
        train, test = (everything.subset(torch.arange(first, len(everything), 2)) for first in (0, 1))
        return train, test, False
    return train, test, True


def neighbours_page(test: Images, test_x: Tensor, train: Images, train_x: Tensor) -> bytes:
    """A PNG page of some test images, each followed by the nearest of `train`, framed by whether the class is one."""
    chosen = torch.tensor(evenly_spaced(len(test), ROWS))
    nearest = projections.neighbours(test_x[chosen], train_x, COLUMNS)
    rows, frames = [], []
    for i, found in zip(chosen.tolist(), nearest.tolist()):
        rows.append([test.pixels(i), *(train.pixels(j) for j in found)])
        known = test.labels[i] >= 0
        frames.append(
            [None, *((SAME if train.labels[j] == test.labels[i] else OTHER) if known else None for j in found)]
        )
    return page(rows, ["image", "nearest", *map(str, range(2, nearest.shape[1] + 1))], frames)


def embeddings(
    folder: Path, run: Run, encoder: nn.Module, data: Images, statistics: list[list[float]], device: torch.device
) -> list[Tensor]:
    """The embeddings (N, D) of two views of some images, by the newest checkpoint; none where it has no projector."""
    views = [_view(values) for values in run.about.get("views", [])[:2]]
    kept = torch_file.kept(folder)
    model = torch_file.load(kept[0]).get("model", {}) if kept and len(views) == 2 else {}
    weights = {name.removeprefix("projector."): w for name, w in model.items() if name.startswith("projector.")}
    if not weights:
        say("no projector or no views in this run folder: without the pictures of embeddings")
        return []
    width = next(iter(weights.values())).shape[1]
    settings = run.settings
    head = heads.projector(
        width,
        str(settings.get("projector")),
        batch_norm=settings.get("method") == "barlow_twins",
        bias=bool(settings.get("projector_bias")),
    )
    head.load_state_dict(weights)
    encoder.load_state_dict({k.removeprefix("encoder."): w for k, w in model.items() if k.startswith("encoder.")})
    net = nn.Sequential(encoder, head).eval().to(device)
    mean, std = (torch.tensor(values, device=device) for values in statistics)
    z: list[list[Tensor]] = [[], []]
    for index in torch.tensor(evenly_spaced(len(data), EMBEDDED)).split(64):
        for batch in training_batches(data, views, Chosen(index, 0), 0, 1, 0, device):
            for of_view, x in zip(z, finish(batch, views, mean, std)):
                of_view.append(net(x).float().cpu())
    return [torch.cat(of_view) for of_view in z]


def reading_of(z: list[Tensor], h: Tensor, matrix: Tensor) -> health_rules.Reading:
    """What health would measure: of embeddings z (N, D) of two views, representations h (M, F), and the correlation
    `matrix` (k, k) of k of the dimensions."""
    off = (matrix.square().sum() - matrix.diagonal().square().sum()).item() / len(matrix)
    rows, dim = z[0].shape
    h = h[torch.tensor(evenly_spaced(len(h), EMBEDDED))]
    return health_rules.finite(
        geometry(*z, h) | {"redundancy": redundancy(off, rows, len(matrix)), "rows": rows, "dim": dim}
    )


def heat(matrix: Tensor) -> bytes:
    """PNG of a matrix in -1..1: white at 0, blue above, red below, at least 512 pixels wide."""
    strength = matrix.abs().clamp(max=1)[..., None]
    colour = torch.where(matrix[..., None] >= 0, torch.tensor([0.0, 0.29, 0.62]), torch.tensor([0.78, 0.12, 0.1]))
    pixels = (1 - strength + strength * colour).mul(255).round().byte()
    times = -(-512 // len(matrix))
    pixels = pixels.repeat_interleave(times, 0).repeat_interleave(times, 1)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG", optimize=True)
    return file.getvalue()


def _statistics(run: Run, data: Images) -> list[list[float]]:
    kind = list[float] | None
    given = [config.coerce(run.settings.get(name), kind, f"config.yaml of the run: {name}") for name in ("mean", "std")]
    return list(datasets.normalisation(data, *given))


def _view(values) -> View:
    """A view as about.json has it. Raises `UserError` for what is none."""
    kinds = typing.get_type_hints(View)
    if not isinstance(values, dict) or not set(values) <= set(kinds):
        raise UserError("about.json: views are not those of this version; train on, or leave --pictures away")
    return View(**{name: config.coerce(value, kinds[name], f"about.json: {name}") for name, value in values.items()})


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]
