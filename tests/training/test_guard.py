"""Steps that are not finite: nothing moves, they are counted and written down, and what went wrong first is named."""

import json

import pytest
import torch
from torch import nn

import train
from ssl.losses import BarlowTwinsLoss
from ssl.training.bad_steps import BadSteps
from ssl.training.first_fault import first_fault
from ssl.training.guard import Guard, gradient_norm

OPTIMIZERS = ["lars", "lamb", "sgd", "adam", "adamw"]


def make(optimizer="lars", **settings):
    """A small model with everything that a step moves: weights, optimizer state, running statistics."""
    encoder = {"encoder": "ssl.encoders.SmallResNet", "encoder_kwargs": {"width": 8, "stages": 1}}
    settings = train.Settings(image_size=16, projector="12-8", optimizer=optimizer, lr=0.1, **encoder | settings)
    torch.manual_seed(0)
    model = train.Model(settings).train()
    made = train.make_optimizer(settings, model, 1.0)
    return model, made, Guard(model, made)


def step(model, optimizer, guard, seed, loss=lambda loss: loss):
    """A training step on noise; `loss` may spoil it."""
    guard.begin()
    torch.manual_seed(seed)
    x = torch.randn(8, 3, 16, 16)
    value = loss(sum(z.square().mean() for z in model(x, x + 0.1)))
    (value * guard.scale(value)).backward()
    guard.mark(value, gradient_norm(optimizer))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def everything(model, optimizer) -> dict:
    state = {f"model {k}": v.clone() for k, v in model.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        state |= {f"optimizer {number} {k}": torch.as_tensor(v).clone() for k, v in values.items()}
    return state


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


SPOILT = {
    "nan": lambda loss: loss * torch.nan,
    "inf": lambda loss: loss + torch.inf,  # whose gradient is finite
    "gradient": lambda loss: loss + (loss - loss.detach()).abs().sqrt(),  # the loss is finite, its gradient is not
}


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_bad_step_leaves_everything_as_if_it_had_not_been(optimizer, how):
    spoilt, plain = make(optimizer), make(optimizer)
    for number in range(5):
        if number in (0, 3):  # the first step of all, too, when some optimizers make their state
            step(*spoilt, seed=99, loss=SPOILT[how])
        step(*spoilt, seed=number)
        step(*plain, seed=number)
    assert same(everything(*spoilt[:2]), everything(*plain[:2]))
    assert all(value.isfinite().all() for value in everything(*spoilt[:2]).values())


def test_a_network_without_running_statistics_is_guarded_too():
    sizes = {"patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8}
    vit = {"method": "simclr", "encoder": "torchvision.models.VisionTransformer", "encoder_kwargs": sizes}
    spoilt, plain = make(**vit), make(**vit)
    assert not list(plain[0].buffers())
    step(*spoilt, seed=99, loss=SPOILT["nan"])
    for parts in (spoilt, plain):
        step(*parts, seed=0)
    assert same(everything(*spoilt[:2]), everything(*plain[:2])) and spoilt[2].read() == [(1, [0])]


def test_without_the_guard_one_bad_step_ruins_the_weights():
    model, optimizer, guard = make()
    guard.mark = lambda loss, norm: None
    step(model, optimizer, guard, 0, SPOILT["nan"])
    assert not all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nothing_in_a_step_asks_the_device_for_a_value(optimizer):
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=False):  # tensors without values: reading one raises
        model, made, guard = make(optimizer)
        for number in range(2):
            step(model, made, guard, number)
        with pytest.raises(DataDependentOutputException):
            guard.last_step_was_bad()


def test_bad_steps_are_counted_in_a_row_and_in_all():
    parts = make()
    guard = parts[2]
    for bad in (0, 1, 0, 1, 1):
        step(*parts, seed=0, loss=SPOILT["nan"] if bad else lambda loss: loss)
    assert guard.last_step_was_bad()
    assert guard.read() == [(3, [0]), (1, [0]), (0, [0])]
    assert (guard.bad_in_a_row, guard.total) == (2, 3)
    assert guard.last_step_was_bad() and guard.read() == []
    step(*parts, seed=0, loss=SPOILT["gradient"])
    assert guard.read() == [(0, [])] and guard.bad_in_a_row == 3
    step(*parts, seed=0)
    assert not guard.last_step_was_bad() and guard.read() == [] and (guard.bad_in_a_row, guard.total) == (0, 4)


def test_with_a_scaler_a_gradient_alone_is_no_fault():
    parts = make()
    step(*parts, seed=0, loss=SPOILT["gradient"])
    step(*parts, seed=0, loss=SPOILT["nan"])
    assert parts[2].read(overflow_is_bad=False) == [(0, [0])]
    assert (parts[2].bad_in_a_row, parts[2].total) == (1, 1)


def test_whether_the_last_step_was_bad_does_not_depend_on_a_reading_or_a_save():
    for how in ("gradient", "nan", None):
        parts, other = make(), make()
        step(*parts, seed=0, loss=SPOILT[how or "nan"])
        parts[2].read(overflow_is_bad=False)
        step(*parts, seed=0, loss=SPOILT.get(how, lambda loss: loss))
        for _ in range(3):
            assert parts[2].last_step_was_bad() == (how is not None)
            other[2].load_state_dict(parts[2].state_dict())
            assert other[2].last_step_was_bad() == (how is not None)
            parts[2].read(overflow_is_bad=False)  # an overflow of a scaler is no fault, but left the step out
    state = parts[2].state_dict()
    del state["last_bad"]  # as earlier versions wrote it
    for row in (0, 1):
        other[2].load_state_dict(state | {"row": row})
        assert other[2].last_step_was_bad() == (row == 1)


def test_what_has_not_been_read_survives_a_save(tmp_path):
    one, other = make(), make()
    step(*one, seed=0, loss=SPOILT["nan"])
    torch.save(one[2].state_dict(), tmp_path / "x.pt")
    other[2].load_state_dict(torch.load(tmp_path / "x.pt", weights_only=True))
    step(*other, seed=1)
    assert other[2].read() == [(1, [0])] and (other[2].bad_in_a_row, other[2].total) == (0, 1)


def test_buffers_stay_buffers_shared_ones_shared():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(100))
    model[0].register_buffer("own", torch.arange(6, dtype=torch.float64).view(2, 3))
    model[1].register_buffer("borrowed", model[0].own, persistent=False)
    model[1].register_buffer("absent", None)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    Guard(model, torch.optim.SGD(model.parameters(), 0.1))
    assert same(before, model.state_dict()) and model[1].borrowed is model[0].own and model[1].absent is None
    model[0](torch.randn(4, 3))
    assert model[0].num_batches_tracked == 1 and model[1].num_batches_tracked == 0


# What went wrong


class Spoils(nn.Module):
    """Passes x on; may spoil it, or its gradient."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.forwards = self.backwards = 1.0

    def forward(self, x):
        x = x * self.weight * self.forwards
        x.register_hook(lambda grad: grad * self.backwards)
        return x


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), Spoils(), nn.Linear(4, 4), Spoils())


def compute(model, x, criterion):
    return criterion(model(x), model(x + 0.1)), criterion.parts


@pytest.mark.parametrize(
    "spoil, expected",
    [
        (lambda model, x: x.fill_(torch.nan), "the input of 0"),
        (lambda model, x: setattr(model[1], "forwards", torch.inf), "the output of 1"),
        (lambda model, x: model[2].weight.data.fill_(torch.nan), "the output of 2"),
        (lambda model, x: setattr(model[3], "backwards", torch.nan), "the gradient of 3.weight"),
        (lambda model, x: setattr(model[1], "backwards", torch.nan), "the gradient of 1.weight"),
        (lambda model, x: None, ""),
    ],
)
def test_what_was_first_not_finite_is_named(spoil, expected):
    torch.manual_seed(0)
    model, x, criterion = chain(), torch.randn(8, 4), BarlowTwinsLoss(check=False)
    spoil(model, x)
    assert first_fault(model, lambda: compute(model, x, criterion)) == expected


def test_a_term_of_the_loss_is_named():
    model, x, criterion = chain(), torch.randn(8, 4), BarlowTwinsLoss(check=False)

    def broken():
        loss, terms = compute(model, x, criterion)
        return loss * torch.inf, terms | {"off_diagonal": terms["off_diagonal"] * torch.inf}

    assert first_fault(model, broken) == "the term off_diagonal of the loss"


def test_bad_steps_are_written_once(tmp_path):
    asked = []

    def names():
        asked.append(1)
        return ["a.jpg", 'b"\n.jpg']

    first = BadSteps(tmp_path)
    first.write(7, 0, [1], names)
    first.write(8, 0, [], names)
    with open(tmp_path / "bad_steps.jsonl", "a") as file:
        file.write('{"step": 9, "re')  # cut by a crash
        file.write("\n")
    again = BadSteps(tmp_path)
    again.write(8, 0, [], names)
    again.write(8, 1, [], names)
    lines = [line for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line) for line in lines] == [
        {"step": step, "retries": retries, "ranks": ranks, "images": ["a.jpg", 'b"\n.jpg']}
        for step, retries, ranks in ((7, 0, [1]), (8, 0, []), (8, 1, []))
    ]
    assert len(asked) == 3


def test_a_buffer_that_backward_needs_may_stay_while_another_changes():
    """As with a batch norm in evaluation mode, whose weights learn, before one in training mode."""
    model = nn.Sequential(nn.BatchNorm1d(2).eval(), nn.BatchNorm1d(2))
    Guard(model, torch.optim.SGD(model.parameters(), 0.1))
    loss = (model[0].weight * model[0].running_mean).sum()
    model[1].running_mean.add_(1)
    loss.backward()
    assert torch.equal(model[0].weight.grad, torch.zeros(2))
