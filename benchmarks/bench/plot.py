"""Benchmark results as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .report import Report, machine
from .rows import BASELINE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Patch

__all__ = ["plot_reports"]

INK, FAINT = "#16181d", "#5b6270"
OURS, EXACT, PEER = "#d1495b", "#8d99ae", "#c9cfd8"
OURS_PREFIXES = ("folded", "deployed", "int8")


def plot_reports(reports: Sequence[Report], file: str) -> None:
    """Draw each table as bars of time, fastest first, with the memory of each row if it was measured.

    Args:
        reports: The tables.
        file: The picture to write.
    """
    from matplotlib.figure import Figure

    rows = [sum(result.median is not None for result in report.results) for report in reports]
    figure = Figure(figsize=(8, sum(0.36 * count + 1.1 for count in rows) + 0.4), dpi=150, layout="constrained")
    axes = figure.subplots(len(reports), 1, squeeze=False, height_ratios=rows)[:, 0]
    for ax, report in zip(axes, reports):
        _bars(ax, report)
    axes[-1].set_xlabel(f"milliseconds per step, median ({_environment()})", color=FAINT, fontsize=8)
    figure.legend(*_key(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(file)


def _bars(ax: Axes, report: Report) -> None:
    timed = sorted((r for r in report.results if r.median is not None), key=lambda result: -(result.median or 0))
    values = [result.median or 0.0 for result in timed]
    ax.barh([result.name for result in timed], values, color=[_color(result.name) for result in timed], height=0.72)
    for index, result in enumerate(timed):
        ratio, memory = report.speedup(result), report.memory_ratio(result)
        label = f"{values[index]:.0f} ms  {ratio:.2f}x" + ("" if memory is None else f"  memory {memory:.2f}")
        ax.text(values[index] + max(values) * 0.01, index, label, va="center", fontsize=7.5, color=INK)
    ax.axvline(report.ideal_milliseconds, color=INK, linewidth=0.8, linestyle=":")
    ax.text(report.ideal_milliseconds, len(timed) - 0.4, " convolutions at GEMM peak", fontsize=7, color=FAINT)
    ax.set_xlim(0, max(values) * 1.4)
    ax.set_title(report.title, loc="left", fontsize=10, color=INK, pad=14)
    _plain(ax)


def _key() -> tuple[list[Patch], list[str]]:
    from matplotlib.patches import Patch

    meanings = {EXACT: "mmdet's operations", OURS: "this package's fast paths", PEER: "other libraries"}
    return [Patch(color=color) for color in meanings], list(meanings.values())


def _color(name: str) -> str:
    if name.startswith(OURS_PREFIXES):
        return OURS
    return EXACT if name.startswith(BASELINE) else PEER


def _environment() -> str:
    described = machine()
    return f"{described.get('gpu', described['processor'])}, {described['threads']} threads, torch {described['torch']}"


def _plain(ax: Axes) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.tick_params(labelsize=8, colors=INK)
