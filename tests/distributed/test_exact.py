"""On W processes every loss and training step equals that of one process with the whole batch."""

import copy
import itertools
import re

import pytest
import torch
from shards import SHARDS, N, close, my_rows, random
from spawn import on_ranks
from torch import nn

import train
from ssl.batch_norm import synchronise
from ssl.distributed import gather_rows, parallel, rank, world_size
from ssl.encoders import SmallResNet, build_encoder
from ssl.heads import projector
from ssl.losses import barlow_twins, info_nce, sup_con
from ssl.optim import LAMB, LARS, parameter_groups
from ssl.training.guard import Guard, gradient_norm

WORLDS = [2, 4]
LABELS = torch.tensor([0, 1, 2, -1, 1, 1, -1, 0, 2, 2, -1, -1, 4, 0, 1, 3])
LOSSES = {
    "barlow gram": lambda z, labels, check=True: barlow_twins(*z, lambd=0.02, form="gram", check=check),
    "barlow cross": lambda z, labels, check=True: barlow_twins(*z, lambd=0.02, form="cross", check=check),
    "info_nce": lambda z, labels, check=True: info_nce(*z, temperature=0.2, block=3, check=check),
    "sup_con": lambda z, labels, check=True: sup_con(
        *z, labels=labels, temperature=0.2, base_temperature=0.07, block=5, check=check
    ),
}
VIEWS = [2, 3, 4, 8]


def whole(results, key):
    """Rows of all ranks, put together again."""
    return torch.cat([result[key] for result in results])


# What every process does ------------------------------------------------------


def do_loss(name, shards, views, check=True):
    z1 = random(N, 12, seed=0)
    z = [z1, *(z1 + 0.5 * random(N, 12, seed=i) + 0.1 for i in range(1, views))]
    z = [my_rows(x, shards).clone().requires_grad_() for x in z]
    loss, *parts = LOSSES[name](z, my_rows(LABELS, shards), check)
    (3 * loss).backward()
    return dict(values=torch.stack([loss.detach(), *parts]), grads=torch.stack([x.grad for x in z], dim=1))


def do_mistake(name):
    """What this rank is told where one rank alone, the last, brings something no loss can use."""
    z1, z2, labels = (my_rows(x, "even").clone() for x in (random(N, 12, seed=0), random(N, 12, seed=1), LABELS))
    if rank() == world_size() - 1:
        if name == "nan":
            z2[1, 3] = float("nan")
        elif name == "shapes":
            z2 = z2[:-1]
        elif name == "width":
            z1, z2 = z1[:, :-1], z2[:, :-1]
        elif name == "labels":
            labels = labels[:-1]
        elif name == "type":
            z1, z2 = z1.double(), z2.double()
        elif name == "gradient":
            z1.requires_grad_()
    z = [z1, z2, z1] if name == "views" and rank() == world_size() - 1 else [z1, z2]
    told = {}
    for loss, call in LOSSES.items():
        try:
            call(z, labels)
            told[loss] = None
        except ValueError as error:
            told[loss] = str(error)
    return told


class Twins(nn.Module):
    def __init__(self, encoder_name):
        super().__init__()
        if encoder_name == "small":
            encoder = SmallResNet(width=4, stages=2)
            width = encoder.width
        else:
            encoder, width = build_encoder(encoder_name, 16)
        self.both = nn.Sequential(encoder, projector(width, "24-16"))

    def forward(self, *views):
        return tuple(self.both(x) for x in views)


def do_training(encoder_name, optimizer_name, loss_name, shards, dtype, views=2):
    """Five steps by the parts of train.py's, two of a large network; returns the parameters and buffers, and the loss.

    One step in float32: from the second on, a ReLU so near zero that rounding decides moves the end by up to a tenth,
    by chance of machine and seed.
    """
    torch.manual_seed(2)
    model = synchronise(Twins(encoder_name).to(dtype))
    start = copy.deepcopy(model.state_dict())
    rough = dtype == torch.float32
    lr = 0.02 if optimizer_name == "LAMB" else 0.5 if rough else 2.0
    groups = parameter_groups(model, lr=lr, bias_lr=0.02, weight_decay=1e-3)
    optimizer = LARS(groups, lr=0.0, trust_coefficient=0.02) if optimizer_name == "LARS" else LAMB(groups, eps=1e-3)
    guard, scaler = Guard(model, optimizer), torch.amp.GradScaler("cpu", enabled=False)
    twins = parallel(model, torch.device("cpu"))
    for step in range(1 if rough else 5 if encoder_name == "small" else 2):
        x1 = random(N, 3, 16, 16, seed=2 * step)
        others = [x1 + 0.3 * random(N, 3, 16, 16, seed=2 * step + 1 + 100 * number) for number in range(views - 1)]
        z = twins(*(my_rows(x, shards).to(dtype) for x in (x1, *others)))
        loss = LOSSES[loss_name](z, my_rows(LABELS, shards))[0]
        guard.begin()
        train.scaled_backward(scaler, guard, loss)
        guard.mark(loss, gradient_norm(optimizer))
        optimizer.step()
        optimizer.zero_grad()
    return dict(start=start, end=model.state_dict(), loss=loss.detach())


TRAININGS = [
    ("resnet18", "LARS", "barlow gram", "even", torch.float32),
    ("resnet18", "LARS", "barlow cross", "uneven", torch.float64),
    ("small", "LARS", "barlow cross", "uneven", torch.float64),
    ("small", "LARS", "info_nce", "uneven", torch.float64),
    ("small", "LAMB", "sup_con", "uneven", torch.float64),
    ("small", "LARS", "barlow cross", "uneven", torch.float32),
    ("small", "LARS", "info_nce", "uneven", torch.float32),
    ("small", "LAMB", "sup_con", "uneven", torch.float32),
    ("resnet18", "LARS", "barlow gram", "even", torch.float32, 4),
    ("small", "LARS", "barlow gram", "uneven", torch.float64, 4),
    ("small", "LARS", "barlow cross", "uneven", torch.float64, 3),
    ("small", "LARS", "info_nce", "uneven", torch.float64, 4),
    ("small", "LAMB", "sup_con", "uneven", torch.float64, 3),
]
MISTAKES = ["nan", "shapes", "width", "labels", "type", "gradient", "views"]


def do_everything():
    counted = my_rows(torch.arange(N), "uneven")[:, None]
    return {
        "rows": gather_rows(counted, SHARDS["uneven"][world_size()]),
        **{("loss", *case): do_loss(*case) for case in itertools.product(LOSSES, SHARDS, VIEWS)},
        **{("unchecked", *case): do_loss(*case, check=False) for case in itertools.product(LOSSES, ["even"], VIEWS)},
        **{("mistake", name): do_mistake(name) for name in MISTAKES if world_size() > 1},
        **{("training", *case): do_training(*case) for case in TRAININGS},
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return {1: [do_everything()]} | on_ranks(do_everything, WORLDS, tmp_path_factory.mktemp("ranks"))


# What must agree --------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
def test_rows_are_gathered_in_rank_order(results, world):
    for result in results[world]:
        assert result["rows"][:, 0].tolist() == list(range(N))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("views", VIEWS)
def test_value_and_gradient_are_those_of_one_process(results, name, shards, views, world):
    key = ("loss", name, shards, views)
    one, many = results[1][0][key], [result[key] for result in results[world]]
    for result in many:
        close(result["values"], one["values"], 1e-5)
    for together, alone in zip(whole(many, "grads").unbind(1), one["grads"].unbind(1), strict=True):
        close(together, alone, 1e-5)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("views", VIEWS)
def test_without_checks_the_numbers_are_the_same(results, name, views, world):
    for result in results[world]:
        for part, checked in result["loss", name, "even", views].items():
            assert torch.equal(result["unchecked", name, "even", views][part], checked)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(
    "name, words",
    [
        ("nan", r"rank {last}: z2 is not finite: nan at row 1, column 3"),
        ("shapes", r"rank {last}: z1 and z2 must have one shape"),
        ("width", r"same width D, got \[12.*, 11\]"),
        ("type", r"same type, got \[2, .*3\]"),
        ("gradient", r"same requires_grad, got \[0, .*1\]"),
        ("views", r"same number of views, got \[2, .*3\]"),
    ],
)
def test_what_is_wrong_on_one_rank_is_raised_on_all(results, name, words, world):
    for result in results[world]:
        for said in result["mistake", name].values():
            assert re.search(words.format(last=world - 1), said), said


@pytest.mark.parametrize("world", WORLDS)
def test_labels_of_the_wrong_length_on_one_rank_are_raised_on_all(results, world):
    for result in results[world]:
        said = result["mistake", "labels"]
        assert said["info_nce"] is None
        assert f"rank {world - 1}: labels must be {N // world} integers" in said["sup_con"]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", TRAININGS, ids=lambda case: " ".join(map(str, case)))
def test_training_ends_in_the_parameters_of_one_process(results, case, world):
    key = ("training", *case)
    tolerance = 1e-4 if torch.float32 in case else 1e-10
    one = results[1][0][key]
    for result in results[world]:
        close(result[key]["loss"], one["loss"], tolerance)
        for name, expected in one["end"].items():
            close(result[key]["end"][name], expected, tolerance)
    for name, start in one["start"].items():
        if start.ndim > 1:  # or agreement would say nothing
            assert (one["end"][name] - start).norm() > 0.005 * start.norm(), name
