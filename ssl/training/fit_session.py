"""What surrounds the steps of a fine-tuning: stop requests, the watchdog, images that cannot be read, and saves."""

import dataclasses
from collections.abc import Iterator

from ssl import distributed
from ssl.checkpoints import run_folder
from ssl.console import say
from ssl.data.bad_images import BadImages
from ssl.data.worker import Batch
from ssl.distributed import is_main
from ssl.training import stopping
from ssl.training.fit import Fit
from ssl.training.watchdog import Watchdog


class FitSession:
    """One for all runs of a fine-tuning. All ranks call all of it.

    `identity` says what makes a checkpoint this fine-tuning's (`resume.find_state`). `asked` says what asked the run to
    stop; None: nothing did.
    """

    def __init__(
        self,
        settings,
        run: run_folder.RunFolder,
        requests: stopping.StopRequests,
        bad_images: BadImages,
        identity: dict,
    ):
        self.settings, self.run, self.requests, self.bad_images = settings, run, requests, bad_images
        self.identity = identity
        self.watchdog = Watchdog(settings.timeout_minutes * 60, run.failed)
        self.asked: str | None = None

    def read(self, batches: Iterator[Batch], fit: Fit) -> Batch:
        """This rank's images of the next step."""
        self.requests.ask()
        self.watchdog.beat(fit.total_step(), "reading data")
        batch = next(batches)
        self.bad_images.note(batch.bad)
        self.watchdog.beat(fit.total_step(), "computing")
        return batch

    def end_step(self, fit: Fit) -> None:
        """Whoever asked to stop before the step began is now known to all ranks."""
        self.run.step = fit.total_step()
        self.asked = self.requests.answer()

    def save_if_due(self, fit: Fit) -> None:
        if is_main() and self.run.due(self.settings.save_minutes):
            self.save(fit)

    def end_run(self, fit: Fit) -> None:
        """Save what this run has reached. If the process was asked to stop, it ends here."""
        fit.share_loss()
        if is_main():
            self.save(fit, wait=True)
        distributed.barrier()
        if self.asked:
            distributed.leave()
            self.run.end("preempted", self.asked)
            say(
                f"\nstopped by {self.asked} at step {fit.step} of run {fit.number + 1}, saved; "
                "the same command continues"
            )
            stopping.leave_preempted()

    def end(self) -> None:
        """All runs have ended."""
        self.watchdog.rest()
        distributed.leave()
        self.run.end("finished", "")

    def save(self, fit: Fit, wait: bool = False) -> None:
        """checkpoint.pt of `fit`, and encoder.pt of its best epoch, or of now if no epoch has ended. Rank 0 alone."""
        state = fit.state_dict() | {
            "bad_images": self.bad_images.known | self.bad_images.met,
            "settings": dataclasses.asdict(self.settings),
            "identity": self.identity,
            "versions": run_folder.versions(),
        }
        weights = fit.best.get("model", state["model"])
        of_encoder = [name for name in weights if name.startswith("encoder.")]
        self.run.save(state, {name.removeprefix("encoder."): weights[name] for name in of_encoder}, wait)
