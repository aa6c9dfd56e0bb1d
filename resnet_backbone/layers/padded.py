"""Signals of unequal length in one batch: every layer computes what it computes for each signal alone."""

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
    """Features of signals of unequal length, with zeros behind the end of each.

    Attributes:
        features: Tensor of shape ``(N, C, L)``.
        lengths: Number of positions of each signal, ``(N,)``.
    """

    features: Tensor
    lengths: Tensor

    def apply(self, *layers: nn.Module) -> Padded:
        """Apply layers one after the other, each as to every signal alone."""
        return reduce(_apply, layers, self)

    def mask(self) -> Tensor:
        """Whether a position belongs to the signal: ``(N, 1, L)``."""
        return (torch.arange(self.features.shape[-1], device=self.features.device) < self.lengths[:, None])[:, None]

    def without_padding(self) -> Padded:
        """Set what lies behind the signals' ends to zero, NaNs included."""
        return Padded(self.features.masked_fill(~self.mask(), 0), self.lengths)

    def mean(self) -> Tensor:
        """Average over each signal: ``(N, C)``."""
        return self.features.sum(dim=-1) / self.lengths[:, None]


def geometry(layer: Any) -> tuple[int, ...]:
    """Kernel size, stride, padding and dilation of a convolution or max pooling over one dimension."""
    return tuple(_single(getattr(layer, name))[0] for name in ("kernel_size", "stride", "padding", "dilation"))


def _apply(x: Padded, layer: nn.Module) -> Padded:
    if isinstance(layer, nn.ReLU):  # which keeps the zeros
        return Padded(layer(x.features), x.lengths)
    if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
        return Padded(_batch_norm(x, layer), x.lengths)
    features, lengths = layer(x.features), x.lengths
    if isinstance(layer, nn.AvgPool1d):
        # Positions behind the end do not count: neither in the sum, as zeros, nor in what it is divided by.
        (size,) = _single(layer.kernel_size)
        share = layer(x.mask().to(features.dtype))
        features, lengths = features / share.clamp(min=1 / size), (lengths + size - 1) // size
    elif hasattr(layer, "kernel_size"):
        size, stride, padding, dilation = geometry(layer)
        lengths = (lengths + 2 * padding - dilation * (size - 1) - 1) // stride + 1
    return Padded(features, lengths).without_padding()


def _batch_norm(x: Padded, norm: _BatchNorm) -> Tensor:
    """Normalise by the mean and variance of the signals' own positions, and update the running statistics.

    Masked sums, whose shapes do not depend on the lengths: nothing waits for a GPU, and compilers can follow.
    """
    if type(norm) is not nn.BatchNorm1d or has_hooks(norm) or len(x.features) == 1:
        # Another layer, such as SyncBatchNorm, computes its own statistics: it gets these positions and no others.
        mask = x.mask().transpose(1, 2)
        normed: Tensor = norm(x.features.transpose(1, 2)[mask[..., 0]])
        return normed.new_zeros(*mask.shape[:2], norm.num_features).masked_scatter(mask, normed).transpose(1, 2)
    features = x.features if x.features.dtype == torch.float64 else x.features.float()
    padding, count = ~x.mask(), x.lengths.sum()
    mean = features.sum((0, 2)) / count
    centred = (features - mean[:, None]).masked_fill(padding, 0)
    variance = centred.square().sum((0, 2)) / count
    if norm.training and norm.track_running_stats:
        _update_running_statistics(norm, mean.detach(), variance.detach() * count / (count - 1))
    out = centred * (variance + norm.eps).rsqrt()[:, None]
    if norm.affine:
        out = torch.addcmul(norm.bias[:, None], out, norm.weight[:, None]).masked_fill(padding, 0)
    return out.to(x.features.dtype)


def _update_running_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move them towards those of the batch, as ``nn.BatchNorm1d`` does."""
    batches: Any = norm.num_batches_tracked
    batches.add_(1)
    factor = 1 / float(batches) if norm.momentum is None else norm.momentum
    running: Any
    for running, of_batch in ((norm.running_mean, mean), (norm.running_var, variance)):
        running.lerp_(of_batch.to(running.dtype), factor)
