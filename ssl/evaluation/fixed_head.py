"""The linear evaluation of dal-toolbox's SimCLR study: one linear head, at one rate, on features as they are."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl.errors import UserError
from ssl.evaluation import metrics
from ssl.evaluation.feature_rows import Rows, at_a_time
from ssl.schedules import warmup_cosine
from ssl.settings import ranges
from ssl.settings.kinds import coerce


@dataclass(frozen=True)
class Head:
    """How the head learns: settings of train.py, whose defaults are the study's."""

    linear_epochs: int = 90  # passes over the features
    linear_batch: int = 4096  # or all there are
    linear_lr: float = 0.1  # for 256 samples: multiplied by batch / 256
    linear_weight_decay: float = 0.0
    linear_momentum: float = 0.9


def head_of(run: Mapping) -> Head:
    """As in the settings of a run, anybody's; what they do not have is the study's. Raises `UserError`."""
    found = {
        field.name: coerce(run[field.name], field.type, f"config.yaml of the run: {field.name}")
        for field in dataclasses.fields(Head)
        if field.name in run
    }
    head = Head(**found)
    ranges.check(head)
    return head


def fit_head(
    features: Tensor | Rows, labels: Tensor, classes: int, how: Head, seed: int, alive: Callable[[], None]
) -> nn.Linear:
    """A linear head on features (N, F) as they are, labels (N,): SGD with momentum, cosine by epoch.

    `how` is a `Head`, or settings that have its five. Unlike in `probes.sweep` nothing is swept or standardised: where
    features hardly vary, or images are few, it finds less than is in them, most of all in an untrained encoder. What an
    epoch has beyond whole batches is left out, other samples every time. `alive` is called every epoch.
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
    train: tuple[Tensor | Rows, Tensor], test: tuple[Tensor | Rows, Tensor], classes: int, how: Head, seed: int
) -> dict:
    """Accuracies on `test` of a head of `train`, (features (N, F), labels (N,)) each, and how it learnt.

    Raises `UserError` where the head ends in NaN or Inf.
    """
    head = fit_head(*train, classes, how, seed, lambda: None)
    if not head.weight.isfinite().all():
        raise UserError("protocol fixed: the head ended in NaN or Inf; its rate is too high for such features: probe")
    with torch.no_grad():
        scores = torch.cat([head(x) for x in test[0].split(at_a_time(test[0]))])
    found = metrics.of_hits(test[1], metrics.hits(scores, test[1]))
    return found | metrics.acc5(metrics.hits(scores, test[1], 5), classes) | dataclasses.asdict(how)
