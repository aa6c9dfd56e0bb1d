"""Measure time and memory of the rows, and check that they compute the same features."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from resnet_backbone.tools.saved_tensors import SavedTensorBytes

from .rows import BASELINE, Builder, Row, UnavailableError
from .settings import Settings, precision

__all__ = ["Result", "measure", "milliseconds", "peak_bytes", "saved_bytes"]

# Relative to the norm of each level, against the exact path in single precision.
TOLERANCE = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2, "fp16": 2e-2}
# Duration of one timing on a GPU.
STEPS = 5


@dataclass
class Result:
    """Measurements of one row.

    Attributes:
        name: The row.
        milliseconds: One entry per repetition.
        error: Largest relative difference of a level from the exact path in fp32.
        saved_bytes: Bytes that autograd saved for the backward pass, without parameters and buffers.
        peak_bytes: On CUDA, the peak of memory allocated in a step, beyond the memory allocated before it.
        note: The reason, if there is no time.
    """

    name: str
    milliseconds: list[float] = field(default_factory=list)
    error: float | None = None
    saved_bytes: int | None = None
    peak_bytes: int | None = None
    note: str = ""

    @property
    def median(self) -> float | None:
        """Median time in milliseconds."""
        return statistics.median(self.milliseconds) if self.milliseconds else None


def measure(
    settings: Settings,
    builders: Mapping[str, Builder],
    *,
    memory: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Result]:
    """Build, compare and time rows.

    The repetitions are interleaved: each row once, and again from the first, so that a machine that slows down slows
    every row.

    Args:
        settings: The conditions.
        builders: The rows, as ``rows_for`` gives them.
        memory: Whether to measure memory too.
        progress: Called with a description of the next step.
    """
    # Compiled code of earlier conditions would count towards the compiler's limit for one network.
    torch.compiler.reset()
    image = settings.image()
    expected = _exact_levels(settings, builders)
    results = {name: Result(name) for name in builders}
    ready: dict[str, Callable[[], object]] = {}
    with precision(settings.dtype):
        for name, build in builders.items():
            progress(f"prepare {name}")
            try:
                row = build(settings)
                results[name].error = _largest_error(_levels(row, image, settings), expected)
            except UnavailableError as reason:
                results[name].note = str(reason)
                continue
            except Exception as error:  # noqa: BLE001 - a peer that fails says so in the table and stops no other
                results[name].note = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
                continue
            if results[name].error > (row.tolerance or TOLERANCE[settings.dtype]):  # type: ignore[operator]
                results[name].note = "computes something else: not timed"
                continue
            step = _step(row, image, settings)
            step()
            step()
            if memory:
                _weigh(row, image, settings, step, results[name])
            ready[name] = step
        for repetition in range(settings.repeats):
            for name, step in ready.items():
                progress(f"{repetition + 1}/{settings.repeats}: {name}")
                results[name].milliseconds.append(milliseconds(step, settings.device))
    return list(results.values())


def _exact_levels(settings: Settings, builders: Mapping[str, Builder]) -> list[Tensor]:
    single = replace(settings, dtype="fp32")
    with precision("fp32"):
        return _levels(builders[BASELINE](single), single.image(), single)


def _levels(row: Row, image: Tensor, settings: Settings) -> list[Tensor]:
    # In the mode in which the row is timed; another mode would be compiled separately.
    with row.context(), nullcontext() if settings.train else torch.inference_mode():
        return [level.detach().float() for level in row.forward(image)]


def _largest_error(levels: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    if [level.shape for level in levels] != [level.shape for level in expected]:
        return float("inf")
    return max(float((level - exact).norm() / exact.norm()) for level, exact in zip(levels, expected))


def _step(row: Row, image: Tensor, settings: Settings) -> Callable[[], object]:
    def infer() -> object:
        with torch.inference_mode():
            return row.forward(image)

    def train() -> object:
        with row.context():
            # Frozen stages' levels need no gradient.
            levels = [level for level in row.forward(image) if level.requires_grad]
            torch.autograd.backward(levels, [torch.ones_like(level) for level in levels])
        if row.model is not None:
            row.model.zero_grad(set_to_none=True)
        return levels

    return train if settings.train else infer


def milliseconds(step: Callable[[], object], device: str) -> float:
    """Time a step; on a GPU several in a row, so that launches overlap as in training.

    Args:
        step: What is timed.
        device: ``'cpu'`` or ``'cuda'``.
    """
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(STEPS):
            step()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / STEPS
    begin = time.perf_counter()
    step()
    return (time.perf_counter() - begin) * 1e3


def peak_bytes(step: Callable[[], object], device: str) -> int:
    """Return the peak of bytes of tensors in a step, beyond those before it.

    Args:
        step: What is weighed.
        device: ``'cpu'`` or ``'cuda'``.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    assert profiled.profiler is not None
    results: Any = profiled.profiler.kineto_results
    changes = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    return int(max(accumulate((size for _, size in changes), initial=0)))


def _weigh(row: Row, image: Tensor, settings: Settings, step: Callable[[], object], result: Result) -> None:
    # Hooks on saved tensors would cause a recompilation, which takes a minute.
    if settings.train and row.model is not None and (settings.device == "cpu" or not row.compiled):
        result.saved_bytes = saved_bytes(row.model, lambda: row.forward(image))
    if settings.device == "cuda":
        result.peak_bytes = peak_bytes(step, settings.device)


def saved_bytes(model: nn.Module, forward: Callable[[], object]) -> int:
    """Return the bytes of the distinct storages that autograd saves in ``forward``, without parameters and buffers.

    Args:
        model: Whose parameters and buffers do not count.
        forward: Computes something that requires grad.
    """
    with SavedTensorBytes(model) as saved:
        out = forward()
    size = saved.bytes()
    del out
    return size
