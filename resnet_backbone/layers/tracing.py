"""Detection of tracing, transforms and hooks, for which shortcuts are not safe."""

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
    "is_in_function_mode",
    "is_plain",
    "is_recording",
    "is_tracing",
    "is_watched",
    "untyped_at_runtime",
]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# PyTorch mutates these dicts in place.
_GLOBAL_HOOKS = tuple(getattr(nn_module, f"_global{hooks}") for hooks in _HOOKS)
_REPLACED = ("forward", "_conv_forward", "_call_impl", "_compiled_call_impl")

Function = TypeVar("Function", bound=Callable[..., Any])

# torch.compiler.is_compiling came after torch 2.1, is_exporting after torch 2.6.
_IS_AFTER_2_1 = hasattr(torch.compiler, "is_compiling")
is_compiling = torch.compiler.is_compiling if _IS_AFTER_2_1 else torch._dynamo.is_compiling
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)


def is_tracing() -> bool:
    """Whether a compiler, an exporter, a tracer, ``torch.func`` or a dispatch mode sees the operations.

    An ``autograd.Function`` would hide the operations inside it.
    """
    return bool(is_compiling()) or is_recording() or torch._C._len_torch_dispatch_stack() > 0


def is_recording(x: object = None) -> bool:
    """Whether the computation is exported or symbolically traced, or transformed by ``torch.func``.

    Checkpointing and gradient synchronization do not belong in such a computation.

    Args:
        x: An input, which ``torch.fx`` replaces by a ``Proxy``.
    """
    if isinstance(x, Proxy) or _is_exporting():
        return True
    # A compiler does not need these checks and cannot trace them on torch 2.1.
    return not is_compiling() and (
        torch._C._get_tracing_state() is not None or torch._C._are_functorch_transforms_active()
    )


def is_watched(x: object) -> bool:
    """Whether global hooks, a ``TorchFunctionMode`` or a tensor subclass intercepts calls."""
    if not is_plain(x) or any(_GLOBAL_HOOKS):
        return True
    return is_in_function_mode() or caches_outputs()


def is_in_function_mode() -> bool:
    """Whether a ``TorchFunctionMode`` is active, which it is not while ``backward()`` runs."""
    # A compiler traces through modes. torch.set_default_device is a mode too, but has no effect here.
    if is_compiling():
        return False
    modes = torch._C._len_torch_function_stack()
    return not all(isinstance(torch._C._get_function_stack_at(index), DeviceContext) for index in range(modes))


def caches_outputs() -> bool:
    """Whether selective activation checkpointing caches outputs, which must then not be modified in place."""
    if is_compiling() or not torch._C._len_torch_dispatch_stack():
        return False
    return any(type(mode).__module__ == "torch.utils.checkpoint" for mode in _get_current_dispatch_mode_stack())


def is_plain(x: object) -> bool:
    """Whether ``x`` is a ``Tensor`` or ``Parameter`` and not of another subclass."""
    return x.__class__ in (Tensor, nn.Parameter)  # the compiler of torch 2.1 does not support type(x)


def has_hooks(module: nn.Module) -> bool:
    """Whether the module has hooks or a replaced ``forward``, which a shortcut would bypass."""
    if any(getattr(module, hooks) for hooks in _HOOKS):
        return True
    # The compiler of torch 2.1 does not support vars().
    return (_IS_AFTER_2_1 or not is_compiling()) and any(name in vars(module) for name in _REPLACED)


def untyped_at_runtime(forward: Function) -> Function:
    """Remove the annotations of a ``forward`` at runtime; type checkers still read them in the source.

    ``torch.fx`` copies them into the code that it generates, where TorchScript rejects ``tuple[Tensor, ...]`` and names
    such as ``'Tensor'`` are undefined.
    """
    forward.__annotations__ = {}
    return forward
