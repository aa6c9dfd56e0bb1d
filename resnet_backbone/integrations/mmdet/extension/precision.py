"""The precision that the operators compute in."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["at_least_single"]


def at_least_single(first: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Cast tensors to the first one's dtype, or to single precision if that is lower.

    On a CPU torchvision's operators know no lower one, and it cannot tell neighboring pixels apart beyond 256
    (bfloat16) or 2048 (float16).
    """
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    return tuple(tensor.to(dtype) for tensor in (first, *others))
