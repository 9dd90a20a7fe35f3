"""Judge an encoder while it learns: k-NN, a linear probe, and the loss on validation images.

Judging changes nothing of the training, to the bit. It uses a copy of the network in evaluation mode, and afterwards
puts torch's random numbers back.
"""

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ssl.checkpoints.run_folder import RunFolder
from ssl.console import say
from ssl.data.bad_images import check as check_bad
from ssl.data.images import Images
from ssl.data.loader import training_batches
from ssl.data.order import Order
from ssl.distributed import is_main, share_buffers
from ssl.errors import UserError
from ssl.evaluation import inference, plots
from ssl.evaluation.feature_rows import Rows
from ssl.evaluation.fixed_head import HeadSettings, fit_head
from ssl.evaluation.intervals import Groups
from ssl.evaluation.metrics import percent, share_of
from ssl.evaluation.neighbours import nearest
from ssl.evaluation.probes import Heads, hits, hold_out_tenth, sweep, voted
from ssl.files import json_lines
from ssl.settings.command import command
from ssl.sources.validation import Validation, validation_order
from ssl.training.forward import Embed, whole_loss
from ssl.training.log import Metrics

AT_A_TIME = 4096  # images that k-NN judges between two calls of `alive`


@torch.no_grad()
def accuracies(
    train: tuple[Rows, Tensor],
    held_out: tuple[Rows, Tensor],
    classes: int,
    how: HeadSettings | None,
    seed: int,
    alive: Callable[[], None],
    groups: Sequence[Groups | None] = (None, None),
) -> dict:
    """Accuracies, in 0..1, of k-NN and of a linear head on `held_out`, with n and 95 % intervals.

    `train` and `held_out` are (features (N, F), labels (N,)), and `groups` those of both. The head is `how`; None: the
    probe, which finds to the bit what evaluate.py finds on these features. `alive` is called all through.
    """
    of_knn = []
    for part in zip(*(x.split(AT_A_TIME) for x in held_out)):
        alive()
        of_knn.append(voted(nearest(train[0], part[0], 20), train[1], part[1], classes))
    if how is None:
        heads, _ = sweep(*hold_out_tenth(train, seed, groups[0]), classes, seed=seed, alive=alive)
    else:
        with torch.enable_grad():
            heads = Heads.of(fit_head(*train, classes, how, seed, alive))
    linear, of_train = (hits(heads, [0], *pair)[0] for pair in (held_out, train))
    return {
        "judged_n": len(linear),
        **share_of("knn_acc1", torch.cat(of_knn), groups[1]),
        **share_of("linear_acc1", linear, groups[1]),
        "linear_train_acc1": int(of_train.sum()) / len(of_train),
    }


@dataclass
class Judge:
    """Call `judge` at every step that is `due`. Without a `validation`, none is.

    `model` has an `encoder`; `embed` and `criterion` give its loss. `order` is that of the training. The rest is part
    of a checkpoint: the last step that was judged, what was found there, and the best encoder so far (its step and
    accuracy). So a continued run judges a step again only if its checkpoint was written before that judging.
    """

    settings: Any  # of train.py
    validation: Validation | None
    run: RunFolder
    order: Order
    workers: int
    model: nn.Module
    embed: Embed
    criterion: nn.Module
    judged: int = -1
    values: dict = field(default_factory=dict)
    best: dict = field(default_factory=dict)

    def due(self, step: int) -> bool:
        return self._due(step, self.settings.eval_every) or self._due(step, self.settings.ssl_val_interval)

    def _due(self, step: int, epochs: int | None) -> bool:
        if not epochs or step <= self.judged:
            return False
        last = self.settings.epochs * self.order.steps_per_epoch
        every = epochs * self.order.steps_per_epoch
        return self.settings.eval_at_start if step == 0 else step % every == 0 or step == last

    def judge(self, step: int, metrics: Metrics, alive: Callable[[], None]) -> None:
        """Judge the network as it is at `step`. Log, print and draw what was found, and keep the best encoder.

        All ranks call it. It calls `alive` all through, as often on every rank. If `alive` raises, the step stays due.
        """
        values = self._values(step, alive)
        epoch = round(step / self.order.steps_per_epoch, 4)
        self.judged, self.values = step, {"epoch": epoch} | values
        head = self.settings.eval_head
        best = self.best if self.best.get("head", head) == head else {}  # another head's accuracy compares with none
        if values.get("linear_acc1", -1) > best.get("value", -1):
            self.best = {
                "step": step,
                "epoch": epoch,
                "chosen_by": "linear_acc1",
                "head": head,
                "value": values["linear_acc1"],
                "interval": values["linear_acc1_interval"],
                "n": values["judged_n"],
            }
            self.run.keep_best(self.model.encoder.state_dict(), self.best)
        metrics.write(step=step, **self.values)
        say(in_words(self.values))
        if is_main() and "linear_acc1" in values:
            lines = [line for line in json_lines(self.run.folder / "metrics.jsonl") if "linear_acc1" in line]
            with contextlib.suppress(OSError):  # it is drawn again next time
                plots.evaluation(self.run.folder / "evaluation.png", lines)

    @torch.no_grad()
    def _values(self, step: int, alive: Callable[[], None]) -> dict:
        values, device = {}, self.embed.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.settings.seed)
            net = copied(self.model).eval()
            share_buffers(net)  # every rank has running statistics of its own; encoder.pt has those of rank 0
            if self._due(step, self.settings.eval_every):
                values |= self._accuracies(net.encoder, alive)
            if self._due(step, self.settings.ssl_val_interval):
                values |= self._validation_loss(net, alive)
        return values

    def _accuracies(self, encoder: nn.Module, alive: Callable[[], None]) -> dict:
        """Of features of plain images, computed once. Files that cannot be read are left out."""
        device, parts = self.embed.device, self.validation.parts
        size = inference.judged_size(encoder, parts[0], self.settings.image_size)  # of all parts alike
        features, read = zip(*(self._features(encoder, part, size, alive) for part in parts))
        labels, rows = self.validation.labels(), Rows(features, device)  # looked up, not copied: they may be GBs
        split = self.validation.split(torch.cat(read))
        pairs = [(rows.subset(chosen.to(device)), labels[chosen].to(device)) for chosen in split]
        classes = len(parts[0].classes)
        how = self.settings if self.settings.eval_head == "fixed" else None
        groups = [self.validation.groups(chosen) for chosen in split]
        return accuracies(*pairs, classes, how, self.settings.seed, alive, groups)

    def _features(
        self, encoder: nn.Module, data: Images, size: int, alive: Callable[[], None]
    ) -> tuple[Tensor, Tensor]:
        """(features (N, F), whether each image could be read (N,)), on every rank."""

        def net(x: Tensor) -> Tensor:
            alive()
            return encoder(x)

        settings = self.settings
        how = inference.Reading(size, settings.batch_size, self.workers, settings.mean, settings.std, self.embed.device)
        features, read, unread = inference.outputs(net, data, how)
        check_bad(unread, len(data), self.settings.max_bad_fraction, "they would judge the encoder")
        if not read.any():
            raise UserError(
                f"data_dir: none of the {len(data)} images that judge the encoder can be read; are they there?"
            )
        if unread:
            say(f"left out    {len(unread)} of {len(data)} images that judge the encoder; they cannot be read")
        return features, read.cpu()

    def _validation_loss(self, net: nn.Module, alive: Callable[[], None]) -> dict[str, float]:
        """The loss and its parts on views of the validation images, the same views every time."""
        images, views, device = self.validation.images, self.embed.views, self.embed.device
        order = validation_order(self.settings, len(images), self.order)
        stop = order.steps_per_epoch
        batches = training_batches(images, views, order, 0, stop, workers=self.workers, device=device)
        found: list[dict[str, Tensor]] = []
        for _ in range(stop):
            alive()
            micro_batches = [next(batches) for _ in range(order.accumulate)]
            loss, parts = whole_loss(self.embed, self.criterion, net, micro_batches)
            found.append({"loss": loss} | {name.removeprefix("contrastive_"): part for name, part in parts.items()})
        batches.close()
        return {f"val_{name}": torch.stack([x[name].double() for x in found]).mean().item() for name in found[0]}

    def sum_up(self) -> None:
        """Print the last lines of a run."""
        if self.values:
            say(f"judged      {in_words(self.values)}")
        if self.best:
            value = percent({"value_interval": self.best.get("interval", [0, 1])} | self.best, "value")
            path = self.run.folder / "encoder_best.pt"
            head = {"protocol": "fixed"} if self.best.get("head", self.settings.eval_head) == "fixed" else {}
            say(f"best        {path}: linear {value} at epoch {self.best['epoch']:g}")
            say(f"judge best  {command('evaluate.py', model_path=path, **head)}")

    def state_dict(self) -> dict:
        return {"judged": self.judged, "values": self.values, "best": self.best}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state`, {} if a checkpoint has none."""
        self.judged, self.values, self.best = state.get("judged", -1), state.get("values", {}), state.get("best", {})

    def reached(self, line: dict) -> bool:
        """Whether the checkpoint was written after this line of metrics.jsonl."""
        return not {"linear_acc1", "val_loss"} & set(line) or float(line["step"]) <= self.judged


def copied(model: nn.Module) -> nn.Module:
    """A deep copy. Tensors of a forward pass, which torch would not copy, are there without their graph."""
    found = [part for module in model.modules() for part in _of_forward(vars(module))]
    return copy.deepcopy(model, {id(x): x.detach().clone() for x in found})


def _of_forward(value: Any) -> list[Tensor]:
    """The tensors within an attribute, list or dict that a forward pass has computed."""
    if isinstance(value, Tensor):
        return [value] if value.grad_fn is not None else []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [x for part in parts for x in _of_forward(part)]


def in_words(values: dict) -> str:
    """'epoch 10  k-NN 61.2 % (58.1–64.2)  linear 64.0 % (61.0–66.9), train 70.1 %', and the validation loss."""
    words = [f"epoch {values['epoch']:g}"]
    if "linear_acc1" in values:
        knn, linear = (percent(values, name) for name in ("knn_acc1", "linear_acc1"))
        words += [f"k-NN {knn}", f"linear {linear}, train {100 * values['linear_train_acc1']:.1f} %"]
    if "val_loss" in values:
        words.append(f"val loss {values['val_loss']:.4g}")
        words += [f"val acc{k} {100 * values[f'val_acc{k}']:.1f} %" for k in (1, 5) if f"val_acc{k}" in values]
    return "  ".join(words)
