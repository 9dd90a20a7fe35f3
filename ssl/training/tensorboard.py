"""Write the numbers that a run logs, and its views, for TensorBoard where it is installed.

If that fails, as on a full disk, the run says so once and continues without.
"""

import sys
from pathlib import Path
from types import ModuleType

from ssl.console import say
from ssl.data.decode import decode


class Board:
    """The event file of this process in a run folder, opened with the first number.

    The run continues at `step`: TensorBoard hides what an earlier process wrote for later steps.
    """

    def __init__(self, folder: Path, step: int):
        self.folder, self.step, self.writer, self.broken = folder, step, None, False

    def scalars(self, step: int, values: dict) -> None:
        numbers = {
            name: value
            for name, value in values.items()
            if isinstance(value, (int, float)) and name not in ("step", "epoch")
        }
        if self.broken or not numbers:  # an event file without numbers would hide the one before it
            return
        try:
            if self.writer is None:
                self.writer = self._open()
            for name, value in numbers.items():
                self.writer.add_scalar(name, value, step)
        except ImportError:
            self.broken = True
        except Exception as error:  # of any kind: a log must not stop a run
            self._give_up(error)

    def close(self) -> None:
        if self.writer is None or self.broken:
            return
        try:
            self.writer.close()
        except Exception as error:
            self._give_up(error)

    def _open(self):
        # Without this module TensorBoard imports TensorFlow, if installed: that takes seconds and prints many lines.
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step + 1)
        views = self.folder / "views.png"
        if views.is_file():
            writer.add_image("views", decode(views), 0)
        return writer

    def _give_up(self, error: Exception) -> None:
        self.broken = True
        say(f"*** TensorBoard: no more events ({type(error).__name__}: {error}); metrics.jsonl goes on ***")
