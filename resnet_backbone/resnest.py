"""ResNeSt: ResNets with split attention (Zhang et al., 2020, https://arxiv.org/abs/2004.08955)."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from . import blocks
from .errors import ArgumentError, check_channels
from .layers.build import build_conv_layer, build_norm_layer
from .layers.conv_norm import conv_norm
from .layers.dimensions import spatial_dims_of
from .layers.tracing import untyped_at_runtime
from .resnet import ResNetV1d
from .resnext import grouped_width

__all__ = ["Bottleneck", "RSoftmax", "ResNeSt", "SplitAttentionConv2d"]

Cfg = dict[str, Any]


class RSoftmax(nn.Module):
    """Softmax over the splits of each channel, or a sigmoid if there is one split.

    Args:
        radix: Number of splits.
        groups: Number of groups.
    """

    def __init__(self, radix: int, groups: int) -> None:
        super().__init__()
        self.radix = radix
        self.groups = groups

    @untyped_at_runtime
    def forward(self, x: Tensor) -> Tensor:
        """Compute weights of shape ``(N, radix * groups * C)``.

        Args:
            x: Logits of shape ``(N, groups * radix * C, 1, 1)``.
        """
        x = x.flatten(1)
        if self.radix == 1:
            return x.sigmoid()
        splits = torch.unflatten(x, 1, (self.groups, self.radix, -1))
        return splits.transpose(1, 2).softmax(dim=1).flatten(1)


class SplitAttentionConv2d(BaseModule):
    """Split attention: a convolution into several splits, and their weighted sum (section 3.1, figure 2).

    The weights of the splits are computed for each channel from global context.

    Args:
        in_channels: Number of input channels.
        channels: Number of output channels.
        kernel_size: Size of the kernel.
        stride: Stride.
        padding: Zero padding on each side.
        dilation: Dilation.
        groups: Number of groups, the paper's cardinality.
        radix: Number of splits.
        reduction_factor: Factor by which the hidden layer of the attention is narrower than the splits together.
        conv_cfg: Config of the convolution.
        norm_cfg: Config of the norm layers.
        dcn: Config of a deformable convolution that replaces the convolution.
        init_cfg: mmengine's initialization config.
    """

    fold_norm: bool = False
    norm0_name: str
    norm1_name: str

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        radix: int = 2,
        reduction_factor: int = 4,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = dict(type="BN"),  # noqa: B006 - never changed; written as configs are
        dcn: Cfg | None = None,
        init_cfg: Cfg | list[Cfg] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        inner_channels = max(in_channels * radix // reduction_factor, 32)
        self.radix = radix
        self.groups = groups
        self.channels = channels
        self.dcn = dcn
        self.with_dcn = dcn is not None
        self.conv = build_conv_layer(
            conv_cfg if dcn is None else dcn,
            in_channels,
            channels * radix,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups * radix,
            bias=False,
        )
        self.norm0_name, norm0 = build_norm_layer(norm_cfg, channels * radix, postfix=0)
        self.add_module(self.norm0_name, norm0)
        self.relu = nn.ReLU(inplace=True)
        self.fc1 = build_conv_layer(None, channels, inner_channels, 1, groups=groups)
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, inner_channels, postfix=1)
        self.add_module(self.norm1_name, norm1)
        self.fc2 = build_conv_layer(None, inner_channels, channels * radix, 1, groups=groups)
        self.rsoftmax = RSoftmax(radix, groups)

    @property
    def norm0(self) -> nn.Module:
        """The norm layer after the convolution."""
        return cast(nn.Module, getattr(self, self.norm0_name))

    @property
    def norm1(self) -> nn.Module:
        """The norm layer in the attention."""
        return cast(nn.Module, getattr(self, self.norm1_name))

    @property
    def conv_norm_names(self) -> list[tuple[str, str]]:
        """Names of the convolutions that a norm layer follows, each with the name of that layer."""
        return [("conv", self.norm0_name), ("fc1", self.norm1_name)]

    @untyped_at_runtime
    def forward(self, x: Tensor) -> Tensor:
        """Compute features of shape ``(N, channels, H / stride, W / stride)``.

        Args:
            x: Features of shape ``(N, in_channels, H, W)``.
        """
        x = self.relu(conv_norm(self.conv, self.norm0, x, self.fold_norm))
        splits = torch.unflatten(x, 1, (self.radix, -1))
        pooled = F.adaptive_avg_pool2d(splits.sum(dim=1) if self.radix > 1 else x, 1)
        hidden = self.relu(conv_norm(self.fc1, self.norm1, pooled, self.fold_norm))
        weights = self.rsoftmax(self.fc2(hidden))[:, :, None, None]
        if self.radix == 1:
            return cast(Tensor, weights * x)
        return torch.sum(torch.unflatten(weights, 1, (self.radix, -1)) * splits, dim=1)


class Bottleneck(blocks.Bottleneck):
    """A Bottleneck with split attention instead of its 3x3 convolution, which strides by average pooling (section 3.2).

    Args:
        inplanes: Number of input channels.
        planes: A quarter of the number of output channels.
        groups: See ``resnext.grouped_width``.
        base_width: See ``resnext.grouped_width``.
        base_channels: See ``resnext.grouped_width``.
        radix: Number of splits.
        reduction_factor: See ``SplitAttentionConv2d``.
        avg_down_stride: Stride by 3x3 average pooling after the attention instead of in its convolution.
        **kwargs: The further arguments of a plain Bottleneck.
    """

    def __init__(
        self,
        inplanes: int,
        planes: int,
        groups: int = 1,
        base_width: int = 4,
        base_channels: int = 64,
        radix: int = 2,
        reduction_factor: int = 4,
        avg_down_stride: bool = True,
        **kwargs: Any,
    ) -> None:
        plugins = kwargs.pop("plugins", None)
        # As in mmdet, for the same random numbers: first a plain Bottleneck, then the layers that replace its own.
        super().__init__(inplanes, planes, **kwargs)
        if spatial_dims_of(self.conv_cfg) != 2:
            raise ArgumentError(f"conv_cfg must be a convolution of images for ResNeSt, got {self.conv_cfg!r}")
        width = grouped_width(planes, groups, base_width, base_channels)
        self._add_plugins(plugins, width, width, planes * self.expansion)
        self.avg_down_stride = avg_down_stride and self.conv2_stride > 1
        self._build_conv1(width)
        delattr(self, self.norm2_name)
        stride = 1 if self.avg_down_stride else self.conv2_stride
        falls_back = self._conv3x3_cfg(self.conv2_stride) is not self.dcn
        self.conv2 = SplitAttentionConv2d(
            width,
            width,
            kernel_size=self.kernel_size,
            stride=stride,
            padding=self._padding(self.dilation),
            dilation=self.dilation,
            groups=groups,
            radix=radix,
            reduction_factor=reduction_factor,
            conv_cfg=self.conv_cfg,
            norm_cfg=self.norm_cfg,
            dcn=None if falls_back else self.dcn,
        )
        if self.avg_down_stride:
            self.avd_layer = nn.AvgPool2d(3, self.conv2_stride, padding=1)
        self._build_conv3(width)

    @property
    @override
    def conv_norm_names(self) -> list[tuple[str, str]]:
        return [("conv1", self.norm1_name), ("conv3", self.norm3_name)]

    def _middle(self, x: Tensor) -> Tensor:
        x = self.conv2(x)
        return cast(Tensor, self.avd_layer(x)) if self.avg_down_stride else x


class ResNeSt(ResNetV1d):
    """ResNeSt (Zhang et al., 2020, https://arxiv.org/abs/2004.08955), without its classifier.

    ``fold_norm`` saves less memory than for a ResNet: the attention saves as much as before.

    Args:
        groups: Number of groups, the paper's cardinality.
        base_width: Number of channels of each group in the first stage. Ignored if ``groups`` is 1, as in mmdet.
        radix: Number of splits.
        reduction_factor: See ``SplitAttentionConv2d``.
        avg_down_stride: Stride by 3x3 average pooling after the attention instead of in its convolution.
        **kwargs: The arguments of ``ResNetV1d``; ``depth`` is 50, 101, 152 or 200. The paper's ``stem_channels``
            are 64 for depth 50, and 128 for the others.

    Raises:
        ArgumentError: An argument has an invalid value.

    Examples:
        >>> import torch
        >>> backbone = ResNeSt(depth=50, stem_channels=64).eval()
        >>> [tuple(level.shape) for level in backbone(torch.rand(1, 3, 64, 64))]
        [(1, 256, 16, 16), (1, 512, 8, 8), (1, 1024, 4, 4), (1, 2048, 2, 2)]
    """

    arch_settings: ClassVar[dict[int, tuple[type[Any], tuple[int, ...]]]] = {
        50: (Bottleneck, (3, 4, 6, 3)),
        101: (Bottleneck, (3, 4, 23, 3)),
        152: (Bottleneck, (3, 8, 36, 3)),
        200: (Bottleneck, (3, 24, 36, 3)),
    }

    def __init__(
        self,
        groups: int = 1,
        base_width: int = 4,
        radix: int = 2,
        reduction_factor: int = 4,
        avg_down_stride: bool = True,
        **kwargs: Any,
    ) -> None:
        for name, value in dict(
            groups=groups, base_width=base_width, radix=radix, reduction_factor=reduction_factor
        ).items():
            check_channels(name, value)
        self.groups = groups
        self.base_width = base_width
        self.radix = radix
        self.reduction_factor = reduction_factor
        self.avg_down_stride = avg_down_stride
        super().__init__(**kwargs)

    @override
    def make_res_layer(self, **kwargs: Any) -> nn.Module:
        return super().make_res_layer(
            groups=self.groups,
            base_width=self.base_width,
            base_channels=self.base_channels,
            radix=self.radix,
            reduction_factor=self.reduction_factor,
            avg_down_stride=self.avg_down_stride,
            **kwargs,
        )
