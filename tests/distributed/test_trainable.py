"""Before an encoder is trained: what no image reaches is named, what gives no representations is refused."""

import copy

import pytest
import torch
from spawn import on_ranks
from torch import nn

from ssl import distributed
from ssl.batch_norm import synchronise
from ssl.encoders import SmallResNet, build_encoder
from ssl.errors import UserError
from ssl.training import trainable


class Spare(SmallResNet):
    """With a classifier that nothing goes through, as many a class of models has."""

    def __init__(self):
        super().__init__(width=4, stages=1)
        self.fc = nn.Linear(8, 3)


class Skipping(SmallResNet):
    """Leaves a layer out in training, at random: here always."""

    def __init__(self):
        super().__init__(width=4, stages=1)
        self.extra = nn.Linear(8, 8)

    def forward(self, x):
        h = super().forward(x)
        return h if self.training else self.extra(h)


def steps(checked: bool = True) -> torch.Tensor:
    """All weights after three steps of SGD on the images of every process together."""
    torch.manual_seed(0)
    net, images = Spare(), torch.randn(3, 8, 3, 16, 16)
    if checked:
        trainable.require(net, 16)
    net = synchronise(net)
    runner = distributed.parallel(net, torch.device("cpu"))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, weight_decay=0.1)
    for batch in images:
        mine = batch.chunk(distributed.world_size())[distributed.rank()]
        optimizer.zero_grad()
        runner(mine).square().mean().backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def unchecked() -> str:
    try:
        steps(checked=False)
    except RuntimeError as error:
        return str(error)
    return "nothing"


def test_two_processes_train_what_one_trains(tmp_path):
    before = torch.cat([parameter.detach().flatten() for parameter in seeded().parameters()])
    alone = steps()
    for found in on_ranks(steps, [2], tmp_path)[2]:
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-6)
    assert torch.equal(alone[-27:], before[-27:]) and not torch.allclose(alone[:-27], before[:-27])  # fc, and the rest
    torch.testing.assert_close(steps(checked=False), alone)  # what one process always did


def test_control_two_processes_end_in_an_error_without_it(tmp_path):
    for words in on_ranks(unchecked, [2], tmp_path)[2]:
        assert "Expected to have finished reduction" in words


def seeded() -> Spare:
    torch.manual_seed(0)
    return Spare()


def test_unused_parameters_are_named_and_nothing_else_changes(capsys):
    net = seeded()
    before, drawn = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    net.train()
    trainable.require(net, 16)
    assert capsys.readouterr().out.startswith("not used    'fc.weight', 'fc.bias': no sample reaches")
    assert net.training and torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [name for name, parameter in net.named_parameters() if not parameter.requires_grad] == [
        "fc.weight",
        "fc.bias",
    ]
    trainable.require(SmallResNet(4, 1), 16)
    assert capsys.readouterr().out == ""


def test_what_training_skips_at_random_is_not_frozen():
    net = Skipping()
    trainable.require(net, 16)
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_what_gives_tuples_in_training_is_refused_in_one_line():
    name, kwargs = "torchvision.models.googlenet.GoogLeNet", {"init_weights": False}
    encoder, width = build_encoder(name, 96, kwargs=kwargs | {"num_classes": 1000})  # it keeps its classifiers
    assert width == 1000  # in evaluation mode it gives a tensor
    with pytest.raises(UserError, match=r"in training it gives a GoogLeNetOutputs.*aux_logits: false"):
        trainable.require(encoder, 96)
    with pytest.raises(UserError, match=r"has further classifiers.*aux_logits: false"):
        build_encoder(name, 96, kwargs=kwargs)
    encoder, width = build_encoder(name, 96, kwargs=kwargs | {"aux_logits": False})
    assert width == 1024
    trainable.require(encoder, 96)
