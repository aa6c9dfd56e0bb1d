"""A stage of a ResNet: a sequence of residual blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.model import Sequential
from torch import nn

from .arguments import check_multi_grid
from .layers.build import build_conv_layer, build_norm_layer
from .layers.dimensions import avg_pool, spatial_dims_of

__all__ = ["ResLayer"]

Cfg = dict[str, Any]


class ResLayer(Sequential):
    """One stage of a ResNet.

    Args:
        block: Class of the blocks, such as ``Bottleneck``; it has an ``expansion``.
        inplanes: Number of input channels.
        planes: Base number of channels; the stage returns ``planes * block.expansion``.
        num_blocks: Number of blocks.
        stride: Stride of the block that changes the resolution.
        avg_down: Downsample in the shortcut by average pooling instead of by a strided 1x1 convolution, so that no
            feature is skipped, as in ResNet-D (He et al., 2018, https://arxiv.org/abs/1812.01187, section 4).
        conv_cfg: Config of the convolutions; ``None`` means ``dict(type='Conv2d')``.
        norm_cfg: Config of the norm layers.
        downsample_first: Whether the first block changes the resolution, as in ResNet, or the last, as in Hourglass
            networks, where the other blocks keep ``inplanes`` channels.
        multi_grid: Dilation of each block, instead of ``dilation`` (Chen et al., 2017,
            https://arxiv.org/abs/1706.05587, section 3.1), as in mmsegmentation. Further entries are ignored.
        contract_dilation: Halve a ``dilation`` above 1 in the first block, as in mmsegmentation. ``multi_grid`` takes
            precedence.
        projection_shortcut: Use a projection in the shortcut of the first block even where input and output have the
            same shape.
        first_block: Further arguments of only the first block.
        **kwargs: Further arguments of every block: ``dilation``, ``style``, ``with_cp``, ``dcn``, ``plugins``,
            ``init_cfg``.
    """

    def __init__(
        self,
        block: type[Any],
        inplanes: int,
        planes: int,
        num_blocks: int,
        stride: int = 1,
        avg_down: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = dict(type="BN"),  # noqa: B006 - never changed; written as configs are
        downsample_first: bool = True,
        *,
        multi_grid: Sequence[int] | None = None,
        contract_dilation: bool = False,
        projection_shortcut: bool = False,
        first_block: Cfg | None = None,
        **kwargs: Any,
    ) -> None:
        outplanes = planes * block.expansion
        kwargs |= {"conv_cfg": conv_cfg, "norm_cfg": norm_cfg}

        # Built before the blocks, as in mmdet: the order of construction is the order of random numbers.
        downsample = None
        if stride != 1 or inplanes != outplanes or projection_shortcut:
            downsample = _projection(inplanes, outplanes, stride, avg_down, conv_cfg, norm_cfg)
        resizing = {"inplanes": inplanes, "planes": planes, "stride": stride, "downsample": downsample, **kwargs}

        if downsample_first:
            keeping = {"inplanes": outplanes, "planes": planes, "stride": 1, **kwargs}
            arguments = [resizing] + [keeping] * (num_blocks - 1)
        else:
            keeping = {"inplanes": inplanes, "planes": inplanes, "stride": 1, **kwargs}
            arguments = [keeping] * (num_blocks - 1) + [resizing]
        if multi_grid is not None:
            check_multi_grid(multi_grid, num_blocks)
            arguments = [{**of_one, "dilation": dilation} for of_one, dilation in zip(arguments, multi_grid)]
        elif contract_dilation and kwargs.get("dilation", 1) > 1:
            arguments[0] = {**arguments[0], "dilation": kwargs["dilation"] // 2}
        arguments[0] = {**arguments[0], **(first_block or {})}
        super().__init__(*(block(**of_one) for of_one in arguments))
        self.block = block
        self.out_channels = outplanes


def _projection(
    inplanes: int, outplanes: int, stride: int, avg_down: bool, conv_cfg: Cfg | None, norm_cfg: Cfg
) -> nn.Sequential:
    layers: list[nn.Module] = []
    if avg_down:
        layers.append(avg_pool(spatial_dims_of(conv_cfg), stride))
        stride = 1
    layers.append(build_conv_layer(conv_cfg, inplanes, outplanes, kernel_size=1, stride=stride, bias=False))
    layers.append(build_norm_layer(norm_cfg, outplanes)[1])
    return nn.Sequential(*layers)
