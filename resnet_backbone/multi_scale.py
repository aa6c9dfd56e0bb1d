"""Multi-scale 1D ResNet: a stem, then residual stages in parallel branches with different kernel sizes.

The architecture of https://github.com/geekfeiw/Multi-Scale-1D-ResNet, for signals of any length.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from .blocks import BasicBlock, Bottleneck, ResidualBlock
from .errors import ArgumentError, ArgumentTypeError, check_channels, is_int
from .layers.build import layer_type
from .layers.dimensions import spatial_dims_of
from .layers.padded import Padded, geometry
from .layers.tracing import is_tracing, untyped_at_runtime
from .res_layer import ResLayer
from .resnet import ResNet

__all__ = ["CroppingBlock", "MultiScaleResNet1d", "MultiScaleStage"]

Cfg = dict[str, Any]

FUSIONS = ("concat", "sum")
PADDINGS = ("same", "reference")


class Block1d(ResidualBlock):
    """Mixin for residual blocks that also take signals of different lengths."""

    @untyped_at_runtime
    def forward(self, x: Tensor | Padded) -> Tensor | Padded:  # type: ignore[override]
        """Compute the block from features of shape ``(N, inplanes, L)``."""
        if not isinstance(x, Padded):
            return super().forward(x)
        if self._may_checkpoint(x.features):
            return checkpoint(self._forward_padded, x, use_reentrant=False)
        return self._forward_padded(x)

    def _forward_padded(self, x: Padded) -> Padded:
        layers: list[Any] = []
        for conv, norm in self.conv_norm_names:
            layers += [getattr(self, conv), getattr(self, norm), self.relu]
        out = x.apply(*layers[:-1])
        shortcut = x if self.downsample is None else x.apply(*cast(nn.Sequential, self.downsample))
        # Cropped where the reference's padding has shortened the residual branch.
        features = out.features + shortcut.features[..., : out.features.shape[-1]]
        return Padded(self.relu(features), out.lengths).without_padding()


class BasicBlock1d(Block1d, BasicBlock):
    """A BasicBlock for signals."""

    conv_norm_names = BasicBlock.conv_norm_names  # also right for Block1d.forward


class Bottleneck1d(Block1d, Bottleneck):
    """A Bottleneck for signals."""

    conv_norm_names = Bottleneck.conv_norm_names


class CroppingBlock(Block1d, BasicBlock):
    """The reference's block: it pads by 1 for every kernel size, and crops the shortcut to the shorter output."""

    conv_norm_names = BasicBlock.conv_norm_names

    def _padding(self, dilation: int) -> int:
        return 1

    def _add(self, out: Tensor, shortcut: Tensor) -> Tensor:
        return out + shortcut[..., : out.shape[-1]]


class MultiScaleStage(nn.Module):
    """A stage in parallel branches with different kernel sizes.

    Args:
        branches: The stage of each branch.
        width: Number of output channels of each branch.
        fusion: ``'concat'`` or ``'sum'``.
    """

    def __init__(self, branches: Sequence[ResLayer], width: int, fusion: str) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.fusion = fusion
        self.out_channels = width * len(branches) if fusion == "concat" else width

    @untyped_at_runtime
    def forward(self, x: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Compute the stage of each branch.

        Args:
            x: Features of each branch, of shape ``(N, C, L)``, or one tensor for all branches.
        """
        inputs = x if isinstance(x, tuple) and not isinstance(x, Padded) else (x,) * len(self.branches)
        return tuple(branch(features) for branch, features in zip(self.branches, inputs))

    def fuse(self, branches: Sequence[Tensor]) -> Tensor:
        """Concatenate the channels of the branches, each of shape ``(N, C, ...)``, or add them."""
        if self.fusion == "concat":
            return torch.cat(list(branches), dim=1)
        return reduce(torch.add, branches)


class MultiScaleResNet1d(ResNet):
    """ResNet for signals, whose stages run in parallel branches, one for each kernel size.

    Short kernels capture fast changes of a signal, long ones slow changes. All branches share one stem. ``forward``
    returns their fused features of each stage or, with ``num_classes``, averages the last over time and classifies.

    The published networks for time series keep the resolution: the ResNet of Wang et al. (2017,
    https://arxiv.org/abs/1611.06455) and InceptionTime (Ismail Fawaz et al., 2020, https://arxiv.org/abs/1909.04939)
    have no stem and no stride. The public reference has the stem for photographs, of stride 4, and strides of 2 in its
    three stages, 32 in total. The default here keeps the resolution in the stem and the first stage, and halves it in
    each further one. ``strides=(1, 1, 1)`` keeps it throughout, at three times the multiplications; ``stem_stride=4``
    and larger strides save time for signals of thousands of samples.

    Args:
        depth: Number of blocks of each stage, such as ``(1, 1, 1)``; or 18, 34, 50, 101 or 152, for the blocks of the
            ResNet of that depth.
        in_channels: Number of channels of the signal: leads, sensors or microphones.
        stem_channels: Number of output channels of the stem; ``None`` means ``base_channels``.
        base_channels: Number of channels of each branch's first stage; each further stage doubles it.
        num_stages: Number of stages; ``None`` means as many as ``depth`` lists, or 3.
        strides: Stride of each stage; ``None`` means 1 for the first and 2 for the others, or 2 for all with
            ``padding='reference'``.
        dilations: Dilation of each stage; ``None`` means 1 for each.
        out_indices: Indices of the stages, from 0, whose features ``forward`` returns; ``None`` means all.
        kernel_sizes: Kernel size of each branch, odd.
        fusion: ``'concat'`` concatenates the channels of the branches, ``'sum'`` adds them.
        padding: ``'same'`` keeps the branches aligned. ``'reference'`` pads by 1 for every kernel size, as the public
            reference does, so that branches differ in length and can be fused only after averaging: it needs
            ``num_classes``.
        stem_stride: As in ``ResNet``; ``None`` means 1, or 4 with ``padding='reference'``.
        num_classes: Number of classes; ``forward`` then returns logits.
        conv_cfg: Config of the convolutions, which must be 1D.
        norm_cfg: Config of the norm layers.
        norm_eval: As in ``ResNet``; off by default, because there are no pretrained statistics to keep.
        **kwargs: The further arguments of ``ResNet``: ``frozen_stages``, ``with_cp``, ``fold_norm``, ``avg_down``, ...

    Raises:
        ArgumentError: An argument has an invalid value.

    Examples:
        >>> import torch
        >>> backbone = MultiScaleResNet1d(in_channels=12).eval()
        >>> [tuple(level.shape) for level in backbone(torch.rand(2, 12, 1000))]
        [(2, 192, 1000), (2, 384, 500), (2, 768, 250)]
        >>> classifier = MultiScaleResNet1d(in_channels=12, num_classes=5).eval()
        >>> classifier(torch.rand(2, 12, 1000)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        depth: int | Sequence[int] = (1, 1, 1),
        in_channels: int = 1,
        stem_channels: int | None = None,
        base_channels: int = 64,
        num_stages: int | None = None,
        strides: Sequence[int] | None = None,
        dilations: Sequence[int] | None = None,
        out_indices: Sequence[int] | None = None,
        *,
        kernel_sizes: Sequence[int] = (3, 5, 7),
        fusion: str = "concat",
        padding: str = "same",
        num_classes: int | None = None,
        stem_stride: int | None = None,
        conv_cfg: Cfg = dict(type="Conv1d"),  # noqa: B006 - never changed; written as configs are
        norm_cfg: Cfg = dict(type="BN1d"),  # noqa: B006 - likewise
        norm_eval: bool = False,
        **kwargs: Any,
    ) -> None:
        if num_stages is None:
            num_stages = len(depth) if isinstance(depth, Sequence) else 3
        count = num_stages if is_int(num_stages) else 0  # which ResNet's constructor refuses by name
        _check_kernel_sizes(kernel_sizes, smallest=3 if padding == "reference" else 1)
        _check_choice("fusion", fusion, FUSIONS)
        _check_choice("padding", padding, PADDINGS)
        _check_num_classes(num_classes, out_indices, padding)
        if kwargs.get("out_stem"):
            raise ArgumentError(
                "out_stem must be False for MultiScaleResNet1d, whose levels are of its branches, got True"
            )
        if spatial_dims_of(conv_cfg) != 1:
            raise ArgumentError(f"conv_cfg must be of one dimension, such as dict(type='Conv1d'), got {conv_cfg!r}")
        # Set before ResNet's constructor, which makes the stages; none of them is a module.
        self.kernel_sizes = tuple(kernel_sizes)
        self.fusion = fusion
        self.padding = padding
        self.num_classes = num_classes
        if out_indices is None:
            out_indices = tuple(range(count)) if num_classes is None else (count - 1,)
        super().__init__(
            cast(int, depth),
            in_channels,
            stem_channels,
            base_channels,
            num_stages,
            strides=(2 if padding == "reference" else 1, *[2] * (count - 1)) if strides is None else strides,
            dilations=(1,) * count if dilations is None else dilations,
            out_indices=out_indices,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            norm_eval=norm_eval,
            stem_stride=(4 if padding == "reference" else 1) if stem_stride is None else stem_stride,
            **kwargs,
        )
        self.feat_dim = getattr(self, self.res_layers[-1]).out_channels
        self.fc = None if num_classes is None else nn.Linear(self.feat_dim, num_classes)
        self.minimum_length = self._minimum_length()
        self._takes_lengths = self.plugins is None and issubclass(layer_type("norm_cfg", norm_cfg), _BatchNorm)

    def _architecture(self, depth: int | Sequence[int]) -> tuple[type[Any], tuple[int, ...]]:
        block: type[Any] = BasicBlock
        if isinstance(depth, Sequence) and not isinstance(depth, str):
            blocks = tuple(depth)
            if not blocks or not all(is_int(number) and number >= 1 for number in blocks):
                raise ArgumentError(f"depth must list a number of blocks, at least 1, for each stage, got {depth!r}")
        else:
            block, blocks = super()._architecture(depth)
        if self.padding == "reference":
            if block is not BasicBlock:
                raise ArgumentError(
                    f"padding='reference' needs BasicBlocks: depth must be 18, 34 or a number of blocks for each "
                    f"stage, got {depth!r}"
                )
            block = CroppingBlock
        return block, blocks

    @override
    def make_res_layer(self, **kwargs: Any) -> nn.Module:
        kwargs["block"] = _BLOCKS.get(kwargs["block"], kwargs["block"])
        branches = [ResLayer(kernel_size=size, **kwargs) for size in self.kernel_sizes]
        return MultiScaleStage(branches, kwargs["planes"] * kwargs["block"].expansion, self.fusion)

    @untyped_at_runtime
    def forward(  # type: ignore[override]
        self, x: Tensor, lengths: Tensor | Sequence[int] | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Compute the fused features of each stage, or logits.

        Args:
            x: Signals of shape ``(N, in_channels, L)``, ``L`` at least ``minimum_length``.
            lengths: Number of samples of each signal, of shape ``(N,)``, if they differ; the rest of ``x`` is padding.
                In eval mode the features and logits of each signal are then, up to rounding, those of the signal alone,
                and the features of the padding are zero. In train mode batch statistics exclude the padding. It needs
                batch norms and no plugins. Pass a list or a CPU tensor to avoid synchronizing with a GPU.

        Returns:
            For each of ``out_indices``, in ascending order, features of shape ``(N, C, L / stride)``, rounded up; see
            ``feature_info``. With ``num_classes``, logits of shape ``(N, num_classes)``.

        Raises:
            ArgumentError: ``x`` has the wrong number of dimensions or channels, or not a floating-point dtype, or is
                too short; ``lengths`` do not match it or cannot be used with the network's layers.
        """
        padded = x if lengths is None else self._padded(x, lengths)
        stages: Any = super().forward(cast(Tensor, padded))
        names = [name for index, name in enumerate(self.res_layers) if index in self.out_indices]
        modules = [cast(MultiScaleStage, getattr(self, name)) for name in names]
        if self.fc is None:
            if lengths is not None:
                stages = [[branch.features for branch in branches] for branches in stages]
            return tuple(module.fuse(branches) for module, branches in zip(modules, stages))
        # Averaged before fusing, because with the reference's padding the branches differ in length.
        averages = [out.mean() if isinstance(out, Padded) else out.mean(dim=-1) for out in stages[-1]]
        return cast(Tensor, self.fc(modules[-1].fuse(averages)))

    def _stem_features(self, x: Tensor | Padded) -> Tensor | Padded:  # type: ignore[override]
        if not isinstance(x, Padded):
            return super()._stem_features(x)
        return x.apply(*(self.stem if self.deep_stem else (self.conv1, self.norm1, self.relu)))

    def _pool(self, x: Tensor | Padded) -> Tensor | Padded:  # type: ignore[override]
        return x.apply(cast(nn.Module, self.maxpool)) if isinstance(x, Padded) else super()._pool(x)

    def _padded(self, x: Tensor, lengths: Tensor | Sequence[int]) -> Padded:
        """Check ``lengths``, and set the padding to zero."""
        self._check_input(x)
        if not self._takes_lengths:
            raise ArgumentError(
                f"lengths must be None with plugins, and with norm layers that average over time: "
                f"got norm_cfg={self.norm_cfg!r} and plugins={self.plugins!r}"
            )
        lengths = torch.as_tensor(lengths)
        if lengths.shape != x.shape[:1] or lengths.dtype not in (torch.int32, torch.int64):
            raise ArgumentError(
                f"lengths must have one integer for each of the {len(x)} signals, got shape {tuple(lengths.shape)} "
                f"of {lengths.dtype}"
            )
        if not is_tracing() and not self.minimum_length <= int(lengths.min()) <= int(lengths.max()) <= x.shape[-1]:
            raise ArgumentError(
                f"lengths must be from {self.minimum_length} to the {x.shape[-1]} samples of x, got {lengths.tolist()}"
            )
        return Padded(x, lengths.to(x.device)).without_padding()

    def _runs_stem_as_ours(self) -> bool:
        return True  # forward begins with ResNet's

    def _check_input(self, x: Tensor | Padded) -> None:
        if isinstance(x, Padded):  # already checked
            return
        super()._check_input(x)
        if x.shape[-1] < self.minimum_length:
            raise ArgumentError(
                f"x must be signals of at least {self.minimum_length} samples, got {x.shape[-1]} in shape "
                f"{tuple(x.shape)}: pad them, or lower the strides {tuple(self.strides)}"
            )

    def _minimum_length(self) -> int:
        """Return the shortest length for which the last stage in use returns a position."""
        if self.padding == "same":
            return self.out_strides[-1]
        longest = self.kernel_sizes.index(max(self.kernel_sizes))
        stages = [getattr(self, name).branches[longest] for name in self.res_layers]
        path = [*(self.stem if self.deep_stem else [self.conv1]), self.maxpool]
        path += [conv for stage in stages for block in stage for conv in (block.conv1, block.conv2)]
        length = 1
        for layer in reversed([layer for layer in path if hasattr(layer, "stride")]):
            size, stride, padding, dilation = geometry(layer)
            length = (length - 1) * stride + dilation * (size - 1) + 1 - 2 * padding
        return int(length)


# ResNet's blocks, and the ones built for them.
_BLOCKS: dict[type[nn.Module], type[nn.Module]] = {BasicBlock: BasicBlock1d, Bottleneck: Bottleneck1d}


def _check_kernel_sizes(kernel_sizes: Any, smallest: int) -> None:
    if not isinstance(kernel_sizes, Sequence) or isinstance(kernel_sizes, str):
        raise ArgumentTypeError(f"kernel_sizes must be a sequence of odd integers, got {kernel_sizes!r}")
    if not kernel_sizes or not all(is_int(size) and size >= smallest and size % 2 for size in kernel_sizes):
        raise ArgumentError(f"kernel_sizes must be odd integers of at least {smallest}, got {kernel_sizes!r}")
    if len(set(kernel_sizes)) != len(kernel_sizes):
        raise ArgumentError(f"kernel_sizes must be distinct, one for each branch, got {kernel_sizes!r}")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ArgumentError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")


def _check_num_classes(num_classes: Any, out_indices: Any, padding: str) -> None:
    if num_classes is None:
        if padding == "reference":
            raise ArgumentError(
                "num_classes must be given with padding='reference', whose branches differ in length and can be fused "
                "only after averaging, got num_classes=None"
            )
        return
    check_channels("num_classes", num_classes)
    if out_indices is not None:
        raise ArgumentError(
            f"out_indices must be None where num_classes is given, since forward then returns logits: "
            f"got out_indices={out_indices!r} and num_classes={num_classes!r}"
        )
