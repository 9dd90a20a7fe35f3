"""The views of a batch on a GPU as one compiled graph: what is compiled, how often, and what it gives."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import running
import torch

from ssl.augment import COLUMNS, View, apply, draw
from ssl.data import loader

VIEW = View(size=24, solarize_prob=0.2, vertical_flip=0.5, rotation=20.0, stain_jitter=(0.2, 0.1), stain_prob=0.5)
VIEWS = [VIEW, replace(VIEW, blur_prob=0.1, solarize_prob=0.0)]


def compiled(backend: Callable | str) -> Callable:
    """What a GPU compiles of a batch, with the arguments of `whole_batch`."""
    torch._dynamo.reset()
    make = torch.compile(loader.batch_by_kind, fullgraph=True, dynamic=False, backend=backend)
    return lambda shown, views, *how: make(shown, views, *how, [views.index(view) for view in views])


def kept(graphs: list) -> Callable:
    """A compiler that appends each graph to `graphs`; they run as PyTorch's eager operations."""

    def backend(graph: torch.fx.GraphModule, inputs: list):
        graphs.append(graph)
        return graph.forward

    return backend


def batch(count: int, views: list[View], pixels: torch.dtype = torch.uint8) -> tuple:
    """All arguments of `whole_batch` but the last."""
    generator, shown = torch.Generator().manual_seed(count), []
    for number, view in enumerate(views):
        x = torch.randint(256, (count, 3, 24, 24), dtype=torch.uint8, generator=generator)
        x = x if pixels == torch.uint8 else x / 255
        shown.append((x, draw(0, 0, torch.arange(count), number, view)[1]))
    return shown, views, torch.tensor([0.4, 0.5, 0.6]), torch.full((3,), 0.25)


def test_a_batch_is_one_graph_for_each_of_its_sizes_and_keeps_it():
    graphs = []
    make = compiled(kept(graphs))
    views = [*VIEWS, *map(replace, VIEWS), VIEW]  # equal views need not be the same object
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor is anybody told of it
        for _ in range(2):
            make(*batch(16, views), None)
        assert len(graphs) == 1
        for count in (7, 16, 7):
            given = batch(count, views)
            for x, view in zip(make(*given, None), loader.whole_batch(*given, None), strict=True):
                torch.testing.assert_close(x, view)
    assert len(graphs) == 2


def test_a_kind_of_view_is_compiled_once_however_many_views_are_of_it():
    def operations(views: list[View]) -> int:
        graphs = []
        compiled(kept(graphs))(*batch(6, views), None)
        (graph,) = graphs
        return sum(node.op.startswith("call") for node in graph.graph.nodes)

    two, sixteen, other = operations(VIEWS), operations(VIEWS * 8), operations([*VIEWS, replace(VIEW, flip=0.4)])
    assert two < sixteen < two + 50 < other  # 50: to put batches together and cut them


@pytest.mark.parametrize("count", [2, 8])
def test_pytorchs_compiler_takes_the_graph(count):
    """It refuses two constants of one name, which two tables made by one function have."""
    make, given = compiled("aot_eager"), batch(6, VIEWS * (count // 2))
    with torch.no_grad():
        for x, view in zip(make(*given, None), loader.whole_batch(*given, None), strict=True):
            torch.testing.assert_close(x, view)


def test_eager_views_of_a_gpu_are_each_computed_by_themselves():
    """So no number depends on how many views there are."""
    shown, views, *statistics = batch(5, [*VIEWS, VIEW])
    for x, part, view in zip(loader.whole_batch(shown, views, *statistics, None), shown, views, strict=True):
        assert torch.equal(x, apply(*part, view, *statistics))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_the_views_have_the_type_and_layout_that_the_encoder_reads(dtype):
    given = batch(8, [VIEW, VIEW], torch.float32)
    for make in (loader.whole_batch, compiled(kept([]))):
        for plain, x in zip(make(*given, None), make(*given, dtype), strict=True):
            assert x.dtype == (dtype or torch.float32) and x.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(x, plain.to(x.dtype))  # as the first convolution would round it


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="PyTorch 2.6 compiles no table on meta")
def test_the_graph_on_a_gpu_is_one_and_sends_nothing():
    """Where tables were made from Python numbers in the graph, each step would send them."""
    graphs = []
    make = compiled(kept(graphs))
    with torch.device("meta"):  # shapes without numbers, as on a device that is not the CPU
        pixels, params = torch.empty(256, 3, 224, 224, dtype=torch.uint8), torch.empty(256, len(COLUMNS))
        views = [replace(view, size=224) for view in VIEWS] * 2
        x = make([(pixels, params)] * 4, views, torch.empty(3), torch.empty(3), torch.bfloat16)
    assert all(view.shape == (256, 3, 224, 224) and view.device.type == "meta" for view in x)
    assert len(x) == 4 and len(graphs) == 1
    nodes = graphs[0].graph.nodes
    assert [node for node in nodes if node.target is torch.tensor] == []
    values = [node.meta["example_value"] for node in nodes if isinstance(node.meta.get("example_value"), torch.Tensor)]
    assert len(values) > 200 and {value.device.type for value in values} == {"meta"}


def test_operations_and_bytes_of_two_views_are_counted():
    def counted(size: int) -> tuple[int, float]:
        script = running.ROOT / "benchmarks" / "views.py"
        last = running.run(script, "--batch_size", 64, "--image_size", size).stdout.splitlines()[-1].split()
        return int(last[1]), float(last[2])

    (few, small), (many, large) = counted(64), counted(128)
    assert 300 < few <= many  # a larger image has more blocks to blur
    assert large == pytest.approx(4 * small, rel=0.2)  # GB


def test_finish_compiles_what_is_on_a_gpu_where_it_is_asked_to(monkeypatch):
    calls = []
    monkeypatch.setattr(loader, "compiled_batch", lambda: lambda *given: calls.append(("compiled", given)))
    monkeypatch.setattr(loader, "whole_batch", lambda *given: calls.append(("eager", given)))
    on_gpu = SimpleNamespace(is_cuda=True)
    shown, views = [(on_gpu, None)] * 5, [*VIEWS, *map(replace, VIEWS), VIEW]
    for compile_views in (True, False):
        loader.finish(SimpleNamespace(views=shown), views, "mean", "std", torch.bfloat16, compile_views)
    given = shown, views, "mean", "std", torch.bfloat16
    assert calls == [("compiled", (*given, [0, 1, 0, 1, 0])), ("eager", given)]
