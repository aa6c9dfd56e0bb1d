"""Squeeze-and-excitation, a plugin for SE-ResNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, ClassVar, cast

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor

from ..errors import ArgumentError, check_channels
from .dimensions import adaptive_avg_pool, spatial_dims_of
from .tracing import untyped_at_runtime

__all__ = ["SELayer"]

Cfg = dict[str, Any]


class SELayer(BaseModule):
    """Squeeze-and-excitation (Hu et al., 2017, https://arxiv.org/abs/1709.01507).

    Each channel is scaled by a weight computed from the means of all channels. In SE-ResNet (figure 3) one follows the
    last norm layer of each block:
    ``plugins=[dict(cfg=dict(type='SELayer', ratio=16), position='after_conv3')]``; ``'after_conv2'`` for depths 18
    and 34.

    Args:
        channels: Number of channels of the input and the output.
        ratio: Reduction ratio of the hidden layer; 16 in the paper.
        conv_cfg: Config of the two 1x1 convolutions; ``None`` means ``dict(type='Conv2d')``. Signals need
            ``dict(type='Conv1d')``.
        act_cfg: Configs of the two activations, or one for both.
        init_cfg: mmengine's initialization config.
        in_channels: Another name of ``channels``, which blocks pass to their plugins.

    Raises:
        ArgumentError: Neither or both of ``channels`` and ``in_channels`` are given, or ``ratio`` or ``act_cfg`` is
            invalid.
    """

    _abbr_: ClassVar[str] = "se_layer"

    def __init__(
        self,
        channels: int | None = None,
        ratio: float = 16,
        conv_cfg: Cfg | None = None,
        act_cfg: Cfg | Sequence[Cfg] = (dict(type="ReLU"), dict(type="Sigmoid")),
        init_cfg: Cfg | list[Cfg] | None = None,
        *,
        in_channels: int | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if (channels is None) == (in_channels is None):
            raise ArgumentError(
                f"SELayer needs one of channels and in_channels, which are two names of one argument: "
                f"got channels={channels!r} and in_channels={in_channels!r}"
            )
        width = cast(int, in_channels if channels is None else channels)
        check_channels("channels", width)
        if isinstance(ratio, bool) or not isinstance(cast(Any, ratio), Real) or not 0 < ratio <= width:
            raise ArgumentError(
                f"ratio of SELayer must be a number above 0 and at most the number of channels ({width}), got {ratio!r}"
            )
        act_cfgs = tuple(act_cfg) if isinstance(act_cfg, (list, tuple)) else (act_cfg, act_cfg)
        if len(act_cfgs) != 2 or not all(isinstance(cfg, Mapping) for cfg in act_cfgs):
            raise ArgumentError(f"act_cfg of SELayer must be one activation config or two, got {act_cfg!r}")

        narrow = int(width / ratio)
        self.global_avgpool = adaptive_avg_pool(spatial_dims_of(conv_cfg))
        self.conv1 = ConvModule(width, narrow, kernel_size=1, conv_cfg=conv_cfg, act_cfg=act_cfgs[0])
        self.conv2 = ConvModule(narrow, width, kernel_size=1, conv_cfg=conv_cfg, act_cfg=act_cfgs[1])

    @untyped_at_runtime
    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels.

        Args:
            x: Features of shape ``(N, channels, ...)``.
        """
        return cast(Tensor, x * self.conv2(self.conv1(self.global_avgpool(x))))
