"""Barlow Twins and SimCLR as objects with fit and transform, for samples of any kind.

>>> from ssl.estimators import BarlowTwins
>>> model = BarlowTwins(MyEncoder, proj_input_dim=64, max_epochs=50, views=my_view, batch_size=128, random_state=0)
>>> features = model.fit(volumes).transform(volumes)

Losses, optimizers, schedules, processes and files are those of train.py.
"""

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ssl import distributed, optim
from ssl.distributed import gather_rows, rank, world_size
from ssl.errors import UserError
from ssl.estimators import arguments, fit, lightning, saved
from ssl.estimators.samples import are_samples, describe, in_order, split
from ssl.estimators.sklearn_params import Params
from ssl.heads import projector
from ssl.losses import BarlowTwinsLoss, InfoNCELoss
from ssl.schedules import warmup_cosine

# What is part of the network: another value makes a new one.
BUILT = {"encoder", "encoder_kwargs", "proj_input_dim", "proj_hidden_dim", "proj_output_dim", "random_state"}


class _Estimator(Params):
    """What both methods share. Keyword arguments of both:

    max_epochs: how long, in passes over the data. max_steps: stop after so many steps (-1: no limit).
    random_state: the seed of weights, order, views and dropout; None: drawn from torch's generator.
    device: auto, cpu or cuda. precision: off (float32), bf16, fp16 or auto.
    callbacks: a callable (estimator, epoch, metrics), or an object with a method on_epoch_end of these
    arguments, or a list of them; called after each epoch, on every process. metrics: {"loss", "lr",
    "step", the loss's parts, and with validation "val_loss"}, which `history` keeps.
    views, batch_size (per process), num_workers: for fitting samples instead of a loader, see `fit`.
    limit_train_batches: so many batches an epoch (a whole number), or this share of them (0..1); None: all.
    check_val_every_n_epoch: validate after each so many epochs. num_sanity_val_steps: validate on so many
    batches before the first step (-1: on all), that what fails there fails at once; nothing of it is kept.

    Other arguments of Lightning's Trainer are taken where they say what happens here anyway, and else refused
    with what to do instead: `ssl.estimators.lightning`.
    """

    EXTRA: ClassVar = dict(
        max_epochs=None,
        max_steps=-1,
        random_state=None,
        device="auto",
        precision="off",
        callbacks=None,
        views=None,
        batch_size=64,
        num_workers=0,
        limit_train_batches=None,
        check_val_every_n_epoch=1,
        num_sanity_val_steps=0,
    )

    MADE: ClassVar = {"encoder", "optimizer", "lr_scheduler"}

    def _translated(self, changes: dict) -> dict:
        return lightning.translated(changes)

    def _check(self, params: dict) -> None:
        arguments.check(params)

    def __sklearn_is_fitted__(self) -> bool:
        return self.step > 0

    def _adopt(self, changes: dict) -> None:
        self.loss = self._make_loss()
        if BUILT & set(changes):
            self._build()
        if self.step == 0:
            self.optimizer, self.lr_scheduler = self._params["optimizer"], self._params["lr_scheduler"]

    def _build(self) -> None:
        """New weights, from random_state alone; of an encoder that is an instance the projection head's only."""
        self.step, self.history, self.progress, self.unsaved = 0, [], None, set()
        self.partial = {}  # of the epoch that has begun: its steps so far, and the sums of what they gave
        self.steps_per_epoch = self.runner = None
        self.seed = int(torch.randint(2**31, ()) if self.random_state is None else self.random_state)
        given = self._params["encoder"]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            encoder = given if isinstance(given, nn.Module) else given(**(self.encoder_kwargs or {}))
            self.net = _Twins(encoder, self._make_projector(), self.proj_input_dim)

    @property
    def encoder(self) -> nn.Module:
        return self.net.encoder

    @property
    def projection_head(self) -> nn.Module:
        return self.net.projector

    # Steps ----------------------------------------------------------------------------

    def training_step(self, batch, batch_idx: int = 0, dataloader_idx: int = 0) -> dict:
        """{"loss", "z1", "z2", "y"} of a batch `[X1, X2]` or `([X1, X2], y)`, of all processes together.

        z1, z2: (N, D), detached; y as given. Raises on all processes, before any of them computes,
        ValueError or TypeError as `samples.split`.
        """
        x1, x2, y, counts = fit.agreed(batch, split)
        net = self.runner or self.net
        device = next(self.net.parameters()).device
        with fit.autocast(self, device):
            z1, z2 = net(x1.to(device), x2.to(device))
        loss = self.loss(z1, z2)
        return {"loss": loss, "z1": gather_rows(z1, counts), "z2": gather_rows(z2, counts), "y": y}

    @torch.no_grad()
    def validation_step(self, batch, batch_idx: int = 0, dataloader_idx: int = 0) -> dict:
        """As `training_step`, without a graph; `fit` calls it in eval mode."""
        return self.training_step(batch, batch_idx)

    def test_step(self, batch, batch_idx: int = 0) -> None:
        """Nothing: there is no test of pre-training."""

    @torch.no_grad()
    def transform_step(self, batch: Tensor, batch_idx: int = 0, dataloader_idx: int = 0) -> Tensor:
        """The encoder's representations (n, d) of X, without the projection head."""
        if not isinstance(batch, Tensor):
            raise ValueError(
                f"transform: expected batches that are a tensor X, got {describe(batch)}; for batches (X, y) call "
                "transform_with_targets"
            )
        device = next(self.net.parameters()).device
        return self.encoder(batch.to(device))

    # Optimizer ------------------------------------------------------------------------

    def configure_optimizers(self) -> tuple[Optimizer, LRScheduler | None]:
        """Make `optimizer` and `lr_scheduler` of what the constructor was given, for the data that `fit` was given."""
        given, wanted = self._params["optimizer"], self._params["lr_scheduler"]
        if isinstance(given, Optimizer):
            self.optimizer = given
            own = {id(p) for p in self.net.parameters()}
            if not any(id(p) in own for group in given.param_groups for p in group["params"]):
                raise UserError(
                    "optimizer: this instance holds no parameter of this encoder (clone makes copies that know nothing "
                    "of each other); pass a class or a name"
                )
        else:
            exclude, options = self.exclude_bias_and_norm_wd, self.optimizer_kwargs or {}
            decay, lr = self.weight_decay, self.learning_rate
            groups = optim.parameter_groups(self.net, lr, lr, decay, 0.0 if exclude else decay)
            if isinstance(given, type):
                self.optimizer = given(groups, lr=lr, **options)
            else:
                self.optimizer = optim.build(given.lower(), groups, lr, exclude, **options)
        if isinstance(wanted, LRScheduler | ReduceLROnPlateau):
            if wanted.optimizer is not self.optimizer:
                raise UserError("lr_scheduler: an instance belongs to an optimizer; pass that instance as optimizer")
            self.lr_scheduler = wanted
        else:
            self.lr_scheduler = None if wanted in (None, "none") else self._warmup_cosine()
        return self.optimizer, self.lr_scheduler

    def _warmup_cosine(self, done: int = 0) -> LRScheduler:
        """The schedule, `done` steps (or epochs) into it."""
        total, warmup, options = fit.schedule_length(self)
        rates = [group.setdefault("initial_lr", group["lr"]) for group in self.optimizer.param_groups]
        if not all(rate >= max(options["warmup_start_lr"], options["min_lr"]) and rate > 0 for rate in rates):
            raise UserError(f"learning_rate: {rates} must be above warmup_start_lr and min_lr of lr_scheduler_kwargs")
        for group, rate in zip(self.optimizer.param_groups, rates):
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
        return torch.optim.lr_scheduler.LambdaLR(self.optimizer, factors, last_epoch=done - 1)

    # Fit and transform ----------------------------------------------------------------

    def fit(self, train, val=None, resume: bool = False):
        """Train; returns self.

        train: a loader of batches `[X1, X2]` or `([X1, X2], y)`; or samples, a tensor, array, list or
        Dataset, of which `views` (sample -> view, called twice with other random numbers) makes them:
        tensors and arrays are given to it as float32, and the view depends on (random_state, epoch,
        index) alone where it draws from torch, numpy or random. `val`: likewise, a DataLoader or Dataset;
        anything else, as the labels that a Pipeline passes, is not used.

        Where a process group is there, or torchrun has started this process, the batch is that of all
        processes together. A second fit begins anew (an encoder given as instance keeps its weights);
        with `resume` it goes on where the last one, in this process or in the file loaded, ended.
        KeyboardInterrupt passes through, and leaves what was learnt so far; what fails before its first step
        leaves what an earlier fit has learnt.

        Raises ValueError for a loss or gradient that is not finite; weights and running statistics are then those
        of the step before.
        """
        self.set_params(**self._assigned())
        fit.fit(self, train, val, resume)
        return self

    def transform(self, data) -> Tensor:
        """Representations (N, d), float32 on the CPU, in order, the same on every process.

        A loader that changes the order, or leaves rows out, is a `UserError`.

        data: a loader of X; or samples as `fit` takes them, tensors and arrays given to the encoder as float32.
        """
        return self._encode(data, targets=False)[0]

    def transform_with_targets(self, data) -> tuple[Tensor, Tensor]:
        """(representations (N, d), targets (N, ...)) of a loader of (X, y) or a Dataset of (x, y).

        On one process the loader may have any order: each row keeps its target.
        """
        return self._encode(data, targets=True)

    def fit_transform(self, train, val=None) -> Tensor:
        """`fit` on samples, then `transform` of them."""
        if not are_samples(train):
            raise UserError("fit_transform: a loader of pairs cannot be transformed; call fit, then transform")
        return self.fit(train, val).transform(train)

    def _encode(self, data, targets: bool) -> tuple[Tensor, Tensor | None]:
        fit.require_fitted(self)
        device = distributed.join(self.device)
        self.net.to(device).eval()
        parts, seen = [], []
        for batch in in_order(data, self.batch_size, self.num_workers, targets):
            if targets:
                if not (isinstance(batch, list | tuple) and len(batch) == 2):
                    raise ValueError(f"transform_with_targets: expected batches (X, y), got {describe(batch)}")
                batch, y = batch
                seen.append(torch.as_tensor(y))
                if isinstance(batch, Tensor) and seen[-1].shape[:1] != batch.shape[:1]:
                    raise ValueError(
                        f"transform_with_targets: y should have a row for each of X, got {describe([batch, y])}"
                    )
            if isinstance(batch, Tensor):  # this rank's share of the rows; perhaps none, of which no encoder knows
                shares = batch.tensor_split(world_size())
                counts, batch = [len(share) for share in shares], shares[rank()]
            empty = isinstance(batch, Tensor) and not len(batch)
            h = self.transform_step(batch.new_zeros(1, *batch.shape[1:]) if empty else batch).float()
            parts.append(gather_rows(h[:0] if empty else h, counts).cpu())
        if not parts:
            raise ValueError("transform: there are no samples")
        return torch.cat(parts), torch.cat(seen) if targets else None

    # Files ----------------------------------------------------------------------------

    def save(self, path) -> None:
        """Write everything to `path`, whole or not at all: weights, optimizer, step, plain arguments. Rank 0 writes."""
        saved.write(self, path)

    @classmethod
    def load(cls, path, encoder=None, **params):
        """What `save` wrote; nothing in the file is run. `params` replace arguments of the constructor.

        The class of the encoder must be given, as `encoder`, unless it is one of ours or of torchvision.models;
        so must what no file can hold, for whatever needs it: views, an optimizer's class.
        Raises `UserError` for a file that is damaged, or of another class or network.
        """
        return saved.read(cls, path, encoder, params)


class BarlowTwins(_Estimator):
    """Barlow Twins (Zbontar et al. 2021): two views of a sample alike, the parts of a representation not redundant.

    encoder: an `nn.Module` class, built with `encoder_kwargs`, or an instance, which is used as it is.
    proj_input_dim: width of its representations (N, d). proj_hidden_dim, proj_output_dim: of the projection
    head, Linear-BN-ReLU-Linear-BN-ReLU-Linear. lambd: weight of the redundancy term.
    optimizer: sgd, adam, adamW, lars or lamb, or an optimizer's class, made with learning_rate, weight_decay
    (with exclude_bias_and_norm_wd not of biases and norms) and `optimizer_kwargs`; or an instance, used as it is.
    lr_scheduler: warmup_cosine, none, or an instance of a scheduler of the optimizer given.
    lr_scheduler_kwargs: warmup_epochs (10, unset at most half of the run), warmup_start_lr (1e-6), min_lr (0),
    interval: "step" or "epoch", after which the rate changes, also that of an instance.
    Further keyword arguments: see `_Estimator`, and `get_params()`. Another is a `UserError`.
    """

    def __init__(
        self,
        encoder,
        encoder_kwargs=None,
        proj_input_dim=2048,
        proj_hidden_dim=2048,
        proj_output_dim=2048,
        lambd=0.005,
        optimizer="adamW",
        learning_rate=0.0003,
        weight_decay=0.0005,
        exclude_bias_and_norm_wd=True,
        optimizer_kwargs=None,
        lr_scheduler="warmup_cosine",
        lr_scheduler_kwargs=None,
        **kwargs,
    ):
        self._begin(locals())

    def _make_loss(self) -> nn.Module:
        return BarlowTwinsLoss(self.lambd)

    def _make_projector(self) -> nn.Module:
        hidden = self.proj_hidden_dim
        return projector(self.proj_input_dim, f"{hidden}-{hidden}-{self.proj_output_dim}")


class SimCLR(_Estimator):
    """SimCLR (Chen et al. 2020): the other view of a sample is to be found among those of all samples of the batch.

    Arguments as `BarlowTwins`, but `temperature` of the loss (InfoNCE in the form of NT-Xent) for lambd; the
    projection head is Linear-ReLU-Linear.
    """

    def __init__(
        self,
        encoder,
        encoder_kwargs=None,
        proj_input_dim=2048,
        proj_hidden_dim=2048,
        proj_output_dim=128,
        temperature=0.1,
        optimizer="adamW",
        learning_rate=0.0003,
        weight_decay=0.0005,
        exclude_bias_and_norm_wd=True,
        optimizer_kwargs=None,
        lr_scheduler="warmup_cosine",
        lr_scheduler_kwargs=None,
        **kwargs,
    ):
        self._begin(locals())

    def _make_loss(self) -> nn.Module:
        return InfoNCELoss(self.temperature)

    def _make_projector(self) -> nn.Module:
        return projector(self.proj_input_dim, f"{self.proj_hidden_dim}-{self.proj_output_dim}", batch_norm=False)


class _Twins(nn.Module):
    """Encoder and projector: views (n, ...) -> embeddings (n, D), one view at a time through batch norm."""

    def __init__(self, encoder: nn.Module, projector: nn.Module, width: int):
        super().__init__()
        self.encoder, self.projector, self.width = encoder, projector, width

    def forward(self, *views: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.projector(self._checked(self.encoder(x))) for x in views)

    def _checked(self, h: Tensor) -> Tensor:
        if not isinstance(h, Tensor) or h.ndim < 2:
            what = f"shape {tuple(h.shape)}" if isinstance(h, Tensor) else type(h).__name__
            raise RuntimeError(f"Encoder output must be representations (N, d), got {what}")
        if h.ndim > 2:
            raise ValueError(f"Encoder output must be representations (N, d), got {tuple(h.shape)}; pool or flatten it")
        if h.shape[1] != self.width:
            raise ValueError(
                f"Encoder output dim ({h.shape[1]}) does not match proj_input_dim ({self.width}). Either set "
                "proj_input_dim correctly or use an encoder whose output dimension matches."
            )
        return h
