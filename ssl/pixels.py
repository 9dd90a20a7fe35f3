"""Operations on a batch of pixels (N, C, H, W), on any device: every image has its own box, angle, colours and blur.

What is changed in place says so; all else returns new tensors. torch.compile takes each function into one graph.
"""

from functools import lru_cache
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor


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


def luma(x: Tensor) -> Tensor:
    """Grey image (N, 1, H, W), ITU-R 601 weights; the mean over channels where C is not 3."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    r, g, b = x.split(1, 1)
    return (0.2989 * r).add_(g, alpha=0.587).add_(b, alpha=0.114)


@lru_cache(maxsize=16)
def _sent(table: tuple, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The table on the device, made once: to send it every time would let the CPU wait for the GPU."""
    return torch.tensor(table, device=device, dtype=dtype)


# The orders of brightness (0), contrast (1), saturation (2) and hue (3): of each the three blends, then hue's place.
_ORDERS = tuple((*(op for op in order if op != 3), order.index(3)) for order in permutations(range(4)))
# A channel's share of the chroma is |hue - 3| - 1 (red), 2 - |hue - 2| (green), 2 - |hue - 4| (blue), in 0..1.
_CHANNELS = ((3, 2, 4), (1, -1, -1), (-1, 2, 2))


# Haematoxylin, eosin, DAB: the density of a unit of each in red, green and blue (Ruifrok & Johnston 2001).
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
_UNMIXED = tuple(map(tuple, torch.linalg.inv(torch.tensor(STAINS, dtype=torch.float64)).tolist()))


# For torch.compile a table is a constant of the graph. It names the constant by the function: one function a table.
@torch.compiler.assume_constant_result
def _orders(device: torch.device) -> Tensor:
    """(24, 4)."""
    return _sent(_ORDERS, device, torch.int64)


@torch.compiler.assume_constant_result
def _channels(device: torch.device, dtype: torch.dtype) -> Tensor:
    """(3, 3): what is subtracted from the hue, the sign of the rest, and what is added."""
    return _sent(_CHANNELS, device, dtype)


@torch.compiler.assume_constant_result
def _stains(device: torch.device) -> Tensor:
    """(3, 3): of each stain the density of red, green and blue."""
    return _sent(STAINS, device, torch.float32)


@torch.compiler.assume_constant_result
def _unmixed(device: torch.device) -> Tensor:
    """(3, 3): of the density of red, green and blue each the stains."""
    return _sent(_UNMIXED, device, torch.float32)


def hue_places(order: Tensor) -> Tensor:
    """The place of hue, 0 to 3, in the orders number `order` (N,), 0 to 23."""
    return _orders(order.device)[order.long(), 3]


def jitter(x: Tensor, factors: Tensor, hue: Tensor | None, order: Tensor, place: int | None) -> Tensor:
    """Colour jitter, where every image has its own `order` (N,), 0 to 23, of the four operations. Changes `x`.

    factors: (N, 3), of brightness, contrast and saturation. hue: (N, 1, 1, 1), None: no image gets it.

    Brightness, contrast and saturation are blends of the image with a reference: with black, its mean grey, its grey
    version. Three blends before hue and three after it serve all 24 orders; those that an image's order has on the
    other side of hue are neutral for it. If all images have hue at the same `place`, three blends are enough.
    """
    color = x.shape[1] == 3
    blends, hue_place = _orders(x.device)[order.long()].split([3, 1], 1)  # (N, 3), (N, 1)
    if not color:
        factors = torch.cat([factors[:, :2], torch.ones_like(factors[:, 2:])], 1)
    factors = factors.gather(1, blends)
    if not color or hue is None:
        return _blend(x, factors, blends)
    if place is not None:
        x = shift_hue(_blend(x, factors[:, :place], blends[:, :place]), hue)
        return _blend(x, factors[:, place:], blends[:, place:])
    before = hue_place > torch.arange(3, device=x.device)
    x = _blend(x, torch.where(before, factors, 1.0), blends)
    x = torch.lerp(x, shift_hue(x, hue), (hue != 0).to(x.dtype))
    return _blend(x, torch.where(before, 1.0, factors), blends)


def _blend(x: Tensor, factors: Tensor, blends: Tensor) -> Tensor:
    """Blend each image of `x`, in place, by its factors (N, k).

    blends: (N, k), with what: 0 black, 1 its mean grey, 2 its grey version.
    """
    rest = 1 - factors
    weights = torch.stack([factors, rest * (blends == 1), rest * (blends == 2)])[..., None, None, None]
    for own, of_mean, of_luma in weights.unbind(2):
        gray = luma(x)
        mean = gray.mean((2, 3), keepdim=True).mul_(of_mean)
        x.mul_(own).add_(gray.mul_(of_luma).add_(mean)).clamp_(0, 1)
    return x


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
    opposite, sign, offset = _channels(x.device, x.dtype)[..., None, None]
    return (hue - opposite).abs_().mul_(sign).add_(offset).clamp_(0, 1).mul_(chroma).add_(bottom)


def jitter_stains(x: Tensor, gains: Tensor, offsets: Tensor) -> Tensor:
    """Change how strongly each image (N, 3, H, W) of stained tissue, RGB in 0..1, is stained. Returns such images.

    The density of a pixel, -ln of its value, is the sum of the stains' densities times their concentrations. Each
    concentration is multiplied by the image's gain (N, 3) and the offset (N, 3) is added, in units of density, in the
    order haematoxylin, eosin, DAB. In tissue without DAB, the third takes what the first two leave. (Tellez et al.
    2018, "Whole-slide mitosis detection in H&E breast histology"; 2019, "Quantifying the effects of data augmentation
    and stain color normalization".) With offset 0 white stays white. Black has no finite density, so values below
    1/255 count as 1/255. Raises ValueError for other than 3 channels.
    """
    if x.shape[1] != 3:
        raise ValueError(f"stain jitter needs red, green and blue, and these images have {x.shape[1]} channels")
    stains = _stains(x.device)
    mixed = (_unmixed(x.device) * gains.float()[:, None]) @ stains  # (N, 3, 3): density before -> after
    log = -(offsets.float() @ stains)[..., None, None]  # minus the density after
    for channel, weights in zip(x.float().clamp(min=1 / 255).log_().split(1, 1), mixed.unbind(1)):
        log = torch.addcmul(log, channel, weights[..., None, None])
    return log.clamp_(max=0).exp_().to(x.dtype)


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
