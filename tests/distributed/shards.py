"""A batch of N rows, cut into shares of ranks, and how close results must be."""

import torch

from ssl.distributed import rank, world_size

N = 16
SHARDS = {  # rows on each rank, by world size
    "even": {1: [16], 2: [8, 8], 3: [6, 5, 5], 4: [4, 4, 4, 4]},
    "uneven": {1: [16], 2: [11, 5], 3: [2, 13, 1], 4: [3, 1, 7, 5]},
    "empty": {1: [16], 2: [0, 16], 3: [0, 0, 16], 4: [6, 0, 9, 1]},
}


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def my_rows(x, shards):
    """This rank's share of the whole batch `x`."""
    return x.split(SHARDS[shards][world_size()])[rank()]


def close(got, expected, rtol):
    """Relative to the size of the whole tensor."""
    error, scale = (got.double() - expected.double()).norm(), expected.double().norm()
    assert error <= rtol * scale, f"relative error {error / scale:.1e} > {rtol:.0e}"
