"""Encoders and heads by name."""

import math

import pytest
import torch
from torch import nn

import evaluate
from ssl.data.images import Images
from ssl.encoders import SmallConvNet, build_encoder
from ssl.errors import UserError
from ssl.evaluation.inference import judged_size
from ssl.heads import projector
from ssl.preact import ResNet20V2, ResNet50V2


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_resnet50_and_its_projector_have_the_published_size():
    encoder, width = build_encoder("resnet50", 224)
    assert width == 2048 and count(encoder) == 23_508_032
    head = projector(width, "8192-8192-8192")
    assert count(head) == 2048 * 8192 + 2 * 8192 * 8192 + 2 * 2 * 8192  # no biases, two batch norms
    assert isinstance(head[-1], nn.Linear)


def test_residual_branches_start_at_zero():
    encoder, _ = build_encoder("resnet18", 32)
    assert all(not block.bn2.weight.any() for block in encoder.layer1)


@pytest.mark.parametrize("size, stem, stride", [(32, "auto", 1), (64, "auto", 1), (96, "auto", 2), (32, "imagenet", 2)])
def test_the_stem_follows_the_image_size(size, stem, stride):
    encoder, _ = build_encoder("resnet18", size, stem)
    assert encoder.conv1.stride == (stride, stride)
    assert isinstance(encoder.maxpool, nn.Identity) == (stride == 1)


def keras_count(*modules):
    """Parameters as Keras counts them: with the running mean and variance of batch norms."""
    return sum(v.numel() for m in modules for name, v in m.state_dict().items() if "num_batches" not in name)


@pytest.mark.parametrize(
    "name, spec, width, trunk, whole",
    [
        ("ssl.preact.ResNet20V2", "2048-2048-2048", 256, 568_368, 9_503_792),
        ("ssl.preact.ResNet50V2", "2048-2048-2048-2048", 2048, 23_564_800, 40_374_784),
        ("ssl.preact.ResNet50V2", "4096-4096-4096-4096", 2048, 23_564_800, 82_350_592),
    ],
)
def test_the_histopathology_encoders_have_the_published_size(name, spec, width, trunk, whole):
    encoder, got = build_encoder(name, 32)
    assert (got, keras_count(encoder)) == (width, trunk)
    assert keras_count(encoder, projector(width, spec, bias=True)) == whole
    assert keras_count(encoder, projector(width, spec)) < whole


@pytest.mark.parametrize("channels", [1, 3, 4, 16])
@pytest.mark.parametrize("size", [17, 32, 45])
def test_pre_activation_encoders_read_odd_sizes_and_any_channels(size, channels):
    for name in ("ResNet20V2", "ResNet50V2"):
        encoder, width = build_encoder(f"ssl.preact.{name}", size, channels=channels)
        assert encoder(torch.randn(2, channels, size, size + 3)).shape == (2, width)


def waves(*shape, phase):
    """Numbers anyone can make again: a sine."""
    return torch.sin(torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * 0.7 + phase).view(shape)


def filled(encoder):
    """Every weight and statistic a sine, around 1 where it multiplies."""
    for i, (name, value) in enumerate(encoder.state_dict().items()):
        if value.ndim == 4:
            value.copy_(0.5 * waves(*value.shape, phase=i) / value[0].numel() ** 0.5)
        elif value.ndim == 1:
            around = name.endswith("var") or ("norm" in name and "weight" in name)
            value.copy_(0.2 * waves(*value.shape, phase=i) + around)
    return encoder.eval()


@torch.no_grad()
def test_resnet50v2_is_that_of_keras():
    """Against what keras.applications.ResNet50V2 of Keras 3.15.1 gave for these weights, to its rounding."""
    encoder, x = filled(ResNet50V2()), waves(1, 3, 49, 49, phase=0).float()
    h = encoder(x)[0]
    keras = torch.tensor(
        [9.925882339477539, 12.968864440917969, 0.0, 14.464269638061523, 8.57260513305664, 0.0, 10.254142761230469]
    )
    assert torch.allclose(h[::300], keras, rtol=1e-5) and h.mean().item() == pytest.approx(4.714367, rel=1e-5)
    encoder.stem[1], encoder.stem[2] = nn.Identity(), nn.MaxPool2d(3, 2, 1)  # the control: torch's border
    assert not torch.allclose(encoder(x)[0, ::300], keras, rtol=2e-5)


@torch.no_grad()
def test_resnet20v2_is_its_description():
    encoder, x = filled(ResNet20V2()), waves(2, 3, 30, 30, phase=0).float()
    modules = iter(m for m in encoder.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d))

    def act(x, norm):
        scale = norm.weight / (norm.running_var + 1e-5).sqrt()
        return (x * scale[:, None, None] + (norm.bias - norm.running_mean * scale)[:, None, None]).clamp(min=0)

    def convolve(x, convolution, stride=1):
        assert convolution.bias is None
        k = convolution.kernel_size[0]
        patches = nn.functional.unfold(x, k, padding=k // 2, stride=stride)
        y = convolution.weight.flatten(1) @ patches
        return y.view(len(x), -1, *(-(-side // stride) for side in x.shape[2:]))

    y = act(convolve(x, next(modules)), next(modules))
    for stage in range(3):
        for block in range(2):
            stride = 2 if stage and not block else 1
            norm1, conv1, norm2, conv2, norm3, conv3 = (next(modules) for _ in range(6))
            shortcut = convolve(y, next(modules), stride) if block == 0 else y
            z = convolve(act(convolve(act(y, norm1), conv1), norm2), conv2, stride)
            y = convolve(act(z, norm3), conv3) + shortcut
    assert next(modules, None) is None
    assert torch.allclose(encoder(x), y.mean((2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("grid", [1, 2, 3])
def test_small_conv_net_is_its_formula(grid):
    torch.manual_seed(0)
    kwargs = {"width": 3, "stages": 2, "grid": grid}
    encoder, width = build_encoder("ssl.encoders.SmallConvNet", 16, kwargs=kwargs, channels=2)
    convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    y = x = torch.randn(3, 2, 19, 16)
    averages = []
    for number, (convolution, norm) in enumerate(zip(convolutions, norms)):
        patches = nn.functional.unfold(y, 3, padding=1)
        y = (convolution.weight.flatten(1) @ patches).view(3, -1, *y.shape[2:])
        if number:
            height, width_of_map = y.shape[2] // 2 * 2, y.shape[3] // 2 * 2  # a last odd row is left out
            y = y[:, :, :height, :width_of_map].unflatten(3, (-1, 2)).amax(4).unflatten(2, (-1, 2)).amax(3)
        mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), unbiased=False, keepdim=True)
        y = (y - mean) / (var + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
        y = y.clamp(min=0)
        rows, columns = (
            [(side * i // grid, math.ceil(side * (i + 1) / grid)) for i in range(grid)] for side in y.shape[2:]
        )  # cells share a row or column where they do not divide the side
        cells = [y[:, :, a:b, c:d].mean((2, 3)) for a, b in rows for c, d in columns]
        averages += [torch.stack(cells, 2).flatten(1)] if number else []
    assert width == 18 * grid**2 and len(convolutions) == len(norms) == 3
    assert torch.allclose(encoder.train()(x), torch.cat(averages, 1), rtol=1e-4, atol=1e-5)


class OnGpu(torch.Tensor):
    """Says that it is on a GPU."""

    is_cuda = property(lambda self: True)


def steps_of(node, seen):
    """The names of the backward steps below `node`."""
    if node is not None and node not in seen:
        seen[node] = node.name()
        for below, _ in node.next_functions:
            steps_of(below, seen)
    return set(seen.values())


@pytest.mark.parametrize("size", [48, 19])  # 48: maps of 24, 12, 6 and 3
@pytest.mark.parametrize("grid", [1, 2])
def test_small_conv_net_on_a_gpu_has_a_deterministic_backward_pass_where_that_is_asked_for(size, grid, monkeypatch):
    torch.manual_seed(0)
    encoder, x = SmallConvNet(4, 4, grid=grid), torch.randn(3, 3, size, size + 5)

    def read(x):
        encoder.zero_grad()
        h = encoder(x)
        (h * torch.linspace(-1, 1, h.shape[1])).sum().backward()
        return h, [p.grad for p in encoder.parameters()]

    plain, own = read(x)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    same, _ = read(x)  # on a CPU nothing changes, to the bit
    assert torch.equal(same, plain)
    h, gradients = read(x.as_subclass(OnGpu))
    # https://docs.pytorch.org/docs/stable/generated/torch.use_deterministic_algorithms.html
    assert not any("AdaptiveAvgPool" in name for name in steps_of(h.grad_fn, {}))
    torch.testing.assert_close(h.as_subclass(torch.Tensor), plain)
    for ours, theirs in zip(gradients, own, strict=True):
        torch.testing.assert_close(ours.as_subclass(torch.Tensor), theirs, rtol=1e-4, atol=1e-5)


def test_any_module_by_dotted_path():
    encoder, width = build_encoder("ssl.encoders.SmallResNet", 32, kwargs={"width": 4, "stages": 2})
    assert width == 16 and encoder(torch.zeros(2, 3, 32, 32)).shape == (2, 16)


@pytest.mark.parametrize(
    "name, kwargs, expected",
    [
        ("resnet51", {}, "is no image classifier of torchvision.*; did you mean .resnet50"),
        ("ssl.encoders.Nothing", {}, "cannot import"),
        ("no.such.module", {}, "cannot import"),
        ("ssl.encoders.build_encoder", {}, "not an nn.Module class"),
        ("ssl.encoders.SmallResNet", {"depth": 3}, "does not take encoder_kwargs"),
        ("torch.nn.Identity", {}, r"must give representations \(N, width\)"),
    ],
)
def test_encoders_that_cannot_be_are_named(name, kwargs, expected):
    with pytest.raises(UserError, match=expected):
        build_encoder(name, 32, kwargs=kwargs)


@pytest.mark.parametrize("spec", ["", "8192x8192", "128-", "0", "-5"])
def test_projector_widths_must_be_widths(spec):
    with pytest.raises(UserError, match="projector"):
        projector(16, spec)


def test_simclr_head_has_biases_and_no_batch_norm():
    head = projector(16, "32-8", batch_norm=False)
    assert [type(layer).__name__ for layer in head] == ["Linear", "ReLU", "Linear"]
    assert all(layer.bias is not None for layer in head if isinstance(layer, nn.Linear))


def test_an_encoder_of_one_size_is_judged_at_that(capsys):
    vit = "torchvision.models.vision_transformer.VisionTransformer"
    kwargs = dict(image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=8)
    with pytest.raises(UserError, match=r"cannot read a \(1, 3, 28, 28\) image: .*height"):
        build_encoder(vit, 28, kwargs=kwargs)
    small = Images("array", torch.zeros(2), ["a"], resident=torch.zeros(2, 3, 28, 28, dtype=torch.uint8))
    run = {"image_size": 32}
    for name, its_kwargs, size in ((vit, kwargs, 32), ("ssl.encoders.SmallResNet", {"width": 4}, 28)):
        encoder, _ = build_encoder(name, 32, kwargs=its_kwargs)
        assert judged_size(encoder, small, 32) == size
        settings = evaluate.Settings(encoder=name, encoder_kwargs=its_kwargs, stem="auto", dataset="array")
        assert evaluate.judged_size(settings, run, small) == size
    assert capsys.readouterr().out.count("images      at 32 pixels, the only size that") == 1
    large = Images("folder", torch.zeros(2), ["a"], paths=["a", "b"])
    assert judged_size(encoder, large, 32) == 32
