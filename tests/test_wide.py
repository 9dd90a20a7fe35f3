"""Wide ResNets: their published size, their description, dropout that can be had again."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl.encoders import build_encoder
from ssl.errors import UserError
from ssl.wide import WideResNet


def test_wide_resnet_28_10_has_the_published_size():
    encoder, width = build_encoder("wide_resnet_28_10", 32)
    count = sum(p.numel() for p in encoder.parameters())
    assert width == 640 and count + 640 * 10 + 10 == 36_479_194  # with the paper's classifier of CIFAR-10: 36.5 M
    assert {m.p for m in encoder.modules() if isinstance(m, nn.Dropout)} == {0.3}
    for module in encoder.modules():  # the defects of the code this recipe comes from
        assert not isinstance(module, nn.Conv2d) or module.bias is None
        assert not isinstance(module, nn.BatchNorm2d) or module.momentum == 0.1
    weight = encoder.stages[1].conv1.weight  # 160 -> 160 channels
    assert weight.std().item() == pytest.approx((2 / (9 * 160)) ** 0.5, rel=0.02)


SIDES = [(32, "auto", 32), (64, "auto", 64), (96, "auto", 24), (32, "imagenet", 8)]


@pytest.mark.parametrize("size, stem, side", SIDES)
def test_its_stem_follows_the_image_size_and_any_channels(size, stem, side):
    small = {"depth": 10, "widen_factor": 1}
    encoder, width = build_encoder("wide_resnet_28_10", size, stem, small, channels=2)
    assert width == 64 and encoder.stem(torch.zeros(1, 2, size, size)).shape == (1, 16, side, side)
    assert encoder(torch.zeros(2, 2, size, size + 3)).shape == (2, 64)


@pytest.mark.parametrize("side", [32, 29])
@torch.no_grad()
def test_it_is_its_description(side):
    """Written out from the paper on the weights in their order, for images whose average takes all of the last map."""
    torch.manual_seed(0)
    encoder = WideResNet(16, 2, dropout=0.0).train()
    weights = iter(encoder.state_dict().items())
    x = torch.randn(4, 3, side, side)

    def convolve(x, stride=1):
        name, weight = next(weights)
        assert weight.ndim == 4, name
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def act(x):
        scale, shift, *_ = (next(weights)[1] for _ in range(5))
        x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        return (x * scale[:, None, None] + shift[:, None, None]).clamp(min=0)

    y = convolve(x)
    for stage in range(3):
        for block in range(2):
            stride = 2 if stage and not block else 1
            active = act(y)
            z = convolve(act(convolve(active, stride)))
            y = z + (y if block else convolve(active, stride))
    expected = act(y).mean((2, 3))
    assert next(weights, None) is None
    assert torch.allclose(encoder(x), expected, rtol=1e-4, atol=1e-5)


def test_dropout_draws_in_training_alone_and_the_same_again_from_a_seed():
    encoder = WideResNet(10, 1, dropout=0.3)
    x = torch.randn(4, 3, 16, 16)

    def drawn(seed):
        torch.manual_seed(seed)
        return encoder(x)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    encoder.eval()
    assert torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize("kwargs", [{"depth": 27}, {"depth": 4}, {"width": 10}, {"widen_factor": -1}, {"dropout": 2}])
def test_sizes_that_cannot_be_are_named(kwargs):
    with pytest.raises(UserError, match="wide_resnet_28_10 does not take encoder_kwargs"):
        build_encoder("wide_resnet_28_10", 32, kwargs=kwargs)
