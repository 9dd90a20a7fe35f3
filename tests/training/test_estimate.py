"""What a training costs is told before it starts: nothing of it changes, and what cannot fit is refused untried."""

import dataclasses
from functools import partial

import pytest
import torch
from running import ROOT, run, small_finetuning, tiny
from torch import nn
from torch.utils._pytree import tree_leaves

from ssl import optim
from ssl.augment import View
from ssl.data import memory
from ssl.data.images import Images
from ssl.data.order import Order
from ssl.errors import UserError
from ssl.training import estimate, step_cost
from ssl.training.estimate import Machine
from ssl.training.forward import Embed
from ssl.training.step_cost import Cost, Work, grown, measure

MACHINE = Machine(free=10**9, whose="this machine", processes=1, cores=4, threads=3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5))
        self.head = nn.Linear(144, 8)

    def forward(self, *views):
        return tuple(self.head(self.layers(x)) for x in views)


def work(
    optimizer: str = "lars", batch_size: int = 16, accumulate: int = 1, mode: str | None = "exact", count: int = 2
) -> Work:
    torch.manual_seed(0)
    model = Net()
    options = {"momentum": 0.9} if optimizer == "sgd" else {}
    made = optim.build(optimizer, optim.parameter_groups(model, 0.1, 0.1, 1e-4), 0.1, **options)
    pixels = torch.randint(0, 256, (64, 3, 10, 10), dtype=torch.uint8)
    data = Images("made", labels=torch.zeros(64, dtype=torch.long), classes=["a"], resident=pixels)
    views = [View(size=8)] * count
    embed = Embed(model, views, ([0.5] * 3, [0.2] * 3), torch.device("cpu"), None)
    order = Order(64, batch_size, accumulate, 1, 0)
    return Work(model, made, embed.pixels, partial(embed.outputs, net=model), data, views, order, 0, mode)


# Nothing changes ------------------------------------------------------------------------


def state(given: Work) -> list:
    """All numbers that a training depends on, and the names of the optimizer's attributes."""
    parts = given.model.state_dict(), given.optimizer.state_dict(), torch.get_rng_state(), list(vars(given.optimizer))
    gradients = [p.grad for p in given.model.parameters()]
    return [leaf.tolist() if isinstance(leaf, torch.Tensor) else leaf for leaf in tree_leaves((*parts, gradients))]


@pytest.mark.parametrize("optimizer", ["lars", "lamb", "sgd", "adam"])
def test_a_measured_step_leaves_everything_as_it_was(optimizer):
    given = work(optimizer)
    before = state(given)
    cost = measure(given, 4)
    assert cost.state > 0 and cost.kept > 0 and cost.seconds() > 0
    assert state(given) == before and given.model.training


def test_a_step_that_fails_leaves_everything_as_it_was():
    given = work()
    before = state(given)

    def fail(views):
        given.outputs(views)
        raise MemoryError

    with pytest.raises(MemoryError):
        measure(dataclasses.replace(given, outputs=fail), 4)
    assert state(given) == before


# Extrapolation --------------------------------------------------------------------------


@pytest.mark.parametrize("views", [2, 5])
def test_what_autograd_keeps_is_counted_to_the_byte(views):
    given = work(count=views)
    of_16 = measure(given, 16)
    assert grown([measure(given, 2), measure(given, 4)], 16).kept == of_16.kept
    maps, features, floats = 4 * 6 * 6, 144, 4
    pixels, mask, statistics = 3 * 8 * 8, features // 4, 2 * 4  # input of the convolution; dropout keeps bool or floats
    least = views * floats * (16 * (pixels + 2 * maps + features) + statistics)
    assert least <= of_16.kept <= least + views * floats * 16 * (mask + features)
    assert of_16.pixels == views * measure(work(count=1), 16).pixels


def test_costs_lie_on_the_line_through_the_last_two():
    costs = [
        Cost(2, 9.0, 9.0, 9.0, 1.0, 99, 9, 5),
        Cost(4, 1.0, 2.0, 3.0, 1.0, 40, 4, 5),
        Cost(8, 2.0, 3.0, 5.0, 1.0, 80, 8, 5),
    ]
    assert grown(costs, 32) == Cost(32, 8.0, 9.0, 17.0, 1.0, 320, 32, 5)
    assert grown(costs[1:2], 8) == Cost(8, 2.0, 4.0, 6.0, 1.0, 80, 8, 5)  # one alone: in proportion


@pytest.mark.parametrize("seconds, expected", [((4.0, 4.0), 4.0 + 1 / 4 * 12), ((1.0, 4.0), 4.0 + 1.0 * 12)])
def test_noise_does_not_bend_the_line_of_seconds(seconds, expected):
    first, second = (Cost(images, forward=took) for images, took in zip((2, 4), seconds))
    assert grown([first, second], 16).forward == expected


def tried(monkeypatch, batch_size: int, seconds_each: float, enough: bool = False, room: int = 1000) -> list[int]:
    """The numbers of images with which steps were made."""
    sizes = []

    def fake(work: Work, images: int) -> Cost:
        sizes.append(images)
        return Cost(images, forward=images * seconds_each, kept=images)

    monkeypatch.setattr(step_cost, "measure", fake)
    step_cost.costs_of(work(batch_size=batch_size), lambda costs: enough, lambda cost: cost.kept <= room)
    return sizes


def test_sizes_grow_for_some_seconds_while_there_is_room(monkeypatch):
    assert tried(monkeypatch, 64, 0.001) == [2, 2, 4, 8, 16, 32, 64]
    assert tried(monkeypatch, 24, 0.001) == [2, 2, 4, 8, 16, 24]
    assert tried(monkeypatch, 64, 0.001, room=10) == [2, 2, 4, 8]
    assert tried(monkeypatch, 64, 0.1) == [2, 2, 4, 8, 16]
    assert tried(monkeypatch, 64, 5.0) == [2, 4]  # a second try at 2 would be too long
    assert tried(monkeypatch, 64, 0.001, enough=True) == [2]
    assert tried(monkeypatch, 2, 0.001) == [2, 2]


# Time -----------------------------------------------------------------------------------

COST = Cost(16, read=6.0, forward=1.0, backward=2.0, optimizer=0.5)


@pytest.mark.parametrize(
    "workers, resident, accumulate, mode, expected",
    [
        (0, False, 1, "exact", 9.5),  # the process itself reads
        (3, True, 1, "exact", 9.5),  # so it does with images in memory
        (1, False, 1, "exact", 6.5),  # one worker is slower than the model
        (3, False, 1, "exact", 0.5 + (3 * 3 + 6) / 4),  # three share the cores with the model's threads
        (3, False, 2, "exact", 0.5 + 2 * (3 * 4 + 6) / 4),  # exact: every forward pass twice
        (3, False, 2, "split", 0.5 + 2 * (3 * 3 + 6) / 4),
    ],
)
def test_a_step_takes_what_reading_and_computing_take_on_the_cores(workers, resident, accumulate, mode, expected):
    given = work(accumulate=accumulate, mode=mode)
    data = given.data if resident else dataclasses.replace(given.data, resident=None, paths=["x"] * 64)
    given = dataclasses.replace(given, workers=workers, data=data)
    assert estimate.step_seconds(given, COST, MACHINE) == pytest.approx(expected)


@pytest.mark.parametrize(
    "seconds, words",
    [
        (3, "under a minute"),
        (70, "about a minute"),
        (100, "about 2 minutes"),
        (60 * 5.4, "about 5 minutes"),
        (3600 * 3.21, "about 3.2 h"),
        (3600 * 71, "about 71 h"),
        (86400 * 5, "about 5.0 days"),
        (86400 * 500, "about 500 days"),
    ],
)
def test_a_duration_has_a_unit_that_one_can_picture(seconds, words):
    assert estimate.duration(seconds) == words


def told(monkeypatch, capsys, seconds: float, **machine) -> str:
    monkeypatch.setattr(Machine, "smallest", lambda: dataclasses.replace(MACHINE, **machine))
    monkeypatch.setattr(estimate, "held_memory", lambda processes: 10**9)

    def measured(given: Work, images: int) -> Cost:
        return Cost(images, forward=seconds * images, kept=10 * images)

    monkeypatch.setattr(step_cost, "measure", measured)
    estimate.tell(work(), 1000)
    return capsys.readouterr().out


def test_a_long_training_is_told_with_what_makes_it_shorter(monkeypatch, capsys):
    first, second = told(monkeypatch, capsys, 10.0).splitlines()
    assert first == "estimate    about 44 h on this CPU (0.1 samples/s), 1.0 of 2.0 GB memory"
    assert second.strip() == "long for a CPU: a smaller encoder or --image_size takes less"
    assert told(monkeypatch, capsys, 1.0).count("\n") == 1  # four hours are not long
    assert told(monkeypatch, capsys, 1e-4) == "estimate    under a minute on this CPU, 1.0 of 2.0 GB memory\n"
    assert "1.0 GB memory" in told(monkeypatch, capsys, 1.0, free=memory.UNKNOWN)


def test_nothing_is_measured_where_no_step_is_left(monkeypatch, capsys):
    monkeypatch.setattr(step_cost, "measure", None)
    estimate.tell(work(), 0)
    assert capsys.readouterr().out == ""


# Memory ---------------------------------------------------------------------------------


def required(monkeypatch, free: int, swap: int = 0, mode: str | None = "exact", processes: int = 1) -> None:
    monkeypatch.setattr(estimate, "free_swap", lambda: swap)
    machine = dataclasses.replace(MACHINE, free=free, processes=processes)
    estimate.require_memory(work(mode=mode), [Cost(2, kept=2 * 10**6), Cost(4, kept=4 * 10**6)], machine)


def test_what_surely_does_not_fit_is_refused_with_a_batch_that_does(monkeypatch, capsys):
    required(monkeypatch, free=17 * 10**6)  # 16 images keep 16 MB
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="--batch_size 8 --accumulate 2 should fit"):
        required(monkeypatch, free=9 * 10**6)
    with pytest.raises(UserError, match="pass a smaller --batch_size or --image_size"):
        required(monkeypatch, free=9 * 10**6, mode=None)
    with pytest.raises(UserError, match="--batch_size 4 --accumulate 4"):
        required(monkeypatch, free=9 * 10**6, processes=2)  # each needs as much
    with pytest.raises(UserError, match="not even --batch_size 2 fits"):
        required(monkeypatch, free=10**6)


def test_what_might_fit_is_not_refused(monkeypatch, capsys):
    required(monkeypatch, free=9 * 10**6, swap=10**7)
    required(monkeypatch, free=16 * 10**6)  # gradients may be more than is left
    assert capsys.readouterr().out.count("*** memory may run out: --batch_size 8 --accumulate 2 should fit") == 2


def test_memory_that_is_free_and_held_is_read_from_the_system(tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\nSwapFree:  70 kB\n")
    (tmp_path / "self/statm").write_text("900 50 20 1 0 100 0\n")
    page = memory.held_memory(1, tmp_path) / 50
    assert page >= 4096 and memory.held_memory(3, tmp_path) == page * (20 + 3 * 30)
    assert memory.free_swap(tmp_path) == 70 * 1024 and memory.free_memory(tmp_path, tmp_path)[0] == 8000 * 1024
    nothing = tmp_path / "none"
    assert memory.held_memory(1, nothing) == memory.free_swap(nothing) == 0
    assert memory.free_memory(nothing, nothing)[0] == memory.UNKNOWN


# Scripts --------------------------------------------------------------------------------

# A script on a machine on which the last process finds little memory. It says how many images the model is shown.
LIMITED = """
import os, runpy, sys
import torch
from ssl.training import estimate
last = int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1
if last:
    estimate.free_memory = lambda: ({free}, "this machine")
estimate.free_swap = lambda: 0
def show(module, inputs):
    if type(module).__name__ == "Model":
        print(f"shown {{len(inputs[0])}}\\n", end="", flush=True)  # at once: processes share the output
torch.nn.modules.module.register_module_forward_pre_hook(show)
sys.argv = {words!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("script", ["train.py", "finetune.py"])
def test_a_script_ends_before_a_batch_that_cannot_fit(images, tmp_path, script, processes):
    how = {"data_dir": images, "output_dir": tmp_path / "run"}
    words = tiny(**how) if script == "train.py" else small_finetuning(**how)
    (tmp_path / "limited.py").write_text(LIMITED.format(free=1_500_000, words=[str(ROOT / script), *words]))
    done = run(tmp_path / "limited.py", processes=processes, check=False)
    assert done.returncode != 0 and done.stderr.count("error: memory: steps of batch_size") == 1, done.stderr
    assert "this machine has 0.0 GB free" in done.stderr
    shown = {int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("shown")}
    assert 2 in shown and max(shown) <= 4
