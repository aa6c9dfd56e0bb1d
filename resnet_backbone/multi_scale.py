"""Multi-scale 1D ResNet: one stem, then residual stages in parallel branches of different filter lengths.

The architecture of https://github.com/geekfeiw/Multi-Scale-1D-ResNet, made for any length of signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _single

from .blocks import BasicBlock
from .errors import ArgumentError, ArgumentTypeError, check_channels, is_int
from .layers.dimensions import spatial_dims_of
from .layers.tracing import untyped_at_runtime
from .res_layer import ResLayer
from .resnet import ResNet

__all__ = ["CroppingBlock", "MultiScaleResNet1d", "MultiScaleStage"]

Cfg = dict[str, Any]

FUSIONS = ("concat", "sum")
PADDINGS = ("same", "reference")


class CroppingBlock(BasicBlock):
    """A BasicBlock that pads by 1 whatever its kernel size, and crops its shortcut's end to what is left.

    The block of the public reference's branches. A kernel of 3 makes it an ordinary BasicBlock.
    """

    def _padding(self, dilation: int) -> int:
        return 1

    def _add_shortcut(self, out: Tensor, x: Tensor) -> Tensor:
        return out + self._shortcut(x)[..., : out.shape[-1]]


class MultiScaleStage(nn.Module):
    """The same stage in several branches, which differ in their kernel size and do not meet.

    Args:
        branches: The stage of each branch.
        width: Number of channels that a branch returns.
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
            x: Each branch's features of shape ``(N, C, L)``; or one tensor, such as the stem's, for all.
        """
        inputs = (x,) * len(self.branches) if isinstance(x, Tensor) else x
        return tuple(branch(features) for branch, features in zip(self.branches, inputs))

    def fuse(self, branches: Sequence[Tensor]) -> Tensor:
        """Make one tensor of ``(N, C, ...)`` of each branch: its channels side by side, or added up."""
        if self.fusion == "concat":
            return torch.cat(list(branches), dim=1)
        return reduce(torch.add, branches)


class MultiScaleResNet1d(ResNet):
    """ResNet for signals, whose stages run in parallel branches, one for each kernel size.

    A short kernel sees what is quick in a signal, a long one what is slow. All branches start from one stem of stride
    4. Their features are fused stage by stage; with ``num_classes``, they are averaged over time, fused and classified.

    Args:
        depth: Number of blocks of each stage, such as ``(1, 1, 1)``; or 18, 34, 50, 101 or 152, for the blocks of the
            ResNet of that depth.
        in_channels: Number of channels of the signal: its leads, sensors, microphones.
        stem_channels: Number of channels that the stem returns; ``None`` means ``base_channels``.
        base_channels: Number of channels of each branch's first stage; each further stage doubles it.
        num_stages: Number of stages; ``None`` means as many as ``depth`` lists, or 3.
        strides: Stride of each stage; ``None`` means 2 for each.
        dilations: Dilation of each stage; ``None`` means 1 for each.
        out_indices: The stages, counted from 0, whose features ``forward`` returns; ``None`` means all.
        kernel_sizes: Kernel size of each branch, odd.
        fusion: ``'concat'`` sets the branches' channels side by side, ``'sum'`` adds them up.
        padding: ``'same'`` keeps the branches aligned. ``'reference'`` does what the public reference does: pads by 1
            whatever the kernel, so that long kernels shorten the features, and crops the shortcut's end. Branches then
            differ in length, and can be fused after averaging alone: it needs ``num_classes``.
        num_classes: Classify into so many classes: ``forward`` returns logits.
        conv_cfg: Config of the convolutions, over one dimension.
        norm_cfg: Config of the norm layers.
        norm_eval: As in ``ResNet``; off, since there are no pretrained statistics to keep.
        **kwargs: The further arguments of ``ResNet``: ``frozen_stages``, ``with_cp``, ``fold_norm``, ``avg_down``, ...

    Raises:
        ArgumentError: An argument has a value that is not allowed.

    Examples:
        >>> import torch
        >>> backbone = MultiScaleResNet1d(in_channels=12).eval()
        >>> [tuple(level.shape) for level in backbone(torch.rand(2, 12, 1000))]
        [(2, 192, 125), (2, 384, 63), (2, 768, 32)]
        >>> MultiScaleResNet1d(in_channels=12, num_classes=5).eval()(torch.rand(2, 12, 1000)).shape
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
            strides=(2,) * count if strides is None else strides,
            dilations=(1,) * count if dilations is None else dilations,
            out_indices=out_indices,
            conv_cfg=conv_cfg,
            norm_cfg=norm_cfg,
            norm_eval=norm_eval,
            **kwargs,
        )
        self.feat_dim = getattr(self, self.res_layers[-1]).out_channels
        self.fc = None if num_classes is None else nn.Linear(self.feat_dim, num_classes)
        self.minimum_length = self._minimum_length()

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

    def make_res_layer(self, **kwargs: Any) -> nn.Module:
        """Build one stage of each branch.

        Args:
            **kwargs: The arguments of ``ResLayer``.
        """
        branches = [ResLayer(kernel_size=size, **kwargs) for size in self.kernel_sizes]
        return MultiScaleStage(branches, kwargs["planes"] * kwargs["block"].expansion, self.fusion)

    @untyped_at_runtime
    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:  # type: ignore[override]
        """Compute the fused features of each stage, or logits.

        Args:
            x: Signals of shape ``(N, in_channels, L)``, ``L`` at least ``minimum_length``.

        Returns:
            For each of ``out_indices``, in ascending order, features of shape ``(N, C, L / stride)``, lengths rounded
            up; ``feature_info`` gives channels and strides. With ``num_classes``, logits ``(N, num_classes)``.

        Raises:
            ArgumentError: ``x`` has another number of dimensions or channels, no floating-point dtype, or is too short.
        """
        stages = cast("tuple[tuple[Tensor, ...], ...]", super().forward(x))
        names = [name for index, name in enumerate(self.res_layers) if index in self.out_indices]
        modules = [cast(MultiScaleStage, getattr(self, name)) for name in names]
        if self.fc is None:
            return tuple(module.fuse(branches) for module, branches in zip(modules, stages))
        # Averaged before they are fused: in the reference's padding branches differ in length.
        averages = [features.mean(dim=-1) for features in stages[-1]]
        return cast(Tensor, self.fc(modules[-1].fuse(averages)))

    def _runs_stem_as_ours(self) -> bool:
        return True  # forward begins with ResNet's

    def _check_input(self, x: Tensor) -> None:
        super()._check_input(x)
        if x.shape[-1] < self.minimum_length:
            raise ArgumentError(
                f"x must be signals of at least {self.minimum_length} samples, got {x.shape[-1]} in shape "
                f"{tuple(x.shape)}: pad them, or lower the strides {tuple(self.strides)}"
            )

    def _minimum_length(self) -> int:
        """Samples that the last stage in use needs to return one."""
        if self.padding == "same":
            return self.out_strides[-1]
        longest = self.kernel_sizes.index(max(self.kernel_sizes))
        stages = [getattr(self, name).branches[longest] for name in self.res_layers]
        path = [*(self.stem if self.deep_stem else [self.conv1]), self.maxpool]
        path += [conv for stage in stages for block in stage for conv in (block.conv1, block.conv2)]
        length = 1
        for layer in reversed([layer for layer in path if hasattr(layer, "stride")]):
            size, stride, padding, dilation = (
                _single(getattr(layer, name))[0] for name in ("kernel_size", "stride", "padding", "dilation")
            )
            length = (length - 1) * stride + dilation * (size - 1) + 1 - 2 * padding
        return int(length)


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
                "after averaging alone, got num_classes=None"
            )
        return
    check_channels("num_classes", num_classes)
    if out_indices is not None:
        raise ArgumentError(
            f"out_indices must be None where num_classes is given, since forward then returns logits: "
            f"got out_indices={out_indices!r} and num_classes={num_classes!r}"
        )
