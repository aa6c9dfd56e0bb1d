"""Reading the checkpoints of mmengine's Runner on torch >= 2.6.

There ``torch.load`` reads only tensors and plain containers by default. mmengine 0.10 also saves logs, so resuming,
testing and inference fail. Its loader of local files still comes first. What torch refuses is read by this package's
reader: tensors, arrays, plain containers and the Runner's logs.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleParamScheduler
from mmengine.runner import CheckpointLoader

from ...errors import CheckpointError
from ...weights.read import read_file
from ...weights.rebuild import WEIGHTS, Builder, Vocabulary

__all__ = ["read_runner_files"]


def read_runner_files() -> None:
    """Make mmengine's checkpoint loader read the Runner's local files on torch >= 2.6."""
    theirs: Callable[..., Any] = CheckpointLoader._schemes[""]

    # mmengine logs the end of this function's name as the kind of storage.
    def load_from_local(filename: str, map_location: Any = None) -> Any:
        try:
            return theirs(filename, map_location)
        except pickle.UnpicklingError:
            return read_runner_file(Path(filename).expanduser(), map_location)

    if theirs.__module__ != __name__:
        CheckpointLoader.register_scheme("", load_from_local, force=True)


def read_runner_file(path: Path, map_location: Any = None) -> Any:
    """Read a whole checkpoint of mmengine's Runner, including its logs, without running code from the file.

    Args:
        path: A file that ``torch.save`` wrote.
        map_location: As in ``torch.load``.

    Raises:
        UnsafeCheckpointError: The file has an object of a class that the Runner does not save.
        CheckpointError: The file is damaged.
    """
    return read_file(path, map_location, _RUNNER)


def _history_buffer(builder: Builder, state: Any) -> HistoryBuffer:
    """Build a log from its numbers, without the file's ``statistics_methods``, which would change the class."""
    logs, counts, length = (state[key] for key in ("_log_history", "_count_history", "max_length"))
    for values in (logs, counts):
        if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype.kind not in "biuf":
            raise CheckpointError("has a log that is not an array of numbers")
    if len(logs) != len(counts) or type(length) is not int:
        raise CheckpointError("has a log whose counts do not match")
    buffer = HistoryBuffer(max_length=length)
    buffer._log_history, buffer._count_history = logs, counts
    return buffer


def _config_dict(builder: Builder, _: Any, items: Any = None) -> Any:
    return builder.fill(ConfigDict(), list((items or {}).items()))


def _getattr(builder: Builder, state: Any, owner: Any, name: Any) -> Any:
    method = WEIGHTS.known["builtins.getattr"](builder, state, owner, name)
    return _FORMULAS.get(method.name, method)


_ADVICE = (
    ", which mmengine's Runner does not save by itself. If you trust the file, set the environment variable "
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1"
)
_LOG = f"{HistoryBuffer.__module__}.{HistoryBuffer.__name__}"
# A HistoryBuffer is saved with its methods, and OneCycleLR with its formula.
_STATISTICS = frozenset(f"{_LOG}.{name}" for name in ("current", "max", "mean", "min"))
_ONE_CYCLE = f"{OneCycleParamScheduler.__module__}.{OneCycleParamScheduler.__name__}"
_FORMULAS = {
    f"{_ONE_CYCLE}.{name}": getattr(OneCycleParamScheduler, name) for name in ("_annealing_cos", "_annealing_linear")
}
_RUNNER = Vocabulary(
    known={
        **WEIGHTS.known,
        _LOG: _history_buffer,
        f"{ConfigDict.__module__}.{ConfigDict.__name__}": _config_dict,
        "builtins.getattr": _getattr,
    },
    bare=WEIGHTS.bare | _STATISTICS | {_ONE_CYCLE, *_FORMULAS},
    inert=(),
    advice=_ADVICE,
)
