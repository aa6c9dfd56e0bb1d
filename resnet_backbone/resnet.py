"""ResNet and its C and D variants, with the arguments, parameter names and bits of mmdet's."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, NamedTuple, cast

import torch
from mmcv.cnn import ConvAWS2d, ConvWS2d
from mmengine.logging import MMLogger
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import Never, Self

from .arguments import check_arguments, names_misspelt, unknown_argument
from .blocks import BasicBlock, Bottleneck
from .deploy import deployed_class, fuse_conv_bn
from .errors import ArgumentError, ArgumentTypeError, UnknownNameError
from .fine_tuning import FineTuning
from .layers.build import build_conv_layer, build_norm_layer
from .layers.conv_norm import conv_norm, conv_norm_sequence
from .layers.ddp import mark_unused_for_ddp
from .layers.dimensions import layout, max_pool, memory_format, spatial_dims_of
from .layers.tracing import is_recording, untyped_at_runtime
from .res_layer import ResLayer

__all__ = ["FeatureInfo", "ResNet", "ResNetV1c", "ResNetV1d", "channels_of", "pretrained_init_cfg"]

Cfg = dict[str, Any]


class FeatureInfo(NamedTuple):
    """Information on one output of a backbone.

    Attributes:
        module: Name of the module that computes it, such as ``'layer2'``.
        channels: Number of channels.
        reduction: Stride relative to the input.
    """

    module: str
    channels: int
    reduction: int


class ResNet(FineTuning):
    """ResNet (He et al., 2015, https://arxiv.org/abs/1512.03385, table 1), without its classifier.

    Args:
        depth: 18, 34, 50, 101 or 152.
        in_channels: Number of channels of the input image or signal.
        stem_channels: Number of output channels of the stem; ``None`` means ``base_channels``.
        base_channels: ``planes`` of the first stage; each further stage doubles it.
        num_stages: Number of stages, 1 to 4.
        strides: Stride of each stage.
        dilations: Dilation of each stage.
        out_indices: Indices of the stages, from 0, whose features ``forward`` returns. Later stages are not computed.
        style: ``'pytorch'`` strides in a Bottleneck's 3x3 convolution, ``'caffe'`` in its first 1x1.
        deep_stem: Use three 3x3 convolutions in the stem instead of one 7x7.
        avg_down: Downsample in the shortcuts by average pooling instead of by a strided 1x1 convolution.
        frozen_stages: Freeze the stem (0), and the stages up to this number (1 to ``num_stages``): no gradients, and
            norm layers in eval mode. -1 freezes nothing.
        conv_cfg: Config of the convolutions; ``None`` means ``dict(type='Conv2d')``. ``dict(type='Conv1d')`` makes a
            ResNet for signals ``(N, C, L)``, ``dict(type='Conv3d')`` one for volumes ``(N, C, T, H, W)``.
        norm_cfg: Config of the norm layers: ``BN1d`` for signals, ``BN3d`` for volumes.
        norm_eval: Keep every batch norm in eval mode during training: running statistics stay fixed, affine parameters
            train.
        dcn: Config of a deformable convolution that replaces the 3x3 in the stages that ``stage_with_dcn`` selects.
        stage_with_dcn: One boolean per stage.
        plugins: Layers to insert into blocks: ``dict(cfg=dict(type=...), position='after_conv2', stages=(...))``.
            ``stages`` has one boolean per stage and is optional. Several plugins of the same type in one block need
            different ``postfix`` values in their ``cfg``.
        with_cp: Use activation checkpointing in each block: its activations are recomputed in the backward pass. One
            boolean, or one per stage.
        zero_init_residual: Initialize the last norm layer of each block to zero, so that each block starts as an
            identity (Goyal et al., 2017, https://arxiv.org/abs/1706.02677, section 5.1).
        pretrained: Deprecated: a checkpoint to start from. Use
            ``init_cfg=dict(type='Pretrained', checkpoint=...)``.
        init_cfg: mmengine's initialization config. ``None`` means Kaiming initialization of the convolutions.
        fold_norm: Compute each convolution and the batch norm after it as one convolution wherever the norm is in eval
            mode (``norm_eval``, frozen stages, ``eval()``), which halves the memory saved for the backward pass (You
            et al., 2023, https://arxiv.org/abs/2305.11624). Parameters and state dict do not change; outputs and
            gradients differ by rounding.
        channels_last: Use the memory format ``channels_last`` for weights and inputs, which is faster on most devices.
            The state dict does not change; outputs and gradients differ by rounding.
        multi_grid: Dilation of each block of the last stage, instead of the stage's, as in mmsegmentation (Chen et
            al., 2017, https://arxiv.org/abs/1706.05587, section 3.1).
        contract_dilation: Halve the dilation in the first block of each dilated stage, as in mmsegmentation.
        projection_shortcut: Use a projection in the shortcut of the first block of every stage, even where input and
            output have the same shape: ``layer1`` of ResNet-18 and 34 in PaddleDetection and RT-DETR.
        stem_stride: Stride of the stem: 4; 2, without max pooling; or 1, with neither striding nor pooling, for short
            signals and small images. The state dict does not change.
        base_width: Number of channels of the 3x3 convolutions of the first stage, doubled in each further stage;
            ``None`` means ``base_channels``. 128 gives torchvision's Wide ResNet-50 and 101 (Zagoruyko & Komodakis,
            2016, https://arxiv.org/abs/1605.07146).
        out_stem: Also return the features of the stem before max pooling, of stride 2, as the first level, for decoders
            such as U-Net's.
        device: Device to build on; ``None`` means PyTorch's default.
        dtype: Dtype of parameters and running statistics; ``None`` means PyTorch's default.
        **unknown: Misspelt arguments; the error suggests the nearest one.

    Raises:
        ArgumentError: An argument has an invalid value. It is a ``ValueError`` and an ``AssertionError``, also a
            ``KeyError`` for an invalid ``depth`` or layer type, and a ``TypeError`` for a wrong type.

    Examples:
        >>> import torch
        >>> backbone = ResNet(depth=18).eval()
        >>> [tuple(level.shape) for level in backbone(torch.rand(1, 3, 64, 64))]
        [(1, 64, 16, 16), (1, 128, 8, 8), (1, 256, 4, 4), (1, 512, 2, 2)]
    """

    arch_settings: ClassVar[dict[int, tuple[type[Any], tuple[int, ...]]]] = {
        18: (BasicBlock, (2, 2, 2, 2)),
        34: (BasicBlock, (3, 4, 6, 3)),
        50: (Bottleneck, (3, 4, 6, 3)),
        101: (Bottleneck, (3, 4, 23, 3)),
        152: (Bottleneck, (3, 8, 36, 3)),
    }

    # A subclass may skip this __init__, as mmdet's RegNet does.
    in_channels: int | None = None
    spatial_dims: int = 2
    """Number of spatial dimensions, set by ``conv_cfg``: 1, 2 or 3."""
    stem_stride: int = 4
    fold_norm: bool = False
    channels_last: bool = False
    out_stem: bool = False
    deployed: bool = False

    @names_misspelt
    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        stem_channels: int | None = None,
        base_channels: int = 64,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        style: str = "pytorch",
        deep_stem: bool = False,
        avg_down: bool = False,
        frozen_stages: int = -1,
        conv_cfg: Cfg | None = None,
        norm_cfg: Cfg = dict(type="BN", requires_grad=True),  # noqa: B006 - never changed; written as configs are
        norm_eval: bool = True,
        dcn: Cfg | None = None,
        stage_with_dcn: Sequence[bool] = (False, False, False, False),
        plugins: list[Cfg] | None = None,
        with_cp: bool | Sequence[bool] = False,
        zero_init_residual: bool = True,
        pretrained: str | None = None,
        init_cfg: Cfg | list[Cfg] | None = None,
        *,
        fold_norm: bool = False,
        channels_last: bool = False,
        multi_grid: Sequence[int] | None = None,
        contract_dilation: bool = False,
        projection_shortcut: bool = False,
        stem_stride: int = 4,
        base_width: int | None = None,
        out_stem: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **unknown: Never,
    ) -> None:
        super().__init__(init_cfg)
        if unknown:
            raise unknown_argument(type(self), next(iter(unknown)))
        self.block, self.stage_blocks = self._architecture(depth)
        self.depth = depth
        self.in_channels = in_channels
        self.stem_channels = base_channels if stem_channels is None else stem_channels
        self.base_channels = base_channels
        self.num_stages = num_stages
        self.strides = strides
        self.dilations = dilations
        self.out_indices = out_indices
        self.style = style
        self.deep_stem = deep_stem
        self.avg_down = avg_down
        self.frozen_stages = frozen_stages
        self.conv_cfg = conv_cfg
        self.spatial_dims = spatial_dims_of(conv_cfg)
        self.norm_cfg = norm_cfg
        self.norm_eval = norm_eval
        self.dcn = dcn
        self.stage_with_dcn = stage_with_dcn
        self.plugins = plugins
        self.with_cp = with_cp
        self.zero_init_residual = zero_init_residual
        self.multi_grid = multi_grid
        self.contract_dilation = contract_dilation
        self.projection_shortcut = projection_shortcut
        self.stem_stride = stem_stride
        self._base_width = base_width
        self.fold_norm = fold_norm
        self.channels_last = channels_last
        self.out_stem = out_stem
        check_arguments(self, device, dtype)
        self.stage_blocks = self.stage_blocks[:num_stages]

        block_init_cfg = self._set_init_cfg(pretrained)
        with nullcontext() if device is None else torch.device(device):
            self._make_stem_layer(in_channels, self.stem_channels)
            self._make_stages(block_init_cfg)
        self._finish_construction(device, dtype)

    def _make_stem_layer(self, in_channels: int, stem_channels: int) -> None:
        """Build the stem."""
        stride = 1 if self.stem_stride == 1 else 2
        if self.deep_stem:
            half = stem_channels // 2
            self.stem = nn.Sequential(
                *self._stem_conv3x3(in_channels, half, stride=stride),
                *self._stem_conv3x3(half, half, stride=1),
                *self._stem_conv3x3(half, stem_channels, stride=1),
            )
        else:
            self.conv1 = build_conv_layer(
                self.conv_cfg, in_channels, stem_channels, kernel_size=7, stride=stride, padding=3, bias=False
            )
            self.norm1_name, norm1 = build_norm_layer(self.norm_cfg, stem_channels, postfix=1)
            self.add_module(self.norm1_name, norm1)
            self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module | None = nn.Identity()
        if self.stem_stride == 4:
            self.maxpool = max_pool(self.spatial_dims, kernel_size=3, stride=2, padding=1)

    def _stem_conv3x3(self, in_channels: int, out_channels: int, stride: int) -> tuple[nn.Module, nn.Module, nn.Module]:
        conv = build_conv_layer(
            self.conv_cfg, in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False
        )
        return conv, build_norm_layer(self.norm_cfg, out_channels)[1], nn.ReLU(inplace=True)

    def _make_stages(self, block_init_cfg: Cfg | None) -> None:
        self.inplanes = self.stem_channels
        self.res_layers: list[str] = []
        for index, num_blocks in enumerate(self.stage_blocks):
            planes = self._stage_planes(index)
            stage = self.make_res_layer(
                block=self.block,
                inplanes=self.inplanes,
                planes=planes,
                num_blocks=num_blocks,
                stride=self.strides[index],
                dilation=self.dilations[index],
                style=self.style,
                avg_down=self.avg_down,
                with_cp=self.with_cp[index] if isinstance(self.with_cp, Sequence) else self.with_cp,
                conv_cfg=self.conv_cfg,
                norm_cfg=self.norm_cfg,
                dcn=self.dcn if self.dcn is not None and self.stage_with_dcn[index] else None,
                plugins=None if self.plugins is None else self.make_stage_plugins(self.plugins, index),
                init_cfg=block_init_cfg,
                **self._stage_options(index),
            )
            self.inplanes = planes * self.block.expansion
            self.res_layers.append(f"layer{index + 1}")
            self.add_module(self.res_layers[-1], stage)
        self.feat_dim = self.inplanes

    def make_stage_plugins(self, plugins: list[Cfg], stage_idx: int) -> list[Cfg]:
        """Select the plugins of one stage.

        Args:
            plugins: The plugins of the backbone.
            stage_idx: Index of the stage, from 0.

        Returns:
            The plugins whose ``stages`` include this stage or are not given, without the key ``stages``.
        """
        return [
            {key: plugin[key] for key in plugin if key != "stages"}
            for plugin in plugins
            if plugin.get("stages") is None or plugin["stages"][stage_idx]
        ]

    def make_res_layer(self, **kwargs: Any) -> nn.Module:
        """Build one stage. Subclasses override this to change the stages.

        Args:
            **kwargs: The arguments of ``ResLayer``.
        """
        return ResLayer(**kwargs)

    def _stage_planes(self, index: int) -> int:
        return int(self.base_channels * 2**index)

    def _stage_options(self, index: int) -> Cfg:
        """Arguments of a stage beyond mmdet's, only those in use: the stages of a subclass need not accept them."""
        options: Cfg = {"contract_dilation": True} if self.contract_dilation else {}
        if self.projection_shortcut:
            options["projection_shortcut"] = True
        if self.multi_grid is not None and index == self.num_stages - 1:
            options["multi_grid"] = self.multi_grid
        if self._base_width is not None:
            options["width"] = self._stage_planes(index) * self._base_width // self.base_channels
        return options

    @untyped_at_runtime
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature pyramid.

        Args:
            x: Images of shape ``(N, in_channels, H, W)``.

        Returns:
            One tensor for each of ``out_indices``, in ascending order, of shape ``(N, C, H / stride, W / stride)``,
            rounded up; with ``out_stem``, the features of the stem come first. See ``feature_info``.

        Raises:
            ArgumentError: ``x`` has the wrong number of dimensions or channels, or not a floating-point dtype.
        """
        self._check_input(x)
        x = self._stem_features(x)
        outs = [x] if self.out_stem else []
        x = self._pool(x)

        num_used = max(self.out_indices) + 1
        for index, name in enumerate(self.res_layers[:num_used]):
            x = getattr(self, name)(x)
            if index in self.out_indices:
                outs.append(x)
        outs[-1] = mark_unused_for_ddp((getattr(self, name) for name in self.res_layers[num_used:]), x)
        return tuple(outs)

    def _stem_features(self, x: Tensor) -> Tensor:
        if self.channels_last and not is_recording(x):  # vmap has no such call, and the convolutions do it as well
            x = x.contiguous(memory_format=memory_format(self.spatial_dims))
        if self.deep_stem:
            return conv_norm_sequence(self.stem, x, self.fold_norm)
        return cast(Tensor, self.relu(conv_norm(self.conv1, self.norm1, x, self.fold_norm)))

    def _pool(self, x: Tensor) -> Tensor:
        return x if self.maxpool is None else cast(Tensor, self.maxpool(x))

    @property
    def norm1(self) -> nn.Module:
        """The norm layer of the stem. A deep stem has no ``norm1``."""
        norm: nn.Module = getattr(self, self.norm1_name)
        return norm

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """One ``FeatureInfo`` for each tensor that ``forward`` returns, in the same order."""
        infos = []
        if self.out_stem:
            name = "stem" if self.deep_stem else "relu"
            infos.append(FeatureInfo(name, self.stem_channels, self._stem_stride(pooled=False)))
        reduction = self._stem_stride()
        for index, (name, stride) in enumerate(zip(self.res_layers, self.strides)):
            reduction *= stride
            if index in self.out_indices:
                infos.append(FeatureInfo(name, channels_of(getattr(self, name)), reduction))
        return tuple(infos)

    @property
    def out_channels(self) -> tuple[int, ...]:
        """The number of channels of each output."""
        return tuple(info.channels for info in self.feature_info)

    @property
    def out_strides(self) -> tuple[int, ...]:
        """The stride of each output, relative to the input."""
        return tuple(info.reduction for info in self.feature_info)

    def _stem_stride(self, pooled: bool = True) -> int:
        """The stride of the stem as it is now, after or before max pooling."""
        # Subclasses such as mmdet's RegNet have no max pooling.
        names = ["stem" if self.deep_stem else "conv1", *(["maxpool"] if pooled else [])]
        layers = [getattr(self, name, None) for name in names]
        return math.prod(_stride_of(layer) for layer in layers if layer is not None)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode, with ``frozen_stages`` and ``norm_eval`` applied.

        Args:
            mode: Whether to train.

        Returns:
            The backbone.
        """
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _runs_stem_as_ours(self) -> bool:
        """Whether the norm layer directly follows the convolution, which a subclass may change in ``forward``."""
        return type(self).forward is ResNet.forward

    def switch_to_deploy(self) -> Self:
        """Fuse every batch norm into its convolution, in place, for inference.

        Outputs differ by rounding. The result stays frozen and cannot train. Its state dict has other keys, so load
        checkpoints before the call. ``compile()`` turns its weights into constants. A second call has no effect.

        Returns:
            The backbone, in eval mode.
        """
        self.eval()
        stem = [("conv1", self.norm1_name)] if not self.deep_stem and self._runs_stem_as_ours() else []
        fuse_conv_bn(self, stem)
        self.__class__ = deployed_class(type(self))  # type: ignore[assignment]
        return self

    def _set_init_cfg(self, pretrained: str | None) -> Cfg | None:
        """Set ``init_cfg`` and return the one of the blocks."""
        if pretrained is not None:
            init_cfg = pretrained_init_cfg(pretrained)
            if self.init_cfg:
                raise ArgumentError(
                    f"pretrained={pretrained!r} and init_cfg={self.init_cfg!r} cannot both be given: drop pretrained"
                )
            warnings.warn(
                f"pretrained is deprecated: write init_cfg=dict(type='Pretrained', checkpoint={pretrained!r})",
                DeprecationWarning,
                stacklevel=4,
            )
            self.init_cfg = init_cfg
        elif self.init_cfg is None:
            self.init_cfg = [
                {"type": "Kaiming", "layer": f"Conv{self.spatial_dims}d"},
                {"type": "Constant", "val": 1, "layer": ["_BatchNorm", "GroupNorm"]},
            ]
            return self._block_init_cfg() if self.zero_init_residual else None
        return None

    def _block_init_cfg(self) -> Cfg | None:
        # Subclasses of the blocks do not zero-initialize, as in mmdet.
        if self.block not in (BasicBlock, Bottleneck):
            return None
        last_norm = "norm2" if self.block is BasicBlock else "norm3"
        return {"type": "Constant", "val": 0, "override": {"name": last_norm}}

    def init_weights(self, pretrained: str | None = None) -> None:
        """Initialize the weights as ``init_cfg`` says.

        Args:
            pretrained: A checkpoint to load in place of ``init_cfg``, as in mmdet 2.

        Raises:
            ArgumentTypeError: ``pretrained`` is not a string.
        """
        if pretrained is not None:
            self.init_cfg = pretrained_init_cfg(pretrained)
            self._is_init = False
        # Random numbers fill a tensor in memory order. In the default format, a seed gives the same weights with and
        # without channels_last.
        if self.channels_last:
            self.to(memory_format=torch.contiguous_format)
        super().init_weights()  # type: ignore[no-untyped-call]
        self._set_memory_format()

    def _dump_init_info(self) -> None:
        """Write mmengine's report on every parameter to log files, and to the console only at log level DEBUG."""
        logger = MMLogger.get_current_instance()
        to_file = any(isinstance(handler, logging.FileHandler) for handler in logger.handlers)
        if to_file or logger.level == logging.DEBUG:
            super()._dump_init_info()

    def _finish_construction(self, device: Any, dtype: torch.dtype | None) -> None:
        """Apply the arguments that concern modules already built. Subclasses that replace modules call it again."""
        if device is not None or dtype is not None:
            self.to(device=device, dtype=dtype)
        self._freeze_stages()
        self._set_fold_norm(self.fold_norm)
        self._set_memory_format()

    def _set_memory_format(self) -> None:
        if not self.channels_last:
            return
        self.to(memory_format=memory_format(self.spatial_dims))
        for module in self.modules():
            # They standardize their weight by a view that no other format has.
            if isinstance(module, (ConvWS2d, ConvAWS2d)):
                module.to(memory_format=torch.contiguous_format)

    def _set_fold_norm(self, fold_norm: bool) -> None:
        # Set as an attribute, because the blocks of a subclass need not accept the argument.
        self.fold_norm = fold_norm
        module: Any
        for module in self.modules():
            if hasattr(module, "fold_norm"):
                module.fold_norm = fold_norm

    def _architecture(self, depth: int) -> tuple[type[Any], tuple[int, ...]]:
        """Return the class of the blocks, and the number of blocks of each stage."""
        if not isinstance(depth, Hashable) or depth not in self.arch_settings:
            raise UnknownNameError(
                f"invalid depth {depth!r} for {type(self).__name__}: depth must be one of "
                f"{', '.join(map(str, self.arch_settings))}"
            )
        return self.arch_settings[depth]

    def _check_input(self, x: Tensor) -> None:
        if isinstance(x, Proxy):  # torch.fx tracing has no shapes
            return
        dims, channels = self.spatial_dims, self.in_channels
        if not isinstance(x, Tensor):
            raise ArgumentTypeError(f"x must be a tensor {layout(dims, channels or 'C')}, got a {type(x).__name__}")
        if x.dim() == 2 + dims and x.shape[1] != channels:
            channels = self._stem_in_channels()
        if x.dim() != 2 + dims or (channels is not None and x.shape[1] != channels):
            raise ArgumentError(f"x must have shape {layout(dims, channels or 'C')}, got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ArgumentTypeError(f"x must be of a floating-point dtype, got {x.dtype}: normalize the image first")

    def _stem_in_channels(self) -> int | None:
        """The number of channels that the first convolution, which may have been replaced, expects."""
        stem: Any = getattr(self, "stem" if self.deep_stem else "conv1", self)
        return next((module.in_channels for module in stem.modules() if hasattr(module, "in_channels")), None)


class ResNetV1c(ResNet):
    """ResNet-C: a stem of three 3x3 convolutions (He et al., 2018, https://arxiv.org/abs/1812.01187, section 4).

    Args:
        depth: 18, 34, 50, 101 or 152.
        deep_stem: Must be true.
        **kwargs: The other arguments of ``ResNet``.

    Raises:
        ArgumentError: As for ``ResNet``, or ``deep_stem`` is false.
    """

    @names_misspelt
    def __init__(self, depth: int, *, deep_stem: bool = True, **kwargs: Any) -> None:
        if not deep_stem:
            raise ArgumentError(f"deep_stem must be True for {type(self).__name__}, got {deep_stem!r}: use ResNet")
        super().__init__(depth, deep_stem=True, **kwargs)


class ResNetV1d(ResNetV1c):
    """ResNet-D: ResNet-C with average pooling in the shortcuts (He et al., 2018, section 4).

    Args:
        depth: 18, 34, 50, 101 or 152.
        avg_down: Must be true.
        **kwargs: The other arguments of ``ResNet``.

    Raises:
        ArgumentError: As for ``ResNet``, or ``deep_stem`` or ``avg_down`` is false.
    """

    @names_misspelt
    def __init__(self, depth: int, *, avg_down: bool = True, **kwargs: Any) -> None:
        if not avg_down:
            raise ArgumentError(f"avg_down must be True for {type(self).__name__}, got {avg_down!r}: use ResNetV1c")
        super().__init__(depth, avg_down=True, **kwargs)


def pretrained_init_cfg(checkpoint: Any) -> Cfg:
    """Return the ``init_cfg`` that the argument ``pretrained`` stands for."""
    if not isinstance(checkpoint, str):
        raise ArgumentTypeError(f"pretrained must be a string (a path, a URL, torchvision://...), got {checkpoint!r}")
    return {"type": "Pretrained", "checkpoint": checkpoint}


def _stride_of(layer: nn.Module) -> int:
    """The stride of a layer, also within a wrapper such as LoRA's, or of layers one after the other."""
    if isinstance(layer, nn.Sequential):
        return math.prod(map(_stride_of, layer))
    stride: Any = next((module.stride for module in layer.modules() if hasattr(module, "stride")), 1)
    return int(stride if isinstance(stride, int) else stride[0])


def channels_of(stage: nn.Module) -> int:
    """Return the number of output channels of a stage."""
    block: Any = list(stage.children())[-1]
    last_conv = getattr(block, "conv3", getattr(block, "conv2", stage))
    # Pruning changes a convolution's; a wrapper such as LoRA's may not have it.
    return cast(int, (last_conv if hasattr(last_conv, "out_channels") else stage).out_channels)
