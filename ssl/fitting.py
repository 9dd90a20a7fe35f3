"""What an estimator's `fit` does: epochs, steps, validation, and what may not go wrong in them."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset

from ssl import distributed
from ssl.data.order import counted
from ssl.distributed import gather_objects, rank, world_size
from ssl.errors import UserError, nearest
from ssl.guard import gradient_norm
from ssl.precision import choose_precision
from ssl.twoviews import FromLoader, FromSamples, are_samples, drawn_from

SCHEDULE = {"warmup_epochs": 10, "warmup_start_lr": 1e-6, "min_lr": 0.0, "interval": "step"}
OPTIMIZERS = ("adam", "adamW", "sgd", "lars", "lamb")


def check(model) -> None:
    """Refuse arguments that cannot work. Raises TypeError or ValueError."""
    encoder = model.get_params()["encoder"]
    if not (isinstance(encoder, nn.Module) or (isinstance(encoder, type) and issubclass(encoder, nn.Module))):
        raise TypeError(f"Encoder must be a PyTorch nn.Module, or a class inheriting from nn.Module, got {encoder!r}")
    given, wanted = (model.get_params()[name] for name in ("optimizer", "lr_scheduler"))
    if isinstance(given, str) and given not in OPTIMIZERS:
        raise UserError(
            f"Optimizer {given!r} is not implemented. Please use one of the available optimizers: "
            f"{', '.join(OPTIMIZERS)}{nearest(given, OPTIMIZERS)}"
        )
    if not isinstance(given, str | Optimizer) and not (isinstance(given, type) and issubclass(given, Optimizer)):
        raise TypeError(f"optimizer: expected a name, a torch.optim.Optimizer or its class, got {given!r}")
    if wanted not in (None, "none", "warmup_cosine") and not isinstance(wanted, LRScheduler | ReduceLROnPlateau):
        raise UserError(f"Unknown `lr_scheduler`: {wanted!r}; expected warmup_cosine, none or a scheduler instance")
    schedule(model)
    for name, least in (("batch_size", 1), ("num_workers", 0), ("proj_input_dim", 1), ("proj_hidden_dim", 1),
                        ("proj_output_dim", 1)):  # fmt: skip
        value = model.get_params()[name]
        if not isinstance(value, int) or value < least:
            raise UserError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    if model.precision not in ("auto", "bf16", "fp16", "off"):
        raise UserError(f"precision: {model.precision!r} is none of auto, bf16, fp16, off")


def schedule(model) -> dict:
    """lr_scheduler_kwargs with what is unset filled in; the caller's dict stays as it is."""
    given = model.lr_scheduler_kwargs or {}
    for name in given:
        if name not in SCHEDULE:
            raise UserError(f"lr_scheduler_kwargs: there is no {name!r}{nearest(name, SCHEDULE)}; "
                            f"there are {', '.join(SCHEDULE)}")  # fmt: skip
    options = SCHEDULE | given
    if options["interval"] not in ("step", "epoch"):
        raise UserError(f"Unknown interval: {options['interval']}; expected step or epoch")
    return options


def length(model) -> int:
    """Steps of the whole training."""
    epochs = model.max_epochs
    if not isinstance(epochs, int) or epochs < 1:
        raise UserError(f"`max_epochs` must be set to a number of epochs of at least 1, got {epochs!r}")
    if model.steps_per_epoch is None:
        raise UserError("the length of the training is known to fit only, which is given the data")
    total = epochs * model.steps_per_epoch
    limited = isinstance(model.max_steps, int) and model.max_steps > 0
    return min(total, model.max_steps) if limited else total


def schedule_length(model) -> tuple[int, int, dict]:
    """(total, warm-up, options) of warmup_cosine, in steps or epochs, whole numbers."""
    options, steps, epochs = schedule(model), length(model), model.max_epochs
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
    if world_size() == 1:
        if problem:
            raise problem
        return x1, x2, y, [len(x1)]
    everyone = gather_objects(("", len(x1)) if problem is None else (f"{problem}", 0))
    said = "; ".join(f"rank {r}: {words}" for r, (words, _) in enumerate(everyone) if words)
    if said:
        raise (type(problem) if problem else ValueError)(said)
    return x1, x2, y, [rows for _, rows in everyone]


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
    if not resume and model.step:
        model._build()
    model.seed = distributed.broadcast_object(model.seed)
    source = _source(model, train)
    validation = _source(model, val) if isinstance(val, DataLoader | Dataset) else None
    lengths = gather_objects(source.steps_per_epoch)
    if len(set(lengths)) > 1:
        raise UserError(f"train: every process needs as many batches, got {lengths} on ranks 0, 1, …")
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
    model.runner = distributed.parallel(model.net, device)
    try:
        with drawn_from(model.seed):
            while model.step < total:
                _epoch(model, source, validation, total, scaler)
    finally:
        model.runner = None


def _source(model, data):
    if are_samples(data):
        return FromSamples(data, model.views, model.batch_size, model.num_workers, model.seed)
    return FromLoader(data, model.seed)


def _epoch(model, source, validation, total: int, scaler) -> None:
    epoch, first = divmod(model.step, source.steps_per_epoch)
    end = min(total, (epoch + 1) * source.steps_per_epoch)
    by_step = schedule(model)["interval"] == "step" and not isinstance(model.lr_scheduler, ReduceLROnPlateau)
    sums: dict[str, Tensor] = {}
    model.net.train()
    for number, batch in enumerate(source.epoch(epoch, first), first):
        for name, value in _step(model, batch, number, scaler).items():
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
    callbacks = model.callbacks or []
    for callback in callbacks if isinstance(callbacks, list | tuple) else [callbacks]:
        getattr(callback, "on_epoch_end", callback)(model, epoch, metrics)


def _step(model, batch, number: int, scaler) -> dict[str, Tensor]:
    """One step of the optimizer. Dropout draws from (seed, step, rank), beside the generator that loaders draw from."""
    device = next(model.net.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(counted(model.seed, model.step, rank(), 0xFFFE))
        loss = model.training_step(batch, number)["loss"]
        model.optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss * world_size()).backward()  # the loss is the global batch's; DDP averages gradients
    scaler.unscale_(model.optimizer)
    finite = loss.isfinite() & gradient_norm(model.optimizer).isfinite()
    if not finite and not scaler.is_enabled():  # a float16 scaler leaves such a step out, and tries a smaller scale
        raise UserError(
            f"fit: at step {model.step} loss or gradient is not finite (loss {loss.item()}), and the weights were left "
            "as they are; lower learning_rate, or look at the samples"
        )
    scaler.step(model.optimizer)
    scaler.update()
    return {"loss": loss.detach()} | model.loss.parts


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
    return {"optimizer": model.optimizer.state_dict(), "lr_scheduler": scheduler and scheduler.state_dict()}


def _take_up(model, before: dict) -> None:
    """Go on as `before`. What the constructor was given as an instance is where it was."""
    try:
        if model.optimizer is not model.get_params()["optimizer"] or model.progress is not None:
            model.optimizer.load_state_dict(before["optimizer"])
        if model.lr_scheduler is not None and before["lr_scheduler"] is not None:
            model.lr_scheduler.load_state_dict(before["lr_scheduler"])
    except (ValueError, KeyError) as error:
        raise UserError(f"resume: the optimizer's state is of another optimizer ({error})") from None
