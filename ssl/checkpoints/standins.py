"""Read PyTorch files that name foreign classes: each becomes an inert stand-in, and no code of the file is run.

A checkpoint of Lightning or of an older project holds more than weights: an `argparse.Namespace`, a function of its
repository, numpy's numbers. The weights can be read without them. Every name that tensors do not need becomes a
`StandIn`. Nothing is imported, and no method of an object in the file is called.
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


def _are_lists(parts: list | tuple) -> bool:
    return all(isinstance(part, list | tuple) for part in parts)


# The only functions that are ever called. They make tensors, and containers.
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
# Other names that tensors need.
NAMED = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
NAMED["torch.storage.UntypedStorage"] = torch.UntypedStorage


class StandIn(dict):
    """Replaces what a file calls `name`, or an object of that class: keeps its items and `state`, and does nothing."""

    __slots__ = ("name", "state")
    __hash__, __eq__ = object.__hash__, object.__eq__

    def __init__(self, name: str):
        self.name, self.state = name, None


class Unpickler(pickle._Unpickler):
    """Python's own unpickler, without imports, calls and attributes. `names`: the names that were replaced."""

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
            return
        if not any(made is known for known in CALLED.values()):
            raise pickle.UnpicklingError(f"it calls a {type(made).__name__}")
        parts = arguments if made in (OrderedDict, set, torch.Size) else ()
        pairs = parts if made is OrderedDict else ()  # a list of them
        if type(arguments) is not tuple or not _are_lists(parts) or not all(map(_are_lists, pairs)):
            raise pickle.UnpicklingError("it takes something apart that is no list")  # a tensor: an object per number
        self.stack.append(made(*arguments))

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # arguments by name: no function of CALLED takes any
        self.load_reduce()

    def load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], StandIn):
            self.stack[-1].state = state
        elif type(self.stack[-1]) is not OrderedDict:  # its state, _metadata, holds versions of modules
            raise pickle.UnpicklingError(f"it sets attributes of a {type(self.stack[-1]).__name__}")

    def _fill(self, kind: type, items: list) -> None:
        """Put `items` into the list, set or dict on the stack. Of another object this would call a method."""
        made = self.stack[-1]
        if not isinstance(made, kind | StandIn):
            raise pickle.UnpicklingError(f"it puts items into a {type(made).__name__}")
        if kind is dict:
            made.update(zip(items[::2], items[1::2]))
        elif not isinstance(made, StandIn):  # which does not need the items of a list or a set
            (made.extend if kind is list else made.update)(items)

    def load_append(self) -> None:
        self._fill(list, [self.stack.pop()])

    def load_appends(self) -> None:
        self._fill(list, self.pop_mark())

    def load_additems(self) -> None:
        self._fill(set, self.pop_mark())

    def load_setitem(self) -> None:
        value = self.stack.pop()
        self._fill(dict, [self.stack.pop(), value])

    def load_setitems(self) -> None:
        self._fill(dict, self.pop_mark())

    def load_binpersid(self) -> None:
        what = self.stack.pop()
        if type(what) is not tuple or what[0] not in ("storage", "module"):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        parts = [part for where in what[2:] for part in (where if isinstance(where, tuple) else (where,))]
        if not all(isinstance(part, str | bytes | int | None) for part in parts):
            raise pickle.UnpicklingError("it refers to a storage by what is neither a name nor a number")
        # before 2020 modules were saved with their source
        self.stack.append(self.persistent_load(what) if what[0] == "storage" else what[1])

    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = load_reduce
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BINPERSID[0]] = load_binpersid
    dispatch[pickle.APPEND[0]], dispatch[pickle.APPENDS[0]] = load_append, load_appends
    dispatch[pickle.SETITEM[0]], dispatch[pickle.SETITEMS[0]] = load_setitem, load_setitems
    dispatch[pickle.ADDITEMS[0]] = load_additems
    for _opcode in (pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID):
        del dispatch[_opcode[0]]  # torch.save does not use it


def read(path: Path) -> tuple[object, list[str]]:
    """(content of a PyTorch file, on the CPU; names in it that were replaced). Modules become their state_dicts.

    The caller checks the file before and the value after (`pickle_check`). A damaged file raises nearly any error.
    """

    class Reader(Unpickler):
        names: ClassVar[list[str]] = []

    def load(file, **options):
        return Reader(file, **options).load()

    as_pickle = types.SimpleNamespace(__name__=__name__, Unpickler=Reader, load=load)
    value = torch.load(path, map_location="cpu", pickle_module=as_pickle, weights_only=False)
    return _with_weights(value), Reader.names


# Whole modules -----------------------------------------------------------------


def _with_weights(value: object) -> object:
    """`value`, with a module, or the modules of a dict, replaced by their state_dicts."""
    if _is_module(value):
        return _state_dict(value)
    if isinstance(value, dict) and any(_is_module(part) for part in value.values()):
        return {name: _state_dict(part) if _is_module(part) else part for name, part in value.items()}
    return value


def _is_module(value: object) -> bool:
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
            raise ValueError("its modules are nested too deeply, or contain themselves")
        hidden = part.state.get("_non_persistent_buffers_set", ())
        for name, weight in (*part.state["_parameters"].items(), *part.state["_buffers"].items()):
            if isinstance(weight, Tensor) and not (isinstance(hidden, set) and name in hidden):
                found[f"{prefix}{name}"] = weight
        children = part.state["_modules"].items()
        pending += [(f"{prefix}{name}.", child) for name, child in children if _is_module(child)]
    return found
