"""What fits into the minutes: how long to pre-train, and which fine-tunings, in the order of their use.

Frozen encoders are judged with every number of labels; that is cheap. Pre-training gets a fixed share of the time that
is left. Fine-tunings get the rest, a cell at a time: both starts of one network with the same labels and seed. So every
comparison within a network is between pairs. Where jobs run side by side, the minutes are those that the last one ends
in. The plan is made once and kept in plan.json; the same command follows it.
"""

import math
from dataclasses import dataclass

from ssl.errors import UserError
from ssl.training.early_stopping import validated_every
from ssl.worth.measure import Speed
from ssl.worth.splits import ALL
from ssl.worth.starts import NOTHING, OWN

PRETRAIN = 0.4  # share of the time that frozen judging leaves
SPARE = 0.9  # of the minutes are planned: measured speeds are not exact
MOST_EPOCHS = 1000  # of pre-training, as published runs on so few images have
FEWEST_EPOCHS = 3  # of pre-training on public weights, below which it is left out
FEW = (5, 20, 1)  # labels a class of fine-tunings, after all labels
MOST = (2000, 1000, 500, 200, 100, 50)  # labels a class that `all` may stand for, where all of them take too long
DRAWS = 10  # of labels, for frozen encoders with fewer than all labels
# Images that fine-tuning shows, and bounds of its epochs: fewer from public weights, which have less to learn, and
# twice as many from nothing, which has had no pre-training. With 12,000 and 10 epochs neither had learnt its images: on
# 2,000 of CIFAR-10, 20 epochs brought own 3 points more, and 40 brought nothing 4.
SEEN, EPOCHS = {OWN: 20_000, "public": 6_000}, {OWN: (20, 200), "public": (6, 40)}
FROM_NOTHING = 2
HEAD_FLOPS = {"cpu": 10e9, "cuda": 1e12}  # a second, of the small products of the head: of a core, of a GPU


@dataclass(frozen=True)
class Network:
    """An encoder, and what the plan must know of it. `weights`: of the public start; None: the user's own network."""

    name: str
    weights: str | None
    settings: dict  # of the encoder, for any script: encoder, encoder_kwargs, stem
    recipe: dict  # of pre-training: settings of train.py that choose the encoder and the recipe
    train_size: int  # pixels of a view
    judge_size: int  # pixels of the images that are judged
    width: int
    lr: float  # of pre-training
    recipe_epochs: int  # which train.py would take
    short_side: int | None
    speed: Speed
    seen: bool = False  # the public weights have seen the validation images
    saw_test: bool = False  # and the test images, without labels

    @property
    def kind(self) -> str:
        return OWN if self.weights is None else "public"

    @property
    def starts(self) -> tuple[str, str]:
        """The start without and with pre-training on the user's images."""
        return (NOTHING, OWN) if self.weights is None else (self.name, f"{self.name}+own")


@dataclass(frozen=True)
class Sizes:
    """Numbers of images; `of_draw[count]` are (to learn from, held out) with so many labels a class."""

    train: int  # with labels
    validation: int  # of a split of their own
    test: int
    classes: int
    of_draw: dict[int, tuple[int, int]]
    preload: bool = False  # every job decodes all of them once

    @property
    def all(self) -> int:
        return self.train + self.validation + self.test


@dataclass(frozen=True)
class Cell:
    """A fine-tuning of both starts of a network."""

    network: str
    count: int  # labels a class, or ALL
    seed: int


@dataclass(frozen=True)
class Plan:
    minutes: float  # that it is made for
    at_once: int  # jobs that run side by side
    total: float  # minutes until all is done
    frozen: float  # minutes of judging frozen encoders; this and what follows are sums over jobs
    epochs: dict[str, int]  # of pre-training, by network; a network without has no start with it
    pretrain: float  # minutes
    cells: list[Cell]
    tune: float  # minutes
    too_long: list[Cell]  # cells that do not fit
    more: float  # minutes that these would take, side by side


@dataclass(frozen=True)
class Task:
    """A job: its seconds, the start whose weights it makes, and the start whose weights it needs.

    It is of `start`: its pre-training, if it makes weights; with a cell its fine-tuning; else its features.
    """

    seconds: float
    makes: str = ""
    needs: str = ""
    start: str = ""
    cell: Cell | None = None


def make(
    seconds: float,
    spent: float,
    networks: list[Network],
    sizes: Sizes,
    cells: list[Cell],
    labels: int,
    flops: float,
    at_once: int,
) -> Plan:
    """The plan for so many seconds, of which some are `spent` on measuring. `cells` are all, in the order of their use;
    `labels` is how many labels the heads of a frozen encoder learn from, all draws together, at `flops` a second.

    Raises `UserError` where not even the first things fit.
    """
    heads = sum(len(network.starts) * _heads(network, sizes, labels, flops) for network in networks)
    features = sum(len(network.starts) * _features(network, sizes) for network in networks)
    own = next(network for network in networks if network.weights is None)

    def pretraining(left: float) -> dict[str, int]:
        return _pretraining(networks, PRETRAIN * (left - features / at_once), at_once)

    def fit(some: list[Cell], epochs: dict[str, int], left: float) -> bool:
        what = tasks(networks, sizes, epochs, some)
        return sum(task.seconds for task in what) <= at_once * left and duration(what, at_once) <= left

    def answers(left: float) -> bool:
        """Whether own is pre-trained and the first cell fits."""
        return own.name in (epochs := pretraining(left)) and fit(cells[:1], epochs, left)

    left = SPARE * seconds - spent - heads
    if not answers(left):
        enough = max(left, 1.0)
        while not answers(enough):
            enough *= 1.02
        raise UserError(
            f"minutes: {seconds / 60:.3g} are too few: on this machine the least that can answer takes about "
            f"{math.ceil((spent + heads + enough) / SPARE / 60)}: features of {sizes.all} images, one epoch of "
            "pre-training, and one fine-tuning from nothing and from it. Pass more --minutes, fewer images, or smaller "
            "ones (python -m ssl.data.prepare)"
        )
    epochs = pretraining(left)
    taken: list[Cell] = []
    for cell in cells:
        if fit([*taken, cell], epochs, left):
            taken.append(cell)
    too_long = [cell for cell in cells if cell not in taken]
    pretrain = sum(_pretrain_seconds(network, epochs[network.name]) for network in networks if network.name in epochs)
    tune, more = (sum(task.seconds for task in of_cells(some, networks, sizes, epochs)) for some in (taken, too_long))
    total = (duration(tasks(networks, sizes, epochs, taken), at_once) + heads) / 60
    frozen = (features + heads) / 60
    of_tuning = taken, tune / 60, too_long, more / 60 / at_once
    return Plan(seconds / 60, at_once, total, frozen, epochs, pretrain / 60, *of_tuning)


def tasks(networks: list[Network], sizes: Sizes, epochs: dict[str, int], cells: list[Cell]) -> list[Task]:
    """The jobs, in their order: features of weights that are there, pre-training with its features, fine-tunings."""
    found = [Task(_features(network, sizes), start=network.starts[0]) for network in networks]
    for network in networks:
        if network.name in epochs:
            start = network.starts[1]
            found += [Task(_pretrain_seconds(network, epochs[network.name]), makes=start, start=start)]
            found += [Task(_features(network, sizes), needs=start, start=start)]
    return found + of_cells(cells, networks, sizes, epochs)


def of_cells(cells: list[Cell], networks: list[Network], sizes: Sizes, epochs: dict[str, int]) -> list[Task]:
    """The fine-tunings, in their order."""
    return [task for cell in cells for task in _of_cell(cell, networks, sizes, epochs)]


def _of_cell(cell: Cell, networks: list[Network], sizes: Sizes, epochs: dict[str, int]) -> list[Task]:
    """Both starts, or the one that a network without pre-training has."""
    network = next(one for one in networks if one.name == cell.network)
    simple, further = network.starts
    found = [Task(_tune_seconds(network, simple, cell, sizes), start=simple, cell=cell)]
    if network.name in epochs:
        found += [Task(_tune_seconds(network, further, cell, sizes), needs=further, start=further, cell=cell)]
    return found


def duration(some: list[Task], at_once: int) -> float:
    """Seconds until all are done, where they are started as `jobs.run_all` starts them."""
    waiting, running, now = list(some), [], 0.0  # running: (end, what it makes)
    while waiting or running:
        undone = {task.makes for task in waiting} | {makes for _, makes in running}
        ready = [task for task in waiting if not task.needs or task.needs not in undone]
        for task in ready[: at_once - len(running)]:
            running.append((now + task.seconds, task.makes))
            waiting.remove(task)
        now = min(end for end, _ in running)
        running = [one for one in running if one[0] > now]
    return now


def order_of_use(networks: list[Network], counts: list[int], seeds: int) -> list[Cell]:
    """All cells: with all labels first, then with few; more seeds last."""
    few = [count for count in FEW if count in counts]
    return [Cell(network.name, count, seed) for seed in range(seeds) for count in (ALL, *few) for network in networks]


def tune_epochs(network: Network, start: str, images: int) -> int:
    """Epochs of fine-tuning on so many images."""
    least, most = EPOCHS[network.kind]
    epochs = min(max(round(SEEN[network.kind] / images), least), most)
    return epochs * (FROM_NOTHING if start == NOTHING else 1)


def _tune_seconds(network: Network, start: str, cell: Cell, sizes: Sizes) -> float:
    speed, (trained, checked) = network.speed, _looks(network, start, cell, sizes)
    looks = trained * speed.train + (checked + sizes.test) * speed.check
    if sizes.preload:
        reads = sizes.all * speed.read
    elif holds_in_memory(network, sizes, cell):
        reads = sizes.all * speed.hold
    else:
        reads = (trained + checked) * speed.read
    return speed.start + looks + reads + sizes.test * speed.read


def _looks(network: Network, start: str, cell: Cell, sizes: Sizes) -> tuple[int, int]:
    """How many images a fine-tuning reads (to learn from, to validate on), all epochs together."""
    fit, held = sizes.of_draw[cell.count]
    epochs = tune_epochs(network, start, fit)
    return epochs * fit, math.ceil(epochs / validated_every(epochs)) * (held or sizes.validation)


def holds_in_memory(network: Network, sizes: Sizes, cell: Cell) -> bool:
    """Whether fine-tuning holds reduced images, as pre-training does, since it is less work to decode all images once
    than those of the cell in every epoch: alike for both starts."""
    return network.short_side is not None and sizes.all < sum(_looks(network, network.starts[1], cell, sizes))


def _features(network: Network, sizes: Sizes) -> float:
    """Seconds of the features of one start."""
    return network.speed.start + sizes.all * (network.speed.judge + network.speed.read)


def _heads(network: Network, sizes: Sizes, labels: int, flops: float) -> float:
    """Seconds of the heads on the features of one start, of about 125 passes each, at the end."""
    return 6 * 125 * sizes.classes * network.width * labels / flops


def _pretrain_seconds(network: Network, epochs: int) -> float:
    return network.speed.begin + epochs * network.speed.epoch


def _pretraining(networks: list[Network], seconds: float, at_once: int) -> dict[str, int]:
    """Epochs of each network; they share the time alike, `at_once` side by side, if each can use its share."""
    able = list(networks)
    while able:
        share = seconds / math.ceil(len(able) / at_once)
        fits = {
            network.name: min(MOST_EPOCHS, int((share - network.speed.begin) / network.speed.epoch)) for network in able
        }
        few = [n for n in able if fits[n.name] < (1 if n.weights is None else FEWEST_EPOCHS)]
        if not few:
            return fits
        able.remove(few[-1] if few[-1].weights else able[-1])  # own comes first, and goes last
    return {}
