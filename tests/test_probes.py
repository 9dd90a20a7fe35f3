"""Judges of features: against plain references, and honest about the test split."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from ssl.metrics import accuracy
from ssl.probes import fit_heads, knn, probe


def blobs(count, seed, width=12, classes=4, spread=1.6):
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return centres[labels] + spread * torch.randn(count, width, generator=generator), labels


def test_probe_is_as_good_as_logistic_regression():
    train, held, test = blobs(2000, 1), blobs(400, 2), blobs(2000, 3)
    ours = probe(train, held, test, classes=4)
    theirs = LogisticRegression(max_iter=1000).fit(*(t.numpy() for t in train)).score(*(t.numpy() for t in test))
    assert abs(ours["acc1"] - theirs) < 0.015


def test_a_head_in_a_grid_is_the_head_trained_alone():
    train = blobs(300, 1)
    grid = [(0.01, 0.0), (0.3, 1e-3), (1.0, 0.0)]
    together = fit_heads(*train, 4, grid, epochs=3, batch_size=64, seed=0)
    for number, point in enumerate(grid):
        alone = fit_heads(*train, 4, [point], epochs=3, batch_size=64, seed=0)
        assert torch.allclose(together.weight[number], alone.weight[0], atol=1e-5)
        assert torch.allclose(together.bias[number], alone.bias[0], atol=1e-5)


def test_a_head_takes_the_steps_of_torch_sgd():
    features, labels = blobs(128, 1)
    head = fit_heads(features, labels, 4, [(0.1, 0.01)], epochs=4, batch_size=128, seed=0)
    plain = torch.nn.Linear(12, 4)
    torch.nn.init.zeros_(plain.weight), torch.nn.init.zeros_(plain.bias)
    groups = [{"params": [plain.weight], "weight_decay": 0.01}, {"params": [plain.bias]}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    x = (features - features.mean(0)) / features.std(0, correction=0)
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * 0.5 * (1 + np.cos(np.pi * step / 4))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(plain(x), labels).backward()
        optimizer.step()
    assert torch.allclose(head.weight[0], plain.weight, atol=1e-5)
    assert torch.allclose(head.bias[0], plain.bias, atol=1e-5)


def test_the_winner_is_chosen_on_the_held_out_slice_whatever_the_test_labels_say():
    train, held, (features, labels) = blobs(400, 1), blobs(200, 2), blobs(200, 3)
    straight = probe(train, held, (features, labels), 4, epochs=3)
    spoilt = probe(train, held, (features, (labels + 1) % 4), 4, epochs=3)
    assert (straight["lr"], straight["weight_decay"]) == (spoilt["lr"], spoilt["weight_decay"])
    assert straight["held_out_acc1"] == spoilt["held_out_acc1"] and straight["acc1"] != spoilt["acc1"]


def test_knn_equals_scikit_learn():
    train, test = blobs(500, 1), blobs(300, 2)
    unit = [torch.nn.functional.normalize(part[0], dim=1).numpy() for part in (train, test)]
    theirs = KNeighborsClassifier(15, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.1))
    expected = theirs.fit(unit[0], train[1].numpy()).score(unit[1], test[1].numpy())
    assert knn(train, test, 4, k=15, temperature=0.1)["acc1"] == pytest.approx(expected, abs=1e-6)


def test_knn_with_a_tiny_temperature_is_finite_and_nearest():
    train = blobs(50, 1)
    assert knn(train, train, 4, k=5, temperature=1e-3)["acc1"] == 1.0


def test_k_is_cut_to_the_training_set():
    assert knn(blobs(8, 1), blobs(8, 2), 4, k=100)["k"] == 8


def test_accuracy_counts_the_best_k():
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.2, 0.3], [0.2, 0.3, 0.5]])
    labels = torch.tensor([1, 2, 0])
    assert accuracy(scores, labels) == pytest.approx(1 / 3)
    assert accuracy(scores, labels, 2) == pytest.approx(2 / 3)
    assert accuracy(scores, labels, 5) == 1.0
