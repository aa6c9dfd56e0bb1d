"""The two residual blocks of ResNet (He et al., 2015, https://arxiv.org/abs/1512.03385, section 4.1 and figure 5)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, cast

from mmengine.model import BaseModule
from torch import Tensor, is_grad_enabled, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .arguments import check_block_arguments, check_block_plugins
from .errors import ArgumentError, ArgumentTypeError, check_channels
from .layers.build import build_conv_layer, build_norm_layer, build_plugin_layer
from .layers.conv_norm import conv_norm, conv_norm_sequence
from .layers.deform import rename_old_offsets
from .layers.dimensions import spatial_dims_of
from .layers.plugins import dry_run_plugin
from .layers.tracing import caches_outputs, is_recording, untyped_at_runtime

__all__ = ["BasicBlock", "Bottleneck", "ResidualBlock"]

Cfg = dict[str, Any]


class ResidualBlock(BaseModule):
    """Base class of the blocks: ``relu(residual(x) + shortcut(x))``, with plugins and checkpointing."""

    expansion: ClassVar[int]
    """Output channels of the block, as a multiple of ``planes``."""
    plugin_positions: ClassVar[tuple[str, ...]]
    """Where plugins can stand, in the order in which they run."""
    kernel_size: int = 3
    """Size of the block's wide convolutions: of both in a BasicBlock, of the middle one in a Bottleneck."""
    fold_norm: bool = False
    """Compute a convolution and its norm layer as one convolution where the norm layer is in eval mode."""

    norm1_name: str
    norm2_name: str
    conv1: nn.Module
    conv2: nn.Module
    relu: nn.Module
    downsample: nn.Module | None
    after_conv1_plugin_names: list[str]
    after_conv2_plugin_names: list[str]

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int,
        dilation: int,
        style: str,
        with_cp: bool,
        conv_cfg: Cfg | None,
        norm_cfg: Cfg,
        dcn: Cfg | None,
        init_cfg: Cfg | list[Cfg] | None,
        kernel_size: int,
    ) -> None:
        super().__init__(init_cfg)
        self.inplanes = inplanes
        self.planes = planes
        self.stride = stride
        self.dilation = dilation
        self.style = style
        self.with_cp = with_cp
        self.kernel_size = kernel_size
        self.conv_cfg = conv_cfg
        self.norm_cfg = norm_cfg
        check_block_arguments(self, dcn)
        # A copy, because subclasses pop from it (mmdet's ResNeXt and Res2Net do).
        self.dcn = None if dcn is None else {key: dcn[key] for key in dcn if key != "fallback_on_stride"}
        self.with_dcn = dcn is not None
        self._falls_back_on_stride = dcn is not None and dcn.get("fallback_on_stride", False)

    def _conv3x3_cfg(self, stride: int) -> Cfg | None:
        """Config of the 3x3 convolution that ``dcn`` may replace; ``fallback_on_stride`` exempts strided ones."""
        return self.conv_cfg if self.dcn is None or (self._falls_back_on_stride and stride > 1) else self.dcn

    def _padding(self, dilation: int) -> int:
        """Padding of a ``kernel_size`` convolution that keeps its output aligned with the shortcut."""
        return dilation * (self.kernel_size // 2)

    def _add_plugins(self, plugins: list[Cfg] | None, *channels: int) -> None:
        """Build the plugins of each position; store their configs and names in attributes named after it.

        Args:
            plugins: Configs of plugins, each with its position.
            *channels: Number of channels at each of ``plugin_positions``.
        """
        check_block_plugins(plugins, self.plugin_positions)
        self.plugins = plugins
        self.with_plugins = plugins is not None
        if plugins is None:
            return
        for position, in_channels in zip(self.plugin_positions, channels):
            cfgs = [plugin["cfg"] for plugin in plugins if plugin["position"] == position]
            setattr(self, f"{position}_plugins", cfgs)
            setattr(self, f"{position}_plugin_names", self.make_block_plugins(in_channels, cfgs))

    def make_block_plugins(self, in_channels: int, plugins: list[Cfg]) -> list[str]:
        """Build plugins and add them to the block.

        Args:
            in_channels: Number of channels of the plugins' input and output.
            plugins: Their configs; ``postfix`` is appended to a plugin's name.

        Returns:
            Their names in the block, in the order given.

        Raises:
            ArgumentError: ``plugins`` is not a list, a plugin's name is already taken in the block, or a plugin does
                not return features of the shape of its input.
        """
        if not isinstance(plugins, list):
            raise ArgumentTypeError(f"plugins must be a list of plugin configs, got {plugins!r}")
        names = []
        for cfg in plugins:
            cfg = cfg.copy()
            postfix = cfg.pop("postfix", "")
            if not isinstance(postfix, (int, str)) or "." in str(postfix):
                raise ArgumentError(f"a plugin's postfix must be a number or a string without dots, got {postfix!r}")
            name, layer = build_plugin_layer(cfg, in_channels=in_channels, postfix=postfix)
            if not name or "." in name:
                raise ArgumentError(f"plugins: the _abbr_ of {cfg['type']!r} must be a name without dots, got {name!r}")
            if hasattr(self, name):
                raise ArgumentError(
                    f"plugins: the name {name!r} is taken in the block, by another plugin or by the block itself: "
                    f"give each plugin a postfix of its own, such as dict(type={cfg['type']!r}, postfix='2', ...)"
                )
            dry_run_plugin(layer, f"{name} (type={cfg['type']!r})", in_channels, spatial_dims_of(self.conv_cfg))
            self.add_module(name, layer)
            names.append(name)
        return names

    def forward_plugin(self, x: Tensor, plugin_names: Sequence[str]) -> Tensor:
        """Run plugins one after the other.

        Args:
            x: Features of shape ``(N, C, H, W)``.
            plugin_names: Names returned by ``make_block_plugins``.

        Returns:
            Features of the same shape.
        """
        for name in plugin_names:
            x = getattr(self, name)(x)
        return x

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, layer in self.named_modules():
            if hasattr(layer, "conv_offset"):
                rename_old_offsets(state_dict, prefix + name)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @property
    @abstractmethod
    def conv_norm_names(self) -> list[tuple[str, str]]:
        """Names of the block's convolutions, each with the name of its norm layer.

        A subclass with a forward pass of its own overrides this as well: ``switch_to_deploy`` fuses these pairs.
        """

    @property
    def norm1(self) -> nn.Module:
        """The norm layer after the first convolution."""
        norm: nn.Module = getattr(self, self.norm1_name)
        return norm

    @property
    def norm2(self) -> nn.Module:
        """The norm layer after the second convolution."""
        norm: nn.Module = getattr(self, self.norm2_name)
        return norm

    @untyped_at_runtime
    def forward(self, x: Tensor) -> Tensor:
        """Compute the block.

        Args:
            x: Features of shape ``(N, inplanes, H, W)``.

        Returns:
            Features of shape ``(N, planes * expansion, H / stride, W / stride)``.
        """
        return cast(Tensor, self.relu(self._sum(x)))

    def _sum(self, x: Tensor) -> Tensor:
        """Compute what the last ReLU receives, in a checkpoint where ``with_cp`` asks for one."""
        if self.with_cp and is_grad_enabled() and not is_recording(x) and self._may_checkpoint(x):
            # The view adds up the gradients of the block's two branches before any other consumer's of x: the order
            # of a reentrant checkpoint, and so mmdet's bits.
            return checkpoint(self._residual_and_shortcut, x.view_as(x), use_reentrant=False)
        return self._residual_and_shortcut(x)

    def _may_checkpoint(self, x: Tensor) -> bool:
        """Whether computing the block twice leaves the same running statistics as in mmdet.

        A norm layer in train mode updates its statistics in each computation. mmdet checkpoints, and so updates twice,
        where the input requires grad; where it does not, as in the first block after a frozen stage, it updates once.
        Selective activation checkpointing around the backbone decides by itself what is computed twice.
        """
        if caches_outputs():
            return False
        return x.requires_grad or not any(isinstance(m, _BatchNorm) and m.training for m in self.modules())

    def _conv_norm(self, conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
        """Compute ``norm(conv(x))``, as one convolution where ``fold_norm`` wants it and it is possible."""
        return conv_norm(conv, norm, x, self.fold_norm, checkpointed=self.with_cp)

    def _shortcut(self, x: Tensor) -> Tensor:
        """Compute what the residual branch is added to."""
        if self.downsample is None:
            return x
        return conv_norm_sequence(self.downsample, x, self.fold_norm, checkpointed=self.with_cp)

    def _add_shortcut(self, out: Tensor, x: Tensor) -> Tensor:
        """Add the shortcut to the residual branch, in place if ``out`` is from a norm layer, which does not need it.

        A plugin's output may be what its own backward pass needs, as a ReLU's is.
        """
        shortcut = self._shortcut(x)
        if self.with_plugins and getattr(self, f"{self.plugin_positions[-1]}_plugin_names"):
            return out + shortcut
        out += shortcut
        return out

    @abstractmethod
    def _residual_and_shortcut(self, x: Tensor) -> Tensor:
        """The sum that the last ReLU receives: all that a checkpoint drops and computes again."""


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions around a shortcut: the block of ResNet-18 and ResNet-34.

    Args:
        inplanes: Number of input channels.
        planes: Number of output channels.
        stride: Stride of the first convolution.
        dilation: Dilation of the first convolution.
        downsample: The shortcut's projection; ``None`` where input and output have one shape.
        style: ``'pytorch'`` or ``'caffe'``; the two do not differ in this block.
        with_cp: Drop the block's activations after the forward pass and compute them again in the backward pass.
        conv_cfg: Config of the convolutions; ``None`` means ``dict(type='Conv2d')``.
        norm_cfg: Config of the norm layers.
        dcn: Config of a deformable convolution that replaces the second 3x3. The second one, because it keeps the
            resolution and sees the features that the first has made; detectron2 and PaddleDetection place it there too.
        plugins: Configs of plugins, each with a position ``'after_conv1'`` or ``'after_conv2'``.
        init_cfg: mmengine's initialisation config.
        kernel_size: Size of both convolutions, odd.

    Raises:
        ArgumentError: An argument has a value that is not allowed.
    """

    expansion = 1
    plugin_positions = ("after_conv1", "after_conv2")

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        dilation: int = 1,
        downsample: nn.Module | None = None,
        style: str = "pytorch",
        with_cp: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = dict(type="BN"),  # noqa: B006 - never changed; written as configs are
        dcn: Cfg | None = None,
        plugins: list[Cfg] | None = None,
        init_cfg: Cfg | list[Cfg] | None = None,
        *,
        kernel_size: int = 3,
    ) -> None:
        super().__init__(
            inplanes, planes, stride, dilation, style, with_cp, conv_cfg, norm_cfg, dcn, init_cfg, kernel_size
        )
        self.norm1_name, norm1 = build_norm_layer(norm_cfg, planes, postfix=1)
        self.norm2_name, norm2 = build_norm_layer(norm_cfg, planes, postfix=2)

        self.conv1 = build_conv_layer(
            conv_cfg,
            inplanes,
            planes,
            kernel_size,
            stride=stride,
            padding=self._padding(dilation),
            dilation=dilation,
            bias=False,
        )
        self.add_module(self.norm1_name, norm1)
        self.conv2 = build_conv_layer(
            self._conv3x3_cfg(stride=1), planes, planes, kernel_size, padding=self._padding(1), bias=False
        )
        self.add_module(self.norm2_name, norm2)

        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self._add_plugins(plugins, planes, planes)

    @property
    def conv_norm_names(self) -> list[tuple[str, str]]:
        """The names of the block's convolutions, each with that of the norm layer that follows it."""
        return [("conv1", self.norm1_name), ("conv2", self.norm2_name)]

    def _residual_and_shortcut(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self._conv_norm(self.conv1, self.norm1, x))
        if self.with_plugins:
            out = self.forward_plugin(out, self.after_conv1_plugin_names)

        out = self._conv_norm(self.conv2, self.norm2, out)
        if self.with_plugins:
            out = self.forward_plugin(out, self.after_conv2_plugin_names)

        return self._add_shortcut(out, x)


class Bottleneck(ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions around a shortcut: the block of ResNet-50, ResNet-101 and ResNet-152.

    The paper, and Caffe after it, strides in the first 1x1; torchvision and most of today's weights stride in the 3x3,
    which costs more and is more accurate (https://ngc.nvidia.com/catalog/model-scripts/nvidia:resnet_50_v1_5_for_pytorch).

    Args:
        inplanes: Number of input channels.
        planes: Number of channels of the 3x3 convolution, unless ``width`` says otherwise; the block returns
            ``4 * planes``.
        stride: Stride of the block.
        dilation: Dilation of the 3x3 convolution.
        downsample: The shortcut's projection; ``None`` where input and output have one shape.
        style: ``'pytorch'`` strides in the 3x3 convolution, ``'caffe'`` in the first 1x1.
        with_cp: Drop the block's activations after the forward pass and compute them again in the backward pass.
        conv_cfg: Config of the convolutions; ``None`` means ``dict(type='Conv2d')``.
        norm_cfg: Config of the norm layers.
        dcn: Config of a deformable convolution that replaces the 3x3; ``fallback_on_stride=True`` keeps an
            ordinary one where the 3x3 strides.
        plugins: Configs of plugins, each with a position ``'after_conv1'``, ``'after_conv2'`` or ``'after_conv3'``.
        init_cfg: mmengine's initialisation config.
        kernel_size: Size of the 3x3 convolution, if it is to be another: odd.
        groups: Number of groups of the 3x3 convolution.
        width: Number of channels of the 3x3 convolution; ``None`` means ``planes``.

    Raises:
        ArgumentError: An argument has a value that is not allowed.
    """

    expansion = 4
    plugin_positions = ("after_conv1", "after_conv2", "after_conv3")

    norm3_name: str
    after_conv3_plugin_names: list[str]

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        dilation: int = 1,
        downsample: nn.Module | None = None,
        style: str = "pytorch",
        with_cp: bool = False,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = dict(type="BN"),  # noqa: B006 - never changed; written as configs are
        dcn: Cfg | None = None,
        plugins: list[Cfg] | None = None,
        init_cfg: Cfg | list[Cfg] | None = None,
        *,
        kernel_size: int = 3,
        groups: int = 1,
        width: int | None = None,
    ) -> None:
        super().__init__(
            inplanes, planes, stride, dilation, style, with_cp, conv_cfg, norm_cfg, dcn, init_cfg, kernel_size
        )
        self.conv1_stride, self.conv2_stride = (1, stride) if style == "pytorch" else (stride, 1)
        width = planes if width is None else width
        check_channels("width", width)
        check_channels("groups", groups)
        if width % groups:
            raise ArgumentError(f"groups must divide the width of the 3x3 convolution ({width}), got {groups!r}")

        self._build_conv1(width)
        self._build_conv2(width, groups)
        self._build_conv3(width)

        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self._add_plugins(plugins, width, width, planes * self.expansion)

    def _build_conv1(self, width: int) -> None:
        """Build the first 1x1 convolution and its norm layer, or replace them: to ``width`` channels."""
        self.norm1_name, norm1 = build_norm_layer(self.norm_cfg, width, postfix=1)
        self.conv1 = build_conv_layer(
            self.conv_cfg, self.inplanes, width, kernel_size=1, stride=self.conv1_stride, bias=False
        )
        self.add_module(self.norm1_name, norm1)

    def _build_conv2(self, width: int, groups: int = 1) -> None:
        """Build the 3x3 convolution and its norm layer, or replace them."""
        self.norm2_name, norm2 = build_norm_layer(self.norm_cfg, width, postfix=2)
        self.conv2 = self._wide_conv(self._conv3x3_cfg(self.conv2_stride), width, groups)
        self.add_module(self.norm2_name, norm2)

    def _wide_conv(self, cfg: Cfg | None, width: int, groups: int = 1) -> nn.Module:
        """Build a convolution with the arguments of the 3x3, from ``width`` channels to ``width``."""
        return build_conv_layer(
            cfg,
            width,
            width,
            kernel_size=self.kernel_size,
            stride=self.conv2_stride,
            padding=self._padding(self.dilation),
            dilation=self.dilation,
            bias=False,
            **({"groups": groups} if groups > 1 else {}),
        )

    def _build_conv3(self, width: int) -> None:
        """Build the last 1x1 convolution and its norm layer, or replace them: from ``width`` channels."""
        self.norm3_name, norm3 = build_norm_layer(self.norm_cfg, self.planes * self.expansion, postfix=3)
        self.conv3 = build_conv_layer(self.conv_cfg, width, self.planes * self.expansion, kernel_size=1, bias=False)
        self.add_module(self.norm3_name, norm3)

    @property
    def conv_norm_names(self) -> list[tuple[str, str]]:
        """Names of the block's convolutions, each with the name of its norm layer."""
        return [("conv1", self.norm1_name), ("conv2", self.norm2_name), ("conv3", self.norm3_name)]

    @property
    def norm3(self) -> nn.Module:
        """The norm layer after the third convolution."""
        norm: nn.Module = getattr(self, self.norm3_name)
        return norm

    def _residual_and_shortcut(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self._conv_norm(self.conv1, self.norm1, x))
        if self.with_plugins:
            out = self.forward_plugin(out, self.after_conv1_plugin_names)

        out = self._middle(out)
        if self.with_plugins:
            out = self.forward_plugin(out, self.after_conv2_plugin_names)

        out = self._conv_norm(self.conv3, self.norm3, out)
        if self.with_plugins:
            out = self.forward_plugin(out, self.after_conv3_plugin_names)

        return self._add_shortcut(out, x)

    def _middle(self, x: Tensor) -> Tensor:
        """Compute what stands between the two 1x1 convolutions."""
        return cast(Tensor, self.relu(self._conv_norm(self.conv2, self.norm2, x)))
