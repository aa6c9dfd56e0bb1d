"""Deformable convolution on torchvision's operator: mmcv's 'DCN' and 'DCNv2' without compiled mmcv.

Both compute their sampling offsets from their input, so they can replace any ordinary convolution. Arguments,
state-dict keys, initialisation and outputs, to the last bit on a CPU, are those of ``mmcv.ops``. Old checkpoints load.
"""

from __future__ import annotations

import math
import warnings
from importlib import import_module
from typing import Any, ClassVar

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from ..errors import ArgumentError, check_channels

__all__ = [
    "DeformConv2dPack",
    "ModulatedDeformConv2dPack",
    "deform_conv2d",
    "is_on_border",
    "rename_old_offsets",
    "sample_and_convolve",
]

Size = int | tuple[int, int]

# One step of a symbolic trace.
torch.fx.wrap("sample_and_convolve")


# Not an nn.Conv2d, because mmengine's Kaiming initialisation matches the names of base classes, and must not draw for
# this weight.
class _DeformConvPack(nn.Module):
    """Base class: the weight, the convolution that computes the offsets, and the call of the operator."""

    # As in mmcv. Checkpoints before version 2 have other names, see ``rename_old_offsets``.
    _version = 2

    channels_per_point: ClassVar[int]
    """Number of output channels of ``conv_offset`` per sampling point."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size,
        padding: Size,
        dilation: Size,
        groups: int,
        deform_groups: int,
        bias: bool,
        deformable_groups: int | None,
    ) -> None:
        super().__init__()
        _require_torchvision()
        if deformable_groups is not None:
            deform_groups = _renamed_deform_groups(deform_groups, deformable_groups)
        check_channels("in_channels", in_channels)
        check_channels("out_channels", out_channels)
        _check_divides("groups", groups, in_channels=in_channels, out_channels=out_channels)
        _check_divides("deform_groups", deform_groups, in_channels=in_channels)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size: tuple[int, int] = _pair(kernel_size)
        self.stride: tuple[int, int] = _pair(stride)
        self.padding: tuple[int, int] = _pair(padding)
        self.dilation: tuple[int, int] = _pair(dilation)
        self.groups = groups
        self.deform_groups = deform_groups
        # Attributes of nn.Conv2d that code for any convolution reads, such as mmcv's ConvModule.
        self.transposed = False
        self.output_padding = (0,)

        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()
        self.conv_offset = nn.Conv2d(
            in_channels,
            deform_groups * self.channels_per_point * math.prod(self.kernel_size),
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )
        self.init_weights()

    def reset_parameters(self) -> None:
        """Draw the weight, and set the bias to zero."""
        raise NotImplementedError

    def init_weights(self) -> None:
        """Start as an ordinary convolution: all offsets zero (Dai et al., 2017, section 2.3)."""
        nn.init.zeros_(self.conv_offset.weight)
        if self.conv_offset.bias is not None:
            nn.init.zeros_(self.conv_offset.bias)

    def _sample_and_convolve(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        return sample_and_convolve(x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
            f"deform_groups={self.deform_groups}, bias={self.bias is not None}"
        )


class DeformConv2dPack(_DeformConvPack):
    """Deformable convolution (Dai et al., 2017, https://arxiv.org/abs/1703.06211, section 2.1): mmcv's 'DCN'.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel_size: Size of the kernel.
        stride: Stride.
        padding: Zeros added on each side.
        dilation: Distance between the kernel's points.
        groups: Number of groups of the convolution.
        deform_groups: Number of groups of input channels with separate offsets.
        bias: Must be false.
        im2col_step: Ignored, for compatibility with mmcv: torchvision's operator accepts any batch size.
        deformable_groups: The old name of ``deform_groups``.

    Raises:
        ArgumentError: ``bias`` is true, a number of groups does not divide the channels, or ``im2col_step`` is not
            a positive integer.
        ImportError: torchvision is missing.
    """

    channels_per_point = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = False,
        im2col_step: int = 32,
        *,
        deformable_groups: int | None = None,
    ) -> None:
        if bias:
            raise ArgumentError(f"bias must be False for a convolution of type 'DCN', got {bias!r}: 'DCNv2' has one")
        check_channels("im2col_step", im2col_step)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, deform_groups, False,
            deformable_groups,
        )  # fmt: skip
        self.im2col_step = im2col_step

    def reset_parameters(self) -> None:
        """Draw the weight by Kaiming uniform initialisation."""
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Sample the input where ``conv_offset`` says, and convolve.

        Args:
            x: Features of shape ``(N, in_channels, H, W)``.

        Returns:
            Features of the shape that an ordinary convolution would return.
        """
        return self._sample_and_convolve(x, self.conv_offset(x), mask=None)


class ModulatedDeformConv2dPack(_DeformConvPack):
    """Deformable convolution that also weights its samples: mmcv's 'DCNv2'.

    Zhu et al., 2018, https://arxiv.org/abs/1811.11168, section 3.2.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel_size: Size of the kernel.
        stride: Stride.
        padding: Zeros added on each side.
        dilation: Distance between the kernel's points.
        groups: Number of groups of the convolution.
        deform_groups: Number of groups of input channels with separate offsets and masks.
        bias: Whether to add a bias to the output.
        deformable_groups: The old name of ``deform_groups``.

    Raises:
        ArgumentError: A number of groups does not divide the channels.
        ImportError: torchvision is missing.
    """

    channels_per_point = 3

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = True,
        *,
        deformable_groups: int | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, deform_groups, bool(bias),
            deformable_groups,
        )  # fmt: skip

    def reset_parameters(self) -> None:
        """Draw the weight uniformly within ``1 / sqrt(in_channels * kh * kw)``, and set the bias to zero."""
        bound = 1 / math.sqrt(self.in_channels * math.prod(self.kernel_size))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def init_weights(self) -> None:
        """Draw the weight again, and start with all offsets zero and all samples weighted one half."""
        self.reset_parameters()
        super().init_weights()

    def forward(self, x: Tensor) -> Tensor:
        """Sample the input where ``conv_offset`` says, weight the samples, and convolve.

        Args:
            x: Features of shape ``(N, in_channels, H, W)``.

        Returns:
            Features of the shape that an ordinary convolution would return.
        """
        # Two thirds are (y, x) offsets in turn, as for 'DCN'; the last third are the weights.
        points = self.deform_groups * math.prod(self.kernel_size)
        offset, mask = self.conv_offset(x).split([2 * points, points], dim=1)
        # contiguous(), because a view would keep the masks alive for the backward pass as well.
        return self._sample_and_convolve(x, offset.contiguous(), torch.sigmoid(mask))


def sample_and_convolve(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mask: Tensor | None = None,
) -> Tensor:
    """Compute ``deform_conv2d`` in single precision at least, and return the dtype of ``offset``.

    The operator adds offsets to pixel positions in the precision of its input, and half precision cannot represent
    neighbouring pixels beyond 256 (bfloat16) or 2048 (float16). On a CPU it supports neither.
    """
    dtype = torch.float64 if offset.dtype == torch.float64 else torch.float32
    out = deform_conv2d(
        x.to(dtype),
        offset.to(dtype),
        weight.to(dtype),
        None if bias is None else bias.to(dtype),
        stride,
        padding,
        dilation,
        None if mask is None else mask.to(dtype),
    )
    # The operator always returns the default memory format.
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        out = out.contiguous(memory_format=torch.channels_last)
    # Under autocast, offset has the dtype that an ordinary convolution would return.
    return out.to(offset.dtype)


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mask: Tensor | None = None,
) -> Tensor:
    """Compute a deformable convolution by torchvision's operator, with the gradients of mmcv's.

    The two differ in the gradient of an offset that puts a sampling point exactly one pixel before the first row or
    column, where the derivative jumps: mmcv takes 0, torchvision's the derivative from within.
    With all offsets zero, where training starts, and a padding of 1 that is every point on those borders.

    Args:
        x: Features of shape ``(N, in_channels, H, W)``.
        offset: Offsets in pixels, y and x in turn, of shape ``(N, 2 * deform_groups * kh * kw, H_out, W_out)``.
        weight: Weight of shape ``(out_channels, in_channels / groups, kh, kw)``.
        bias: One number per output channel.
        stride: Stride, along y and x.
        padding: Zeros added on each side, along y and x.
        dilation: Distance between the kernel's points, along y and x.
        mask: Weight of each sample, of shape ``(N, deform_groups * kh * kw, H_out, W_out)``; ``None`` to weight none.
    """
    from torchvision.ops import deform_conv2d as operator

    if offset.requires_grad:
        border = is_on_border(offset, (weight.shape[2], weight.shape[3]), stride, padding, dilation)
        offset = torch.where(border, offset.detach(), offset)
    out: Tensor = operator(x, offset, weight, bias, stride, padding, dilation, mask)
    return out


def is_on_border(
    offset: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Tell which offsets put their sampling point exactly one pixel before the first row (y) or column (x).

    Args:
        offset: As for ``deform_conv2d``.
        kernel_size: Size of the kernel, along y and x.
        stride: As for ``deform_conv2d``.
        padding: As for ``deform_conv2d``.
        dilation: As for ``deform_conv2d``.

    Returns:
        One boolean for each offset.
    """
    rows, columns = [
        torch.arange(size, device=offset.device) * stride[axis] - padding[axis]
        for axis, size in enumerate(offset.shape[2:])
    ]
    tap_y, tap_x = [torch.arange(size, device=offset.device) * dilation[axis] for axis, size in enumerate(kernel_size)]
    points = (*kernel_size, *offset.shape[2:])
    y = (tap_y[:, None, None, None] + rows[:, None]).expand(points)
    x = (tap_x[:, None, None] + columns).expand(points)
    # Offsets are y and x in turn, point after point. Integers first, and then one rounding, as in the operator.
    grid = torch.stack([y, x], dim=2).flatten(0, 2).to(offset.dtype)
    # A group of input channels has all of the points: the grid repeats for each.
    return offset + grid.repeat(offset.shape[1] // len(grid), 1, 1) == -1


def rename_old_offsets(state_dict: dict[str, Any], conv: str) -> None:
    """Turn a checkpoint's old names of a deformable convolution's offsets into today's, in place.

    mmcv renames in the layer itself, which since torch 1.13 receives only keys below its own name, so the old ones are
    missed. Blocks therefore rename for their layers, including mmcv's.

    Args:
        state_dict: The keys of the block that has the convolution, or more.
        conv: Full name of the convolution: ``'layer2.0.conv2'`` turns ``layer2.0.conv2_offset.weight`` into
            ``layer2.0.conv2.conv_offset.weight``.
    """
    for name in ("weight", "bias"):
        key, old_key = f"{conv}.conv_offset.{name}", f"{conv}_offset.{name}"
        if key not in state_dict and old_key in state_dict:
            state_dict[key] = state_dict.pop(old_key)


def _require_torchvision() -> None:
    try:
        import_module("torchvision.ops")
    except ImportError as error:
        raise ImportError(
            "dcn needs torchvision where mmcv is not compiled, and it could not be imported "
            f"({error}): pip install torchvision, in the version that belongs to torch {torch.__version__}"
        ) from error


def _renamed_deform_groups(deform_groups: int, deformable_groups: int) -> int:
    if deform_groups != 1:
        raise ArgumentError(
            f"deform_groups={deform_groups!r} and deformable_groups={deformable_groups!r} are two names of the same "
            "argument: give only deform_groups"
        )
    warnings.warn("deformable_groups is deprecated: write deform_groups", DeprecationWarning, stacklevel=4)
    return deformable_groups


def _check_divides(name: str, groups: Any, **channels: int) -> None:
    check_channels(name, groups)
    for channels_name, count in channels.items():
        if count % groups:
            raise ArgumentError(f"{name} must divide {channels_name}={count}, got {groups!r}")
