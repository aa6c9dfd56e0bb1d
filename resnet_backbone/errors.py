"""Exceptions, and the checks that several modules share.

mmdet raises an ``AssertionError`` for most wrong arguments, a ``KeyError`` or ``TypeError`` for a few.
``ArgumentError`` and its subclasses derive from those, so that code that catches them keeps working. Errors of files
are ``CheckpointError``s, which derive from ``RuntimeError``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "CheckpointError",
    "CheckpointNotFoundError",
    "DeployedError",
    "DownloadError",
    "MismatchError",
    "UnknownNameError",
    "UnsafeCheckpointError",
    "check_channels",
    "did_you_mean",
    "explain_missing_torchvision",
    "is_int",
    "is_number",
    "printable",
]


class ArgumentError(ValueError, AssertionError):
    """An argument has an invalid value. The message names the argument, the value and what is allowed."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument has the wrong type, or no argument of that name exists."""


class UnknownNameError(ArgumentError, KeyError):
    """A name is not registered: a depth, a layer type, a plugin type."""

    # KeyError prints the repr of its message.
    __str__ = Exception.__str__


class DeployedError(RuntimeError):
    """A deployed backbone does not support the operation, because it has no batch norms."""


class CheckpointError(RuntimeError):
    """The checkpoint cannot be read, or its weights cannot be used."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """The file does not exist, or the weights are no longer available."""


class DownloadError(CheckpointError, OSError):
    """The file could not be downloaded, is damaged, or has the wrong hash."""


class UnsafeCheckpointError(CheckpointError):
    """Unpickling the file would run code, since it has more than tensors, arrays and plain containers. None was run."""


class MismatchError(CheckpointError):
    """The checkpoint does not match the backbone."""


def printable(text: str, most: int = 200) -> str:
    """Return a string from a file for display: escaped, and truncated if it is long."""
    if len(text) <= most and text.isprintable():
        return text
    text = text if len(text) <= most else f"{text[:most]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'X'?"`` for the closest known name, or an empty string.

    Args:
        name: The name that was given.
        known: The names that exist.
    """
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""


def is_int(value: Any) -> bool:
    """Whether ``value`` is an integer (numpy's too); ``True`` and ``False`` are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether ``value`` is a real number (numpy's too); ``True`` and ``False`` are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_channels(name: str, value: Any, minimum: int = 1) -> None:
    """Check that a number of channels is an integer of at least ``minimum``.

    Args:
        name: The argument's name, for the message.
        value: The argument's value.
        minimum: The smallest count allowed.

    Raises:
        ArgumentError: ``value`` is not an integer, or is below ``minimum``.
    """
    if not is_int(value) or value < minimum:
        raise ArgumentError(f"{name} must be an integer of at least {minimum}, got {value!r}")


@contextmanager
def explain_missing_torchvision(feature: str) -> Iterator[None]:
    """Turn a failed import of torchvision into an error that names the feature and what to install."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{feature} needs torchvision, which could not be imported ({error}): pip install torchvision, in the "
            "version for your torch"
        ) from error
