"""Bytes that a rank sends in a ring, collective by collective."""

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Counted(TorchDispatchMode):
    """Within, `note` hears of every collective that Python begins: the bytes that one of `world` ranks sends for it.

    `pretended`: the other ranks are not there (a fake process group), and each is taken to hold what this one does.
    """

    def __init__(self, world: int, pretended: bool = False):
        super().__init__()
        self.world, self.pretended, self.sent = world, pretended, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            self.note(self.size(func._schema.name.split("::")[1], args))
        return out

    def note(self, size: float) -> None:
        self.sent.append(size)

    def size(self, name: str, args: tuple) -> float:
        if name in ("allgather_", "_allgather_base_"):
            gathered, (own, *_) = tree_leaves(args[0]), tree_leaves(args[1])
            if self.pretended:
                for part in gathered if name == "allgather_" else gathered[0].view(self.world, *own.shape):
                    part.copy_(own)  # rather than uninitialised memory
            return (self.world - 1) / self.world * sum(x.nbytes for x in gathered)
        if name == "allreduce_":
            return self.ring(sum(x.nbytes for x in args[0]))
        if name == "broadcast_":
            return sum(x.nbytes for x in args[0])
        if name == "barrier":
            return 0.0
        raise NotImplementedError(f"traffic.py does not know what {name} sends")

    def ring(self, size: int) -> float:
        """Bytes that a rank sends for an all-reduce of `size` bytes."""
        return 2 * (self.world - 1) / self.world * size
