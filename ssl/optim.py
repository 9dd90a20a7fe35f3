"""LARS and LAMB, and the parameter groups of self-supervised recipes.

Each rule stands here twice: one tensor at a time, to read and to test with, and for all
tensors at once (`torch._foreach_*`: a few kernels for the whole network, but for the trust
ratios, which take one for each weight). Neither ever waits for the device.
"""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def parameter_groups(
    module: nn.Module, lr: float, bias_lr: float, weight_decay: float, bias_weight_decay: float = 0.0
) -> list[dict]:
    """Two groups: 'weights' (ndim > 1) and 'biases' (biases, norms), each with its own rate and decay.

    Each group also carries `base_lr`, what a schedule multiplies.
    """
    weights = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    biases = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        dict(name="weights", params=weights, lr=lr, base_lr=lr, weight_decay=weight_decay),
        dict(name="biases", params=biases, lr=bias_lr, base_lr=bias_lr, weight_decay=bias_weight_decay),
    ]
    return [group for group in groups if group["params"]]


class _Layerwise(Optimizer):
    """What LARS and LAMB share: which tensors they adapt, and the conventions of torch.optim."""

    def __init__(self, params, *, lr, weight_decay, exclude_bias_and_norm, maximize, foreach, **own):
        for name, value in dict(lr=lr, weight_decay=weight_decay).items():
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        own |= dict(exclude_bias_and_norm=exclude_bias_and_norm, maximize=maximize, foreach=foreach)
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, **own))

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient; gradients are only read. Returns the closure's loss, if any."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        given = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        if any(p.grad.is_sparse for params in given for p in params):
            raise RuntimeError(
                f"{type(self).__name__} does not support sparse gradients; use a dense layer or SGD for it"
            )
        for group, params in zip(self.param_groups, given):
            for p in params:
                if not self.state[p]:
                    self.state[p].update(self._new_state(p))
            kinds = {(p.device, p.dtype) for p in params}
            together = group["foreach"]
            if together is None:  # on a CPU there are no launches to save, and one tensor at a time is faster
                together = all(device.type == "cuda" for device, _ in kinds)
            together = together and len(kinds) == 1
            adapted = [p for p in params if p.ndim > 1 or not group["exclude_bias_and_norm"]]
            plain = [p for p in params if p.ndim <= 1 and group["exclude_bias_and_norm"]]
            for chosen, adapt in ((adapted, True), (plain, False)):
                if chosen:
                    grads = [-p.grad if group["maximize"] else p.grad for p in chosen]
                    self._update(chosen, grads, [self.state[p] for p in chosen], group, adapt, together)
        return loss


class LARS(_Layerwise):
    """Layer-wise adaptive rate scaling (You et al. 2017, algorithm 1), as Barlow Twins runs it.

    For each tensor p with gradient g:

        u = g + weight_decay · p
        u = u · trust_coefficient · ‖p‖ / ‖u‖      where both norms are positive
        m = momentum · m + u                        m starts at zero
        p = p - lr · m

    With `exclude_bias_and_norm`, tensors with ndim <= 1 (biases, norms) get neither decay nor
    the trust ratio. `foreach`: all tensors at once (of a group of one device and dtype), or one
    at a time; unset: at once on CUDA. Sparse gradients raise `RuntimeError`.
    """

    def __init__(
        self,
        params,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        *,
        exclude_bias_and_norm: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
    ):
        if not momentum >= 0:
            raise ValueError(f"momentum must not be negative, got {momentum}")
        if not trust_coefficient > 0:
            raise ValueError(f"trust_coefficient must be positive, got {trust_coefficient}")
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            trust_coefficient=trust_coefficient,
            exclude_bias_and_norm=exclude_bias_and_norm,
            maximize=maximize,
            foreach=foreach,
        )

    def _new_state(self, p: Tensor) -> dict:
        return {"momentum_buffer": torch.zeros_like(p)}

    def _update(self, params, grads, states, group: dict, adapt: bool, together: bool) -> None:
        rule = _lars_together if together else _lars_one_by_one
        names = ("lr", "momentum", "weight_decay", "trust_coefficient")
        buffers = [state["momentum_buffer"] for state in states]
        rule(params, grads, buffers, adapt=adapt, **{name: group[name] for name in names})


def _lars_one_by_one(params, grads, buffers, *, lr, momentum, weight_decay, trust_coefficient, adapt) -> None:
    for p, u, m in zip(params, grads, buffers):
        if adapt:
            u = u.add(p, alpha=weight_decay)
            u.mul_(_trust_ratio(_norm(p), _norm(u), trust_coefficient))
        m.mul_(momentum).add_(u)
        p.add_(m, alpha=-lr)


def _lars_together(params, grads, buffers, *, lr, momentum, weight_decay, trust_coefficient, adapt) -> None:
    updates = grads
    if adapt:
        updates = torch._foreach_add(grads, params, alpha=weight_decay)
        ratios = _trust_ratio(_norms(params), _norms(updates), trust_coefficient)
        torch._foreach_mul_(updates, list(ratios.unbind()))
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, updates)
    torch._foreach_add_(params, buffers, alpha=-lr)


class LAMB(_Layerwise):
    """Layer-wise adaptive moments (You et al. 2020, algorithm 2), with bias correction.

    For each tensor p with gradient g, at its step t = 1, 2, …:

        m = β₁ m + (1 - β₁) g,   v = β₂ v + (1 - β₂) g²          both start at zero
        u = m / (1 - β₁ᵗ) / (√(v / (1 - β₂ᵗ)) + eps) + weight_decay · p
        p = p - lr · u · ‖p‖ / ‖u‖                                the ratio where both norms are positive

    With `exclude_bias_and_norm`, tensors with ndim <= 1 (biases, norms) get neither decay nor
    the ratio. `foreach` as in `LARS`. Sparse gradients raise `RuntimeError`.
    """

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        exclude_bias_and_norm: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
    ):
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in 0 <= beta < 1, got {betas}")
        if not eps >= 0:
            raise ValueError(f"eps must not be negative, got {eps}")
        super().__init__(
            params,
            lr=lr,
            betas=tuple(betas),
            eps=eps,
            weight_decay=weight_decay,
            exclude_bias_and_norm=exclude_bias_and_norm,
            maximize=maximize,
            foreach=foreach,
        )

    def _new_state(self, p: Tensor) -> dict:
        # `step` stays on the CPU, as in torch.optim: reading it waits for nothing.
        return {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}

    def _update(self, params, grads, states, group: dict, adapt: bool, together: bool) -> None:
        for state in states:
            state["step"] += 1
        rule = _lamb_together if together else _lamb_one_by_one
        moments = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        corrections = ([1 - beta ** state["step"].item() for state in states] for beta in group["betas"])
        names = ("lr", "betas", "eps", "weight_decay")
        rule(params, grads, *moments, *corrections, adapt=adapt, **{name: group[name] for name in names})


def _lamb_one_by_one(params, grads, ms, vs, m_corrections, v_corrections, *, lr, betas, eps, weight_decay, adapt):
    for p, g, m, v, m_correction, v_correction in zip(params, grads, ms, vs, m_corrections, v_corrections):
        m.lerp_(g, 1 - betas[0])
        v.mul_(betas[1]).addcmul_(g, g, value=1 - betas[1])
        u = (m / m_correction).div_((v / v_correction).sqrt_().add_(eps))
        if adapt:
            u.add_(p, alpha=weight_decay)
            u.mul_(_trust_ratio(_norm(p), _norm(u), 1.0))
        p.add_(u, alpha=-lr)


def _lamb_together(params, grads, ms, vs, m_corrections, v_corrections, *, lr, betas, eps, weight_decay, adapt):
    torch._foreach_lerp_(ms, grads, 1 - betas[0])
    torch._foreach_mul_(vs, betas[1])
    torch._foreach_addcmul_(vs, grads, grads, value=1 - betas[1])
    roots = torch._foreach_div(vs, v_corrections)
    torch._foreach_sqrt_(roots)
    torch._foreach_add_(roots, eps)
    updates = torch._foreach_div(ms, m_corrections)
    torch._foreach_div_(updates, roots)
    if adapt:
        torch._foreach_add_(updates, params, alpha=weight_decay)
        ratios = _trust_ratio(_norms(params), _norms(updates), 1.0)
        torch._foreach_mul_(updates, list(ratios.unbind()))
    torch._foreach_add_(params, updates, alpha=-lr)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32))  # float16 would overflow


def _norms(tensors: list[Tensor]) -> Tensor:
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return torch.stack(torch._foreach_norm(tensors, 2, dtype=dtype))


def _trust_ratio(p_norm: Tensor, u_norm: Tensor, coefficient: float) -> Tensor:
    """coefficient · ‖p‖ / ‖u‖, and 1 where either is zero."""
    return torch.where((p_norm > 0) & (u_norm > 0), coefficient * p_norm / u_norm, 1.0)
