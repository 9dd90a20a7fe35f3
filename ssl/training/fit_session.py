"""What the steps of finetune.py have around them: data, requests to stop, the watchdog, and saves."""

from ssl import distributed
from ssl.distributed import is_main
from ssl.training import early_stopping
from ssl.training.fit import Fit
from ssl.training.session import Session


class FitSession(Session):
    """One for all runs of a fine-tuning. All ranks call all of it."""

    def save_if_due(self, fit: Fit) -> None:
        """Save, also in the midst of an epoch: all ranks know whether a save was due when the step began."""
        if self.requests.due and not self.asked:  # else `end_run` saves
            fit.share_loss()
            self.bad_images.agree()
            if is_main():
                self.save(fit)

    def end_run(self, fit: Fit) -> None:
        """Save what this run has reached. If the process was asked to stop, it ends here."""
        if fit.number == self.settings.runs - 1 and early_stopping.finished(fit.history, self.settings):
            self.asked = None  # only the test is left: there is no step left to stop
        fit.share_loss()
        if is_main():
            self.save(fit, wait=True)
        distributed.barrier()
        if self.asked:
            self.end(f"step {fit.step} of run {fit.number + 1}")

    def save(self, fit: Fit, wait: bool = False) -> None:
        """checkpoint.pt of `fit`, and encoder.pt of its best epoch, or of now if no epoch has ended. Rank 0 alone."""
        state = fit.state_dict() | self.about()
        weights = fit.best.get("model", state["model"])
        encoder = {name.removeprefix("encoder."): w for name, w in weights.items() if name.startswith("encoder.")}
        self.run.save(state, encoder, wait)
