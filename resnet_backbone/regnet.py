"""RegNetX (Radosavovic et al., 2020, https://arxiv.org/abs/2003.13678)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, ClassVar

import numpy as np
from torch import nn

from . import resnext
from .arguments import names_misspelt
from .errors import ArgumentError, ArgumentTypeError, UnknownNameError, did_you_mean
from .layers.build import build_conv_layer, build_norm_layer
from .resnet import ResNet

__all__ = ["Bottleneck", "RegNet"]

Cfg = dict[str, Any]


class Bottleneck(resnext.Bottleneck):
    """ResNeXt's Bottleneck without a bottleneck: the output has ``planes`` channels."""

    expansion = 1


class RegNet(ResNet):
    """RegNetX (Radosavovic et al., 2020, https://arxiv.org/abs/2003.13678, section 5), without its classifier.

    The stem is one 3x3 convolution of stride 2. Block ``j`` has ``w0 + wa * j`` channels, rounded to ``w0`` times a
    power of ``wm`` and to a multiple of 8. Blocks of equal width form a stage (section 3.3).

    Args:
        arch: ``'regnetx_400mf'``, ``'regnetx_800mf'``, ``'regnetx_1.6gf'``, ``'regnetx_3.2gf'``, ``'regnetx_4.0gf'``,
            ``'regnetx_6.4gf'``, ``'regnetx_8.0gf'``, ``'regnetx_12gf'``, or
            ``dict(w0=..., wa=..., wm=..., group_w=..., depth=..., bot_mul=...)`` with the initial width, the slope, the
            quantization parameter, the width of a group, the total number of blocks and the bottleneck ratio.
        in_channels: Number of channels of the input image.
        stem_channels: Number of output channels of the stem.
        base_channels: Ignored, for compatibility with mmdet.
        strides: Stride of each stage.
        *args: The further positional arguments of ``ResNet``, from ``dilations`` on.
        **kwargs: The further arguments of ``ResNet``. ``deep_stem`` must be false; ``stem_stride`` is 2 or 1.

    Raises:
        ArgumentError: An argument has an invalid value.

    Examples:
        >>> import torch
        >>> backbone = RegNet('regnetx_400mf').eval()
        >>> [tuple(level.shape) for level in backbone(torch.rand(1, 3, 64, 64))]
        [(1, 32, 16, 16), (1, 64, 8, 8), (1, 160, 4, 4), (1, 384, 2, 2)]
    """

    arch_settings: ClassVar[dict[str, dict[str, float]]] = {  # type: ignore[assignment]
        "regnetx_400mf": dict(w0=24, wa=24.48, wm=2.54, group_w=16, depth=22, bot_mul=1.0),
        "regnetx_800mf": dict(w0=56, wa=35.73, wm=2.28, group_w=16, depth=16, bot_mul=1.0),
        "regnetx_1.6gf": dict(w0=80, wa=34.01, wm=2.25, group_w=24, depth=18, bot_mul=1.0),
        "regnetx_3.2gf": dict(w0=88, wa=26.31, wm=2.25, group_w=48, depth=25, bot_mul=1.0),
        "regnetx_4.0gf": dict(w0=96, wa=38.65, wm=2.43, group_w=40, depth=23, bot_mul=1.0),
        "regnetx_6.4gf": dict(w0=184, wa=60.83, wm=2.07, group_w=56, depth=17, bot_mul=1.0),
        "regnetx_8.0gf": dict(w0=80, wa=49.56, wm=2.88, group_w=120, depth=23, bot_mul=1.0),
        "regnetx_12gf": dict(w0=168, wa=73.36, wm=2.37, group_w=112, depth=19, bot_mul=1.0),
    }

    @names_misspelt
    def __init__(
        self,
        arch: str | Mapping[str, float],
        in_channels: int = 3,
        stem_channels: int = 32,
        base_channels: int = 32,
        strides: Sequence[int] = (2, 2, 2, 2),
        *args: Any,
        stem_stride: int = 2,
        **kwargs: Any,
    ) -> None:
        for name in ("depth", "num_stages"):
            if name in kwargs:
                raise ArgumentTypeError(
                    f"{name} must not be given for RegNet, whose arch sets it, got {name}={kwargs[name]!r}"
                )
        design = self._design(arch)
        widths, num_stages = self.generate_regnet(design["w0"], design["wa"], design["wm"], design["depth"])
        if not 1 <= num_stages <= 4:
            raise ArgumentError(f"arch must give 1 to 4 stages, got {num_stages} from {arch!r}")
        stage_widths, self._num_blocks = self.get_stages_from_blocks(widths)
        self.bottleneck_ratio = [design["bot_mul"]] * num_stages
        self.stage_widths, self.group_widths = self.adjust_width_group(
            stage_widths, self.bottleneck_ratio, [design["group_w"]] * num_stages
        )
        if stem_stride not in (1, 2):
            raise ArgumentError(f"stem_stride must be 1 or 2 for RegNet, which has no max pooling, got {stem_stride!r}")
        super().__init__(
            sum(self._num_blocks), in_channels, stem_channels, base_channels, num_stages, strides, *args,
            stem_stride=stem_stride, **kwargs,
        )  # fmt: skip
        self.stage_blocks = self._num_blocks

    def _design(self, arch: str | Mapping[str, float]) -> Mapping[str, Any]:
        if isinstance(arch, str):
            if arch not in self.arch_settings:
                raise UnknownNameError(
                    f"arch must be one of {', '.join(self.arch_settings)}, got {arch!r}."
                    f"{did_you_mean(arch, self.arch_settings)}"
                )
            return self.arch_settings[arch]
        if not isinstance(arch, Mapping):
            raise ArgumentTypeError(f"arch must be a name or a dict, got {arch!r}")
        names = {"w0", "wa", "wm", "group_w", "depth", "bot_mul"}
        if arch.keys() != names:
            raise ArgumentError(f"arch must have {', '.join(sorted(names))}, got {dict(arch)!r}")
        if any(isinstance(arch[name], (bool, str)) or not arch[name] > 0 for name in names - {"wa"}):
            raise ArgumentError(f"arch must have numbers above 0, got {dict(arch)!r}")
        return arch

    def _architecture(self, depth: int) -> tuple[type[Any], tuple[int, ...]]:
        return Bottleneck, tuple(self._num_blocks)

    def _stage_planes(self, index: int) -> int:
        return self.stage_widths[index]

    def _stage_options(self, index: int) -> Cfg:
        width = self.stage_widths[index]
        # The width of a group is absolute, not relative to the first stage's.
        return {
            **super()._stage_options(index),
            "groups": round(width * self.bottleneck_ratio[index]) // self.group_widths[index],
            "base_width": self.group_widths[index],
            "base_channels": width,
        }

    def _block_init_cfg(self) -> Cfg:
        return {"type": "Constant", "val": 0, "override": {"name": "norm3"}}

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        if self.deep_stem:
            raise ArgumentError(f"deep_stem must be False for RegNet, got {self.deep_stem!r}")
        self.conv1 = build_conv_layer(
            self.conv_cfg, in_channels, stem_channels, kernel_size=3, stride=self.stem_stride, padding=1, bias=False
        )
        self.norm1_name, norm1 = build_norm_layer(self.norm_cfg, stem_channels, postfix=1)
        self.add_module(self.norm1_name, norm1)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = None

    def generate_regnet(
        self, initial_width: float, width_slope: float, width_parameter: float, depth: int, divisor: int = 8
    ) -> tuple[list[int], int]:
        """Return the width of each block (section 3.3, equations 2 to 4), and the number of stages.

        Args:
            initial_width: ``w0``, a multiple of ``divisor``.
            width_slope: ``wa``, at least 0.
            width_parameter: ``wm``, above 1.
            depth: Number of blocks.
            divisor: Widths are multiples of it.
        """
        if initial_width <= 0 or initial_width % divisor:
            raise ArgumentError(f"w0 of arch must be a positive multiple of {divisor}, got {initial_width!r}")
        if width_slope < 0:
            raise ArgumentError(f"wa of arch must be at least 0, got {width_slope!r}")
        if width_parameter <= 1:
            raise ArgumentError(f"wm of arch must be above 1, got {width_parameter!r}")
        line = np.arange(depth) * width_slope + initial_width
        exponents = np.round(np.log(line / initial_width) / np.log(width_parameter))
        widths = np.round(initial_width * np.power(width_parameter, exponents) / divisor) * divisor
        return widths.astype(int).tolist(), len(np.unique(widths))

    @staticmethod
    def quantize_float(number: float, divisor: int) -> int:
        """Round to a multiple of ``divisor``."""
        return int(round(number / divisor) * divisor)

    def adjust_width_group(
        self, widths: list[int], bottleneck_ratio: list[float], groups: list[int]
    ) -> tuple[list[int], list[int]]:
        """Return the widths of the stages, rounded to whole groups, and of their groups.

        Args:
            widths: Width of each stage.
            bottleneck_ratio: Width of the 3x3 convolutions of each stage, relative to the stage's.
            groups: Width of the groups of each stage.
        """
        inner = [int(width * ratio) for width, ratio in zip(widths, bottleneck_ratio)]
        groups = [min(group, width) for group, width in zip(groups, inner)]
        inner = [self.quantize_float(width, group) for width, group in zip(inner, groups)]
        return [int(width / ratio) for width, ratio in zip(inner, bottleneck_ratio)], groups

    def get_stages_from_blocks(self, widths: list[int]) -> tuple[list[int], list[int]]:
        """Return the width and the number of blocks of each stage, from the width of each block."""
        stages = [(width, len(list(blocks))) for width, blocks in groupby(widths)]
        return [width for width, _ in stages], [depth for _, depth in stages]
