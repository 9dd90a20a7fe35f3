"""The views of a batch on a GPU as one compiled graph: what is compiled, how often, and what it gives."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import running
import torch

from ssl.augment import COLUMNS, View, draw
from ssl.data import loader

VIEW = View(size=24, solarize_prob=0.2, vertical_flip=0.5, rotation=20.0)
VIEWS = [VIEW, replace(VIEW, blur_prob=0.1, solarize_prob=0.0)]


def compiled(graphs: list) -> Callable:
    """`whole_batch` compiled, each of its graphs appended to `graphs`; they run as PyTorch's eager operations."""

    def backend(graph: torch.fx.GraphModule, inputs: list):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    return torch.compile(loader.whole_batch, fullgraph=True, backend=backend)


def batch(count: int, view: View, pixels: torch.dtype = torch.uint8) -> tuple:
    x = torch.randint(256, (count, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    x = x if pixels == torch.uint8 else x / 255
    return x, draw(0, 0, torch.arange(count), 0, view)[1], view, torch.tensor([0.4, 0.5, 0.6]), torch.full((3,), 0.25)


def test_a_view_is_compiled_once_for_each_size_of_a_batch_and_keeps_its_graph():
    graphs = []
    make = compiled(graphs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor is anybody told of it
        for _ in range(2):
            for view in VIEWS:
                make(*batch(16, view), None)
        assert len(graphs) == 2
        for count in (7, 16, 7):
            for view in VIEWS:
                given = batch(count, view)
                torch.testing.assert_close(make(*given, None), loader.whole_batch(*given, None))
    assert len(graphs) == 4


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_the_view_has_the_type_and_layout_that_the_encoder_reads(dtype):
    given = batch(8, VIEW, torch.float32)
    for make in (loader.whole_batch, compiled([])):
        plain, x = make(*given, None), make(*given, dtype)
        assert x.dtype == (dtype or torch.float32) and x.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(x, plain.to(x.dtype))  # as the first convolution would round it


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="PyTorch 2.6 compiles no table on meta")
def test_the_graph_on_a_gpu_is_one_and_sends_nothing():
    """Where tables were made from Python numbers in the graph, each step would send them."""
    graphs = []
    make = compiled(graphs)
    with torch.device("meta"):  # shapes without numbers, as on a device that is not the CPU
        pixels, params = torch.empty(256, 3, 224, 224, dtype=torch.uint8), torch.empty(256, len(COLUMNS))
        given = pixels, params, replace(VIEW, size=224), torch.empty(3), torch.empty(3), torch.bfloat16
        x = make(*given)
    assert x.shape == (256, 3, 224, 224) and x.device.type == "meta" and len(graphs) == 1
    nodes = graphs[0].graph.nodes
    assert [node for node in nodes if node.target is torch.tensor] == []
    values = [node.meta["example_value"] for node in nodes if isinstance(node.meta.get("example_value"), torch.Tensor)]
    assert len(values) > 100 and {value.device.type for value in values} == {"meta"}


def test_operations_and_bytes_of_two_views_are_counted():
    def counted(size: int) -> tuple[int, float]:
        script = running.ROOT / "benchmarks" / "views.py"
        last = running.run(script, "--batch_size", 64, "--image_size", size).stdout.splitlines()[-1].split()
        return int(last[1]), float(last[2])

    (few, small), (many, large) = counted(64), counted(128)
    assert 300 < few <= many  # a larger image has more blocks to blur
    assert large == pytest.approx(4 * small, rel=0.2)  # GB
