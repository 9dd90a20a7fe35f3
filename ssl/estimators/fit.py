"""What an estimator's `fit` does: epochs, steps, validation, and what may not go wrong in them."""

from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset

from ssl import distributed, optim
from ssl.data.order import hash32
from ssl.distributed import gather_objects, rank, world_size
from ssl.errors import UserError
from ssl.estimators import arguments
from ssl.estimators.samples import FromLoader, FromSamples, are_samples, drawn_from
from ssl.training import trainable
from ssl.training.forward import rehearse
from ssl.training.guard import Guard, gradient_norm
from ssl.training.precision import choose_precision


def length(model) -> int:
    """Steps of the whole training."""
    epochs = model.max_epochs
    if not arguments.is_whole(epochs, 1):
        raise UserError(f"`max_epoch` must be set: pass max_epochs, a whole number of at least 1, got {epochs!r}")
    if model.steps_per_epoch is None:
        raise UserError("the length of the training is known to fit only, which is given the data")
    total = int(epochs) * model.steps_per_epoch
    return total if model.max_steps in (None, -1) else min(total, int(model.max_steps))


def schedule_length(model) -> tuple[int, int, dict]:
    """(total, warm-up, options) of warmup_cosine, in steps or epochs, whole numbers."""
    options, steps, epochs = arguments.schedule(model.lr_scheduler_kwargs), length(model), model.max_epochs
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
    trained = [parameter for parameter in model.net.parameters() if parameter.requires_grad]
    try:
        _train(model, train, val, resume, device)
    except BaseException:
        if model.step == first:  # nothing is learnt: what was learnt before is not lost for it
            model.__dict__.update(kept)
        raise
    finally:
        model.runner = None
        for parameter in trained:  # what was frozen for DDP, see _join
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
    total = length(model)

    model.net = distributed.synchronise(model.net, device).to(device)
    before = _progress(model) if resume else None
    model.configure_optimizers()
    scaler = torch.amp.GradScaler(device.type, enabled=choose_precision(model.precision, device) == torch.float16)
    if before:
        _take_up(model, before)
    model.progress = None
    guard = Guard(model.net, model.optimizer)
    if validation is not None and model.num_sanity_val_steps:
        _validate(model, validation, None if model.num_sanity_val_steps < 0 else model.num_sanity_val_steps)
    begun = model.step
    with drawn_from(model.seed):
        while model.step < total:
            _epoch(model, source, validation, total, scaler, guard, begun)


def _source(model, data, limit: int | float | None = None):
    if are_samples(data):
        return FromSamples(data, model.views, model.batch_size, model.num_workers, model.seed, limit)
    return FromLoader(data, model.seed, limit)


def _epoch(model, source, validation, total: int, scaler, guard: Guard, begun: int) -> None:
    """One epoch, or what is left of it, of a fit that began at step `begun`."""
    epoch, first = divmod(model.step, source.steps_per_epoch)
    end = min(total, (epoch + 1) * source.steps_per_epoch)
    by_step = _by_step(model) and not isinstance(model.lr_scheduler, ReduceLROnPlateau)
    if first == 0:
        model.partial = {}
    model.net.train()
    for number, batch in enumerate(source.epoch(epoch, first), first):
        if model.step == begun:
            _join(model, lambda batch=batch, number=number: model.training_step(batch, number)["loss"])
        found = {"steps": 1} | _step(model, batch, number, scaler, guard)
        model.partial = {name: model.partial.get(name, 0) + value for name, value in found.items()}
        if by_step and model.lr_scheduler is not None:
            model.lr_scheduler.step()
        model.step += 1
        if model.step == end:
            break
    if model.step < end:
        raise UserError(f"train: the loader ended before the {source.steps_per_epoch} batches that its length promises")
    steps = model.partial["steps"]
    metrics = {name: float(value) / steps for name, value in model.partial.items() if name != "steps"}
    metrics |= {"lr": model.optimizer.param_groups[0]["lr"], "step": model.step}
    if validation is not None and (epoch + 1) % model.check_val_every_n_epoch == 0:
        metrics["val_loss"] = _validate(model, validation)
    if isinstance(model.lr_scheduler, ReduceLROnPlateau):
        if validation is None or "val_loss" in metrics:
            model.lr_scheduler.step(metrics.get("val_loss", metrics["loss"]))
    elif model.lr_scheduler is not None and not by_step:
        model.lr_scheduler.step()
    if first and model.history and model.history[-1]["epoch"] == epoch:  # as far as max_steps had let it come
        model.history.pop()
    model.history.append({"epoch": epoch} | metrics)
    for callback in arguments.as_list(model.callbacks):
        getattr(callback, "on_epoch_end", callback)(model, epoch, metrics)


def _join(model, loss: Callable[[], Tensor]) -> None:
    """From here on the processes learn as one. DDP needs a gradient for all that is trained: the rest is frozen."""
    if world_size() > 1:
        trainable.freeze_unused(model.net, loss)
    model.runner = distributed.parallel(model.net, next(model.net.parameters()).device)
    rehearse(model.net, loss)


def _by_step(model) -> bool:
    return arguments.schedule(model.lr_scheduler_kwargs)["interval"] == "step"


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
            optim.load_state(optimizer, before["optimizer"], keep=not instance)
        if scheduler is not None and not ours and model.progress is not None:
            scheduler.load_state_dict(before["lr_scheduler"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"resume: the state of optimizer or scheduler does not fit ({error})") from None
    if scheduler is not None and ours:
        model.lr_scheduler = model._warmup_cosine(model.step // (1 if _by_step(model) else model.steps_per_epoch))
