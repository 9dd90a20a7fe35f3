"""Encoders and heads by name."""

import pytest
import torch
from torch import nn

from ssl.encoders import build_encoder
from ssl.errors import UserError
from ssl.heads import projector


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


def test_any_module_by_dotted_path():
    encoder, width = build_encoder("ssl.encoders.SmallResNet", 32, kwargs={"width": 4, "stages": 2})
    assert width == 16 and encoder(torch.zeros(2, 3, 32, 32)).shape == (2, 16)


@pytest.mark.parametrize(
    "name, kwargs, expected",
    [
        ("resnet51", {}, "neither a torchvision ResNet"),
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
