"""The list of images that cannot be read. All ranks agree on it, and it has a limit."""

import contextlib
import json
from pathlib import Path

from ssl.console import say
from ssl.data.images import Images
from ssl.distributed import gather_objects, is_main
from ssl.errors import UserError, one_line
from ssl.files import json_lines, write_text

LEAST = 10  # bad images are always allowed: one damaged file may not stop the training on a small folder


class BadImages:
    """The bad images of a run, and the file bad_images.jsonl in its folder: a line {"path": …, "reason": …} each.

    `known` {path: reason} are those of a run that continues. Ranks meet different bad images. `agree` exchanges them,
    so every rank stops at the same step when more than `max_fraction` of `total` images, and more than 10, are bad.
    """

    def __init__(self, folder: Path, total: int, max_fraction: float, known: dict[str, str]):
        self.file = folder / "bad_images.jsonl"
        self.total, self.max_fraction = total, max_fraction
        self.known = dict(known)
        self.met: dict[str, str] = {}
        self.listed = {}
        for line in json_lines(self.file) if is_main() else []:
            self.listed[str(line.get("path"))] = str(line.get("reason"))
        self.written = len(self.listed)

    @classmethod
    def of(cls, folder: Path, data: Images, max_fraction: float, checkpoint: dict | None) -> "BadImages":
        """Of a run on `data`, which may continue from a checkpoint. Images that were left out of `data` are noted."""
        known = checkpoint["bad_images"] if checkpoint else {}
        made = cls(folder, len(data) + len(data.bad), max_fraction, known)
        made.note(data.bad)
        return made

    def note(self, bad: list[tuple[str, str]]) -> None:
        """Remember (path, reason) pairs that this rank met."""
        self.met.update(bad)

    def agree(self) -> int:
        """The number of bad images that all ranks have met so far. Every rank must call this at the same step.

        Raises `UserError` on all ranks if there are too many.
        """
        everyone = {path: reason for met in gather_objects(self.met) for path, reason in met.items()}
        new = {path: reason for path, reason in sorted(everyone.items()) if path not in self.known}
        self.known |= new
        self.met = {}
        self.listed |= new
        if is_main() and len(self.listed) > self.written:
            self._write()
        check(self.known, self.total, self.max_fraction, f"all are listed in {self.file}")
        return len(self.known)

    def _write(self) -> None:
        """Write the whole list. If the disk is full, the next call writes it."""
        lines = [json.dumps({"path": path, "reason": reason}) + "\n" for path, reason in self.listed.items()]
        with contextlib.suppress(OSError):
            write_text("".join(lines), self.file)
            self.written = len(lines)


def check(bad: dict[str, str], total: int, max_fraction: float, more: str) -> None:
    """Raise `UserError` if more than `max_fraction` of `total` images, and more than 10, are bad."""
    limit = max(LEAST, int(max_fraction * total))
    if len(bad) > limit:
        path, reason = next(iter(bad.items()))
        raise UserError(
            f"{len(bad)} of {total} images cannot be read, more than the {limit} allowed; the first is {path} "
            f"({reason}); {more}. Repair or remove them, or raise --max_bad_fraction"
        )


def tell_left_out(bad: dict[str, str], total: int, max_fraction: float) -> None:
    """Print the images that are not judged, {path: reason}. Raises `UserError` where they are too many (`check`)."""
    check(bad, total, max_fraction, "nothing was judged")
    for path, reason in bad.items():
        say(f"left out    {one_line(f'{path}: {reason}')}")
