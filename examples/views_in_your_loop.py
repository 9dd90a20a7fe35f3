"""Random views in a training loop of your own: whole batches, on any device, each image with its own random strengths.

python examples/views_in_your_loop.py --views 4

Nothing else of this project is used: `ssl/augment.py` and `ssl/pixels.py` can be copied elsewhere; there,
change the import of `pixels` at the top of `augment.py`.
A transform of torchvision draws once for all images of the batch that it is given. Called for each image in a loop,
it keeps a GPU waiting for many small operations. Its random numbers come from a generator with a state: a view then
depends on all that was drawn before. Here a view follows from (seed, epoch, index, number), and comes back at any time.
"""

from pathlib import Path

import ssl

# The folder `ssl` of this project. It shares its name with a module of Python, which stays as it is: ssl/__init__.py.
ssl.__path__ = [str(Path(__file__).resolve().parents[1] / "ssl")]

import argparse

import torch
from torch import Tensor

from ssl.augment import View, apply, crop_boxes, crop_resize, draw

MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])  # of CIFAR-10


def make_views(images: Tensor, index: Tensor, kinds: list[View], seed: int, epoch: int) -> list[Tensor]:
    """Views (n, 3, size, size) of the images (N, 3, H, W), uint8, at `index` (n,): one for each of `kinds`.

    `index` is on the CPU, where the random numbers are drawn; the pixels are computed where the images are.
    """
    chosen = images[index.to(images.device)]
    height, width = (torch.full_like(index, side) for side in images.shape[2:])
    mean, std = MEAN.to(images.device), STD.to(images.device)
    views = []
    for number, kind in enumerate(kinds):
        crop, strengths = draw(seed, epoch, index, number, kind)  # (n, 22) and (n, 18): a row for each image
        cut = crop_resize(chosen, crop_boxes(crop, height, width, kind), kind.size)
        views.append(apply(cut, strengths, kind, mean, std))
    return views


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=4)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.randint(256, (512, 3, 32, 32), dtype=torch.uint8).to(device)  # yours
    kinds = [View(size=32, crop_scale=(0.2, 1.0), grayscale=0.1, blur_prob=0.0)] * args.views  # they may differ

    for epoch in range(2):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch))
        for index in order.split(128):
            views = make_views(images, index, kinds, seed=0, epoch=epoch)
            # Your model, loss and optimizer take the views here.
        print(f"epoch {epoch}: {len(views)} views of {len(index)} images a batch, each {tuple(views[0].shape[1:])}")

    again = make_views(images, index, kinds, seed=0, epoch=epoch)
    print("same seed, epoch and images: the same views:", all(map(torch.equal, views, again)))
    (alone,) = make_views(images, index[5:6], kinds[:1], seed=0, epoch=epoch)
    print("an image alone, without its batch: the same view:", torch.allclose(alone[0], views[0][5], atol=1e-5))
    later = make_views(images, index, kinds, seed=0, epoch=epoch + 1)
    print("the next epoch: the same views:", any(map(torch.equal, views, later)))


if __name__ == "__main__":
    main()
