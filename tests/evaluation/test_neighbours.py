"""The nearest by cosine are those of a plain sort, in blocks too, and an image is no neighbour of itself."""

import torch

from ssl.evaluation import neighbours
from ssl.evaluation.feature_rows import Rows
from ssl.evaluation.neighbours import nearest


def test_neighbours_are_the_nearest_by_cosine(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    queries, bank = torch.randn(7, 5, generator=generator), torch.randn(30, 5, generator=generator)
    cosine = torch.cosine_similarity(queries[:, None].double(), bank[None].double(), dim=2)
    best = cosine.sort(1, descending=True)
    found = nearest(bank, queries, 3)
    assert torch.equal(found.places, best.indices[:, :3])
    assert torch.allclose(found.cosines.double(), best.values[:, :3], atol=1e-6)
    assert torch.equal(nearest(bank[:2], queries, 3).places, cosine[:, :2].argsort(1, descending=True))
    monkeypatch.setattr(neighbours, "QUERIES", 4), monkeypatch.setattr(neighbours, "block_size", lambda rows: 8)
    rows = Rows((bank[:20], bank[20:]), bank.device)
    again = nearest(rows, Rows((queries,), bank.device), 3)
    assert torch.equal(again.places, found.places) and torch.allclose(again.cosines, found.cosines)


def test_an_image_is_no_neighbour_of_itself(monkeypatch):
    monkeypatch.setattr(neighbours, "QUERIES", 4), monkeypatch.setattr(neighbours, "block_size", lambda rows: 4)
    bank = torch.randn(10, 5, generator=torch.Generator().manual_seed(0))
    own = torch.tensor([9, 1, 2, 3, 8, 0])
    others = torch.cosine_similarity(bank[own, None], bank[None], dim=2).scatter(1, own[:, None], -2)
    assert torch.equal(nearest(bank, bank[own], 9, own).places, others.argsort(1, descending=True)[:, :9])
    assert torch.equal(nearest(bank, bank[own], 1).places[:, 0], own)  # the control: each would be its own
