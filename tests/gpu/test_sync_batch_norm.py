"""Synchronised batch norm on GPUs: the host does not wait for it, and torch.compile makes one graph of a network."""

import json
from collections import Counter

import pytest
import running

HERE = running.ROOT / "tests" / "gpu"


def events(folder, kind: str, steps: int) -> Counter:
    running.run(HERE / "pretended.py", folder / "events.json", HERE / "pretended_norm.py", kind, str(steps))
    return Counter({(kind, what): count for kind, what, _, count in json.loads((folder / "events.json").read_text())})


@pytest.mark.parametrize(
    ("kind", "waits"), [("ssl", {}), ("torch", {("wait", "index by a mask"): 3})]
)  # PyTorch's own is the control
def test_the_host_does_not_wait_and_copies_nothing(kind, waits, tmp_path):
    assert events(tmp_path, kind, steps=2) - events(tmp_path, kind, steps=1) == waits


def test_encoder_and_projector_are_one_graph_each_for_both_views_and_health_still_hears():
    found = json.loads(running.run(HERE / "traced.py").stdout)
    layers = {"encoder": 20, "projector": 2}
    assert found["graphs"] == [
        {"ssl.batch_norm.default": count, "ssl.batch_norm_backward.default": count} for count in layers.values()
    ]
    assert found["representation"] == [4, 512] and found["embedding"] == [4, 64]
