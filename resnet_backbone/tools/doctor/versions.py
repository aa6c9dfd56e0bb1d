"""Compare versions without the packaging library, which need not be installed."""

from __future__ import annotations

import re

__all__ = ["release", "satisfies"]


def release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, without what follows them: ``(2, 1, 0)`` for ``'2.1.0rc1+cu121'``.

    Zeros at the end are left out, so that ``2.1`` and ``2.1.0`` are equal.
    """
    numbers = [int(number) for number in re.findall(r"\d+", (re.match(r"[\d.]*", version) or [""])[0])]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def satisfies(version: str, specifiers: str) -> bool:
    """Whether a version is one that a requirement allows, as far as its numbers go.

    Args:
        version: The version.
        specifiers: Such as ``'==2.1.0'`` or ``'>=2.14.0,<3'``; an empty one allows everything.
    """
    have = release(version)
    for operator, wanted in re.findall(r"(==|!=|>=|<=|<|>)\s*([\w.+]+)", specifiers):
        want = release(wanted)
        holds = {
            "==": have == want,
            "!=": have != want,
            ">=": have >= want,
            "<=": have <= want,
            "<": have < want,
            ">": have > want,
        }[operator]
        if not holds:
            return False
    return True
