"""The two methods: which loss, which projection head, which arguments."""

from torch import nn

from ssl.estimators.base import Estimator
from ssl.heads import projector
from ssl.losses import BarlowTwinsLoss, InfoNCELoss


class BarlowTwins(Estimator):
    """Barlow Twins (Zbontar et al. 2021): make the views of a sample agree, and decorrelate the dimensions.

    encoder: an `nn.Module` class, built with `encoder_kwargs`, or an instance, which is used as it is.
    proj_input_dim: width of its representations (N, d).
    proj_hidden_dim, proj_output_dim: widths of the projection head, Linear-BN-ReLU-Linear-BN-ReLU-Linear.
    lambd: weight of the redundancy term.
    optimizer: sgd, adam, adamW, lars or lamb; or an optimizer's class. It is made with learning_rate, weight_decay and
    `optimizer_kwargs`; with exclude_bias_and_norm_wd biases and norms do not decay. Or an instance, used
    as it is; for a second fit it holds parameters of an encoder instance alone, as the projection head is made anew.
    lr_scheduler: warmup_cosine, none, or an instance of a scheduler of the optimizer given.
    lr_scheduler_kwargs: warmup_epochs (10; unset: at most half of the run), warmup_start_lr (1e-6), min_lr (0),
    interval: "step" or "epoch", how often the rate changes, also that of a scheduler instance.
    Further keyword arguments: see `Estimator` and `get_params()`. Any other is a `UserError`.
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
        super().__init__(locals())

    def _make_loss(self) -> nn.Module:
        return BarlowTwinsLoss(self.lambd)

    def _make_projector(self) -> nn.Module:
        hidden = self.proj_hidden_dim
        return projector(self.proj_input_dim, f"{hidden}-{hidden}-{self.proj_output_dim}")


class SimCLR(Estimator):
    """SimCLR (Chen et al. 2020): find the other views of a sample among the views of all samples of the batch.

    Arguments as `BarlowTwins`, with the loss's `temperature` (InfoNCE in the form of NT-Xent) instead of lambd. The
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
        super().__init__(locals())

    def _make_loss(self) -> nn.Module:
        return InfoNCELoss(self.temperature)

    def _make_projector(self) -> nn.Module:
        return projector(self.proj_input_dim, f"{self.proj_hidden_dim}-{self.proj_output_dim}", batch_norm=False)
