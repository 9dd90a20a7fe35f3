"""Views of images: `draw` the random parameters, then `crop_resize` and `apply` them to a batch of pixels.

`draw` turns (seed, epoch, index, view) into numbers, on the CPU, with a counter-based generator. So an image gets the
same view in the same epoch, whatever the number of processes and workers, and wherever a run was resumed. An image that
an epoch shows several times gets another view each time.

`crop_resize` and `apply` are pure functions, on any device. They compute the whole batch at once, where each image has
its own strengths and its own order of operations.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


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
_COUNT = 36

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
)


def draw(
    seed: int, epoch: int, index: Tensor, number: int, view: View, repeats: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Random parameters of view `number` for images `index` (N,), shown `repeats` (N,) times before in this epoch.

    Returns (uniforms (N, 22), parameters (N, 11) float32). `crop_boxes` turns the uniforms into a crop when the size of
    the image is known. `apply` reads the parameters, named in COLUMNS. An operation that is not drawn has its neutral
    value (factor 1, hue 0, sigma 0, threshold 2, angle 0).
    """
    u = uniforms(seed, epoch, index, number, _COUNT, repeats)
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
    return u[:, _CROP], torch.stack(params, 1).float()


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


def crop_resize(pixels: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Crop each image (N, C, H, W) to its box (N, 4) and resize to (N, C, size, size), antialiased bicubic.

    Resizing is linear and separable: two batched products, with a (size, H) and a (size, W) matrix per image.
    pixels: uint8, uint16 or floats in 0..1. Returns floats in 0..1.
    """
    boxes = boxes.to(pixels.device, non_blocking=True)
    rows = _resample_matrix(boxes[:, 0], boxes[:, 2], pixels.shape[2], size)
    columns = _resample_matrix(boxes[:, 1], boxes[:, 3], pixels.shape[3], size)
    n, channels, height, width = pixels.shape
    x = to_unit(pixels).reshape(n, channels * height, width) @ columns.mT
    x = x.clamp_(0, 1).view(n, channels, height, size)  # as Pillow does between its two passes
    return (rows[:, None] @ x).clamp_(0, 1)


def _resample_matrix(start: Tensor, length: Tensor, in_size: int, out_size: int) -> Tensor:
    """(N, out_size, in_size) weights that resize in_size[start : start + length] to out_size.

    The cubic kernel has a = -0.5 and is wider when an image shrinks, as in Pillow and torchvision's antialiased resize.
    Pixels outside the box have no weight.
    """
    start, length = start.float()[:, None, None], length.float()[:, None, None]
    scale = length / out_size
    out = torch.arange(out_size, device=start.device).view(1, -1, 1)
    pixel = torch.arange(in_size, device=start.device).view(1, 1, -1)
    centre = start + (out + 0.5) * scale
    distance = (pixel + 0.5 - centre).div_(scale.clamp(min=1)).abs_()
    near, far = distance.clamp(max=1), distance.clamp(1, 2)  # the kernel has two parts; each is 0 at its end
    weights = (1.5 * near).sub_(2.5).mul_(near * near).add_(1)
    weights.add_((-0.5 * far).add_(2.5).mul_(far).sub_(4).mul_(far).add_(2))
    weights.mul_(((pixel >= start) & (pixel < start + length)).float())
    return weights.div_(weights.sum(2, keepdim=True))


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 or uint16 -> floats in 0..1; floats stay as they are."""
    if pixels.is_floating_point():
        return pixels
    return pixels.float().div_(torch.iinfo(pixels.dtype).max)


def apply(
    pixels: Tensor, params: Tensor, view: View, mean: Tensor, std: Tensor, hue_place: int | None = None
) -> Tensor:
    """The view's operations on cropped images: flips, rotation, jitter, grey, blur, solarise, normalise.

    pixels: (N, C, H, W), uint8, uint16 or floats in 0..1, on any device. params: (N, 11) from `draw`. mean, std: (C,).
    hue_place: the place of hue, 0 to 3, in the order of operations, if all these images have the same; saves time.
    Returns normalised floats (N, C, H, W). Where C is not 3, saturation, hue and grey are left out.

    An operation that only some images get is chosen by `lerp` with a weight of exactly 0 or 1. On a CPU this is several
    times faster than `where`.
    """
    x = to_unit(pixels)
    params = params.to(x.device, x.dtype, non_blocking=True)[:, :, None, None, None]
    flip, brightness, contrast, saturation, hue, order, gray, sigma, threshold, vertical, angle = params.unbind(1)
    x = torch.lerp(x, x.flip(-1), flip)  # a new tensor: the rest may change it in place
    if view.vertical_flip > 0:
        x.lerp_(x.flip(-2), vertical)
    if view.rotation > 0 and view.rotation_prob > 0:
        x.lerp_(rotate(x, angle.flatten()), (angle != 0).to(x.dtype))
    if view.jitter_prob > 0:
        x = _jitter(x, brightness, contrast, saturation, hue, order.long().flatten(), view.jitter[3] > 0, hue_place)
    if x.shape[1] == 3 and view.grayscale > 0:
        x.lerp_(_luma(x), gray)
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
    place = torch.where(jittered, _orders(params.device)[column["order"].long(), 3], -1)
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
            }
            absent = {name: 0.0 for name, some in drawn.items() if not some}
            kernel = min(view.blur_kernel, 2 * math.ceil(4.5 * column["sigma"][rows].max()) + 1)
            yield rows, replace(view, **absent, blur_kernel=kernel), value // 2 if value >= 0 else None


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Turn each image (N, C, H, W) about its centre by its own angle (N,) in degrees, counter-clockwise.

    Bilinear, where torchvision's RandomRotation by default takes the nearest pixel. Pixels from outside the image are
    0, black, as there.
    """
    height, width = x.shape[2:]
    radians = torch.deg2rad(angle.float())
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    # The place that a pixel comes from, in units of half the width and half the height.
    source = torch.stack([cos, -sin * height / width, zero, sin * width / height, cos, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(source, list(x.shape), align_corners=False)
    return F.grid_sample(x.float(), grid, align_corners=False).to(x.dtype)


def _luma(x: Tensor) -> Tensor:
    """Grey image (N, 1, H, W), ITU-R 601 weights; the mean over channels where C is not 3."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    r, g, b = x.split(1, 1)
    return (0.2989 * r).add_(g, alpha=0.587).add_(b, alpha=0.114)


def once(table: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`table(...)` is made once for the same arguments: to send it every time would let the CPU wait for the GPU.

    For torch.compile it is a constant.
    """
    cached = lru_cache(maxsize=8)(table)

    @torch.compiler.assume_constant_result
    def made(*arguments) -> Tensor:
        return cached(*arguments)

    return made


@once
def _orders(device: torch.device) -> Tensor:
    """(24, 4): the orders of brightness (0), contrast (1), saturation (2) and hue (3).

    Of each order the three blends, without hue, then the place of hue.
    """
    orders = permutations(range(4))
    return torch.tensor([[*(op for op in order if op != 3), order.index(3)] for order in orders], device=device)


def _jitter(x, brightness, contrast, saturation, hue, order: Tensor, use_hue: bool, place: int | None) -> Tensor:
    """Colour jitter, where every image has its own `order` (N,) of the four operations. Changes `x`.

    Brightness, contrast and saturation are blends of the image with a reference: with black, its mean grey, its grey
    version. Three blends before hue and three after it serve all 24 orders; those that an image's order has on the
    other side of hue are neutral for it. If all images have hue at the same `place`, three blends are enough.
    """
    color = x.shape[1] == 3
    blends, hue_place = _orders(x.device)[order].split([3, 1], 1)  # (N, 3), (N, 1)
    factors = torch.stack([brightness, contrast, saturation if color else torch.ones_like(saturation)], 1)
    factors = factors.flatten(1).gather(1, blends)

    def blend(x: Tensor, factors: Tensor, which: range) -> Tensor:
        rest = 1 - factors
        weights = torch.stack([factors, rest * (blends == 1), rest * (blends == 2)])[..., None, None, None]
        for i in which:
            own, of_mean, of_luma = weights[:, :, i]
            luma = _luma(x)
            mean = luma.mean((2, 3), keepdim=True).mul_(of_mean)
            x.mul_(own).add_(luma.mul_(of_luma).add_(mean)).clamp_(0, 1)
        return x

    if not (color and use_hue):
        return blend(x, factors, range(3))
    if place is not None:
        return blend(shift_hue(blend(x, factors, range(place)), hue), factors, range(place, 3))
    before = hue_place > torch.arange(3, device=x.device)
    x = blend(x, torch.where(before, factors, 1.0), range(3))
    x = torch.lerp(x, shift_hue(x, hue), (hue != 0).to(x.dtype))
    return blend(x, torch.where(before, 1.0, factors), range(3))


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of RGB images (N, 3, H, W) by `shift` (N, 1, 1, 1) of a full circle."""
    r, g, b = x.split(1, 1)
    top, bottom = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = top - bottom
    not_red, not_green = (top - r).sign_(), (top - g).sign_()  # 0 where that channel is the largest, else 1
    difference = (g - b).lerp_((b - r).lerp_(r - g, not_green), not_red)
    hue = difference.div_(chroma.clamp(min=torch.finfo(x.dtype).tiny))
    hue.addcmul_(not_red, not_green.mul_(2).add_(2))  # red 0, green 2, blue 4
    hue.add_(6 * shift)
    hue.sub_((hue / 6).floor_(), alpha=6)
    opposite, sign, offset = _channels(x.device, x.dtype)
    return (hue - opposite).abs_().mul_(sign).add_(offset).clamp_(0, 1).mul_(chroma).add_(bottom)


@once
def _channels(device: torch.device, dtype: torch.dtype) -> Tensor:
    """(3, 3, 1, 1): a channel's share of the chroma is |hue - 3| - 1 (red), 2 - |hue - 2|, 2 - |hue - 4|, in 0..1."""
    columns = [[3, 2, 4], [1, -1, -1], [-1, 2, 2]]
    return torch.tensor(columns, device=device, dtype=dtype)[:, :, None, None]


def blur(x: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Gaussian blur of each image (N, C, H, W) with its own sigma (N,), reflected borders; 0: no blur.

    A blur along one axis is a product with a (side, side) matrix that is a band of width `kernel`. It is computed in
    blocks of rows, which leaves out most of the zeros.
    """
    n, channels, height, width = x.shape
    offsets = torch.arange(kernel, device=x.device) - kernel // 2
    weights = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)
    weights = weights / weights.sum(1, keepdim=True)
    rows = _bands(weights, height)
    columns = rows if width == height else _bands(weights, width)
    y = torch.cat([band[:, None] @ x[:, :, near] for near, band in rows], 2)
    y = y.view(n, channels * height, width)
    y = torch.cat([y[:, :, near] @ band.mT for near, band in columns], 2)
    return torch.lerp(x, y.view(x.shape), (sigma > 0).to(x.dtype).view(-1, 1, 1, 1))


def _bands(weights: Tensor, side: int) -> list[tuple[slice, Tensor]]:
    """For each block of places: the places of its neighbours, a slice, and weights (N, block, neighbours)."""
    kernel = weights.shape[1]
    block, half, period = min(side, 32), kernel // 2, max(2 * (side - 1), 1)
    window = block + kernel - 1  # a block and its neighbours on both sides
    # Rows that are too long by one, read in the right length: each row is shifted by one against the row before.
    shifted = F.pad(weights, (0, block)).repeat(1, block)[:, : block * window].view(-1, block, window)
    # Places outside the image are mirrored into it. The tables are made on the device: to send them would take longer.
    mirrored = torch.arange(-half, side + block + half, device=weights.device).abs_().remainder_(period)
    mirrored = torch.minimum(mirrored, period - mirrored)
    bands = []
    for start in range(0, side, block):
        near = slice(max(start - half, 0), min(start + block + half, side))
        places = torch.arange(near.start, near.stop, device=weights.device)
        fold = (mirrored[start : start + window, None] == places).to(weights.dtype)
        bands.append((near, shifted[:, : side - start] @ fold))
    return bands
