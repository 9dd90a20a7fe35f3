"""Synchronised batch norm on W processes is PyTorch's batch norm of the whole batch, from sums and by a GPU's kernels.

The kernels here are those of `kernels.py`, on the CPU.
"""

import kernels  # noqa: F401
import pytest
import torch
from shards import SHARDS, N, close, my_rows, random
from spawn import on_ranks
from torch import nn

from ssl.batch_norm import SyncBatchNorm, SyncBatchNormAct, _synchronised_kind, synchronise
from ssl.distributed import world_size
from ssl.errors import UserError
from ssl.training.guard import Guard

WORLDS = [2, 3, 4]
CUMULATIVE = ["cumulative", "cumulative float64"]  # the kernels do not know them
NOT_BY_KERNELS = [*CUMULATIVE, "activated"]


class Activated(nn.BatchNorm2d):
    """What BatchNormAct2d of timm is."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(0.0), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class Own(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x) + 1


NORMS = {
    "activated": (lambda kind: synchronise(Activated(6)), (6, 5, 3)),
    "2d": (lambda kind: kind(6, momentum=0.3), (6, 5, 3)),
    "channels last": (lambda kind: kind(6), (6, 5, 3)),
    "3d": (lambda kind: kind(6), (6, 2, 5, 3)),
    "1d": (lambda kind: kind(6), (6,)),
    "cumulative": (lambda kind: kind(6, momentum=None), (6,)),
    "cumulative float64": (lambda kind: kind(6, momentum=None).double(), (6,)),
    "float64": (lambda kind: kind(6).double(), (6, 5, 3)),
    "bfloat16": (lambda kind: kind(6), (6, 5, 3)),
    "float16": (lambda kind: kind(6), (6, 5, 3)),
    "no affine": (lambda kind: kind(6, affine=False), (6,)),
    "no running": (lambda kind: kind(6, track_running_stats=False), (6, 5, 3)),
}


class ByKernels(SyncBatchNorm):
    """On the CPU, too, what is computed on a GPU."""

    _by_sums = SyncBatchNorm._by_kernels


KINDS = {"sums": SyncBatchNorm, "kernels": ByKernels}
CASES = [(kind, name) for kind in KINDS for name in NORMS if kind == "sums" or name not in NOT_BY_KERNELS]


# What every process does ------------------------------------------------------


def do_norm(kind, name, shards):
    """Two training passes and one in eval mode; on one process with PyTorch's own batch norm."""
    build, shape = NORMS[name]
    norm = build({1: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}[len(shape)] if world_size() == 1 else kind)
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(random(6, seed=4))
            norm.bias.copy_(random(6, seed=5))
    dtype = getattr(torch, name.split()[-1], torch.float32)
    out, form = {}, torch.channels_last if name == "channels last" else torch.contiguous_format
    for step in range(2):
        x = my_rows(5 + 2 * random(N, *shape, seed=step), shards).to(dtype, copy=True, memory_format=form)
        y = norm(x.requires_grad_())
        (y * my_rows(random(N, *shape, seed=9), shards)).sum().backward()
        assert y.dtype == x.grad.dtype == dtype and y.stride() == x.stride()
        out |= {f"output {step}": y.detach(), f"gradient {step}": x.grad}
    out["parameters"] = [p.grad for p in norm.parameters()]
    out["buffers"] = list(norm.state_dict().values())
    if norm.track_running_stats:
        out["output eval"] = norm.eval()(my_rows(random(N, *shape, seed=7), shards).to(dtype)).detach()
    return out


def do_conversion():
    """A frozen float64 batch norm, converted: (type, does it learn, is it the same tensor)."""
    norm = nn.BatchNorm1d(6).double().requires_grad_(False)
    synced = synchronise(norm)
    return str(synced.weight.dtype), synced.weight.requires_grad, synced.weight is norm.weight, type(synced).__name__


class Shared(nn.Module):
    """A batch norm under two names, in a block under two names, and in a module of its own."""

    def __init__(self):
        super().__init__()
        norm = nn.BatchNorm1d(6)
        self.first = self.second = nn.Sequential(norm, nn.Identity(), norm)
        self.third = nn.Sequential(norm)
        self.register_module("nothing", None)


def do_shared():
    """What the names of a shared batch norm stand for, and how many there are. The guard must take their buffers."""
    net = synchronise(Shared())
    Guard(net, optimizer=None)
    norms = [net.first[0], net.first[2], net.second[0], net.second[2], net.third[0]]
    alone = nn.BatchNorm1d(6)
    return [type(norm).__name__ for norm in norms], len(set(norms)), type(synchronise(alone)).__name__


def do_refused():
    """What is said of a batch norm that computes something of its own."""
    try:
        synchronise(nn.Sequential(Own(6)))
    except UserError as error:
        return str(error)


def do_compiled(kind):
    """A small network, eager and as one graph, on two views: what it gives, all gradients, its buffers."""
    found, graphs = [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    for compiled in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), kind(6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 6), kind(6))
        Guard(net, optimizer=None)  # buffers are then parts of one tensor
        run = torch.compile(net, backend=backend, fullgraph=True) if compiled else net
        views = [my_rows(random(N, 3, 5, 5, seed=seed), "even") for seed in (1, 2)]
        z = [run(x) for x in views]
        (z[0] * z[1] ** 2).sum().backward()
        found.append([*(view.detach() for view in z), *(p.grad for p in net.parameters()), *net.buffers()])
    torch._dynamo.reset()
    return {"eager": found[0], "compiled": found[1], "graphs": len(graphs)}


def do_everything():
    return {
        "conversion": do_conversion(),
        "refused": do_refused(),
        "shared": do_shared(),
        **{("compiled", kind): do_compiled(KINDS[kind]) for kind in KINDS if world_size() == 2},
        **{(kind, name, shards): do_norm(KINDS[kind], name, shards) for kind, name in CASES for shards in SHARDS},
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return {1: [do_everything()]} | on_ranks(do_everything, WORLDS, tmp_path_factory.mktemp("ranks"))


# What must agree --------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_sync_batch_norm_is_batch_norm_of_the_whole_batch(results, kind, name, shards, world):
    one, many = results[1][0][kind, name, shards], [result[kind, name, shards] for result in results[world]]
    rounding = {"bfloat16": 1e-2, "float16": 1e-3}.get(name, 1e-5)  # of what is given; statistics are float32
    for part in [part for part in one if part.startswith(("output", "gradient"))]:
        close(torch.cat([result[part] for result in many]), one[part], rounding)
    for i, expected in enumerate(one["parameters"]):
        close(sum(result["parameters"][i] for result in many), expected, rounding)
    for result in many:
        for got, expected in zip(result["buffers"], one["buffers"], strict=True):
            close(got, expected, 1e-5)


@pytest.mark.parametrize("world", WORLDS)
def test_a_batch_norm_that_computes_something_of_its_own_is_refused_on_several_processes(results, world):
    assert results[1][0]["refused"] is None
    assert all("Own is a batch norm with a forward of its own" in result["refused"] for result in results[world])


def test_activations_of_timm_are_known():
    layers = pytest.importorskip("timm.layers")
    norm = layers.BatchNormAct2d(6)
    assert set(norm._modules) == {"drop", "act"} and _synchronised_kind(norm) is SyncBatchNormAct


@pytest.mark.parametrize("world", WORLDS)
def test_a_converted_batch_norm_keeps_its_very_parameters(results, world):
    assert results[world][0]["conversion"] == ("torch.float64", False, True, "SyncBatchNorm")


@pytest.mark.parametrize("world", WORLDS)
def test_a_batch_norm_is_converted_once_under_all_its_names(results, world):
    assert results[1][0]["shared"] == (["BatchNorm1d"] * 5, 1, "BatchNorm1d")
    assert all(result["shared"] == (["SyncBatchNorm"] * 5, 1, "SyncBatchNorm") for result in results[world])


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_it_is_one_graph_for_both_views_and_gives_the_same(results, kind):
    for result in results[2]:
        found = result["compiled", kind]
        assert found["graphs"] == 1
        for got, expected in zip(found["compiled"], found["eager"], strict=True):
            torch.testing.assert_close(got, expected)
