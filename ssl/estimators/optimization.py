"""The optimizer and the schedule of an estimator: made, saved, continued. `model` is the estimator."""

from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from ssl import optim
from ssl.errors import UserError
from ssl.estimators import arguments
from ssl.schedules import warmup_cosine


def make_optimizer(model) -> Optimizer:
    """The optimizer that the constructor names; an instance is used as it is."""
    given = model.get_params()["optimizer"]
    if isinstance(given, Optimizer):
        own = {id(p) for p in model.net.parameters()}
        if not all(id(p) in own for group in given.param_groups for p in group["params"]):
            raise UserError(
                "optimizer: this instance holds parameters that are not of this network. A fit that begins again makes "
                "a new projection head, and clone copies encoder and optimizer apart from each other; pass a class or "
                "a name, or give the encoder as an instance and the optimizer its parameters alone"
            )
        return given
    exclude, options = model.exclude_bias_and_norm_wd, model.optimizer_kwargs or {}
    decay, lr = model.weight_decay, model.learning_rate
    groups = optim.parameter_groups(model.net, lr, lr, decay, 0.0 if exclude else decay)
    if isinstance(given, type):
        return given(groups, lr=lr, **options)
    return optim.build(given.lower(), groups, lr, exclude, **options)


def reads_found_inf(model) -> bool:
    """Whether the optimizer leaves a step out if the device says so. The user's own may not: then the host decides."""
    named, optimizer = isinstance(model.get_params()["optimizer"], str), model.optimizer
    return named and (isinstance(optimizer, optim.LARS | optim.LAMB) or bool(optimizer.defaults.get("fused")))


def make_scheduler(model) -> LRScheduler | None:
    """The scheduler of `model.optimizer` that the constructor names; an instance is used as it is."""
    given = model.get_params()["lr_scheduler"]
    if isinstance(given, LRScheduler | ReduceLROnPlateau):
        if given.optimizer is not model.optimizer:
            raise UserError("lr_scheduler: an instance belongs to an optimizer; pass that instance as optimizer")
        return given
    return None if given in (None, "none") else _warmup_cosine(model, 0)


def _warmup_cosine(model, done: int) -> LRScheduler:
    """Warm-up and cosine, with `done` steps (or epochs) behind it."""
    total, warmup, options = _schedule_length(model)
    rates = [group.setdefault("initial_lr", group["lr"]) for group in model.optimizer.param_groups]
    if not all(rate >= max(options["warmup_start_lr"], options["min_lr"]) and rate > 0 for rate in rates):
        raise UserError(f"learning_rate: {rates} must be above warmup_start_lr and min_lr of lr_scheduler_kwargs")
    for group, rate in zip(model.optimizer.param_groups, rates):
        group["lr"] = rate
    factors = [
        partial(
            warmup_cosine,
            total=total,
            warmup=warmup,
            floor=options["min_lr"] / rate,
            start=options["warmup_start_lr"] / rate,
            hold=1,
        )
        for rate in rates
    ]
    return LambdaLR(model.optimizer, factors, last_epoch=done - 1)


def _schedule_length(model) -> tuple[int, int, dict]:
    """(total, warm-up, options) of warmup_cosine, in steps or epochs, whole numbers."""
    options, steps, epochs = arguments.schedule(model.lr_scheduler_kwargs), total_steps(model), model.max_epochs
    total = steps if options["interval"] == "step" else -(-steps // model.steps_per_epoch)
    asked = options["warmup_epochs"]
    if "warmup_epochs" not in (model.lr_scheduler_kwargs or {}):
        asked = min(asked, epochs / 2)
    if not 0 <= asked < epochs:
        raise UserError(
            f"lr_scheduler_kwargs: warmup_epochs {asked} must be at least 0 and less than max_epochs {epochs}, or the "
            "rate never comes down"
        )
    return total, min(round(asked * total / epochs), total - 1), options


def total_steps(model) -> int:
    """Steps of the whole training."""
    epochs = model.max_epochs
    if not arguments.is_whole(epochs, 1):
        raise UserError(f"`max_epoch` must be set: pass max_epochs, a whole number of at least 1, got {epochs!r}")
    if model.steps_per_epoch is None:
        raise UserError("the length of the training depends on the data; call fit")
    total = int(epochs) * model.steps_per_epoch
    return total if model.max_steps in (None, -1) else min(total, int(model.max_steps))


def advance_step(model) -> None:
    """A step is made: change the rate, if the schedule does so after every step."""
    scheduler = model.lr_scheduler
    if scheduler is not None and not isinstance(scheduler, ReduceLROnPlateau) and _changes_every_step(model):
        scheduler.step()


def advance_epoch(model, value: float | None) -> None:
    """An epoch has ended: change the rate, if the schedule does so after every epoch.

    `value` is the loss that a ReduceLROnPlateau looks at; None: it was not measured after this epoch.
    """
    scheduler = model.lr_scheduler
    if isinstance(scheduler, ReduceLROnPlateau):
        if value is not None:
            scheduler.step(value)
    elif scheduler is not None and not _changes_every_step(model):
        scheduler.step()


def epoch_is_open(model) -> bool:
    """Whether the steps of an epoch are made and what follows them is not: its validation was interrupted."""
    steps_made = model.step % model.steps_per_epoch == 0 or model.step == total_steps(model)
    return steps_made and bool(model.epoch_sums) and all(line["step"] != model.step for line in model.history[-1:])


def _changes_every_step(model) -> bool:
    return arguments.schedule(model.lr_scheduler_kwargs)["interval"] == "step"


def state(model) -> dict | None:
    """What a fit continues from besides weights and step, in the loaded file or after the last fit; None before any."""
    if model.loaded is not None or model.step == 0:
        return model.loaded
    scheduler = model.lr_scheduler
    given = scheduler is model.get_params()["lr_scheduler"]  # ours follows from the step and has no state
    return {
        "kind": type(model.optimizer).__name__,
        "optimizer": model.optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict() if given and scheduler is not None else None,
        "scaler": model.scaling,
    }


def load_state(model, before: dict) -> None:
    """Continue from `before`, of `state`, with the rates and decays that the constructor says now.

    Instances that the constructor was given have their state already, unless `before` comes from a file.
    """
    optimizer, given, from_file = model.optimizer, model.get_params(), model.loaded is not None
    if type(optimizer).__name__ != before.get("kind"):
        raise UserError(
            f"resume: the optimizer was {before.get('kind')} so far and is {type(optimizer).__name__} now; set it "
            "back, or call fit without resume"
        )
    instance, scheduler = optimizer is given["optimizer"], model.lr_scheduler
    ours = scheduler is not given["lr_scheduler"]
    try:
        if not instance or from_file:
            optim.load_state(optimizer, before["optimizer"], keep=not instance)
        if scheduler is not None and not ours and from_file:
            scheduler.load_state_dict(before["lr_scheduler"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"resume: the state of optimizer or scheduler does not fit ({error})") from None
    if scheduler is not None and ours:
        epochs = (model.step - epoch_is_open(model)) // model.steps_per_epoch
        done = model.step if _changes_every_step(model) else epochs
        model._hold(optimizer, _warmup_cosine(model, done))
