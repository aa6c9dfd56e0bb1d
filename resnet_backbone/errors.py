"""Exceptions raised for wrong arguments, and the checks that several modules share.

mmdet signals most wrong arguments with ``assert``, a few with ``KeyError`` or ``TypeError``. Code that catches
those keeps working: every exception here is a ``ValueError`` and an ``AssertionError``, and the two subclasses
add the type that mmdet (or Python) raises in their place.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from numbers import Integral
from typing import Any

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "DeployedError",
    "UnknownNameError",
    "check_channels",
    "did_you_mean",
    "is_int",
]


class ArgumentError(ValueError, AssertionError):
    """An argument has a value that is not allowed; the message names argument, value and what is allowed."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument has the wrong type, or no argument of that name exists."""


class UnknownNameError(ArgumentError, KeyError):
    """A name (a depth, a layer type, a plugin type) that nothing is registered under."""

    # KeyError prints the repr of its message, which turns a sentence into an escaped string.
    __str__ = Exception.__str__


class DeployedError(RuntimeError):
    """A deployed backbone was asked for what needs the layers that ``switch_to_deploy`` has folded away."""


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


def check_channels(name: str, value: Any, minimum: int = 1) -> None:
    """Refuse a channel count below ``minimum``.

    Args:
        name: The argument's name, for the message.
        value: The argument's value.
        minimum: The smallest count allowed.

    Raises:
        ArgumentError: ``value`` is no integer, or is below ``minimum``.
    """
    if not is_int(value) or value < minimum:
        raise ArgumentError(f"{name} must be an integer of at least {minimum}, got {value!r}")
