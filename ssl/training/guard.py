"""Steps whose loss or gradient is not finite: left out on all ranks alike, written down, and not endured in a row.

The device decides whether a step counts; the host, which would have to wait for it, reads the
decisions at log steps only. Ranks need no message of their own to agree: what is not finite on one
is so in the gradient that DDP has summed, hence on all.
"""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ssl.distributed import gather_objects, is_main, world_size
from ssl.files import json_lines, write_text

LISTED = 100  # so many bad steps are written down with the names of their images


class Guard:
    """Around every step: `begin`, then backward of `scale` · loss, then `judge`; at log steps `read`.

    The model's buffers (running statistics, which a bad forward pass spoils before anybody can
    know) become parts of one tensor a dtype, so that those of a bad step can be put back.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self.buffers = _together(model)
        self.before = [buffer.clone() for buffer in self.buffers]
        self.record: list[Tensor] = []  # a step each, since the last `read`: was it bad; was the loss, on this rank
        self.row = self.total = 0  # bad steps in a row, up to the last that was read; and in all
        self.left_out = 0  # steps that did not count, those too by which a scaler tries things out

    def begin(self) -> None:
        """A step begins."""
        for before, buffer in zip(self.before, self.buffers):
            before.copy_(buffer)

    def undo(self) -> None:
        """Running statistics as they were when the step began."""
        for before, buffer in zip(self.before, self.buffers):
            buffer.copy_(before)

    def scale(self, loss: Tensor) -> Tensor:
        """1, or NaN where the loss is not finite: whatever its gradient would be, it is then NaN, too."""
        return torch.where(loss.detach().isfinite(), 1.0, torch.nan)

    @torch.no_grad()
    def judge(self, loss: Tensor, norm: Tensor) -> None:
        """`norm`, of the gradient of all ranks, decides whether the step counts; the optimizer leaves it out if not."""
        bad = 1 - norm.isfinite().float()
        for before, buffer in zip(self.before, self.buffers):
            buffer.copy_(torch.where(bad > 0, before, buffer))
        self.record.append(torch.stack([bad, 1 - loss.isfinite().float()]))
        self.optimizer.found_inf = bad

    def stumbling(self) -> bool:
        """Whether the last step was bad. Waits for the device."""
        return bool(self.record[-1][0]) if self.record else self.row > 0

    def read(self, overflow_is_bad: bool = True) -> list[tuple[int, list[int]]]:
        """Bad steps since the last call: (how many steps ago, ranks whose loss was not finite). Waits for the device.

        All ranks call it at the same step. Where a float16 scaler tries out how large a gradient
        may get, `overflow_is_bad` is False: a gradient alone is then no fault.
        """
        bad, lost = self._recorded().tolist()
        everyone = gather_objects(lost) if any(bad) else []  # any(bad) is the same on all ranks
        steps, found = len(self.record), []
        self.left_out += int(sum(bad))
        self.record = []
        for i in range(steps):
            ranks = [rank for rank, losses in enumerate(everyone) if losses[i]]
            fault = bool(bad[i]) and (overflow_is_bad or bool(ranks))
            self.row = self.row + 1 if fault else 0
            self.total += fault
            if fault:
                found.append((steps - 1 - i, ranks))
        return found

    def _recorded(self) -> Tensor:
        return torch.stack(self.record, 1) if self.record else torch.zeros(2, 0)

    def state_dict(self) -> dict:
        return {"record": self._recorded(), "row": self.row, "total": self.total, "left_out": self.left_out}

    def load_state_dict(self, state: dict) -> None:
        self.record = list(state["record"].to(self.before[0].device if self.before else "cpu").unbind(1))
        self.row, self.total, self.left_out = state["row"], state["total"], state.get("left_out", 0)


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """The norm of all gradients together, on the device: not finite if one of their values is not."""
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return torch.stack(torch._foreach_norm(grads)).norm()


def _together(model: nn.Module) -> list[Tensor]:
    """Make all buffers views of one tensor for each dtype; return these."""
    buffers: dict[int, Tensor] = {id(buffer): buffer for buffer in model.buffers()}
    views, whole = {}, []
    for dtype in {buffer.dtype: None for buffer in buffers.values()}:
        own = {key: buffer for key, buffer in buffers.items() if buffer.dtype == dtype}
        room = [-(-buffer.numel() // 64) * 64 for buffer in own.values()]  # kernels like aligned beginnings
        flat = next(iter(own.values())).new_zeros(sum(room))
        for (key, buffer), part in zip(own.items(), flat.split(room)):
            views[key] = part[: buffer.numel()].view(buffer.shape).copy_(buffer)
        whole.append(flat)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = views[id(buffer)]
    return whole


# What went wrong ----------------------------------------------------------------------


def first_fault(model: nn.Module, parts: Callable[[], dict], compute: Callable[[], Tensor]) -> str:
    """Which rank, and what on it, is the first to be not finite when the loss is computed once more; '' if none is.

    `compute()` runs `model` on this rank's batch and returns the loss, whose terms `parts()` then
    names. All ranks call it. A bad step has changed no weight, so what spoilt it spoils it again.
    """
    found: list[tuple[int, str]] = []
    place = 0

    def look(name: str):
        def hook(module, inputs, output) -> None:
            nonlocal place
            place += 1
            if not _finite(inputs):
                found.append((2 * place, f"what goes into {name}"))
            if not _finite(output):
                found.append((2 * place + 1, f"what {name} makes of it"))

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    hooks = [module.register_forward_hook(look(name)) for name, module in leaves]
    loss = compute()
    for hook in hooks:
        hook.remove()
    found += [(1 << 30, f"the loss's term {name}") for name, value in parts().items() if not _finite(value)]
    found += [] if _finite(loss) else [((1 << 30) + 1, "the loss")]
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    for i, ((name, _), grad) in enumerate(zip(named, grads)):
        if not _finite(grad):
            found.append(((1 << 31) - i, f"the gradient of {name}"))  # backwards, the last come first
    everyone = gather_objects(min(found, default=None))
    first = min((fault for fault in everyone if fault), default=None)
    if first is None:
        return ""
    ranks = [str(rank) for rank, fault in enumerate(everyone) if fault == first]
    whose = f" on rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)}" if world_size() > 1 else ""
    return f"{first[1]}{whose}"


def _finite(value) -> bool:
    """Whether all tensors in a value, perhaps nested, are finite."""
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    return all(map(_finite, value)) if isinstance(value, list | tuple) else True


class BadSteps:
    """bad_steps.jsonl in the folder of a run, a line each. What a continued run meets again is not written twice."""

    def __init__(self, folder: Path):
        self.file = folder / "bad_steps.jsonl"
        self.lines = json_lines(self.file) if is_main() else []
        self.known = {self._key(line) for line in self.lines}

    def write(self, step: int, retries: int, ranks: list[int], names: Callable[[], list[str]]) -> None:
        """`ranks` whose loss was not finite; `names()` of the images of the step. Rank 0 writes, if there is room."""
        line = {"step": step, "retries": retries, "ranks": ranks}
        if not is_main() or self._key(line) in self.known:
            return
        self.known.add(self._key(line))
        self.lines.append(line | ({"images": names()} if len(self.known) <= LISTED else {}))
        with contextlib.suppress(OSError):
            write_text("".join(json.dumps(line) + "\n" for line in self.lines), self.file)

    @staticmethod
    def _key(line: dict) -> str:
        return f"{line.get('step')} {line.get('retries')}"  # a damaged line may hold anything
