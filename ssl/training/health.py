"""The health of a run, without labels: every so many steps it is measured and judged, and the best encoder chosen.

A reading uses what the step computes anyway: the embeddings that the loss gets, the representations of the last view,
the weights before and after the update. It does not change the training.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from ssl.console import counted, say
from ssl.distributed import gather_rows, is_main, world_size
from ssl.training import feature_spread, health_rules
from ssl.training.log import Metrics

ROWS = 256  # at most so many images of the global batch are measured
DISQUALIFYING_RULES = {"collapse", "dead_representation", "dimensional_collapse", "redundant"}  # then none is the best
CANDIDATES = 20  # times in a run that its encoder may become encoder_best.pt
AUTO = 100  # steps between readings of a long run; a short run has CANDIDATES readings
SCORE = "loss as a share of unrelated views', mean of three readings, lowest"


class Health:
    """Around a step: `begin`, `before_update`, `after_update`, and `read` if `watching` is true then.

    All ranks call all of them at the same steps. `every`: steps between readings; "auto": by the length of the run,
    `total` steps; None: no readings. `warmup`: steps of the warm-up.
    """

    def __init__(
        self,
        every: int | str | None,
        total: int,
        warmup: float,
        encoder: nn.Module,
        criterion: nn.Module,
        optimizer: torch.optim.Optimizer,
    ):
        self.every = min(AUTO, max(1, total // CANDIDATES)) if every == "auto" else every
        self.total, self.warmup, self.optimizer = total, warmup, optimizer
        self.criterion = criterion
        self.watching = False
        self.h: Tensor | None = None
        self.z: list[Tensor] = []
        self.before: list[list[Tensor]] = []
        self.verdicts: Metrics | None = None
        self.load_state_dict({})
        if self.every:
            self._listen(encoder, criterion)

    def _listen(self, encoder: nn.Module, criterion: nn.Module) -> None:
        """Hooks are functions: deepcopy(encoder) copies its hooks, and with a method it would copy this object, too."""

        def keep_representation(module, inputs, output: Tensor) -> None:
            # At every step, also where it is not read: torch.compile then compiles one function, not two.
            if module.training:
                self.h = output.detach()

        def keep_embeddings(module, inputs) -> None:
            if self.watching:
                self.z = [z.detach() for z in inputs if z.is_floating_point()]  # labels are integers

        encoder.register_forward_hook(keep_representation)
        criterion.register_forward_pre_hook(keep_embeddings)

    # What a checkpoint holds ------------------------------------------------------------

    def state_dict(self) -> dict:
        return {
            "readings": self.readings,
            "holding": self.holding,
            "best": self.best,
            "skipped": self.skipped,
            "count": self.count,
        }

    def load_state_dict(self, state: dict) -> None:
        self.readings: list[health_rules.Reading] = list(state.get("readings", []))
        self.holding: dict[str, str] = dict(state.get("holding", {}))  # rule -> words, as they were printed
        self.best: dict | None = state.get("best")
        self.skipped, self.count = state.get("skipped", 0), state.get("count", 0)

    def open(self, folder: Path, step: int) -> None:
        """Write verdicts to health.jsonl in `folder`, after its lines up to `step`; later lines are dropped."""
        self.verdicts = Metrics(folder / "health.jsonl", step) if self.every else None

    def close(self) -> None:
        if self.verdicts:
            self.verdicts.close()

    # Around a step ----------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """The step that will be number `step` begins."""
        self.watching = bool(self.every) and step % self.every == 0

    @torch.no_grad()
    def before_update(self) -> None:
        if self.watching:
            self.before = [[p.detach().clone() for p in group["params"]] for group in self.optimizer.param_groups]

    @torch.no_grad()
    def after_update(self) -> None:
        """Norms of weights and updates, on the device. Frees the copies of the weights."""
        self.norms = []
        for group, before in zip(self.optimizer.param_groups, self.before):
            moved = torch._foreach_sub(group["params"], before)
            self.norms.append([torch.stack(torch._foreach_norm(tensors)).norm() for tensors in (before, moved)])
        self.before = []

    @torch.no_grad()
    def read(
        self, step: int, epoch: float, metrics: Metrics, *, loss: Tensor, norm: Tensor, skipped: int, data_wait: float
    ) -> bool:
        """Measure, write the values to `metrics`, and print what they mean. Waits for the device. All ranks call it.

        `epoch`: epochs done. `norm`: of the gradient. `skipped`: steps left out so far. `data_wait`: share of the time,
        0..1, spent waiting for data. On rank 0, returns whether the encoder is the best so far; elsewhere False.
        """
        self.watching = False  # until the next step begins, networks may run that are not training
        batch = len(self.z[0]) * world_size()
        *z, h = (_some_rows(x) for x in (*self.z, self.h))
        rows, dim = z[0].shape
        self.z = []
        if not is_main():
            return False
        reading = self._weights() | self._loss(loss.item(), batch, dim, len(z))
        reading |= {"gradient_norm": norm.item(), "data_wait": data_wait}
        reading["skipped"] = (skipped - self.skipped) / self.every
        if all(bool(x.isfinite().all()) for x in (*z, h)):
            reading |= feature_spread.geometry(z, h)
        reading = health_rules.finite(reading)
        metrics.write(epoch=round(epoch, 4), step=step, **{f"health_{name}": v for name, v in reading.items()})
        first = self.optimizer.param_groups[0]
        reading |= {
            "rows": rows,
            "dim": dim,
            "warm": float(step > self.warmup),
            "lr_share": first["lr"] / first["base_lr"] if first["base_lr"] else 0.0,
        }
        self.skipped, self.count = skipped, self.count + 1
        self.readings = [*self.readings, reading][-health_rules.MEMORY :]
        self._judge(step)
        return self._is_best(step, epoch)

    def _weights(self) -> health_rules.Reading:
        """The norm of the weights of every group, and the norm of their update as a share of it."""
        reading = {}
        for group, (weight, moved) in zip(self.optimizer.param_groups, self.norms):
            reading[f"weight_norm_{group['name']}"] = weight.item()
            reading[f"update_ratio_{group['name']}"] = (moved / weight.clamp_min(1e-12)).item()
        return reading

    def _loss(self, loss: float, batch: int, dim: int, views: int) -> health_rules.Reading:
        """The loss as a share of the loss of unrelated views; of Barlow Twins also its terms per dimension.

        {} for a loss with other parts: the loss of unrelated views is not known.
        """
        parts = self.criterion.parts
        if "on_diagonal" in parts:
            on, off = (parts[name].item() / dim for name in ("on_diagonal", "off_diagonal"))
            expected = feature_spread.barlow_twins_of_unrelated(batch, dim, self.criterion.lambd)
            return {
                "on_diagonal": on,
                "off_diagonal": off,
                "off_diagonal_of_unrelated": (dim - 1) / (batch - 1),
                "redundancy": feature_spread.redundancy(off, batch, dim),
                "loss_of_unrelated": loss / (expected * self.criterion.loss_scale),
            }
        if "contrastive_acc1" not in parts:
            return {}
        expected = feature_spread.info_nce_of_unrelated(batch, views)
        if self.criterion.base_temperature is not None:
            expected *= self.criterion.temperature / self.criterion.base_temperature
        return {"loss_of_unrelated": loss / expected}

    def _judge(self, step: int) -> None:
        begun, ended = health_rules.judge(self.readings, set(self.holding))
        for name, words in begun:
            self.holding[name] = words
            self._tell(step, name, words)
        for name in ended:
            del self.holding[name]
            self._tell(step, name, "no longer")

    def _tell(self, step: int, rule: str, words: str) -> None:
        say(f"*** health, step {step}: {rule.replace('_', ' ')}: {words} (docs/health.md) ***")
        if self.verdicts:
            self.verdicts.write(step=step, rule=rule, words=words)

    def _is_best(self, step: int, epoch: float) -> bool:
        """The run is cut into equal parts: the first reading of each can be the best. If it has collapsed, none can."""
        scores = [reading.get("loss_of_unrelated", math.nan) for reading in self.readings]
        new_part = self._part(step) > self._part(step - self.every)
        if not new_part or len(scores) < health_rules.MEMORY or DISQUALIFYING_RULES & set(self.holding):
            return False
        score = sum(scores) / len(scores)
        if not score < (self.best["value"] if self.best else math.inf):
            return False
        self.best = {"step": step, "epoch": round(epoch, 4), "chosen_by": SCORE, "value": score}
        return True

    def _part(self, step: int) -> int:
        """Which of the CANDIDATES equal parts of the run a step is in, from 0 on."""
        return step * CANDIDATES // self.total

    # For the bar and the last lines -------------------------------------------------------

    def note(self) -> str:
        return f"  health: {', '.join(self.holding).replace('_', ' ')}" if self.holding else ""

    def sum_up(self) -> None:
        """Print the last lines of a run."""
        if self.every:
            found = f"{counted(len(self.holding), 'thing')} wrong" if self.holding else "nothing wrong"
            if not self.holding and self.count < health_rules.MEMORY:
                found = "too few readings to judge"
            say(f"health      {found} ({counted(self.count, 'reading')}; docs/health.md)")
            for name, words in self.holding.items():
                say(f"            {name.replace('_', ' ')}: {words}")


def _some_rows(x: Tensor) -> Tensor:
    """The first rows of every rank's x (n, ...), on all ranks: together at most ROWS, at least one per rank."""
    mine = x.flatten(1)[: max(1, ROWS // world_size())]
    return gather_rows(mine, [len(mine)] * world_size())
