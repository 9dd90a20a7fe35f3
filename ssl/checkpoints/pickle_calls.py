"""Follow what a pickle calls, and with what, without building an object: only calls that `torch.save` writes may pass.

A name that is harmless alone may take much memory when it is called: `set(tensor)` makes an object of each number, and
`UntypedStorage(10**15)` asks for them. The stack of the pickle is followed with the kind of each object in its place.
"""

from pickletools import OpcodeInfo, anyobject, markobject, opcodes, pydict, pylist, pyset, pytuple

# A kind is what `pickletools` calls an object, a name, "NAME()" for what a call gave, or the kinds in a tuple.
ANY = anyobject.name  # may be a tensor
CALLS = {  # the arguments; those of torch.device and torch._utils may be any
    "collections OrderedDict": [()],
    "collections Counter": [(), ("dict",)],
    "builtins set": [("list",)],
    "__builtin__ set": [("list",)],
    "torch Size": [("tuple",)],
}
STORED = {"str", "bytes_or_str", "int", "int_or_bool", "None", "tuple"}  # what says where the numbers of a tensor are
SIMPLE = {
    code.name: code.stack_after[0].name
    for code in opcodes
    if not code.stack_before and code.stack_after and code.stack_after[0] not in (anyobject, markobject, pytuple)
}
FILLED = {"list": pylist, "set": pyset, "dict": pydict}  # what items may be put into
FILLED |= {"collections OrderedDict()": pydict, "collections Counter()": pydict}


class NotPlainData(ValueError):
    """A pickle holds something, its argument, that is neither a tensor nor a plain value."""


def follow(opcode: OpcodeInfo, argument: object, stacks: list[list], kept: dict[object, object]) -> None:
    """Do to the kinds on the stack what the operation does to objects. ValueError for what `torch.save` never does.

    `stacks` has the kinds since the last mark at its end, and those below each mark before. `kept`: those in the memo.
    """
    name, before = opcode.name, opcode.stack_before
    try:
        if name in SIMPLE:  # a word, a number, an empty list
            stacks[-1].append(SIMPLE[name])
        elif name.endswith("PUT"):
            kept[argument] = stacks[-1][-1]
        elif name.endswith("GET"):
            stacks[-1].append(kept[argument])
        elif name == "MARK":
            stacks.append([])
        else:
            marked = markobject in before
            above = stacks.pop() if marked else []
            count = before.index(markobject) if marked else len(before)
            taken = [stacks[-1].pop() for _ in range(count)][::-1] + above
            stacks[-1] += _given(opcode, argument, taken)
    except LookupError:
        raise ValueError("its list of contents is damaged") from None


def _given(opcode: OpcodeInfo, argument: object, taken: list) -> list:
    """The kinds that an operation puts on the stack for those that it has `taken`."""
    name, before, after = opcode.name, opcode.stack_before, opcode.stack_after
    if name == "GLOBAL":
        return [argument]
    if name == "REDUCE":
        return [_called(*taken)]
    if name == "BUILD" and taken == ["collections OrderedDict()", "dict"]:  # the _metadata of a state_dict
        return taken[:1]
    if name == "BINPERSID" and isinstance(taken[0], tuple) and STORED.issuperset(taken[0][2:]):
        return [ANY]
    if after == [pytuple]:  # a tuple in a tuple may be any object if one of its parts may be
        return [tuple((ANY if ANY in kind else "tuple") if isinstance(kind, tuple) else kind for kind in taken)]
    fills = before and after == before[:1]
    if fills and FILLED.get(taken[0]) is after[0]:
        return taken[:1]
    if fills or anyobject in after:
        raise NotPlainData(f"an unexpected {name}")
    return [kind.name for kind in after]


def _called(name: object, arguments: object) -> str:
    free = isinstance(name, str) and (name == "torch device" or name.startswith("torch._utils "))
    if isinstance(arguments, tuple) and (free or arguments in CALLS.get(name, ())):
        return ANY if free else f"{name}()"
    raise NotPlainData("a call that torch.save does not write")
