"""A run that hangs is ended, and the rank that it waits for is named.

When one rank hangs, all others wait for it in a collective, and a time-out inside a collective cannot say which rank it
is. So a thread of every rank writes where the rank is into the store that ranks share. A rank that has waited too long
reads there what the others wrote.
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

PHASES = ("starting", "evaluating", "reading data", "computing")  # in the order of a step


class Watchdog:
    """Call `beat` at least every `timeout` seconds, from the first step on, and `rest` at the end.

    If `beat` is not called in time, every process of several ends with status 1. Before that, one of the ranks that
    wait prints which rank hangs, and calls `on_hang` with these words. A single process may be in a debugger: it prints
    where it is, and goes on.
    """

    def __init__(self, timeout: float, on_hang: Callable[[str], None]):
        self.timeout, self.on_hang = timeout, on_hang
        self.step, self.doing, self.since = 0, PHASES[0], None
        self.period = min(5.0, timeout / 20)  # so short that the report comes before the collectives give up
        self.store = dist.PrefixStore("watchdog", _shared_store()) if world_size() > 1 else None
        self.resting = threading.Event()
        if self.store is not None:
            threading.Thread(target=self._heartbeat, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()

    def beat(self, step: int, doing: str) -> None:
        """This rank is at `step` and begins with `doing`, one of PHASES."""
        self.step, self.doing, self.since = step, doing, time.monotonic()

    def pause(self) -> None:
        """Nothing is expected until the next `beat`."""
        self.since = None

    def rest(self) -> None:
        self.resting.set()

    def _heartbeat(self) -> None:
        beats = 0
        while not self.resting.wait(self.period / 2):
            beats += 1
            try:
                self.store.set(str(rank()), json.dumps([beats, self.step, self.doing]))
            except RuntimeError:
                return  # the process of the store has ended, and the run with it

    def _watch(self) -> None:
        while not self.resting.wait(self.period):
            if self.since is not None and time.monotonic() - self.since > self.timeout:
                self._report_hang()

    def _report_hang(self) -> None:
        since = self.since
        if self.store is None:
            tell(f"no progress for {self.timeout:.0f} s: step {self.step}, {self.doing}; it stands here:\n{_stacks()}")
            self.since = None
            return
        try:
            words, reporter = self._diagnosis()
        except RuntimeError as error:
            words, reporter = f"the other ranks cannot be asked ({error})", rank()
        if self.resting.is_set() or self.since != since:
            return  # the run goes on after all
        if rank() == reporter:
            words = f"no progress for {self.timeout:.0f} s: {words}"
            threading.Timer(10, os._exit, [1]).start()  # the disk may hang, too, and block the next lines
            tell(f"{words}\nrank {rank()} stands here:\n{_stacks()}")
            self.on_hang(words)
        else:
            time.sleep(2 * self.period)
        os._exit(1)

    def _diagnosis(self) -> tuple[str, int]:
        """In words, which ranks hang; and which of the ranks that wait for them is to print it."""
        before = self._read()
        self.resting.wait(2.5 * self.period)
        self.store.set(str(rank()), json.dumps([time.monotonic(), self.step, self.doing]))  # its heartbeat may be late
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
    """The stacks of all other threads, the innermost call first. Reads no source files: the disk may hang."""
    names, lines = {thread.ident: thread.name for thread in threading.enumerate()}, []
    for number, frame in sys._current_frames().items():
        if number != threading.get_ident():
            lines.append(f"thread {names.get(number, number)}")
            calls = traceback.walk_stack(frame)
            lines += [f"  {call.f_code.co_filename}, line {line}, in {call.f_code.co_name}" for call, line in calls]
    return "\n".join(lines)


def _shared_store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()
