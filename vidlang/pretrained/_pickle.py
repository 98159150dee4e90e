"""Pickles of PyTorch's files, without PyTorch or `pickle`: a stack machine that calls nothing that a file names.

A pickle is a small program, and `pickle` runs whatever it names. Here names stay names. What a file of weights needs is
known by name and made by the functions of `_known.CALLS`; any other name is refused with the name, and so is every
instruction that such files do without.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import numpy as np

from vidlang.pretrained._known import (
    CALLS,
    PLAIN,
    Array,
    Fields,
    Global,
    Kind,
    Refused,
    Skipped,
    Storage,
    numpy_dtype,
    pairs,
    plain_set,
)

LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
MADE: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}


def load(
    stream: IO[bytes], storage: Callable[[Sequence[Any]], Storage], *, script: bool = False, skip: Sequence[str] = ()
) -> Any:
    """What one pickle describes, made of plain values, entries of tensors and `Fields`.

    storage: what a persistent id stands for. script: whether objects of TorchScript's classes are expected. skip:
    patterns of the names of classes whose objects are left out unread. Raises `Refused`.
    """
    machine = Machine(storage, script, tuple(skip))
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.do(opcode.name, argument)
        return machine.stack.pop()
    except Refused:
        raise
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, AttributeError, RecursionError) as error:
        raise Refused(f"is damaged or no file of PyTorch's ({type(error).__name__}: {error}); fetch it again") from None


class Machine:
    """The stack, the memo, and what each instruction does to them."""

    def __init__(self, storage: Callable[[Sequence[Any]], Storage], script: bool, skip: tuple[str, ...]) -> None:
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []  # stacks under each mark
        self._memo: dict[int, Any] = {}
        self._storage, self._script, self._skip = storage, script, skip

    def do(self, name: str, argument: Any) -> None:
        """One instruction."""
        if name in LITERALS:
            self.stack.append(argument)
        elif name in MADE:
            self.stack.append(MADE[name]())
        else:
            method = getattr(self, f"_{name.lower()}", None)
            if method is None:
                raise Refused(f"has the instruction {name}, which files of weights do without; nothing was run")
            method() if argument is None else method(argument)

    def _proto(self, version: int) -> None:
        if not 2 <= version <= 5:
            raise Refused(f"is pickled in version {version}; versions 2 to 5 are read")

    def _frame(self, size: int) -> None:
        del size  # a hint for readers that buffer

    def _stop(self) -> None:
        if len(self.stack) != 1 or self._below:
            raise Refused("leaves more than one object; it is damaged, fetch it again")

    def _mark(self) -> None:
        self._below.append(self.stack)
        self.stack = []

    def _marked(self) -> list[Any]:
        found, self.stack = self.stack, self._below.pop()
        return found

    def _pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._marked()

    def _pop_mark(self) -> None:
        self._marked()

    def _binput(self, place: int) -> None:
        self._memo[place] = self.stack[-1]

    _put = _long_binput = _binput

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self.stack[-1]

    def _binget(self, place: int) -> None:
        self.stack.append(self._memo[place])

    _get = _long_binget = _binget

    def _tuple(self) -> None:
        items = tuple(self._marked())
        self.stack.append(items)

    def _tuple1(self) -> None:
        self._last(1)

    def _tuple2(self) -> None:
        self._last(2)

    def _tuple3(self) -> None:
        self._last(3)

    def _last(self, count: int) -> None:
        items = tuple(self.stack.pop() for _ in range(count))[::-1]
        self.stack.append(items)

    def _append(self) -> None:
        item = self.stack.pop()
        self._fill(lambda target: target.append(item), list)

    def _appends(self) -> None:
        items = self._marked()
        self._fill(lambda target: target.extend(items), list)

    def _additems(self) -> None:
        items = plain_set(self._marked())
        self._fill(lambda target: target.update(items), set)

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill(lambda target: target.update(pairs([(key, value)])), dict)

    def _setitems(self) -> None:
        items = self._marked()
        found = pairs(zip(items[::2], items[1::2], strict=True))
        self._fill(lambda target: target.update(found), dict)

    def _list(self) -> None:
        items = self._marked()
        self.stack.append(items)

    def _dict(self) -> None:
        items = self._marked()
        self.stack.append(pairs(zip(items[::2], items[1::2], strict=True)))

    def _fill(self, fill: Callable[[Any], None], kind: type) -> None:
        target = self.stack[-1]
        if isinstance(target, Skipped):
            return
        if not isinstance(target, kind):
            raise Refused(f"puts items into a {type(target).__name__}; it is damaged, fetch it again")
        fill(target)

    def _global(self, name: str) -> None:
        """`name` is module and name, with a space between."""
        self._named(*name.split(" ", 1))

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Refused("names something by what is no text; it is damaged, fetch it again")
        self._named(module, name)

    def _named(self, module: str, name: str) -> None:
        whole = f"{module}.{name}"
        known = whole in CALLS or whole in PLAIN or (self._script and module.split(".")[0] == "__torch__")
        if not known and not self._skips(whole):
            raise Refused(
                f"would run or make {whole[:100]!r}, which weights need not, so that nothing of it was read or run; "
                "have whoever made it save the state dict alone, or safetensors"
            )
        self.stack.append(Global(whole))

    def _skips(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self._skip)

    def _reduce(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        self.stack.append(self._call(called, arguments))

    def _call(self, called: Any, arguments: Any) -> Any:
        if not isinstance(called, Global) or not isinstance(arguments, tuple):
            raise Refused("calls what is no name; it is damaged, fetch it again")
        if called.name in CALLS:
            return CALLS[called.name](*arguments)
        if self._skips(called.name):
            return Skipped()
        raise Refused(f"calls {called.name}, which is nothing to call; nothing was run")

    def _newobj(self) -> None:
        arguments, made = self.stack.pop(), self.stack.pop()
        if not isinstance(made, Global):
            raise Refused("makes an object of what is no name; it is damaged, fetch it again")
        script = self._script and made.name.startswith("__torch__.")
        self.stack.append(Fields() if script and not arguments else self._call(made, arguments))

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Fields):
            if not isinstance(state, dict):
                raise Refused("has an object whose attributes are no dict; give its state dict instead")
            target.update(state)
        elif isinstance(target, Kind):
            target.code = f"{state[1]}{target.code}"
        elif isinstance(target, Array):
            _, shape, kind, by_column, raw = state
            target.numbers = np.frombuffer(raw, numpy_dtype(kind)).reshape(shape, order="F" if by_column else "C")
        elif not isinstance(target, dict | Skipped):  # an OrderedDict has attributes that are none of its items
            raise Refused(f"gives attributes to a {type(target).__name__}; it is damaged, fetch it again")

    def _binpersid(self) -> None:
        found = self.stack.pop()
        if not isinstance(found, tuple) or len(found) < 5 or found[0] != "storage":
            raise Refused("names something outside of it that is no storage; it is damaged, fetch it again")
        self.stack.append(self._storage(found))
