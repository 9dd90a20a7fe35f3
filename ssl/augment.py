"""Views of images: `draw` the random parameters, then `crop_resize` and `apply` them to a batch of pixels.

`draw` turns (seed, epoch, index, view) into numbers, on the CPU, with a counter-based generator. So an image gets the
same view in the same epoch, whatever the number of processes and workers, and wherever a run was resumed. An image that
an epoch shows several times gets another view each time.

`crop_resize` and `apply` are pure functions, on any device. They compute the whole batch at once, where each image has
its own strengths and its own order of operations. The single operations are in `ssl/pixels.py`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ssl.pixels import blur, crop_resize, hue_places, jitter, jitter_stains, luma, rotate, to_unit

__all__ = [
    "COLUMNS",
    "View",
    "apply",
    "blur",
    "crop_boxes",
    "crop_resize",
    "draw",
    "philox",
    "same_operations",
    "to_unit",
    "uniforms",
]


@dataclass(frozen=True)
class View:
    """The distribution that a view is drawn from. Defaults: view 1 of BYOL and Barlow Twins."""

    size: int = 224  # pixels of the square crop after resizing
    crop_scale: tuple[float, float] = (0.08, 1.0)  # share of the image's area
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width / height
    flip: float = 0.5  # probability
    vertical_flip: float = 0.0  # probability
    rotation: float = 0.0  # largest angle, degrees, to either side
    rotation_prob: float = 1.0
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue
    jitter_prob: float = 0.8
    grayscale: float = 0.2  # probability
    blur_prob: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    blur_kernel: int = 23  # pixels, odd
    solarize_prob: float = 0.0
    solarize_threshold: float = 128 / 255  # of full brightness
    stain_jitter: tuple[float, float] = (0.0, 0.0)  # tissue's stains: gains 1 ± the first, offsets ± the second
    stain_prob: float = 1.0


# Random numbers ---------------------------------------------------------------

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Philox 4x32-10 (Salmon et al. 2011): counters (..., 4) -> random words (..., 4), both 32-bit words in int64."""
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key
    for _ in range(10):
        # Products above 2^63 wrap around; masked, both 32-bit halves are right all the same.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, ((p0 >> 32) & _MASK) ^ c3 ^ k1
        c1, c3 = p1 & _MASK, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack([c0, c1, c2, c3], -1)


def uniforms(seed: int, epoch: int, index: Tensor, view: int, count: int, repeats: Tensor | None = None) -> Tensor:
    """(N, count) random float64 numbers in (0, 1), for view number `view` of the images `index` (N,) in `epoch`.

    repeats: (N,) below 2^24, how often the epoch has shown each image before; None: never.
    """
    blocks = -(-count // 4)
    counter = torch.empty(len(index), blocks, 4, dtype=torch.int64)
    counter[..., 0] = index[:, None] & _MASK
    counter[..., 1] = epoch
    counter[..., 2] = view
    counter[..., 3] = torch.arange(blocks)  # never 256
    if repeats is not None:
        counter[..., 3] += repeats[:, None] << 8
    words = philox(counter, (seed & _MASK, (seed >> 32) & _MASK))
    return ((words.double() + 0.5) / 2**32).flatten(1)[:, :count]


# What each of an image's uniforms is used for. Append only: other places would change the views of every seed.
_ATTEMPTS = 10
_CROP = slice(0, 2 * _ATTEMPTS + 2)
_FLIP, _JITTER_PROB, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE, _ORDER = range(22, 29)
_GRAY, _BLUR_PROB, _SIGMA, _SOLARIZE = range(29, 33)
_VERTICAL, _ROTATION_PROB, _ANGLE = range(33, 36)
_STAIN_PROB, _GAINS, _OFFSETS = 36, slice(37, 40), slice(40, 43)  # drawn only where a view changes the stains
_COUNT = 43

# The columns of what `draw` returns and `apply` reads.
COLUMNS = (
    "flip",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "order",
    "gray",
    "sigma",
    "threshold",
    "vertical",
    "angle",
    "stain",
    "gain_h",
    "gain_e",
    "gain_d",
    "offset_h",
    "offset_e",
    "offset_d",
)


def draw(
    seed: int, epoch: int, index: Tensor, number: int, view: View, repeats: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Random parameters of view `number` for images `index` (N,), shown `repeats` (N,) times before in this epoch.

    Returns (uniforms (N, 22), parameters (N, 18) float32). `crop_boxes` turns the uniforms into a crop when the size of
    the image is known. `apply` reads the parameters, named in COLUMNS. An operation that is not drawn has its neutral
    value (factor 1, hue 0, sigma 0, threshold 2, angle 0, stain 0).
    """
    u = uniforms(seed, epoch, index, number, _COUNT if any(view.stain_jitter) else _STAIN_PROB, repeats)
    jittered = u[:, _JITTER_PROB] < view.jitter_prob

    def factor(column: int, strength: float) -> Tensor:
        low = max(0.0, 1 - strength)
        return torch.where(jittered, low + u[:, column] * (1 + strength - low), 1.0)

    brightness, contrast, saturation, hue = view.jitter
    low, high = view.blur_sigma
    params = [
        (u[:, _FLIP] < view.flip).double(),
        factor(_BRIGHTNESS, brightness),
        factor(_CONTRAST, contrast),
        factor(_SATURATION, saturation),
        torch.where(jittered, (2 * u[:, _HUE] - 1) * hue, 0.0),
        (u[:, _ORDER] * 24).floor(),
        (u[:, _GRAY] < view.grayscale).double(),
        torch.where(u[:, _BLUR_PROB] < view.blur_prob, low + u[:, _SIGMA] * (high - low), 0.0),
        torch.where(u[:, _SOLARIZE] < view.solarize_prob, view.solarize_threshold, 2.0),
        (u[:, _VERTICAL] < view.vertical_flip).double(),
        torch.where(u[:, _ROTATION_PROB] < view.rotation_prob, (2 * u[:, _ANGLE] - 1) * view.rotation, 0.0),
    ]
    return u[:, _CROP], torch.cat([torch.stack(params, 1), _stains(u, view)], 1).float()


def _stains(u: Tensor, view: View) -> Tensor:
    """(N, 7): whether an image's stains are changed, the gain of each, the offset of each."""
    if not any(view.stain_jitter):
        return u.new_zeros(len(u), 7)
    spread, shift = view.stain_jitter
    changed = u[:, _STAIN_PROB, None] < view.stain_prob
    return torch.cat([changed, 1 + (2 * u[:, _GAINS] - 1) * spread, (2 * u[:, _OFFSETS] - 1) * shift], 1)


def crop_boxes(u: Tensor, height: Tensor, width: Tensor, view: View) -> Tensor:
    """Crop boxes (N, 4) int64 (top, left, height, width) in images of the given sizes (N,).

    As torchvision's RandomResizedCrop: the first of ten random areas and aspect ratios that fits into the image; if
    none fits, the largest central box of an allowed ratio. In numpy: a worker has one image at a time, for which numpy
    takes less than half of torch's time.
    """
    u, height, width = u.numpy(), height.numpy().astype(float)[:, None], width.numpy().astype(float)[:, None]
    low, high = view.crop_scale
    area = height * width * (low + u[:, :_ATTEMPTS] * (high - low))
    low, high = (math.log(ratio) for ratio in view.crop_ratio)
    ratio = np.exp(low + u[:, _ATTEMPTS : 2 * _ATTEMPTS] * (high - low))
    box_w, box_h = np.sqrt(area * ratio).round(), np.sqrt(area / ratio).round()
    fits = (box_w > 0) & (box_w <= width) & (box_h > 0) & (box_h <= height)
    first = np.arange(len(u)), fits.argmax(1)
    box_w, box_h = box_w[first][:, None], box_h[first][:, None]

    central_w = np.minimum(width, (height * view.crop_ratio[1]).round())
    central_h = np.minimum(height, (width / view.crop_ratio[0]).round())
    found = fits.any(1, keepdims=True)
    box_w, box_h = np.where(found, box_w, central_w), np.where(found, box_h, central_h)
    top = np.where(found, u[:, -2:-1] * (height - box_h + 1), (height - box_h) / 2)
    left = np.where(found, u[:, -1:] * (width - box_w + 1), (width - box_w) / 2)
    return torch.from_numpy(np.concatenate([np.floor(top), np.floor(left), box_h, box_w], 1).astype(np.int64))


# Pixels -----------------------------------------------------------------------


def apply(
    pixels: Tensor, params: Tensor, view: View, mean: Tensor, std: Tensor, hue_place: int | None = None
) -> Tensor:
    """The view's operations on cropped images: stains, flips, rotation, jitter, grey, blur, solarise, normalise.

    pixels: (N, C, H, W), uint8, uint16 or floats in 0..1, on any device. params: (N, 18) from `draw`. mean, std: (C,).
    hue_place: the place of hue, 0 to 3, in the order of operations, if all these images have the same; saves time.
    Returns normalised floats (N, C, H, W). Where C is not 3, saturation, hue and grey are left out, and a view that
    changes stains raises ValueError. Stains come first: only the colours that the scanner has seen tell them apart.

    An operation that only some images get is chosen by `lerp` with a weight of exactly 0 or 1. On a CPU this is several
    times faster than `where`.
    """
    x = to_unit(pixels)
    params = params.to(x.device, x.dtype, non_blocking=True)[:, :, None, None, None]
    flip, brightness, contrast, saturation, hue, order, gray, sigma, threshold, vertical, angle, stain, *doses = (
        params.unbind(1)
    )
    if view.stain_prob > 0 and any(view.stain_jitter):
        gains, offsets = torch.cat(doses, 1).flatten(1).split(3, 1)
        x = torch.lerp(x, jitter_stains(x, gains, offsets), stain)
    x = torch.lerp(x, x.flip(-1), flip)  # a new tensor: the rest may change it in place
    if view.vertical_flip > 0:
        x.lerp_(x.flip(-2), vertical)
    if view.rotation > 0 and view.rotation_prob > 0:
        x.lerp_(rotate(x, angle.flatten()), (angle != 0).to(x.dtype))
    if view.jitter_prob > 0:
        factors = torch.cat([brightness, contrast, saturation], 1).flatten(1)
        x = jitter(x, factors, hue if view.jitter[3] > 0 else None, order.flatten(), hue_place)
    if x.shape[1] == 3 and view.grayscale > 0:
        x.lerp_(luma(x), gray)
    if view.blur_prob > 0:
        x = blur(x, sigma.flatten(), view.blur_kernel)
    if view.solarize_prob > 0:
        bright = (x - threshold).ge_(0)
        x.lerp_(1 - x, bright)
    mean, std = (statistic.to(x.dtype).view(1, -1, 1, 1) for statistic in (mean, std))
    return x.sub_(mean).div_(std)


def same_operations(params: Tensor, view: View, most: int) -> Iterator[tuple[Tensor, View, int | None]]:
    """Groups of at most `most` images that need the same operations of `apply`: (rows, view, `hue_place`) of each.

    The view is `view` without the operations that were drawn for no image of the group, and with a blur kernel without
    the weights that are nearly zero. Reads the values of `params`, which should be on the CPU.
    """
    column = dict(zip(COLUMNS, params.unbind(1)))
    jittered = sum(column[name] != 1 for name in ("brightness", "contrast", "saturation")) + (column["hue"] != 0) > 0
    place = torch.where(jittered, hue_places(column["order"]), -1)
    blurred = column["sigma"] > 0
    key = 2 * place + blurred
    for value in key.unique().tolist():
        same = (key == value).nonzero()[:, 0]
        for rows in same[column["sigma"][same].argsort()].split(most):
            drawn = {
                "vertical_flip": view.vertical_flip > 0 and column["vertical"][rows].any(),
                "rotation": column["angle"][rows].any(),
                "jitter_prob": value >= 0,
                "grayscale": view.grayscale > 0 and column["gray"][rows].any(),
                "blur_prob": value % 2 == 1,
                "solarize_prob": view.solarize_prob > 0 and (column["threshold"][rows] < 2).any(),
                "stain_prob": column["stain"][rows].any(),
            }
            absent = {name: 0.0 for name, some in drawn.items() if not some}
            kernel = min(view.blur_kernel, 2 * math.ceil(4.5 * column["sigma"][rows].max()) + 1)
            yield rows, replace(view, **absent, blur_kernel=kernel), value // 2 if value >= 0 else None
