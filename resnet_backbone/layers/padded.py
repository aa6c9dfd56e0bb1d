"""Signals of different lengths in one batch, computed as if each were alone."""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.utils import _single

from .tracing import has_hooks

__all__ = ["Padded", "geometry"]


class Padded(NamedTuple):
    """Features of signals of different lengths, zero beyond the end of each.

    Attributes:
        features: Tensor of shape ``(N, C, L)``.
        lengths: Number of positions of each signal, ``(N,)``.
    """

    features: Tensor
    lengths: Tensor

    def apply(self, *layers: nn.Module) -> Padded:
        """Apply layers in sequence, to each signal as if it were alone."""
        return reduce(_apply, layers, self)

    def mask(self) -> Tensor:
        """Return which positions belong to the signals, of shape ``(N, 1, L)``."""
        return (torch.arange(self.features.shape[-1], device=self.features.device) < self.lengths[:, None])[:, None]

    def without_padding(self) -> Padded:
        """Set all positions beyond the ends to zero, including NaNs."""
        return Padded(self.features.masked_fill(~self.mask(), 0), self.lengths)

    def mean(self) -> Tensor:
        """Return the mean of each signal, of shape ``(N, C)``."""
        return self.features.sum(dim=-1) / self.lengths[:, None]


def geometry(layer: Any) -> tuple[int, ...]:
    """Return kernel size, stride, padding and dilation of a 1D convolution or max pooling."""
    return tuple(_single(getattr(layer, name))[0] for name in ("kernel_size", "stride", "padding", "dilation"))


def _apply(x: Padded, layer: nn.Module) -> Padded:
    if isinstance(layer, nn.ReLU):  # keeps zeros
        return Padded(layer(x.features), x.lengths)
    if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
        return Padded(_batch_norm(x, layer), x.lengths)
    features, lengths = layer(x.features), x.lengths
    if isinstance(layer, nn.AvgPool1d):
        # Divide by the number of valid positions under the kernel.
        (size,) = _single(layer.kernel_size)
        share = layer(x.mask().to(features.dtype))
        features, lengths = features / share.clamp(min=1 / size), (lengths + size - 1) // size
    elif hasattr(layer, "kernel_size"):
        size, stride, padding, dilation = geometry(layer)
        lengths = (lengths + 2 * padding - dilation * (size - 1) - 1) // stride + 1
    return Padded(features, lengths).without_padding()


def _batch_norm(x: Padded, norm: _BatchNorm) -> Tensor:
    """Normalize by the mean and variance over the valid positions, and update the running statistics.

    The shapes of masked sums do not depend on the lengths, so this does not synchronize with a GPU and can be compiled.
    """
    if type(norm) is not nn.BatchNorm1d or has_hooks(norm) or len(x.features) == 1:
        # Other layers, such as SyncBatchNorm, compute their own statistics, from only the valid positions.
        mask = x.mask().transpose(1, 2)
        normed: Tensor = norm(x.features.transpose(1, 2)[mask[..., 0]])
        return normed.new_zeros(*mask.shape[:2], norm.num_features).masked_scatter(mask, normed).transpose(1, 2)
    features = x.features if x.features.dtype == torch.float64 else x.features.float()
    padding, count = ~x.mask(), x.lengths.sum()
    mean = features.sum((0, 2)) / count
    centered = (features - mean[:, None]).masked_fill(padding, 0)
    variance = centered.square().sum((0, 2)) / count
    if norm.training and norm.track_running_stats:
        _update_running_statistics(norm, mean.detach(), variance.detach() * count / (count - 1))
    out = centered * (variance + norm.eps).rsqrt()[:, None]
    if norm.affine:
        out = torch.addcmul(norm.bias[:, None], out, norm.weight[:, None]).masked_fill(padding, 0)
    return out.to(x.features.dtype)


def _update_running_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Update running mean and variance as ``nn.BatchNorm1d`` does."""
    batches: Any = norm.num_batches_tracked
    batches.add_(1)
    factor = 1 / float(batches) if norm.momentum is None else norm.momentum
    running: Any
    for running, of_batch in ((norm.running_mean, mean), (norm.running_var, variance)):
        running.lerp_(of_batch.to(running.dtype), factor)
