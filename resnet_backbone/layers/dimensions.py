"""Layers and checks for 1 (signals), 2 (images) or 3 (volumes) spatial dimensions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _single

from ..errors import ArgumentError
from .build import layer_type
from .tracing import is_tracing

__all__ = [
    "adaptive_avg_pool",
    "avg_pool",
    "avg_pool3",
    "check_dims",
    "layout",
    "max_pool",
    "memory_format",
    "spatial_dims_of",
]

Cfg = dict[str, Any]

_CONVS: Mapping[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# GroupNorm and SyncBatchNorm accept any number of dimensions.
_NORMS: Mapping[int, tuple[type[nn.Module], ...]] = {
    1: (nn.BatchNorm1d, nn.InstanceNorm1d),
    2: (nn.BatchNorm2d, nn.InstanceNorm2d),
    3: (nn.BatchNorm3d, nn.InstanceNorm3d),
}
_AVG_POOLS: Mapping[int, Callable[..., nn.Module]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_AXES: Mapping[int, str] = {1: "L", 2: "H, W", 3: "T, H, W"}


def spatial_dims_of(conv_cfg: Cfg | None) -> int:
    """Return the number of spatial dimensions of a convolution: 1, 2 or 3.

    Args:
        conv_cfg: Its config; ``None`` means ``dict(type='Conv2d')``.

    Raises:
        ArgumentError: ``conv_cfg`` is not a dict with a registered type.
    """
    # Convolutions other than PyTorch's, such as deformable ones, are for images.
    return _find(layer_type("conv_cfg", conv_cfg), _CONVS) or 2


def check_dims(conv_cfg: Cfg | None, norm_cfg: Cfg) -> None:
    """Check that norm layers and convolutions have the same number of dimensions.

    Args:
        conv_cfg: Config of the convolutions.
        norm_cfg: Config of the norm layers.

    Raises:
        ArgumentError: They differ, the norm layer is ``nn.LayerNorm``, which does not normalize channels, or a config
            is not a dict with a registered type.
    """
    dims = spatial_dims_of(conv_cfg)
    norm_type = layer_type("norm_cfg", norm_cfg)
    if norm_type.forward is nn.LayerNorm.forward:
        raise ArgumentError(
            f"norm_cfg must normalize channels, got {dict(norm_cfg)!r}: PyTorch's LayerNorm normalizes the last axis "
            f"of (N, C, {_AXES[dims]}). Use GroupNorm with one group instead: dict(type='GN', num_groups=1)"
        )
    norm_dims = _find(norm_type, _NORMS)
    if norm_dims is None or norm_dims == dims:
        return
    kind = "IN" if issubclass(norm_type, nn.modules.instancenorm._InstanceNorm) else "BN"
    suited = f"{kind}{'' if dims == 2 else f'{dims}d'}"
    conv = "Conv2d" if conv_cfg is None else conv_cfg["type"]
    raise ArgumentError(
        f"norm_cfg must normalize what conv_cfg returns: got norm_cfg={dict(norm_cfg)!r}, for features "
        f"(N, C, {_AXES[norm_dims]}), and convolutions of type {conv!r}, for (N, C, {_AXES[dims]}). "
        f"Write norm_cfg=dict(type='{suited}')"
        + (f", or conv_cfg=dict(type='Conv{norm_dims}d')" if conv_cfg is None else "")
    )


def layout(dims: int, channels: Any = "C") -> str:
    """Return the axes of features as text, such as ``'(N, C, H, W)'``.

    Args:
        dims: 1, 2 or 3.
        channels: Number of channels, or a letter for it.
    """
    return f"(N, {channels}, {_AXES[dims]})"


def memory_format(dims: int) -> torch.memory_format:
    """Return the ``channels_last`` memory format for a number of dimensions.

    Args:
        dims: 1, 2 or 3.

    Raises:
        ArgumentError: ``dims`` is 1, for which PyTorch has no such format.
    """
    if dims == 1:
        raise ArgumentError(
            "channels_last must be False for signals (N, C, L), for which PyTorch has no such format, got True"
        )
    return torch.channels_last if dims == 2 else torch.channels_last_3d


class MaxPool1d(nn.MaxPool1d):
    """Max pooling that exports with a dynamic length; torch.export makes the length of ``nn.MaxPool1d`` constant.

    When traced, it pools an image of one row, which gives the same result but is slower.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Pool features of shape ``(N, C, L)``."""
        if not is_tracing():
            return cast(Tensor, super().forward(x))
        (size,), (stride,), (padding,) = _single(self.kernel_size), _single(self.stride), _single(self.padding)
        return F.max_pool2d(x.unsqueeze(-2), (1, size), (1, stride), (0, padding)).squeeze(-2)


def max_pool(dims: int, kernel_size: int, stride: int, padding: int) -> nn.Module:
    """Build max pooling."""
    pool = {1: MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}[dims]
    return pool(kernel_size=kernel_size, stride=stride, padding=padding)


def avg_pool(dims: int, size: int) -> nn.Module:
    """Build average pooling with a kernel and a stride of ``size``.

    Its output has the size of a strided convolution's; padding does not count.
    """
    return _AVG_POOLS[dims](size, size, ceil_mode=True, count_include_pad=False)


def avg_pool3(dims: int, stride: int) -> nn.Module:
    """Build average pooling with a kernel of 3 and a padding of 1, which counts."""
    return _AVG_POOLS[dims](3, stride, padding=1)


def adaptive_avg_pool(dims: int) -> nn.Module:
    """Build global average pooling."""
    return {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[dims](1)


def _find(layer: type, table: Mapping[int, Any]) -> int | None:
    return next((dims for dims, bases in table.items() if issubclass(layer, bases)), None)
