"""Deformable convolution on torchvision's operator: mmcv's 'DCN' and 'DCNv2' without compiled mmcv.

Both compute their sampling offsets from their input, so they can replace any ordinary convolution. Arguments,
state-dict keys, initialization and outputs, to the last bit on a CPU, are those of ``mmcv.ops``. Old checkpoints load.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from typing_extensions import override

from ..errors import ArgumentError, check_channels, explain_missing_torchvision

__all__ = ["DeformConv2dPack", "ModulatedDeformConv2dPack", "deform_conv2d", "is_on_border", "rename_old_offsets"]

Size = int | tuple[int, int]

# One step of a symbolic trace.
torch.fx.wrap("deform_conv2d")


# Not an nn.Conv2d, because mmengine's Kaiming initialization matches the names of base classes, and must not draw for
# this weight.
class _DeformConvPack(nn.Module):
    """Base class: the weight, and the convolution that computes the offsets."""

    # As in mmcv. Checkpoints before version 2 have other names, see ``rename_old_offsets``.
    _version = 2

    channels_per_point: ClassVar[int]
    """Number of output channels of ``conv_offset`` per sampling point."""

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
        super().__init__()
        with explain_missing_torchvision("dcn"):
            import torchvision.ops  # noqa: F401
        if deformable_groups is not None:
            if deform_groups != 1:
                raise ArgumentError(
                    f"deform_groups={deform_groups!r} and deformable_groups={deformable_groups!r} are two names of the "
                    "same argument: give only deform_groups"
                )
            warnings.warn("deformable_groups is deprecated: write deform_groups", DeprecationWarning, stacklevel=3)
            deform_groups = deformable_groups
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

    def _convolve(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        return deform_conv2d(x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)

    @override
    def extra_repr(self) -> str:
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
        padding: Zero padding on each side.
        dilation: Dilation.
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
            deformable_groups=deformable_groups,
        )  # fmt: skip
        self.im2col_step = im2col_step

    @override
    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Compute features of shape ``(N, out_channels, H_out, W_out)``.

        Args:
            x: Features of shape ``(N, in_channels, H, W)``.
        """
        return self._convolve(x, self.conv_offset(x))


class ModulatedDeformConv2dPack(_DeformConvPack):
    """Deformable convolution that also weights its samples: mmcv's 'DCNv2'.

    Zhu et al., 2018, https://arxiv.org/abs/1811.11168, section 3.2.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel_size: Size of the kernel.
        stride: Stride.
        padding: Zero padding on each side.
        dilation: Dilation.
        groups: Number of groups of the convolution.
        deform_groups: Number of groups of input channels with separate offsets and masks.
        bias: Whether to add a bias to the output.
        deformable_groups: The old name of ``deform_groups``.

    Raises:
        ArgumentError: A number of groups does not divide the channels.
        ImportError: torchvision is missing.
    """

    channels_per_point = 3

    @override
    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.in_channels * math.prod(self.kernel_size))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @override
    def init_weights(self) -> None:
        # mmcv draws the weight a second time. Masks start at one half, the sigmoid of zero.
        self.reset_parameters()
        super().init_weights()

    def forward(self, x: Tensor) -> Tensor:
        """Compute features of shape ``(N, out_channels, H_out, W_out)``.

        Args:
            x: Features of shape ``(N, in_channels, H, W)``.
        """
        # Two thirds are (y, x) offsets in turn, as for 'DCN'; the last third are the weights.
        points = self.deform_groups * math.prod(self.kernel_size)
        offset, mask = self.conv_offset(x).split([2 * points, points], dim=1)
        # contiguous(), because a view would keep the masks alive for the backward pass as well.
        return self._convolve(x, offset.contiguous(), torch.sigmoid(mask))


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
    """Compute a deformable convolution with torchvision's operator and the gradients of mmcv's.

    It computes in single precision at least. The operator adds offsets to pixel positions in the precision of its
    input, and half precision cannot represent neighboring pixels beyond 256 (bfloat16) or 2048 (float16). On a CPU it
    supports neither.

    Args:
        x: Features of shape ``(N, in_channels, H, W)``.
        offset: Offsets in pixels, y and x in turn, of shape ``(N, 2 * deform_groups * kh * kw, H_out, W_out)``.
        weight: Weight of shape ``(out_channels, in_channels / groups, kh, kw)``.
        bias: Bias of shape ``(out_channels,)``.
        stride: Stride along y and x.
        padding: Zero padding along y and x.
        dilation: Dilation along y and x.
        mask: Weight of each sample, of shape ``(N, deform_groups * kh * kw, H_out, W_out)``.

    Returns:
        Features of shape ``(N, out_channels, H_out, W_out)``, with the dtype of ``offset``, in ``x``'s memory format.
    """
    from torchvision.ops import deform_conv2d as operator

    dtype = torch.float64 if offset.dtype == torch.float64 else torch.float32
    points = offset.to(dtype)
    if points.requires_grad:
        # On the border, where every outer point lies when training starts, mmcv's gradient is zero.
        border = is_on_border(points, (weight.shape[2], weight.shape[3]), stride, padding, dilation)
        points = torch.where(border, points.detach(), points)
    bias = None if bias is None else bias.to(dtype)
    mask = None if mask is None else mask.to(dtype)
    out: Tensor = operator(x.to(dtype), points, weight.to(dtype), bias, stride, padding, dilation, mask)
    # The operator always returns the default memory format.
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        out = out.contiguous(memory_format=torch.channels_last)
    # Under autocast, offset has the dtype that an ordinary convolution would return.
    return out.to(offset.dtype)


def is_on_border(
    offset: Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Return which offsets put their sampling point exactly one pixel before the first row (y) or column (x).

    There the derivative by the offset jumps: mmcv takes 0, torchvision the one from inside the image. The arguments are
    those of ``deform_conv2d``; the result has the shape of ``offset``.
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
    # Each deform group has all of the points.
    return offset + grid.repeat(offset.shape[1] // len(grid), 1, 1) == -1


def rename_old_offsets(state_dict: dict[str, Any], conv: str) -> None:
    """Rename the offsets of a deformable convolution in an old checkpoint, in place.

    mmcv renames them in the layer itself, which since torch 1.13 receives only keys below its own name and misses the
    old ones. So the blocks do it, for mmcv's layers too.

    Args:
        state_dict: The keys of the block that has the convolution, or more.
        conv: Full name of the convolution: ``'layer2.0.conv2'`` turns ``layer2.0.conv2_offset.weight`` into
            ``layer2.0.conv2.conv_offset.weight``.
    """
    for name in ("weight", "bias"):
        key, old_key = f"{conv}.conv_offset.{name}", f"{conv}_offset.{name}"
        if key not in state_dict and old_key in state_dict:
            state_dict[key] = state_dict.pop(old_key)


def _check_divides(name: str, groups: Any, **channels: int) -> None:
    check_channels(name, groups)
    for channels_name, count in channels.items():
        if count % groups:
            raise ArgumentError(f"{name} must divide {channels_name}={count}, got {groups!r}")
