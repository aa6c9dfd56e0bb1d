"""Res2Net: multi-scale features within each block (Gao et al., 2019, https://arxiv.org/abs/1904.01169)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from .arguments import check_flag
from .blocks import Bottleneck
from .errors import ArgumentError, check_channels, is_int
from .layers.build import build_conv_layer, build_norm_layer
from .layers.dimensions import avg_pool3, spatial_dims_of
from .res_layer import ResLayer
from .resnet import ResNet

__all__ = ["Bottle2neck", "Res2Net"]


class Bottle2neck(Bottleneck):
    """A Bottleneck that replaces the 3x3 convolution by a chain of smaller ones (figure 2).

    The output of the first 1x1 convolution is split into ``scales`` parts. Each part but the last has a 3x3
    convolution, whose input is the part plus the output of the previous one. The last part is passed on unchanged.

    Args:
        inplanes: Number of input channels.
        planes: A quarter of the number of output channels.
        scales: Number of parts, at least 2.
        base_width: Number of channels of each part in the first stage; it grows with ``planes``.
        base_channels: ``planes`` of the first stage.
        stage_type: ``'stage'`` for the first block of a stage, whose parts are independent, and whose last part is
            average-pooled if it strides; ``'normal'`` for the other blocks.
        pool_unstrided: Average-pool the last part of the first block of a stage even if it does not stride.
        **kwargs: The further arguments of a plain Bottleneck.
    """

    def __init__(
        self,
        inplanes: int,
        planes: int,
        scales: int = 4,
        base_width: int = 26,
        base_channels: int = 64,
        stage_type: str = "normal",
        *,
        pool_unstrided: bool = False,
        **kwargs: Any,
    ) -> None:
        if not is_int(scales) or scales < 2:
            raise ArgumentError(f"scales must be an integer of at least 2, got {scales!r}: 1 makes it a ResNet")
        plugins = kwargs.pop("plugins", None)
        # As in mmdet, for the same random numbers: first a plain Bottleneck, then the layers that replace its own.
        super().__init__(inplanes, planes, **kwargs)
        self.scales = scales
        self.stage_type = stage_type
        self.width = math.floor(planes * (base_width / base_channels))
        self._add_plugins(plugins, self.width * scales, self.width * scales, planes * self.expansion)
        self._build_conv1(self.width * scales)
        if stage_type == "stage" and (self.conv2_stride != 1 or pool_unstrided):
            self.pool = avg_pool3(spatial_dims_of(self.conv_cfg), self.conv2_stride)
        cfg = self._conv3x3_cfg(self.conv2_stride)
        options = self._conv3x3_options()
        self.convs = nn.ModuleList(
            build_conv_layer(cfg, self.width, self.width, bias=False, **options) for _ in range(scales - 1)
        )
        self.bns = nn.ModuleList(build_norm_layer(self.norm_cfg, self.width)[1] for _ in range(scales - 1))
        self._build_conv3(self.width * scales)
        del self.conv2
        delattr(self, self.norm2_name)

    @property
    @override
    def conv_norm_names(self) -> list[tuple[str, str]]:
        parts = [(f"convs.{index}", f"bns.{index}") for index in range(self.scales - 1)]
        return [("conv1", self.norm1_name), *parts, ("conv3", self.norm3_name)]

    def _middle(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.width, dim=1)
        outs: list[Tensor] = []
        for index, (conv, norm) in enumerate(zip(self.convs, self.bns)):
            part = parts[index]
            if outs and self.stage_type == "normal":
                part = outs[-1] + part
            if self.with_dcn:
                part = part.contiguous()  # Compiled mmcv ignores strides.
            outs.append(self.relu(self._conv_norm(conv, norm, part)))
        last = parts[self.scales - 1]
        outs.append(self.pool(last) if hasattr(self, "pool") else last)
        return torch.cat(outs, dim=1)


class Res2Layer(ResLayer):
    """One stage of a Res2Net: in the first block, a part is not added to the next one.

    Args:
        **kwargs: The arguments of ``ResLayer`` and ``Bottle2neck``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(first_block={"stage_type": "stage"}, **kwargs)


class Res2Net(ResNet):
    """Res2Net v1d (Gao et al., 2019, https://arxiv.org/abs/1904.01169), without its classifier.

    mmdet always builds the D variant. Here ``deep_stem=False`` and ``avg_down=False`` take effect, and together build
    the paper's network, timm's ``res2net50_26w_4s``.

    ``fold_norm`` saves less memory than for a ResNet, because the parts are saved again where they are concatenated.

    Args:
        scales: Number of parts in each block, the paper's ``s``.
        base_width: Number of channels of each part in the first stage, the paper's ``w``; further stages double it.
        style: Must be ``'pytorch'``.
        deep_stem: As in ``ResNet``.
        avg_down: As in ``ResNet``.
        pretrained: Deprecated; see ``ResNet``.
        init_cfg: mmengine's initialization config.
        pool_unstrided: Average-pool the last part also in the first block of the first stage, which does not stride.
            The authors' code, timm and mmpretrain do, and mmdet does not: set it for their weights.
        **kwargs: The further arguments of ``ResNet``; ``depth`` is 50, 101 or 152.

    Raises:
        ArgumentError: An argument has an invalid value.

    Examples:
        >>> import torch
        >>> backbone = Res2Net(depth=50, scales=4, base_width=26).eval()
        >>> [tuple(level.shape) for level in backbone(torch.rand(1, 3, 64, 64))]
        [(1, 256, 16, 16), (1, 512, 8, 8), (1, 1024, 4, 4), (1, 2048, 2, 2)]
    """

    arch_settings: ClassVar[dict[int, tuple[type[Any], tuple[int, ...]]]] = {
        50: (Bottle2neck, (3, 4, 6, 3)),
        101: (Bottle2neck, (3, 4, 23, 3)),
        152: (Bottle2neck, (3, 8, 36, 3)),
    }

    def __init__(
        self,
        scales: int = 4,
        base_width: int = 26,
        style: str = "pytorch",
        deep_stem: bool = True,
        avg_down: bool = True,
        pretrained: str | None = None,
        init_cfg: Any = None,
        *,
        pool_unstrided: bool = False,
        **kwargs: Any,
    ) -> None:
        check_channels("base_width", base_width)
        check_flag("pool_unstrided", pool_unstrided)
        if style != "pytorch":
            raise ArgumentError(f"style must be 'pytorch' for Res2Net, got {style!r}")
        self.scales = scales
        self.base_width = base_width
        self.pool_unstrided = pool_unstrided
        super().__init__(
            style=style, deep_stem=deep_stem, avg_down=avg_down, pretrained=pretrained, init_cfg=init_cfg, **kwargs
        )

    @override
    def make_res_layer(self, **kwargs: Any) -> nn.Module:
        return Res2Layer(
            scales=self.scales,
            base_width=self.base_width,
            base_channels=self.base_channels,
            pool_unstrided=self.pool_unstrided,
            **kwargs,
        )
