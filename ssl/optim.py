"""LARS and LAMB, and the parameter groups of self-supervised recipes.

Both scale the updates of each tensor, and apply them with torch's fused kernels of SGD with momentum and of Adam. That
takes a few kernel launches for the whole network, and one per weight for its trust ratio. Nothing waits for the device:
`found_inf`, a tensor, tells it to leave out a step.
"""

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# Parameters of ViT, Swin and ConvNeXt that their published recipes treat like biases, although they have ndim > 1
NO_DECAY = {
    "class_token",
    "cls_token",
    "pos_embedding",
    "pos_embed",
    "relative_position_bias_table",
    "logit_scale",
    "layer_scale",
}


def parameter_groups(
    module: nn.Module, lr: float, bias_lr: float, weight_decay: float, bias_weight_decay: float = 0.0
) -> list[dict]:
    """Two groups, 'weights' and 'biases', with their own rates and decays.

    Biases are all parameters with ndim <= 1 (biases, norms), those whose name ends in one of NO_DECAY, and those that a
    module's method `no_weight_decay` names, as timm's models have it. The `base_lr` of a group is the rate that a
    schedule multiplies. A group without parameters is left out.
    """
    named = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, part in module.named_modules()
        if callable(getattr(part, "no_weight_decay", None))
        for name in part.no_weight_decay()
    }
    weights, biases = [], []
    for name, p in module.named_parameters():
        if p.requires_grad:
            plain = p.ndim <= 1 or name.rpartition(".")[2] in NO_DECAY or name in named
            (biases if plain else weights).append(p)
    groups = [
        dict(name="weights", params=weights, lr=lr, base_lr=lr, weight_decay=weight_decay),
        dict(name="biases", params=biases, lr=bias_lr, base_lr=bias_lr, weight_decay=bias_weight_decay),
    ]
    return [group for group in groups if group["params"]]


def build(name: str, groups: list[dict], lr: float, exclude_bias_and_norm: bool = True, **options) -> Optimizer:
    """The optimizer called `name` (sgd, adam, adamw, lars or lamb) of `groups`; `options` are further arguments of it.

    torch's optimizers are fused, unless `options` ask for another implementation: only fused ones read `found_inf`.
    """
    if name in ("lars", "lamb"):
        kind = LARS if name == "lars" else LAMB
        return kind(groups, lr=lr, exclude_bias_and_norm=exclude_bias_and_norm, **options)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
    fused = not {"fused", "foreach", "differentiable"} & set(options)
    optimizer = kind(groups, lr=lr, **({"fused": True} if fused else {}), **options)
    if name == "sgd" and options.get("momentum") and not options.get("dampening"):
        for group in groups:  # PyTorch makes them in the first step, which may be left out
            for p in group["params"]:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def load_state(optimizer: Optimizer, state: dict, keep: bool = True) -> None:
    """Load `state`, the `state_dict` of an optimizer.

    With `keep` the options of the groups (rates, decay, momentum, ...) stay those of `optimizer`: a continued run may
    change them. Without it they become those of `state`, as `Optimizer.load_state_dict` does.
    Raises ValueError or KeyError if groups or parameters differ.
    """
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, options in zip(optimizer.param_groups, own if keep else []):
        group.update(options)
    for p, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == p.shape:
                values[name] = _as_laid_out(value, p)


def _as_laid_out(x: Tensor, p: Tensor) -> Tensor:
    """`x` with the strides of `p`. Fused kernels read one memory place of both: with others they mix up the numbers."""
    return x if x.stride() == p.stride() else torch.empty_like(p, dtype=x.dtype).copy_(x)


class _Layerwise(Optimizer):
    """What LARS and LAMB share: which tensors they adapt, and the conventions of torch.optim.

    A subclass has `_new_state(p)`, the state of a parameter before its first step, and `_update`, a step of some
    parameters of one group.
    """

    def __init__(self, params, *, lr, weight_decay, exclude_bias_and_norm, foreach, **own):
        for name, value in dict(lr=lr, weight_decay=weight_decay).items():
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        own |= dict(exclude_bias_and_norm=exclude_bias_and_norm, foreach=foreach)
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay, **own))

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient; gradients are not changed. Returns the closure's loss, if any.

        As in torch's fused optimizers, parameters and state do not change if the attribute `found_inf`, a tensor, is 1.
        """
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
            if together is None:  # a CPU has no launches to save: one tensor at a time is faster
                together = all(device.type == "cuda" for device, _ in kinds)
            together = together and len(kinds) == 1
            every = not group["exclude_bias_and_norm"]
            weights = group.get("name") != "biases"
            for adapt in (True, False):
                chosen = [p for p in params if (every or (weights and p.ndim > 1)) == adapt]
                for some in [chosen] if together and chosen else [[p] for p in chosen]:
                    grads = [_as_laid_out(p.grad, p) for p in some]
                    found_inf = getattr(self, "found_inf", None)
                    if found_inf is not None:
                        found_inf = found_inf.to(some[0].device, torch.float32)
                    self._update(some, grads, [self.state[p] for p in some], group, adapt, found_inf)
        return loss


class LARS(_Layerwise):
    """Layer-wise adaptive rate scaling (You et al. 2017, algorithm 1), as Barlow Twins runs it.

    For each tensor p with gradient g:

        u = g + weight_decay · p
        u = u · trust_coefficient · ‖p‖ / ‖u‖      where both norms are positive
        m = momentum · m + u                        m starts at zero
        p = p - lr · m

    With `exclude_bias_and_norm`, tensors with ndim <= 1 (biases, norms) and those of a group called 'biases' (see
    `parameter_groups`) get neither decay nor the trust ratio.
    `foreach`: all tensors at once (of a group of one device and dtype), or one at a time; None: at once on CUDA.
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
        exclude_bias_and_norm: bool = True,
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
            foreach=foreach,
        )

    def _new_state(self, p: Tensor) -> dict:
        return {"momentum_buffer": torch.zeros_like(p)}

    def _update(self, params, updates, states, group: dict, adapt: bool, found_inf: Tensor | None) -> None:
        if adapt:
            updates = torch._foreach_add(updates, params, alpha=group["weight_decay"])
            ratios = _trust_ratio(_norms(params), _norms(updates), group["trust_coefficient"])
            torch._foreach_mul_(updates, list(ratios.unbind()))
        buffers = [state["momentum_buffer"] for state in states] if group["momentum"] else []
        # On a CPU torch 2.6 does not update parameters of two bytes. So update copies in float32.
        narrow = params[0].device.type == "cpu" and params[0].dtype in (torch.float16, torch.bfloat16)
        moved = [[x.float() for x in tensors] if narrow else tensors for tensors in (params, updates, buffers)]
        torch._fused_sgd_(
            *moved,
            **dict(lr=group["lr"], momentum=group["momentum"], weight_decay=0.0, dampening=0.0, nesterov=False),
            **dict(maximize=False, is_first_step=False, found_inf=found_inf),
        )
        if narrow:
            for own, new in zip(params + buffers, moved[0] + moved[2]):
                own.copy_(new)


class LAMB(_Layerwise):
    """Layer-wise adaptive moments (You et al. 2020, algorithm 2), with bias correction.

    For each tensor p with gradient g, at its step t = 1, 2, …:

        m = β₁ m + (1 - β₁) g,   v = β₂ v + (1 - β₂) g²          both start at zero
        u = m / (1 - β₁ᵗ) / (√(v / (1 - β₂ᵗ)) + eps) + weight_decay · p
        p = p - lr · u · ‖p‖ / ‖u‖                                the ratio where both norms are positive

    `exclude_bias_and_norm` and `foreach` as in `LARS`. Sparse gradients raise `RuntimeError`.
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
            foreach=foreach,
        )

    def _new_state(self, p: Tensor) -> dict:
        # `step` is on the device of p: only the device knows whether a step was left out.
        step = torch.zeros((), device=p.device)
        return {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}

    def _update(self, params, grads, states, group: dict, adapt: bool, found_inf: Tensor | None) -> None:
        for state, p in zip(states, params):
            state["step"] = state["step"].to(p.device)  # a checkpoint is read on the CPU
        steps = [state["step"] for state in states]
        updates = torch._foreach_mul(params, 0.0)  # zeros: Adam computes p - lr u, which is u for p = 0 and lr = -1
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            updates,
            grads,
            *([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq")),
            [],
            steps,
            **dict(lr=-1.0, beta1=group["betas"][0], beta2=group["betas"][1], eps=group["eps"], weight_decay=0.0),
            **dict(amsgrad=False, maximize=False, found_inf=found_inf),
        )
        if found_inf is not None:
            torch._foreach_sub_(steps, [found_inf] * len(steps))
        if adapt:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
            ratios = _trust_ratio(_norms(params), _norms(updates), 1.0)
            if found_inf is not None:
                ratios = ratios * (1 - found_inf)
            torch._foreach_mul_(updates, list(ratios.unbind()))
        torch._foreach_add_(params, updates, alpha=-group["lr"])


def _norms(tensors: list[Tensor]) -> Tensor:
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return torch.stack(torch._foreach_norm(tensors, 2, dtype=dtype))


def _trust_ratio(p_norm: Tensor, u_norm: Tensor, coefficient: float) -> Tensor:
    """coefficient · ‖p‖ / ‖u‖; 1 where either norm is zero."""
    return torch.where((p_norm > 0) & (u_norm > 0), coefficient * p_norm / u_norm, 1.0)
