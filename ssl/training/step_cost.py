"""What a training step costs a process, in seconds and bytes: measured with a few images, told for a whole micro-batch.

A CPU takes steps of 2, 4, 8, ... images for some seconds. A line through the last two gives the whole micro-batch. To
try that one would be wrong: where memory ends, the system kills the process. So memory is counted: autograd keeps
tensors for the backward pass, and at the end of the forward pass all of them are there. A GPU takes the whole
micro-batch: where memory ends, PyTorch raises an error, which `failures.explain` explains.
"""

import contextlib
import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl.augment import View
from ssl.data.images import Images
from ssl.data.loader import training_batches
from ssl.data.order import Order
from ssl.data.worker import Batch
from ssl.distributed import gather_objects
from ssl.training.forward import set_gradients, step_aside, unchanged

ENOUGH = 2.0  # seconds: with two sizes and so much measuring no larger size is tried


@dataclass(frozen=True)
class Work:
    """What one process does in a training.

    `pixels(batch)` makes the views of a batch, and `outputs` the outputs of `model`, without DDP, from these views.
    `order` has the size and number of micro-batches. `accumulate_mode` is the setting of train.py; None: this training
    does not accumulate.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    pixels: Callable[[Batch], list[Tensor]]
    outputs: Callable[[list[Tensor]], Sequence[Tensor]]
    data: Images
    views: list[View]
    order: Order
    workers: int
    accumulate_mode: str | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"

    def read(self, images: int) -> Batch:
        """The first images of the training, read by this process."""
        order = dataclasses.replace(self.order, batch_size=images, accumulate=1)
        return next(training_batches(self.data, self.views, order, 0, 1, workers=0, device=self.device))


@dataclass(frozen=True)
class Cost:
    """What a step with one micro-batch of so many images costs a process."""

    images: int
    read: float = 0.0  # seconds of this process
    forward: float = 0.0  # seconds, with the operations of the views
    backward: float = 0.0  # seconds
    optimizer: float = 0.0  # seconds
    kept: int = 0  # bytes that autograd keeps until the backward pass
    pixels: int = 0  # bytes of the views as they are read
    state: int = 0  # bytes of the optimizer's state
    peak: int = 0  # on a GPU alone: the most bytes that were allocated

    def seconds(self) -> float:
        return self.read + self.forward + self.backward + self.optimizer


def measure(work: Work, images: int) -> Cost:
    """Make a step with `images` images. Afterwards all is as before. All ranks call it.

    The first images of the training are read and become views. The model is shown black ones, as in `rehearse`.
    """
    clock, kept = _Clock(work.on_cpu), Kept(work.model)
    if not work.on_cpu:
        torch.cuda.reset_peak_memory_stats()
    before, state = work.optimizer.state, defaultdict(dict)
    try:
        with unchanged(work.model):
            batch = work.read(images)
            clock.lap()
            black = [torch.zeros_like(x) for x in work.pixels(batch)]
            with kept if work.on_cpu else contextlib.nullcontext():
                loss = sum(z.float().sum() for z in work.outputs(black))
            del black
            clock.lap()
            set_gradients(work.model, loss)
            clock.lap()
            work.optimizer.state = state
            step_aside(work.optimizer)
            clock.lap()
    finally:
        work.model.zero_grad(set_to_none=True)
        work.optimizer.state = before
        vars(work.optimizer).pop("found_inf", None)
        if not work.on_cpu:
            torch.cuda.empty_cache()  # the training begins with memory in one piece
    return Cost(
        images,
        *clock.laps,
        kept=kept.total(),
        pixels=sum(part.nbytes for view in batch.views for part in view),
        state=sum(x.nbytes for values in state.values() for x in values.values() if isinstance(x, Tensor)),
        peak=0 if work.on_cpu else torch.cuda.max_memory_allocated(),
    )


class _Clock:
    """`laps`: seconds between calls of `lap`, the first since the clock was made."""

    def __init__(self, on_cpu: bool):
        self.on_cpu, self.laps = on_cpu, []
        self.began = self._now()

    def _now(self) -> float:
        if not self.on_cpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def lap(self) -> None:
        now = self._now()
        self.laps.append(now - self.began)
        self.began = now


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Within, `sizes` notes the bytes of every memory block that autograd keeps, besides the model's own.

    The tensors may be without numbers, on the device meta. What comes out of the forward pass must be kept meanwhile.
    """

    def __init__(self, model: nn.Module):
        super().__init__(self._note, lambda x: x)
        self.sizes: dict[int, int] = {}  # by the block, which on the device meta has no address
        self.own = {x.untyped_storage()._cdata for x in (*model.parameters(), *model.buffers())}

    def _note(self, x: Tensor) -> Tensor:
        block = x.untyped_storage()
        if block._cdata not in self.own:
            self.sizes[block._cdata] = block.nbytes()
        return x

    def total(self) -> int:
        return sum(self.sizes.values())


def grown(costs: list[Cost], images: int) -> Cost:
    """The cost of `images` images: on the line through the last two of `costs`, or in proportion to the only one.

    Seconds are noisy: their line rises by a quarter to the whole of the last one's seconds per image.
    """
    last = costs[-1]

    def value(name: str) -> float:
        at_last = getattr(last, name)
        rise = per_image = at_last / last.images
        if len(costs) > 1:
            rise = (at_last - getattr(costs[-2], name)) / (last.images - costs[-2].images)
            if isinstance(at_last, float):
                rise = min(max(rise, per_image / 4), per_image)
        return at_last + rise * (images - last.images)

    grow = {name: value(name) for name in ("read", "forward", "backward", "kept", "pixels")}
    return dataclasses.replace(last, images=images, **grow)


def costs_of(work: Work, enough: Callable[[list[Cost]], bool], room: Callable[[Cost], bool]) -> list[Cost]:
    """Costs of growing numbers of images, up to a micro-batch; the same on all ranks: those of the slowest.

    `enough(costs)`: no further ones are needed. `room(cost)`: a step of this cost may be tried.
    """
    most = work.order.batch_size
    if not work.on_cpu:
        measure(work, most)  # CUDA chooses its kernels
        return [_of_all_ranks(measure(work, most))]
    costs: dict[int, Cost] = {}
    for images in _sizes(most):
        known = list(costs.values())
        late = len(known) > 1 and sum(cost.seconds() for cost in known) > ENOUGH
        if known and (late or enough(known) or not room(grown(known, images))):
            break
        if images not in costs or costs[images].seconds() < ENOUGH / 4:
            costs[images] = _of_all_ranks(measure(work, images))
    return list(costs.values())


def _sizes(most: int) -> Iterator[int]:
    """2, 2, 4, 8, ..., most. Two is taken twice: the first step of a process is slower."""
    size = min(2, most)
    yield size
    while size < most:
        yield size
        size *= 2
    yield most


def _of_all_ranks(cost: Cost) -> Cost:
    """The most of everything that any rank has. All ranks call it."""
    return Cost(*map(max, zip(*gather_objects(dataclasses.astuple(cost)))))
