"""LARS and LAMB equal their rules written out in float64, one tensor at a time or all at once."""

import io
import math

import pytest
import torch
from torch import nn

from ssl.optim import LAMB, LARS, build, load_state, parameter_groups


def reference_step(params, grads, momenta, lr, momentum, weight_decay, trust):
    """The original's loop, one tensor at a time; `momenta` is changed in place."""
    out = []
    for i, (p, g) in enumerate(zip(params, grads)):
        dp = g.clone()
        if p.ndim > 1:
            dp = dp + weight_decay * p
            p_norm, dp_norm = p.norm(), dp.norm()
            if p_norm > 0 and dp_norm > 0:
                dp = dp * (trust * p_norm / dp_norm)
        momenta[i] = momentum * momenta[i] + dp
        out.append(p - lr * momenta[i])
    return out


def reference_lamb(params, grads, state, step, lr, betas, eps, weight_decay, exclude):
    """The TensorFlow Addons rule (You et al. 2020), one tensor at a time; `state` is changed in place."""
    out = []
    for i, (p, g) in enumerate(zip(params, grads)):
        m, v = state.get(i, (torch.zeros_like(p), torch.zeros_like(p)))
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        state[i] = m, v
        u = (m / (1 - betas[0] ** step)) / ((v / (1 - betas[1] ** step)).sqrt() + eps)
        ratio = 1.0
        if p.ndim > 1 or not exclude:
            u = u + weight_decay * p
            if p.norm() > 0 and u.norm() > 0:
                ratio = p.norm() / u.norm()
        out.append(p - lr * ratio * u)
    return out


BOTH = pytest.mark.parametrize("cls", [LARS, LAMB])
SHAPES = [(4, 3), (3,), (), (2, 3, 3, 3), (5, 5), (2, 2), (7,)]
ZERO_PARAMETER, ZERO_GRADIENT = 4, 5


def some_parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    values[ZERO_PARAMETER].zero_()
    return [nn.Parameter(value) for value in values]


def some_gradients(step, dtype=torch.float32):
    generator = torch.Generator().manual_seed(100 + step)
    grads = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]
    grads[ZERO_GRADIENT].zero_()
    return grads


def give(params, grads):
    for p, g in zip(params, grads):
        p.grad = g.clone()


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_lars_equals_the_reference_over_ten_steps(weight_decay, momentum, foreach):
    params = some_parameters()
    expected, momenta = [p.detach().double() for p in params], [0.0] * len(params)
    optimizer = LARS(
        params, lr=0.5, momentum=momentum, weight_decay=weight_decay, trust_coefficient=0.01, foreach=foreach
    )
    for step in range(10):
        grads = some_gradients(step)
        lr = 0.5 / (1 + step)  # as a schedule would change it
        optimizer.param_groups[0]["lr"] = lr
        give(params, grads)
        optimizer.step()
        grads = [g.double() for g in grads]
        expected = reference_step(expected, grads, momenta, lr, momentum, weight_decay, 0.01)
    for ours, theirs in zip(params, expected):
        torch.testing.assert_close(ours.detach().double(), theirs, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lamb_equals_the_reference_over_ten_steps(weight_decay, exclude, foreach):
    params = some_parameters()
    expected, state = [p.detach().double() for p in params], {}
    settings = dict(betas=(0.8, 0.95), eps=1e-6, weight_decay=weight_decay)
    optimizer = LAMB(params, lr=0.5, exclude_bias_and_norm=exclude, foreach=foreach, **settings)
    for step in range(10):
        lr = 0.1 / (1 + step)
        optimizer.param_groups[0]["lr"] = lr
        give(params, some_gradients(step))
        optimizer.step()
        grads = [g.double() for g in some_gradients(step)]
        expected = reference_lamb(expected, grads, state, step + 1, lr, exclude=exclude, **settings)
    for ours, theirs in zip(params, expected):
        torch.testing.assert_close(ours.detach().double(), theirs, rtol=1e-5, atol=1e-5)


def test_lamb_without_adaptation_is_adam():
    ours, theirs = some_parameters(), some_parameters()
    biases = [p for p in ours if p.ndim <= 1], [p for p in theirs if p.ndim <= 1]
    lamb, adam = LAMB(biases[0], lr=0.01, eps=1e-8, weight_decay=0.5), torch.optim.Adam(biases[1], lr=0.01, eps=1e-8)
    for step in range(5):
        give(ours, some_gradients(step))
        give(theirs, some_gradients(step))
        lamb.step()
        adam.step()
    for a, b in zip(*biases):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@BOTH
@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_at_once_is_one_at_a_time(cls, exclude, dtype):
    one, all_ = some_parameters(dtype), some_parameters(dtype)
    settings = dict(lr=0.1, weight_decay=0.1, exclude_bias_and_norm=exclude)
    slow, fast = cls(one, foreach=False, **settings), cls(all_, foreach=True, **settings)
    for step in range(4):
        for params, optimizer in ((one, slow), (all_, fast)):
            give(params, some_gradients(step, dtype))
            params[1].grad = None if step == 2 else params[1].grad
            optimizer.step()
    for a, b in zip(one, all_):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_lars_adapts_and_decays_biases_where_asked():
    bias = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = LARS([bias], lr=1.0, weight_decay=1.0, trust_coefficient=0.1, exclude_bias_and_norm=False)
    bias.grad = torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(bias.detach(), torch.tensor([2.7, 3.6]))  # a tenth of its own length, towards zero


@BOTH
def test_a_grad_scaler_steps_and_skips(cls):
    # The scaler's own logic runs on any device: unscale, skip where a gradient is not finite.
    params = [nn.Parameter(torch.ones(2, 2))]
    optimizer = cls(params, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale((params[0] * float("inf")).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(params[0], torch.ones(2, 2)) and scaler.get_scale() == 2.0
    optimizer.zero_grad()
    scaler.scale(params[0].sum()).backward()
    scaler.step(optimizer)
    assert (params[0] < 1).all() and torch.equal(params[0].grad, torch.ones(2, 2))


@pytest.mark.parametrize("foreach", [False, True])
def test_float16_norms_do_not_overflow(foreach):
    p = nn.Parameter(torch.full((64, 64), 2000.0, dtype=torch.float16))  # norm 128,000
    p.grad = torch.full((64, 64), 2000.0, dtype=torch.float16)
    LARS([p], lr=1.0, trust_coefficient=0.5, foreach=foreach).step()
    torch.testing.assert_close(p.detach(), torch.full((64, 64), 1000.0, dtype=torch.float16))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-6])
def test_first_step_is_lr_times_trust_times_norm_whatever_the_gradient(scale, weight_decay):
    p = nn.Parameter(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)))
    before = p.detach().clone()
    optimizer = LARS([p], lr=3.0, weight_decay=weight_decay, trust_coefficient=0.02)
    p.grad = scale * torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    assert (p - before).norm().item() == pytest.approx(3.0 * 0.02 * before.norm().item(), rel=1e-4)


def test_biases_and_norms_get_neither_decay_nor_trust():
    bias = nn.Parameter(torch.tensor([1.0, -2.0]))
    LARS_step = LARS([bias], lr=0.1, weight_decay=10.0, trust_coefficient=1e-6)
    bias.grad = torch.tensor([3.0, 4.0])
    LARS_step.step()
    torch.testing.assert_close(bias.detach(), torch.tensor([1.0 - 0.3, -2.0 - 0.4]))


@BOTH
def test_parameters_without_a_gradient_stay_and_get_no_state(cls):
    params = some_parameters()
    before = [p.detach().clone() for p in params]
    optimizer = cls(params, lr=0.1)
    optimizer.step()  # nothing has a gradient
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    assert not torch.equal(params[0], before[0])
    assert all(torch.equal(p, b) for p, b in zip(params[1:], before[1:]))
    assert list(optimizer.state_dict()["state"]) == [0]


@BOTH
def test_closure_runs_with_gradients_and_its_loss_is_returned(cls):
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = cls([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure).item() == 4.0
    assert (p < 1).all()


@BOTH
def test_state_survives_save_and_weights_only_load(cls):
    straight, resumed = some_parameters(), some_parameters()
    groups = [dict(name="weights", params=straight[:1], lr=0.3, base_lr=0.3), dict(params=straight[1:])]
    first = cls(groups, lr=0.1, weight_decay=0.01)
    for step in range(3):
        give(straight, some_gradients(step))
        first.step()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)

    second = cls([dict(params=resumed[:1]), dict(params=resumed[1:])], lr=9.0)
    second.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        for new, old in zip(resumed, straight):
            new.copy_(old)
    assert second.param_groups[0]["name"] == "weights" and second.param_groups[0]["base_lr"] == 0.3
    for step in range(3, 6):
        for params, optimizer in ((straight, first), (resumed, second)):
            give(params, some_gradients(step))
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("name", ["adam", "lamb"])
def test_a_state_is_put_in_place_under_this_optimizers_options_or_under_its_own(name, keep):
    def made(lr, **options):
        return build(name, parameter_groups(nn.Linear(3, 2), lr, lr, 2 * lr), lr, **options)

    before, now = made(0.1, betas=(0.5, 0.6)), made(0.2, betas=(0.7, 0.8))
    for group in before.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    before.step()
    load_state(now, before.state_dict(), keep)
    lr, betas = (0.2, (0.7, 0.8)) if keep else (0.1, (0.5, 0.6))
    assert [(group["lr"], group["base_lr"], group["betas"]) for group in now.param_groups] == [(lr, lr, betas)] * 2
    assert [group["weight_decay"] for group in now.param_groups] == [2 * lr, 0.0]
    for old, new in zip(before.state.values(), now.state.values(), strict=True):
        assert torch.equal(old["exp_avg"], new["exp_avg"]) and old["exp_avg"].any()


@pytest.mark.parametrize("name", ["sgd", "adam", "lars", "lamb"])
def test_a_state_of_another_memory_format_is_continued(name):
    """As that of a fit on a CPU, which continues on a GPU, where weights of convolutions are channels last."""

    def made(memory_format):
        p = nn.Parameter(torch.linspace(-1, 1, 48).view(4, 3, 2, 2).contiguous(memory_format=memory_format))
        groups = [dict(name="weights", params=[p], lr=0.1, weight_decay=0.0)]
        return p, build(name, groups, 0.1, **({"momentum": 0.9} if name in ("sgd", "lars") else {}))

    def steps(p, optimizer, seeds):
        for seed in seeds:
            gradient = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
            p.grad = torch.empty_like(p).copy_(gradient)
            optimizer.step()

    whole, optimizer = made(torch.contiguous_format)
    steps(whole, optimizer, range(4))
    (first, before), (then, after) = made(torch.contiguous_format), made(torch.channels_last)
    steps(first, before, range(2))
    then.data.copy_(first.data)
    load_state(after, before.state_dict())
    steps(then, after, range(2, 4))
    torch.testing.assert_close(then, whole)


@BOTH
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("shape", [(3, 4), (6,)])
def test_a_gradient_of_another_memory_layout_counts_by_its_numbers(cls, foreach, shape):
    def stepped(given):
        p = nn.Parameter(torch.linspace(-1, 1, math.prod(shape)).view(shape))
        optimizer = cls([p], lr=0.1, weight_decay=0.1, foreach=foreach)
        for seed in range(2):
            p.grad = given(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
            optimizer.step()
        return p

    other = stepped(lambda g: g.T.contiguous().T if g.ndim > 1 else torch.stack([g, -g], 1)[:, 0])
    assert torch.equal(other, stepped(torch.Tensor.clone))


def test_a_group_added_later_runs_at_its_own_rate():
    old, new = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    optimizer = LARS([old], lr=0.1)
    optimizer.add_param_group(dict(params=[new], lr=0.5))
    old.grad, new.grad = torch.ones(3), torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(old.detach(), torch.full((3,), -0.1))
    torch.testing.assert_close(new.detach(), torch.full((3,), -0.5))


@BOTH
@pytest.mark.parametrize("foreach", [False, True])
def test_step_leaves_gradients_unchanged(cls, foreach):
    params = some_parameters()
    optimizer = cls(params, lr=0.1, weight_decay=0.1, foreach=foreach)
    for step in range(2):
        give(params, some_gradients(step))
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(params, some_gradients(step)))


@BOTH
def test_sparse_gradients_are_refused(cls):
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match=f"{cls.__name__} does not support sparse gradients; use"):
        cls(embedding.parameters(), lr=0.1).step()


@pytest.mark.parametrize(
    "wrong",
    [
        dict(lr=-1.0),
        dict(momentum=-0.1),
        dict(weight_decay=-1e-6),
        dict(trust_coefficient=0.0),
        dict(lr=float("nan")),
    ],
)
def test_impossible_settings_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LARS(some_parameters(), **(dict(lr=0.1) | wrong))


@pytest.mark.parametrize("wrong", [dict(lr=-1.0), dict(betas=(0.9, 1.0)), dict(eps=-1e-6), dict(weight_decay=-1.0)])
def test_impossible_settings_of_lamb_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LAMB(some_parameters(), **wrong)


def test_parameter_groups_decay_biases_only_where_asked():
    weights, biases = parameter_groups(nn.Linear(3, 2), 0.2, 0.1, 1e-4, bias_weight_decay=1e-5)
    assert (weights["weight_decay"], biases["weight_decay"]) == (1e-4, 1e-5)


@BOTH
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float16)])
def test_a_group_of_several_types_is_updated_all_the_same(cls, dtypes):
    params = [nn.Parameter(torch.ones(2, 2, dtype=dtype)) for dtype in dtypes]
    for p in params:
        p.grad = torch.ones_like(p)
    cls(params, lr=10.0, foreach=True).step()
    assert all((p < 1).all() for p in params)


@BOTH
def test_a_sparse_gradient_is_refused_before_anything_has_changed(cls):
    dense, embedding = nn.Parameter(torch.ones(2, 2)), nn.Embedding(5, 3, sparse=True)
    dense.grad = torch.ones(2, 2)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        cls([dict(params=[dense]), dict(params=embedding.parameters())], lr=0.1).step()
    assert torch.equal(dense, torch.ones(2, 2))


def test_parameter_groups_split_weights_from_biases_and_norms():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    model[3].weight.requires_grad_(False)
    weights, biases = parameter_groups(model, lr=0.2, bias_lr=0.0048, weight_decay=1e-6)
    assert {id(p) for p in weights["params"]} == {id(model[0].weight)}
    expected = (model[0].bias, model[1].weight, model[1].bias, model[3].bias)
    assert {id(p) for p in biases["params"]} == {id(p) for p in expected}
    settings = [{k: v for k, v in group.items() if k != "params"} for group in (weights, biases)]
    assert settings == [
        dict(name="weights", lr=0.2, base_lr=0.2, weight_decay=1e-6),
        dict(name="biases", lr=0.0048, base_lr=0.0048, weight_decay=0.0),
    ]


class Transformer(nn.Module):
    """What torchvision's and timm's transformers have of their own, in small."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 4))
        self.body = nn.Linear(4, 4)
        self.body.pos_embedding = nn.Parameter(torch.randn(1, 3, 4))
        self.layer_scale = nn.Parameter(torch.randn(4, 1, 1))
        self.bias_of_attention = nn.Parameter(torch.randn(2, 2))
        self.position_net = nn.Linear(2, 2, bias=False)

    def no_weight_decay(self):
        return {"bias_of_attention"}


def test_tokens_positions_and_layer_scale_are_grouped_with_biases_in_order():
    model = nn.Sequential(nn.Linear(2, 4), Transformer())
    weights, biases = parameter_groups(model, lr=0.2, bias_lr=0.0048, weight_decay=1e-6)
    names = {id(p): name for name, p in model.named_parameters()}
    assert [names[id(p)] for p in weights["params"]] == ["0.weight", "1.body.weight", "1.position_net.weight"]
    assert [names[id(p)] for p in biases["params"]] == [
        "0.bias",
        "1.cls_token",
        "1.layer_scale",
        "1.bias_of_attention",
        "1.body.bias",
        "1.body.pos_embedding",
    ]


@BOTH
@pytest.mark.parametrize("foreach", [True, False])
def test_what_is_grouped_with_biases_gets_neither_decay_nor_trust(cls, foreach):
    """They move as a flat copy of them does, which is plainly a bias."""
    flat, model = nn.Module(), Transformer()
    for name, p in model.named_parameters():
        flat.register_parameter(name.replace(".", "_"), nn.Parameter(p.detach().flatten().clone()))
    for exclude in (True, False):
        moved = []
        for net in (model, flat):
            before = [p.detach().clone() for p in net.parameters()]
            groups = parameter_groups(net, 0.1, 0.1, 0.5, 0.0 if exclude else 0.5)
            optimizer = cls(groups, lr=0.1, exclude_bias_and_norm=exclude, foreach=foreach)
            for p in net.parameters():
                p.grad = torch.ones_like(p) * (1 + torch.arange(p.numel()).view_as(p))
            optimizer.step()
            moved.append({n.replace(".", "_"): p.detach().flatten().clone() for n, p in net.named_parameters()})
            for p, old in zip(net.parameters(), before):
                p.data = old
        for name, p in moved[0].items():
            alike = torch.allclose(p, moved[1][name])
            assert alike == (not exclude or name not in ("body_weight", "position_net_weight")), name


def test_parameter_groups_leave_out_an_empty_group():
    groups = parameter_groups(nn.Linear(3, 2, bias=False), lr=0.2, bias_lr=0.1, weight_decay=0.0)
    assert [group["name"] for group in groups] == ["weights"]
