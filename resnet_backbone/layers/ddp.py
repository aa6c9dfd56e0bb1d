"""DistributedDataParallel with parameters that the forward pass does not use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils._pytree import tree_flatten, tree_unflatten

from .tracing import is_recording

__all__ = ["mark_unused_for_ddp"]

Output = TypeVar("Output", bound="Tensor | tuple[Any, ...]")


def mark_unused_for_ddp(unused: Iterable[nn.Module], out: Output) -> Output:
    """Tell DistributedDataParallel that the parameters of some modules get no gradient.

    Without ``find_unused_parameters`` it waits for the gradient of every parameter, and the second step fails if one is
    missing. A parameter that gets a gradient elsewhere keeps it.

    Args:
        unused: The modules that ``out`` does not depend on.
        out: What the loss is computed from: a tensor, or tuples of them.

    Returns:
        ``out`` with the same values and gradients; without a process group, and when traced, exported or transformed,
        the object that was passed in.
    """
    if not torch.is_grad_enabled() or not dist.is_available() or not dist.is_initialized():
        return out
    tensors, structure = tree_flatten(out)
    if is_recording(tensors[0]):
        return out
    parameters = [parameter for module in unused for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        return out
    tensors[0] = _NoGradient.apply(tensors[0], *parameters)
    return cast(Output, tree_unflatten(tensors, structure))


class _NoGradient(torch.autograd.Function):
    """The identity, with parameters as further inputs that get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.number = len(parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # None rather than zeros: outside of DistributedDataParallel, the grad of the parameters stays None.
        return grad, *[None] * ctx.number
