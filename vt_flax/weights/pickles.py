"""The part of pickle that PyTorch writes weights in, read without running anything.

A pickle is a program: its instructions may import any module and call any function in
it. Here they are followed on values that do nothing. A name stands for itself, and only
those that weights need are known; nothing is imported, and of PyTorch's functions only
what they say about a tensor is taken.
"""

import dataclasses
import pickletools
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from vt_flax.weights.stored import Storage, Tensor, Unreadable


@dataclasses.dataclass(frozen=True)
class Name:
    """What a pickle calls something in a module, as `torch._utils._rebuild_tensor`."""

    full: str


DTYPES = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Byte": "uint8",
    "Char": "int8",
    "Short": "int16",
    "Int": "int32",
    "Long": "int64",
    "Bool": "bool",
}
_MODULES = ("torch", "torch.cuda")
_STORAGES = {f"{m}.{kind}Storage": DTYPES[kind] for m in _MODULES for kind in DTYPES}
_TENSORS = {f"{m}.{kind}Tensor" for m in _MODULES for kind in DTYPES}
_REBUILD = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
_PARAMETERS = {"torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter"}
_DICTIONARY = "collections.OrderedDict"
_KNOWN = {
    _DICTIONARY,
    *_STORAGES,
    *_TENSORS,
    *_REBUILD,
    *_PARAMETERS,
    *(f"torch.{dtype}" for dtype in DTYPES.values()),
}

# Instructions whose argument is the value.
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def dtype_of(kind: Any) -> str:
    """Returns the name of the type of the numbers in a kind of storage."""
    if not isinstance(kind, Name) or kind.full not in _STORAGES:
        raise Unreadable("it stores numbers of a type that is not known here")
    return _STORAGES[kind.full]


def load(stream: BinaryIO, persistent: Callable[[Any], Any]) -> Any:
    """Returns the value of a pickle; the stream is left behind its end.

    Args:
      stream: at the pickle's beginning.
      persistent: makes something of a reference to what lies outside the pickle.

    Returns:
      Numbers, strings, None, tuples, lists and dictionaries; `Tensor`, and what
      `persistent` made.

    Raises:
      Unreadable: if it is damaged, or names or does what weights have no need of.
    """
    try:
        return _Machine(persistent).run(stream)
    # What the instructions of a damaged pickle, in any order, lead to.
    except (
        *(ArithmeticError, AttributeError, LookupError, MemoryError),
        *(TypeError, ValueError),
    ) as error:
        raise Unreadable("it is damaged or cut off (its pickle breaks off)") from error


class _Machine:
    """Follows the instructions of one pickle."""

    def __init__(self, persistent: Callable[[Any], Any]):
        self._persistent = persistent
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # what lies under each mark
        self._memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> Any:
        for instruction, argument, _ in pickletools.genops(stream):
            self._follow(instruction.name, argument)
        return self._stack.pop()

    def _follow(self, name: str, argument: Any) -> None:
        push, pop = self._stack.append, self._stack.pop
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _ if name in _VALUES:
                push(argument)
            case _ if name in _CONSTANTS:
                push(_CONSTANTS[name])
            case "EMPTY_LIST":
                push([])
            case "EMPTY_DICT":
                push({})
            case "MARK":
                self._below.append(self._stack)
                self._stack = []
            case "TUPLE":
                items = self._marked()
                self._stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [pop() for _ in range(int(name[-1]))]
                push(tuple(reversed(items)))
            case "LIST":
                items = self._marked()
                self._stack.append(items)
            case "DICT":
                items = self._marked()
                self._stack.append(_add({}, items[::2], items[1::2]))
            case "APPEND":
                _list(self._stack[-2]).append(pop())
            case "APPENDS":
                items = self._marked()
                _list(self._stack[-1]).extend(items)
            case "SETITEM":
                value, key = pop(), pop()
                _add(self._stack[-1], [key], [value])
            case "SETITEMS":
                items = self._marked()
                _add(self._stack[-1], items[::2], items[1::2])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                push(self._memo[argument])
            case "GLOBAL":
                push(_named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = pop(), pop()
                push(_named(module, name))
            case "REDUCE" | "NEWOBJ":
                arguments, function = pop(), pop()
                push(_made(function, arguments))
            case "BUILD":
                state = pop()
                _completed(self._stack[-1], state)
            case "BINPERSID":
                push(self._persistent(pop()))
            case _:
                raise Unreadable(
                    f"its pickle does {name}, which weights have no need of"
                )

    def _marked(self) -> list[Any]:
        """Returns what lies above the last mark, and takes both away."""
        items, self._stack = self._stack, self._below.pop()
        return items


def _list(value: Any) -> list:
    if type(value) is not list:
        raise TypeError("not a list")
    return value


def _add(target: Any, keys: Sequence[Any], values: Sequence[Any]) -> dict:
    if type(target) is not dict:
        raise TypeError("not a dictionary")
    for key, value in zip(keys, values, strict=True):
        # Others may take long to hash, or end in the depths of the interpreter.
        if type(key) not in (str, int):
            raise TypeError("not a key of a state dict")
        target[key] = value
    return target


def _named(module: str, name: str) -> Name:
    full = f"{module}.{name}"
    if full not in _KNOWN:
        raise Unreadable(
            f"its pickle names {full[:80]!r}, which weights have no need of; nothing "
            "was run; if you trust it, have PyTorch save the state dict alone, by "
            "torch.save(network.state_dict(), FILE)"
        )
    return Name(full)


def _made(function: Any, arguments: Any) -> Any:
    """Returns what a call stands for."""
    if not isinstance(function, Name) or type(arguments) is not tuple:
        raise Unreadable("its pickle calls what is no function of PyTorch's")
    if function.full == _DICTIONARY:
        # Python 2 gives the items, later versions set them one by one.
        pairs = [(key, value) for key, value in (arguments or ((),))[0]]
        return _add({}, [key for key, _ in pairs], [value for _, value in pairs])
    if function.full in _PARAMETERS and arguments:
        if not isinstance(arguments[0], Tensor):
            raise Unreadable("its pickle makes a parameter of what is no tensor")
        return arguments[0]
    if function.full in (_TENSORS | _PARAMETERS) and not arguments:
        return Tensor()
    if function.full in _REBUILD:
        tensor = Tensor()
        tensor.fill(*arguments[:4])
        return tensor
    raise Unreadable(f"its pickle calls {function.full}, which weights have no need of")


def _completed(value: Any, state: Any) -> None:
    """Gives a value its state, where that says anything of numbers."""
    if type(value) is dict:
        return  # the versions of modules
    if not isinstance(value, Tensor) or type(state) is not tuple:
        raise Unreadable("its pickle changes what is no tensor")
    first = state[0] if state else None
    if isinstance(first, Storage):
        value.fill(*state)
    elif isinstance(first, Tensor):
        value.fill(first.storage, first.offset, first.shape, first.strides)
    elif type(first) is not bool:  # whether it has a gradient
        raise Unreadable("its pickle changes a tensor into what is none")
