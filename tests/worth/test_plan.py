"""The plan: what fits into the minutes, in whole pairs."""

import dataclasses

import pytest

from ssl.errors import UserError
from ssl.worth import plan
from ssl.worth.measure import Speed
from ssl.worth.plan import Cell, Network, Sizes
from ssl.worth.splits import ALL

SIZES = Sizes(800, 0, 200, 5, {1: (5, 0), 5: (20, 5), 20: (80, 20), ALL: (640, 160)})
SPEED = Speed(start=5, epoch=4, train=2e-3, check=1e-3, judge=1e-3, read=2e-3)


def network(name: str = "own", weights: str | None = None, **speed) -> Network:
    return Network(name, weights, {}, {}, 48, 48, 128, 2e-3, 90, None, dataclasses.replace(SPEED, **speed))


OWN, PUBLIC = network(), network("pub", "pub.pth", epoch=30, train=0.03, check=0.01, judge=0.01)


def made(minutes: float, networks=(OWN, PUBLIC), seeds: int = 3, spent: float = 20):
    cells = plan.order_of_use(list(networks), [1, 5, 20, ALL], seeds)
    return plan.make(60 * minutes, spent, list(networks), SIZES, cells, 33, 1), cells


def test_the_order_of_use_is_all_labels_then_few_then_more_seeds():
    cells = plan.order_of_use([OWN, PUBLIC], [1, 5, 20, ALL], 2)
    assert cells[:4] == [Cell("own", ALL, 0), Cell("pub", ALL, 0), Cell("own", 5, 0), Cell("pub", 5, 0)]
    assert [cell.seed for cell in cells] == [0] * 6 + [1] * 6  # with 1 label a class none
    assert len(set(cells)) == 12


@pytest.mark.parametrize("minutes", [6, 10, 30, 120])
def test_the_plan_fills_the_minutes_and_no_more(minutes):
    found, cells = made(minutes)
    assert found.total + 20 / 60 <= plan.SPARE * minutes
    assert found.cells + found.too_long and set(found.cells) | set(found.too_long) == set(cells)
    assert not set(found.cells) & set(found.too_long)
    room = plan.SPARE * minutes - 20 / 60 - found.total
    costs = [plan.cost(cell, [OWN, PUBLIC], SIZES, found.epochs) / 60 for cell in found.too_long]
    assert all(cost > room for cost in costs)  # whatever would still fit is taken
    assert found.more == pytest.approx(sum(costs))


def test_a_cell_costs_as_much_as_both_of_its_starts():
    both = plan.cost(Cell("pub", 5, 0), [OWN, PUBLIC], SIZES, {"own": 9, "pub": 9})
    alone = plan.cost(Cell("pub", 5, 0), [OWN, PUBLIC], SIZES, {"own": 9})
    assert both == pytest.approx(2 * alone)


def test_more_minutes_never_do_less():
    plans = [made(minutes)[0] for minutes in (6, 10, 20, 40, 80)]
    for less, more in zip(plans, plans[1:]):
        assert more.epochs["own"] >= less.epochs["own"] and more.tune >= less.tune
        assert sum(cell.count == ALL for cell in more.cells) >= sum(cell.count == ALL for cell in less.cells)


def test_public_weights_that_are_slow_are_not_trained_further_and_leave_their_time():
    slow = network("pub", "pub.pth", epoch=600, train=0.03, check=0.01, judge=0.01)
    found, _ = made(12, [OWN, slow])
    assert "pub" not in found.epochs
    assert "pub" in made(12)[0].epochs and found.epochs["own"] > made(12)[0].epochs["own"]


def test_fine_tunings_that_are_slow_are_not_made_shorter_but_refused_with_the_minutes_that_are_enough():
    slow = network(train=8e-3)
    with pytest.raises(UserError, match="minutes: 5 are too few") as refused:
        made(5, [slow])
    least = float(str(refused.value).split("takes about ")[1].split(":")[0])
    assert least > 5 and made(1.05 * least, [slow])[0].cells[0] == Cell("own", ALL, 0)


def test_nothing_has_the_most_epochs_and_public_weights_the_fewest():
    for images in (20, 100, 640, 50_000):
        nothing, own, public, further = (
            plan.tune_epochs(network, start, images) for network in (OWN, PUBLIC) for start in network.starts
        )
        assert nothing == 2 * own and own >= public == further >= 1
    assert plan.tune_epochs(OWN, "own", 640) == 31  # 20,000 images


def test_too_few_minutes_are_refused_and_the_least_that_fit_are_named():
    with pytest.raises(UserError, match=r"minutes: 0.5 are too few: .* takes about \S+: features of 1000 images"):
        made(0.5)
    with pytest.raises(UserError) as refused:
        made(0.5, [OWN])
    least = float(str(refused.value).split("takes about ")[1].split(":")[0])
    assert made(1.05 * least, [OWN])[0].cells
