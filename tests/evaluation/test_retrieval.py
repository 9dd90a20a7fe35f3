"""Retrieval equals scikit-learn's average precision, also with equal cosines, in blocks and for some of the queries."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from ssl.evaluation import retrieval
from ssl.evaluation.feature_rows import Rows
from ssl.evaluation.neighbours import nearest
from ssl.evaluation.retrieval import average_precision, keyed


def some(count, seed, width=6, classes=3):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return 0.7 * torch.eye(classes, width)[labels] + torch.randn(count, width, generator=generator), labels


def retrieve(gallery, test, seed=0):
    return retrieval.retrieve(gallery, test, nearest(gallery[0], test[0], 1).places[:, 0], seed)


def test_it_is_the_mean_of_scikit_learns_average_precision(monkeypatch):
    gallery, test = some(200, 1), some(60, 2)
    found = retrieve(gallery, test)
    unit = [torch.nn.functional.normalize(part[0].double()).numpy() for part in (test, gallery)]
    cosines = unit[0] @ unit[1].T
    wanted = test[1].numpy()[:, None] == gallery[1].numpy()
    precisions = [average_precision_score(own, row) for own, row in zip(wanted, cosines)]
    assert found["map"] == pytest.approx(np.mean(precisions), abs=1e-5)
    half = 1.96 * np.std(precisions) / np.sqrt(60)
    expected = [np.mean(precisions) - half, np.mean(precisions) + half]
    assert found["map_interval"] == pytest.approx(expected, abs=1e-4)
    assert found["recall_at_1"] == pytest.approx(wanted[np.arange(60), cosines.argmax(1)].mean())
    assert (found["map_queries"], found["recall_at_1_queries"], found["gallery"]) == (60, 60, 200)
    monkeypatch.setattr(retrieval, "SORTED", 1000), monkeypatch.setattr(retrieval, "block_size", lambda rows: 64)
    rows = Rows((gallery[0][:90], gallery[0][90:]), gallery[0].device)
    again = retrieve((rows, gallery[1]), (Rows((test[0],), gallery[0].device), test[1]))
    assert all(again[name] == pytest.approx(found[name], abs=1e-6) for name in found)


def test_of_too_many_pairs_some_queries_have_the_map_and_all_have_recall(monkeypatch):
    gallery, test = some(200, 1), some(60, 2)
    every = retrieve(gallery, test)
    monkeypatch.setattr(retrieval, "PAIRS", 200 * 20)
    found = retrieve(gallery, test, seed=3)
    chosen = keyed(60, 20, 3)
    fewer = retrieve(gallery, (test[0][chosen], test[1][chosen]), seed=0)
    assert found["map_queries"] == fewer["map_queries"] == fewer["recall_at_1_queries"] == 20
    assert [found[name] for name in ("map", "map_interval")] == [fewer[name] for name in ("map", "map_interval")]
    of_recall = ("recall_at_1", "recall_at_1_interval", "recall_at_1_queries")
    assert [found[name] for name in of_recall] == [every[name] for name in of_recall]
    assert found["map"] != every["map"] and found["recall_at_1"] != fewer["recall_at_1"]
    assert not torch.equal(chosen, keyed(60, 20, 4)) and keyed(5, 9, 0).tolist() == [0, 1, 2, 3, 4]


def test_the_precision_of_one_query_has_no_interval():
    gallery, test = some(200, 1), some(60, 2)
    found = retrieve(gallery, (test[0][:1], test[1][:1]))
    assert "map_interval" not in found and found["map_queries"] == 1 and 0 < found["map"] < 1
    assert len(found["recall_at_1_interval"]) == len(retrieve(gallery, test)["map_interval"]) == 2


def test_equal_scores_count_as_one_place():
    scores = torch.tensor([[0.5, 0.5, 0.5, 0.1], [0.2, 0.9, 0.2, 0.2], [1.0, 1.0, 1.0, 1.0]])
    for wanted in ([True, False, False, True], [False, False, True, True], [False, True, False, False]):
        expected = [average_precision_score(wanted, row) for row in scores.numpy()]
        assert average_precision(scores, torch.tensor(wanted)).tolist() == pytest.approx(expected)
