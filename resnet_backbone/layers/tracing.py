"""Whether a computation is recorded, transformed or watched, and not only run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules import module as nn_module
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

__all__ = [
    "caches_outputs",
    "has_hooks",
    "is_compiling",
    "is_plain",
    "is_recording",
    "is_tracing",
    "is_watched",
    "untyped_at_runtime",
]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Dicts that PyTorch fills and never replaces.
_GLOBAL_HOOKS = tuple(getattr(nn_module, f"_global{hooks}") for hooks in _HOOKS)
_REPLACED = ("forward", "_conv_forward", "_call_impl", "_compiled_call_impl")

Function = TypeVar("Function", bound=Callable[..., Any])

# torch.compiler.is_compiling came after torch 2.1, is_exporting after torch 2.6.
_IS_AFTER_2_1 = hasattr(torch.compiler, "is_compiling")
is_compiling = torch.compiler.is_compiling if _IS_AFTER_2_1 else torch._dynamo.is_compiling
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
    if isinstance(x, Proxy) or _is_exporting():
        return True
    # A compiler neither needs the answer to these, nor can trace them on torch 2.1.
    return not is_compiling() and (
        torch._C._get_tracing_state() is not None or torch._C._are_functorch_transforms_active()
    )


def is_watched(x: object) -> bool:
    """Whether somebody sees the calls of all modules or functions, or ``x`` is of a subclass that sees its own."""
    if not is_plain(x) or any(_GLOBAL_HOOKS):
        return True
    # A compiler traces through modes itself. torch.set_default_device is one too, and changes nothing here.
    if is_compiling():
        return False
    modes = torch._C._len_torch_function_stack()
    if not all(isinstance(torch._C._get_function_stack_at(index), DeviceContext) for index in range(modes)):
        return True
    return caches_outputs()


def caches_outputs() -> bool:
    """Whether selective activation checkpointing keeps what operations return, which may then not change in place."""
    if is_compiling() or not torch._C._len_torch_dispatch_stack():
        return False
    return any(type(mode).__module__ == "torch.utils.checkpoint" for mode in _get_current_dispatch_mode_stack())


def is_plain(x: object) -> bool:
    """Whether ``x`` is PyTorch's own tensor, and not of a subclass that computes something else."""
    return x.__class__ in (Tensor, nn.Parameter)  # The compiler of torch 2.1 knows no type(x).


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody waits for the module itself to be called, or has replaced what a call does."""
    if any(getattr(module, hooks) for hooks in _HOOKS):
        return True
    # The compiler of torch 2.1 knows no vars().
    return (_IS_AFTER_2_1 or not is_compiling()) and any(name in vars(module) for name in _REPLACED)


def untyped_at_runtime(forward: Function) -> Function:
    """Drop the annotations of a ``forward`` when its module is imported; type checkers read them in the source.

    ``torch.fx`` copies them into the code that it generates, where TorchScript knows no ``tuple[Tensor, ...]`` and
    nobody knows a name such as ``'Tensor'``.
    """
    forward.__annotations__ = {}
    return forward
