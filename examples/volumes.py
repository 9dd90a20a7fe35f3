"""Barlow Twins on 3-D volumes: a logistic head on the encoder, trained without labels, against the untrained one.

python examples/volumes.py adrenalmnist3d.npz --seeds 0 1 2      AdrenalMNIST3D, a file of MedMNIST
"""

from pathlib import Path

import ssl

ssl.__path__ = [str(Path(__file__).resolve().parents[1] / "ssl")]  # see ssl/__init__.py

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl.estimators import BarlowTwins
from ssl.evaluation.metrics import auc


class Block(nn.Module):
    """Half the side, `out` channels; a residual block of two convolutions."""

    def __init__(self, channels: int, out: int):
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv3d(channels, out, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm3d(out),
            nn.ReLU(),
            nn.Conv3d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm3d(out),
        )
        self.shortcut = nn.Sequential(nn.Conv3d(channels, out, 1, stride=2, bias=False), nn.BatchNorm3d(out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.path(x) + self.shortcut(x))


class ResNet3d(nn.Module):
    """Volumes (N, 1, S, S, S) -> representations (N, width · 8)."""

    def __init__(self, width: int = 8):
        super().__init__()
        stem = nn.Sequential(nn.Conv3d(1, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm3d(width), nn.ReLU())
        self.layers = nn.Sequential(stem, *(Block(width * 2**i, width * 2 ** (i + 1)) for i in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3, 4))


def view(volume: Tensor) -> Tensor:
    """(1, S, S, S) -> the same size: a random crop of 70 to 100 % of each side, flips along the axes, noise."""
    sides = [max(2, int(side * (0.7 + 0.3 * torch.rand(())))) for side in volume.shape[1:]]
    starts = [int(torch.randint(side - kept + 1, ())) for side, kept in zip(volume.shape[1:], sides)]
    crop = volume[(slice(None), *(slice(start, start + kept) for start, kept in zip(starts, sides)))]
    crop = crop.flip([axis for axis in (1, 2, 3) if torch.rand(()) < 0.5])
    crop = F.interpolate(crop[None], volume.shape[1:], mode="trilinear", align_corners=False)[0]
    return crop + 0.1 * torch.rand(()) * torch.randn_like(crop)


def logistic(x: Tensor, y: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Weights and bias of logistic regression with decay / 2 · ‖w‖², by L-BFGS."""
    w, b = torch.zeros(x.shape[1], requires_grad=True), torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([w, b], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(x @ w + b, y) + decay / 2 * w.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return w.detach(), b.detach()


def judge(encode, data: dict[str, tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """(validation, test) AUC of the head whose decay is best on validation; the test is scored once."""
    features = {split: encode(x) for split, (x, _) in data.items()}
    mean, std = features["train"].mean(0), features["train"].std(0).clamp_min(1e-6)
    features = {split: (h - mean) / std for split, h in features.items()}
    heads = [logistic(features["train"], data["train"][1].float(), 10.0**p) for p in range(-4, 2)]
    scores = [auc(features["val"] @ w + b, data["val"][1] > 0) for w, b in heads]
    w, b = heads[max(range(len(heads)), key=scores.__getitem__)]
    return max(scores), auc(features["test"] @ w + b, data["test"][1] > 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    with np.load(args.file) as file:  # allow_pickle is off
        data = {
            split: (
                torch.from_numpy(file[f"{split}_images"]).float()[:, None] / 255,
                torch.from_numpy(file[f"{split}_labels"]).flatten().long(),
            )
            for split in ("train", "val", "test")
        }
    for seed in args.seeds:
        model = BarlowTwins(
            ResNet3d,
            proj_input_dim=64,
            proj_hidden_dim=256,
            proj_output_dim=256,
            lambd=0.01,
            learning_rate=1e-3,
            max_epochs=args.epochs,
            views=view,
            batch_size=128,
            random_state=seed,
        )

        @torch.no_grad()
        def untrained(x: Tensor, encoder: nn.Module = model.encoder) -> Tensor:
            return torch.cat([encoder.eval()(part) for part in x.split(128)])

        before = judge(untrained, data)
        model.fit(data["train"][0])
        after = judge(model.transform, data)
        loss = model.history[-1]["loss"]
        print(
            f"seed {seed}: AUC val / test, untrained {before[0]:.3f} / {before[1]:.3f}, "
            f"trained {after[0]:.3f} / {after[1]:.3f}, loss {loss:.3g}",
            flush=True,
        )


if __name__ == "__main__":
    main()
