"""What can go wrong with a checkpoint: every exception names the file or source, and leaves the backbone unchanged."""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "CheckpointNotFoundError",
    "DownloadError",
    "MismatchError",
    "UnsafeCheckpointError",
]


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or whose weights cannot be used."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """A path that leads to no file, or a name whose weights are no longer available."""


class DownloadError(CheckpointError, OSError):
    """A file that could not be downloaded, or arrived damaged or with the wrong hash."""


class UnsafeCheckpointError(CheckpointError):
    """A file that would import or call something beyond tensors, arrays and plain containers; none of it has run."""


class MismatchError(CheckpointError):
    """A readable checkpoint that does not match the backbone."""
