"""The peak rate of the machine, and the number of operations of the network."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from .rows import reference
from .settings import DTYPES, Settings, precision

__all__ = ["count_flops", "measure_gemm_peak"]


@cache
def measure_gemm_peak(dtype_name: str, device: str) -> float:
    """Return the rate of a large matrix product in FLOP/s: the best of several.

    A product of two matrices, and the one that a 3x3 convolution of many channels is: two libraries may compute them,
    and on some processors the first's is the slower one.
    """
    dtype = DTYPES[dtype_name]
    size = 8192 if device == "cuda" else 1024
    one = torch.randn(size, size, device=device, dtype=dtype)

    channels, side = size // 4, 32
    x = torch.randn(8, channels, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    with torch.inference_mode(), precision(dtype_name):
        seconds = _best_seconds(lambda: torch.mm(one, one), device)
        seconds_of_conv = _best_seconds(lambda: torch.conv2d(x, weight, padding=1), device)
    flops_of_conv = 2 * 8 * side**2 * channels**2 * 9
    return max(2 * size**3 / seconds, flops_of_conv / seconds_of_conv)


def _best_seconds(work: Callable[[], object], device: str, repeats: int = 8, patience: float = 0.5) -> float:
    """The shortest of several runs; of fewer runs if they take more than ``patience`` seconds in total."""
    best, begin = float("inf"), time.perf_counter()
    for _ in range(repeats):
        if time.perf_counter() - begin > patience:
            break
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def count_flops(settings: Settings) -> int:
    """Return the floating-point operations of one step's convolutions; a multiplication and an addition are two.

    Counted over a run of the exact path: in training the backward pass counts, without the gradients that frozen
    stages do not need.
    """
    backbone = reference(settings)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(settings.train):
        levels = [level for level in backbone(settings.image()) if level.requires_grad]
        if settings.train:
            torch.autograd.backward(levels, [torch.ones_like(level) for level in levels])
    return int(counter.get_total_flops())
