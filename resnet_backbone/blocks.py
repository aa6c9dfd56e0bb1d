"""The residual blocks of ResNet (He et al., 2015, https://arxiv.org/abs/1512.03385, section 4.1 and figure 5)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from mmengine.model import BaseModule
from torch import Tensor, is_grad_enabled, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .arguments import check_block_arguments, check_block_plugins
from .errors import ArgumentError, ArgumentTypeError, check_channels
from .layers.build import build_conv_layer, build_norm_layer
from .layers.conv_norm import conv_norm, conv_norm_sequence
from .layers.deform import rename_old_offsets
from .layers.dimensions import spatial_dims_of
from .layers.plugins import build_plugin
from .layers.tracing import caches_outputs, is_in_function_mode, is_recording, untyped_at_runtime

__all__ = ["BasicBlock", "Bottleneck", "ResidualBlock"]

Cfg = dict[str, Any]


class ResidualBlock(BaseModule):
    """Base class of the blocks: ``relu(residual(x) + shortcut(x))``, with plugins and checkpointing."""

    expansion: ClassVar[int]
    """Output channels of the block, as a multiple of ``planes``."""
    plugin_positions: ClassVar[tuple[str, ...]]
    """Allowed positions of plugins, in the order in which they run."""
    kernel_size: int = 3
    """Kernel size of both convolutions of a BasicBlock, and of the middle one of a Bottleneck."""
    fold_norm: bool = False
    """As for ``ResNet``."""

    norm1_name: str
    norm2_name: str
    conv1: nn.Module
    conv2: nn.Module
    relu: Callable[[Tensor], Tensor]
    downsample: nn.Module | None
    after_conv1_plugin_names: Sequence[str] = ()
    after_conv2_plugin_names: Sequence[str] = ()

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
        # A copy, because subclasses such as mmdet's ResNeXt pop from it.
        self.dcn = None if dcn is None else {key: dcn[key] for key in dcn if key != "fallback_on_stride"}
        self.with_dcn = dcn is not None
        self._falls_back_on_stride = dcn is not None and dcn.get("fallback_on_stride", False)

    def _conv3x3_cfg(self, stride: int) -> Cfg | None:
        """Config of the 3x3 convolution: ``dcn``, unless ``fallback_on_stride`` exempts a strided one."""
        return self.conv_cfg if self.dcn is None or (self._falls_back_on_stride and stride > 1) else self.dcn

    def _padding(self, dilation: int) -> int:
        return dilation * (self.kernel_size // 2)

    def _add_conv_norm(self, number: int, cfg: Cfg | None, in_channels: int, out_channels: int, **kwargs: Any) -> None:
        """Build ``conv{number}`` and the norm layer after it."""
        name, norm = build_norm_layer(self.norm_cfg, out_channels, postfix=number)
        setattr(self, f"norm{number}_name", name)
        setattr(self, f"conv{number}", build_conv_layer(cfg, in_channels, out_channels, bias=False, **kwargs))
        self.add_module(name, norm)

    def _add_plugins(self, plugins: list[Cfg] | None, *channels: int) -> None:
        """Build the plugins of each position, and store their configs and names in attributes named after it.

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
            Their names in the block, in the same order.

        Raises:
            ArgumentError: ``plugins`` is not a list, a plugin's name is already taken in the block, or a plugin does
                not return features of the shape of its input.
        """
        if not isinstance(plugins, list):
            raise ArgumentTypeError(f"plugins must be a list of plugin configs, got {plugins!r}")
        names = []
        for cfg in plugins:
            name, layer = build_plugin(cfg, in_channels, spatial_dims_of(self.conv_cfg))
            if hasattr(self, name):
                raise ArgumentError(
                    f"plugins: the block already has an attribute {name!r}: give each plugin a postfix, such as "
                    f"dict(type={cfg['type']!r}, postfix='2', ...)"
                )
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

        ``switch_to_deploy`` fuses these pairs. A subclass that overrides ``forward`` must override this too.
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
        return self.relu(self._sum(x))

    def _sum(self, x: Tensor) -> Tensor:
        """Compute the input of the last ReLU, checkpointed if ``with_cp`` is set."""
        if self._may_checkpoint(x):
            # With the view, the gradients of the two branches are summed before those of other consumers of x. That is
            # the order of a reentrant checkpoint, and so gives mmdet's bits.
            return checkpoint(self._residual_and_shortcut, x.view_as(x), use_reentrant=False)
        return self._residual_and_shortcut(x)

    def _may_checkpoint(self, x: Tensor) -> bool:
        """Whether ``with_cp`` is set, and recomputing the block updates running statistics as often as in mmdet.

        A batch norm in train mode updates its statistics each time it runs. mmdet recomputes, and so updates twice,
        only if the input requires grad, which it does not in the first block after a frozen stage. Selective
        activation checkpointing around the backbone chooses itself what to recompute.
        """
        if not self.with_cp or not is_grad_enabled() or is_recording(x) or caches_outputs():
            return False
        # A function mode is off during the recomputation, which would then fold what the first computation did not.
        if self.fold_norm and is_in_function_mode():
            return False
        return x.requires_grad or not any(isinstance(m, _BatchNorm) and m.training for m in self.modules())

    def _conv_norm(self, conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
        return conv_norm(conv, norm, x, self.fold_norm, checkpointed=self.with_cp)

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.downsample is None:
            return x
        return conv_norm_sequence(self.downsample, x, self.fold_norm, checkpointed=self.with_cp)

    def _add(self, out: Tensor, shortcut: Tensor) -> Tensor:
        """Add in place, unless ``out`` may come from a plugin, whose backward pass may need it."""
        return out + shortcut if self.with_plugins else out.add_(shortcut)

    @abstractmethod
    def _residual_and_shortcut(self, x: Tensor) -> Tensor:
        """Compute the sum of both branches: the part of the block that is checkpointed."""


class BasicBlock(ResidualBlock):
    """The block of ResNet-18 and ResNet-34: two 3x3 convolutions.

    Args:
        inplanes: Number of input channels.
        planes: Number of output channels.
        stride: Stride of the first convolution.
        dilation: Dilation of the first convolution.
        downsample: The shortcut's projection; ``None`` where input and output have the same shape.
        style: ``'pytorch'`` or ``'caffe'``, which are the same in this block.
        with_cp: Use activation checkpointing.
        conv_cfg: Config of the convolutions; ``None`` means ``dict(type='Conv2d')``.
        norm_cfg: Config of the norm layers.
        dcn: Config of a deformable convolution that replaces the second 3x3, as in detectron2 and PaddleDetection.
        plugins: Configs of plugins, each with a position ``'after_conv1'`` or ``'after_conv2'``.
        init_cfg: mmengine's initialization config.
        kernel_size: Kernel size of both convolutions, odd.

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
        padding = self._padding(dilation)
        self._add_conv_norm(
            1, conv_cfg, inplanes, planes, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation
        )
        cfg, padding = self._conv3x3_cfg(stride=1), self._padding(1)
        self._add_conv_norm(2, cfg, planes, planes, kernel_size=kernel_size, padding=padding)

        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self._add_plugins(plugins, planes, planes)

    @property
    def conv_norm_names(self) -> list[tuple[str, str]]:
        """As for ``ResidualBlock``."""
        return [("conv1", self.norm1_name), ("conv2", self.norm2_name)]

    def _residual_and_shortcut(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self._conv_norm(self.conv1, self.norm1, x))
        out = self.forward_plugin(out, self.after_conv1_plugin_names)

        out = self._conv_norm(self.conv2, self.norm2, out)
        out = self.forward_plugin(out, self.after_conv2_plugin_names)

        return self._add(out, self._shortcut(x))


class Bottleneck(ResidualBlock):
    """The block of ResNet-50, ResNet-101 and ResNet-152: 1x1, 3x3 and 1x1 convolutions.

    The paper and Caffe place the stride in the first 1x1 convolution. torchvision and most current weights place it in
    the 3x3, which costs more and is more accurate (https://ngc.nvidia.com/catalog/model-scripts/nvidia:resnet_50_v1_5_for_pytorch).

    Args:
        inplanes: Number of input channels.
        planes: Number of channels of the 3x3 convolution, unless ``width`` is given. The block has ``4 * planes``
            output channels.
        stride: Stride of the block.
        dilation: Dilation of the 3x3 convolution.
        downsample: The shortcut's projection; ``None`` where input and output have the same shape.
        style: ``'pytorch'`` strides in the 3x3 convolution, ``'caffe'`` in the first 1x1.
        with_cp: Use activation checkpointing.
        conv_cfg: Config of the convolutions; ``None`` means ``dict(type='Conv2d')``.
        norm_cfg: Config of the norm layers.
        dcn: Config of a deformable convolution that replaces the 3x3; with ``fallback_on_stride=True``, only where the
            3x3 does not stride.
        plugins: Configs of plugins, each with a position ``'after_conv1'``, ``'after_conv2'`` or ``'after_conv3'``.
        init_cfg: mmengine's initialization config.
        kernel_size: Kernel size of the middle convolution, odd.
        groups: Number of groups of the 3x3 convolution.
        width: Number of channels of the 3x3 convolution; ``None`` means ``planes``.

    Raises:
        ArgumentError: An argument has a value that is not allowed.
    """

    expansion = 4
    plugin_positions = ("after_conv1", "after_conv2", "after_conv3")

    norm3_name: str
    conv3: nn.Module
    after_conv3_plugin_names: Sequence[str] = ()

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
        self._add_conv_norm(1, self.conv_cfg, self.inplanes, width, kernel_size=1, stride=self.conv1_stride)

    def _build_conv2(self, width: int, groups: int = 1) -> None:
        options = self._conv3x3_options() | ({"groups": groups} if groups > 1 else {})
        self._add_conv_norm(2, self._conv3x3_cfg(self.conv2_stride), width, width, **options)

    def _conv3x3_options(self) -> Cfg:
        return dict(
            kernel_size=self.kernel_size,
            stride=self.conv2_stride,
            padding=self._padding(self.dilation),
            dilation=self.dilation,
        )

    def _build_conv3(self, width: int) -> None:
        self._add_conv_norm(3, self.conv_cfg, width, self.planes * self.expansion, kernel_size=1)

    @property
    def conv_norm_names(self) -> list[tuple[str, str]]:
        """As for ``ResidualBlock``."""
        return [("conv1", self.norm1_name), ("conv2", self.norm2_name), ("conv3", self.norm3_name)]

    @property
    def norm3(self) -> nn.Module:
        """The norm layer after the third convolution."""
        norm: nn.Module = getattr(self, self.norm3_name)
        return norm

    def _residual_and_shortcut(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self._conv_norm(self.conv1, self.norm1, x))
        out = self.forward_plugin(out, self.after_conv1_plugin_names)

        out = self._middle(out)
        out = self.forward_plugin(out, self.after_conv2_plugin_names)

        out = self._conv_norm(self.conv3, self.norm3, out)
        out = self.forward_plugin(out, self.after_conv3_plugin_names)

        return self._add(out, self._shortcut(x))

    def _middle(self, x: Tensor) -> Tensor:
        """Compute the part between the two 1x1 convolutions."""
        return self.relu(self._conv_norm(self.conv2, self.norm2, x))
