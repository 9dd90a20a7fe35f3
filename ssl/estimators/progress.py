"""What `fit` shows if `verbose` is set: a bar, and at the end where the time went."""

import contextlib
import time
from collections.abc import Iterator

from tqdm import tqdm

from ssl.console import Progress, counted, say
from ssl.distributed import rank

MUCH = 0.3  # share of the time: if waiting for data takes more, the last line says what to do


class FitProgress:
    """The bar of a fit of the estimator `model` up to step `last`. Rank 0 shows it, if `model.verbose` is set.

    `workers`: how many other processes make the batches; None: not known.
    """

    def __init__(self, model, last: int, workers: int | None):
        self.model, self.last, self.workers = model, last, workers
        self.bar = Progress(last, model.step) if model.verbose and rank() == 0 else None
        self.began, self.first, self.samples = time.monotonic(), model.step, 0
        self.spent = {"waiting for data": 0.0, "validating": 0.0, "in callbacks": 0.0}  # seconds

    @contextlib.contextmanager
    def spending(self, what: str) -> Iterator[None]:
        """The time within is spent on `what`. All other time is spent computing."""
        began = time.monotonic()
        yield
        self.spent[what] += time.monotonic() - began

    def waiting_for(self, batches: Iterator) -> Iterator:
        """The same batches. The time until each of them comes is spent waiting for data."""
        missing = object()
        while True:
            with self.spending("waiting for data"):
                batch = next(batches, missing)
            if batch is missing:
                return
            yield batch

    def count(self, found: dict) -> None:
        """A training step returned `found`."""
        z1 = found.get("z1")  # of all processes; a class that overrides the step may leave it out
        self.samples += 0 if z1 is None else len(z1)

    def move(self) -> None:
        """A step is made: move the bar."""
        if self.bar:
            self.bar.move(self.model.step)

    def read(self) -> None:
        """Show the mean loss of the epoch so far. Call it where the host has just waited for the device."""
        if not self.bar:
            return
        sums, per_epoch = self.model.epoch_sums, self.model.steps_per_epoch
        seconds = time.monotonic() - self.began - self.spent["validating"] - self.spent["in callbacks"]
        note = f"epoch {-(-self.model.step // per_epoch)}/{-(-self.last // per_epoch)}"
        note += f"  loss {float(sums['loss']) / sums['steps']:.4g}"
        note += f"  {self.samples / seconds:.0f} samples/s" if self.samples else ""
        self.bar.update(self.model.step, note)

    def close(self) -> None:
        if self.bar:
            self.bar.close()

    def sum_up(self) -> None:
        """Say how many steps were made in which time, and what took it."""
        steps = self.model.step - self.first
        if not self.bar or not steps:
            return
        seconds = time.monotonic() - self.began
        shares = {what: spent / seconds for what, spent in self.spent.items()}
        shares["computing"] = 1 - sum(shares.values())
        words = ", ".join(f"{share:.0%} {what}" for what, share in shares.items() if share >= 0.005)
        if shares["waiting for data"] > MUCH and self.workers == 0:
            words += "; with num_workers other processes make the batches meanwhile"
        say(f"fit: {counted(steps, 'step')} in {tqdm.format_interval(seconds)}: {words}")
