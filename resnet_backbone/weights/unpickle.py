"""An unpickler that knows tensors, numpy arrays and plain containers, and refuses everything else by name.

A pickle is a program: it may import any function and call it. This one may reach only what is listed here. Names of
which checkpoints are full but whose content nobody needs (training arguments, configs, logs) become inert objects; the
modules they name are never imported.
"""

from __future__ import annotations

import collections
import datetime
import functools
import io
import pickle
from collections.abc import Callable
from typing import IO, Any

import numpy as np
import torch

from .errors import UnsafeCheckpointError

__all__ = ["TorchPickle", "find_plain", "load_pickle"]


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
    return dtype


def _tensor_from_bytes(data: bytes) -> Any:
    """Read a tensor that was pickled outside of torch.save; torch's own function would read it without restrictions."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False, pickle_module=TorchPickle)


def _numpy_reconstruct() -> Any:
    return np.array(0.0).__reduce__()[0]


def _numpy_frombuffer() -> Any:
    return np.zeros(1).__reduce_ex__(5)[0]


_BUILTINS = ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int")
_CONTAINER_BUILTINS = ("list", "object", "range", "set", "slice", "str", "tuple")
_TORCH_REBUILDERS = (
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_parameter",
    "_rebuild_parameter_with_state",
    "_rebuild_sparse_tensor",
    "_rebuild_device_tensor_from_numpy",
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
            f"{module}.multiarray._reconstruct": _numpy_reconstruct(),
            f"{module}.multiarray.scalar": _scalar,
            f"{module}.numeric._frombuffer": _numpy_frombuffer(),
        }
    allowed |= {"numpy.ndarray": np.ndarray, "numpy.dtype": _dtype, "_codecs.encode": _encode}
    for name in _TORCH_REBUILDERS:
        if hasattr(torch._utils, name):
            allowed[f"torch._utils.{name}"] = getattr(torch._utils, name)
    allowed |= {
        "torch.storage._load_from_bytes": _tensor_from_bytes,
        "torch.Size": torch.Size,
        "torch.device": torch.device,
        "torch.Tensor": torch.Tensor,
        "torch.nn.parameter.Parameter": torch.nn.Parameter,
        "torch.storage.UntypedStorage": torch.UntypedStorage,
        "torch.storage.TypedStorage": torch.TypedStorage,
        "torch.serialization._get_layout": torch.serialization._get_layout,
    }
    return allowed


def _reconstruct_object(cls: Any, base: Any, state: Any) -> Any:
    """What copyreg does for objects of protocols 0 and 1, for inert ones."""
    if isinstance(cls, type) and issubclass(cls, Inert):
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
    if module in ("torch", "torch.cuda") and name.endswith("Storage") and isinstance(vars(torch).get(name), type):
        return vars(torch)[name]
    if module == "numpy.dtypes" and name.endswith("DType"):
        return functools.partial(_dtype_of_class, name)
    raise UnsafeCheckpointError(f"would import {full}")


def _dtype_of_class(name: str) -> np.dtype[Any]:
    dtype = np.dtype(name.removesuffix("DType").lower())
    if dtype.hasobject:
        raise UnsafeCheckpointError(f"holds a numpy {name}")
    return dtype


class RestrictedUnpickler(pickle.Unpickler):
    """Python's unpickler, with ``find_class`` as its only way to any name."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle may use under a name; see the function of this name."""
        return find_class(module, name)


class TorchPickle:
    """What ``torch.load`` takes as its ``pickle_module``."""

    Unpickler: type[pickle.Unpickler] = RestrictedUnpickler
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
