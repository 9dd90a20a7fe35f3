"""Which values the arguments of an estimator may have."""

from numbers import Integral, Real

import numpy as np
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ssl.errors import UserError, nearest
from ssl.losses.inputs import MOST_VIEWS

SCHEDULE = {"warmup_epochs": 10, "warmup_start_lr": 1e-6, "min_lr": 0.0, "interval": "step"}
LEAST = {
    "batch_size": 1,
    "num_views": 2,
    "num_workers": 0,
    "proj_input_dim": 1,
    "proj_hidden_dim": 1,
    "proj_output_dim": 1,
    "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": -1,
}
OF_A_RANK = {"random_state", "device", "callbacks", "num_workers", "verbose"}  # may differ between ranks
OPTIMIZERS = ("adam", "adamW", "sgd", "lars", "lamb")


def is_whole(value, least: int) -> bool:
    """Whether `value` is a whole number of at least `least`. True and False are not numbers here."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def is_number(value) -> bool:
    """Whether `value` is a finite number of at least 0. True and False are not numbers here."""
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= value < float("inf")


def check(params: dict) -> None:
    """Refuse arguments that cannot work. Raises TypeError or ValueError."""
    _check_parts(params)
    _check_numbers(params)
    _check_choices(params)


def _check_parts(params: dict) -> None:
    """Encoder, optimizer and scheduler: instances, classes or names, and their own arguments."""
    encoder = params["encoder"]
    if not (isinstance(encoder, nn.Module) or (isinstance(encoder, type) and issubclass(encoder, nn.Module))):
        raise TypeError(f"Encoder must be a PyTorch nn.Module, or a class inheriting from nn.Module, got {encoder!r}")
    for name in ("encoder_kwargs", "optimizer_kwargs", "lr_scheduler_kwargs"):
        if not isinstance(params[name], dict | None):
            raise UserError(f"{name}: expected a dict or None, got {params[name]!r}")
    given, wanted = params["optimizer"], params["lr_scheduler"]
    if isinstance(given, str) and given.lower() not in map(str.lower, OPTIMIZERS):  # train.py calls it adamw
        raise UserError(
            f"Optimizer {given!r} is not implemented. Please use one of the available optimizers: "
            f"{', '.join(OPTIMIZERS)}{nearest(given, OPTIMIZERS)}"
        )
    if not isinstance(given, str | Optimizer) and not (isinstance(given, type) and issubclass(given, Optimizer)):
        raise TypeError(f"optimizer: expected a name, a torch.optim.Optimizer or its class, got {given!r}")
    if wanted not in (None, "none", "warmup_cosine") and not isinstance(wanted, LRScheduler | ReduceLROnPlateau):
        raise UserError(f"Unknown `lr_scheduler`: {wanted!r}; expected warmup_cosine, none or a scheduler instance")
    for name in ("lr", "weight_decay"):
        if name in (params["optimizer_kwargs"] or {}):
            raise UserError(f"optimizer_kwargs: {name} has an argument of its own: pass learning_rate or weight_decay")
    for name, kind in (("encoder", nn.Module), ("optimizer", Optimizer)):
        if isinstance(params[name], kind) and params[f"{name}_kwargs"]:
            raise UserError(f"{name}_kwargs: {name} is an instance, which is used as it is; pass {name}_kwargs=None")
    if isinstance(wanted, LRScheduler | ReduceLROnPlateau) and set(params["lr_scheduler_kwargs"] or {}) - {"interval"}:
        raise UserError("lr_scheduler_kwargs: an instance of a scheduler is used as it is; of these pass interval only")
    schedule(params["lr_scheduler_kwargs"])


def _check_numbers(params: dict) -> None:
    for name, least in LEAST.items():
        if not is_whole(params[name], least):
            raise UserError(f"{name}: expected a whole number of at least {least}, got {params[name]!r}")
    if params["num_views"] > MOST_VIEWS:
        raise UserError(f"num_views: expected at most {MOST_VIEWS}, got {params['num_views']!r}")
    for name in ("learning_rate", "weight_decay", "lambd", "temperature"):
        if not is_number(params.get(name, 0)):
            raise UserError(f"{name}: expected a number of at least 0, got {params[name]!r}")
    limit = params["limit_train_batches"]
    share = isinstance(limit, float) and 0 < limit <= 1
    if not (limit is None or share or is_whole(limit, 1)):
        raise UserError(
            f"limit_train_batches: expected a whole number of batches, a share in 0..1 or None, got {limit!r}"
        )
    steps = params["max_steps"]
    if steps is not None and (not is_whole(steps, -1) or steps == 0):
        raise UserError(f"max_steps: expected a whole number of at least 1, or -1 for no limit, got {steps!r}")
    seed = params["random_state"]
    if seed is not None and not (is_whole(seed, 0) and seed < 2**32):
        raise UserError(f"random_state: expected a whole number from 0 to 2**32 - 1, or None, got {seed!r}")


def _check_choices(params: dict) -> None:
    """Switches, names from a list, and callbacks."""
    if not isinstance(params["exclude_bias_and_norm_wd"], bool | np.bool_):
        raise UserError(f"exclude_bias_and_norm_wd: expected True or False, got {params['exclude_bias_and_norm_wd']!r}")
    if not (isinstance(params["verbose"], bool | np.bool_) or is_whole(params["verbose"], 0)):
        raise UserError(f"verbose: expected True or False, got {params['verbose']!r}")
    for name, names in (("precision", ("auto", "bf16", "fp16", "off")), ("device", ("auto", "cpu", "cuda"))):
        if not isinstance(params[name], str) or params[name] not in names:
            raise UserError(f"{name}: {params[name]!r} is none of {', '.join(names)}")
    for callback in as_list(params["callbacks"]):
        if not callable(getattr(callback, "on_epoch_end", callback)):
            raise TypeError(
                f"callbacks: {callback!r} is no callable and has no on_epoch_end, which is called with (estimator, "
                "epoch, metrics) after each epoch; Lightning's other hooks are never called"
            )


def of_all_ranks(params: dict) -> dict:
    """What must be the same on all ranks: the plain values of `params`, of others the type.

    Of random_state that of rank 0 is taken. Callables may be made anew on each rank.
    """
    kept = {name: value for name, value in params.items() if name not in OF_A_RANK}
    return {name: value if is_plain(value) else type(value).__name__ for name, value in kept.items()}


def is_plain(value) -> bool:
    """Whether `value` is made of None, numbers and strings alone."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def as_list(callbacks) -> list | tuple:
    return callbacks if isinstance(callbacks, list | tuple) else [] if callbacks is None else [callbacks]


def schedule(given: dict | None) -> dict:
    """lr_scheduler_kwargs `given`, completed by the defaults, in a new dict. Raises `UserError` for wrong values."""
    given = given or {}
    for name in given:
        if name not in SCHEDULE:
            raise UserError(
                f"lr_scheduler_kwargs: there is no {name!r}{nearest(name, SCHEDULE)}; there are {', '.join(SCHEDULE)}"
            )
    options = SCHEDULE | given
    if options["interval"] not in ("step", "epoch"):
        raise UserError(f"Unknown interval: {options['interval']}; expected step or epoch")
    for name in ("warmup_epochs", "warmup_start_lr", "min_lr"):
        if not is_number(options[name]):
            raise UserError(f"lr_scheduler_kwargs: {name}: expected a number of at least 0, got {options[name]!r}")
    return options
