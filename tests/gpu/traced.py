"""train.py's model on 8 processes, compiled: prints which graphs torch.compile made of two views.

Tensors are on `meta`: they have shapes and no numbers. Batch norm takes them to be on a GPU.
"""

import json
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

import train
from ssl.batch_norm import SyncBatchNorm, synchronise
from ssl.training.forward import compiled
from ssl.training.health import Health

graphs = []


def keep(graph: torch.fx.GraphModule, inputs):
    graphs.append(graph)
    return graph.forward


def operations(graph: torch.fx.GraphModule) -> Counter:
    """How often the graph, with what it calls, has each operation of the package."""
    nodes = [node for part in graph.modules() if isinstance(part, torch.fx.GraphModule) for node in part.graph.nodes]
    return Counter(str(node.target) for node in nodes if str(node.target).startswith("ssl."))


def main() -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    by_kernels = mock.patch.object(SyncBatchNorm, "_by_sums", SyncBatchNorm._by_kernels)
    with torch.device("meta"), by_kernels:
        settings = train.Settings(encoder="resnet18", image_size=64, projector="64-64-64")
        model = synchronise(train.Model(settings))
        health = Health(
            1, 100, 0, model.encoder, train.make_criterion(settings), train.make_optimizer(settings, model, 1)
        )
        with mock.patch.object(torch, "compile", partial(torch.compile, backend=keep)):
            net = compiled(model)
        z = net(*torch.randn(2, 4, 3, 64, 64))
    found = {"graphs": [count for count in map(operations, graphs) if count]}
    print(json.dumps(found | {"representation": list(health.h.shape), "embedding": list(z[1].shape)}))


if __name__ == "__main__":
    main()
