"""A run that stands still is ended, with the name of the rank that it waits for.

Collectives wait for the slowest; when a rank hangs, all others wait, and a time-out inside a
collective cannot say for whom. So every rank writes where it is into the store the ranks share, a
thread a rank, and who stands still for too long reads what the others wrote.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

import torch.distributed as dist

from ssl.distributed import rank, world_size
from ssl.errors import tell

PHASES = ("starting", "evaluating", "reading data", "computing")  # in the order in which they come at a step


class Watchdog:
    """Call `beat` at least every `timeout` seconds, from the first step on, and `rest` when that ends.

    With several ranks the process is ended (status 1) when it is not called, after one rank that
    lives has said which rank is missing and `on_hang` was called with these words; one process
    alone, which may be in a debugger, is only told, with the place where it stands.
    """

    def __init__(self, timeout: float, on_hang: Callable[[str], None]):
        self.timeout, self.on_hang = timeout, on_hang
        self.step, self.doing, self.since = 0, PHASES[0], None
        self.period = min(5.0, timeout / 20)  # all is said before the collectives themselves give up
        self.store = dist.PrefixStore("watchdog", _shared_store()) if world_size() > 1 else None
        self.resting = threading.Event()
        if self.store is not None:
            threading.Thread(target=self._give_signs, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()

    def beat(self, step: int, doing: str) -> None:
        """This rank is at `step` and begins with `doing`, one of PHASES."""
        self.step, self.doing, self.since = step, doing, time.monotonic()

    def pause(self) -> None:
        """Nothing is expected until the next `beat`."""
        self.since = None

    def rest(self) -> None:
        self.resting.set()

    def _give_signs(self) -> None:
        signs = 0
        while not self.resting.wait(self.period / 2):
            signs += 1
            try:
                self.store.set(str(rank()), json.dumps([signs, self.step, self.doing]))
            except RuntimeError:
                return  # the store's process has gone, and with it the run

    def _watch(self) -> None:
        while not self.resting.wait(self.period):
            if self.since is not None and time.monotonic() - self.since > self.timeout:
                self._speak()

    def _speak(self) -> None:
        since = self.since
        if self.store is None:
            tell(f"no progress for {self.timeout:.0f} s: step {self.step}, {self.doing}; it stands here:\n{_stacks()}")
            self.since = None
            return
        try:
            words, speaker = self._diagnosis()
        except RuntimeError as error:
            words, speaker = f"the other ranks cannot be asked ({error})", rank()
        if self.resting.is_set() or self.since != since:
            return  # it goes on after all
        if rank() == speaker:
            words = f"no progress for {self.timeout:.0f} s: {words}"
            threading.Timer(10, os._exit, [1]).start()  # what hangs may be the disk that is written to now
            tell(f"{words}\nrank {rank()} stands here:\n{_stacks()}")
            self.on_hang(words)
        else:
            time.sleep(2 * self.period)
        os._exit(1)

    def _diagnosis(self) -> tuple[str, int]:
        """Which ranks are waited for, in words, and which of those that wait is to say so."""
        before = self._read()
        self.resting.wait(2.5 * self.period)
        after = self._read()
        silent = [r for r in after if after[r] is None or after[r] == before[r]]
        places = {r: (said[1], PHASES.index(said[2])) for r, said in after.items() if r not in silent}
        last = max(places.values())
        late = [r for r in places if places[r] < last]
        words = [f"rank {r} gives no sign of life" + (f" since {_where(after[r])}" if after[r] else "") for r in silent]
        words += [f"rank {r} is still at {_where(after[r])}" for r in late]
        step, phase = last
        words.append(f"{'the others wait' if words else 'all ranks stand'} at step {step}, {PHASES[phase]}")
        return "; ".join(words), min(r for r in places if places[r] == last)

    def _read(self) -> dict[int, list | None]:
        keys = [str(r) for r in range(world_size())]
        return {int(key): json.loads(self.store.get(key)) if self.store.check([key]) else None for key in keys}


def _where(said: list) -> str:
    return f"step {said[1]}, {said[2]}"


def _stacks() -> str:
    """Where every other thread is, the innermost call first. Reads no source: the disk may be what hangs."""
    names, lines = {thread.ident: thread.name for thread in threading.enumerate()}, []
    for number, frame in sys._current_frames().items():
        if number != threading.get_ident():
            lines.append(f"thread {names.get(number, number)}")
            calls = traceback.walk_stack(frame)
            lines += [f"  {call.f_code.co_filename}, line {line}, in {call.f_code.co_name}" for call, line in calls]
    return "\n".join(lines)


def _shared_store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()
