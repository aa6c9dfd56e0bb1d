"""ResNeXt: a ResNet with grouped 3x3 convolutions (Xie et al., 2016, https://arxiv.org/abs/1611.05431)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import nn
from typing_extensions import override

from . import blocks
from .errors import check_channels
from .resnet import ResNet

__all__ = ["Bottleneck", "ResNeXt", "grouped_width"]


def grouped_width(planes: int, groups: int, base_width: int, base_channels: int) -> int:
    """Return the number of channels of a grouped 3x3 convolution.

    Args:
        planes: A quarter of the block's number of output channels.
        groups: Number of groups. If it is 1, ``base_width`` is ignored, as in mmdet.
        base_width: Number of channels of each group in the first stage; it grows with ``planes``.
        base_channels: ``planes`` of the first stage.
    """
    return planes if groups == 1 else math.floor(planes * (base_width / base_channels)) * groups


class Bottleneck(blocks.Bottleneck):
    """A Bottleneck with a grouped 3x3 convolution.

    Args:
        inplanes: Number of input channels.
        planes: A quarter of the number of output channels.
        groups: See ``grouped_width``.
        base_width: See ``grouped_width``.
        base_channels: See ``grouped_width``.
        **kwargs: The further arguments of a plain Bottleneck.
    """

    def __init__(
        self,
        inplanes: int,
        planes: int,
        groups: int = 1,
        base_width: int = 4,
        base_channels: int = 64,
        **kwargs: Any,
    ) -> None:
        # mmdet builds a plain Bottleneck before it replaces its layers. Both draw random numbers, so that a seed gives
        # the same network only if both are built here too.
        super().__init__(inplanes, planes, **kwargs)
        width = grouped_width(planes, groups, base_width, base_channels)
        super().__init__(inplanes, planes, groups=groups, width=width, **kwargs)


class ResNeXt(ResNet):
    """ResNeXt (Xie et al., 2016, https://arxiv.org/abs/1611.05431, table 1), without its classifier.

    Args:
        groups: Number of groups of the 3x3 convolutions, the paper's cardinality: the 32 of "32x4d".
        base_width: Number of channels of each group in the first stage, doubled by each further one: the 4 of "32x4d".
            Ignored if ``groups`` is 1, as in mmdet.
        **kwargs: The arguments of ``ResNet``; ``depth`` is 50, 101 or 152.

    Raises:
        ArgumentError: An argument has an invalid value.

    Examples:
        >>> import torch
        >>> backbone = ResNeXt(depth=50, groups=32, base_width=4).eval()
        >>> [tuple(level.shape) for level in backbone(torch.rand(1, 3, 64, 64))]
        [(1, 256, 16, 16), (1, 512, 8, 8), (1, 1024, 4, 4), (1, 2048, 2, 2)]
    """

    arch_settings: ClassVar[dict[int, tuple[type[Any], tuple[int, ...]]]] = {
        50: (Bottleneck, (3, 4, 6, 3)),
        101: (Bottleneck, (3, 4, 23, 3)),
        152: (Bottleneck, (3, 8, 36, 3)),
    }

    def __init__(self, groups: int = 1, base_width: int = 4, **kwargs: Any) -> None:
        check_channels("groups", groups)
        check_channels("base_width", base_width)
        self.groups = groups
        self.base_width = base_width
        super().__init__(**kwargs)

    @override
    def make_res_layer(self, **kwargs: Any) -> nn.Module:
        return super().make_res_layer(
            groups=self.groups, base_width=self.base_width, base_channels=self.base_channels, **kwargs
        )
