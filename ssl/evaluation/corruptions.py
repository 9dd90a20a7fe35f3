"""Test images with noise, blur, JPEG and brightness, at three strengths each: what an encoder makes of them.

The strengths are those of severity 1, 3 and 5 in ImageNet-C (Hendrycks and Dietterich 2019). Two things are simpler
here: brightness is added to all channels, not to the value in HSV, and JPEG and blur are applied to the image that the
encoder reads, after it was resized.
"""

import io
import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl.console import say
from ssl.data.images import Images
from ssl.data.keys import key
from ssl.data.loader import plain_batches
from ssl.distributed import gather_rows, is_main, rank, world_size
from ssl.errors import UserError
from ssl.evaluation.inference import Net, Reading, from_all_ranks, shown
from ssl.evaluation.retrieval import keyed
from ssl.pixels import blur

STRENGTHS = {
    "noise": (0.08, 0.18, 0.38),  # standard deviation, of pixels in 0..1
    "blur": (1, 3, 6),  # sigma in pixels, of an image of 224
    "jpeg": (25, 15, 7),  # quality
    "brightness": (0.1, 0.3, 0.5),  # added to pixels in 0..1
}
EACH = [(kind, strength) for kind, strengths in STRENGTHS.items() for strength in strengths]
MOST_NUMBERS = 1 << 28  # features of all changed images: 1 GiB


@dataclass(frozen=True)
class Changed:
    """Test images `index` (n,), each changed in W `ways` (kind, strength); their `features` (W, n, F)."""

    index: Tensor
    ways: list[tuple[str, float]]
    features: Tensor


def change(pixels: Tensor, kind: str, strength: float, noise: Tensor) -> Tensor:
    """Pixels (n, C, size, size) in 0..1, changed. `noise`: standard normal numbers of the same shape."""
    if kind == "noise":
        return (pixels + strength * noise).clamp(0, 1)
    if kind == "brightness":
        return (pixels + strength).clamp(0, 1)
    if kind == "jpeg":
        return torch.stack([_jpeg(image, int(strength)) for image in pixels.cpu()]).to(pixels.device)
    sigma = strength * pixels.shape[-1] / 224
    return blur(pixels, torch.full((len(pixels),), sigma, device=pixels.device), 2 * math.ceil(3 * sigma) + 1)


def _jpeg(image: Tensor, quality: int) -> Tensor:
    """An image (C, H, W) of one or three channels as JPEG has it, at 8 bits."""
    bytes_of = (image * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(bytes_of[..., 0] if len(image) == 1 else bytes_of).save(file, "JPEG", quality=quality)
    with Image.open(file) as read:
        numbers = torch.from_numpy(np.array(read))
    return numbers.view(bytes_of.shape).permute(2, 0, 1).float() / 255


def noise_of(seed: int, index: Tensor, shape: torch.Size) -> Tensor:
    """Standard normal numbers (n, *shape), of each image its own, by the seed and the number of the image."""
    generators = (torch.Generator().manual_seed(key(f"{seed} {i}".encode()) >> 1) for i in index.tolist())
    drawn = [torch.randn(shape, generator=generator) for generator in generators]
    return torch.stack(drawn) if drawn else torch.empty(0, *shape)


@torch.no_grad()
def features(net: Net, data: Images, how: Reading, most: int, seed: int, title: str) -> Changed:
    """Features of at most `most` test images, drawn by `seed`, each changed in twelve ways; on rank 0 alone.

    All ranks call it. Each image is read once. The number of processes and the batches change nothing. Images of other
    than one or three channels have no JPEG. Prints what it costs. Raises `UserError` for files that cannot be read any
    more.
    """
    mean, std = (values.view(-1, 1, 1) for values in how.statistics())
    ways = [way for way in EACH if way[0] != "jpeg" or data.channels in (1, 3)]
    width = net(torch.zeros(1, data.channels, how.size, how.size, device=how.device)).shape[1]
    index = keyed(len(data), min(most, max(1, MOST_NUMBERS // (len(ways) * width))), seed)
    chosen, parts, unread, done = data.subset(index), [], {}, 0
    say(f"corruptions {len(ways)} changed copies of {len(index):,} of {len(data):,} test images, {title}")
    batches = plain_batches(chosen, how.size, how.batch_size, how.workers, how.device)
    began = time.monotonic()
    for pixels, counts, bad in shown(batches, len(index), how.batch_size * world_size(), "image", "corruptions"):
        first = done + sum(counts[: rank()])
        noise = noise_of(seed, index[first : first + len(pixels)], pixels.shape[1:]).to(how.device)
        # The last batch may have no image for this rank: one of zeros shows the shape of an output.
        own, noise = (pixels, noise) if len(pixels) else (pixels.new_zeros(1, *pixels.shape[1:]),) * 2
        changed = ((change(own, *way, noise) - mean) / std for way in ways)  # one at a time: each is a whole batch
        h = torch.stack([net(x.contiguous(memory_format=torch.channels_last)) for x in changed], 1)
        h = gather_rows(h[: len(pixels)].to(torch.promote_types(h.dtype, torch.float32)), counts)
        unread |= dict(bad.values())
        if is_main():
            parts.append(h)
        if not done and sum(counts) < len(index):
            h.sum().item()  # wait for the device
            seconds = (time.monotonic() - began) * len(index) / sum(counts)
            say(f"            they take about {seconds:.0f} s; --corrupted_images takes fewer images, or with 0 none")
        done += sum(counts)
    if unread := from_all_ranks(unread):
        raise UserError(f"corruptions: {next(iter(unread))} could be read before, and now it cannot: look at the disk")
    return Changed(index, ways, torch.cat(parts).transpose(0, 1) if parts else torch.empty(0))
