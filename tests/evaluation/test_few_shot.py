"""Few labels: the head is scikit-learn's, the draws are nested and paired, the interval is Student's."""

from functools import partial

import drawn
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression

from ssl.data.hold_out import few_of_classes
from ssl.evaluation import few_shot, logistic
from ssl.evaluation.feature_rows import Rows, statistics
from ssl.sources import labels as of_sources

blobs = partial(drawn.blobs, middle=3)


def draws_of(labels, shots, seed):
    return [few_of_classes(labels, shots, seed + draw) for draw in range(few_shot.DRAWS)]


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("count, width, classes", [(80, 12, 4), (1000, 96, 40)])
def test_the_head_is_that_of_scikit_learn(count, width, classes, balanced):
    features, labels = blobs(count, 1, width, classes)
    kept = (labels > 0) | (torch.arange(count) < count // 2)  # class 0 has half as many images as the others
    features, labels = features[kept], labels[kept]
    x = logistic.centred(features, statistics(features)[0])
    weight, bias = logistic.fit(x, labels, classes, c=3.0, balanced=balanced)
    weighted = "balanced" if balanced else None
    theirs = LogisticRegression(C=3.0, tol=1e-10, max_iter=10_000, class_weight=weighted).fit(
        x.double().numpy(), labels.numpy()
    )
    expected = torch.from_numpy(theirs.predict_proba(x.double().numpy())).float()
    assert torch.allclose((x @ weight.T + bias).softmax(1), expected, atol=1e-3)


def test_of_two_classes_it_is_scikit_learns_head_of_twice_the_c():
    features, labels = blobs(200, 1, 20, classes=2)
    x = logistic.centred(features, statistics(features)[0])
    weight, bias = logistic.fit(x, labels, 2, c=3.0)
    found = (x @ weight.T + bias).softmax(1)
    for c, same in ((6.0, True), (3.0, False)):
        theirs = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(x.double().numpy(), labels.numpy())
        expected = torch.from_numpy(theirs.predict_proba(x.double().numpy())).float()
        assert torch.allclose(found, expected, atol=1e-3) == same


def test_two_classes_and_one_image_of_each():
    features, labels = blobs(2, 1, classes=2)
    mean = statistics(features)[0]
    assert logistic.learn((features, labels), 2, mean).hits((features, labels)).all()


def test_accuracies_are_those_of_scikit_learn_on_the_same_draws():
    train, test = blobs(300, 1), blobs(400, 2)
    mean = statistics(train[0])[0]
    draws = draws_of(train[1], 5, seed=7)
    found = few_shot.accuracies(train, test, 4, draws, mean)
    unit = [logistic.centred(part[0], mean).numpy() for part in (train, test)]
    theirs = []
    for index in draws:
        head = LogisticRegression(C=10, tol=1e-9, max_iter=10_000).fit(unit[0][index], train[1][index])
        theirs.append(head.score(unit[1], test[1].numpy()))
    assert found["acc1_of_draws"] == pytest.approx(theirs, abs=1 / 400)
    assert found["acc1"] == pytest.approx(sum(found["acc1_of_draws"]) / 5) == found["balanced_accuracy"]
    interval = stats.t.interval(0.95, 4, loc=found["acc1"], scale=stats.sem(found["acc1_of_draws"]))
    assert found["acc1_interval"] == pytest.approx(interval, abs=1e-3)
    assert (found["n"], found["labels"]) == (400, 20)
    rows = Rows((train[0][:100], train[0][100:]), train[0].device)
    assert few_shot.accuracies((rows, train[1]), test, 4, draws, mean) == found


def test_draws_are_nested_paired_by_seed_and_those_of_a_share_of_the_labels():
    labels = torch.arange(200) % 7
    labels[labels == 6] = torch.where(torch.arange((labels == 6).sum()) < 3, 6, 0)
    one, five, again = (draws_of(labels, shots, seed=4) for shots in (1, 5, 5))
    for small, large, same in zip(one, five, again):
        assert set(small.tolist()) < set(large.tolist()) and torch.equal(large, same)
        assert torch.bincount(labels[small]).tolist() == [1] * 7
        assert torch.bincount(labels[large]).tolist() == [5] * 6 + [3]
    assert not torch.equal(five[0], five[1]) and torch.equal(draws_of(labels, 5, seed=5)[0], five[1])
    share = of_sources.stratified(labels, 10, seed=4)
    assert set(one[0].tolist()) <= set(share.tolist())
    assert few_shot.smaller_classes(labels, 5, list("abcdefg")) == ["g"]


def test_draws_of_the_same_labels_have_no_interval():
    train, test = blobs(40, 1), blobs(50, 2)
    found, fewer = (
        few_shot.accuracies(train, test, 4, draws_of(train[1], shots, seed=0), statistics(train[0])[0])
        for shots in (16, 9)
    )
    assert found["labels"] == 40 and set(found["acc1_of_draws"]) == {found["acc1"]}
    assert not {name for name in found if name.endswith("_interval")}
    assert fewer["labels"] == 36 and fewer["acc1_interval"] and fewer["balanced_accuracy_interval"]


def test_the_interval_stays_within_0_and_1():
    assert few_shot.over_draws("acc1", [1.0, 0.9])["acc1_interval"][1] == 1
    assert few_shot.over_draws("acc1", [0.5] * 10) == {"acc1": 0.5, "acc1_interval": [0.5, 0.5]}
