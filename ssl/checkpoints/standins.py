"""Files that name classes which are not here: read with stand-ins for these, and none of their code is run.

A checkpoint of Lightning or of an older project holds more than weights: an `argparse.Namespace`, a function of its
repository, numpy's numbers. The weights can be read without any of it. Every name that tensors do not need becomes a
`StandIn`, whatever it is; nothing is imported, and no method of what stands in the file is called.
"""

import pickle
import types
from collections import OrderedDict
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

DEEPEST = 100  # modules in modules
MOST_MODULES = 100_000


def _tensor(storage, offset, size, stride, *_) -> Tensor:
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


def _tensor_of(storage, offset, size, stride, requires_grad, hooks, dtype, *_) -> Tensor:
    return torch._utils._rebuild_tensor_v3(storage, offset, size, stride, False, OrderedDict(), dtype)


def _parameter(tensor, *_) -> Tensor:
    return tensor


# All that is ever called. It makes tensors, and containers of what stands in the file.
CALLED = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
# What else tensors name.
NAMED = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
NAMED["torch.storage.UntypedStorage"] = torch.UntypedStorage


class StandIn(dict):
    """In place of what a file calls `name`, or of an object of it: keeps its items and `state`, and does nothing."""

    __slots__ = ("name", "state")
    __hash__, __eq__ = object.__hash__, object.__eq__

    def __init__(self, name: str):
        self.name, self.state = name, None

    def append(self, item) -> None:
        """As of a list or a set. Nobody needs what it would hold."""

    extend = add = append


class Unpickler(pickle._Unpickler):
    """pickle's own, in Python, except where that imports, calls or sets attributes. `names`: what was stood in for."""

    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)
    names: ClassVar[list[str]]

    def find_class(self, module: str, name: str):
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if found := CALLED.get(full) or NAMED.get(full):
            return found
        if full not in self.names:
            self.names.append(full)
        return StandIn(full)

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        made = self.stack.pop()
        if isinstance(made, StandIn):
            self.stack.append(StandIn(made.name))
        elif any(made is known for known in CALLED.values()):
            self.stack.append(made(*arguments))
        else:
            raise pickle.UnpicklingError(f"it calls a {type(made).__name__}")

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # arguments by name, which no class that is known takes
        self.load_reduce()

    def load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], StandIn):
            self.stack[-1].state = state
        elif type(self.stack[-1]) is not OrderedDict:  # whose state, _metadata, is versions of modules
            raise pickle.UnpicklingError(f"it sets attributes of a {type(self.stack[-1]).__name__}")

    def load_binpersid(self) -> None:
        kind, *rest = self.stack.pop()
        if kind not in ("storage", "module"):  # before 2020 the class of a module came with its source
            raise pickle.UnpicklingError("it refers to what is no storage")
        self.stack.append(self.persistent_load((kind, *rest)) if kind == "storage" else rest[0])

    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = load_reduce
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BINPERSID[0]] = load_binpersid
    for _name in ("INST", "OBJ", "EXT1", "EXT2", "EXT4", "PERSID"):  # other ways to make objects, not torch.save's
        del dispatch[getattr(pickle, _name)[0]]


def read(path: Path) -> tuple[object, list[str]]:
    """(what stands in a PyTorch file, on the CPU; which names in it have stand-ins). Modules are their weights by name.

    The caller checks the file before and the value after (`ssl.checkpoints.pickle_check`). A damaged file raises nearly
    anything.
    """

    class Reader(Unpickler):
        names: ClassVar[list[str]] = []

    def load(file, **options):
        return Reader(file, **options).load()

    as_pickle = types.SimpleNamespace(__name__=__name__, Unpickler=Reader, load=load)
    value = torch.load(path, map_location="cpu", pickle_module=as_pickle, weights_only=False)
    return _with_weights(value), Reader.names


# Whole modules -----------------------------------------------------------------


def _with_weights(value):
    """`value`; in place of a module, or of some by name, what their `state_dict()` would be."""
    if _is_module(value):
        return _state_dict(value)
    if isinstance(value, dict) and any(_is_module(part) for part in value.values()):
        return {name: _state_dict(part) if _is_module(part) else part for name, part in value.items()}
    return value


def _is_module(value) -> bool:
    state = value.state if isinstance(value, StandIn) else None
    parts = ("_parameters", "_buffers", "_modules")
    return isinstance(state, dict) and all(isinstance(state.get(part), dict) for part in parts)


def _state_dict(module: StandIn) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    pending, seen = [("", module)], 0
    while pending:
        prefix, part = pending.pop()
        seen += 1
        if prefix.count(".") > DEEPEST or seen > MOST_MODULES:
            raise ValueError("its modules are nested too deeply, or hold themselves")
        hidden = part.state.get("_non_persistent_buffers_set", ())
        for name, weight in (*part.state["_parameters"].items(), *part.state["_buffers"].items()):
            if isinstance(weight, Tensor) and not (isinstance(hidden, set) and name in hidden):
                found[f"{prefix}{name}"] = weight
        children = part.state["_modules"].items()
        pending += [(f"{prefix}{name}.", child) for name, child in children if _is_module(child)]
    return found
