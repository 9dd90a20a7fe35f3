"""Write what train.py logs: metrics.jsonl, the progress bar, the lists of bad steps and bad images."""

import contextlib
import time
from collections.abc import Iterator

from torch import Tensor

from ssl.checkpoints.run_folder import RunFolder
from ssl.console import Progress
from ssl.data.bad_images import BadImages
from ssl.data.images import Images
from ssl.data.order import Order
from ssl.training.bad_steps import BadSteps
from ssl.training.log import Metrics
from ssl.training.state import TrainState


class TrainingLog:
    """Call `open`, `write` at the log steps, and `close`.

    `data` and `order` give the names of the images of a step. `last` is the step at which the run ends.
    """

    def __init__(self, run: RunFolder, data: Images, order: Order, last: int, bad_images: BadImages):
        self.run, self.data, self.order, self.last, self.bad_images = run, data, order, last, bad_images
        self.bad_steps = BadSteps(run.folder)
        self.progress: Progress | None = None

    def open(self, state: TrainState) -> None:
        """Continue the files at `state`. Lines of later steps are dropped."""
        self.metrics = Metrics(self.run.folder / "metrics.jsonl", state.step, state.judge.reached)
        state.health.open(self.run.folder, state.step)
        self.progress = self.progress or Progress(self.last, state.step)
        self._start_clock(state.step, time.monotonic())

    def close(self, state: TrainState) -> None:
        self.metrics.close()
        state.health.close()

    # Time -------------------------------------------------------------------------------

    def _start_clock(self, step: int, now: float) -> None:
        """Measure speed and waiting from here on."""
        self.since, self.since_step, self.waited = now, step, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The time within is spent waiting for data."""
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The time within is not training, and does not count in the speed."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.since += time.monotonic() - began

    def data_wait(self, now: float | None = None) -> float:
        """The share, 0..1, of the time since the last line that was spent waiting for data."""
        return self.waited / ((now or time.monotonic()) - self.since)

    # Lines ------------------------------------------------------------------------------

    def write(self, state: TrainState, loss: Tensor, parts: dict[str, Tensor]) -> None:
        """A line on the step that `state` has reached. Waits for the device. All ranks call it."""
        value, now = loss.item(), time.monotonic()
        rate = (state.step - self.since_step) * self.order.global_batch / (now - self.since)
        lrs = {f"lr_{group['name']}": group["lr"] for group in state.optimizer.param_groups}
        epoch = state.step / self.order.steps_per_epoch
        bad_images = self.write_bad(state)
        bad_steps = state.guard.total
        self.metrics.write(
            epoch=round(epoch, 4),
            step=state.step,
            loss=value,
            **{name: part.item() for name, part in parts.items()},
            **lrs,
            samples_per_second=rate,
            data_wait=self.data_wait(now),
            bad_images=bad_images,
            bad_steps=bad_steps,
        )
        note = f"loss {value:.4g}  lr {lrs['lr_weights']:.3g}  {rate:.0f} samples/s  epoch {epoch:.1f}"
        note += f"  bad images {bad_images}" if bad_images else ""
        note += f"  bad steps {bad_steps}" if bad_steps else ""
        note += state.health.note()
        if self.run.trouble:
            note += f"  NOT SAVED since step {self.run.saved_step}: {self.run.trouble}"
        self.progress.update(state.step, note)
        self._start_clock(state.step, now)

    def write_bad(self, state: TrainState) -> int:
        """List the bad steps and images since the last call; return how many images are bad. All ranks call it.

        Raises `UserError` where too many images are.
        """
        self.write_bad_steps(state)
        return self.bad_images.agree()

    def write_bad_steps(self, state: TrainState) -> None:
        """List the bad steps since the last call. Waits for the device. All ranks call it."""
        # A float16 scaler tries how large a gradient may be: an overflow is then no fault, unless its scale is below 1.
        tries = state.scaler.is_enabled() and state.scaler.get_scale() >= 1
        for ago, ranks in state.guard.read(overflow_is_bad=not tries):
            step = state.step - ago
            self.bad_steps.write(step, state.retries, ranks, lambda at=step - 1: self.order.names(self.data, at))
