"""Write bad_steps.jsonl, the list of the bad steps of a run."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from ssl.distributed import is_main
from ssl.files import json_lines, write_text

NAMED = 100  # the first so many bad steps are listed with the names of their images


class BadSteps:
    """One line for each bad step. A continued run does not list a step again. Only rank 0 writes."""

    def __init__(self, folder: Path):
        self.file = folder / "bad_steps.jsonl"
        self.lines = json_lines(self.file) if is_main() else []
        self.known = {self._key(line) for line in self.lines}

    def write(self, step: int, retries: int, ranks: list[int], names: Callable[[], list[str]]) -> None:
        """`ranks`: those whose loss was not finite. `names()`: the images of the step. A full disk is ignored."""
        line = {"step": step, "retries": retries, "ranks": ranks}
        if not is_main() or self._key(line) in self.known:
            return
        self.known.add(self._key(line))
        self.lines.append(line | ({"images": names()} if len(self.known) <= NAMED else {}))
        with contextlib.suppress(OSError):
            write_text("".join(json.dumps(line) + "\n" for line in self.lines), self.file)

    @staticmethod
    def _key(line: dict) -> str:
        return f"{line.get('step')} {line.get('retries')}"  # a damaged line may hold anything
