"""mmcv's CARAFE; mmcv has none for the CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["carafe_backward", "carafe_forward", "carafe_naive_backward", "carafe_naive_forward"]


def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """Upsample with a kernel of its own for each pixel (Wang et al., 2019, https://arxiv.org/abs/1905.02188).

    Args:
        features: Features, shape ``(N, C, H, W)``.
        masks: Kernels, shape ``(N, group_size * kernel_size^2, scale_factor * H, scale_factor * W)``.
        output: Receives the result, shape ``(N, C, scale_factor * H, scale_factor * W)``.
        kernel_size: Height and width of the kernels.
        group_size: Groups of channels that share a kernel.
        scale_factor: Factor of height and width.
    """
    total = output.new_zeros(_by_low_pixel(output, group_size, scale_factor).shape)
    kernels = _by_low_pixel(masks, group_size, scale_factor)
    padded = F.pad(features, [kernel_size // 2] * 4)
    for point in range(kernel_size**2):
        shifted = _window(padded, point, kernel_size, group_size)
        total.addcmul_(shifted[..., None, :, None], kernels[:, :, point, None])
    output.copy_(total.reshape(output.shape))


def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Compute the gradients of features and kernels, into ``bottom_grad`` and ``mask_grad``."""
    grad = _by_low_pixel(top_grad, group_size, scale_factor)
    kernels = _by_low_pixel(masks, group_size, scale_factor)
    padding = kernel_size // 2
    padded = F.pad(features, [padding] * 4)
    padded_grad = padded.new_zeros(padded.shape)
    kernel_grads = kernels.new_zeros(kernels.shape)
    for point in range(kernel_size**2):
        shifted = _window(padded, point, kernel_size, group_size)
        kernel_grads[:, :, point] = (grad * shifted[..., None, :, None]).sum(dim=2)
        low = (grad * kernels[:, :, point, None]).sum(dim=(-1, -3))
        _window(padded_grad, point, kernel_size, group_size).add_(low)
    height, width = features.shape[2:]
    bottom_grad.copy_(padded_grad[:, :, padding : padding + height, padding : padding + width])
    mask_grad.copy_(kernel_grads.reshape(masks.shape))


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """As ``carafe_naive_forward``; ``rfeatures`` keeps the features for the backward pass."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """As ``carafe_naive_backward``, from the features that ``carafe_forward`` kept."""
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor)


def _by_low_pixel(tensor: Tensor, groups: int, scale: int) -> Tensor:
    """View ``(N, groups * C, H * scale, W * scale)`` as ``(N, groups, C, H, scale, W, scale)``."""
    count, channels, height, width = tensor.shape
    return tensor.reshape(count, groups, channels // groups, height // scale, scale, width // scale, scale)


def _window(padded: Tensor, point: int, kernel_size: int, groups: int) -> Tensor:
    """What a point of the kernel reads for each pixel, shape ``(N, groups, C / groups, H, W)``; a view."""
    row, column = divmod(point, kernel_size)
    height, width = (size - kernel_size + 1 for size in padded.shape[2:])
    window = padded[:, :, row : row + height, column : column + width]
    return torch.unflatten(window, 1, (groups, -1))
