"""Say before the wait how long a training takes and how much memory it needs; refuse what the machine cannot hold."""

import dataclasses
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ssl import failures
from ssl.console import say
from ssl.data.cores import core_share
from ssl.data.memory import UNKNOWN, free_memory, free_swap, held_memory
from ssl.distributed import gather_objects, world_size
from ssl.errors import UserError
from ssl.training.fit_session import FitSession
from ssl.training.forward import Embed
from ssl.training.step_cost import Cost, Work, costs_of, grown
from ssl.training.train_session import TrainSession

SHORT = 60.0  # seconds: a training that is surely shorter is measured no further
LONG = 12 * 3600.0  # seconds of a training on a CPU from which on smaller settings are advised


def tell(work: Work, steps: int, may_end_early: bool = False) -> float:
    """Print how long `steps` steps take and how much memory they need. All ranks call it; no state changes.

    Returns the seconds of a step, 0 where no step is left. Raises `UserError`, on all ranks, if a CPU's memory cannot
    hold them.
    """
    if steps <= 0:
        return 0.0
    machine = Machine.smallest()
    work = dataclasses.replace(work, workers=min(gather_objects(work.workers)))  # nodes may differ
    costs = _costs(work, steps, machine)
    whole = grown(costs, work.order.batch_size)
    took = step_seconds(work, whole, machine)
    where = f"this {'CPU' if work.on_cpu else 'GPU'}" if world_size() == 1 else f"these {world_size()} processes"
    short = steps * took < SHORT
    speed = "" if short else f" ({work.order.global_batch / took:.3g} samples/s)"
    most = "at most " if may_end_early and not short else ""
    say(f"estimate    {most}{duration(steps * took)} on {where}{speed}, {memory_words(work, whole, machine)}")
    if work.on_cpu:
        require_memory(work, costs, machine)
    if work.on_cpu and steps * took > LONG:
        say("            long for a CPU: a smaller encoder or --image_size takes less")
    return took


def tell_pretraining(session: TrainSession, embed: Embed, workers: int, steps: int) -> None:
    """`tell` for train.py."""
    state, log, settings = session.state, session.log, session.settings
    of_model = state.model, state.optimizer, embed.pixels, partial(embed.outputs, net=state.model)
    tell(Work(*of_model, log.data, embed.views, log.order, workers, settings.accumulate_mode), steps)


def tell_fine_tuning(
    session: FitSession, model: nn.Module, optimizer: torch.optim.Optimizer, embed: Embed, trial: Any, steps: int
) -> None:
    """`tell` for finetune.py. `trial` has the images, `train`, and their `order`."""
    of_model = model, optimizer, embed.pixels, lambda views: [model(*views)]
    work = Work(*of_model, trial.train, embed.views, trial.order, session.settings.workers)
    tell(work, steps, may_end_early=True)


@dataclass(frozen=True)
class Machine:
    """What the processes of one machine may use."""

    free: int  # bytes of memory, before the first step
    whose: str  # limit that is: of the machine or of the job
    processes: int  # of this training
    cores: int  # of each process
    threads: int  # of each process

    @classmethod
    def smallest(cls) -> "Machine":
        """The machine with the least free memory, the same on all ranks. All ranks call it."""
        processes = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
        return cls(*min(gather_objects((*free_memory(), processes, core_share(), torch.get_num_threads()))))


def _costs(work: Work, steps: int, machine: Machine) -> list[Cost]:
    def enough(costs: list[Cost]) -> bool:
        whole = grown(costs, work.order.batch_size)
        return steps * step_seconds(work, whole, machine) < SHORT and room(whole)

    def room(cost: Cost) -> bool:
        return needed(work, cost, machine)[1] < machine.free / 2

    return costs_of(work, enough, room)


# Time -------------------------------------------------------------------------------


def step_seconds(work: Work, cost: Cost, machine: Machine) -> float:
    """Seconds of a step whose micro-batches have this cost.

    Loader workers read while the model computes. On a CPU they share its cores.
    """
    twice = work.order.accumulate > 1 and work.accumulate_mode == "exact"
    compute = cost.forward * (2 if twice else 1) + cost.backward
    if work.workers == 0 or work.data.resident is not None:
        micro = compute + cost.read
    elif work.on_cpu:
        busy = machine.threads * compute + cost.read  # core seconds
        micro = max(compute, cost.read / work.workers, busy / machine.cores)
    else:
        micro = max(compute, cost.read / min(work.workers, machine.cores))
    return work.order.accumulate * micro + cost.optimizer


def duration(seconds: float) -> str:
    """'about 3.2 h'."""
    if seconds < SHORT:
        return "under a minute"
    if seconds < 90:
        return "about a minute"
    limits = ((60, "minutes"), (3600, "h"), (86400, "days"))
    length, unit = next((limit for limit in limits if seconds < 100 * limit[0]), limits[-1])
    digits = 1 if seconds < 10 * length and unit != "minutes" else 0
    return f"about {seconds / length:.{digits}f} {unit}"


# Memory -----------------------------------------------------------------------------


def memory_words(work: Work, cost: Cost, machine: Machine) -> str:
    """'18 of 17 GB memory': what this machine's processes need of all that they may have."""
    if not work.on_cpu:
        return f"{gigabytes(cost.peak)} of {gigabytes(torch.cuda.mem_get_info()[1])} GB GPU memory"
    held = held_memory(machine.processes)
    most = "" if machine.free == UNKNOWN else f" of {gigabytes(held + machine.free)}"
    return f"{gigabytes(held + needed(work, cost, machine)[1])}{most} GB memory"


def needed(work: Work, cost: Cost, machine: Machine) -> tuple[int, int]:
    """Bytes that the processes of this machine need besides what they hold: (at least, probably).

    At least: at the end of a forward pass there is what autograd keeps, and the optimizer's state. Probably: also
    gradients, one more of the largest while it is added up, batches that are read, and a copy for a checkpoint.
    """
    weights = sum(x.nbytes for x in work.model.state_dict().values())
    gradients = [p.nbytes for p in work.model.parameters() if p.requires_grad]
    batches = work.order.accumulate + 2 * work.workers
    least = cost.kept + cost.state
    probably = least + sum(gradients) + max(gradients) + batches * cost.pixels
    return round(machine.processes * least), round(machine.processes * probably + weights + cost.state)


def require_memory(work: Work, costs: list[Cost], machine: Machine) -> None:
    """Raise `UserError` if a step surely needs more than all free memory; say so if it probably does."""
    least, probably = needed(work, grown(costs, work.order.batch_size), machine)
    if probably <= machine.free:
        return

    def fits(images: int) -> None:
        if needed(work, grown(costs, images), machine)[1] > machine.free:
            raise MemoryError

    advice = "pass a smaller --batch_size or --image_size"
    if work.accumulate_mode:
        advice = failures.batch_that_fits(fits, work.order.batch_size, work.order.accumulate)
    if least > machine.free + free_swap():
        raise UserError(
            f"memory: steps of batch_size {work.order.batch_size} need {gigabytes(probably)} GB more than is held "
            f"already, and {machine.whose} has {gigabytes(machine.free)} GB free: {advice}"
        )
    say(f"*** memory may run out: {advice} ***")


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.{0 if count >= 1e10 else 1}f}"
