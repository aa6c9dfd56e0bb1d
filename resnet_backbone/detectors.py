"""The backbones of DetectoRS (Qiao et al., 2020, https://arxiv.org/abs/2006.02334).

They run twice, the second time with the feature pyramid of the first as a further input (recursive feature pyramid,
section 3.1). Their 3x3 convolutions may switch between two dilations (switchable atrous convolution, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from types import NoneType
from typing import Any, ClassVar, cast

import torch
from mmengine.model import constant_init, initialize, kaiming_init
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from . import blocks
from .arguments import check_flag, check_stage_mask
from .errors import ArgumentError, ArgumentTypeError, UnknownNameError, check_channels
from .layers.build import build_conv_layer
from .layers.tracing import untyped_at_runtime
from .resnet import FeatureInfo, ResNet, pretrained_init_cfg
from .resnext import ResNeXt, grouped_width

__all__ = ["Bottleneck", "DetectoRS_ResNeXt", "DetectoRS_ResNet"]

Cfg = dict[str, Any]


class Bottleneck(blocks.Bottleneck):
    """A Bottleneck with a switchable atrous convolution and the features of a pyramid as a second input.

    Args:
        inplanes: Number of input channels.
        planes: A quarter of the number of output channels.
        rfp_inplanes: Number of channels of the pyramid's features; ``None`` for a block without that input.
        sac: Config of the switchable atrous convolution that replaces the 3x3.
        init_cfg: mmengine's initialization config.
        plugins: As for a plain Bottleneck.
        groups: In a ResNeXt, see ``resnext.grouped_width``; ``None`` in a ResNet.
        base_width: See ``resnext.grouped_width``.
        base_channels: See ``resnext.grouped_width``.
        **kwargs: The further arguments of a plain Bottleneck.
    """

    sac: Cfg | None = None

    def __init__(
        self,
        inplanes: int,
        planes: int,
        rfp_inplanes: int | None = None,
        sac: Cfg | None = None,
        init_cfg: Cfg | list[Cfg] | None = None,
        *,
        plugins: list[Cfg] | None = None,
        groups: int | None = None,
        base_width: int = 4,
        base_channels: int = 64,
        **kwargs: Any,
    ) -> None:
        # As in mmdet, for the same random numbers: first a plain Bottleneck, then the layers that replace its own.
        super().__init__(inplanes, planes, init_cfg=init_cfg, **kwargs)
        inner = kwargs.get("width") or planes
        width = inner if groups is None else grouped_width(planes, groups, base_width, base_channels)
        self._add_plugins(plugins, width, width, planes * self.expansion)
        self.sac = sac
        self.with_sac = sac is not None
        if self.with_sac:
            self._build_conv2(inner)
        self.rfp_inplanes = rfp_inplanes
        if rfp_inplanes:
            self.rfp_conv = build_conv_layer(None, rfp_inplanes, planes * self.expansion, kernel_size=1, bias=True)
            if init_cfg is None:
                self.init_cfg = dict(type="Constant", val=0, override=dict(name="rfp_conv"))
        if groups is not None:
            self._build_conv1(width)
            self._build_conv2(width, groups)
            self._build_conv3(width)

    def _conv3x3_cfg(self, stride: int) -> Cfg | None:
        return super()._conv3x3_cfg(stride) if self.sac is None else self.sac

    def rfp_forward(self, x: Tensor, rfp_feat: Tensor | None) -> Tensor:
        """Compute features of shape ``(N, 4 * planes, H / stride, W / stride)``.

        Args:
            x: Features of shape ``(N, inplanes, H, W)``.
            rfp_feat: Features of the pyramid, of shape ``(N, rfp_inplanes, H / stride, W / stride)``; used only by a
                block with ``rfp_inplanes``.
        """
        out = self._sum(x)
        if self.rfp_inplanes:
            out = out + self.rfp_conv(rfp_feat)
        return self.relu(out)


class DetectoRS_ResNet(ResNet):  # noqa: N801 - mmdet's name
    """ResNet for DetectoRS (Qiao et al., 2020, https://arxiv.org/abs/2006.02334).

    mmdet's ``RFP`` neck calls ``rfp_forward``. With ``conv_cfg=dict(type='ConvAWS')``, as in mmdet's configs,
    ``fold_norm`` has no effect, because these convolutions standardize their weights in each step.

    Args:
        sac: Config of the switchable atrous convolution: ``dict(type='SAC', use_deform=True)``.
        stage_with_sac: One boolean per stage.
        rfp_inplanes: Number of channels of the pyramid's features, an input of all stages but the first.
        output_img: Return the image before the features, for the neck's second pass.
        pretrained: A checkpoint to start from.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)``, or ``None``.
        **kwargs: The further arguments of ``ResNet``; ``depth`` is 50, 101 or 152.

    Raises:
        ArgumentError: An argument has an invalid value.

    Examples:
        >>> import torch
        >>> backbone = DetectoRS_ResNet(depth=50, conv_cfg=dict(type='ConvAWS'), output_img=True).eval()
        >>> [tuple(level.shape) for level in backbone(torch.rand(1, 3, 64, 64))]
        [(1, 3, 64, 64), (1, 256, 16, 16), (1, 512, 8, 8), (1, 1024, 4, 4), (1, 2048, 2, 2)]
    """

    arch_settings: ClassVar[dict[int, tuple[type[Any], tuple[int, ...]]]] = {
        50: (Bottleneck, (3, 4, 6, 3)),
        101: (Bottleneck, (3, 4, 23, 3)),
        152: (Bottleneck, (3, 8, 36, 3)),
    }
    sac: Cfg | None = None
    rfp_inplanes: int | None = None

    def __init__(
        self,
        sac: Cfg | None = None,
        stage_with_sac: Sequence[bool] = (False, False, False, False),
        rfp_inplanes: int | None = None,
        output_img: bool = False,
        pretrained: str | None = None,
        init_cfg: Cfg | None = None,
        **kwargs: Any,
    ) -> None:
        _check_init_cfg(pretrained, init_cfg)
        if pretrained is not None:
            init_cfg = pretrained_init_cfg(pretrained)
        self._pretrained_cfg = init_cfg if init_cfg and init_cfg.get("checkpoint") is not None else None
        self.pretrained = self._pretrained_cfg and self._pretrained_cfg["checkpoint"]
        check_flag("output_img", output_img)
        if rfp_inplanes is not None:
            check_channels("rfp_inplanes", rfp_inplanes)
        if sac is not None and not isinstance(sac, Mapping):
            raise ArgumentTypeError(f"sac must be a dict such as dict(type='SAC', use_deform=True), got {sac!r}")
        self.output_img = output_img
        # As in mmdet, for the same random numbers: first ordinary stages, then those that replace them.
        super().__init__(**kwargs)
        if sac is not None:
            check_stage_mask("stage_with_sac", stage_with_sac, self.num_stages)
        self.sac = sac
        self.stage_with_sac = stage_with_sac
        self.rfp_inplanes = rfp_inplanes
        self._make_stages(None)
        self._finish_construction(kwargs.get("device"), kwargs.get("dtype"))

    def _stage_options(self, index: int) -> Cfg:
        options = super()._stage_options(index)
        if self.sac is not None and self.stage_with_sac[index]:
            options["sac"] = self.sac
        if self.rfp_inplanes is not None and index > 0:
            options["first_block"] = {"rfp_inplanes": self.rfp_inplanes}
        return options

    @override
    def make_res_layer(self, **kwargs: Any) -> nn.Module:
        # As in mmdet, a shortcut pools only if it strides.
        kwargs["avg_down"] = kwargs["avg_down"] and kwargs["stride"] != 1
        return super().make_res_layer(**kwargs)

    @override
    def init_weights(self, pretrained: str | None = None) -> None:
        cfg = self._pretrained_cfg if pretrained is None else pretrained_init_cfg(pretrained)
        if cfg is not None:
            initialize(self, cfg)
            return
        self.to(memory_format=torch.contiguous_format)  # as in ResNet
        # As in mmdet, every convolution, including those of SAC.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                kaiming_init(module)
            elif isinstance(module, (_BatchNorm, nn.GroupNorm)):
                constant_init(module, 1)
        for module in self.modules():
            if isinstance(module, Bottleneck):
                if self.dcn is not None and hasattr(module.conv2, "conv_offset"):
                    constant_init(module.conv2.conv_offset, 0)
                if self.zero_init_residual:
                    constant_init(module.norm3, 0)
        self._set_memory_format()

    @property
    @override
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        image = FeatureInfo("image", cast(int, self.in_channels), 1)
        return (image, *super().feature_info) if self.output_img else super().feature_info

    @untyped_at_runtime
    @override
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        levels = super().forward(x)
        return (x, *levels) if self.output_img else levels

    def rfp_forward(self, x: Tensor, rfp_feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the feature pyramid in the second pass.

        Args:
            x: Images of shape ``(N, in_channels, H, W)``.
            rfp_feats: Features of the first pass for each stage, of shape
                ``(N, rfp_inplanes, H / stride, W / stride)``. Those of the first stage are not used.

        Returns:
            For each of ``out_indices``, in ascending order, features of shape ``(N, C, H / stride, W / stride)``.
        """
        self._check_input(x)
        x = self._pool(self._stem_features(x))
        levels = []
        for index, name in enumerate(self.res_layers):
            for block in getattr(self, name):
                x = block.rfp_forward(x, rfp_feats[index] if index > 0 else None)
            if index in self.out_indices:
                levels.append(x)
        return tuple(levels)

    def _runs_stem_as_ours(self) -> bool:
        return True  # forward begins with ResNet's


class DetectoRS_ResNeXt(ResNeXt, DetectoRS_ResNet):  # noqa: N801 - mmdet's name
    """ResNeXt for DetectoRS.

    Args:
        groups: As for ``ResNeXt``.
        base_width: As for ``ResNeXt``.
        **kwargs: The arguments of ``DetectoRS_ResNet``.

    Raises:
        ArgumentError: An argument has an invalid value.
    """

    arch_settings = DetectoRS_ResNet.arch_settings


def _check_init_cfg(pretrained: Any, init_cfg: Any) -> None:
    if init_cfg and pretrained:
        raise ArgumentError(f"pretrained={pretrained!r} and init_cfg={init_cfg!r} cannot both be given")
    if init_cfg is None:
        return
    if isinstance(init_cfg, Mapping) and "type" not in init_cfg:
        raise UnknownNameError(f"init_cfg must have a 'type', got {init_cfg!r}")
    is_pretrained = isinstance(init_cfg, Mapping) and init_cfg["type"] == "Pretrained"
    if not is_pretrained or not isinstance(init_cfg.get("checkpoint"), (str, PathLike, NoneType)):
        raise ArgumentTypeError(f"init_cfg must be dict(type='Pretrained', checkpoint=...), got {init_cfg!r}")
