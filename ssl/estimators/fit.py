"""The `fit` of an estimator: epochs, steps and validation. `model` is the estimator."""

from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl import distributed
from ssl.batch_norm import synchronise
from ssl.data.order import hash32
from ssl.distributed import gather_objects, rank, world_size
from ssl.errors import UserError
from ssl.estimators import arguments, optimization
from ssl.estimators.samples import FromLoader, FromSamples, are_samples, drawn_from
from ssl.training import trainable
from ssl.training.forward import rehearse
from ssl.training.guard import Guard, gradient_norm
from ssl.training.precision import choose_precision


def fit(model, train, val, resume: bool) -> None:
    """As `Estimator.fit`."""
    device = distributed.join(model.device)
    if resume and model.unsaved:
        raise UserError(f"resume: the file could not hold {', '.join(sorted(model.unsaved))}; pass them to load")
    kept = dict(model.__dict__)
    if not resume and model.step:
        model._build()
    first = model.step
    trained = [parameter for parameter in model.net.parameters() if parameter.requires_grad]
    try:
        _train(model, train, val, resume, device)
    except BaseException:
        if model.step == first:  # no step was made: keep what an earlier fit learnt
            model.__dict__.update(kept)
        raise
    finally:
        model.runner = None
        for parameter in trained:  # `_join` may have frozen some
            parameter.requires_grad_(True)


def _train(model, train, val, resume: bool, device: torch.device) -> None:
    model.seed = distributed.broadcast_object(model.seed)
    source = _source(model, train, model.limit_train_batches)
    validation = _source(model, val) if isinstance(val, DataLoader | Dataset) else None
    for name, batches in (("train", source), ("val", validation)):
        lengths = gather_objects(batches and batches.steps_per_epoch)
        if len(set(lengths)) > 1:
            raise UserError(f"{name}: every process needs as many batches, got {lengths} on ranks 0, 1, …")
    source.require_steps()
    model.steps_per_epoch = source.steps_per_epoch
    total = optimization.total_steps(model)

    model.net = synchronise(model.net).to(device)
    before = optimization.state(model) if resume else None
    model.configure_optimizers()
    scaler = torch.amp.GradScaler(device.type, enabled=choose_precision(model.precision, device) == torch.float16)
    if before:
        optimization.load_state(model, before)
    model.loaded = None
    guard = Guard(model.net, model.optimizer)
    if validation is not None and model.num_sanity_val_steps:
        _validate(model, validation, None if model.num_sanity_val_steps < 0 else model.num_sanity_val_steps)
    with drawn_from(model.seed):
        first = model.step
        while model.step < total:
            _epoch(model, source, validation, total, scaler, guard, first)


def _source(model, data, limit: int | float | None = None) -> FromSamples | FromLoader:
    if are_samples(data):
        return FromSamples(data, model.views, model.batch_size, model.num_workers, model.seed, limit)
    return FromLoader(data, model.seed, limit)


def _epoch(model, source, validation, total: int, scaler: torch.amp.GradScaler, guard: Guard, first: int) -> None:
    """One epoch, or the rest of one that was interrupted, of a fit whose first step is number `first`."""
    epoch, done = divmod(model.step, source.steps_per_epoch)
    _train_epoch(model, source, total, scaler, guard, first)
    steps = model.epoch_sums["steps"]
    metrics = {name: float(value) / steps for name, value in model.epoch_sums.items() if name != "steps"}
    metrics |= {"lr": model.optimizer.param_groups[0]["lr"], "step": model.step}
    if validation is not None and (epoch + 1) % model.check_val_every_n_epoch == 0:
        metrics["val_loss"] = _validate(model, validation)
    optimization.advance_epoch(model, metrics["loss"] if validation is None else metrics.get("val_loss"))
    if done and model.history and model.history[-1]["epoch"] == epoch:  # max_steps ended an earlier fit in this epoch
        model.history.pop()
    model.history.append({"epoch": epoch} | metrics)
    for callback in arguments.as_list(model.callbacks):
        getattr(callback, "on_epoch_end", callback)(model, epoch, metrics)


def _train_epoch(model, source, total: int, scaler: torch.amp.GradScaler, guard: Guard, first: int) -> None:
    """The steps of an epoch. `model.epoch_sums` counts them, and sums up the loss and its parts."""
    epoch, done = divmod(model.step, source.steps_per_epoch)
    end = min(total, (epoch + 1) * source.steps_per_epoch)
    if done == 0:
        model.epoch_sums = {}
    model.net.train()
    for number, batch in enumerate(source.epoch(epoch, done), done):
        if model.step == first:
            _join(model, lambda batch=batch, number=number: model.training_step(batch, number)["loss"])
        found = {"steps": 1} | _step(model, batch, number, scaler, guard)
        model.epoch_sums = {name: model.epoch_sums.get(name, 0) + value for name, value in found.items()}
        optimization.advance_step(model)
        model.step += 1
        if model.step == end:
            break
    if model.step < end:
        raise UserError(f"train: the loader ended before the {source.steps_per_epoch} batches that its length promises")


def _join(model, loss: Callable[[], Tensor]) -> None:
    """From here on the processes train one network. DDP needs a gradient of all that is trained: freeze the rest."""
    if world_size() > 1:
        trainable.freeze_unused(model.net, loss)
    model.runner = distributed.parallel(model.net, next(model.net.parameters()).device)
    rehearse(model.net, loss)


def _step(model, batch, number: int, scaler: torch.amp.GradScaler, guard: Guard) -> dict[str, Tensor]:
    """One step of the optimizer; returns the loss and its parts.

    Raises `UserError` for a loss or gradient that is not finite, and changes nothing then. Under a float16 scaler such
    a step is left out instead, and the scaler lowers its scale, unless that is below 1 already.
    """
    guard.begin()
    try:
        loss, finite = _backward(model, batch, number, scaler)
        if not finite and not (scaler.is_enabled() and scaler.get_scale() >= 1):
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


def _backward(model, batch, number: int, scaler: torch.amp.GradScaler) -> tuple[Tensor, Tensor]:
    """(loss, whether it and the gradient of all processes are finite).

    Dropout draws from (seed, step, rank), and not from the generator that loaders draw from.
    """
    device = next(model.net.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(hash32(model.seed, model.step, rank(), 0xFFFE))
        loss = model.training_step(batch, number)["loss"]
        model.optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss * world_size()).backward()  # the loss is the global batch's; DDP averages gradients
    scaler.unscale_(model.optimizer)
    return loss, loss.isfinite() & gradient_norm(model.optimizer).isfinite()


def _validate(model, validation, batches: int | None = None) -> float:
    """The mean loss of all batches, or of the first `batches`."""
    model.net.eval()
    runner, model.runner = model.runner, None
    with drawn_from(model.seed):
        losses = [
            float(model.validation_step(batch, i)["loss"]) for i, batch in enumerate(islice(validation.once(), batches))
        ]
    model.runner = runner
    model.net.train()
    if not losses:
        raise UserError("val: there are no batches to validate on")
    return sum(losses) / len(losses)
