"""What a loader worker does: it decodes files, crops and resizes them, and returns whole batches.

Pixels stay uint8; 16-bit pixels become floats in 0..1.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ssl.augment import View, crop_boxes, draw, to_unit
from ssl.data.decode import BadImage, reduction_to
from ssl.data.images import Images
from ssl.data.order import Order, batch_seed, stand_in
from ssl.errors import UserError

BILINEAR = Image.Resampling.BILINEAR


@dataclass
class Batch:
    """`views`: a pair (pixels, parameters) for each view, for `augment.apply`. `index` (N,) into the data set.

    `seed` is for what the model draws. `bad`: (path, reason) of the files that other images replace.
    """

    views: list[tuple[Tensor, Tensor]]
    index: Tensor
    labels: Tensor
    seed: int
    bad: list[tuple[str, str]] = field(default_factory=list)

    def to(self, device: torch.device) -> "Batch":
        return self._moved(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        views = [(move(pixels), move(params)) for pixels, params in self.views]
        return replace(self, views=views, index=move(self.index), labels=move(self.labels))


class TrainingFiles(Dataset):
    """Whole micro-batches, by the number step · accumulate + micro: decoded, cropped and resized."""

    def __init__(self, data: Images, views: list[View], order: Order, rank: int):
        self.data, self.views, self.order, self.rank = data, views, order, rank

    def __getitem__(self, number: int) -> Batch | UserError:
        place = (*divmod(number, self.order.accumulate), self.rank)
        epoch, index, repeats = self.order.indices(*place)
        index = index.clone()
        draws = [draw(self.order.seed, epoch, index, i, view, repeats) for i, view in enumerate(self.views)]
        shown = [[] for _ in self.views]
        bad: list[tuple[str, str]] = []
        for row, i in enumerate(index.tolist()):
            try:
                index[row], crops = self._readable(i, [crop[row : row + 1] for crop, _ in draws], bad)
            except UserError as error:
                return error
            for crop, of_view in zip(crops, shown):
                of_view.append(crop)
        pairs = [(torch.stack(of_view), params) for of_view, (_, params) in zip(shown, draws)]
        return Batch(pairs, index, self.data.labels[index], batch_seed(self.order, *place), bad)

    def _readable(self, index: int, draws: list[Tensor], bad: list[tuple[str, str]]) -> tuple[int, list[Tensor]]:
        """(index, crops) of an image, or of its first replacement that can be read. Unreadable ones go to `bad`."""
        for attempt in range(13):
            chosen = stand_in(index, attempt, len(self.data), self.order.seed)
            try:
                return chosen, self._crops(chosen, draws)
            except BadImage as error:
                bad.append((error.path, error.reason))
        last = ": ".join(bad[-1])
        raise UserError(f"a dozen images in a row cannot be read; is the data still there? The last was {last}")

    def _crops(self, index: int, draws: list[Tensor]) -> list[Tensor]:
        """The image's crop (C, size, size) for every view, by the random numbers (1, 22) of each view."""
        boxes: list[list[int]] = []
        full = []

        def reduction(height: int, width: int) -> int:
            full.append(height)
            sides = torch.tensor([[height], [width]])
            boxes.extend(crop_boxes(crop, *sides, view)[0].tolist() for crop, view in zip(draws, self.views))
            # Every crop must stay at least twice its final size: a better filter does the rest.
            spare = min(min(box[2:]) / (2 * view.size) for box, view in zip(boxes, self.views))
            return reduction_to(spare)

        pixels = self.data.pixels(index, reduction)
        factor = round(full[0] / pixels.shape[1])
        return [resized_crop(pixels, box, view.size, factor) for box, view in zip(boxes, self.views)]


def resized_crop(pixels: Tensor, box: list[int], size: int, factor: int = 1) -> Tensor:
    """Crop pixels (C, H, W) to `box` (top, left, height, width) and resize to (C, size, size), bicubic.

    If `pixels` are of an image reduced by `factor`, `box` is in pixels of the full image.
    """
    if factor == 1:
        top, left, height, width = box
        crop = _resizable(pixels[:, top : top + height, left : left + width])[None]
        # torchvision's resized_crop calls the same and takes a third longer.
        crop = F.interpolate(crop, (size, size), mode="bicubic", antialias=True)[0]
        return crop.clamp_(0, 1) if crop.is_floating_point() else crop
    top, left, height, width = (side / factor for side in box)  # may end inside a pixel, which Pillow allows
    limit = left + width, top + height
    corners = left, top, min(limit[0], pixels.shape[2]), min(limit[1], pixels.shape[1])
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BICUBIC, corners)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _resizable(pixels: Tensor) -> Tensor:
    """Pixels of a type that torch can resize: uint8 as they are, uint16 as floats in 0..1."""
    return pixels if pixels.dtype == torch.uint8 else to_unit(pixels)


# Judging ------------------------------------------------------------------------


class PlainFiles(Dataset):
    """Batches of images by slice, not augmented, uint8 or floats in 0..1; with {row: (path, reason)} of bad ones."""

    def __init__(self, data: Images, size: int):
        self.data, self.size = data, size

    def __getitem__(self, where: slice) -> tuple[Tensor, dict[int, tuple[str, str]]]:
        black = torch.zeros(self.data.channels, self.size, self.size, dtype=torch.uint8)
        shown, bad = [], {}
        for row, index in enumerate(range(where.start, where.stop)):
            try:
                shown.append(central_crop(self.data.pixels(index), self.size))
            except BadImage as error:
                shown.append(black)
                bad[row] = error.path, error.reason
        return torch.stack(shown) if shown else black[None][:0], bad


def central_crop(pixels: Tensor, size: int) -> Tensor:
    """The central square (C, size, size) of pixels (C, H, W) resized to a short side of size · 256/224, bilinear.

    The square, with a margin for the filter, is cut out before it is resized: an image of 40,000 × 3 pixels, resized
    whole, would take gigabytes.
    """
    sides = np.array(pixels.shape[1:])
    resized = np.array([int(round(size * 256 / 224) * side / sides.min()) for side in sides])  # as torchvision's
    scale = sides / resized
    start = np.round((resized - size) / 2) * scale  # of the crop, in pixels of the image
    stop = np.minimum(start + size * scale, sides)  # rounding must not lead out of the image
    reach = np.maximum(scale, 1)  # of the bilinear filter
    low, high = np.maximum(np.floor(start - reach), 0).astype(int), np.ceil(stop + reach).astype(int)
    near = _resizable(pixels[:, low[0] : high[0], low[1] : high[1]])
    box = tuple(np.concatenate([(start - low)[::-1], (stop - low)[::-1]]))  # left, top, right, bottom
    # One channel at a time: Pillow has floats in one channel only.
    parts = [np.array(Image.fromarray(channel.numpy()).resize((size, size), BILINEAR, box)) for channel in near]
    return torch.from_numpy(np.stack(parts))
