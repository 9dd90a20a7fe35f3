"""The plan: what fits into the minutes, in whole pairs, one job after another or side by side."""

import dataclasses
import itertools
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssl.errors import UserError
from ssl.worth import jobs, plan
from ssl.worth.measure import Speed
from ssl.worth.plan import Cell, Network, Sizes, Task
from ssl.worth.splits import ALL

SIZES = Sizes(800, 0, 200, 5, {1: (5, 0), 5: (20, 5), 20: (80, 20), ALL: (640, 160)})
SPEED = Speed(begin=5, start=5, epoch=4, train=2e-3, check=1e-3, judge=1e-3, read=2e-3, hold=2e-3)


def network(name: str = "own", weights: str | None = None, **speed) -> Network:
    return Network(name, weights, {}, {}, 48, 48, 128, 2e-3, 90, 96, dataclasses.replace(SPEED, **speed))


OWN, PUBLIC = network(), network("pub", "pub.pth", epoch=30, train=0.03, check=0.01, judge=0.01)


def made(minutes: float, networks=(OWN, PUBLIC), seeds: int = 3, spent: float = 20, at_once: int = 1):
    cells = plan.order_of_use(list(networks), [1, 5, 20, ALL], seeds)
    return plan.make(60 * minutes, spent, list(networks), SIZES, cells, 33, 10e9, at_once), cells


def test_the_order_of_use_is_all_labels_then_few_then_more_seeds():
    cells = plan.order_of_use([OWN, PUBLIC], [1, 5, 20, ALL], 2)
    assert cells[:4] == [Cell("own", ALL, 0), Cell("pub", ALL, 0), Cell("own", 5, 0), Cell("pub", 5, 0)]
    assert [(cell.count, cell.seed) for cell in cells[::2]] == [(n, seed) for seed in (0, 1) for n in (ALL, 5, 20, 1)]
    assert len(set(cells)) == 16


@pytest.mark.parametrize("minutes", [6, 10, 30, 120])
@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_the_plan_fills_the_minutes_and_no_more(minutes, at_once):
    found, cells = made(minutes, at_once=at_once)
    assert found.total + 20 / 60 <= plan.SPARE * minutes
    assert found.cells + found.too_long and set(found.cells) | set(found.too_long) == set(cells)
    assert not set(found.cells) & set(found.too_long)
    networks, planned = [OWN, PUBLIC], plan.SPARE * minutes - 20 / 60 - found.total
    before = plan.duration(plan.tasks(networks, SIZES, found.epochs, found.cells), at_once)
    for cell in found.too_long:  # whatever would still fit is taken
        after = plan.duration(plan.tasks(networks, SIZES, found.epochs, [*found.cells, cell]), at_once)
        assert (after - before) / 60 > planned
    costs = [task.seconds / 60 for task in plan.of_cells(found.too_long, networks, SIZES, found.epochs)]
    assert found.more == pytest.approx(sum(costs) / at_once)


def test_two_jobs_at_once_make_nearly_twice_as_many_fine_tunings():
    one, two = (made(20, at_once=at_once)[0] for at_once in (1, 2))
    assert two.epochs["own"] >= one.epochs["own"] and set(one.cells) < set(two.cells)
    assert two.frozen + two.pretrain + two.tune > 1.9 * (one.frozen + one.pretrain + one.tune)


def test_a_task_waits_for_the_weights_that_it_needs_and_the_next_goes_first():
    some = [Task(10, makes="own"), Task(3, needs="own"), Task(4), Task(5)]
    assert [plan.duration(some, at_once) for at_once in (1, 2, 3)] == [22, 13, 13]
    assert plan.duration([*some, Task(9)], 2) == 10 + 8  # own's 3 and the last of 9 begin together; 9 ends at 18


class Timed:
    """A job that takes the seconds of its task, on a clock of its own; `seconds` as `Job` has them."""

    def __init__(self, clock: SimpleNamespace, number: int, task: Task, seconds: float = 0.0, pair: object = None):
        self.clock, self.takes, self.seconds, self.pair, self.ended = clock, task.seconds, seconds, pair, None
        self.what, self.folder = f"{task}", Path(task.makes or f"of {number}")
        self.needs = Path(task.needs) if task.needs else None

    def done(self) -> bool:
        return False

    def check(self, status: int) -> None:
        assert status == 0

    def start(self) -> SimpleNamespace:
        self.ended = self.clock.now + self.takes
        return SimpleNamespace(poll=lambda: 0 if self.clock.now >= self.ended else None, returncode=0)


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The clock of `run_all`, which moves on by a second with each look."""
    found = SimpleNamespace(now=0.0)
    passes = SimpleNamespace(
        sleep=lambda seconds: setattr(found, "now", found.now + seconds), monotonic=lambda: found.now
    )
    monkeypatch.setattr(jobs, "LOOK", 1)
    monkeypatch.setattr(jobs, "time", passes)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_jobs_take_as_long_as_planned(seed, clock):
    draw = random.Random(seed)
    some = [Task(draw.randrange(1, 50), makes=f"{i}") for i in range(3)]
    some += [Task(draw.randrange(1, 50), needs=draw.choice(["", "0", "1", "2"])) for _ in range(12)]
    draw.shuffle(some)
    for at_once in (1, 2, 3):
        clock.now = 0.0
        jobs.run_all([Timed(clock, i, task) for i, task in enumerate(some)], at_once)
        assert clock.now == plan.duration(some, at_once)
        assert max(task.seconds for task in some) <= clock.now <= sum(task.seconds for task in some)


def test_pairs_that_cannot_end_within_the_minutes_are_left_out(clock, capsys):
    """The third job takes longer than planned. Then b does not fit, though one of it would, and c, shorter, does."""
    planned = [
        ("a", 40, 40),
        (None, 30, 30),
        ("a", 10, 50),
        ("b", 20, 17),
        ("b", 3, 3),
        ("c", 5, 3),
        ("c", 2, 2),
        (None, 60, 60),
    ]
    some = [Timed(clock, i, Task(takes), seconds, pair) for i, (pair, seconds, takes) in enumerate(planned)]
    jobs.run_all(some, until=130)
    ended = [job.ended and round(job.ended) for job in some]
    assert ended[:3] == [40, 70, 120] and ended[3:5] == [None, None]
    assert 123 <= ended[5] < ended[6] <= 130 and ended[7] > 185
    assert "2 jobs left out: no minutes are left; the same command makes them" in capsys.readouterr().out


def test_a_cell_costs_as_much_as_both_of_its_starts():
    both, alone = (
        sum(task.seconds for task in plan.of_cells([Cell("pub", 5, 0)], [OWN, PUBLIC], SIZES, epochs))
        for epochs in ({"own": 9, "pub": 9}, {"own": 9})
    )
    assert both == pytest.approx(2 * alone)


@pytest.mark.parametrize(
    ("short_side", "preload", "once"), [(None, False, False), (96, False, True), (None, True, True)]
)
def test_images_that_are_not_held_in_memory_are_read_in_every_epoch(short_side, preload, once):
    """Of all labels 640 are learnt from in 31 epochs; 160 validate about 20 times; then 200 are tested. Held are all
    1000, and an image that is held reduced is read three times as fast."""
    sizes, cell = dataclasses.replace(SIZES, preload=preload), Cell("own", ALL, 0)
    free, read = (dataclasses.replace(network(read=3 * n, hold=n), short_side=short_side) for n in (0, 1))
    for start, epochs, validations in (("own", 31, 31), ("nothing", 62, 21)):  # after each epoch, and each third
        reads = plan._tune_seconds(read, start, cell, sizes) - plan._tune_seconds(free, start, cell, sizes)
        held = 3 * 1000 if preload else 1000
        assert reads == pytest.approx((held if once else 3 * (640 * epochs + 160 * validations)) + 3 * 200)
    assert plan.holds_in_memory(read, sizes, cell) is (short_side is not None)


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
    least = int(str(refused.value).split("takes about ")[1].split(":")[0])
    assert least > 5 and made(least, [slow])[0].cells[0] == Cell("own", ALL, 0)


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
    slow = network("pub", "pub.pth", epoch=10, judge=0.3, train=0.05, check=0.02)
    for networks, at_once in itertools.product(([OWN], [OWN, PUBLIC], [OWN, slow], [OWN, PUBLIC, slow]), (1, 2, 4)):
        with pytest.raises(UserError) as refused:
            made(0.5, networks, at_once=at_once)
        least = int(str(refused.value).split("takes about ")[1].split(":")[0])
        assert made(least, networks, at_once=at_once)[0].cells
        with pytest.raises(UserError):
            made(0.97 * (least - 1), networks, at_once=at_once)
