"""LARS, and the parameter groups of self-supervised recipes."""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def parameter_groups(module: nn.Module, lr: float, bias_lr: float, weight_decay: float) -> list[dict]:
    """Two groups: 'weights' (ndim > 1) with `lr` and decay; 'biases' (biases, norms) with `bias_lr`, no decay.

    Each group also carries `base_lr`, what a schedule multiplies.
    """
    weights = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    biases = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        dict(name="weights", params=weights, lr=lr, base_lr=lr, weight_decay=weight_decay),
        dict(name="biases", params=biases, lr=bias_lr, base_lr=bias_lr, weight_decay=0.0),
    ]
    return [group for group in groups if group["params"]]


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, algorithm 1), as Barlow Twins runs it.

    For each tensor p with gradient g:

        u = g + weight_decay · p
        u = u · trust_coefficient · ‖p‖ / ‖u‖      where both norms are positive
        m = momentum · m + u                        m starts at zero
        p = p - lr · m

    Tensors with ndim <= 1 (biases, norms) get neither decay nor the trust ratio. All
    tensors of a group are updated by a few multi-tensor kernels; nothing waits for the device.
    Sparse gradients raise `RuntimeError`.
    """

    def __init__(
        self,
        params,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        *,
        maximize: bool = False,
    ):
        for name, value in dict(lr=lr, momentum=momentum, weight_decay=weight_decay).items():
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if not trust_coefficient > 0:
            raise ValueError(f"trust_coefficient must be positive, got {trust_coefficient}")
        defaults = dict(
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            trust_coefficient=trust_coefficient,
            maximize=maximize,
        )
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if any(p.grad.is_sparse for p in params):
                raise RuntimeError("LARS does not support sparse gradients; use a dense layer or SGD for it")
            for p in params:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            tensors = [(p, p.grad, self.state[p]["momentum_buffer"]) for p in params]
            lars_update([t for t in tensors if t[0].ndim > 1], **_rule(group, adapt=True))
            lars_update([t for t in tensors if t[0].ndim <= 1], **_rule(group, adapt=False))
        return loss


def _rule(group: dict, adapt: bool) -> dict:
    names = ("lr", "momentum", "weight_decay", "trust_coefficient", "maximize")
    return {name: group[name] for name in names} | {"adapt": adapt}


def lars_update(
    tensors: list[tuple[Tensor, Tensor, Tensor]],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    trust_coefficient: float,
    maximize: bool,
    adapt: bool,
) -> None:
    """One LARS step, in place, on (parameter, gradient, momentum buffer) triples; gradients are only read."""
    if not tensors:
        return
    params, grads, buffers = (list(column) for column in zip(*tensors))
    updates = torch._foreach_neg(grads) if maximize else grads
    if adapt:
        updates = torch._foreach_add(updates, params, alpha=weight_decay)
        param_norms = torch.stack(torch._foreach_norm(params))
        update_norms = torch.stack(torch._foreach_norm(updates))
        ratios = trust_coefficient * param_norms / update_norms
        ratios = torch.where((param_norms > 0) & (update_norms > 0), ratios, 1.0)
        torch._foreach_mul_(updates, list(ratios.unbind()))
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, updates)
    torch._foreach_add_(params, buffers, alpha=-lr)
