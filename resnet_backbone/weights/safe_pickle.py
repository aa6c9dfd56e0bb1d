"""Parse a pickle into plain data and inert records, without importing or calling anything that it names.

A pickle is a program for a stack machine: its instructions import names, call them, and modify the results. Here a name
becomes a ``Name``, and a call or a container becomes a ``Call``, so the file cannot reach anything outside itself.

To limit time and memory, every allocation counts against a budget, sizes are compared with the file before anything is
allocated, and nothing is hashed. Python's own unpicklers have no such limits.
"""

from __future__ import annotations

import codecs
import pickle
import re
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

from ..errors import CheckpointError, UnsafeCheckpointError

__all__ = ["Budget", "Call", "Name", "Persistent", "parse_pickle"]

_ALLOWANCE = 150_000_000
# Longer than any array in protocol 0. Without a limit, a line could be as long as the file.
_MAX_LINE = 100_000_000
# One character above U+00FF makes every character of a string take up to four bytes.
_WIDE = {"utf-8": re.compile(rb"[\xc4-\xff]"), "raw-unicode-escape": re.compile(rb"\\u(?!00)|\\U(?!000000)")}


class Budget:
    """Limit of the memory, in bytes, for reading a file: twice its size plus 150 MB."""

    def __init__(self, file_size: int) -> None:
        self.left = 2 * file_size + _ALLOWANCE

    def spend(self, amount: int) -> None:
        """Count an allocation; raise a ``CheckpointError`` if the budget is exceeded."""
        self.left -= amount
        if self.left < 0:
            raise CheckpointError("would take far more memory than a file of its size needs")


@dataclass(eq=False, slots=True)
class Name:
    """The name of a class or function, such as ``collections.OrderedDict``."""

    full: str


@dataclass(eq=False, slots=True)
class Call:
    """A call of a name, or a ``list``, ``dict`` or ``set``, and what is then added to the result.

    ``pairs`` has keys and values in turn.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)
    pairs: list[Any] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Persistent:
    """A reference to data outside the pickle: the storage of a tensor."""

    id: Any


def parse_pickle(
    file: IO[bytes], end: int, budget: Budget, check_name: Callable[[str], str]
) -> tuple[Any, list[Persistent]]:
    """Read one pickle from a file.

    Args:
        file: The file, at the start of the pickle.
        end: Position in the file that the pickle must not pass.
        budget: What allocations are counted against.
        check_name: Called with each name; returns the name to use, or raises.

    Returns:
        The object, made of Python's scalars and tuples, ``Name``, ``Call`` and ``Persistent``; and all references.

    Raises:
        CheckpointError: The pickle is damaged, or would take too much memory.
        UnsafeCheckpointError: It does something that no checkpoint does.
    """
    machine = _Machine(file, end, budget, check_name)
    while (code := file.read(1)) != pickle.STOP:
        if code not in _INSTRUCTIONS:
            # Including those for out-of-band buffers and the extension registry.
            raise CheckpointError(f"has {code!r} in place of a pickle instruction" if code else "ends too early")
        price, execute = _INSTRUCTIONS[code]
        budget.spend(price)
        execute(machine)
    if not machine.frame_end <= file.tell() <= end:
        raise CheckpointError("ends too early")
    return machine.stack.pop(), machine.references


class _Machine:
    def __init__(self, file: IO[bytes], end: int, budget: Budget, check_name: Callable[[str], str]) -> None:
        self.file = file
        self.end = end
        self.budget = budget
        self.check_name = check_name
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[str, Any] = {}
        self.references: list[Persistent] = []
        self.frame_end = 0

    # Reading arguments of instructions from the file.

    def take(self, size: int) -> bytes:
        # read() would allocate the whole size even if the file is shorter.
        data = self.file.read(size) if size <= 4096 or size <= self.end - self.file.tell() else b""
        if len(data) != size:
            raise CheckpointError("ends too early")
        return data

    def number(self, width: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(width), "little", signed=signed)

    def data(self, width: int) -> bytes:
        return self.take(self.number(width))

    def frame(self, size: int) -> None:
        # A file that lost a byte, as by a conversion of line ends, could otherwise be read.
        if self.file.tell() - 9 < self.frame_end:
            raise CheckpointError("ends a frame too early")
        self.frame_end = self.file.tell() + size

    def line(self) -> bytes:
        line = self.file.readline(_MAX_LINE)
        if not line.endswith(b"\n"):
            raise CheckpointError("ends too early")
        return line[:-1]

    def text(self, data: bytes, encoding: str = "utf-8") -> str:
        if _WIDE[encoding].search(data):
            self.budget.spend(5 * len(data))
        return data.decode(encoding, "surrogatepass")

    # The stack.

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def push_sized(self, value: Any) -> None:
        self.budget.spend(sys.getsizeof(value))
        self.stack.append(value)

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise CheckpointError("pops from an empty stack")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def pop_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.marks.pop()
        return values

    def put(self, index: int) -> None:
        # Only a key here; Python's unpickler allocates an array of this size. The hashes of integers could collide.
        self.memo[str(index)] = self.stack[-1]

    def get(self, index: int) -> None:
        self.push(self.memo[str(index)])

    # Names, calls and changes to their results.

    def name(self, module: Any, name: Any) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise UnsafeCheckpointError("has a class or function name that is not a string")
        return Name(self.check_name(f"{module}.{name}"))

    def call(self, name: Any, args: Any, kwargs: Any = None) -> None:
        if not isinstance(name, Name) or not isinstance(args, tuple) or kwargs is not None:
            raise UnsafeCheckpointError(f"calls {_described(name)} with {_described(args)}")
        self.push(Call(name.full, args))

    def target(self) -> Call:
        target = self.stack[-1]
        if not isinstance(target, Call):
            raise UnsafeCheckpointError(f"changes {_described(target)}")
        return target

    def set_state(self, state: Any) -> None:
        self.target().state = state

    def extend(self, items: list[Any]) -> None:
        self.target().items.extend(items)

    def set_pairs(self, pairs: list[Any]) -> None:
        self.target().pairs.extend(pairs)

    def refer(self, id: Any) -> None:  # noqa: A002 - the pickle module's word
        self.references.append(Persistent(id))
        self.push(self.references[-1])

    def check_protocol(self, protocol: int) -> None:
        if protocol > 5:
            raise CheckpointError(f"is a pickle of protocol {protocol}; 5 is the newest that is supported")


def _described(value: Any) -> str:
    return value.full if isinstance(value, Name) else f"a {type(value).__name__}"


def _old_text(data: bytes) -> str:
    # Python 2 strings may be text or bytes; latin1 preserves both.
    return data.decode("latin1")


def _long(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _decimal(line: bytes) -> int:
    if len(line) > 4000:
        raise CheckpointError("has an integer of more than 4,000 digits")
    return line == b"01" if line in (b"00", b"01") else int(line.removesuffix(b"L"))


def _quoted(line: bytes) -> str:
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise CheckpointError("has a string without quotes")
    return _old_text(codecs.escape_decode(line[1:-1])[0])


# What each instruction does, and its fixed cost in bytes of memory. No instruction is free, which bounds the time.
_INSTRUCTIONS: dict[bytes, tuple[int, Callable[[_Machine], Any]]] = {
    pickle.PROTO: (30, lambda m: m.check_protocol(m.number(1))),
    pickle.FRAME: (30, lambda m: m.frame(m.number(8))),
    # The stack and the memo.
    pickle.MARK: (120, lambda m: m.mark()),
    pickle.POP: (30, lambda m: m.pop(1) if m.stack else m.pop_mark()),
    pickle.POP_MARK: (30, lambda m: m.pop_mark()),
    pickle.DUP: (30, lambda m: m.push(m.stack[-1])),
    pickle.PUT: (120, lambda m: m.put(_decimal(m.line()))),
    pickle.BINPUT: (120, lambda m: m.put(m.number(1))),
    pickle.LONG_BINPUT: (120, lambda m: m.put(m.number(4))),
    pickle.MEMOIZE: (120, lambda m: m.put(len(m.memo))),
    pickle.GET: (30, lambda m: m.get(_decimal(m.line()))),
    pickle.BINGET: (30, lambda m: m.get(m.number(1))),
    pickle.LONG_BINGET: (30, lambda m: m.get(m.number(4))),
    # Scalars.
    pickle.NONE: (30, lambda m: m.push(None)),
    pickle.NEWTRUE: (30, lambda m: m.push(True)),
    pickle.NEWFALSE: (30, lambda m: m.push(False)),
    pickle.BININT: (40, lambda m: m.push(m.number(4, signed=True))),
    pickle.BININT1: (30, lambda m: m.push(m.number(1))),
    pickle.BININT2: (40, lambda m: m.push(m.number(2))),
    pickle.LONG1: (30, lambda m: m.push_sized(_long(m.data(1)))),
    pickle.LONG4: (30, lambda m: m.push_sized(_long(m.data(4)))),
    pickle.BINFLOAT: (40, lambda m: m.push(struct.unpack(">d", m.take(8))[0])),
    pickle.INT: (30, lambda m: m.push_sized(_decimal(m.line()))),
    pickle.LONG: (30, lambda m: m.push_sized(_decimal(m.line()))),
    pickle.FLOAT: (40, lambda m: m.push(float(m.line()))),
    # Strings and bytes.
    pickle.SHORT_BINUNICODE: (30, lambda m: m.push_sized(m.text(m.data(1)))),
    pickle.BINUNICODE: (30, lambda m: m.push_sized(m.text(m.data(4)))),
    pickle.BINUNICODE8: (30, lambda m: m.push_sized(m.text(m.data(8)))),
    pickle.UNICODE: (30, lambda m: m.push_sized(m.text(m.line(), "raw-unicode-escape"))),
    pickle.SHORT_BINBYTES: (30, lambda m: m.push_sized(m.data(1))),
    pickle.BINBYTES: (30, lambda m: m.push_sized(m.data(4))),
    pickle.BINBYTES8: (30, lambda m: m.push_sized(m.data(8))),
    pickle.BYTEARRAY8: (30, lambda m: m.push_sized(bytearray(m.data(8)))),
    pickle.SHORT_BINSTRING: (30, lambda m: m.push_sized(_old_text(m.data(1)))),
    pickle.BINSTRING: (30, lambda m: m.push_sized(_old_text(m.data(4)))),
    pickle.STRING: (30, lambda m: m.push_sized(_quoted(m.line()))),
    # Containers.
    pickle.EMPTY_TUPLE: (30, lambda m: m.push(())),
    pickle.TUPLE1: (80, lambda m: m.push(tuple(m.pop(1)))),
    pickle.TUPLE2: (80, lambda m: m.push(tuple(m.pop(2)))),
    pickle.TUPLE3: (80, lambda m: m.push(tuple(m.pop(3)))),
    pickle.TUPLE: (80, lambda m: m.push(tuple(m.pop_mark()))),
    pickle.EMPTY_LIST: (300, lambda m: m.push(Call("list"))),
    pickle.LIST: (300, lambda m: m.push(Call("list", items=m.pop_mark()))),
    pickle.APPEND: (60, lambda m: m.extend(m.pop(1))),
    pickle.APPENDS: (60, lambda m: m.extend(m.pop_mark())),
    pickle.EMPTY_DICT: (400, lambda m: m.push(Call("dict"))),
    pickle.DICT: (400, lambda m: m.push(Call("dict", pairs=m.pop_mark()))),
    pickle.SETITEM: (60, lambda m: m.set_pairs(m.pop(2))),
    pickle.SETITEMS: (60, lambda m: m.set_pairs(m.pop_mark())),
    pickle.EMPTY_SET: (400, lambda m: m.push(Call("set"))),
    pickle.ADDITEMS: (60, lambda m: m.extend(m.pop_mark())),
    pickle.FROZENSET: (400, lambda m: m.push(Call("set", items=m.pop_mark()))),
    # Names, calls, storages.
    pickle.GLOBAL: (250, lambda m: m.push(m.name(m.text(m.line()), m.text(m.line())))),
    pickle.STACK_GLOBAL: (250, lambda m: m.push(m.name(*m.pop(2)))),
    pickle.REDUCE: (300, lambda m: m.call(*m.pop(2))),
    pickle.NEWOBJ: (300, lambda m: m.call(*m.pop(2))),
    pickle.NEWOBJ_EX: (300, lambda m: m.call(*m.pop(3))),
    pickle.OBJ: (400, lambda m: m.call(m.stack[0], tuple(m.pop_mark()[1:]))),
    pickle.INST: (400, lambda m: m.call(m.name(m.text(m.line()), m.text(m.line())), tuple(m.pop_mark()))),
    pickle.BUILD: (30, lambda m: m.set_state(*m.pop(1))),
    pickle.PERSID: (120, lambda m: m.refer(m.text(m.line()))),
    pickle.BINPERSID: (120, lambda m: m.refer(*m.pop(1))),
}
