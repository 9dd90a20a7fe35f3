"""Bytes that a rank sends in a ring, by the collectives of our losses."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch.distributed as dist

from ssl import distributed


@contextlib.contextmanager
def counted(world: int, pretended: bool = False) -> Iterator[list[float]]:
    """A list to which every all-reduce and all-gather in here adds what one of `world` ranks sends for it.

    `pretended`: the other ranks are not there (a fake process group), and each is taken to hold what this one does.
    """
    sent: list[float] = []
    reduce, gather = dist.all_reduce, distributed.all_gather

    def counted_reduce(x, *args, **kwargs):
        sent.append(2 * (world - 1) / world * x.nbytes)
        return reduce(x, *args, **kwargs)

    def counted_gather(out, x, *args, **kwargs):
        sent.append((world - 1) / world * out.nbytes)
        done = gather(out, x, *args, **kwargs)
        if pretended:
            out.copy_(x.repeat(world, *[1] * (x.ndim - 1)))  # rather than uninitialised memory
        return done

    with (
        mock.patch.object(dist, "all_reduce", counted_reduce),
        mock.patch.object(distributed, "all_gather", counted_gather),
    ):
        yield sent
