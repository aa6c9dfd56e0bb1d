"""mmengine's own checkpoints, where torch refuses to read them.

Since torch 2.6 ``torch.load`` reads nothing but tensors and plain containers by default, and mmengine 0.10 has not
caught up: the logs that its Runner saves beside the weights make resuming, testing and inference fail. mmengine's
loader of local files is asked first, as ever; only what torch refuses is read here, by a list of names that holds
tensors, arrays, plain containers and the Runner's logs.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from ...weights.errors import UnsafeCheckpointError
from ...weights.safe_pickle import RestrictedUnpickler, TorchPickle, find_plain

__all__ = ["read_runner_files"]

Loader = Callable[..., Any]


def read_runner_files() -> None:
    """Let mmengine read its own local checkpoints on torch >= 2.6, for its Runner and all that loads as it does."""
    theirs: Loader = CheckpointLoader._schemes[""]
    if theirs.__module__ != __name__:
        CheckpointLoader.register_scheme("", _after(theirs), force=True)


def _after(theirs: Loader) -> Loader:
    # mmengine logs the end of this name as the kind of storage.
    def load_from_local(filename: str, map_location: Any = None) -> Any:
        try:
            return theirs(filename, map_location)
        except pickle.UnpicklingError:
            return read_runner_file(Path(filename).expanduser(), map_location)

    return load_from_local


def read_runner_file(path: Path, map_location: Any = None) -> Any:
    """Read a checkpoint of mmengine's Runner whole, logs included, without running any code in it.

    Args:
        path: A file that ``torch.save`` wrote.
        map_location: Where the tensors go, as in ``torch.load``.

    Raises:
        UnsafeCheckpointError: The file holds an object of another class than those of the Runner's checkpoints.
    """
    try:
        return torch.load(path, map_location=map_location, weights_only=False, pickle_module=_RunnerPickle)
    except UnsafeCheckpointError as error:
        raise UnsafeCheckpointError(
            f"{path} is not loaded: it {error}, which mmengine's Runner does not save by itself. If you trust the "
            "file, set the environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1"
        ) from None


def _find_class(module: str, name: str) -> Any:
    if (module, name) == (HistoryBuffer.__module__, HistoryBuffer.__name__):
        return HistoryBuffer
    if name == "getattr" and module in ("builtins", "__builtin__"):
        return _getattr
    return find_plain(module, name)


def _getattr(owner: Any, name: str) -> Any:
    """Look up a statistic of the logs: a HistoryBuffer is saved with its methods."""
    if owner is HistoryBuffer and not name.startswith("_"):
        return getattr(owner, name)
    raise UnsafeCheckpointError(f"would import builtins.getattr, to use {name!r} of {owner!r}")


class _RunnerUnpickler(RestrictedUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _find_class(module, name)


class _RunnerPickle(TorchPickle):
    Unpickler = _RunnerUnpickler
