"""What features know of groups: made features whose right value is known, and brute force."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ssl.evaluation import groups as of_groups
from ssl.evaluation import neighbours
from ssl.evaluation.feature_rows import Rows
from ssl.evaluation.groups import by_name, group_accuracy, robustness_index


def made(count=120, classes=3, groups=4, of_class=1.0, of_group=1.0, seed=0, noise=0.05):
    """Features (count, classes + groups) that hold the class and the group, each as strongly as asked; crossed."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    group = torch.arange(count) // classes % groups
    own = [of_class * torch.eye(classes)[labels], of_group * torch.eye(groups)[group]]
    return torch.cat(own, 1) + noise * torch.randn(count, classes + groups, generator=generator), labels, group


def by_brute_force(x, y, g, k):
    """SO, OS of the k nearest others, as PathoROB counts them, and the index."""
    x = x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True)
    so = os = 0
    for i in range(len(x)):
        distance = ((x - x[i]) ** 2).sum(1)
        others = [j for j in np.argsort(distance) if j != i and g[i] >= 0 and g[j] >= 0][:k]
        so += sum(bool(y[j] == y[i] and g[j] != g[i]) for j in others)
        os += sum(bool(y[j] != y[i] and g[j] == g[i]) for j in others)
    return so / (so + os)


def test_the_index_is_1_where_features_are_the_class_and_0_where_they_are_the_group():
    assert robustness_index(*made(of_group=0), k=5)["index"] == 1
    assert robustness_index(*made(of_class=0), k=5)["index"] == 0
    between = robustness_index(*made(noise=0.5), k=5)
    low, high = between["index_interval"]
    assert 0 < low < between["index"] < high < 1 and (between["n"], between["k"], between["groups"]) == (120, 5, 4)


@pytest.mark.parametrize("k", [1, 7, 50])
def test_the_index_equals_brute_force(k, monkeypatch):
    x, y, g = made(count=90, noise=0.7)
    g[::7] = -1
    found = robustness_index(x, y, g, k=k)
    assert found["index"] == pytest.approx(by_brute_force(x, y, g, k), abs=1e-12)
    assert found["k"] == k and sum(found["neighbours"].values()) == pytest.approx(1)
    assert found["smallest_class"] == min(int(((y == label) & (g >= 0)).sum()) for label in range(3))
    monkeypatch.setattr(neighbours, "block_size", lambda rows: 16)  # in blocks, and from rows that need not fit
    assert robustness_index(Rows((x[:40], x[40:]), x.device), y, g, k=k) == found


def test_features_that_know_nothing_have_the_index_of_all_pairs():
    _, y, g = made(count=400)
    y[:150], g[:100] = 0, 1
    found = robustness_index(torch.randn(400, 8, generator=torch.Generator().manual_seed(1)), y, g)
    assert found["of_all"] == pytest.approx(by_brute_force(torch.randn(400, 2), y, g, 399), abs=1e-12)
    assert abs(found["index"] - found["of_all"]) < 0.03


def test_the_interval_is_that_of_a_bootstrap(monkeypatch):
    x, y, g = made(count=300, noise=0.6)
    found = robustness_index(x, y, g, k=10)
    near = neighbours.nearest(x, x, 10, own=torch.arange(300)).places
    so = ((y[near] == y[:, None]) & (g[near] != g[:, None])).sum(1)
    os = ((y[near] != y[:, None]) & (g[near] == g[:, None])).sum(1)
    draws = torch.randint(300, (2000, 300), generator=torch.Generator().manual_seed(0))
    indices = so[draws].sum(1) / (so + os)[draws].sum(1)
    for ours, theirs in zip(found["index_interval"], indices.quantile(torch.tensor([0.025, 0.975])).tolist()):
        assert ours == pytest.approx(theirs, abs=0.01)
    monkeypatch.setattr(of_groups, "MOST_QUERIES", 100)
    fewer = robustness_index(x, y, g, k=10)
    assert fewer["n"] == 100 and abs(fewer["index"] - found["index"]) < 0.1


@pytest.mark.parametrize(
    "labels, groups, why",
    [
        ([0, 0, 1, 1], [-1, -1, -1, -1], "no image has a group"),
        ([1, 1, 1, 1], [0, 0, 1, 1], "all images with a group are of one class"),
        ([0, 0, 1, 1], [0, 0, 0, 0], "all images are of one group"),
        ([0, 0, 1, 1], [0, 1, 2, 3], "every group is a single image"),
        ([0, 0, 1, 1], [1, 1, 0, 0], "groups and classes coincide"),
        ([0, 0, 0, 1, 1, 1], [0, 0, 1, 2, 2, 3], "would be 1 for any features"),
        ([0, 0, 1, 1, 2, 2], [0, 0, 0, 0, 1, 1], "would be 0 for any features"),
    ],
)
def test_an_index_that_would_say_nothing_is_none_with_its_reason(labels, groups, why):
    found = robustness_index(torch.randn(len(labels), 3), torch.tensor(labels), torch.tensor(groups), k=2)
    assert found["index"] is None and why in found["index_why"] and "index_interval" not in found


def test_where_all_others_are_neighbours_the_index_is_none():
    x, y, g = made(count=60)
    g[:10] = -1
    for k in (49, 50, 500):
        found = robustness_index(x, y, g, k=k)
        assert found["index"] is None and "all 49 other images" in found["index_why"] and found["k"] == 49
    assert robustness_index(x, y, g, k=48)["index"] is not None


def test_without_a_neighbour_of_either_kind_the_index_is_none():
    x, y, g = made(noise=0)
    found = robustness_index(x, y, g, k=3)  # all three are of the same class and the same group
    assert found["index"] is None and found["neighbours"]["SS"] == 1 and "none of the 3 nearest" in found["index_why"]


def test_the_group_is_told_as_often_as_scikit_learn_tells_it():
    x, y, g = made(count=600, of_class=0.3, of_group=0.4, noise=0.5)
    found = group_accuracy(x, y, g, seed=3)
    learns = of_groups.first_of_classes(g, 3, lambda count: count // 2)
    unit = torch.nn.functional.normalize(x - x[learns].mean(0)).numpy()
    theirs = LogisticRegression(C=10, max_iter=1000, tol=1e-8).fit(unit[learns], g[learns])
    assert found["acc1"] == pytest.approx(theirs.score(unit[~learns], g[~learns]), abs=1 / 300)
    assert found["n"] == 300 and found["groups"] == 4 and 0.2 < found["chance"] < 0.3
    low, high = found["acc1_interval"]
    assert found["chance"] < low < found["acc1"] < high


def test_a_class_that_tells_the_group_is_no_knowledge_of_the_group():
    x, y, _ = made(count=200, of_group=0)
    mostly = torch.where(torch.arange(200) % 5 == 0, (y + 1) % 3, y)  # 4 of 5 images of a class are of one group
    found = group_accuracy(x, y, mostly)
    assert found["from_class"] == pytest.approx(0.8, abs=0.07) and found["acc1"] == pytest.approx(found["from_class"])
    assert found["chance"] < 0.5
    knows = group_accuracy(torch.cat([x, torch.eye(3)[mostly]], 1), y, mostly)
    assert knows["acc1"] > 0.98 and knows["from_class"] == found["from_class"]


def test_groups_that_are_too_small_or_too_many(monkeypatch):
    x, y, _ = made(count=12)
    found = group_accuracy(x, y, torch.arange(12))
    assert found["acc1"] is None and "no group has two images" in found["acc1_why"]
    assert "one group has two images" in group_accuracy(x, y, torch.tensor([*range(11), 0]))["acc1_why"]
    assert group_accuracy(x, y, torch.full((12,), -1))["acc1"] is None
    g = torch.tensor([4, 4, 4, 7, 7, 9, -1, -1, -1, -1, -1, 0])
    found = group_accuracy(x, y, g)  # of 4 and of 7
    assert (found["groups"], found["n"]) == (2, 3)
    x, y, g = made(count=240, groups=8, noise=0.01)
    monkeypatch.setattr(of_groups, "MOST_GROUPS", 5), monkeypatch.setattr(of_groups, "MOST_OF_GROUP", 20)
    found = group_accuracy(x, y, g)
    assert (found["groups"], found["n"], found["acc1"]) == (5, 50, 1.0)


def test_names_of_groups_become_numbers():
    assert by_name(["b", None, "a", "b"]).tolist() == [1, -1, 0, 1] and by_name([None]).tolist() == [-1]
