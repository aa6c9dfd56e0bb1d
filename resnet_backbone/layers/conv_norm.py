"""A convolution and its norm layer: one after the other, or as one convolution where the norm layer is in eval mode.

A batch norm in eval mode is an affine map, and an affine map after a convolution is a convolution with other weights:
``norm(conv(x)) = conv(x; weight * scale) + shift`` (You et al., 2023, https://arxiv.org/abs/2305.11624, section 3).
That saves a pass over the features in each direction, and the memory of the features between the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from mmcv.cnn.bricks import wrappers
from mmengine.model.utils import _BatchNormXd
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .tracing import has_hooks, is_compiling, is_plain, is_recording, is_tracing, is_watched

__all__ = ["conv_norm", "conv_norm_sequence", "fold_weights", "foldable", "is_foldable", "norm_as_affine"]

# Exact classes: a subclass computes something else (standardized or parametrized weights, sampling at offsets).
# mmcv's classes, registered as 'Conv' and 'Conv3d', differ from PyTorch's only for empty inputs on torch 1.4.
# mmengine turns a SyncBatchNorm back into a _BatchNormXd.
_CONVS: list[Any] = [nn.Conv1d, nn.Conv2d, nn.Conv3d, wrappers.Conv2d, wrappers.Conv3d]
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, _BatchNormXd)
# As imported: a forward that was patched for the whole class must not be bypassed.
_FORWARDS: dict[type, Any] = {cls: cls.forward for cls in (*_CONVS, *_NORMS)}

Conv = TypeVar("Conv", bound=type[nn.Module])


def foldable(conv: Conv) -> Conv:
    """Tell ``is_foldable`` of a class of convolutions. Its blocks use the weights of ``fold_weights`` themselves."""
    _CONVS.append(conv)
    _FORWARDS[conv] = conv.forward
    return conv


def conv_norm(conv: Any, norm: Any, x: Tensor, fold: bool, *, checkpointed: bool = False) -> Tensor:
    """Compute ``norm(conv(x))``.

    Args:
        conv: The convolution.
        norm: The norm layer behind it.
        x: Features of shape ``(N, C, ...)``.
        fold: Compute both as one convolution where the result differs only by rounding.
        checkpointed: Whether the caller is within a checkpoint, which drops what is saved here.
    """
    out: Tensor
    if not fold or is_watched(x) or not is_foldable(conv, norm) or x.dim() != conv.weight.dim():
        out = norm(conv(x))
    # An ordinary operation saves its inputs before it runs, so a checkpoint need not recompute the last one.
    elif checkpointed or is_tracing() or not torch.is_grad_enabled():
        again = conv.training and is_compiling() and not is_recording()
        out = conv._conv_forward(x, *fold_weights(conv, norm, rescale_in_backward=again))
    else:
        out = _scaled_conv(x, conv.weight, *norm_as_affine(norm, conv.bias), conv)
    return out


def conv_norm_sequence(layers: nn.Module, x: Tensor, fold: bool, *, checkpointed: bool = False) -> Tensor:
    """Compute ``layers(x)``, each convolution that a norm layer follows together with it.

    Args:
        layers: An ``nn.Sequential``; any other module, and one with hooks, is simply called.
        x: Features of shape ``(N, C, ...)``.
        fold: As for ``conv_norm``.
        checkpointed: As for ``conv_norm``.
    """
    if not fold or type(layers) is not nn.Sequential or has_hooks(layers) or is_watched(x):
        out: Tensor = layers(x)
        return out
    modules, index = list(layers), 0
    while index < len(modules):
        if type(modules[index]) in _CONVS and index + 1 < len(modules):
            x = conv_norm(modules[index], modules[index + 1], x, fold, checkpointed=checkpointed)
            index += 2
        else:
            x = modules[index](x)
            index += 1
    return x


def is_foldable(conv: Any, norm: Any) -> bool:
    """Whether two layers, as they are now, can be computed as one convolution.

    They can where ``conv`` is an ordinary convolution, ``norm`` a batch norm that uses its running statistics, and
    neither has hooks, a replaced ``forward`` or replaced tensors: these would be bypassed.
    """
    if type(conv) not in _CONVS or type(norm) not in _NORMS or norm.training or norm.running_mean is None:
        return False
    if getattr(conv, "padding_mode", "zeros") != "zeros" or isinstance(getattr(conv, "padding", None), str):
        return False
    tensors = (conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    return all(tensor is None or is_plain(tensor) for tensor in tensors) and not any(
        has_hooks(layer) or type(layer).forward is not _FORWARDS[type(layer)] for layer in (conv, norm)
    )


def fold_weights(conv: Any, norm: Any, *, rescale_in_backward: bool = False) -> tuple[Tensor, Tensor]:
    """Return the weight and the bias of the one convolution that equals ``conv`` and then ``norm``, in eval mode.

    Both have the dtype of ``conv.weight``, and are computed in single precision at least. ``rescale_in_backward`` tells
    a compiler, which would save the scaled weights, to scale again in the backward pass.
    """
    scale, shift = norm_as_affine(norm, conv.bias)
    shift = shift.to(conv.weight.dtype)
    if rescale_in_backward:
        return checkpoint(_scaled_as_used, conv.weight, scale, use_reentrant=False), shift
    return _scaled(conv.weight, scale), shift


def norm_as_affine(norm: Any, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return ``scale`` and ``shift`` of each channel: ``norm(y + bias) = y * scale + shift``, in eval mode."""
    var, mean = norm.running_var, norm.running_mean
    # torch.promote_types would say the same, but the compiler of torch 2.1 does not know it.
    rstd = torch.rsqrt((var if var.dtype == torch.float64 else var.float()) + norm.eps)
    scale = rstd if norm.weight is None else norm.weight * rstd
    center = mean if bias is None else mean - bias
    # In one operation, which autograd saves less for.
    shift = -center * scale if norm.bias is None else torch.addcmul(norm.bias, center, scale, value=-1)
    return scale, shift


class _ScaledConv(torch.autograd.Function):
    """``conv(x; weight * scale) + shift``. It saves ``x`` and no scaled weight: the backward pass scales again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, conv: Any) -> Tensor:
        # The module's own function, which autocast knows.
        out: Tensor = conv._conv_forward(x, _scaled(weight, scale), shift.to(weight.dtype))
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, scale, _, conv = inputs
        ctx.save_for_backward(x, weight, scale)
        ctx.save_for_forward(x, weight, scale)
        ctx.conv = conv

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        needs_x, needs_weight, needs_scale, needs_shift, _ = ctx.needs_input_grad
        conv = ctx.conv
        grad_x, grad_scaled, grad_shift = torch.ops.aten.convolution_backward(
            grad,
            x.to(grad.dtype),
            _scaled(weight, scale).to(grad.dtype),
            [weight.shape[0]],
            conv.stride,
            conv.padding,
            conv.dilation,
            False,
            [0],
            conv.groups,
            [needs_x, needs_weight or needs_scale, needs_shift],
        )
        grad_weight = grad_scale = None
        # Autograd casts each gradient to the dtype of its input.
        if grad_scaled is not None:
            grad_scaled = grad_scaled.to(scale.dtype)
        if needs_scale:
            # Without flatten, which copies channels_last.
            grad_scale = (grad_scaled * weight).sum(tuple(range(1, weight.dim())))
        if needs_weight:
            # Nobody else has it, unless this pass itself is recorded or differentiated.
            grad_weight = _scaled(grad_scaled, scale, in_place=not (torch.is_grad_enabled() or is_tracing()))
        return grad_x, grad_weight, grad_scale, grad_shift, None

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor, weight_t: Tensor, scale_t: Tensor, shift_t: Tensor, _: None) -> Tensor:
        x, weight, scale = ctx.saved_tensors
        scaled_t = _scaled(weight_t, scale) + _scaled(weight, scale_t)
        convolve: Callable[..., Tensor] = ctx.conv._conv_forward
        return convolve(x_t, _scaled(weight, scale), shift_t.to(weight.dtype)) + convolve(x, scaled_t, None)


# Function.apply without its Python part, which binds arguments for torch.func: that gets ordinary operations above, and
# the binding takes longer than a small convolution.
_scaled_conv = super(torch.autograd.Function, _ScaledConv).apply


def _scaled(weight: Tensor, scale: Tensor, *, in_place: bool = False) -> Tensor:
    """Multiply each output channel of ``weight`` by its ``scale``."""
    scale = scale.view(-1, *[1] * (weight.dim() - 1))
    return weight.mul_(scale) if in_place else (weight * scale).to(weight.dtype)


def _scaled_as_used(weight: Tensor, scale: Tensor) -> Tensor:
    """``_scaled`` in the dtype of the convolution: what autocast makes of it outside of a checkpoint would be saved."""
    scaled, device = _scaled(weight, scale), weight.device.type
    # Before torch 2.4 this has no per-device variant.
    if not hasattr(torch, "get_autocast_dtype") or not torch.is_autocast_enabled(device):
        return scaled
    return scaled.to(torch.get_autocast_dtype(device))
