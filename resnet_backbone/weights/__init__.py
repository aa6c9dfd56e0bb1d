"""Pretrained weights: find, read, translate and load checkpoints."""

from ..errors import CheckpointError, CheckpointNotFoundError, DownloadError, MismatchError, UnsafeCheckpointError
from .load import load_pretrained
from .preprocessing import Preprocessing
from .report import LoadReport
from .zoo import NAMED, NamedWeights

__all__ = [
    "NAMED",
    "CheckpointError",
    "CheckpointNotFoundError",
    "DownloadError",
    "LoadReport",
    "MismatchError",
    "NamedWeights",
    "Preprocessing",
    "UnsafeCheckpointError",
    "load_pretrained",
]
