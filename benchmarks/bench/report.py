"""Benchmark results as a table and as JSON."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from resnet_backbone import __version__

from .measure import Result, measure
from .roofline import count_flops, measure_gemm_peak
from .rows import BASELINE, Builder
from .settings import Settings

__all__ = ["Report", "machine", "make_report", "write_json"]

LOW_PRECISION = ("avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8", "asimddp", "bf16", "i8mm")


@dataclass
class Report:
    """One table of the benchmark.

    Attributes:
        settings: The conditions.
        results: The rows.
        flops: Floating-point operations of one step.
        gemm_peak: FLOP/s of a large matrix product on the same machine.
    """

    settings: Settings
    results: list[Result]
    flops: int
    gemm_peak: float

    @property
    def ideal_milliseconds(self) -> float:
        """The time of a step at the rate of the matrix product."""
        return self.flops / self.gemm_peak * 1e3

    def speedup(self, result: Result) -> float | None:
        """How many times faster than the exact path a row is, by medians."""
        baseline = self._baseline.median
        return None if result.median is None or baseline is None else baseline / result.median

    def memory_ratio(self, result: Result) -> float | None:
        """Memory of a row relative to the exact path: peak memory on CUDA, saved bytes otherwise."""
        memory, baseline = _memory(result), _memory(self._baseline)
        return None if memory is None or not baseline else memory / baseline

    @property
    def _baseline(self) -> Result:
        return next(result for result in self.results if result.name == BASELINE)

    @property
    def title(self) -> str:
        """The conditions in one line."""
        settings = self.settings
        task = f"training step, frozen_stages={settings.frozen_stages}" if settings.train else "inference"
        size = f"{settings.batch}x3x{settings.height}x{settings.width}"
        return f"{settings.model}, {task}, {size}, {settings.dtype}, {settings.device}"

    def table(self) -> Table:
        """A table for the terminal."""
        table = Table(title=self.title, caption=self._caption())
        for heading in ("row", "ms (quartiles)", "faster", "of peak", "MB", "memory", "error"):
            table.add_column(heading, justify="left" if heading == "row" else "right", no_wrap=True)
        for result in self.results:
            if result.median is not None:
                table.add_row(result.name, *self._cells(result))
        return table

    def lines(self) -> list[str]:
        """The table as plain lines: row, milliseconds, speed-up, megabytes, relative memory, error."""
        timed = [result for result in self.results if result.median is not None]
        return [" | ".join([f"{result.name:34}", *self._cells(result)]) for result in timed] + self.notes()

    def notes(self) -> list[str]:
        """The reasons of rows without a time."""
        return [f"{result.name}: {result.note}" for result in self.results if result.median is None]

    def _cells(self, result: Result) -> list[str]:
        median, ratio, memory = result.median, self.speedup(result), self.memory_ratio(result)
        low, high = _quartiles(result.milliseconds)
        weight = _memory(result)
        return [
            f"{median:.1f} ({low:.1f}-{high:.1f})",
            "" if ratio is None else f"{ratio:.2f}",
            "" if not median else f"{self.ideal_milliseconds / median:.0%}",
            "" if weight is None else f"{weight / 1e6:.1f}",
            "" if memory is None else f"{memory:.2f}",
            f"{result.error:.0e}",
        ]

    def _caption(self) -> str:
        return (
            f"{machine()['processor']} ({', '.join(_instructions()) or torch.backends.cpu.get_cpu_capability()}), "
            f"{torch.get_num_threads()} threads, torch {torch.__version__}; "
            f"{self.flops / 1e9:.1f} GFLOP per step, GEMM peak {self.gemm_peak / 1e9:.0f} GFLOP/s "
            f"({self.ideal_milliseconds:.1f} ms); "
            f"medians of {self.settings.repeats} interleaved runs. faster, memory: relative to 'exact'; error: of the "
            f"levels, against 'exact' in fp32"
        )


def make_report(
    settings: Settings,
    builders: Mapping[str, Builder],
    *,
    memory: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure the rows and the machine's peak.

    Args:
        settings: The conditions.
        builders: The rows, as ``rows_for`` gives them.
        memory: Whether to measure memory too.
        progress: Called with a description of the next step.
    """
    results = measure(settings, builders, memory=memory, progress=progress)
    return Report(settings, results, count_flops(settings), measure_gemm_peak(settings.dtype, settings.device))


def _memory(result: Result) -> int | None:
    return result.peak_bytes if result.peak_bytes is not None else result.saved_bytes


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def machine() -> dict[str, Any]:
    """Describe the machine and the software that a result belongs to."""
    described = {
        "processor": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "instructions": _instructions(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "resnet_backbone": __version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if torch.cuda.is_available():
        described |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return described


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _instructions() -> list[str]:
    """The instruction sets that determine the processor's speed in bf16 and int8, as far as known."""
    return [name for name in _cpuinfo("flags").split() if name in LOW_PRECISION]


def _cpuinfo(key: str) -> str:
    """The entry ``key`` of the first processor in Linux's cpuinfo, or an empty string."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def write_json(reports: Sequence[Report], file: str) -> None:
    """Write all measurements.

    Args:
        reports: The tables.
        file: The file to write.
    """
    tables = [
        {
            "title": report.title,
            **asdict(report),
            "medians": {result.name: result.median for result in report.results},
            "times_faster": {result.name: report.speedup(result) for result in report.results},
        }
        for report in reports
    ]
    Path(file).write_text(json.dumps({"machine": machine(), "tables": tables}, indent=1) + "\n")
