"""TridentNet: a stage in branches with different dilations (Li et al., 2019, https://arxiv.org/abs/1901.01892)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from .arguments import check_per_stage
from .blocks import Bottleneck
from .errors import ArgumentError, ArgumentTypeError, is_int
from .layers.conv_norm import fold_weights, foldable, is_foldable
from .layers.dimensions import spatial_dims_of
from .layers.tracing import is_watched, untyped_at_runtime
from .res_layer import ResLayer
from .resnet import ResNet

__all__ = ["TridentBottleneck", "TridentConv", "TridentResNet"]

Branches = list[Tensor]


@foldable
class TridentConv(BaseModule):
    """A convolution applied to several branches with the same weight and different dilations (section 4.1).

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel_size: Size of the kernel.
        stride: Stride.
        trident_dilations: Dilation and padding of each branch.
        test_branch_idx: Index of the branch to compute in inference; -1 for all.
        bias: Whether to add a bias to the output.
        init_cfg: mmengine's initialization config.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        trident_dilations: Sequence[int] = (1, 2, 3),
        test_branch_idx: int = 1,
        bias: bool = False,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        self.num_branch = len(trident_dilations)
        self.with_bias = bias
        self.test_branch_idx = test_branch_idx
        self.stride = _pair(stride)
        self.kernel_size: tuple[int, int] = _pair(kernel_size)
        self.paddings = _pair(trident_dilations)
        self.dilations = trident_dilations
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.weight = nn.Parameter(torch.zeros(out_channels, in_channels, *self.kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    @untyped_at_runtime
    def forward(self, inputs: Sequence[Tensor]) -> Branches:
        """Compute the convolution of each branch, from features of shape ``(N, in_channels, H, W)``."""
        return self.convolve(inputs, self.weight, self.bias)

    def convolve(self, inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Branches:
        """Compute ``forward`` with the given weight and bias."""
        branches = range(self.num_branch)
        if not self.training and self.test_branch_idx != -1:
            branches = range(self.test_branch_idx, self.test_branch_idx + 1)
        return [
            F.conv2d(x, weight, bias, self.stride, self.paddings[branch], self.dilations[branch])
            for x, branch in zip(inputs, branches)
        ]

    @override
    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"dilations={self.dilations}, test_branch_idx={self.test_branch_idx}, bias={self.bias is not None}"
        )


class TridentBottleneck(Bottleneck):
    """A Bottleneck that runs in several branches with the same weights and different dilations (figure 3).

    Args:
        trident_dilations: Dilation of the 3x3 convolution in each branch.
        test_branch_idx: Index of the branch to compute in inference; -1 for all.
        concat_output: Concatenate the branches along the batch, in the last block.
        **kwargs: The arguments of a plain Bottleneck.
    """

    def __init__(
        self, trident_dilations: Sequence[int], test_branch_idx: int, concat_output: bool, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.trident_dilations = trident_dilations
        self.num_branch = len(trident_dilations)
        self.test_branch_idx = test_branch_idx
        self.concat_output = concat_output
        plain: Any = self.conv2
        self.conv2 = TridentConv(
            self.planes,
            self.planes,
            self.kernel_size,
            self.conv2_stride,
            trident_dilations,
            test_branch_idx,
        )
        # mmdet leaves the weight uninitialized. This is PyTorch's default, and draws no further random numbers.
        self.conv2.weight = plain.weight

    @untyped_at_runtime
    def forward(self, x: Tensor | Branches) -> Tensor | Branches:  # type: ignore[override]
        """Compute the block.

        Args:
            x: Features of each branch, of shape ``(N, inplanes, H, W)``, or one tensor for all branches.

        Returns:
            Features of each branch, of shape ``(N, 4 * planes, H / stride, W / stride)``; with ``concat_output``, one
            tensor.
        """
        runs_all = self.training or self.test_branch_idx == -1
        branches = x if isinstance(x, list) else [x] * (self.num_branch if runs_all else 1)
        if self._may_checkpoint(branches[0]):
            outs = checkpoint(self._sums, *(branch.view_as(branch) for branch in branches), use_reentrant=False)
        else:
            outs = self._sums(*branches)
        outs = [self.relu(out) for out in outs]
        return torch.cat(outs) if self.concat_output else outs

    def _sums(self, *branches: Tensor) -> Branches:
        """Compute the input of the last ReLU, layer by layer for all branches, so that gradients add up as in mmdet."""
        shortcuts = [self._shortcut(branch) for branch in branches]
        outs = [self._conv_norm(self.conv1, self.norm1, branch) for branch in branches]
        outs = [self.forward_plugin(self.relu(out), self.after_conv1_plugin_names) for out in outs]
        outs = [self.relu(out) for out in self._dilated(outs)]
        outs = [self.forward_plugin(out, self.after_conv2_plugin_names) for out in outs]
        outs = [self._conv_norm(self.conv3, self.norm3, out) for out in outs]
        outs = [self.forward_plugin(out, self.after_conv3_plugin_names) for out in outs]
        return [out + shortcut for out, shortcut in zip(outs, shortcuts)]

    def _dilated(self, branches: Branches) -> Branches:
        """Compute the 3x3 convolution and its norm layer."""
        conv = cast(TridentConv, self.conv2)
        if self.fold_norm and not is_watched(branches[0]) and is_foldable(conv, self.norm2):
            return conv.convolve(branches, *fold_weights(conv, self.norm2))
        return [self.norm2(out) for out in conv(branches)]

    @property
    @override
    def conv_norm_names(self) -> list[tuple[str, str]]:
        return super().conv_norm_names  # also right for this block's forward


class TridentResNet(ResNet):
    """The backbone of TridentNet: three stages of a ResNet, the last in branches with different dilations.

    During training, and with ``test_branch_idx=-1``, the branches are concatenated to a batch of ``num_branch * N``.

    Unlike in mmdet, ``with_cp`` also works in the third stage, whose 3x3 convolutions start with PyTorch's default
    initialization instead of uninitialized memory.

    Args:
        depth: 50, 101 or 152.
        num_branch: Number of branches.
        test_branch_idx: Index of the branch to compute in inference; -1 for all.
        trident_dilations: Dilation of each branch.
        **kwargs: The further arguments of ``ResNet``. ``num_stages`` must be 3. In the third stage ``dilations`` and
            ``avg_down`` are ignored, as in mmdet, and ``dcn`` is not allowed.

    Raises:
        ArgumentError: An argument has an invalid value.

    Examples:
        >>> import torch
        >>> stages = dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,))
        >>> backbone = TridentResNet(50, num_branch=3, test_branch_idx=1, trident_dilations=(1, 2, 3), **stages)
        >>> [tuple(level.shape) for level in backbone.train()(torch.rand(2, 3, 64, 64))]
        [(6, 1024, 4, 4)]
    """

    arch_settings: ClassVar[dict[int, tuple[type[Any], tuple[int, ...]]]] = {
        depth: ResNet.arch_settings[depth] for depth in (50, 101, 152)
    }

    def __init__(
        self, depth: int, num_branch: int, test_branch_idx: int, trident_dilations: Sequence[int], **kwargs: Any
    ) -> None:
        if not is_int(num_branch) or num_branch < 1:
            raise ArgumentError(f"num_branch must be an integer of at least 1, got {num_branch!r}")
        check_per_stage("trident_dilations", trident_dilations, num_branch, "num_branch")
        if not is_int(test_branch_idx) or not -1 <= test_branch_idx < num_branch:
            raise ArgumentError(
                f"test_branch_idx must be an integer from -1 (all branches) to {num_branch - 1}, "
                f"got {test_branch_idx!r}"
            )
        if kwargs.get("num_stages") != 3:
            raise ArgumentError(f"num_stages must be 3 for TridentResNet, got {kwargs.get('num_stages', 4)!r}")
        # As in mmdet, for the same random numbers: first an ordinary third stage.
        super().__init__(depth, **kwargs)
        if self.dcn is not None and self.stage_with_dcn[2]:
            raise ArgumentError(f"stage_with_dcn must be False for the third stage, got {self.stage_with_dcn!r}")
        if spatial_dims_of(self.conv_cfg) != 2:
            raise ArgumentTypeError(f"conv_cfg must be a convolution of images, got {self.conv_cfg!r}")
        self.num_branch = num_branch
        self.test_branch_idx = test_branch_idx
        self.layer3 = self._make_trident_stage(trident_dilations)
        self._finish_construction(kwargs.get("device"), kwargs.get("dtype"))

    def _make_trident_stage(self, trident_dilations: Sequence[int]) -> nn.Sequential:
        planes = self._stage_planes(2)
        stage = ResLayer(
            TridentBottleneck,
            inplanes=self._stage_planes(1) * self.block.expansion,
            planes=planes,
            num_blocks=self.stage_blocks[2],
            stride=self.strides[2],
            conv_cfg=self.conv_cfg,
            norm_cfg=self.norm_cfg,
            style=self.style,
            with_cp=self.with_cp[2] if isinstance(self.with_cp, Sequence) else self.with_cp,
            plugins=None if self.plugins is None else self.make_stage_plugins(self.plugins, 2),
            trident_dilations=trident_dilations,
            test_branch_idx=self.test_branch_idx,
            concat_output=False,
        )
        cast(TridentBottleneck, stage[-1]).concat_output = True
        # As in mmdet, a plain nn.Sequential, whose blocks mmengine does not initialize.
        return nn.Sequential(*stage)
