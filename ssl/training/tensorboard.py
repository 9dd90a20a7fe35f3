"""TensorBoard, where the package is installed: scalars as a run logs them, its views, its features to look at.

Nothing depends on it. Events are written by a thread of TensorBoard's; where that fails, a full
disk for one, the run says so once and goes on without.
"""

from pathlib import Path

from torch import Tensor

MOST = 1000  # features in the projector


class Board:
    """The events of one process for a run folder, opened with the first scalar. `step` is where the run continues:
    what an earlier process wrote beyond it is not shown."""

    def __init__(self, folder: Path, step: int):
        self.folder, self.step, self.writer, self.broken = folder, step, None, False

    def scalars(self, step: int, values: dict) -> None:
        numbers = {
            name: value
            for name, value in values.items()
            if isinstance(value, (int, float)) and name not in ("step", "epoch")
        }
        if self.broken or not numbers:  # a second file of events, without any, would hide the first one's
            return
        try:
            if self.writer is None:
                self.writer = _writer(self.folder / "tensorboard", self.step + 1)
                _images(self.writer, self.folder)
            for name, value in numbers.items():
                self.writer.add_scalar(name, value, step)
        except ImportError:
            self.broken = True
        except Exception as error:  # of whatever kind: it is not what the run is for
            self._give_up(error)

    def close(self) -> None:
        if self.writer is None or self.broken:
            return
        try:
            self.writer.close()
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        from ssl.console import say

        self.broken = True
        say(f"*** TensorBoard: no more events ({type(error).__name__}: {error}); metrics.jsonl goes on ***")


def embedding(folder: Path, features: Tensor, names: list[str]) -> bool:
    """Features (N, F) and the names of their classes for the projector. Returns whether TensorBoard is installed."""
    try:
        # A folder of its own: a TensorBoard that is looking follows the newest file of a folder, and a run may go on.
        writer = _writer(folder / "tensorboard" / "pictures", None)
    except ImportError:
        return False
    writer.add_embedding(features[:MOST], [name or "?" for name in names[:MOST]], tag="test features")
    _images(writer, folder)
    writer.close()
    return True


def _writer(folder: Path, purge_step: int | None):
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step)


def _images(writer, folder: Path) -> None:
    from ssl.data.decode import decode

    for name in ("views", "neighbours", "correlation", "pca", "spectrum"):
        path = folder / f"{name}.png"
        if path.is_file():
            writer.add_image(name, decode(path), 0)
