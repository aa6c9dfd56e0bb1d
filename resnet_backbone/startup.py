"""What this process was started for, where that decides what may be imported."""

from __future__ import annotations

import sys
from pathlib import PurePath

__all__ = ["starts_doctor"]


def starts_doctor() -> bool:
    """Whether this process is ``resnet-backbone doctor`` or ``python -m resnet_backbone doctor``.

    Python imports a package before anything in it. The doctor looks at environments in which this package cannot be
    imported, so it must be known early that nothing of it is asked for.
    """
    arguments: list[str] = getattr(sys, "argv", [])
    # While ``python -m`` imports the package, sys.argv[0] does not tell which; the original arguments do.
    program = sys.orig_argv[-len(arguments)] if 0 < len(arguments) <= len(sys.orig_argv) else ""
    return arguments[1:2] == ["doctor"] and PurePath(program).stem.replace("-", "_") == __name__.partition(".")[0]
