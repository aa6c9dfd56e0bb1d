"""Parse a pickle into plain data and inert records, without importing or calling anything that it names.

A pickle is a program for a stack machine: its instructions import names, call them, and change what they made.
``Parser`` executes all instructions of protocols 0 to 5, and no other interpreter of pickles is used. A name becomes a
``Name``, a call a ``Call``; numbers, strings and containers become Python's own. So nothing that exists outside of the
file can be reached from it, whatever the instructions are.

What remains to an attacker is time and memory. All that the instructions allocate is counted against a budget, sizes
are compared with the file before anything is allocated, and nothing is hashed whose hash is slow or can be made to
collide. Python's own unpicklers cannot be limited in these ways.
"""

from __future__ import annotations

import codecs
import pickle
import struct
import sys
from collections.abc import Callable
from typing import IO, Any

from .errors import CheckpointError, UnsafeCheckpointError

__all__ = ["Budget", "Call", "Name", "Parser", "Persistent", "check_key", "printable"]


class Name:
    """The name of a class or function, such as ``collections.OrderedDict``."""

    __slots__ = ("full",)

    def __init__(self, full: str) -> None:
        self.full = full


class Call:
    """The call of a name, and what is done to its result.

    Attributes:
        name: What is called.
        args: Its arguments.
        kwargs: Its keyword arguments.
        state: The state that is set; ``None`` if none is.
        items: What is appended to the result.
        pairs: The keys and values that are set in the result, in turn.
    """

    __slots__ = ("args", "items", "kwargs", "name", "pairs", "state")

    def __init__(self, name: Any, args: Any, kwargs: Any = None) -> None:
        if not isinstance(name, Name) or not isinstance(args, tuple):
            raise UnsafeCheckpointError(f"calls {_described(name)} with {_described(args)}")
        self.name, self.args, self.kwargs = name.full, args, kwargs
        self.state: Any = None
        self.items: list[Any] = []
        self.pairs: list[Any] = []


class Persistent:
    """A reference to what lies outside of the pickle: the storage of a tensor."""

    __slots__ = ("id",)

    def __init__(self, id: Any) -> None:  # noqa: A002 - the pickle module's word
        self.id = id


_ALLOWANCE = 150_000_000


class Budget:
    """The memory that reading a file may take: twice the file's size and 150 MB.

    Args:
        size: The file's size in bytes.
    """

    def __init__(self, size: int) -> None:
        self.left = 2 * size + _ALLOWANCE

    def spend(self, amount: int) -> None:
        """Count an allocation.

        Args:
            amount: Its size in bytes.

        Raises:
            CheckpointError: The budget does not allow it.
        """
        self.left -= amount
        if self.left < 0:
            raise CheckpointError("would take far more memory than a file of its size can need")


def printable(text: str, most: int = 200) -> str:
    """Return a string from a file as it can be shown: escaped, and cut where it is long."""
    if len(text) <= most and text.isprintable():
        return text
    text = text if len(text) <= most else f"{text[:most]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


_SCALARS = (str, bytes, float, bool, type(None))


def _is_scalar(key: Any) -> bool:
    # Hashes of strings are cached and secret; wider integers would allow collisions.
    return type(key) in _SCALARS or (type(key) is int and key.bit_length() < 61)


def check_key(key: Any, budget: Budget) -> None:
    """Refuse a key of a dict, or an item of a set, that takes long to hash or is made to collide with others.

    Args:
        key: The key.
        budget: What the key is counted against.

    Raises:
        CheckpointError: The key is not a string, number, record, or short tuple of strings and numbers.
    """
    if _is_scalar(key) or type(key) in (Name, Call, Persistent):
        return
    if type(key) is tuple and len(key) <= 8 and all(map(_is_scalar, key)):
        # Hashes of tuples are not secret, and many that collide take long: the price limits their number.
        budget.spend(10_000)
        return
    raise CheckpointError(f"has a {type(key).__name__} as a key, which no checkpoint needs")


class Parser:
    """Reads pickles from a file, one after the other.

    Args:
        file: The file, at the pickle's first byte.
        end: The position in the file that the pickle may not pass.
        budget: What allocations are counted against.
        check_name: Called with every name; raises if it is not allowed.
    """

    def __init__(self, file: IO[bytes], end: int, budget: Budget, check_name: Callable[[str], None]) -> None:
        self.file = file
        self.end = end
        self.budget = budget
        self.check_name = check_name
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.persistent: list[Persistent] = []

    def parse(self) -> Any:
        """Read one pickle.

        Returns:
            What it describes: Python's own scalars and containers, and ``Name``, ``Call`` and ``Persistent``.

        Raises:
            CheckpointError: The pickle is damaged, or would take too much memory.
            UnsafeCheckpointError: It uses a name that is not allowed, or does what no checkpoint does.
        """
        self.stack, self.marks, self.memo = [], [], {}
        read, spend = self.file.read, self.budget.spend
        while (code := read(1)) != pickle.STOP:
            if code not in _INSTRUCTIONS:
                raise CheckpointError(f"has {code!r} where a pickle has an instruction" if code else "ends too early")
            price, execute = _INSTRUCTIONS[code]
            spend(price)
            execute(self)
        if self.file.tell() > self.end:
            raise CheckpointError("ends too early")
        return self.stack.pop()

    def take(self, size: int) -> bytes:
        """Return the next bytes of the file."""
        # Reading would allocate all that is asked for, whether the file has it or not.
        if size > 4096 and size > self.end - self.file.tell():
            raise CheckpointError("ends too early")
        data = self.file.read(size)
        if len(data) != size:
            raise CheckpointError("ends too early")
        return data

    def number(self, width: int, signed: bool = False) -> int:
        """Return the next few bytes as an integer."""
        data = self.file.read(width)
        if len(data) != width:
            raise CheckpointError("ends too early")
        return int.from_bytes(data, "little", signed=signed)

    def put(self, index: int) -> None:
        """Remember the last value. The index is only a key here; in Python's own unpickler it is a size."""
        self.memo[index] = self.stack[-1]

    def line(self) -> bytes:
        """Return the rest of the line, as protocol 0 ends values."""
        line = self.file.readline()
        if not line.endswith(b"\n"):
            raise CheckpointError("ends too early")
        return line[:-1]

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def push_sized(self, value: Any) -> None:
        """Put a value on the stack whose size the file decides."""
        self.budget.spend(sys.getsizeof(value))
        self.stack.append(value)

    def mark(self) -> None:
        """Begin a sequence of values."""
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """Take all values above the last mark off the stack."""
        values = self.stack
        self.stack = self.marks.pop()
        return values

    def pop(self) -> Any:
        """Take the last value off the stack."""
        return self.stack.pop()

    def pop_many(self, count: int) -> list[Any]:
        """Take the last values off the stack."""
        if len(self.stack) < count:
            raise CheckpointError("takes more from its stack than is there")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def forget(self) -> None:
        """Take the last value, or the last mark, off the stack."""
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def name(self, module: Any, name: Any) -> Name:
        """Name a class or function."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise UnsafeCheckpointError("names a class or function by something other than strings")
        full = f"{module}.{name}"
        self.check_name(full)
        return Name(full)

    def set_state(self, state: Any) -> None:
        """Set the state of what was called."""
        target = self.stack[-1]
        if not isinstance(target, Call):
            raise UnsafeCheckpointError(f"changes {_described(target)}")
        target.state = state

    def extend(self, items: list[Any]) -> None:
        """Append to a list, or to what was called."""
        target = self.stack[-1]
        if isinstance(target, Call):
            target.items += items
        elif isinstance(target, list):
            target += items
        else:
            raise UnsafeCheckpointError(f"appends to {_described(target)}")

    def set_items(self, pairs: list[Any]) -> None:
        """Set keys of a dict, or of what was called."""
        target = self.stack[-1]
        self.budget.spend(60 * len(pairs))
        if isinstance(target, Call):
            target.pairs += pairs
        elif isinstance(target, dict):
            for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                check_key(key, self.budget)
                target[key] = value
        else:
            raise UnsafeCheckpointError(f"sets items of {_described(target)}")

    def make_dict(self, pairs: list[Any]) -> None:
        """Make a dict of keys and values in turn."""
        self.push({})
        self.set_items(pairs)

    def make_frozenset(self, items: list[Any]) -> None:
        """Make a frozenset."""
        self.push(set())
        self.add(items)
        self.push(frozenset(self.pop()))

    def make_object(self, values: list[Any]) -> None:
        """Call the first of several values with the rest."""
        self.push(Call(values[0], tuple(values[1:])))

    def add(self, items: list[Any]) -> None:
        """Add items to a set."""
        target = self.stack[-1]
        if not isinstance(target, set):
            raise UnsafeCheckpointError(f"adds items to {_described(target)}")
        self.budget.spend(100 * len(items))
        for item in items:
            check_key(item, self.budget)
            target.add(item)

    def refer(self, id: Any) -> None:  # noqa: A002 - the pickle module's word
        """Refer to what lies outside of the pickle."""
        self.persistent.append(Persistent(id))
        self.push(self.persistent[-1])

    def check_protocol(self, protocol: int) -> None:
        """Refuse protocols that are not known here."""
        if protocol > 5:
            raise CheckpointError(f"is a pickle of protocol {protocol}, which is not known here")

    def refuse(self, reason: str) -> None:
        """Refuse an instruction."""
        raise UnsafeCheckpointError(reason)


def _described(target: Any) -> str:
    return target.full if isinstance(target, Name) else f"a {type(target).__name__}"


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def _old_text(data: bytes) -> str:
    # Python 2's strings hold text and bytes alike, and as latin1 nothing of them is lost.
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


_EXTENSIONS = "uses the registry of extensions of this Python process"
_BUFFERS = "leaves its data to the program that reads it"

# What each instruction does, with the memory in bytes that it takes beside what it counts itself. No instruction is
# free, which bounds the time.
_INSTRUCTIONS: dict[bytes, tuple[int, Callable[[Parser], Any]]] = {
    pickle.PROTO: (30, lambda p: p.check_protocol(p.number(1))),
    pickle.FRAME: (30, lambda p: p.take(8)),
    # The stack.
    pickle.MARK: (120, lambda p: p.mark()),
    pickle.POP: (30, lambda p: p.forget()),
    pickle.POP_MARK: (30, lambda p: p.pop_mark()),
    pickle.DUP: (30, lambda p: p.push(p.stack[-1])),
    # The memo.
    pickle.PUT: (120, lambda p: p.put(_decimal(p.line()))),
    pickle.BINPUT: (120, lambda p: p.put(p.number(1))),
    pickle.LONG_BINPUT: (120, lambda p: p.put(p.number(4))),
    pickle.MEMOIZE: (120, lambda p: p.put(len(p.memo))),
    pickle.GET: (30, lambda p: p.push(p.memo[_decimal(p.line())])),
    pickle.BINGET: (30, lambda p: p.push(p.memo[p.number(1)])),
    pickle.LONG_BINGET: (30, lambda p: p.push(p.memo[p.number(4)])),
    # Scalars.
    pickle.NONE: (30, lambda p: p.push(None)),
    pickle.NEWTRUE: (30, lambda p: p.push(True)),
    pickle.NEWFALSE: (30, lambda p: p.push(False)),
    pickle.BININT: (40, lambda p: p.push(p.number(4, signed=True))),
    pickle.BININT1: (30, lambda p: p.push(p.number(1))),
    pickle.BININT2: (40, lambda p: p.push(p.number(2))),
    pickle.LONG1: (30, lambda p: p.push_sized(_long(p.take(p.number(1))))),
    pickle.LONG4: (30, lambda p: p.push_sized(_long(p.take(p.number(4))))),
    pickle.BINFLOAT: (40, lambda p: p.push(struct.unpack(">d", p.take(8))[0])),
    pickle.INT: (30, lambda p: p.push_sized(_decimal(p.line()))),
    pickle.LONG: (30, lambda p: p.push_sized(_decimal(p.line()))),
    pickle.FLOAT: (40, lambda p: p.push(float(p.line()))),
    # Strings and bytes.
    pickle.SHORT_BINUNICODE: (30, lambda p: p.push_sized(_text(p.take(p.number(1))))),
    pickle.BINUNICODE: (30, lambda p: p.push_sized(_text(p.take(p.number(4))))),
    pickle.BINUNICODE8: (30, lambda p: p.push_sized(_text(p.take(p.number(8))))),
    pickle.UNICODE: (30, lambda p: p.push_sized(p.line().decode("raw-unicode-escape"))),
    pickle.SHORT_BINBYTES: (30, lambda p: p.push_sized(p.take(p.number(1)))),
    pickle.BINBYTES: (30, lambda p: p.push_sized(p.take(p.number(4)))),
    pickle.BINBYTES8: (30, lambda p: p.push_sized(p.take(p.number(8)))),
    pickle.BYTEARRAY8: (30, lambda p: p.push_sized(bytearray(p.take(p.number(8))))),
    pickle.SHORT_BINSTRING: (30, lambda p: p.push_sized(_old_text(p.take(p.number(1))))),
    pickle.BINSTRING: (30, lambda p: p.push_sized(_old_text(p.take(p.number(4))))),
    pickle.STRING: (30, lambda p: p.push_sized(_quoted(p.line()))),
    # Containers.
    pickle.EMPTY_TUPLE: (30, lambda p: p.push(())),
    pickle.TUPLE1: (80, lambda p: p.push(tuple(p.pop_many(1)))),
    pickle.TUPLE2: (80, lambda p: p.push(tuple(p.pop_many(2)))),
    pickle.TUPLE3: (80, lambda p: p.push(tuple(p.pop_many(3)))),
    pickle.TUPLE: (80, lambda p: p.push(tuple(p.pop_mark()))),
    pickle.EMPTY_LIST: (100, lambda p: p.push([])),
    pickle.LIST: (100, lambda p: p.push(p.pop_mark())),
    pickle.APPEND: (30, lambda p: p.extend([p.pop()])),
    pickle.APPENDS: (30, lambda p: p.extend(p.pop_mark())),
    pickle.EMPTY_DICT: (200, lambda p: p.push({})),
    pickle.DICT: (200, lambda p: p.make_dict(p.pop_mark())),
    pickle.SETITEM: (30, lambda p: p.set_items(p.pop_many(2))),
    pickle.SETITEMS: (30, lambda p: p.set_items(p.pop_mark())),
    pickle.EMPTY_SET: (250, lambda p: p.push(set())),
    pickle.ADDITEMS: (30, lambda p: p.add(p.pop_mark())),
    pickle.FROZENSET: (250, lambda p: p.make_frozenset(p.pop_mark())),
    # Names, and what is done with them.
    pickle.GLOBAL: (250, lambda p: p.push(p.name(_text(p.line()), _text(p.line())))),
    pickle.STACK_GLOBAL: (250, lambda p: p.push(p.name(*p.pop_many(2)))),
    pickle.REDUCE: (300, lambda p: p.push(Call(*p.pop_many(2)))),
    pickle.NEWOBJ: (300, lambda p: p.push(Call(*p.pop_many(2)))),
    pickle.NEWOBJ_EX: (300, lambda p: p.push(Call(*p.pop_many(3)))),
    pickle.OBJ: (400, lambda p: p.make_object(p.pop_mark())),
    pickle.INST: (400, lambda p: p.make_object([p.name(_text(p.line()), _text(p.line())), *p.pop_mark()])),
    pickle.BUILD: (30, lambda p: p.set_state(p.pop())),
    # Storages.
    pickle.PERSID: (120, lambda p: p.refer(_text(p.line()))),
    pickle.BINPERSID: (120, lambda p: p.refer(p.pop())),
    # What reaches out of the file.
    pickle.EXT1: (30, lambda p: p.refuse(_EXTENSIONS)),
    pickle.EXT2: (30, lambda p: p.refuse(_EXTENSIONS)),
    pickle.EXT4: (30, lambda p: p.refuse(_EXTENSIONS)),
    pickle.NEXT_BUFFER: (30, lambda p: p.refuse(_BUFFERS)),
    pickle.READONLY_BUFFER: (30, lambda p: p.refuse(_BUFFERS)),
}
