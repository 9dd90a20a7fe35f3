"""Judges of features: against plain references, and honest about the test split."""

import numpy as np
import pytest
import torch
from drawn import blobs
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from ssl.data.hold_out import split_validation
from ssl.evaluation import metrics
from ssl.evaluation.feature_rows import Rows
from ssl.evaluation.intervals import wilson
from ssl.evaluation.probes import fit_heads, hold_out_tenth, knn, probe


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


@pytest.mark.parametrize("temperature", [0.07, 0.02, 0.005, 0.001])
def test_knn_votes_as_in_float64_also_where_the_nearest_is_far(temperature):
    """Wide noise around one axis a class: the nearest cosine is about 0.43, and exp((0.43 - 1) / 0.005) is 0 in
    float32."""
    width, classes = 512, 10
    axes = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0)))[0][:classes]

    def far(count, seed):
        labels = torch.arange(count) % classes
        noise = torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) / width**0.5
        return 0.7 * axes[labels] + noise, labels

    train, test = far(1000, 1), far(200, 2)
    unit = [torch.nn.functional.normalize(part[0].double(), dim=1) for part in (train, test)]
    cosines, nearest = (unit[1] @ unit[0].T).topk(20, dim=1)
    assert 0.4 < cosines[:, 0].mean() < 0.5
    scores = torch.zeros(200, classes, dtype=torch.float64)
    scores.scatter_add_(1, train[1][nearest], ((cosines - cosines[:, :1]) / temperature).exp())
    best = scores.topk(2, dim=1).values
    assert (best[:, 0] / best[:, 1] > 1.01).all()  # no vote is so close that rounding may decide it
    expected = (scores.argmax(1) == test[1]).double().mean().item()
    assert knn(train, test, classes, temperature=temperature)["acc1"] == expected > 0.9
    # The control: without the nearest taken out all votes vanish, and class 0 wins.
    assert temperature > 0.005 or ((cosines.float() - 1) / temperature).exp().sum() < 1e-20


@pytest.mark.parametrize("scale", [1e25, 1e-25])
def test_knn_does_not_depend_on_the_size_of_features(scale):
    """1e25 squared is no float32, and 1e-50 is 0: without care all cosines would be 0."""
    train, test = blobs(200, 1), blobs(100, 2)
    of_size = [(features * scale, labels) for features, labels in (train, test)]
    assert knn(*of_size, 4)["acc1"] == pytest.approx(knn(train, test, 4)["acc1"], abs=0.011)  # by rounding, one


def test_each_judge_says_n_intervals_and_balanced_accuracy():
    """Test images of one class of four weigh as many as all others together."""
    train, held, (features, labels) = blobs(400, 1), blobs(200, 2), blobs(200, 3)
    chosen = torch.cat([(labels == 0).nonzero()[:, 0], (labels > 0).nonzero()[:50, 0]])
    test = features[chosen], labels[chosen]
    for found in (probe(train, held, test, 4, epochs=3), knn(train, test, 4)):
        assert found["n"] == 100 and found["acc1_interval"] == wilson(round(100 * found["acc1"]), 100)
        assert found["balanced_accuracy"] != found["acc1"]
    assert found["balanced_accuracy_interval"][0] < found["balanced_accuracy"] < found["balanced_accuracy_interval"][1]


@pytest.mark.parametrize("classes", [4, 5, 6])
def test_among_the_five_best_of_five_classes_is_no_measure(classes):
    train, held, test = (blobs(120, seed, classes=classes) for seed in (1, 2, 3))
    found = probe(train, held, test, classes, epochs=2)
    assert (found["acc5"] == "undefined") == (classes <= 5) == ("acc5_interval" not in found)


def test_hits_are_among_the_best_k():
    scores = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.2, 0.3], [0.2, 0.3, 0.5]])
    labels = torch.tensor([1, 2, 0])
    assert metrics.hits(scores, labels).tolist() == [True, False, False]
    assert metrics.hits(scores, labels, 2).tolist() == [True, True, False]
    assert metrics.hits(scores, labels, 5).all()


def test_of_several_best_classes_the_first_counts():
    """As `argmax` and `metrics.classification` have it."""
    for classes in (3, 10, 500):
        tied = torch.zeros(3, classes)
        assert metrics.hits(tied, torch.tensor([0, 1, classes - 1])).tolist() == [True, False, False]


def numbered_rows(count):
    return Rows((torch.arange(count, dtype=torch.float32)[:, None],), torch.device("cpu"))


def test_the_probe_is_chosen_by_groups_that_it_has_not_learnt():
    """The control: without groups the tenth is cut image by image, as before, and parts them."""
    labels, groups = torch.arange(200) % 3, [str(i // 8) for i in range(200)]
    for known in (groups, None):
        parts = hold_out_tenth((numbered_rows(200), labels), 0, known)
        index = [rows[torch.arange(len(rows))][:, 0].long() for rows, _ in parts]
        assert all(torch.equal(labels[i], y) for i, (_, y) in zip(index, parts))
        assert sorted(torch.cat(index).tolist()) == list(range(200)) and 12 <= len(index[1]) <= 28
        shared = {groups[i] for i in index[0]} & {groups[i] for i in index[1]}
        assert bool(shared) == (known is None)
    assert torch.equal(index[1], split_validation(labels, 0.1, 0)[1])


def test_where_each_class_is_one_group_the_tenth_is_cut_image_by_image_and_said_once(capsys):
    train, seed = (numbered_rows(60), torch.arange(60) % 3), 5
    parts = [hold_out_tenth(train, seed, groups) for groups in (["a", "b", "c"] * 20, ["d", "e", "f"] * 20, None)]
    assert len(parts[0][1][1]) == 6
    for (_, held), (_, plain) in zip(parts[0] + parts[1], parts[2] * 2):
        assert torch.equal(held, plain)
    assert capsys.readouterr().out.count("3 of 3 classes of train have no whole group") == 1


def test_nothing_is_chosen_on_a_part_of_the_classes(capsys):
    """Two classes are one slide each, the third is of twenty patients: only the first two are cut image by image."""
    labels = torch.tensor([0] * 100 + [1] * 100 + [2] * 60)
    groups = ["a"] * 100 + ["b"] * 100 + [f"c{i % 20}" for i in range(60)]
    parts = hold_out_tenth((numbered_rows(260), labels), 0, groups)
    left, held = (rows[torch.arange(len(rows))][:, 0].long() for rows, _ in parts)
    assert torch.bincount(labels[held]).tolist() == [10, 10, 6]
    assert sorted([*left.tolist(), *held.tolist()]) == list(range(260))
    assert torch.equal(held[:20], split_validation(labels, 0.1, 0)[1][:20])
    assert {groups[i] for i in left} & {groups[i] for i in held} == {"a", "b"}
    assert "2 of 3 classes of train have no whole group" in capsys.readouterr().out
