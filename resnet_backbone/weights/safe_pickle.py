"""An unpickler that knows tensors, numpy arrays and plain containers, and refuses everything else by name.

A pickle is a program: it may import any function and call it. This one may reach only what is listed here. Names of
which checkpoints are full but whose content nobody needs (training arguments, configs, logs) become inert objects; the
modules they name are never imported.

What is listed could still do harm by arguments that no checkpoint has: numpy and torch have constructors that take an
address in memory, and a pickle may set attributes of a class. So classes that only name something are stand-ins that
cannot be called, and the opcodes that change an object are limited to what the file itself has made.
"""

from __future__ import annotations

import collections
import datetime
import functools
import io
import pickle
import tarfile
from collections.abc import Callable
from typing import IO, Any, ClassVar

import numpy as np
import torch

from .errors import UnsafeCheckpointError

__all__ = ["LEGACY_MAGIC", "RestrictedUnpickler", "TorchPickle", "find_plain", "load_pickle"]

# The pickled number that opens files written by torch.save before torch 1.6.
LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")


class Inert(dict[Any, Any]):
    """Takes the place of an object whose class is not imported: it accepts what a pickle does to it, and does nothing.

    A dict, because the configs and attribute dicts that it stands for are dicts.
    """

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        """Accept any arguments."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Forget the state."""

    def append(self, _: Any) -> None:
        """Forget an item of a list."""

    def extend(self, _: Any) -> None:
        """Forget items of a list."""

    __hash__ = object.__hash__  # type: ignore[assignment]


# Modules, or single names, whose objects become inert.
_INERT = (
    "addict.addict.",
    "argparse.Namespace",
    "detectron2.config.",
    "easydict.",
    "fvcore.common.config.",
    "lightning.",
    "lightning_fabric.",
    "mmcv.utils.config.",
    "mmengine.config.",
    "mmengine.logging.history_buffer.",
    "mmengine.optim.",
    "numpy.random.",
    "omegaconf.",
    "pathlib.",
    "pytorch_lightning.",
    "torch.optim.",
    "types.SimpleNamespace",
    "uuid.UUID",
    "yacs.config.",
)


def _getattr(owner: Any, name: str) -> Any:
    """Look up an attribute of an inert object: mmengine's logs hold methods of theirs."""
    if owner is Inert or isinstance(owner, Inert):
        return Inert
    raise UnsafeCheckpointError(f"would import builtins.getattr, to use {name!r} of {owner!r}")


class _Token:
    """Stands for a class that a pickle names and does not call."""

    def __init__(self, name: str, dtype: torch.dtype | None = None) -> None:
        self.name = name
        self.dtype = dtype

    def __repr__(self) -> str:
        return self.name

    def __call__(self, *_: Any) -> Any:
        raise UnsafeCheckpointError(f"makes an object of {self.name}")


_NDARRAY = _Token("numpy.ndarray")


@functools.cache
def _storage(name: str) -> _Token | None:
    """Stand for a class of storage, of which torch.load asks nothing but the dtype."""
    if name == "UntypedStorage":
        return _Token("torch.UntypedStorage", torch.uint8)
    try:
        return _Token(f"torch.{name}", torch.storage._get_dtype_from_pickle_storage_type(name))
    except KeyError:
        return None


def _scalar(dtype: np.dtype[Any], data: Any = b"") -> Any:
    if dtype.hasobject:
        raise UnsafeCheckpointError("holds a numpy object scalar")
    return np.frombuffer(data if isinstance(data, bytes) else data.encode("latin1"), dtype=dtype, count=1)[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    # Python 2 and protocol 2 write bytes as text in latin1.
    if encoding not in ("latin1", "latin-1", "ascii", "utf-8"):
        raise UnsafeCheckpointError(f"encodes with codec {encoding!r}")
    return text.encode(encoding)


def _dtype(*arguments: Any) -> np.dtype[Any]:
    # A dtype by name or tuple; numpy also takes any object with a dtype attribute, which no file needs.
    dtype: np.dtype[Any] = np.dtype(*arguments)
    if dtype.kind == "V":
        raise UnsafeCheckpointError(f"holds numpy data of the structured dtype {dtype}")
    return dtype


def _array(subtype: Any, *_: Any) -> np.ndarray[Any, Any]:
    """Make the empty array that every pickled array begins as; its state follows."""
    if subtype is not _NDARRAY:
        raise UnsafeCheckpointError(f"makes an array of {subtype!r}")
    return np.empty(0, dtype=np.int8)


def _array_from_buffer(data: Any, dtype: Any, shape: Any, order: Any, *axes: Any) -> Any:
    if not isinstance(data, (bytes, bytearray)) or not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise UnsafeCheckpointError("makes an array of what is no plain data")
    return _numpy_frombuffer()(data, dtype, shape, order, *axes)


def _tensor_from_bytes(data: Any) -> Any:
    """Read a tensor that was pickled outside of torch.save; torch's own function would read it without restrictions.

    Torch writes such tensors in its legacy format alone. torch.load would take other formats as well: a TorchScript
    archive is a program that it runs, and a tar archive makes links.
    """
    if not isinstance(data, bytes) or data[2:14] != LEGACY_MAGIC or tarfile.is_tarfile(io.BytesIO(data)):
        raise UnsafeCheckpointError("holds a tensor in a format that torch does not pickle tensors in")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False, pickle_module=TorchPickle)


def _numpy_frombuffer() -> Any:
    return np.zeros(1).__reduce_ex__(5)[0]


_BUILTINS = ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int")
_CONTAINER_BUILTINS = ("list", "object", "range", "set", "slice", "str", "tuple")
_TORCH_REBUILDERS = (
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_parameter",
    "_rebuild_parameter_with_state",
)


@functools.lru_cache(maxsize=1)
def _allowed() -> dict[str, Any]:
    """Everything that a pickle may reach, by full name."""
    builtins = __builtins__ if isinstance(__builtins__, dict) else vars(__builtins__)
    allowed: dict[str, Any] = {}
    for module in ("builtins", "__builtin__"):
        allowed |= {f"{module}.{name}": builtins[name] for name in _BUILTINS + _CONTAINER_BUILTINS}
        allowed |= {f"{module}.getattr": _getattr, f"{module}.long": int, f"{module}.unicode": str}
    for name in ("OrderedDict", "defaultdict", "deque", "Counter"):
        allowed[f"collections.{name}"] = getattr(collections, name)
    for name in ("datetime", "date", "time", "timedelta", "timezone"):
        allowed[f"datetime.{name}"] = getattr(datetime, name)
    for module in ("copyreg", "copy_reg"):
        allowed[f"{module}._reconstructor"] = _reconstruct_object
    for module in ("numpy.core", "numpy._core"):
        allowed |= {
            f"{module}.multiarray._reconstruct": _array,
            f"{module}.multiarray.scalar": _scalar,
            f"{module}.numeric._frombuffer": _array_from_buffer,
        }
    allowed |= {"numpy.ndarray": _NDARRAY, "numpy.dtype": _dtype, "_codecs.encode": _encode}
    for name in _TORCH_REBUILDERS:
        if hasattr(torch._utils, name):
            allowed[f"torch._utils.{name}"] = getattr(torch._utils, name)
    allowed |= {
        "torch.storage._load_from_bytes": _tensor_from_bytes,
        "torch.Size": torch.Size,
        "torch.device": torch.device,
        "torch.Tensor": _Token("torch.Tensor"),
        "torch.nn.parameter.Parameter": torch.nn.Parameter,
        "torch.storage.UntypedStorage": _storage("UntypedStorage"),
        "torch.serialization._get_layout": torch.serialization._get_layout,
    }
    return allowed


def _reconstruct_object(cls: Any, base: Any, state: Any) -> Any:
    """What copyreg does for objects of protocols 0 and 1, for inert ones."""
    if _is_inert(cls):
        return cls()
    raise UnsafeCheckpointError(f"reconstructs an object of {cls!r}")


def find_class(module: str, name: str) -> Any:
    """Return what a pickle may use under a name.

    Raises:
        UnsafeCheckpointError: The name is not on the list; nothing of it was imported.
    """
    full = f"{module}.{name}"
    if full not in _allowed() and full.startswith(_INERT):
        return Inert
    return find_plain(module, name)


def find_plain(module: str, name: str) -> Any:
    """Return what a pickle may use under a name, where nothing may become inert.

    Raises:
        UnsafeCheckpointError: The name is not on the list; nothing of it was imported.
    """
    full = f"{module}.{name}"
    allowed = _allowed()
    if full in allowed:
        return allowed[full]
    if module == "torch" and "." not in name and isinstance(vars(torch).get(name), torch.dtype):
        return vars(torch)[name]
    # Typed storages, such as torch.FloatStorage, in files that older versions wrote.
    if module in ("torch", "torch.cuda") and name.endswith("Storage") and (storage := _storage(name)) is not None:
        return storage
    if module == "numpy.dtypes" and name.endswith("DType"):
        return functools.partial(_dtype_of_class, name)
    raise UnsafeCheckpointError(f"would import {full}")


def _dtype_of_class(name: str) -> np.dtype[Any]:
    dtype = np.dtype(name.removesuffix("DType").lower())
    if dtype.hasobject:
        raise UnsafeCheckpointError(f"holds a numpy {name}")
    return dtype


_OPCODES: dict[int, Callable[[Any], None]] = {**pickle._Unpickler.dispatch}


class RestrictedUnpickler(pickle._Unpickler):
    """Python's unpickler, with ``find_class`` as its only way to any name.

    The one that is written in Python: only its opcodes can be limited.
    """

    stack: list[Any]
    metastack: list[list[Any]]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {**_OPCODES}

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle may use under a name; see the function of this name."""
        return find_class(module, name)

    def _set_state(self) -> None:
        _check_state(*self.stack[-2:])
        _OPCODES[pickle.BUILD[0]](self)

    def _set_item(self) -> None:
        _check_dict(self.stack[-3])
        _OPCODES[pickle.SETITEM[0]](self)

    def _set_items(self) -> None:
        # The items lie on a stack of their own; what they go into ends the one below.
        _check_dict(self.metastack[-1][-1])
        _OPCODES[pickle.SETITEMS[0]](self)

    def _new_by_keywords(self) -> None:
        # torch's constructors take addresses by keyword.
        if not _is_inert(self.stack[-3]):
            raise UnsafeCheckpointError(f"makes an object of {self.stack[-3]!r} by keyword arguments")
        _OPCODES[pickle.NEWOBJ_EX[0]](self)

    dispatch[pickle.BUILD[0]] = _set_state
    dispatch[pickle.SETITEM[0]] = _set_item
    dispatch[pickle.SETITEMS[0]] = _set_items
    dispatch[pickle.NEWOBJ_EX[0]] = _new_by_keywords


def _is_inert(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, Inert)


def _check_dict(target: Any) -> None:
    if not isinstance(target, dict):
        raise UnsafeCheckpointError(f"sets items of a {type(target).__name__}")


def _check_state(target: Any, state: Any) -> None:
    """Refuse to change what the file has not made itself, or into what no library would have written."""
    if callable(target):
        raise UnsafeCheckpointError(f"changes {target!r}")
    # An array is given its data once: memory that others look at would be freed.
    if isinstance(target, np.ndarray) and target.size:
        raise UnsafeCheckpointError("changes an array")
    if isinstance(target, np.dtype) and not _is_plain_state(target, state):
        raise UnsafeCheckpointError(f"changes the dtype {target}")


def _is_plain_state(dtype: np.dtype[Any], state: Any) -> bool:
    """Whether a dtype's pickled state agrees with its name, byte order aside."""
    if not isinstance(state, tuple) or len(state) != 8 or state[2:5] != (None, None, None):
        return False
    return state[5] in (-1, dtype.itemsize) and state[6] in (-1, dtype.alignment) and state[7] == dtype.flags


class TorchPickle:
    """What ``torch.load`` takes as its ``pickle_module``."""

    Unpickler: type[RestrictedUnpickler] = RestrictedUnpickler
    UnpicklingError = pickle.UnpicklingError
    __name__ = __name__

    @classmethod
    def load(cls, file: IO[bytes], **kwargs: Any) -> Any:
        """Read one pickled object."""
        return cls.Unpickler(file, **kwargs).load()


def load_pickle(file: IO[bytes]) -> Any:
    """Read a plain pickle, such as detectron2's ``.pkl``.

    Args:
        file: The file, open for reading.

    Raises:
        UnsafeCheckpointError: The pickle wants something that is not on the list.
    """
    read: Callable[..., Any] = TorchPickle.load
    # Files that Python 2 wrote hold their arrays as text.
    return read(file, encoding="latin1")
