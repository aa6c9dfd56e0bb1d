"""A convolution and its norm layer: one after the other, or as one convolution where the norm layer is in eval mode.

A batch norm in eval mode is an affine map, and an affine map after a convolution is a convolution with other weights:
``norm(conv(x)) = conv(x; weight * scale) + shift`` (You et al., 2023, https://arxiv.org/abs/2305.11624, section 3).
That saves a pass over the features in each direction, and the memory of the features between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from mmcv.cnn.bricks import wrappers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = [
    "conv_norm",
    "conv_norm_sequence",
    "fold",
    "forget_folded",
    "has_hooks",
    "is_foldable",
    "is_graph_wanted",
    "norm_as_affine",
]

# Subclasses compute something else (standardised or parametrised weights, sampling at offsets).
# mmcv's own, which the types 'Conv' and 'Conv3d' stand for, differ from PyTorch's for empty inputs on torch 1.4 alone.
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, wrappers.Conv2d, wrappers.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

# torch.compiler.is_compiling came after torch 2.1.
_is_compiling = getattr(torch.compiler, "is_compiling", torch._dynamo.is_compiling)


def is_graph_wanted() -> bool:
    """Whether somebody records the computation: plain operations then, and nothing remembered from earlier calls."""
    return bool(_is_compiling()) or torch._C._get_tracing_state() is not None


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor, folded: bool) -> Tensor:
    """Compute ``norm(conv(x))``.

    Args:
        conv: The convolution.
        norm: The norm layer behind it.
        x: Features of shape ``(N, C, ...)``.
        folded: Compute both as one convolution where ``is_foldable`` allows. The result then differs by rounding.
    """
    if not folded or not is_foldable(conv, norm):
        return cast(Tensor, norm(conv(x)))
    weights = _affine_weights(conv, norm)
    if not any(weight.requires_grad for weight in weights):
        return _convolve(conv, x, *_folded_once(conv, norm))
    if not torch.is_grad_enabled() or is_graph_wanted():
        return _convolve(conv, x, *fold(conv, norm, again=conv.training and bool(_is_compiling())))
    out = _FoldedConv.apply(
        x, conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var, conv, norm.eps
    )
    return cast(Tensor, out)


def conv_norm_sequence(layers: nn.Module, x: Tensor, folded: bool) -> Tensor:
    """Compute ``layers(x)``, each convolution that a norm layer follows with it.

    Args:
        layers: An ``nn.Sequential``; any other module, and one with hooks, is called as it is.
        x: Features of shape ``(N, C, ...)``.
        folded: As for ``conv_norm``.
    """
    if not folded or type(layers) is not nn.Sequential or has_hooks(layers):
        return cast(Tensor, layers(x))
    modules, index = list(layers), 0
    while index < len(modules):
        if type(modules[index]) in _CONVS and index + 1 < len(modules):
            x = conv_norm(modules[index], modules[index + 1], x, folded)
            index += 2
        else:
            x = modules[index](x)
            index += 1
    return x


def is_foldable(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether the two, as they are now, can be computed as one convolution.

    They can where ``conv`` is an ordinary convolution and ``norm`` a batch norm that uses its running statistics, and
    nobody has hooked into either: a hook would not be called.
    """
    return (
        type(conv) in _CONVS
        and conv.padding_mode == "zeros"
        and type(norm) in _NORMS
        and not norm.training
        and norm.running_mean is not None
        and not has_hooks(conv)
        and not has_hooks(norm)
    )


def fold(conv: Any, norm: Any, again: bool = False) -> tuple[Tensor, Tensor]:
    """Return the weight and the bias of the one convolution that equals ``conv`` and then ``norm``, in eval mode.

    Both have the dtype of ``conv.weight``, and are computed in single precision at least.

    Args:
        conv: The convolution.
        norm: The batch norm.
        again: Tell a compiler to scale the weights again in the backward pass; by itself it keeps them for that.
    """
    scale, shift = norm_as_affine(norm, conv.bias)
    shift = shift.to(conv.weight.dtype)
    if again:
        return checkpoint(_scaled_as_used, conv.weight, scale, use_reentrant=False), shift
    return _scaled(conv.weight, scale), shift


def norm_as_affine(norm: Any, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the ``scale`` and ``shift`` of each channel with which ``norm(y + bias) = y * scale + shift``.

    Args:
        norm: A batch norm, taken as in eval mode.
        bias: What is added to its input, one number per channel.
    """
    rstd = (_at_least_single(norm.running_var) + norm.eps).rsqrt()
    scale = rstd if norm.weight is None else norm.weight * rstd
    shift = -_centre(norm.running_mean, bias) * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def forget_folded(module: nn.Module) -> None:
    """Drop the folded weights of all that is frozen in ``module``; the next forward pass computes them anew."""
    for part in module.modules():
        _FROZEN.pop(part, None)


class _FoldedConv(torch.autograd.Function):
    """The folded convolution, keeping for the backward pass its input alone: weights are scaled again there."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        mean: Tensor,
        var: Tensor,
        conv: nn.Module,
        eps: float,
    ) -> Tensor:
        rstd = (_at_least_single(var) + eps).rsqrt()
        scale = rstd if gamma is None else gamma * rstd
        shift = -_centre(mean, bias) * scale
        if beta is not None:
            shift = shift + beta
        ctx.save_for_backward(x, weight, bias, gamma, mean, rstd)
        ctx.conv = conv
        # Under autocast this convolution casts what it is given.
        return _convolve(conv, x, _scaled(weight, scale), shift.to(weight.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, gamma, mean, rstd = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_gamma, needs_beta = ctx.needs_input_grad[:5]
        scale = rstd if gamma is None else gamma * rstd
        needs_folded_weight = needs_weight or needs_gamma
        grad_x, grad_folded, grad_shift = torch.ops.aten.convolution_backward(
            grad,
            x.to(grad.dtype),
            _scaled(weight, scale).to(grad.dtype),
            [weight.shape[0]],
            ctx.conv.stride,
            ctx.conv.padding,
            ctx.conv.dilation,
            False,
            [0],
            ctx.conv.groups,
            [needs_x, needs_folded_weight, needs_bias or needs_gamma or needs_beta],
        )
        grad_weight = grad_bias = grad_gamma = grad_beta = None
        if needs_folded_weight:
            grad_folded = grad_folded.to(rstd.dtype)
        if grad_shift is not None:
            grad_shift = grad_shift.to(rstd.dtype)
        if needs_weight:
            grad_weight = _scaled(grad_folded, scale).to(weight.dtype)
        if needs_bias:
            grad_bias = (grad_shift * scale).to(weight.dtype)
        if needs_gamma:
            grad_scale = _per_channel(grad_folded * weight) - grad_shift * _centre(mean, bias)
            grad_gamma = (grad_scale * rstd).to(gamma.dtype)
        if needs_beta:
            grad_beta = grad_shift.to(gamma.dtype)
        grad_x = None if grad_x is None else grad_x.to(x.dtype)
        return grad_x, grad_weight, grad_bias, grad_gamma, grad_beta, None, None, None, None


class _Frozen(NamedTuple):
    """Folded weights, and what tells whether they still are those of their layers."""

    weight: Tensor
    bias: Tensor
    sources: list[Tensor]  # holding on to the memory, so that no other tensor can come to lie at its address
    versions: list[int]
    eps: float
    fingerprint: Tensor | None


_FROZEN: WeakKeyDictionary[nn.Module, _Frozen] = WeakKeyDictionary()


def _folded_once(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Return ``fold(conv, norm)``, computed when a weight or a statistic has changed since the last call."""
    sources = [*_affine_weights(conv, norm), norm.running_mean, norm.running_var]
    if is_graph_wanted() or any(source.is_inference() for source in sources):
        return fold(conv, norm)
    known = _FROZEN.get(conv)
    if known is None or not _is_current(known, sources, norm.eps):
        # Outside of inference mode, whose tensors a later backward pass could not use.
        with torch.inference_mode(False), torch.no_grad():
            known = _Frozen(
                *fold(conv, norm),
                [source.detach() for source in sources],
                [source._version for source in sources],
                norm.eps,
                _fingerprint(sources),
            )
        _FROZEN[conv] = known
    return known.weight, known.bias


def _is_current(known: _Frozen, sources: Sequence[Tensor], eps: float) -> bool:
    return (
        eps == known.eps
        and len(sources) == len(known.sources)
        and all(
            source.data_ptr() == old.data_ptr() and source.dtype == old.dtype and source._version == version
            for source, old, version in zip(sources, known.sources, known.versions)
        )
        and (known.fingerprint is None or torch.equal(known.fingerprint, cast(Tensor, _fingerprint(sources))))
    )


def _fingerprint(sources: Sequence[Tensor]) -> Tensor | None:
    """A projection of the tensors that shows a change made through ``.data``, which no version counter sees.

    It reads the weights once and writes nothing, where folding reads and writes them. ``None`` on other devices than
    CPUs, where comparing would wait for the device; there ``train()`` and ``eval()`` make the weights fold anew.
    """
    if sources[0].device.type != "cpu":
        return None
    with torch.no_grad():
        weight = sources[0]
        size = weight[0].numel()
        # In the order of memory, so that channels_last is not copied.
        rows = weight.as_strided((len(weight), size), (size, 1)) if weight.stride(0) == size else weight.flatten(1)
        rows = _at_least_single(rows)
        probe = torch.linspace(1, 2, size, dtype=rows.dtype)
        return torch.cat([rows @ probe, *(source.flatten() for source in sources[1:])])


def _affine_weights(conv: Any, norm: Any) -> list[Tensor]:
    """The parameters of both, the convolution's weight first."""
    return [parameter for parameter in (conv.weight, conv.bias, norm.weight, norm.bias) if parameter is not None]


def _convolve(conv: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return cast(Tensor, conv._conv_forward(x, weight, bias))


def _centre(mean: Tensor, bias: Tensor | None) -> Tensor:
    """What the norm layer takes for zero, seen from the convolution without its bias."""
    return mean if bias is None else mean - bias


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """Multiply each output channel of ``weight`` by its ``scale``."""
    return (weight * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)


def _scaled_as_used(weight: Tensor, scale: Tensor) -> Tensor:
    """``_scaled`` in the dtype of the convolution: what autocast makes of it outside of a checkpoint would be kept."""
    scaled, device = _scaled(weight, scale), weight.device.type
    # Before torch 2.4 the question cannot be asked for a device.
    if not hasattr(torch, "get_autocast_dtype") or not torch.is_autocast_enabled(device):
        return scaled
    return scaled.to(torch.get_autocast_dtype(device))


def _per_channel(weight: Tensor) -> Tensor:
    """Sum over all but the output channels; without ``flatten``, which copies ``channels_last``."""
    return weight.sum(tuple(range(1, weight.dim())))


def _at_least_single(values: Tensor) -> Tensor:
    # torch.promote_types would say the same, but the compiler of torch 2.1 does not know it.
    return values if values.dtype == torch.float64 else values.float()


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody waits for the module itself to be called."""
    return any(getattr(module, hooks) for hooks in _HOOKS)
