"""Parameters that a forward pass does not reach, and what waits for their gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.fx import Proxy

__all__ = ["account_for"]

Output = Tensor | tuple[Tensor, ...]


def account_for(unused: Iterable[nn.Module], out: Output) -> Output:
    """Tell DistributedDataParallel, within the backward pass, that no gradient of some modules is to come.

    Without ``find_unused_parameters`` it waits for every parameter's, and refuses the second step if one is missing.
    A parameter that does get a gradient elsewhere keeps it.

    Args:
        unused: The modules that ``out`` does not depend on.
        out: What the loss is computed from: a tensor, or one for each branch.

    Returns:
        ``out``, with the same values and gradients. Where no process group exists, and in a symbolic trace, it is what
        was passed in.
    """
    if isinstance(out, Proxy) or not torch.is_grad_enabled() or not dist.is_available() or not dist.is_initialized():
        return out
    parameters = [parameter for module in unused for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        return out
    if isinstance(out, tuple):
        return (cast(Tensor, _NoGradient.apply(out[0], *parameters)), *out[1:])
    return cast(Tensor, _NoGradient.apply(out, *parameters))


class _NoGradient(torch.autograd.Function):
    """The identity, as a node of the graph that all of the parameters hang from and none gets a gradient from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.number = len(parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # No tensors of zeros: outside of DistributedDataParallel the parameters' grad stays None.
        return grad, *[None] * ctx.number
