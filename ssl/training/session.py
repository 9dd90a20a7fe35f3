"""What every step of a training has around it: data, requests to stop, and the watchdog."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ssl import distributed
from ssl.checkpoints.about import versions
from ssl.checkpoints.run_folder import RunFolder
from ssl.console import say
from ssl.data.bad_images import BadImages
from ssl.data.worker import Batch
from ssl.training import stopping
from ssl.training.watchdog import Watchdog


@dataclass
class Session:
    """Call `read` before and `count` after every step, and `end` once. All ranks call all of it.

    `identity` is what must be the same in a continued run (`resume.find_state`). `asked` says what asked the run to
    stop; None: nothing did.
    """

    settings: Any
    run: RunFolder
    requests: stopping.StopRequests
    bad_images: BadImages
    identity: dict
    asked: str | None = field(default=None, init=False)

    def __post_init__(self):
        self.watchdog = Watchdog(self.settings.timeout_minutes * 60, self.run.failed)

    def read(self, batches: Iterator[Batch], step: int, micro_batches: int = 1) -> list[Batch]:
        """This rank's micro-batches, with which `step` becomes `step` + 1."""
        self.requests.ask(self.run.due(self.settings.save_minutes))
        self.watchdog.beat(step, "reading data")
        read = [next(batches) for _ in range(micro_batches)]
        for batch in read:
            self.bad_images.note(batch.bad)
        self.watchdog.beat(step, "computing")
        return read

    def count(self, step: int) -> None:
        """`step` steps are made. All ranks now know of a stop request that came before the last of them began."""
        self.run.step = step
        self.asked = self.requests.answer()

    def end(self, place: str = "") -> None:
        """Write how the run ended. If it was asked to stop, the process ends here, at `place` of the run."""
        self.watchdog.rest()
        distributed.leave()
        self.run.end("preempted" if self.asked else "finished", self.asked or "")
        if self.asked:
            say(f"\nstopped by {self.asked} at {place}, saved; the same command continues")
            stopping.leave_preempted()

    def about(self) -> dict:
        """What a checkpoint holds besides the state of the training."""
        return {
            "bad_images": self.bad_images.known | self.bad_images.met,
            "settings": dataclasses.asdict(self.settings),
            "identity": self.identity,
            "versions": versions(),
        }
