"""Make values of what a pickle describes: tensors, arrays, containers, and nothing that computes.

``safe_pickle`` has read names and calls; here is what they stand for. Every size is compared with the bytes that are
there before anything is made of them: a tensor lies inside its storage, an array has exactly its bytes.
"""

from __future__ import annotations

import collections
import datetime
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from .errors import CheckpointError, UnsafeCheckpointError
from .safe_pickle import Budget, Call, Name, Persistent, check_key, printable

__all__ = ["WEIGHTS", "Builder", "Inert", "StorageId", "Vocabulary"]

# Names of which checkpoints are full but whose content nobody needs: training arguments, configs, logs.
_INERT = (
    "__builtin__.object",
    "__builtin__.range",
    "__builtin__.slice",
    "__builtin__.xrange",
    "addict.addict.",
    "argparse.Namespace",
    "builtins.object",
    "builtins.range",
    "builtins.slice",
    "decimal.Decimal",
    "detectron2.config.",
    "easydict.",
    "fractions.Fraction",
    "fvcore.common.config.",
    "lightning.",
    "lightning_fabric.",
    "ml_collections.",
    "mmcv.utils.config.",
    "mmengine.config.",
    "mmengine.logging.history_buffer.",
    "mmengine.optim.",
    "numpy.dtypes.",
    "numpy.random.",
    "omegaconf.",
    "pathlib.",
    "pytorch_lightning.",
    "torch._utils._rebuild_nested_tensor",
    "torch._utils._rebuild_sparse_tensor",
    "torch.optim.",
    "torch.torch_version.TorchVersion",
    "types.SimpleNamespace",
    "typing.",
    "uuid.UUID",
    "yacs.config.",
)
# Names that stand for themselves, as arguments of others.
_BARE = frozenset(
    {"numpy.ndarray", "torch._utils._rebuild_wrapper_subclass", "torch.Tensor", "torch.nn.parameter.Parameter"}
) | {
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("bool", "dict", "float", "int", "list", "long", "str", "tuple", "unicode")
}
_FACTORIES = {"int": int, "float": float, "str": str, "list": list, "dict": dict, "set": set, "bool": bool}
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
_STORAGE = re.compile(r"torch\.(?:cuda\.|storage\.)?(\w+Storage)")
# A dtype, layout or other constant of torch's; which of them there are depends on its version.
_CONSTANT = re.compile(r"torch\.[a-z][a-z0-9_]*")
_DTYPE = re.compile(r"[<>=|]?(?:[?bhilqBHILQefdgO]|[biufcSUO][1-9]\d{0,3}|(?:bool|object|(?:u?int|float|complex)\d+))")
# What is refused with advice.
_NAMED = {
    r"torch\.distributed\..*": "holds tensors that are sharded over several processes ({}): save full_tensor() of "
    "each, or write and read them with torch.distributed.checkpoint",
    r"torch\._utils\._rebuild_qtensor": "holds quantized tensors ({}): save the state_dict() of the network in float32",
    r"torch\.(?:u?int|float|complex|bits)\d\w*": "holds data of {}, a dtype that this version of PyTorch does not have",
}


class Inert(dict[Any, Any]):
    """Takes the place of an object whose class is not imported, or of a name that is not called.

    A dict, because the configs that it mostly stands for are dicts: what the file says of their items is kept.

    Attributes:
        name: The name of the class or function.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    __hash__ = object.__hash__  # type: ignore[assignment]


@dataclass(frozen=True)
class StorageId:
    """What a pickle says of the storage of a tensor.

    Attributes:
        dtype: The dtype of its elements.
        key: The name under which the file has its bytes.
        location: The device that it was on.
        nbytes: Its size.
        view: Where it lies if it is part of a storage: the first byte, and the number of bytes.
    """

    dtype: torch.dtype
    key: str
    location: str
    nbytes: int
    view: tuple[int, int] | None = None

    @classmethod
    def parse(cls, reference: Persistent) -> StorageId:
        """Check a pickle's reference to a storage."""
        kind, *rest = reference.id if isinstance(reference.id, tuple) else (None,)
        if kind != "storage" or len(rest) not in (4, 5):
            raise CheckpointError("refers to something outside of the file that is not a storage")
        name, key, location, count = rest[:4]
        match = _STORAGE.fullmatch(name.full) if isinstance(name, Name) else None
        if match is None or match[1] not in _STORAGES or not isinstance(key, str) or not isinstance(location, str):
            raise CheckpointError("describes a storage as torch does not")
        dtype = _STORAGES[match[1]]
        view = None
        if len(rest) == 5 and rest[4] is not None:
            _, start, length = rest[4]
            start, length = _sizes((start, length))
            view = (start * dtype.itemsize, length * dtype.itemsize)
        (count,) = _sizes((count,))
        return cls(dtype, key, location, count * dtype.itemsize, view)


Handler = Callable[..., Any]


@dataclass(frozen=True)
class Vocabulary:
    """The names that a pickle may use.

    Attributes:
        known: What each name makes: a function of the ``Builder``, the state that the pickle sets, and the arguments.
        bare: Names that are arguments of others and are not called.
        inert: Names, or beginnings of names, of which an ``Inert`` is made.
        advice: What to do about other names.
    """

    known: Mapping[str, Handler]
    bare: frozenset[str]
    inert: tuple[str, ...]
    advice: str

    def check(self, name: str) -> None:
        """Refuse a name that is not in the vocabulary.

        Raises:
            UnsafeCheckpointError: It is not.
        """
        if name in self.known or name in self.bare or name.startswith(self.inert):
            return
        match = _STORAGE.fullmatch(name)
        if (match and match[1] in _STORAGES) or _constant(name) is not None:
            return
        for pattern, reason in _NAMED.items():
            if re.fullmatch(pattern, name):
                raise CheckpointError(reason.format(name))
        raise UnsafeCheckpointError(f"would import {printable(name)}{self.advice}")

    def is_inert(self, value: Any) -> bool:
        """Whether a value stands for an inert name."""
        return isinstance(value, Inert) and bool(self.inert) and value.name.startswith(self.inert)


def _constant(name: str) -> Any:
    value = vars(torch).get(name.removeprefix("torch.")) if _CONSTANT.fullmatch(name) else None
    return value if isinstance(value, (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)) else None


def _sizes(values: Any) -> tuple[int, ...]:
    """Check the sizes, strides or offsets of a tensor or array."""
    if not isinstance(values, (tuple, list)) or len(values) > 64:
        raise CheckpointError("has a shape that is not a tuple of integers")
    if not all(type(value) is int and 0 <= value < 2**60 for value in values):
        raise CheckpointError("has a shape that is not a tuple of integers")
    return tuple(values)


@dataclass(frozen=True)
class Storage:
    """The bytes of a tensor, and the dtype of its elements."""

    data: torch.UntypedStorage
    dtype: torch.dtype


class Builder:
    """Makes values of the records of one pickle.

    Args:
        vocabulary: The names that the pickle may use.
        budget: What allocations are counted against.
        read_storage: Returns the bytes of a storage; raises if the file does not have exactly these.
        read_nested: Reads a storage that was pickled by itself, in torch's legacy format.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        budget: Budget,
        read_storage: Callable[[StorageId], torch.UntypedStorage],
        read_nested: Callable[[Any], Any],
    ) -> None:
        self.vocabulary = vocabulary
        self.budget = budget
        self.read_storage = read_storage
        self.read_nested = read_nested
        # The value and size of each record, by the record's identity; it is held so that this stays its own.
        self._done: dict[int, tuple[Any, Any, int]] = {}
        self._depth = 0
        self._size = 0

    def build(self, node: Any) -> Any:
        """Return what a record, or a container of records, describes. Lists and dicts are changed in place."""
        make = _BUILD.get(type(node))
        if make is None:
            return node
        if id(node) in self._done:
            _, value, size = self._done[id(node)]
            self._grow(size)
            return value
        if self._depth > 100:
            raise CheckpointError("is nested more than 100 deep")
        before = self._size
        self._grow(1)
        self._depth += 1
        self.budget.spend(100)
        value = make(self, node)
        self._done[id(node)] = node, value, self._size - before
        self._depth -= 1
        return value

    def _grow(self, size: int) -> None:
        # Written out, a container that holds another twice, that a third twice, and so on, would have no end.
        self._size += size
        if self._size > 10_000_000:
            raise CheckpointError("holds containers in containers that would be too large if each were written out")

    def _list(self, node: list[Any]) -> list[Any]:
        self._done[id(node)] = node, node, 0
        for index, item in enumerate(node):
            node[index] = self.build(item)
        return node

    def _dict(self, node: dict[Any, Any]) -> dict[Any, Any]:
        self._done[id(node)] = node, node, 0
        for key, value in node.items():
            node[key] = self.build(value)
        if any(type(key) in _BUILD for key in node):
            items = list(node.items())
            node.clear()
            node.update((self._key(key), value) for key, value in items)
        return node

    def _key(self, key: Any) -> Any:
        key = self.build(key)
        if not isinstance(key, (Inert, torch.dtype, torch.device)):
            check_key(key, self.budget)
        return key

    def _tuple(self, node: tuple[Any, ...]) -> tuple[Any, ...]:
        self.budget.spend(8 * len(node))
        return tuple(self.build(item) for item in node)

    def _set(self, node: set[Any]) -> Any:
        return type(node)(self._key(item) for item in node)

    def _name(self, node: Name) -> Any:
        constant = _constant(node.full)
        return Inert(node.full) if constant is None else constant

    def _storage(self, node: Persistent) -> Storage:
        identity = StorageId.parse(node)
        data = self.read_storage(identity)
        if identity.view is not None:
            start, length = identity.view
            if start + length > data.nbytes():
                raise CheckpointError("holds a storage that does not lie inside the one that it is part of")
            data = data[start : start + length]
        return Storage(data, identity.dtype)

    def _call(self, node: Call) -> Any:
        if node.kwargs:
            raise UnsafeCheckpointError(f"makes an object of {printable(node.name)} by keyword arguments")
        if self.vocabulary.inert and node.name.startswith(self.vocabulary.inert):
            value: Any = Inert(node.name)
        else:
            value = self.call(node.name, self.build(node.state), *[self.build(argument) for argument in node.args])
        self._done[id(node)] = node, value, 0
        if node.pairs:
            self.fill(value, zip(node.pairs[::2], node.pairs[1::2], strict=True))
        if node.items and not isinstance(value, Inert):
            if not isinstance(value, (list, collections.deque)):
                raise UnsafeCheckpointError(f"appends to a {type(value).__name__}")
            value.extend(self.build(item) for item in node.items)
        return value

    def call(self, name: str, state: Any, *args: Any) -> Any:
        """Return what the call of a name makes."""
        if name not in self.vocabulary.known:
            raise UnsafeCheckpointError(f"makes an object of {printable(name)}")
        return self.vocabulary.known[name](self, state, *args)

    def fill(self, target: Any, pairs: Iterable[Any]) -> Any:
        """Set keys of a dict."""
        if not isinstance(target, dict):
            raise UnsafeCheckpointError(f"sets items of a {type(target).__name__}")
        for key, value in pairs:
            self.budget.spend(100)
            target[self._key(key)] = self.build(value)
        return target

    def skip(self, name: str) -> Inert:
        """Stand for what cannot be made here, where nobody needs it."""
        if not self.vocabulary.inert:
            raise CheckpointError(f"holds a {name}")
        return Inert(name)

    def array(self, data: Any, dtype: Any, shape: Any, order: Any = "C") -> Any:
        """Make a numpy array, which owns its memory and is in this machine's byte order."""
        shape = _sizes(shape)
        if not isinstance(dtype, np.dtype):
            return self.skip("numpy array of a dtype that is not plain")
        if dtype.hasobject:
            return self._object_array(data, shape, order)
        data = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(data, (bytes, bytearray)) or len(data) != math.prod(shape) * dtype.itemsize:
            raise CheckpointError("holds an array of another size than its data")
        self.budget.spend(len(data) + 200)
        array: Any = np.ndarray(shape, dtype, data, order=order) if data else np.empty(shape, dtype)
        return array.astype(dtype.newbyteorder("="), copy=True)

    def _object_array(self, items: Any, shape: tuple[int, ...], order: Any) -> Any:
        if not isinstance(items, list) or len(items) != math.prod(shape):
            raise CheckpointError("holds an array of another size than its data")
        self.budget.spend(8 * len(items) + 200)
        array = np.empty(len(items), dtype=object)
        for index, item in enumerate(items):
            array[index] = item
        return array.reshape(shape, order=order)


_BUILD: dict[type, Callable[[Builder, Any], Any]] = {
    list: Builder._list,
    dict: Builder._dict,
    tuple: Builder._tuple,
    set: Builder._set,
    frozenset: Builder._set,
    Name: Builder._name,
    Call: Builder._call,
    Persistent: Builder._storage,
}


def _shown(value: Any) -> str:
    """Describe a value by its name or type; tuples in tuples could take for ever to be written out."""
    return printable(getattr(value, "name", value if isinstance(value, str) else f"a {type(value).__name__}"))


def _tensor(builder: Builder, state: Any, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    requires_grad, _, metadata = rest + (False, None, None)[len(rest) :]
    return _typed_tensor(builder, state, storage, offset, size, stride, requires_grad, None, storage.dtype, metadata)


def _typed_tensor(
    builder: Builder,
    _state: Any,
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    _hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> Tensor:
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise CheckpointError("holds a tensor without a storage")
    if metadata:
        raise CheckpointError("holds a conjugate or negative view of a tensor: save resolve_conj().resolve_neg() of it")
    size, stride = _sizes(size), _sizes(stride)
    (offset,) = _sizes((offset,)) if all(size) else (0,)
    nbytes = math.prod(size) * dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if nbytes and (last + 1) * dtype.itemsize > storage.data.nbytes():
        raise CheckpointError("holds a tensor that does not lie inside its storage")
    # One that repeats its elements costs what it would take in full.
    builder.budget.spend(1000 + (nbytes if nbytes > storage.data.nbytes() else 0))
    tensor: Any = torch.empty(0, dtype=dtype, device=storage.data.device)
    tensor.set_(storage.data, offset, size, stride)
    return cast(Tensor, tensor.requires_grad_(requires_grad is True))


def _meta_tensor(builder: Builder, _: Any, dtype: Any, size: Any, stride: Any, requires_grad: Any) -> Tensor:
    builder.budget.spend(1000)
    return torch.empty(_sizes(size), dtype=dtype, device="meta", requires_grad=requires_grad is True)


def _device_tensor(builder: Builder, _: Any, data: Any, dtype: Any, __: Any, requires_grad: Any) -> Tensor:
    tensor = torch.from_numpy(data) if isinstance(data, np.ndarray) else data
    if not isinstance(tensor, Tensor) or not isinstance(dtype, torch.dtype):
        raise CheckpointError("holds a tensor without data")
    builder.budget.spend(1000 + tensor.numel() * dtype.itemsize)
    return tensor.to(dtype).requires_grad_(requires_grad is True)


def _parameter(builder: Builder, _: Any, data: Any, requires_grad: Any = True, *__: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise CheckpointError("holds a parameter that is not a tensor")
    builder.budget.spend(1000)
    return torch.nn.Parameter(data.detach(), requires_grad is True)


def _tensor_of_type(builder: Builder, _: Any, function: Any, kind: Any, args: Any, state: Any) -> Any:
    names = [value.name if isinstance(value, Inert) else "" for value in (function, kind)]
    if not names[0].startswith("torch._utils._rebuild_") or names[1] not in _BARE or not isinstance(args, tuple):
        raise UnsafeCheckpointError(f"makes a tensor of {printable(names[1])}")
    return builder.call(names[0], None, *args)


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
        raise UnsafeCheckpointError("makes an array of something that is not an array")
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


def _encode(builder: Builder, _: Any, text: Any, encoding: Any = "latin1") -> bytes:
    # Protocols 0 to 2 write bytes as text.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "ascii", "utf-8"):
        raise UnsafeCheckpointError(f"encodes with codec {_shown(encoding)}")
    builder.budget.spend(len(text))
    return text.encode(encoding)


def _bytes(builder: Builder, state: Any, data: Any = b"", encoding: Any = "latin1") -> bytes:
    if isinstance(data, str):
        return _encode(builder, state, data, encoding)
    if not isinstance(data, (bytes, bytearray)):
        raise CheckpointError("makes bytes of something that is not data")
    builder.budget.spend(len(data))
    return bytes(data)


def _bytearray(builder: Builder, state: Any, *args: Any) -> bytearray:
    return bytearray(_bytes(builder, state, *args))


def _complex(_: Builder, __: Any, real: float, imaginary: float) -> complex:
    return complex(float(real), float(imaginary))


def _set_of(kind: type) -> Handler:
    def make(builder: Builder, _: Any, items: Any = ()) -> Any:
        for item in _plain_list(items):
            builder.budget.spend(100)
            check_key(item, builder.budget)
        return kind(items)

    return make


def _ordered_dict(builder: Builder, state: Any, pairs: Any = ()) -> Any:
    value: Any = collections.OrderedDict()
    if isinstance(state, dict) and "_metadata" in state:
        # The versions of modules, which load_state_dict goes by.
        value._metadata = state["_metadata"]
    return builder.fill(value, _plain_list(pairs))


def _counter(builder: Builder, _: Any, counts: Any = None) -> Any:
    return builder.fill(collections.Counter(), list((counts or {}).items()))


def _defaultdict(_: Builder, __: Any, factory: Any = None) -> Any:
    name = factory.name.rpartition(".")[2] if isinstance(factory, Inert) else None
    return collections.defaultdict(_FACTORIES.get(name or ""))


def _deque(builder: Builder, _: Any, items: Any = (), length: Any = None) -> Any:
    items = _plain_list(items)
    builder.budget.spend(8 * len(items))
    return collections.deque(items, length if length is None else _sizes((length,))[0])


def _plain_list(items: Any) -> Any:
    if not isinstance(items, (list, tuple)):
        raise CheckpointError(f"makes a container of a {type(items).__name__}")
    return items


def _time(kind: type) -> Handler:
    def make(_: Builder, __: Any, *args: Any) -> Any:
        plain = (int, float, bytes, str, type(None), datetime.timedelta, datetime.tzinfo)
        if not all(isinstance(argument, plain) for argument in args):
            raise CheckpointError(f"makes a {kind.__name__} of something that is not a number")
        return kind(*[value.encode("latin1") if isinstance(value, str) else value for value in args])

    return make


def _reconstructed(builder: Builder, _: Any, kind: Any, *__: Any) -> Inert:
    # What protocols 0 and 1 do for objects.
    if not builder.vocabulary.is_inert(kind):
        raise UnsafeCheckpointError(f"reconstructs an object of {_shown(kind)}")
    return Inert(kind.name)


def _getattr(builder: Builder, _: Any, owner: Any, name: Any) -> Inert:
    # mmengine's logs hold methods of theirs.
    if not builder.vocabulary.is_inert(owner) or not isinstance(name, str):
        raise UnsafeCheckpointError(f"would import builtins.getattr, to use {_shown(name)} of {_shown(owner)}")
    return Inert(f"{owner.name}.{name}")


def _device(_: Builder, __: Any, kind: Any, index: Any = None) -> torch.device:
    if not isinstance(kind, str) or not (index is None or type(index) is int):
        raise CheckpointError("names a device as torch does not")
    return torch.device(kind) if index is None else torch.device(kind, index)


def _layout(_: Builder, __: Any, name: Any) -> Any:
    return _constant(name) if isinstance(name, str) else None


def _known() -> dict[str, Handler]:
    known: dict[str, Handler] = {
        "_codecs.encode": _encode,
        "collections.Counter": _counter,
        "collections.OrderedDict": _ordered_dict,
        "collections.defaultdict": _defaultdict,
        "collections.deque": _deque,
        "numpy.dtype": _dtype,
        "torch.Size": lambda builder, state, sizes: torch.Size(_sizes(sizes)),
        "torch._tensor._rebuild_from_type_v2": _tensor_of_type,
        "torch._utils._rebuild_device_tensor_from_cpu_tensor": _device_tensor,
        "torch._utils._rebuild_device_tensor_from_numpy": _device_tensor,
        "torch._utils._rebuild_meta_tensor_no_storage": _meta_tensor,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_parameter_with_state": _parameter,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _typed_tensor,
        "torch._utils._rebuild_xla_tensor": _device_tensor,
        "torch.device": _device,
        "torch.nn.parameter.Parameter": _parameter,
        "torch.serialization._get_layout": _layout,
        "torch.storage._load_from_bytes": lambda builder, state, data: builder.read_nested(data),
    }
    for module in ("builtins", "__builtin__"):
        known |= {
            f"{module}.bytearray": _bytearray,
            f"{module}.bytes": _bytes,
            f"{module}.complex": _complex,
            f"{module}.frozenset": _set_of(frozenset),
            f"{module}.getattr": _getattr,
            f"{module}.set": _set_of(set),
        }
    for module in ("copyreg", "copy_reg"):
        known[f"{module}._reconstructor"] = _reconstructed
    for kind in (datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone):
        known[f"datetime.{kind.__name__}"] = _time(kind)
    for module in ("numpy.core", "numpy._core"):
        known |= {
            f"{module}.multiarray._reconstruct": _array,
            f"{module}.multiarray.scalar": _scalar,
            f"{module}.numeric._frombuffer": _array_of_buffer,
        }
    return known


# What a file of weights may name. What stands beside the weights is read past.
WEIGHTS = Vocabulary(
    _known(),
    _BARE,
    _INERT,
    ". A checkpoint may hold tensors, arrays and plain containers; if this is a whole pickled model, save its "
    "state_dict() instead",
)
