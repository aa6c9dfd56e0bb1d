"""The progress bar of a download, by rich, which mmengine brings along."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

__all__ = ["Advance", "progress_bar"]

Advance = Callable[[int, "int | None"], None]
"""Told how many bytes are there, and how many there will be (``None``: unknown)."""


@contextlib.contextmanager
def progress_bar(name: str, show: bool) -> Iterator[Advance]:
    """Show how far a download is, on standard error.

    Args:
        name: The name of the file.
        show: Whether to show anything.
    """
    if not show:
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        # Nothing is drawn before the first byte, so a download that cannot begin leaves no empty bar behind.
        task = bars.add_task(name, total=None, visible=False)
        yield lambda done, total: bars.update(task, completed=done, total=total, visible=True)
