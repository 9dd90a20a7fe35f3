"""Judge an encoder while it learns, without touching it: k-NN, a linear probe, the loss on validation images.

A copy of the network is judged, in evaluation mode, with random numbers that are put back afterwards: weights,
running statistics and everything drawn in training are, to the bit, those of a run that is not judged.
"""

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ssl.augment import View
from ssl.console import say
from ssl.data.bad_images import check as check_bad
from ssl.data.images import Images
from ssl.data.loader import training_batches
from ssl.data.order import Order
from ssl.data.worker import Batch
from ssl.distributed import is_main, share_buffers
from ssl.errors import UserError
from ssl.evaluation import inference, plots
from ssl.evaluation.feature_rows import Rows
from ssl.evaluation.fixed_head import Head, fit_head
from ssl.evaluation.metrics import percent, share
from ssl.evaluation.probes import Heads, hits, knn, sweep, tenth_apart
from ssl.files import json_lines
from ssl.sources.validation import Validation, validation_order
from ssl.training.log import Metrics

AT_A_TIME = 4096  # images that k-NN judges between two times that a stop is asked for


class Abandoned(Exception):
    """An evaluation was given up since the run was asked to stop; says by what."""


@torch.no_grad()
def accuracies(
    fit: tuple[Rows, Tensor],
    held: tuple[Rows, Tensor],
    classes: int,
    how: Head | None,
    seed: int,
    alive: Callable[[], None],
) -> dict:
    """Shares, in 0..1, of `held` that k-NN and a linear head of `fit` have right, with n and 95 % intervals.

    Arguments are (features (N, F), labels (N,)). The head is `how`, or None: the probe, to the bit what evaluate.py
    finds on these features.
    """
    nearest = 0
    for part in zip(*(x.split(AT_A_TIME) for x in held)):  # in parts, so that a stop is heard
        alive()
        nearest += round(knn(fit, part, classes)["acc1"] * len(part[1]))
    if how is None:
        heads, _ = sweep(*tenth_apart(fit, seed), classes, seed=seed, alive=alive)
    else:
        with torch.enable_grad():
            fixed = fit_head(*fit, classes, how, seed, alive)
        heads = Heads(fixed.weight[None], fixed.bias[None], *torch.tensor([0.0, 1.0], device=fixed.weight.device))
    right, learnt = (int(hits(heads, [0], *pair).sum()) for pair in (held, fit))
    count = len(held[1])
    return {
        "judged_n": count,
        **share("knn_acc1", nearest, count),
        **share("linear_acc1", right, count),
        "linear_train_acc1": learnt / len(fit[1]),
    }


class Judge:
    """Call `judge` where a step is `due`. `model` has an `encoder`; without a `validation` nothing is ever due.

    `loss_of(net, micro_batches)` is the loss of a global batch and its parts; `keep_best(weights, about)` is told of
    every encoder that is better than those before. What was judged last is part of a checkpoint (`state_dict`), and is
    taken up from it: an evaluation that a checkpoint had not reached is done again, to the same numbers, and one that
    it had is not.
    """

    def __init__(
        self,
        settings,
        validation: Validation | None,
        folder: Path,
        model: nn.Module,
        loss_of: Callable[[nn.Module, list[Batch]], tuple[Tensor, dict[str, Tensor]]],
        keep_best: Callable[[dict[str, Tensor], dict], None],
        views: list[View],
        order: Order,
        statistics: tuple[list[float], list[float]],
        workers: int,
        device: torch.device,
    ):
        self.settings, self.validation, self.folder = settings, validation, folder
        self.model, self.loss_of, self.keep_best = model, loss_of, keep_best
        self.views, self.order, self.statistics, self.workers, self.device = views, order, statistics, workers, device
        self.judged = -1  # the last step that was
        self.values: dict = {}  # what was found there
        self.best: dict = {}  # when it was, and how good
        if validation is not None:
            self._introduce()

    def due(self, step: int) -> bool:
        return self._due(step, self.settings.eval_every) or self._due(step, self.settings.ssl_val_interval)

    def _due(self, step: int, epochs: int | None) -> bool:
        if not epochs or step <= self.judged:
            return False
        last = self.settings.epochs * self.order.steps_per_epoch
        every = epochs * self.order.steps_per_epoch
        return self.settings.eval_at_start if step == 0 else step % every == 0 or step == last

    def judge(self, step: int, metrics: Metrics, alive: Callable[[], str | None]) -> str | None:
        """Judge the network as it is at `step`; all ranks call it. Log, say and draw what was found, keep the best.

        `alive` is called all through, as often on every rank; it says on all what asked the run to stop,
        if anything did. The evaluation is then given up, stays due, and the words are returned.
        """

        def go_on() -> None:
            if words := alive():
                raise Abandoned(words)

        try:
            values = self._values(step, go_on)
        except Abandoned as request:
            return str(request)
        epoch = round(step / self.order.steps_per_epoch, 4)
        self.judged, self.values = step, {"epoch": epoch} | values
        if values.get("linear_acc1", -1) > self.best.get("value", -1):
            self.best = {
                "step": step,
                "epoch": epoch,
                "chosen_by": "linear_acc1",
                "value": values["linear_acc1"],
                "interval": values["linear_acc1_interval"],
                "n": values["judged_n"],
            }
            self.keep_best(self.model.encoder.state_dict(), self.best)
        metrics.write(step=step, **self.values)
        say(words_of(self.values))
        self._draw()
        return None

    @torch.no_grad()
    def _values(self, step: int, go_on: Callable[[], None]) -> dict:
        values = {}
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.settings.seed)
            net = copy.deepcopy(self.model).eval()
            share_buffers(net)  # ranks have running statistics of their own; encoder.pt has those of rank 0
            if self._due(step, self.settings.eval_every):
                values |= self._accuracies(net.encoder, go_on)
            if self._due(step, self.settings.ssl_val_interval):
                values |= self._validation_loss(net, go_on)
        return values

    def _accuracies(self, encoder: nn.Module, go_on: Callable[[], None]) -> dict:
        """Of features of un-augmented images, extracted once; files that cannot be read are left out."""
        features, read = zip(*(self._features(encoder, part, go_on) for part in self.validation.parts))
        labels, rows = self.validation.labels(), Rows(features, self.device)  # looked up, not copied: there may be GBs
        split = self.validation.split(torch.cat(read))
        pairs = [(rows.subset(chosen.to(self.device)), labels[chosen].to(self.device)) for chosen in split]
        classes = len(self.validation.parts[0].classes)
        how = self.settings if self.settings.eval_head == "fixed" else None
        return accuracies(*pairs, classes, how, self.settings.seed, go_on)

    def _features(self, encoder: nn.Module, data: Images, go_on: Callable[[], None]) -> tuple[Tensor, Tensor]:
        """(features (N, F), which could be read (N,)) of all images, on every rank."""

        def net(x: Tensor) -> Tensor:
            go_on()
            return encoder(x)

        mean, std = self.statistics
        size = inference.judged_size(encoder, data, self.settings.image_size)
        features, read, unread = inference.outputs(
            net,
            data,
            size=size,
            batch_size=self.settings.batch_size,
            workers=self.workers,
            device=self.device,
            mean=mean,
            std=std,
            title=None,
        )
        check_bad(unread, len(data), self.settings.max_bad_fraction, "they would judge the encoder")
        if not read.any():
            raise UserError(
                f"data_dir: none of the {len(data)} images that judge the encoder can be read; are they there?"
            )
        if unread:
            say(f"left out    {len(unread)} of {len(data)} images that judge the encoder; they cannot be read")
        return features, read.cpu()

    def _validation_loss(self, net: nn.Module, go_on: Callable[[], None]) -> dict[str, float]:
        """The loss and its parts on two views of the validation images, the same views every time."""
        order, images = self._validation_order(), self.validation.images
        batches = training_batches(images, self.views, order, 0, order.steps_per_epoch, self.workers, self.device)
        found: list[dict[str, Tensor]] = []
        for _ in range(order.steps_per_epoch):
            go_on()
            loss, parts = self.loss_of(net, [next(batches) for _ in range(order.accumulate)])
            found.append({"loss": loss} | {name.removeprefix("contrastive_"): part for name, part in parts.items()})
        batches.close()
        return {f"val_{name}": torch.stack([x[name].double() for x in found]).mean().item() for name in found[0]}

    def _validation_order(self) -> Order:
        return validation_order(self.settings, len(self.validation.images), self.order)

    # What it leaves -------------------------------------------------------------------

    def _introduce(self) -> None:
        count, images = self.settings.eval_every, len(self.validation.images)
        whose = "a tenth of train, by seed" if len(self.validation.parts) == 1 else "the validation split"
        also = "; training, too, sees these images, without labels" if self.validation.seen else ""
        if count:
            fit, held = (len(rows) for rows in self.validation.split())
            head = "evaluate.py's probe"
            if self.settings.eval_head == "fixed":
                head = "the SimCLR study's fixed head (which finds less than evaluate.py's probe)"
            say(f"judge       {_every(count)}: k-NN and {head}, of {fit} images on {held}, {whose}{also}")
        if self.settings.ssl_val_interval:
            batch = self._validation_order().global_batch
            cut = f", as large as {images} images allow" if batch < self.order.global_batch else ""
            say(
                f"val loss    {_every(self.settings.ssl_val_interval)}: of {whose}, "
                f"in global batches of {batch}{cut}{also}"
            )

    def _draw(self) -> None:
        if is_main() and "linear_acc1" in self.values:
            lines = [line for line in json_lines(self.folder / "metrics.jsonl") if "linear_acc1" in line]
            with contextlib.suppress(OSError):  # it is drawn again next time
                plots.evaluation(self.folder / "evaluation.png", lines)

    def sum_up(self) -> None:
        """The last lines of a run."""
        if self.values:
            say(f"judged      {words_of(self.values)}")
        if self.best:
            value = percent({"value_interval": self.best.get("interval", [0, 1])} | self.best, "value")
            path = self.folder / "encoder_best.pt"
            head = " --protocol fixed" if self.settings.eval_head == "fixed" else ""
            say(f"best        {path}: linear {value} at epoch {self.best['epoch']:g}")
            say(f"judge best  python evaluate.py --model_path {path}{head}")

    # Checkpoints ----------------------------------------------------------------------

    def state_dict(self) -> dict:
        return {"judged": self.judged, "values": self.values, "best": self.best}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state`, {} if a checkpoint has none."""
        self.judged, self.values, self.best = state.get("judged", -1), state.get("values", {}), state.get("best", {})

    def reached(self, line: dict) -> bool:
        """Whether a line of metrics.jsonl is one that the checkpoint had reached."""
        return not {"linear_acc1", "val_loss"} & set(line) or float(line["step"]) <= self.judged


def words_of(values: dict) -> str:
    """'epoch 10  k-NN 61.2 % (58.1–64.2)  linear 64.0 % (61.0–66.9), train 70.1 %', and the validation loss."""
    words = [f"epoch {values['epoch']:g}"]
    if "linear_acc1" in values:
        knn, linear = (percent(values, name) for name in ("knn_acc1", "linear_acc1"))
        words += [f"k-NN {knn}", f"linear {linear}, train {100 * values['linear_train_acc1']:.1f} %"]
    if "val_loss" in values:
        words.append(f"val loss {values['val_loss']:.4g}")
        words += [f"val acc{k} {100 * values[f'val_acc{k}']:.1f} %" for k in (1, 5) if f"val_acc{k}" in values]
    return "  ".join(words)


def _every(epochs: int) -> str:
    return "every epoch" if epochs == 1 else f"every {epochs} epochs"
