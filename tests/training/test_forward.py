"""Gradients that no step makes: as backward() has them."""

import torch
import torch.nn.functional as F
from torch import nn

from ssl.training.forward import set_gradients, step_aside


class Standardised(nn.Module):
    """A convolution of standardised weights, as in BiT, and a place that is added, as in ViTs: both 4-D."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, 3, 3))
        self.place = nn.Parameter(torch.randn(1, 6, 6, 6))

    def forward(self, x):
        weight = F.batch_norm(self.weight.reshape(1, 6, -1), None, None, training=True).reshape_as(self.weight)
        return F.conv2d(x, weight) + self.place


def test_gradients_lie_in_memory_as_those_of_backward():
    """Fused kernels of a GPU refuse others."""
    torch.manual_seed(0)
    model = Standardised().to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    own = list(model.parameters())
    raw = torch.autograd.grad(model(x).square().sum(), own)
    assert any(gradient.stride() != p.stride() for gradient, p in zip(raw, own))  # or this would test nothing
    model(x).square().sum().backward()
    expected = [p.grad for p in own]
    set_gradients(model, model(x).square().sum())
    for p, gradient in zip(own, expected):
        assert p.grad.stride() == gradient.stride() == p.stride() and torch.equal(p.grad, gradient)
    before = [p.clone() for p in own]
    step_aside(torch.optim.SGD(own, lr=1.0, momentum=0.9, fused=True))
    assert all(torch.equal(p, was) for p, was in zip(own, before))
