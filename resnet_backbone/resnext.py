"""ResNeXt: a ResNet whose 3x3 convolutions run in groups (Xie et al., 2016, https://arxiv.org/abs/1611.05431)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import nn

from . import blocks
from .errors import check_channels
from .resnet import ResNet

__all__ = ["Bottleneck", "ResNeXt", "grouped_width"]


def grouped_width(planes: int, groups: int, base_width: int, base_channels: int) -> int:
    """Return the number of channels of a grouped 3x3 convolution.

    Args:
        planes: A fourth of the block's number of output channels.
        groups: Number of groups; 1 makes a plain Bottleneck, whatever ``base_width`` is, as in mmdet.
        base_width: Number of channels of each group where ``planes`` is ``base_channels``; it grows with ``planes``.
        base_channels: ``planes`` of the first stage.
    """
    return planes if groups == 1 else math.floor(planes * (base_width / base_channels)) * groups


class Bottleneck(blocks.Bottleneck):
    """A Bottleneck with ``groups`` in its 3x3 convolution, each ``base_width`` channels wide in the first stage.

    Args:
        inplanes: Number of input channels.
        planes: A fourth of the number of output channels.
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
        # mmdet builds a plain Bottleneck and then replaces its layers. So do we, since the weights of both are drawn
        # from the same random numbers: a seed gives the same network.
        super().__init__(inplanes, planes, **kwargs)
        width = grouped_width(planes, groups, base_width, base_channels)
        super().__init__(inplanes, planes, groups=groups, width=width, **kwargs)


class ResNeXt(ResNet):
    """ResNeXt (Xie et al., 2016, https://arxiv.org/abs/1611.05431, table 1), without its classifier.

    ``fold_norm`` halves what a training step saves, as for a ResNet.

    Args:
        groups: Number of groups of the 3x3 convolutions, the paper's cardinality: the 32 of "32x4d".
        base_width: Number of channels of each group in the first stage, doubled by each further one: the 4 of "32x4d".
            Not used where ``groups`` is 1, as in mmdet.
        **kwargs: The arguments of ``ResNet``; ``depth`` is 50, 101 or 152.

    Raises:
        ArgumentError: An argument has a value that is not allowed.

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

    def make_res_layer(self, **kwargs: Any) -> nn.Module:
        """Build one stage.

        Args:
            **kwargs: The arguments of ``ResLayer``.
        """
        return super().make_res_layer(
            groups=self.groups, base_width=self.base_width, base_channels=self.base_channels, **kwargs
        )
