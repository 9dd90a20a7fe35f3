"""What the operations of two views move through a GPU's memory: operations and bytes, counted on `meta`.

python benchmarks/views.py --batch_size 256 --image_size 224

No GPU is needed and nothing is computed. An operation reads its tensors and writes its results; views of tensors cost
nothing. The views are those of Barlow Twins, as train.py makes them.
"""

from pathlib import Path

import ssl

ssl.__path__ = [str(Path(__file__).resolve().parents[1] / "ssl")]  # see ssl/__init__.py

import argparse
from collections import Counter

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ssl.augment import COLUMNS, View
from ssl.data.loader import whole_batch

NOTHING = {
    "_unsafe_view",
    "empty",
    "empty_strided",
    "detach",
    "lift_fresh",
    "device",
}  # of memory, neither read nor written


class Traffic(TorchDispatchMode):
    """Within, `count` has for each operation how often it ran, and `moved` how many bytes it read and wrote."""

    def __init__(self):
        super().__init__()
        self.count: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in NOTHING:
            self.count[name] += 1
            self.moved[name] += sum(x.nbytes for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor))
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--image_size", type=int, default=224)
    options = parser.parse_args()
    n, size = options.batch_size, options.image_size
    views = [View(size=size), View(size=size, blur_prob=0.1, solarize_prob=0.2)]
    with torch.device("meta"):
        pixels = torch.empty(n, 3, size, size, dtype=torch.uint8)
        params, mean, std = torch.empty(n, len(COLUMNS)), torch.empty(3), torch.empty(3)
        for traffic in (Traffic(), Traffic()):  # tables are made once
            with traffic:
                whole_batch([(pixels, params)] * 2, views, mean, std, None)
    for name, count in traffic.count.most_common():
        print(f"{name:20}{count:5}{traffic.moved[name] / 1e9:9.2f} GB")
    print(f"{'all':20}{traffic.count.total():5}{traffic.moved.total() / 1e9:9.2f} GB")


if __name__ == "__main__":
    main()
