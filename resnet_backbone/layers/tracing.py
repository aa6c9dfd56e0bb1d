"""Whether a computation is recorded or transformed, and not only run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.fx import Proxy

__all__ = ["is_compiling", "is_recording", "is_tracing", "untyped_at_runtime"]

Function = TypeVar("Function", bound=Callable[..., Any])

# torch.compiler.is_compiling came after torch 2.1, is_exporting after torch 2.6.
is_compiling = torch.compiler.is_compiling if hasattr(torch.compiler, "is_compiling") else torch._dynamo.is_compiling
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def is_tracing() -> bool:
    """Whether a compiler, an exporter, a tracer, ``torch.func`` or a dispatch mode sees the operations.

    Plain operations serve it best; an ``autograd.Function`` hides them.
    """
    return bool(is_compiling()) or is_recording() or torch._C._len_torch_dispatch_stack() > 0


def is_recording(x: object = None) -> bool:
    """Whether the computation is recorded to run elsewhere, or is transformed by ``torch.func``.

    What serves training in this process (checkpointing, gradient synchronisation) has no place there.

    Args:
        x: An input, which ``torch.fx`` replaces by a ``Proxy``.
    """
    return (
        isinstance(x, Proxy)
        or bool(_is_exporting())
        or torch._C._get_tracing_state() is not None
        or torch._C._are_functorch_transforms_active()
    )


def untyped_at_runtime(forward: Function) -> Function:
    """Drop the annotations of a ``forward`` when its module is imported; type checkers read them in the source.

    ``torch.fx`` copies them into the code that it generates, where TorchScript knows no ``tuple[Tensor, ...]`` and
    nobody knows a name such as ``'Tensor'``.
    """
    forward.__annotations__ = {}
    return forward
