"""Pictures of a trained encoder in its run folder: neighbours.png, correlation.png, and pictures.json for the report.

They are made from encoder.pt, the newest checkpoint and up to three thousand of the run's own images. Training never
looks at them.
"""

import dataclasses
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
from ssl.data.images import Images, evenly_spaced
from ssl.data.loader import finish, training_batches
from ssl.data.order import FixedOrder
from ssl.distributed import join
from ssl.errors import UserError
from ssl.evaluation import inference
from ssl.evaluation.neighbours import nearest
from ssl.report import projections
from ssl.report.view_page import OTHER, ROWS, SAME, page
from ssl.settings.kinds import coerce
from ssl.settings.shared import ImageSettings
from ssl.sources import datasets
from ssl.training import health_rules
from ssl.training.feature_spread import geometry, redundancy

TEST, TRAIN, EMBEDDED = 1000, 2000, 512  # images at most
COLUMNS = 7  # neighbours of an image
LARGEST_MATRIX = 256  # dimensions of the correlation matrix that are drawn


@torch.no_grad()
def make(folder: Path, run: Run) -> None:
    """Write the pictures of the run in `folder`, from which `run` was read.

    Raises `UserError` where the encoder or its images cannot be read.
    """
    device = join("auto")
    encoder, source, about = restore(folder)
    say(f"encoder     {about['name']}, weights of {source}")
    settings = image_settings(run)
    train, test, has_test = images_of(dataclasses.replace(settings, short_side=None))  # not all are held
    mean, std = datasets.normalisation(train, settings.mean, settings.std)
    size = inference.judged_size(encoder, train, about["image_size"])
    encoder.requires_grad_(False).to(device)
    how = inference.Reading(size, 128, auto_workers(), mean, std, device)
    parts = []
    for data, most, title in ((test, TEST, "test images"), (train, TRAIN, "training images")):
        chosen = data.subset(torch.tensor(evenly_spaced(len(data), most)))
        data = dataclasses.replace(chosen, short_side=settings.short_side)
        h, read, _ = inference.outputs(encoder, data, how, title)
        parts += [data.subset(read.nonzero()[:, 0].cpu()), h[read].cpu()]
    test, test_h, train, train_h = parts
    if min(len(test), len(train)) < 2:
        raise UserError(f"{folder}: fewer than two of the run's images can be read")
    files.write_bytes(neighbours_page(test, test_h, train, train_h), folder / "neighbours.png")
    points, explained = projections.pca(test_h)
    found = {
        "x": _rounded(points[:, 0]),
        "y": _rounded(points[:, 1]),
        "explained": _rounded(explained),
        "labels": test.labels.tolist(),
        "classes": test.classes,
        "has_test": has_test,
    }
    if mapped := projections.neighbour_map(test_h):
        method, points = mapped
        found["map"] = {"method": method, "x": _rounded(points[:, 0]), "y": _rounded(points[:, 1])}
    if z := embeddings(folder, run, encoder, train, [mean, std], device):
        found["spectrum"] = _rounded(projections.spectrum(z[0]))
        found["embedded"] = len(z[0])
        matrix = projections.cross_correlation(*(view[:, :LARGEST_MATRIX] for view in z[:2]))
        files.write_bytes(heat(matrix), folder / "correlation.png")
        found["reading"] = health_reading(z, train_h, matrix)
    files.write_text(json.dumps(found) + "\n", folder / "pictures.json")


def image_settings(run: Run) -> ImageSettings:
    """The images of a run, by its config.yaml. Raises `UserError` for values of a wrong type."""
    given = {
        field.name: coerce(value, field.type, f"config.yaml of the run: {field.name}")
        for field in dataclasses.fields(ImageSettings)
        if (value := run.settings.get(field.name)) is not None
    }
    settings = ImageSettings(**{"seed": 0, **given, "download": False})
    datasets.resolve(settings)
    return settings


def images_of(settings: ImageSettings) -> tuple[Images, Images, bool]:
    """(train, test, whether there is a test split). Images without labels are divided: every second one is `test`."""
    try:
        splits = {split: datasets.load_as(settings, split) for split in ("train", "test")}
    except UserError as error:
        if "without labels" not in str(error):
            raise
        images = datasets.load_as(settings, "unlabelled")
        train, test = (images.subset(torch.arange(first, len(images), 2)) for first in (0, 1))
        return train, test, False
    return *datasets.shown_alike(settings, splits).values(), True


def neighbours_page(test: Images, test_h: Tensor, train: Images, train_h: Tensor) -> bytes:
    """PNG: rows of a test image and its nearest training images; the frame says whether the class is the same.

    `test_h` (M, F) and `train_h` (N, F) are representations of the images.
    """
    chosen = torch.tensor(evenly_spaced(len(test), ROWS))
    places = nearest(train_h, test_h[chosen], COLUMNS).places
    rows, frames = [], []
    for i, found in zip(chosen.tolist(), places.tolist()):
        rows.append([test.pixels(i), *(train.pixels(j) for j in found)])
        known = test.labels[i] >= 0
        frames.append(
            [None, *((SAME if train.labels[j] == test.labels[i] else OTHER) if known else None for j in found)]
        )
    return page(rows, ["image", "nearest", *map(str, range(2, places.shape[1] + 1))], frames)


def embeddings(
    folder: Path, run: Run, encoder: nn.Module, data: Images, statistics: list[list[float]], device: torch.device
) -> list[Tensor]:
    """Embeddings (N, D) of each view of N images, by the network of the newest checkpoint; [] without a projector.

    `statistics`: [mean, std] by channel.
    """
    views = [_view(values) for values in run.about.get("views", [])]
    kept = torch_file.kept(folder)
    model = torch_file.load(kept[0]).get("model", {}) if kept and len(views) > 1 else {}
    weights = {name.removeprefix("projector."): w for name, w in model.items() if name.startswith("projector.")}
    if not weights:
        say("this run folder has no projector or no views: no pictures of embeddings are made")
        return []
    width, batch_norm = weights["0.weight"].shape[1], any(name.endswith("running_mean") for name in weights)
    head = heads.projector(width, str(run.settings.get("projector")), batch_norm, bias="0.bias" in weights)
    head.load_state_dict(weights)
    encoder.load_state_dict({k.removeprefix("encoder."): w for k, w in model.items() if k.startswith("encoder.")})
    net = nn.Sequential(encoder, head).eval().to(device)
    mean, std = (torch.tensor(values, device=device) for values in statistics)
    z: list[list[Tensor]] = [[] for _ in views]
    for index in torch.tensor(evenly_spaced(len(data), EMBEDDED)).split(64):
        for batch in training_batches(data, views, FixedOrder(index, len(index), 1, 0), 0, 1, workers=0, device=device):
            for of_view, x in zip(z, finish(batch, views, mean, std)):
                of_view.append(net(x).float().cpu())
    return [torch.cat(of_view) for of_view in z]


def health_reading(z: list[Tensor], h: Tensor, matrix: Tensor) -> health_rules.Reading:
    """The values that health measures, here of embeddings z (N, D) of each view and representations h (M, F).

    `matrix` (k, k) is the cross-correlation of k of the D dimensions, of view 1 and view 2.
    """
    off = (matrix.square().sum() - matrix.diagonal().square().sum()).item() / len(matrix)
    rows, dim = z[0].shape
    h = h[torch.tensor(evenly_spaced(len(h), EMBEDDED))]
    return health_rules.finite(
        geometry(z, h) | {"redundancy": redundancy(off, rows, len(matrix)), "rows": rows, "dim": dim}
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


def _view(values: object) -> View:
    """The view that about.json describes. Raises `UserError` where that is not possible."""
    kinds = typing.get_type_hints(View)
    if not isinstance(values, dict) or not set(values) <= set(kinds):
        raise UserError("about.json: the views are of another version; continue the run, or leave --pictures out")
    return View(**{name: coerce(value, kinds[name], f"about.json: {name}") for name, value in values.items()})


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]
