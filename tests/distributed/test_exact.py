"""On W processes every loss, batch norm and training step equals that of one process with the whole batch."""

import copy

import pytest
import torch
from spawn import on_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ssl.distributed import SyncBatchNorm, gather_rows, rank, row_counts, synchronise, world_size
from ssl.encoders import SmallResNet
from ssl.heads import projector
from ssl.losses import barlow_twins, info_nce
from ssl.optim import LARS, parameter_groups

WORLDS = [2, 4]
N = 16
SHARDS = {  # rows on each rank, by world size
    "even": {1: [16], 2: [8, 8], 4: [4, 4, 4, 4]},
    "uneven": {1: [16], 2: [11, 5], 4: [3, 1, 7, 5]},
    "empty": {1: [16], 2: [0, 16], 4: [6, 0, 9, 1]},
}
LOSSES = {
    "barlow gram": lambda z1, z2: barlow_twins(z1, z2, 0.02, "gram"),
    "barlow cross": lambda z1, z2: barlow_twins(z1, z2, 0.02, "cross"),
    "info_nce": lambda z1, z2: info_nce(z1, z2, 0.2, block=3),
}
NORMS = {
    "2d": (lambda kind: kind(6, momentum=0.3), (6, 5, 3)),
    "1d": (lambda kind: kind(6), (6,)),
    "cumulative": (lambda kind: kind(6, momentum=None), (6,)),
    "no affine": (lambda kind: kind(6, affine=False), (6,)),
    "no running": (lambda kind: kind(6, track_running_stats=False), (6, 5, 3)),
}


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def my_rows(x, shards):
    """This rank's share of the whole batch `x`."""
    return x.split(SHARDS[shards][world_size()])[rank()]


def whole(results, key):
    """Rows of all ranks, put together again."""
    return torch.cat([result[key] for result in results])


# What every process does ------------------------------------------------------


def do_loss(name, shards):
    z1 = random(N, 12, seed=0)
    z2 = z1 + 0.5 * random(N, 12, seed=1) + 0.1
    z1, z2 = (my_rows(z, shards).clone().requires_grad_() for z in (z1, z2))
    loss, *parts = LOSSES[name](z1, z2)
    (3 * loss).backward()
    return dict(values=torch.stack([loss.detach(), *parts]), g1=z1.grad, g2=z2.grad)


def do_norm(name, shards):
    """Two training passes and one in eval mode; on one process with PyTorch's own batch norm."""
    build, shape = NORMS[name]
    own = nn.BatchNorm2d if len(shape) > 1 else nn.BatchNorm1d
    norm = build(own if world_size() == 1 else SyncBatchNorm)
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(random(6, seed=4))
            norm.bias.copy_(random(6, seed=5))
    out = {}
    for step in range(2):
        x = my_rows(5 + 2 * random(N, *shape, seed=step), shards).clone().requires_grad_()
        y = norm(x)
        (y * my_rows(random(N, *shape, seed=9), shards)).sum().backward()
        out |= {f"output {step}": y.detach(), f"gradient {step}": x.grad}
    out["parameters"] = [p.grad for p in norm.parameters()]
    out["buffers"] = list(norm.state_dict().values())
    if norm.track_running_stats:
        out["output eval"] = norm.eval()(my_rows(random(N, *shape, seed=7), shards)).detach()
    return out


class Twins(nn.Module):
    def __init__(self):
        super().__init__()
        encoder = SmallResNet(width=4, stages=2)
        self.both = nn.Sequential(encoder, projector(encoder.width, "24-16"))

    def forward(self, x1, x2):
        return self.both(x1), self.both(x2)


def do_training(loss_name, shards):
    """Five steps; returns the parameters and buffers, and how far the parameters came."""
    torch.manual_seed(0)
    model = synchronise(Twins(), torch.device("cpu"))
    start = copy.deepcopy(model.state_dict())
    optimizer = LARS(parameter_groups(model, lr=2.0, bias_lr=0.02, weight_decay=1e-3), lr=0.0, trust_coefficient=0.02)
    twins = DistributedDataParallel(model) if world_size() > 1 else model
    for step in range(5):
        x1 = random(N, 3, 16, 16, seed=2 * step)
        x2 = x1 + 0.3 * random(N, 3, 16, 16, seed=2 * step + 1)
        z1, z2 = twins(my_rows(x1, shards), my_rows(x2, shards))
        loss = LOSSES[loss_name](z1, z2)[0]
        optimizer.zero_grad()
        (loss * world_size()).backward()  # DDP averages
        optimizer.step()
    return dict(start=start, end=model.state_dict(), loss=loss.detach())


TRAININGS = [("barlow gram", "even"), ("barlow cross", "uneven"), ("info_nce", "uneven")]


def do_everything():
    counted = my_rows(torch.arange(N), "uneven")[:, None]
    return {
        "rows": (torch.tensor(row_counts(counted)), gather_rows(counted)),
        **{("loss", name, shards): do_loss(name, shards) for name in LOSSES for shards in SHARDS},
        **{("norm", name, shards): do_norm(name, shards) for name in NORMS for shards in SHARDS},
        **{("training", *case): do_training(*case) for case in TRAININGS},
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return {1: [do_everything()]} | on_ranks(do_everything, WORLDS, tmp_path_factory.mktemp("ranks"))


# What must agree --------------------------------------------------------------


def close(got, expected, rtol):
    """Relative to the size of the whole tensor."""
    error, scale = (got.double() - expected.double()).norm(), expected.double().norm()
    assert error <= rtol * scale, f"relative error {error / scale:.1e} > {rtol:.0e}"


@pytest.mark.parametrize("world", WORLDS)
def test_rows_are_counted_and_gathered_in_rank_order(results, world):
    for result in results[world]:
        counts, rows = result["rows"]
        assert counts.tolist() == SHARDS["uneven"][world]
        assert rows[:, 0].tolist() == list(range(N))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_those_of_one_process(results, name, shards, world):
    key = ("loss", name, shards)
    one, many = results[1][0][key], [result[key] for result in results[world]]
    for result in many:
        close(result["values"], one["values"], 1e-5)
    close(whole(many, "g1"), one["g1"], 1e-5)
    close(whole(many, "g2"), one["g2"], 1e-5)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("name", NORMS)
def test_sync_batch_norm_is_batch_norm_of_the_whole_batch(results, name, shards, world):
    key = ("norm", name, shards)
    one, many = results[1][0][key], [result[key] for result in results[world]]
    for part in [part for part in one if part.startswith(("output", "gradient"))]:
        close(whole(many, part), one[part], 1e-5)
    for i, expected in enumerate(one["parameters"]):
        close(sum(result["parameters"][i] for result in many), expected, 1e-5)
    for result in many:
        for got, expected in zip(result["buffers"], one["buffers"], strict=True):
            close(got, expected, 1e-5)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", TRAININGS, ids=" ".join)
def test_training_ends_in_the_parameters_of_one_process(results, case, world):
    key = ("training", *case)
    one = results[1][0][key]
    for result in results[world]:
        close(result[key]["loss"], one["loss"], 1e-4)
        for name, expected in one["end"].items():
            close(result[key]["end"][name], expected, 1e-4)
    for name, start in one["start"].items():
        if start.ndim > 1:  # or agreement would say nothing
            assert (one["end"][name] - start).norm() > 0.02 * start.norm(), name
