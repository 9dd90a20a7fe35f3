"""Draw pages of images as PNG: the views that a run trains on, and the neighbours of images."""

import io
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ssl.augment import View, to_unit
from ssl.console import say
from ssl.data.decode import BadImage
from ssl.data.images import Images, evenly_spaced
from ssl.data.loader import finish, training_batches
from ssl.data.order import FixedOrder
from ssl.errors import UserError
from ssl.files import write_bytes

ROWS = 8  # of a page
SHOWN = 6  # views of an image, of several epochs if one has fewer
SIDE = 112  # pixels of an image on a page
SAME, OTHER = (0.0, 0.447, 0.698), (0.902, 0.624, 0.0)  # frames: blue and orange, also told apart by the colour-blind


def views_of(
    data: Images, views: list[View], mean: list[float], std: list[float], seed: int, epochs: int
) -> tuple[Tensor, Tensor]:
    """(index (R,), pixels (R, epochs · views, C, size, size)) of the views that training sees of R images.

    They are the views of a run with this seed in its first epochs, before normalisation. Raises `UserError` where no
    image can be read.
    """
    index = torch.tensor(evenly_spaced(len(data), ROWS))
    order = FixedOrder(index, len(index), 1, seed)
    statistics = [torch.tensor(values) for values in (mean, std)]
    back_mean, back_std = (values.view(-1, 1, 1) for values in statistics)
    shown = []
    for batch in training_batches(data, views, order, 0, epochs, workers=0, device=torch.device("cpu")):
        shown += [x * back_std + back_mean for x in finish(batch, views, *statistics)]
    return batch.index, torch.stack(shown, 1)


def write_views(path: Path, data: Images, views: list[View], mean: list[float], std: list[float], seed: int) -> None:
    """Write a page of views: each row is an image and its views in the first epochs. A failure is printed only."""
    epochs = max(1, SHOWN // len(views))
    try:
        index, shown = views_of(data, views, mean, std, seed, epochs)
        rows = [[data.pixels(i), *of_image] for i, of_image in zip(index.tolist(), shown)]
        titles = ["image", *(f"ep. {e + 1}, view {v + 1}" for e in range(epochs) for v in range(len(views)))]
        write_bytes(page(rows, titles), path)
    except (BadImage, UserError, OSError) as error:
        say(f"*** {path.name} could not be made: {error} ***")


def page(rows: list[list[Tensor]], titles: list[str], frames: list[list[tuple | None]] | None = None) -> bytes:
    """PNG of rows of images (C, H, W), integer or floats in 0..1, with a title over every column.

    `frames` has a colour, or None, for every image.
    """
    gap, top = 6, 18
    height, width = len(rows) * (SIDE + gap) + gap + top, len(titles) * (SIDE + gap) + gap
    sheet = torch.ones(3, height, width)
    for r, row in enumerate(rows):
        for c, pixels in enumerate(row):
            y, x = top + gap + r * (SIDE + gap), gap + c * (SIDE + gap)
            colour = frames and frames[r][c]
            if colour:
                sheet[:, y - 4 : y + SIDE + 4, x - 4 : x + SIDE + 4] = torch.tensor(colour).view(3, 1, 1)
            sheet[:, y : y + SIDE, x : x + SIDE] = tile(pixels)
    image = Image.fromarray(sheet.mul(255).round().byte().permute(1, 2, 0).numpy())
    draw = ImageDraw.Draw(image)
    for c, title in enumerate(titles):
        draw.text((gap + c * (SIDE + gap), 6), title, fill="black")
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def tile(pixels: Tensor, side: int = SIDE) -> Tensor:
    """An image (C, H, W) as (3, side, side) in 0..1. The whole image is shown; small ones keep visible pixels.

    With one or two channels the first is shown as grey, with four or more the first three as colours.
    """
    x = to_unit(pixels).clamp(0, 1)
    x = x[:3] if len(x) >= 3 else x[:1].expand(3, -1, -1)
    scale = side / max(x.shape[1:])
    size = [max(1, round(length * scale)) for length in x.shape[1:]]
    how = {"mode": "nearest"} if scale >= 1 else {"mode": "bilinear", "antialias": True}
    x = F.interpolate(x[None], size, **how)[0]
    down, right = side - size[0], side - size[1]
    return F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2), value=1.0)
