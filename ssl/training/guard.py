"""A step whose loss or gradient is not finite changes nothing, on any rank.

The device decides whether a step counts. The host would have to wait for the device, so it reads the decisions at log
steps only. Ranks send no message to agree: DDP sums the gradients, so what is not finite on one rank is not finite in
the sum that all ranks get.
"""

import torch
from torch import Tensor, nn

from ssl.distributed import gather_objects


class Guard:
    """Around every step: `begin`, then backward of `scale(loss) * loss`, then `mark`; at log steps `read`.

    A bad forward pass has changed the running statistics before its loss is known. So the guard keeps a copy of all
    buffers and puts them back. For that it makes the buffers of `model` parts of one tensor per dtype.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self.buffers = _join_buffers(model)
        self.before = [buffer.clone() for buffer in self.buffers]
        self.record: list[Tensor] = []  # of each step since the last `read`: is it bad, is the loss bad on this rank
        self.last_bad = False  # the last step that was read changed nothing
        self.bad_in_a_row = 0  # bad steps in a row, up to the last step that was read
        self.total = 0  # bad steps in all
        self.left_out = 0  # steps that changed nothing; these include the overflows of a float16 scaler

    def begin(self) -> None:
        """A step begins: remember the buffers."""
        for before, buffer in zip(self.before, self.buffers):
            before.copy_(buffer)

    def undo(self) -> None:
        """Put the buffers back as they were when the step began."""
        for before, buffer in zip(self.before, self.buffers):
            buffer.copy_(before)

    def scale(self, loss: Tensor) -> Tensor:
        """1, or NaN if the loss is not finite. The gradient of a loss times NaN is NaN, whatever it was before."""
        return torch.where(loss.detach().isfinite(), 1.0, torch.nan)

    @torch.no_grad()
    def mark(self, loss: Tensor, norm: Tensor) -> None:
        """The step counts if `norm`, of the gradient of all ranks, is finite.

        If it does not count, the buffers are put back, and the next `optimizer.step()` changes nothing.
        """
        bad = 1 - norm.isfinite().float()
        for before, buffer in zip(self.before, self.buffers):
            buffer.copy_(torch.where(bad > 0, before, buffer))
        self.record.append(torch.stack([bad, 1 - loss.isfinite().float()]))
        self.optimizer.found_inf = bad

    def last_step_was_bad(self) -> bool:
        """Whether the last step changed nothing, also by an overflow of a float16 scaler. Waits for the device."""
        return bool(self.record[-1][0]) if self.record else self.last_bad

    def read(self, overflow_is_bad: bool = True) -> list[tuple[int, list[int]]]:
        """The bad steps since the last call: (how many steps ago, ranks whose loss was not finite).

        Waits for the device. All ranks call it at the same step. A float16 scaler tries how large a gradient may be:
        pass `overflow_is_bad=False` then, and a bad gradient of a finite loss is no bad step.
        """
        bad, bad_losses = self._recorded().tolist()
        everyone = gather_objects(bad_losses) if any(bad) else []  # `bad` is the same on all ranks
        steps, found = len(self.record), []
        self.left_out += int(sum(bad))
        self.last_bad = bool(bad[-1]) if bad else self.last_bad
        self.record = []
        for i in range(steps):
            ranks = [rank for rank, bad_losses in enumerate(everyone) if bad_losses[i]]
            fault = bool(bad[i]) and (overflow_is_bad or bool(ranks))
            self.bad_in_a_row = self.bad_in_a_row + 1 if fault else 0
            self.total += fault
            if fault:
                found.append((steps - 1 - i, ranks))
        return found

    def _recorded(self) -> Tensor:
        return torch.stack(self.record, 1) if self.record else torch.zeros(2, 0)

    def state_dict(self) -> dict:
        return {
            "record": self._recorded(),
            "last_bad": self.last_bad,
            "row": self.bad_in_a_row,
            "total": self.total,
            "left_out": self.left_out,
        }

    def load_state_dict(self, state: dict) -> None:
        device = self.optimizer.param_groups[0]["params"][0].device
        self.record = list(state["record"].to(device).unbind(1))
        self.bad_in_a_row, self.total, self.left_out = state["row"], state["total"], state.get("left_out", 0)
        self.last_bad = state.get("last_bad", self.bad_in_a_row > 0)  # older checkpoints do not say


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """The norm of all gradients together, on the device. It is finite only if all their values are."""
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return torch.stack(torch._foreach_norm(grads)).norm()


def _join_buffers(model: nn.Module) -> list[Tensor]:
    """Make all buffers of `model` views of one tensor per dtype. Returns these tensors."""
    buffers: dict[int, Tensor] = {id(buffer): buffer for buffer in model.buffers()}
    views, joined = {}, []
    for dtype in {buffer.dtype: None for buffer in buffers.values()}:
        own = {key: buffer for key, buffer in buffers.items() if buffer.dtype == dtype}
        sizes = [-(-buffer.numel() // 64) * 64 for buffer in own.values()]  # multiples of 64: kernels are faster so
        flat = next(iter(own.values())).new_zeros(sum(sizes))
        for (key, buffer), part in zip(own.items(), flat.split(sizes)):
            # .data: each buffer has its own version for autograd, so one may change while backward needs another.
            views[key] = part[: buffer.numel()].view(buffer.shape).copy_(buffer).data
        joined.append(flat)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = views[id(buffer)]
    return joined
