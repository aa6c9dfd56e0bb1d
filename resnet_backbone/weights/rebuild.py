"""Build the tensors, arrays and containers that the records of ``safe_pickle`` describe, and nothing that computes.

Sizes are checked before anything is built: a tensor must lie inside its storage, and an array must have exactly its
bytes.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError, UnsafeCheckpointError, printable
from .safe_pickle import Budget, Call, Name, Persistent

__all__ = ["WEIGHTS", "Builder", "Inert", "StorageId", "Vocabulary"]


class Inert(dict[Any, Any]):
    """Placeholder for an object whose class is not imported, or for a name that is not called.

    It is a dict because most such objects are configs, whose items are kept.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    __hash__ = object.__hash__  # type: ignore[assignment]


class Vocabulary(NamedTuple):
    """The names that a pickle may use.

    Attributes:
        known: For each name, a function of the ``Builder``, the state that the pickle sets, and the arguments.
        bare: Names that are only arguments of others.
        inert: Names, or prefixes of names, that become an ``Inert``.
        advice: End of the error message about any other name.
    """

    known: Mapping[str, Callable[..., Any]]
    bare: frozenset[str]
    inert: tuple[str, ...]
    advice: str

    def check(self, name: str) -> str:
        """Check a name, and return the current name of one from an old library.

        Raises:
            UnsafeCheckpointError: The name is not in the vocabulary.
        """
        for old, new in _RENAMED.items():
            if name.startswith(old):
                name = new + name.removeprefix(old)
        is_known = name in self.known or name in self.bare or name.startswith(self.inert)
        if is_known or _storage_dtype(name) is not None or _constant(name) is not None:
            return name
        for pattern, reason in _REFUSED.items():
            if re.match(pattern, name):
                raise CheckpointError(reason.format(name))
        raise UnsafeCheckpointError(f"would import {printable(name)}{self.advice}")

    def is_inert(self, value: Any) -> bool:
        """Whether a value is the placeholder of an inert name."""
        return isinstance(value, Inert) and value.name.startswith(self.inert)


_RENAMED = {"__builtin__.": "builtins.", "copy_reg.": "copyreg.", "numpy._core.": "numpy.core."}
# Names with a more specific error.
_REFUSED = {
    r"torch\.distributed\.": "has tensors that are sharded over several processes ({}): save full_tensor() of each, or "
    "write and read them with torch.distributed.checkpoint",
    r"torch\._utils\._rebuild_qtensor": "has quantized tensors ({}): save the state_dict() of the network in float32",
    r"torch\._utils\._rebuild_(device|meta|xla)": "has tensors of a device without storages ({}): save the "
    "state_dict() of the network on the CPU",
    r"torch\.(u?int|float|complex|bits)\d": "has data of {}, a dtype that this version of PyTorch does not have",
}
_STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
    "UntypedStorage": torch.uint8,
}


def _storage_dtype(name: str) -> torch.dtype | None:
    match = re.fullmatch(r"torch\.(?:cuda\.|storage\.)?(\w+Storage)", name)
    return _STORAGES.get(match[1]) if match else None


def _constant(name: str) -> Any:
    """Return a dtype, layout or other constant of this version of torch, or ``None``."""
    value = vars(torch).get(name.removeprefix("torch.")) if re.fullmatch(r"torch\.[a-z][a-z0-9_]*", name) else None
    return value if isinstance(value, (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)) else None


def _sizes(values: Any) -> tuple[int, ...]:
    """Check the sizes, strides or offsets of a tensor or array."""
    is_tuple = isinstance(values, (tuple, list)) and len(values) <= 64
    if not is_tuple or not all(type(value) is int and 0 <= value < 2**60 for value in values):
        raise CheckpointError("has a shape that is not a tuple of non-negative integers")
    return tuple(values)


class StorageId(NamedTuple):
    """A pickle's reference to a storage: dtype of the elements, name in the file, device, and size in bytes."""

    dtype: torch.dtype
    key: str
    location: str
    nbytes: int

    @classmethod
    def parse(cls, reference: Persistent) -> StorageId:
        """Check a persistent ID, and return what it says."""
        parts = reference.id if isinstance(reference.id, tuple) else ()
        # In the legacy format, a sixth part is None.
        if len(parts) not in (5, 6) or parts[0] != "storage" or parts[5:] not in ((), (None,)):
            raise CheckpointError("has a persistent ID that is not a storage")
        name, key, location, count = parts[1:5]
        dtype = _storage_dtype(name.full) if isinstance(name, Name) else None
        if dtype is None or not isinstance(key, str) or not isinstance(location, str):
            raise CheckpointError("has an invalid description of a storage")
        return cls(dtype, key, location, _sizes((count,))[0] * dtype.itemsize)


class _Storage(NamedTuple):
    data: torch.UntypedStorage
    dtype: torch.dtype


@dataclass
class Builder:
    """Builds the objects that the records of one pickle describe.

    Attributes:
        vocabulary: The names that the pickle may use.
        budget: What allocations are counted against.
        read_storage: Returns the bytes of a storage; raises if the file does not have exactly that many.
        read_nested: Reads a storage that was pickled by itself, in torch's legacy format.
    """

    vocabulary: Vocabulary
    budget: Budget
    read_storage: Callable[[StorageId], torch.UntypedStorage]
    read_nested: Callable[[Any], Any]
    # Record, value and size by the record's id, which is unique while the record is alive.
    _done: dict[int, tuple[Any, Any, int]] = field(default_factory=dict)
    _depth: int = 0
    _size: int = 0

    def build(self, node: Any) -> Any:
        """Build the object that a record, or a tuple of records, describes."""
        if not isinstance(node, (tuple, Name, Call, Persistent)):
            return node
        if self._depth > 100:
            raise CheckpointError("is nested more than 100 deep")
        known = self._done.get(id(node))
        before = self._size
        # A container that has another twice, which has a third twice, and so on, grows exponentially when traversed.
        self._size += known[2] if known else 1
        if self._size > 10_000_000:
            raise CheckpointError("has nested containers with more than 10,000,000 items in all")
        if known:
            return known[1]
        self._depth += 1
        self.budget.spend(100)
        value = self._build(node)
        self._done[id(node)] = node, value, self._size - before
        self._depth -= 1
        return value

    def _build(self, node: Any) -> Any:
        if isinstance(node, Call):
            return self._call(node)
        if isinstance(node, Name):
            constant = _constant(node.full)
            return Inert(node.full) if constant is None else constant
        if isinstance(node, Persistent):
            storage = StorageId.parse(node)
            return _Storage(self.read_storage(storage), storage.dtype)
        self.budget.spend(8 * len(node))
        return tuple(map(self.build, node))

    def _call(self, node: Call) -> Any:
        if node.name.startswith(self.vocabulary.inert):
            value: Any = Inert(node.name)
        else:
            value = self.call(node.name, self.build(node.state), *map(self.build, node.args))
        # It may contain itself.
        self._done[id(node)] = node, value, 0
        if node.pairs:
            self.fill(value, zip(node.pairs[::2], node.pairs[1::2], strict=True))
        for item in node.items:
            self.budget.spend(10)
            if isinstance(value, list):
                value.append(self.build(item))
            elif isinstance(value, set):
                value.add(self.key(item))
            elif not isinstance(value, Inert):
                raise UnsafeCheckpointError(f"appends to a {type(value).__name__}")
        return value

    def call(self, name: str, state: Any, *args: Any) -> Any:
        """Build the result of a call."""
        if name not in self.vocabulary.known:
            raise UnsafeCheckpointError(f"has an object of {printable(name)}")
        return self.vocabulary.known[name](self, state, *args)

    def fill(self, target: Any, pairs: Iterable[Any]) -> Any:
        """Set keys of a dict."""
        if not isinstance(target, dict):
            raise UnsafeCheckpointError(f"sets items of a {type(target).__name__}")
        for key, value in pairs:
            target[self.key(key)] = self.build(value)
        return target

    def key(self, key: Any) -> Any:
        """Build the key of a dict or item of a set. Keys that are slow to hash, or could be made to collide, raise."""
        key = self.build(key)
        is_tuple = isinstance(key, tuple) and len(key) <= 8 and all(map(_is_scalar, key))
        if not is_tuple and not _is_scalar(key) and not isinstance(key, (Inert, torch.dtype)):
            raise CheckpointError(f"has a {type(key).__name__} as a key")
        # Hashes of numbers and tuples are predictable, so an attacker could make many collide: the cost limits their
        # number.
        self.budget.spend(10_000 if isinstance(key, (int, float, tuple)) else 300)
        return key

    def skip(self, name: str) -> Inert:
        """Return a placeholder for something unsupported; raise if the vocabulary has none."""
        if not self.vocabulary.inert:
            raise CheckpointError(f"has a {name}")
        return Inert(name)

    def array(self, data: Any, dtype: Any, shape: Any, order: Any = "C") -> Any:
        """Build a numpy array that owns its memory, in native byte order."""
        shape = _sizes(shape)
        if not isinstance(dtype, np.dtype):
            return self.skip("numpy array of a dtype that is not plain")
        if isinstance(data, str):
            data = data.encode("latin1")
        kind: Any
        kind, unit, price = (list, 1, 8) if dtype.hasobject else ((bytes, bytearray), dtype.itemsize, 1)
        if not isinstance(data, kind) or len(data) != math.prod(shape) * unit:
            raise CheckpointError("has an array whose shape does not match its data")
        self.budget.spend(price * len(data) + 200)
        if dtype.hasobject:
            return np.fromiter(data, dtype, len(data)).reshape(shape, order=order)
        array: Any = np.ndarray(shape, dtype, data, order=order) if data else np.empty(shape, dtype)
        return array.astype(dtype.newbyteorder("="), copy=True)


def _is_scalar(key: Any) -> bool:
    # Hashes of strings are cached and random; wide integers can be made to collide.
    return type(key) in (str, bytes, float, bool, type(None)) or (type(key) is int and key.bit_length() < 61)


def _shown(value: Any) -> str:
    """Describe a value by its name or type, since nested tuples could have an endless repr."""
    return printable(getattr(value, "name", value if isinstance(value, str) else f"a {type(value).__name__}"))


# The functions of WEIGHTS.known: of the builder, the state that the pickle sets, and the arguments.


def _tensor(builder: Builder, _: Any, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    # The rest is requires_grad, hooks, in version 3 a dtype, and metadata.
    if not isinstance(storage, _Storage):
        raise CheckpointError("has a tensor without a storage")
    if len(rest) > 2 and isinstance(rest[-1], dict) and rest[-1]:
        raise CheckpointError("has a conjugate or negative view of a tensor: save resolve_conj().resolve_neg() of it")
    dtype = rest[2] if len(rest) > 2 and isinstance(rest[2], torch.dtype) else storage.dtype
    if str(dtype).startswith("torch.q"):
        raise CheckpointError(f"has a tensor of {dtype} without its scale")
    size, stride = _sizes(size), _sizes(stride)
    (offset,) = _sizes((offset,)) if all(size) else (0,)
    nbytes = math.prod(size) * dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if nbytes and (last + 1) * dtype.itemsize > storage.data.nbytes():
        raise CheckpointError("has a tensor that does not lie inside its storage")
    # An expanded tensor costs as much as its copy would.
    builder.budget.spend(1000 + (nbytes if nbytes > storage.data.nbytes() else 0))
    tensor: Any = torch.empty(0, dtype=dtype, device=storage.data.device)
    tensor.set_(storage.data, offset, size, stride)
    return cast(Tensor, tensor.requires_grad_(rest[:1] == (True,)))


def _parameter(builder: Builder, _: Any, data: Any, requires_grad: Any = True, *hooks: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise CheckpointError("has a parameter that is not a tensor")
    builder.budget.spend(1000)
    return torch.nn.Parameter(data.detach(), requires_grad is True)


def _tensor_of_type(builder: Builder, _: Any, function: Any, kind: Any, args: Any, state: Any) -> Any:
    names = [value.name if isinstance(value, Inert) else "" for value in (function, kind)]
    if not names[0].startswith("torch._utils._rebuild_") or names[1] not in _BARE or not isinstance(args, tuple):
        raise UnsafeCheckpointError(f"has a tensor of {printable(names[1])}")
    return builder.call(names[0], None, *args)


_DTYPE = re.compile(r"[<>=|]?(?:[?bhilqBHILQefdgO]|[biufcSUO][1-9]\d{0,3}|(?:bool|object|(?:u?int|float|complex)\d+))")


def _dtype(builder: Builder, state: Any, name: Any, *_: Any) -> Any:
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        return builder.skip("numpy dtype that is not plain")
    dtype: np.dtype[Any] = np.dtype(name)
    if state is None:
        return dtype
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
    if not isinstance(order, str) or order not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
        return builder.skip("numpy dtype that is not plain")
    return dtype.newbyteorder(order)  # type: ignore[arg-type]


def _array(builder: Builder, state: Any, kind: Any, *_: Any) -> Any:
    if not isinstance(kind, Inert) or kind.name != "numpy.ndarray" or not isinstance(state, tuple):
        raise UnsafeCheckpointError("has an array of a class other than numpy.ndarray")
    shape, dtype, fortran, data = state[-4:]
    return builder.array(data, dtype, shape, "F" if fortran else "C")


def _array_of_buffer(builder: Builder, _: Any, data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Any:
    if order in ("C", "F"):
        return builder.array(data, dtype, shape, order)
    array = builder.array(data, dtype, shape)
    return array if isinstance(array, Inert) else array.transpose(_sizes(axes))


def _scalar(builder: Builder, _: Any, dtype: Any, data: Any = b"") -> Any:
    if isinstance(dtype, np.dtype) and dtype.hasobject:
        return builder.skip("numpy object")
    array = builder.array(data, dtype, ())
    return array if isinstance(array, Inert) else array[()]


def _bytes(builder: Builder, _: Any, data: Any = b"", encoding: Any = "latin1") -> bytes:
    # Protocols 0 to 2 write bytes as text.
    if not isinstance(data, (str, bytes, bytearray)):
        raise CheckpointError(f"converts a {type(data).__name__} to bytes")
    if encoding not in ("latin1", "latin-1", "ascii", "utf-8"):
        raise UnsafeCheckpointError(f"encodes with codec {_shown(encoding)}")
    builder.budget.spend(len(data))
    return data.encode(encoding) if isinstance(data, str) else bytes(data)


def _container(kind: Callable[[], Any], state: Any) -> Any:
    if state is not None:
        raise UnsafeCheckpointError("sets the state of a container")
    return kind()


def _set(builder: Builder, _: Any, items: Any = ()) -> Any:
    return {builder.key(item) for item in _plain_list(items)}


def _ordered_dict(builder: Builder, state: Any, pairs: Any = ()) -> Any:
    value: Any = collections.OrderedDict()
    if isinstance(state, dict) and "_metadata" in state:
        # The versions of modules, for load_state_dict.
        value._metadata = state["_metadata"]
    return builder.fill(value, _plain_list(pairs))


def _counter(builder: Builder, _: Any, counts: Any = None) -> Any:
    return builder.fill(collections.Counter(), list((counts or {}).items()))


def _defaultdict(_: Builder, __: Any, factory: Any = None) -> Any:
    name = factory.name if isinstance(factory, Inert) else None
    return collections.defaultdict({"builtins.int": int, "builtins.list": list, "builtins.dict": dict}.get(name or ""))


def _plain_list(items: Any) -> Any:
    if not isinstance(items, (list, tuple)):
        raise CheckpointError(f"converts a {type(items).__name__} to a container")
    return items


def _reconstructed(builder: Builder, _: Any, kind: Any, *__: Any) -> Inert:
    # Protocols 0 and 1 build objects so.
    if not builder.vocabulary.is_inert(kind):
        raise UnsafeCheckpointError(f"reconstructs an object of {_shown(kind)}")
    return Inert(kind.name)


def _getattr(builder: Builder, _: Any, owner: Any, name: Any) -> Inert:
    # mmengine's logs are saved with their methods.
    full = f"{_shown(owner)}.{_shown(name)}"
    if full not in builder.vocabulary.bare and not (builder.vocabulary.is_inert(owner) and isinstance(name, str)):
        raise UnsafeCheckpointError(f"would import builtins.getattr, to use {full}{builder.vocabulary.advice}")
    return Inert(full)


# Names that are only arguments of others.
_BARE = frozenset(
    ["numpy.ndarray", "torch._utils._rebuild_wrapper_subclass", "torch.Tensor", "torch.nn.parameter.Parameter"]
    + [f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "long", "str", "tuple", "unicode")]
)
# Checkpoints often have training arguments, configs and logs, which are not needed: placeholders replace them.
_INERT = tuple(
    """
    addict.addict. argparse.Namespace builtins.complex builtins.frozenset builtins.object builtins.range builtins.slice
    builtins.xrange collections.deque datetime. decimal.Decimal detectron2.config. easydict. fractions.Fraction
    fvcore.common.config. lightning. lightning_fabric. ml_collections. mmcv.utils.config. mmengine.config.
    mmengine.logging.history_buffer. mmengine.optim. numpy.dtypes. numpy.random. omegaconf. pathlib. pytorch_lightning.
    torch._utils._rebuild_nested_tensor torch._utils._rebuild_sparse_tensor torch.device torch.optim.
    torch.serialization._get_layout torch.torch_version.TorchVersion types.SimpleNamespace typing. uuid.UUID
    yacs.config.
    """.split()  # noqa: SIM905 - these are words, not code
)
# The names in files of weights.
WEIGHTS = Vocabulary(
    known={
        "_codecs.encode": _bytes,
        "builtins.bytearray": lambda *args: bytearray(_bytes(*args)),
        "builtins.bytes": _bytes,
        "builtins.getattr": _getattr,
        "builtins.set": _set,
        "collections.Counter": _counter,
        "collections.OrderedDict": _ordered_dict,
        "collections.defaultdict": _defaultdict,
        "copyreg._reconstructor": _reconstructed,
        "dict": lambda _, state: _container(dict, state),
        "list": lambda _, state: _container(list, state),
        "numpy.core.multiarray._reconstruct": _array,
        "numpy.core.multiarray.scalar": _scalar,
        "numpy.core.numeric._frombuffer": _array_of_buffer,
        "numpy.dtype": _dtype,
        "set": lambda _, state: _container(set, state),
        "torch.Size": lambda builder, state, sizes: torch.Size(_sizes(sizes)),
        "torch._tensor._rebuild_from_type_v2": _tensor_of_type,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor,
        "torch.nn.parameter.Parameter": _parameter,
        "torch.storage._load_from_bytes": lambda builder, state, data: builder.read_nested(data),
    },
    bare=_BARE,
    inert=_INERT,
    advice=". A checkpoint may have tensors, arrays and plain containers; if this is a whole pickled model, save its "
    "state_dict() instead",
)
