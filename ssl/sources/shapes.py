"""`shapes`: a small data set that is drawn by the computer, for demonstrations without a download.

An image shows a textured shape and two dots on a textured ground. Its class is the kind of shape. Colours, textures,
place, size, rotation, light, noise and dots are random and independent of the class. The same seed gives the same
pixels.
"""

import math

import torch
from torch import Tensor

# Each function takes points u, v in units of the shape's radius and returns the signed distance to the outline,
# negative inside. It is exact near the outline except at corners, which is enough for antialiasing.


def _box(u: Tensor, v: Tensor, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(u.abs() - half_width, v.abs() - half_height)


def _disc(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - 0.8


def _ring(u: Tensor, v: Tensor) -> Tensor:
    return (torch.hypot(u, v) - 0.7).abs() - 0.2


def _square(u: Tensor, v: Tensor) -> Tensor:
    return _box(u, v, 0.75, 0.75)


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(v, math.sqrt(0.75) * u.abs() - 0.5 * v) - 0.5


def _star(u: Tensor, v: Tensor) -> Tensor:
    # Fold the plane into the tenth of it that holds one straight edge, tip (1, 0) to notch.
    angle = (torch.remainder(torch.atan2(v, u), 2 * math.pi / 5) - math.pi / 5).abs()
    radius = torch.hypot(u, v)
    x, y = radius * torch.cos(math.pi / 5 - angle), radius * torch.sin(math.pi / 5 - angle)
    dx, dy = 0.4 * math.cos(math.pi / 5) - 1, 0.4 * math.sin(math.pi / 5)
    return (y * -dx + (x - 1) * dy) / math.hypot(dx, dy)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    return torch.minimum(_box(u, v, 0.95, 0.27), _box(u, v, 0.27, 0.95))


def _crescent(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(u, v) - 0.95, 0.75 - torch.hypot(u - 0.5, v))


def _bars(u: Tensor, v: Tensor) -> Tensor:
    return _box(u, v.abs() - 0.55, 0.85, 0.25)


def _dumbbell(u: Tensor, v: Tensor) -> Tensor:
    return torch.minimum(torch.hypot(u.abs() - 0.62, v) - 0.38, _box(u, v, 0.6, 0.13))


def _corner(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(_box(u, v, 0.8, 0.8), torch.minimum(u + 0.25, v + 0.25))


_SHAPES = (_disc, _ring, _square, _triangle, _star, _cross, _crescent, _bars, _dumbbell, _corner)
CLASSES = tuple(shape.__name__[1:] for shape in _SHAPES)

_IMAGES = {"train": 20_000, "test": 4_000}
_SEEDS = {"train": 1, "test": 2}
_CHUNK = 1000  # images drawn at a time; another number gives other images


def shapes(split: str, size: int = 32) -> tuple[Tensor, Tensor]:
    """Split 'train' (20,000 images) or 'test' (4,000): pixels (N, 3, size, size) uint8, labels (N,) int64.

    Balanced over CLASSES, in random order, the same on each call.
    """
    if split not in _IMAGES:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    count, seed = _IMAGES[split], _SEEDS[split]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    labels = order % len(CLASSES)
    return render(labels, size, seed), labels


def render(labels: Tensor, size: int, seed: int) -> Tensor:
    """An image (3, size, size) for each label (N,) in 0..9, by `seed`: (N, 3, size, size) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([_render_chunk(chunk, size, generator) for chunk in labels.split(_CHUNK)])


def _render_chunk(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    count = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    axis = (torch.arange(size) + 0.5) / size * 2 - 1  # the image spans -1..1
    y, x = axis[:, None], axis[None, :]

    # Ground and figure differ in grey level, so that a grey view still shows the shape.
    middle, gap = uniform(0.4, 0.6, 1), uniform(0.3, 0.5, 1)
    gap = torch.where(uniform(0, 1, 1) < 0.5, gap, -gap)
    ground = _paint(middle - gap / 2, uniform, x, y)
    figure = _paint(middle + gap / 2, uniform, x, y)
    image = ground
    for _ in range(2):
        dot = _coverage(_disc, _place(uniform(0.1, 0.16), uniform(-0.9, 0.9, 2), uniform(0, 1), x, y), size)
        image = torch.lerp(image, uniform(0, 1, 3, 1, 1), dot)
    radius = uniform(0.5, 0.75)
    slack = (1 - radius)[:, None]  # a shape stays inside the image
    points = _place(radius, uniform(-1, 1, 2) * slack, uniform(-0.125, 0.125), x, y)  # tilts up to 45 degrees
    for label, shape in enumerate(_SHAPES):
        rows = (labels == label).nonzero()[:, 0]
        mask = _coverage(shape, tuple(part[rows] for part in points), size)
        image[rows] = torch.lerp(image[rows], figure[rows], mask)

    slope = uniform(-0.25, 0.25, 2, 1, 1, 1)
    image = image * (1 + slope[:, 0] * x + slope[:, 1] * y)
    noise = torch.randn(image.shape, generator=generator)
    image = image + uniform(0, 0.04, 1, 1, 1) * noise
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def _place(radius: Tensor, centre: Tensor, turn: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(u, v, radius): the pixels in a shape's own frame, u and v (N, size, size) in units of the radius (N, 1, 1)."""
    radius, angle = radius[:, None, None], 2 * math.pi * turn[:, None, None]
    x, y = x - centre[:, 0, None, None], y - centre[:, 1, None, None]
    u = (x * angle.cos() + y * angle.sin()) / radius
    v = (y * angle.cos() - x * angle.sin()) / radius
    return u, v, radius


def _coverage(shape, points: tuple[Tensor, Tensor, Tensor], size: int) -> Tensor:
    """(N, 1, size, size), the share of each pixel that is inside: a ramp one pixel wide across the outline."""
    u, v, radius = points
    pixels = shape(u, v) * radius * size / 2
    return (0.5 - pixels).clamp(0, 1)[:, None]


def _paint(grey: Tensor, uniform, x: Tensor, y: Tensor) -> Tensor:
    """(N, 3, size, size): a random colour of brightness `grey` (N, 1) under two random plane waves."""
    tint = uniform(-0.35, 0.35, 3)
    colour = grey + tint - (tint * torch.tensor([0.299, 0.587, 0.114])).sum(1, keepdim=True)
    colour = colour[:, :, None, None]
    for _ in range(2):
        frequency, angle, phase = (uniform(*r, 1, 1, 1) for r in ((2, 12), (0, math.pi), (0, 2 * math.pi)))
        wave = (frequency * (x * angle.cos() + y * angle.sin()) + phase).sin()
        colour = colour + uniform(-0.08, 0.08, 3, 1, 1) * wave
    return colour
