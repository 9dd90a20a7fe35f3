"""The `fit` of an estimator: epochs, steps and validation. `model` is the estimator."""

import contextlib
import math
import warnings
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl import distributed
from ssl.batch_norm import synchronise
from ssl.data.order import hash32
from ssl.distributed import gather_numbers, gather_objects, rank, world_size
from ssl.errors import UserError
from ssl.estimators import arguments, optimization
from ssl.estimators.network import to_device
from ssl.estimators.progress import FitProgress
from ssl.estimators.samples import FromLoader, FromSamples, are_samples, drawn_from, how_to_read
from ssl.training import trainable
from ssl.training.forward import rehearse
from ssl.training.guard import Guard, gradient_norm
from ssl.training.precision import choose_precision

READ_EVERY = 10  # steps; to read whether they were finite, the host waits for the device


def fit(model, train, val, resume: bool) -> None:
    """As `Estimator.fit`."""
    device = distributed.join(model.device)
    if resume and model.unsaved:
        raise UserError(f"resume: the file could not hold {', '.join(sorted(model.unsaved))}; pass them to load")
    if resume and model.loaded == {}:
        raise UserError("resume: the file could not hold the state of optimizer or scheduler; call fit without resume")
    kept = dict(model.__dict__)
    if not resume and model.step:
        model._build()
    first = model.step
    trained = [parameter for parameter in model.net.parameters() if parameter.requires_grad]
    try:
        _Fit(model, train, val, resume, device).run()
    except BaseException:
        if model.step == first:  # no step was made: keep what an earlier fit learnt
            model.__dict__.update(kept)
        raise
    finally:
        model.runner = None
        for parameter in trained:  # `_join` may have frozen some
            parameter.requires_grad_(True)


class _Fit:
    """A fit of `model`, from its step on.

    The device decides whether a step is finite. A step that is not changes nothing, and nor do those after it. The
    host reads the decisions every READ_EVERY steps, and at the end of an epoch. `unread` holds the loss and its parts
    of each step since. Ranks send no message to agree: a loss that is not finite makes the gradient of all ranks NaN.
    They do so at a reading under a float16 scaler, which leaves out steps by itself.
    """

    def __init__(self, model, train, val, resume: bool, device: torch.device):
        self.model, self.device = model, device
        progress = {"resume": resume, "step": model.step, "epochs": len(model.history), "steps": model.steps_per_epoch}
        distributed.require_same(progress | arguments.of_all_ranks(model.get_params()))
        model.seed = distributed.broadcast_object(model.seed)
        self.source = self._source(train, model.limit_train_batches)
        self.validation = self._source(val) if isinstance(val, DataLoader | Dataset) else None
        for name, batches in (("train", self.source), ("val", self.validation)):
            lengths = gather_objects(batches and batches.steps_per_epoch)
            if len(set(lengths)) > 1:
                raise UserError(f"{name}: every process needs as many batches, got {lengths} on ranks 0, 1, …")
        self.source.require_steps()
        steps = self.source.steps_per_epoch
        if resume and model.steps_per_epoch not in (None, steps):
            raise UserError(
                f"resume: an epoch had {model.steps_per_epoch} steps so far and has {steps} now; pass as much data as "
                "before and set batch_size, limit_train_batches and the number of processes back, or call fit without "
                "resume"
            )
        model.steps_per_epoch = steps
        self.first, self.last = model.step, optimization.total_steps(model)

        model.net = to_device(synchronise(model.net), device)
        before = optimization.state(model) if resume else None
        model._hold(*model.configure_optimizers())
        self.device_decides = optimization.reads_found_inf(model)
        half = choose_precision(model.precision, device) == torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        if before:
            optimization.load_state(model, before)
        model.scaling = (before or {}).get("scaler", {})
        if model.scaling:
            self.scaler.load_state_dict(model.scaling)
        model.loaded = None
        self.guard = Guard(model.net, model.optimizer)
        self.unread: list[dict[str, Tensor]] = []

    def _source(self, data, limit: int | float | None = None) -> FromSamples | FromLoader:
        model = self.model
        if not are_samples(data):
            return FromLoader(data, model.seed, limit)
        reading = how_to_read(model.num_workers, self.device)
        return FromSamples(data, model.views, model.num_views, model.batch_size, model.seed, limit, **reading)

    def run(self) -> None:
        model = self.model
        self.progress = FitProgress(model, self.last, self.source.workers)
        with contextlib.closing(self.progress):
            if self.validation is not None and model.num_sanity_val_steps:
                self._validate(None if model.num_sanity_val_steps < 0 else model.num_sanity_val_steps)
            with drawn_from(model.seed):
                if optimization.epoch_is_open(model):
                    with warnings.catch_warnings():  # the optimizer's steps were made before
                        warnings.filterwarnings("ignore", r"Detected call of `lr_scheduler\.step")
                        self._end_epoch()
                while model.step < self.last:
                    self._epoch()
        self.progress.sum_up()

    def _epoch(self) -> None:
        """One epoch, or the rest of one that was interrupted."""
        model = self.model
        epoch, done = divmod(model.step, model.steps_per_epoch)
        if done == 0:
            model.epoch_sums = {}
        model.net.train()
        try:
            self._steps(epoch, done)
        except BaseException:
            self._settle(alone=True)
            raise
        self._end_epoch()

    def _end_epoch(self) -> None:
        """What follows the steps of an epoch: validation, the schedule, a line of the history, callbacks."""
        model = self.model
        epoch, steps = (model.step - 1) // model.steps_per_epoch, model.epoch_sums["steps"]
        metrics = {name: float(value) / steps for name, value in model.epoch_sums.items() if name != "steps"}
        metrics |= {"lr": model.optimizer.param_groups[0]["lr"], "step": model.step}
        if self.validation is not None and (epoch + 1) % model.check_val_every_n_epoch == 0:
            metrics["val_loss"] = self._validate()
        optimization.advance_epoch(model, metrics["loss"] if self.validation is None else metrics.get("val_loss"))
        if model.history and model.history[-1]["epoch"] == epoch:  # max_steps ended an earlier fit in it
            model.history.pop()
        model.history.append({"epoch": epoch} | metrics)
        if model.step % model.steps_per_epoch == 0:  # else max_steps ended it: a later fit may go on in it
            model.epoch_sums = {}
        with self.progress.spending("in callbacks"):
            for callback in arguments.as_list(model.callbacks):
                getattr(callback, "on_epoch_end", callback)(model, epoch, metrics)

    # Steps ----------------------------------------------------------------------------

    def _steps(self, epoch: int, done: int) -> None:
        """The steps of an epoch, of which `done` were made before."""
        model = self.model
        end = min(self.last, (epoch + 1) * model.steps_per_epoch)
        with self.progress.spending("waiting for data"):
            batches = self.source.epoch(epoch, done)
        for number, batch in enumerate(self.progress.waiting_for(batches), done):
            if model.step == self.first:
                self._join(batch, number)
            self._step(batch, number)
            model.step += 1
            self.progress.move()
            if not self.device_decides or len(self.unread) == READ_EVERY or model.step == end:
                problem = self._settle()
                if problem:
                    raise problem
                self.progress.read()
            optimization.advance_step(model)
            if model.step == end:
                return
        raise UserError(f"train: the loader ended before the {model.steps_per_epoch} batches that its length promises")

    def _join(self, batch, number: int) -> None:
        """From here on the processes train one network. DDP needs a gradient of all it trains: freeze the rest."""
        model = self.model

        def loss() -> Tensor:
            return model.training_step(batch, number)["loss"]

        if world_size() > 1:
            trainable.freeze_unused(model.net, loss)
        model.runner = distributed.parallel(model.net, self.device)
        rehearse(model.net, loss)

    def _step(self, batch, number: int) -> None:
        """One step of the optimizer. It changes nothing if it is not finite, or follows such a step."""
        model, guard = self.model, self.guard
        guard.begin()
        try:
            loss, spoilt = self._backward(batch, number)
            guard.mark(spoilt, gradient_norm(model.optimizer))
            if not self.device_decides:
                del model.optimizer.found_inf
            if self.device_decides or not guard.last_step_was_bad():
                model.optimizer.step()
        except BaseException:
            guard.undo()
            del guard.record[len(self.unread) :]
            raise
        self.unread.append({"loss": loss.detach()} | getattr(model.loss, "parts", {}))
        self.scaler.update()

    def _backward(self, batch, number: int) -> tuple[Tensor, Tensor]:
        """The loss, and what was differentiated: the loss, or NaN after a step that was not finite.

        An overflow of a float16 scaler is no such step; then a rank knows its own losses, and its NaN reaches all.
        Dropout draws from (seed, step, rank), and not from the generator that loaders draw from.
        """
        model, scaler = self.model, self.scaler
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(hash32(model.seed, model.step, rank(), 0xFFFE))
            found = model.training_step(batch, number)
            self.progress.count(found)
            loss = found["loss"]
            model.optimizer.zero_grad(set_to_none=True)
            spoilt = loss
            if self.guard.record:
                bad, bad_loss = self.guard.record[-1]
                spoilt = loss * torch.where((bad_loss if scaler.is_enabled() else bad) > 0, torch.nan, 1.0)
            # The loss is the global batch's, and DDP averages gradients.
            scaler.scale(spoilt * world_size() * self.guard.scale(spoilt)).backward()
        scaler.unscale_(model.optimizer)
        return loss, spoilt

    def _settle(self, alone: bool = False) -> UserError | None:
        """Read the decisions. Steps since the last that changed something are not counted; the error names the first.

        A float16 scaler leaves steps out while it looks for its scale: they count up to the first whose loss was bad
        on some rank, unless the scale is very low. `alone`: the other ranks may not be here, and are not asked.
        """
        model, record, unread = self.model, self.guard.record, self.unread
        if not record:
            return None
        self.guard.record, self.unread = [], []
        bad, bad_loss = torch.stack(record, 1).tolist()
        made = len(bad) - [*reversed(bad), 0].index(0)
        if made < len(bad) and self.scaler.is_enabled() and not alone:
            lost = [any(flags) for flags in zip(*gather_numbers([int(flag) for flag in bad_loss]))]
            if any(lost):
                made = lost.index(True)
            elif self.scaler.get_scale() >= 0.5:
                made = len(bad)
        for values in unread[:made]:
            found = {"steps": 1} | values
            model.epoch_sums = {name: model.epoch_sums.get(name, 0) + value for name, value in found.items()}
        if made == len(bad):
            model.scaling = self.scaler.state_dict()
            return None
        model.step -= len(bad) - made
        return UserError(
            f"fit: at step {model.step} loss or gradient is not finite (loss {unread[made]['loss'].item()}), and the "
            "weights were left as they were; lower learning_rate, or look at the samples"
        )

    # Validation -----------------------------------------------------------------------

    def _validate(self, batches: int | None = None) -> float:
        """The mean loss of all batches, or of the first `batches`."""
        model = self.model
        distributed.share_buffers(model.net.eval())
        runner, model.runner = model.runner, None
        with self.progress.spending("validating"), drawn_from(model.seed):
            some = islice(self.validation.once(), batches)
            losses = [torch.as_tensor(model.validation_step(batch, i)["loss"]).detach() for i, batch in enumerate(some)]
        model.runner = runner
        model.net.train()
        if not losses:
            raise UserError("val: there are no batches to validate on")
        loss = sum(torch.stack(losses).tolist()) / len(losses)
        if not math.isfinite(loss):
            raise UserError("val: the loss is not finite; lower learning_rate, or look at the samples")
        return loss
