"""What an estimator's `fit` does: epochs, steps, validation, and what may not go wrong in them."""

from collections.abc import Callable
from numbers import Integral, Real

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset

from ssl import distributed
from ssl.data.order import counted
from ssl.distributed import gather_objects, rank, world_size
from ssl.errors import UserError, nearest
from ssl.guard import Guard, gradient_norm
from ssl.precision import choose_precision
from ssl.twoviews import FromLoader, FromSamples, are_samples, drawn_from

SCHEDULE = {"warmup_epochs": 10, "warmup_start_lr": 1e-6, "min_lr": 0.0, "interval": "step"}
OPTIMIZERS = ("adam", "adamW", "sgd", "lars", "lamb")


def check(params: dict) -> None:
    """Refuse arguments that cannot work. Raises TypeError or ValueError."""
    encoder = params["encoder"]
    if not (isinstance(encoder, nn.Module) or (isinstance(encoder, type) and issubclass(encoder, nn.Module))):
        raise TypeError(f"Encoder must be a PyTorch nn.Module, or a class inheriting from nn.Module, got {encoder!r}")
    for name in ("encoder_kwargs", "optimizer_kwargs", "lr_scheduler_kwargs"):
        if not isinstance(params[name], dict | None):
            raise UserError(f"{name}: expected a dict or None, got {params[name]!r}")
    given, wanted = params["optimizer"], params["lr_scheduler"]
    if isinstance(given, str) and given.lower() not in map(str.lower, OPTIMIZERS):  # train.py says adamw
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
            raise UserError(f"optimizer_kwargs: {name} has an argument of its own, learning_rate or weight_decay")
    schedule(params["lr_scheduler_kwargs"])
    for name, least in (("batch_size", 1), ("num_workers", 0), ("proj_input_dim", 1), ("proj_hidden_dim", 1),
                        ("proj_output_dim", 1)):  # fmt: skip
        if not isinstance(params[name], Integral) or params[name] < least:
            raise UserError(f"{name}: expected a whole number of at least {least}, got {params[name]!r}")
    for name in ("learning_rate", "weight_decay", "lambd", "temperature"):
        if not isinstance(params.get(name, 0), Real) or not 0 <= params.get(name, 0) < float("inf"):
            raise UserError(f"{name}: expected a number of at least 0, got {params[name]!r}")
    if not isinstance(params["max_steps"], Integral | None):
        raise UserError(f"max_steps: expected a whole number, -1 for no limit, got {params['max_steps']!r}")
    seed = params["random_state"]
    if seed is not None and not (isinstance(seed, Integral) and 0 <= seed < 2**32):
        raise UserError(f"random_state: expected a whole number from 0 to 2**32 - 1, or None, got {seed!r}")
    for name, names in (("precision", ("auto", "bf16", "fp16", "off")), ("device", ("auto", "cpu", "cuda"))):
        if not isinstance(params[name], str) or params[name] not in names:
            raise UserError(f"{name}: {params[name]!r} is none of {', '.join(names)}")
    for callback in as_list(params["callbacks"]):
        if not callable(getattr(callback, "on_epoch_end", callback)):
            raise TypeError(f"callbacks: {callback!r} is no callable and has no on_epoch_end")


def as_list(callbacks) -> list | tuple:
    return callbacks if isinstance(callbacks, list | tuple) else [] if callbacks is None else [callbacks]


def schedule(given: dict | None) -> dict:
    """`given` lr_scheduler_kwargs with what is unset filled in; the caller's dict stays as it is."""
    given = given or {}
    for name in given:
        if name not in SCHEDULE:
            raise UserError(f"lr_scheduler_kwargs: there is no {name!r}{nearest(name, SCHEDULE)}; "
                            f"there are {', '.join(SCHEDULE)}")  # fmt: skip
    options = SCHEDULE | given
    if options["interval"] not in ("step", "epoch"):
        raise UserError(f"Unknown interval: {options['interval']}; expected step or epoch")
    for name in ("warmup_epochs", "warmup_start_lr", "min_lr"):
        if not isinstance(options[name], Real) or not options[name] >= 0:
            raise UserError(f"lr_scheduler_kwargs: {name}: expected a number of at least 0, got {options[name]!r}")
    return options


def length(model) -> int:
    """Steps of the whole training."""
    epochs = model.max_epochs
    if not isinstance(epochs, Integral) or epochs < 1:
        raise UserError(f"`max_epoch` must be set: pass max_epochs, a whole number of at least 1, got {epochs!r}")
    if model.steps_per_epoch is None:
        raise UserError("the length of the training is known to fit only, which is given the data")
    total = int(epochs) * model.steps_per_epoch
    return min(total, int(model.max_steps)) if model.max_steps is not None and model.max_steps > 0 else total


def schedule_length(model) -> tuple[int, int, dict]:
    """(total, warm-up, options) of warmup_cosine, in steps or epochs, whole numbers."""
    options, steps, epochs = schedule(model.lr_scheduler_kwargs), length(model), model.max_epochs
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


def agreed(batch, split: Callable) -> tuple[Tensor, Tensor, Tensor | None, list[int]]:
    """(X1, X2, y, rows on every rank) of this rank's batch; what is wrong on one rank is raised on all."""
    x1 = x2 = y = problem = None
    try:
        x1, x2, y = split(batch)
        if not all(bool(x.sum().isfinite()) or bool(x.isfinite().all()) for x in (x1, x2)):
            raise UserError("X1 or X2 is not finite: it holds NaN or Inf")
    except (ValueError, TypeError) as error:
        problem = error
    if problem and world_size() == 1:
        raise problem
    everyone = gather_objects(("", len(x1)) if problem is None else (f"{problem}", 0))
    said = "; ".join(f"rank {r}: {words}" for r, (words, _) in enumerate(everyone) if words)
    if said:
        raise (type(problem) if problem else ValueError)(said)
    counts = [rows for _, rows in everyone]
    if sum(counts) < 2:
        raise UserError(
            f"batch_size: {sum(counts)} sample is no batch; losses and batch norm compare samples and need at least 2"
        )
    return x1, x2, y, counts


def autocast(model, device: torch.device):
    dtype = choose_precision(model.precision, device)
    return torch.autocast(device.type, dtype or torch.float32, enabled=dtype is not None)


def require_fitted(model) -> None:
    if model.step == 0:
        raise RuntimeError(
            f"This {type(model).__name__} instance is not fitted yet. Call 'fit' with appropriate arguments before "
            "using this estimator."
        )


def fit(model, train, val, resume: bool) -> None:
    """As the estimator's `fit`."""
    device = distributed.join(model.device)
    if resume and model.unsaved:
        raise UserError(f"resume: the file could not hold {', '.join(sorted(model.unsaved))}; pass them to load")
    kept = dict(model.__dict__)
    if not resume and model.step:
        model._build()
    first = model.step
    try:
        _train(model, train, val, resume, device)
    except BaseException:
        if model.step == first:  # nothing is learnt: what was learnt before is not lost for it
            model.__dict__.update(kept)
        raise
    finally:
        model.runner = None


def _train(model, train, val, resume: bool, device: torch.device) -> None:
    model.seed = distributed.broadcast_object(model.seed)
    source = _source(model, train)
    validation = _source(model, val) if isinstance(val, DataLoader | Dataset) else None
    for name, batches in (("train", source), ("val", validation)):
        lengths = gather_objects(batches and batches.steps_per_epoch)
        if len(set(lengths)) > 1:
            raise UserError(f"{name}: every process needs as many batches, got {lengths} on ranks 0, 1, …")
    source.require_steps()
    model.steps_per_epoch = source.steps_per_epoch
    total = length(model)

    model.net = distributed.synchronise(model.net, device).to(device)
    before = _progress(model) if resume else None
    model.configure_optimizers()
    scaler = torch.amp.GradScaler(device.type, enabled=choose_precision(model.precision, device) == torch.float16)
    if before:
        _take_up(model, before)
    model.progress = None
    guard = Guard(model.net, model.optimizer)
    model.runner = distributed.parallel(model.net, device)
    with drawn_from(model.seed):
        while model.step < total:
            _epoch(model, source, validation, total, scaler, guard)


def _source(model, data):
    if are_samples(data):
        return FromSamples(data, model.views, model.batch_size, model.num_workers, model.seed)
    return FromLoader(data, model.seed)


def _epoch(model, source, validation, total: int, scaler, guard: Guard) -> None:
    epoch, first = divmod(model.step, source.steps_per_epoch)
    end = min(total, (epoch + 1) * source.steps_per_epoch)
    by_step = _by_step(model) and not isinstance(model.lr_scheduler, ReduceLROnPlateau)
    sums: dict[str, Tensor] = {}
    model.net.train()
    for number, batch in enumerate(source.epoch(epoch, first), first):
        for name, value in _step(model, batch, number, scaler, guard).items():
            sums[name] = sums.get(name, 0) + value
        if by_step and model.lr_scheduler is not None:
            model.lr_scheduler.step()
        model.step += 1
        if model.step == end:
            break
    if model.step < end:
        raise UserError(f"train: the loader ended before the {source.steps_per_epoch} batches that its length promises")
    metrics = {name: float(value) / (end - epoch * source.steps_per_epoch - first) for name, value in sums.items()}
    metrics |= {"lr": model.optimizer.param_groups[0]["lr"], "step": model.step}
    if validation is not None:
        metrics["val_loss"] = _validate(model, validation)
    if isinstance(model.lr_scheduler, ReduceLROnPlateau):
        model.lr_scheduler.step(metrics.get("val_loss", metrics["loss"]))
    elif model.lr_scheduler is not None and not by_step:
        model.lr_scheduler.step()
    model.history.append({"epoch": epoch} | metrics)
    for callback in as_list(model.callbacks):
        getattr(callback, "on_epoch_end", callback)(model, epoch, metrics)


def _by_step(model) -> bool:
    return schedule(model.lr_scheduler_kwargs)["interval"] == "step"


def _step(model, batch, number: int, scaler, guard: Guard) -> dict[str, Tensor]:
    """One step of the optimizer. Dropout draws from (seed, step, rank), beside the generator that loaders draw from."""
    guard.begin()
    try:
        loss, finite = _backward(model, batch, number, scaler)
        tries_out = scaler.is_enabled() and scaler.get_scale() >= 1  # leaves such a step out, and lowers its scale
        if not finite and not tries_out:
            raise UserError(
                f"fit: at step {model.step} loss or gradient is not finite (loss {loss.item()}), and the weights were "
                "left as they are; lower learning_rate, or look at the samples"
            )
    except BaseException:
        guard.undo()
        raise
    if not finite:
        guard.undo()
    scaler.step(model.optimizer)
    scaler.update()
    return {"loss": loss.detach()} | model.loss.parts


def _backward(model, batch, number: int, scaler) -> tuple[Tensor, Tensor]:
    """(loss, whether it and the gradient of all processes are finite)."""
    device = next(model.net.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(counted(model.seed, model.step, rank(), 0xFFFE))
        loss = model.training_step(batch, number)["loss"]
        model.optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss * world_size()).backward()  # the loss is the global batch's; DDP averages gradients
    scaler.unscale_(model.optimizer)
    return loss, loss.isfinite() & gradient_norm(model.optimizer).isfinite()


def _validate(model, validation) -> float:
    model.net.eval()
    runner, model.runner = model.runner, None
    with drawn_from(model.seed):
        losses = [float(model.validation_step(batch, i)["loss"]) for i, batch in enumerate(validation.once())]
    model.runner = runner
    model.net.train()
    if not losses:
        raise UserError("val: there are no batches to validate on")
    return sum(losses) / len(losses)


def _progress(model) -> dict | None:
    """Where optimizer and schedule are: of the file loaded, or as the last fit left them."""
    if model.progress is not None or model.step == 0:
        return model.progress
    scheduler = model.lr_scheduler
    given = scheduler is model.get_params()["lr_scheduler"]  # ours is counted from the step
    return {
        "kind": type(model.optimizer).__name__,
        "optimizer": model.optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict() if given and scheduler is not None else None,
    }


def _take_up(model, before: dict) -> None:
    """Go on as `before`, at the rates and decays that the constructor says now.

    An instance that it was given is where it was; in another process, where the file says.
    """
    optimizer, given = model.optimizer, model.get_params()
    if type(optimizer).__name__ != before.get("kind"):
        raise UserError(
            f"resume: the optimizer was {before.get('kind')} so far and is {type(optimizer).__name__} now; set it "
            "back, or call fit without resume"
        )
    instance, scheduler = optimizer is given["optimizer"], model.lr_scheduler
    ours = scheduler is not given["lr_scheduler"]
    try:
        if not instance or model.progress is not None:
            own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
            optimizer.load_state_dict(before["optimizer"])
            for group, settings in zip(optimizer.param_groups, own):
                group.update({} if instance else settings)
        if scheduler is not None and not ours and model.progress is not None:
            scheduler.load_state_dict(before["lr_scheduler"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"resume: the state of optimizer or scheduler does not fit ({error})") from None
    if scheduler is not None and ours:
        model.lr_scheduler = model._warmup_cosine(model.step // (1 if _by_step(model) else model.steps_per_epoch))
