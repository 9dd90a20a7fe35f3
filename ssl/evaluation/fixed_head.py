"""The linear evaluation of dal-toolbox's SimCLR study: one linear head with fixed settings, on features as they are."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl.errors import UserError
from ssl.evaluation import probes
from ssl.evaluation.feature_rows import Rows, Samples
from ssl.evaluation.intervals import Groups
from ssl.schedules import warmup_cosine
from ssl.settings import ranges
from ssl.settings.kinds import coerce


@dataclass(frozen=True)
class HeadSettings:
    """How the head is trained. train.py has the same settings; the defaults are the study's."""

    linear_epochs: int = 90  # passes over the features
    linear_batch: int = 4096  # samples in a batch; all of them where there are fewer
    linear_lr: float = 0.1  # for a batch of 256: multiplied by batch / 256
    linear_weight_decay: float = 0.0
    linear_momentum: float = 0.9


def settings_of(run: Mapping) -> HeadSettings:
    """The settings of the head in the config.yaml of a run; those it lacks are the study's. Raises `UserError`."""
    found = {
        field.name: coerce(run[field.name], field.type, f"config.yaml of the run: {field.name}")
        for field in dataclasses.fields(HeadSettings)
        if field.name in run
    }
    settings = HeadSettings(**found)
    ranges.check(settings)
    return settings


def fit_head(
    features: Tensor | Rows, labels: Tensor, classes: int, how: HeadSettings, seed: int, alive: Callable[[], None]
) -> nn.Linear:
    """Train a linear head on features (N, F) as they are, with labels (N,): SGD with momentum, cosine by epoch.

    `how` may be any settings that have those of `HeadSettings`. Unlike `probes.sweep`, this tries one learning rate and
    does not standardise the features. It finds less where features hardly vary, as in an untrained encoder, or where
    samples are few. An epoch leaves out the incomplete last batch, which holds other samples every time. `alive` is
    called in every epoch.
    """
    count, width = features.shape
    batch = min(how.linear_batch, count)
    lr = how.linear_lr * batch / 256
    torch.manual_seed(seed)
    head = nn.Linear(width, classes).to(features.device)
    optimizer = torch.optim.SGD(head.parameters(), lr, how.linear_momentum, weight_decay=how.linear_weight_decay)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(how.linear_epochs):
        alive()
        optimizer.param_groups[0]["lr"] = lr * warmup_cosine(epoch, how.linear_epochs, 0, 0.0)
        order = torch.randperm(count, generator=generator).to(features.device)
        for chosen in order[: count // batch * batch].split(batch):
            loss = F.cross_entropy(head(features[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return head


def judge(
    train: Samples, test: Samples, classes: int, how: HeadSettings, seed: int, groups: Groups | None = None
) -> dict:
    """Train the head on `train`, (features (N, F), labels (N,)): its accuracies on `test`, and its settings.

    Raises `UserError` if the head ends in NaN or Inf.
    """
    head = fit_head(*train, classes, how, seed, lambda: None)
    if not head.weight.isfinite().all():
        raise UserError(
            "protocol fixed: the head ended in NaN or Inf; its learning rate is too high for these features; take "
            "--protocol probe"
        )
    return probes.accuracies(probes.Heads.of(head), *test, groups) | dataclasses.asdict(how)
