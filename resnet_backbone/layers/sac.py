"""Switchable atrous convolution on torchvision's operator: mmcv's 'SAC' without compiled mmcv."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.fx
from mmcv.cnn import ConvAWS2d
from torch import Tensor, nn
from torch.nn import functional as F

from .deform import deform_conv2d

# One step of a symbolic trace.
torch.fx.wrap("deform_conv2d")

__all__ = ["SAConv2d"]


class SAConv2d(ConvAWS2d):
    """Switchable atrous convolution (Qiao et al., 2020, https://arxiv.org/abs/2006.02334, section 3.2).

    A learned switch mixes, at each position, a convolution at ``dilation`` and one at three times the dilation. Both
    share a standardized weight, up to a learned difference. Before and after, global context is added: the mean of the
    features, through a 1x1 convolution.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel_size: Size of the kernel; 3 with ``use_deform``.
        stride: Stride.
        padding: Zero padding on each side.
        dilation: Dilation of the first convolution.
        groups: Number of groups.
        bias: Whether the layer has a bias. Like mmcv's, it does not use it.
        use_deform: Whether both convolutions are deformable.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        use_deform: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.use_deform = use_deform
        self.switch = nn.Conv2d(in_channels, 1, kernel_size=1, stride=stride)
        self.weight_diff = nn.Parameter(torch.empty_like(self.weight))
        self.pre_context = nn.Conv2d(in_channels, in_channels, kernel_size=1)
        self.post_context = nn.Conv2d(out_channels, out_channels, kernel_size=1)
        if use_deform:
            # y and x of each of the 9 points.
            self.offset_s = nn.Conv2d(in_channels, 18, kernel_size=3, padding=1, stride=stride)
            self.offset_l = nn.Conv2d(in_channels, 18, kernel_size=3, padding=1, stride=stride)
        self.init_weights()

    def init_weights(self) -> None:
        """Start as an ordinary convolution with a standardized weight: the switch is 1, the rest zero."""
        nn.init.zeros_(self.weight_diff)
        convs = [self.switch, self.pre_context, self.post_context]
        convs += [self.offset_s, self.offset_l] if self.use_deform else []
        for conv in convs:
            nn.init.zeros_(conv.weight)
            nn.init.constant_(cast(Tensor, conv.bias), 1 if conv is self.switch else 0)

    def forward(self, x: Tensor) -> Tensor:
        """Compute features of shape ``(N, out_channels, H_out, W_out)``.

        Args:
            x: Features of shape ``(N, in_channels, H, W)``, where ``H`` and ``W`` are at least 3.
        """
        x = x + self.pre_context(F.adaptive_avg_pool2d(x, 1)).expand_as(x)
        local = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel_size=5, stride=1)
        switch = self.switch(local)
        weight = self._get_weight(self.weight)
        near = self._convolve(x, weight, 1, self.offset_s(local) if self.use_deform else None)
        weight = weight + self.weight_diff
        far = self._convolve(x, weight, 3, self.offset_l(local) if self.use_deform else None)
        out = switch * near + (1 - switch) * far
        return cast(Tensor, out + self.post_context(F.adaptive_avg_pool2d(out, 1)).expand_as(out))

    def _convolve(self, x: Tensor, weight: Tensor, rate: int, offset: Tensor | None) -> Tensor:
        padding: Any = tuple(rate * int(size) for size in self.padding)
        dilation: Any = tuple(rate * size for size in self.dilation)
        if offset is None:
            zeros = weight.new_zeros(self.out_channels)
            return F.conv2d(x, weight, zeros, self.stride, padding, dilation, self.groups)
        return deform_conv2d(x, offset, weight, None, cast(Any, self.stride), padding, dilation)
