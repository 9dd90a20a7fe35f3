"""What the methods share: arguments, the network, steps, fit, transform, files."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ssl.distributed import gather_rows
from ssl.errors import UserError
from ssl.estimators import fit, optimization, saved, transform
from ssl.estimators.batch import describe, split_on_all_ranks
from ssl.estimators.network import Network, batch_to
from ssl.estimators.samples import are_samples
from ssl.estimators.sklearn_params import Params
from ssl.training.precision import autocast, choose_precision

# A change of one of these arguments makes a new network.
OF_THE_NETWORK = {"encoder", "encoder_kwargs", "proj_input_dim", "proj_hidden_dim", "proj_output_dim", "random_state"}


class Estimator(Params):
    """What both methods share. Keyword arguments of both:

    max_epochs: how many passes over the data. max_steps: stop after so many steps (-1: no limit).
    random_state: the seed of weights, order, views and dropout; None: drawn from torch's generator.
    device: auto, cpu or cuda. precision: off (float32), bf16, fp16 or auto.
    callbacks: a callable (estimator, epoch, metrics), or an object whose method on_epoch_end takes these arguments, or
    a list of them. They are called after each epoch, on every process. metrics: {"loss", "lr", "step", the loss's
    parts, and with validation "val_loss"}; `history` keeps them.
    num_views: how many views of each sample the loss compares, 2 to 16. Time and memory of a step grow with it.
    views, batch_size (per process), num_workers: for a fit on samples instead of a loader, see `fit`.
    limit_train_batches: how many batches an epoch has (a whole number), or which share of them (0..1); None: all.
    check_val_every_n_epoch: epochs between validations. num_sanity_val_steps: validate on so many batches before the
    first step (-1: on all), so that an error in validation comes at once; the result is dropped.
    verbose: `fit` shows a bar (without a terminal or notebook a line every half minute), and at the end a line that
    says where the time went. False: it prints nothing.

    Arguments of Lightning's Trainer are accepted if they ask for what happens here anyway. Others are refused, and the
    error says what to do instead: `ssl.estimators.lightning`.
    """

    EXTRA: ClassVar = dict(
        max_epochs=None,
        max_steps=-1,
        random_state=None,
        device="auto",
        precision="off",
        callbacks=None,
        num_views=2,
        views=None,
        batch_size=64,
        num_workers=0,
        limit_train_batches=None,
        check_val_every_n_epoch=1,
        num_sanity_val_steps=0,
        verbose=True,
    )
    REPLACED: ClassVar = {"encoder", "optimizer", "lr_scheduler"}

    def _make_loss(self) -> nn.Module:
        raise NotImplementedError

    def _make_projector(self) -> nn.Module:
        raise NotImplementedError

    # Arguments ------------------------------------------------------------------------

    def _apply(self, changed: set[str]) -> None:
        self.loss = self._make_loss()
        if OF_THE_NETWORK & changed:
            self._build()
        self.unsaved = self.unsaved - changed
        if self.step == 0:
            self._hold(self._params["optimizer"], self._params["lr_scheduler"])

    def _hold(self, optimizer, lr_scheduler) -> None:
        """The attributes `optimizer` and `lr_scheduler`: what was made from the arguments, or the arguments."""
        self.__dict__.update(optimizer=optimizer, lr_scheduler=lr_scheduler)

    def _build(self) -> None:
        """New weights, which depend on random_state alone. An encoder given as an instance keeps its weights."""
        self.step = 0
        self.history: list[dict] = []  # one line per epoch
        self.epoch_sums: dict = {}  # of the epoch that has begun: "steps", and sums over them of the loss and its parts
        self.steps_per_epoch: int | None = None  # None: not known, before a fit or from a file of an earlier version
        self.runner: nn.Module | None = None  # during fit on several processes: the DDP module of `net`
        self.loaded: dict | None = None  # state of optimizer and scheduler in the file that was loaded
        self.scaling: dict = {}  # the state of the float16 scaler after the last step
        self.unsaved: set[str] = set()  # arguments of the optimizer that this file could not hold
        self.seed = int(torch.randint(2**31, ()) if self.random_state is None else self.random_state)
        given = self._params["encoder"]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            encoder = given if isinstance(given, nn.Module) else given(**(self.encoder_kwargs or {}))
            self.net = Network(encoder, self._make_projector(), self.proj_input_dim)

    def __sklearn_is_fitted__(self) -> bool:
        return self.step > 0

    @property
    def encoder(self) -> nn.Module:
        return self.net.encoder

    @property
    def projection_head(self) -> nn.Module:
        return self.net.projector

    # Steps ----------------------------------------------------------------------------

    def training_step(self, batch, batch_idx: int = 0, dataloader_idx: int = 0) -> dict:
        """{"loss", "z1", "z2", "y"} of a batch `[X1, X2]` or `([X1, X2], y)`, of all processes together.

        With `num_views` V the batch has X1 to XV, and the result z1 to zV: (N, D), detached; y as given. Raises
        ValueError or TypeError for another batch, on all processes, before any of them computes.
        """
        views, y, counts = split_on_all_ranks(batch, self.num_views)
        net = self.runner or self.net
        device = next(self.net.parameters()).device
        with autocast(choose_precision(self.precision, device), device):
            z = net(*(batch_to(x, device, self.encoder) for x in views))
        self.loss.check = len(set(counts)) > 1  # a check waits for the device; where rows are uneven, the loss needs it
        loss = self.loss(*z)
        return {"loss": loss} | {f"z{i}": gather_rows(of_view, counts) for i, of_view in enumerate(z, 1)} | {"y": y}

    @torch.no_grad()
    def validation_step(self, batch, batch_idx: int = 0, dataloader_idx: int = 0) -> dict:
        """As `training_step`, without a graph; `fit` calls it in eval mode."""
        return self.training_step(batch, batch_idx)

    def test_step(self, batch, batch_idx: int = 0) -> None:
        """Does nothing: pre-training has no test."""

    @torch.no_grad()
    def transform_step(self, batch: Tensor, batch_idx: int = 0, dataloader_idx: int = 0) -> Tensor:
        """The encoder's representations (n, d) of X, without the projection head."""
        if not isinstance(batch, Tensor):
            raise ValueError(
                f"transform: expected batches that are a tensor X, got {describe(batch)}; for batches (X, y) call "
                "transform_with_targets"
            )
        device = next(self.net.parameters()).device
        return self.encoder(batch_to(batch, device, self.encoder))

    def configure_optimizers(self) -> tuple[Optimizer, LRScheduler | None]:
        """Make `optimizer` and `lr_scheduler` from the constructor's arguments, for the data that `fit` was given.

        A subclass may return others.
        """
        self._hold(optimization.make_optimizer(self), None)
        self._hold(self.optimizer, optimization.make_scheduler(self))
        return self.optimizer, self.lr_scheduler

    # Fit and transform ----------------------------------------------------------------

    def fit(self, train, val=None, resume: bool = False):
        """Train; returns self.

        train: a loader of batches `[X1, X2]` or `([X1, X2], y)`, with `num_views` views; or samples: a tensor, array,
        list or Dataset. Of samples, `views` (sample -> view) makes the batches; it is called `num_views` times for each
        sample, with other random numbers. It gets tensors and arrays as float32. A view depends on (random_state,
        epoch, index) alone if `views` draws from torch, numpy or random. Without num_workers samples and views may be
        on the GPU.
        val: likewise, a DataLoader or Dataset. Anything else, such as the labels that a Pipeline passes, is ignored.

        In a process group, or in a process that torchrun started, the batch is that of all processes together.
        A second fit starts again (an encoder given as an instance keeps its weights). With `resume` it continues where
        the last one ended, in this process or in the loaded file; an epoch must have as many steps as it had.
        KeyboardInterrupt passes through, and what was learnt stays. After an error before the first step, what an
        earlier fit learnt stays.

        Raises ValueError, at most ten steps later, for a loss or gradient that is not finite. Weights and running
        statistics are then those of the last step before it.
        """
        self.set_params()  # what was assigned as an attribute takes effect
        fit.fit(self, train, val, resume)
        return self

    def transform(self, data) -> Tensor:
        """Representations (N, d), float32 on the CPU, in order, the same on every process.

        data: a loader of X; or samples as in `fit`, where the encoder gets tensors and arrays as float32. Of a loader
        or a Dataset it gets float64 as float32, and other types as they are.
        Raises `UserError` for a loader that changes the order or leaves out rows.
        """
        return transform.encode(self, data, targets=False)[0]

    def transform_with_targets(self, data) -> tuple[Tensor, Tensor]:
        """(representations (N, d), targets (N, ...)) of a loader of (X, y) or a Dataset of (x, y).

        On one process the loader may have any order: each row keeps its target.
        """
        return transform.encode(self, data, targets=True)

    def fit_transform(self, train, val=None) -> Tensor:
        """`fit` on samples, then `transform` of them."""
        if not are_samples(train):
            raise UserError("fit_transform: a loader of pairs cannot be transformed; call fit, then transform")
        return self.fit(train, val).transform(train)

    # Files ----------------------------------------------------------------------------

    def save(self, path) -> None:
        """Write weights, optimizer, step and plain arguments to `path`, whole or not at all. Rank 0 writes."""
        saved.write(self, path)

    @classmethod
    def load(cls, path, encoder=None, **params):
        """The estimator that `save` wrote. No code in the file is run. `params` replace arguments of the constructor.

        Pass the class of the encoder as `encoder`, unless it is ours, torchvision's or timm's. If it was an instance,
        pass one that is built alike, or encoder_kwargs, as the file does not know how it was built. Pass also what no
        file can hold and what you need: views, an optimizer's class.
        Raises `UserError` for a file that is damaged, or of another class or network.
        """
        return saved.read(cls, path, encoder, params)
