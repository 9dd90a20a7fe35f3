"""What the steps of train.py have around them: data, logs, judging, checkpoints, and the way back to one."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from ssl.checkpoints.run_folder import DIVERGED
from ssl.console import say
from ssl.data.worker import Batch
from ssl.distributed import is_main
from ssl.errors import UserError
from ssl.evaluation.inference import NotFinite
from ssl.training.diverged import Diverged
from ssl.training.session import Session
from ssl.training.state import CHECKPOINT, TrainState
from ssl.training.training_log import TrainingLog


class Asked(Exception):
    """The run was asked to stop while it judged."""


@dataclass(kw_only=True)
class TrainSession(Session):
    """Call `begin` once, `open`, the steps, `close`, and `end`. After `go_back`, call `open` again.

    `feed(step)` yields this rank's micro-batches from a step on. All ranks call all of it.
    """

    state: TrainState
    feed: Callable[[int], Iterator[Batch]]
    log: TrainingLog

    def begin(self, before: dict | None) -> None:
        """Continue from the checkpoint `before`. Without one, save the state as it is: the run can go back to it."""
        if before is not None:
            self._load(before)
        if is_main() and self.run.saved_step is None:
            self.save()

    def open(self) -> None:
        """Begin to read data and to write logs, at the step of the state."""
        self.batches = self.feed(self.state.step)
        self.log.open(self.state)

    def close(self) -> None:
        """Save the last step, if it is not saved yet, and close the logs."""
        if self.state.step == self.log.last and not self.state.judge.due(self.state.step):
            self.asked = None  # the run has ended: there is nothing left to stop
        self.watchdog.rest()
        self.batches.close()
        self.log.write_bad(self.state)
        if is_main():
            self.run.settle()
            if self.run.saved_step != self.state.step:
                self.save(wait=True)
        self.log.progress.close()
        self.log.close(self.state)

    # Around a step ----------------------------------------------------------------------

    def is_over(self) -> bool:
        return self.asked is not None or self.state.step >= self.log.last

    def read_step(self) -> list[Batch]:
        """This rank's micro-batches of the next step."""
        with self.log.waiting():
            return self.read(self.batches, self.state.step, self.settings.accumulate)

    def count_step(self) -> None:
        """One step more is made. From here on, all ranks know whether the run was asked to stop."""
        self.state.step += 1
        self.count(self.state.step)
        self.log.progress.move(self.state.step)

    def read_health(self, loss: Tensor, norm: Tensor) -> None:
        """Measure and judge the health of the run, and keep the encoder if it is the best."""
        state, settings = self.state, self.settings
        self.log.write_bad_steps(state)  # so that `left_out` is known up to this step
        epoch = state.step / self.log.order.steps_per_epoch
        best = state.health.read(
            state.step,
            epoch,
            self.log.metrics,
            loss=loss,
            norm=norm,
            skipped=state.guard.left_out,
            data_wait=self.log.data_wait(),
        )
        if best and not (settings.eval_every or state.judge.best):  # labels choose the best encoder, where they can
            self.run.keep_best(state.model.encoder.state_dict(), state.health.best)

    def judge_if_due(self) -> None:
        """Judge the encoder by labels, or by the loss on validation images. A request to stop ends the judging.

        Raises `UserError` where it cannot be judged. After a bad step, features that are not finite are told only: the
        run may yet go back.
        """
        state = self.state
        if self.asked or not state.judge.due(state.step):
            return
        try:
            with contextlib.suppress(Asked), self.log.paused():
                state.judge.judge(state.step, self.log.metrics, self._go_on_judging)
        except NotFinite as error:  # on all ranks; another error may be of one rank alone
            if not state.guard.last_step_was_bad():
                raise
            say(f"*** step {state.step} is not judged: {error} ***")
        if is_main() and not self.asked and self.run.saved_step == state.step:
            self.save()  # the checkpoint of this step does not hold what was found

    def _go_on_judging(self) -> None:
        self.watchdog.beat(self.state.step, "evaluating")
        self.requests.ask()
        self.asked = self.requests.answer()
        if self.asked:
            raise Asked

    # Checkpoints ------------------------------------------------------------------------

    def save(self, wait: bool = False) -> None:
        """Rank 0 alone."""
        state = self.state.state_dict() | {"encoder_best": self.run.best} | self.about()
        self.run.save(state, self.state.model.encoder.state_dict(), wait)

    def save_if_due(self) -> None:
        if is_main() and not self.is_over() and self._save_is_due() and not self.state.guard.last_step_was_bad():
            self.save()

    def _save_is_due(self) -> bool:
        steps, epochs = self.settings.save_steps, self.settings.save_epochs
        every = [steps, epochs and epochs * self.log.order.steps_per_epoch]
        return any(n and self.state.step % n == 0 for n in every) or self.run.due(self.settings.save_minutes)

    def _load(self, before: dict) -> None:
        self.state.load_state_dict(before)
        self.run.best = before.get("encoder_best", {}) if is_main() else {}

    def go_back(self, diverged: Diverged) -> None:
        """Go back to the newest checkpoint, and on from there with learning rates times `retry_lr`.

        One that a stop wrote among the bad steps is taken only where there is no other.

        Raises `UserError` where the run has gone back before, or has no checkpoint.
        """
        slower = f"lr × {self.settings.retry_lr:g}"
        if self.state.retries:
            raise UserError(f"{diverged}, again after going back with {slower}. {DIVERGED}")
        self.batches.close()
        self.log.close(self.state)
        self.run.settle()
        newest = self.run.newest(CHECKPOINT.fits, up_to=self.state.step - self.state.guard.bad_in_a_row)
        if newest is None:
            raise UserError(f"{diverged}, and no checkpoint could be saved. {DIVERGED}")
        self._load(newest)
        self.state.retries = 1
        self.run.step = self.state.step
        say(f"*** {diverged}; going back to step {self.state.step}, with {slower} from there ***")
        if is_main():
            self.save()
