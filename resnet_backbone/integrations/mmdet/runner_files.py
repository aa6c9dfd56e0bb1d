"""mmengine's own checkpoints, where torch refuses to read them.

Since torch 2.6 ``torch.load`` reads nothing but tensors and plain containers by default, and mmengine 0.10 has not
caught up: the logs that its Runner saves beside the weights make resuming, testing and inference fail. mmengine's
loader of local files is still asked first; only what torch refuses is read here, by the reader of weights: tensors,
arrays, plain containers and the Runner's logs.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from ...errors import CheckpointError
from ...weights.read import read_file
from ...weights.rebuild import WEIGHTS, Builder, Vocabulary

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
        CheckpointError: The file is damaged.
    """
    return read_file(path, map_location, _RUNNER)


def _history_buffer(builder: Builder, state: Any) -> HistoryBuffer:
    """Make a log of its numbers. The file's own ``statistics_methods`` would change a table of the class."""
    logs, counts, length = (state[key] for key in ("_log_history", "_count_history", "max_length"))
    for values in (logs, counts):
        if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "biuf":
            raise CheckpointError("holds a log that is not an array of numbers")
    if len(logs) != len(counts) or type(length) is not int:
        raise CheckpointError("holds a log whose counts do not belong to it")
    buffer = HistoryBuffer(max_length=length)
    buffer._log_history, buffer._count_history = logs, counts
    return buffer


_ADVICE = (
    ", which mmengine's Runner does not save by itself. If you trust the file, set the environment variable "
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1"
)
_LOG = f"{HistoryBuffer.__module__}.{HistoryBuffer.__name__}"
# A HistoryBuffer is saved with its methods.
_STATISTICS = frozenset(f"{_LOG}.{name}" for name in ("current", "max", "mean", "min"))
_RUNNER = Vocabulary(
    known={**WEIGHTS.known, _LOG: _history_buffer},
    bare=WEIGHTS.bare | _STATISTICS,
    inert=(),
    advice=_ADVICE,
)
