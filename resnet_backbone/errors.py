"""Exceptions raised for wrong arguments, and the checks that several modules share.

mmdet raises an ``AssertionError`` for most wrong arguments, a ``KeyError`` or a ``TypeError`` for a few. Code that
catches those keeps working: an ``ArgumentError`` is a ``ValueError`` and an ``AssertionError``, and its two subclasses
add what mmdet, or Python, raises in their place.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "DeployedError",
    "UnknownNameError",
    "check_channels",
    "did_you_mean",
    "is_int",
    "is_number",
]


class ArgumentError(ValueError, AssertionError):
    """An argument has a value that is not allowed; the message names argument, value and what is allowed."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument has the wrong type, or no argument of that name exists."""


class UnknownNameError(ArgumentError, KeyError):
    """Nothing is registered under a name: a depth, a layer type, a plugin type."""

    # KeyError prints the repr of its message.
    __str__ = Exception.__str__


class DeployedError(RuntimeError):
    """A deployed backbone was asked to train, or for another thing that needs its batch norms."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'X'?"`` for the nearest known name, or an empty string if none is near.

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
