"""Make a trained backbone as small and fast as inference allows: batch norms folded into the convolutions for good."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from mmcv.cnn import ConvModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .blocks import ResidualBlock
from .layers.conv_norm import fold_weights, is_foldable, norm_as_affine
from .layers.deform import ModulatedDeformConv2dPack

__all__ = ["computes_as_ours", "fold_for_good", "with_constant_weights"]

Pairs = Iterable[tuple[str, str]]
Levels = Sequence[Tensor]


class ChannelAffine(nn.Module):
    """Scale and shift each channel: what is left of a batch norm whose convolution cannot take it in.

    Args:
        scale: One factor per channel.
        shift: One summand per channel.
    """

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.shift = nn.Parameter(shift, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``x * scale + shift``.

        Args:
            x: Features of shape ``(N, C, ...)``.
        """
        shape = (-1, *[1] * (x.dim() - 2))
        return torch.addcmul(self.shift.view(shape), x, self.scale.view(shape))


def fold_for_good(backbone: nn.Module, stem: Pairs) -> None:
    """Replace, in place, every batch norm that follows a convolution.

    An ordinary convolution, and the deformable one of type 'DCNv2', take it in; behind any other it becomes a
    ``ChannelAffine``. Norm layers of other kinds stay, and so do those in blocks with a ``forward`` of their own and
    in plugins other than mmcv's ``ConvModule``.

    Args:
        backbone: The backbone, in eval mode.
        stem: The names of those of its own convolutions that a norm layer follows, each with the norm layer's.
    """
    for name_of_conv, name_of_norm in stem:
        _fold_pair(backbone, name_of_conv, name_of_norm)
    for part in backbone.modules():
        for name_of_conv, name_of_norm in _pairs_in(part):
            _fold_pair(part, name_of_conv, name_of_norm)
        if isinstance(part, ResidualBlock):
            part.with_cp = False
    for parameter in backbone.parameters():
        parameter.requires_grad = False


def _pairs_in(part: nn.Module) -> Pairs:
    """The names of the convolutions that ``part`` runs right before a norm layer, each with the norm layer's."""
    if computes_as_ours(part):
        return cast(Pairs, part.conv_norm_names)
    if isinstance(part, ConvModule) and part.with_norm and part.order.index("norm") == part.order.index("conv") + 1:
        return [("conv", part.norm_name)]
    if type(part) is nn.Sequential:
        names = list(part._modules)
        return list(pairwise(names))
    return []


def computes_as_ours(part: nn.Module) -> bool:
    """Whether ``part`` has ``conv_norm_names`` that describe its forward pass: no subclass computes otherwise."""
    names, *computations = (
        next((depth for depth, cls in enumerate(type(part).__mro__) if name in vars(cls)), math.inf)
        for name in ("conv_norm_names", "forward", "_residual_and_shortcut", "_middle")
    )
    return names < math.inf and names <= min(computations)


def _fold_pair(owner: nn.Module, name_of_conv: str, name_of_norm: str) -> None:
    conv: Any = owner.get_submodule(name_of_conv)
    norm: Any = owner.get_submodule(name_of_norm)
    path, _, leaf = name_of_norm.rpartition(".")
    if not _is_conv(conv) or not isinstance(norm, _BatchNorm) or norm.running_mean is None:
        return
    with torch.no_grad():
        if is_foldable(conv, norm) or _is_modulated_deform_conv(conv):
            weight, bias = fold_weights(conv, norm)
            conv.weight, conv.bias = nn.Parameter(weight), nn.Parameter(bias)
            setattr(owner.get_submodule(path), leaf, nn.Identity())
        else:
            setattr(owner.get_submodule(path), leaf, ChannelAffine(*norm_as_affine(norm)))


def _is_conv(layer: nn.Module) -> bool:
    """Whether a norm layer behind ``layer`` works on what a convolution has made, ordinary or not."""
    return "Conv" in type(layer).__name__


def _is_modulated_deform_conv(layer: nn.Module) -> bool:
    """Whether ``layer`` is the convolution of type 'DCNv2', ours or compiled mmcv's, which takes a bias."""
    return type(layer).__name__ == ModulatedDeformConv2dPack.__name__


def with_constant_weights(compiled: Callable[[Tensor], Levels]) -> Callable[[Tensor], Levels]:
    """Return ``compiled``, a backbone's compiled call, with its weights as constants on CPUs.

    Inductor then lays them out for its kernels. Its option for that, ``torch.compile(options={"freezing": True})``,
    comes too late: the compiler's front end, which reads the global setting alone, has made inputs of the weights by
    then. An input that wants a gradient, and one on another device, take the ordinary road.
    """
    from torch._inductor import config

    def call(x: Tensor) -> Levels:
        if x.device.type != "cpu" or x.requires_grad:
            return compiled(x)
        with config.patch(freezing=True), torch.no_grad():
            return compiled(x)

    return call
