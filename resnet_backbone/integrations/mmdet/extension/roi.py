"""mmcv's RoIAlign and deformable RoI pooling.

Averages are torchvision's operator. Maxima of samples and shifted bins, which it does not have, are sampled here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .precision import at_least_single

__all__ = [
    "deform_roi_pool_backward",
    "deform_roi_pool_forward",
    "roi_align_backward",
    "roi_align_forward",
]

# Regions are sampled in parts of about this many numbers, to bound the memory.
NUMBERS_PER_PART = 2**23

# mmcv's maximum of no samples.
LOWEST = -10000.0


def roi_align_forward(
    input: Tensor,  # noqa: A002 - mmcv passes it by this name
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool the samples in each bin of each region (He et al., 2017, section 3).

    Args:
        input: Features, shape ``(N, C, H, W)``.
        rois: Index of the image, and the box in the image's pixels, shape ``(K, 5)``.
        output: Receives the pooled features, shape ``(K, C, aligned_height, aligned_width)``.
        argmax_y: For maxima, receives the row that each comes from, shape of ``output``.
        argmax_x: For maxima, receives the column.
        aligned_height: Bins in a column.
        aligned_width: Bins in a row.
        spatial_scale: Size of a pixel of the image in pixels of the features.
        sampling_ratio: Samples in each row and column of a bin; 0 for as many as the bin has pixels.
        pool_mode: 0 for maxima, 1 for averages.
        aligned: Whether pixel centers lie at half integers.
    """
    features, rois = at_least_single(input, rois)
    bins = (aligned_height, aligned_width)
    if pool_mode == 1:
        output.copy_(torch.ops.torchvision.roi_align(features, rois, spatial_scale, *bins, sampling_ratio, aligned))
        return
    results = ((output, LOWEST), (argmax_y, -1.0), (argmax_x, -1.0))
    for result, nothing in results:
        result.fill_(nothing)
    for part, y, x in _sample_points(rois, bins, spatial_scale, sampling_ratio, features.shape[1], aligned):
        maximum, first = _bilinear(features, rois[part, 0], y, x).max(dim=3)
        is_nothing = ~(maximum > LOWEST)
        for (result, nothing), values in zip(results, (maximum, y.gather(3, first), x.gather(3, first)), strict=True):
            result[part] = values.masked_fill(is_nothing, nothing).permute(0, 3, 1, 2).to(result.dtype)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Compute the gradient of ``roi_align_forward`` with regard to the features, into ``grad_input``."""
    grad, rois = at_least_single(grad_output, rois)
    bins = (aligned_height, aligned_width)
    if pool_mode == 1:
        grad_input.copy_(
            torch.ops.torchvision._roi_align_backward(
                grad, rois, spatial_scale, *bins, *grad_input.shape, sampling_ratio, aligned
            )
        )
        return
    channels, height, width = grad_input.shape[1:]
    pixel, weight = _corners(argmax_y.to(grad.dtype), argmax_x.to(grad.dtype), height, width)
    plane = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=grad.device)
    index = plane[:, :, None, None, None] * (height * width) + pixel
    # No sample lies at the row of a maximum of nothing, -1, but one may lie on it.
    weight = weight * (argmax_y != -1).unsqueeze(-1)
    flat = torch.zeros(grad_input.numel(), dtype=grad.dtype, device=grad.device)
    flat.index_add_(0, index.flatten(), (grad.unsqueeze(-1) * weight).flatten())
    grad_input.copy_(flat.view_as(grad_input))


def deform_roi_pool_forward(
    input: Tensor,  # noqa: A002
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Average the samples in each bin of each region, each bin shifted (Dai et al., 2017, section 2.2).

    Args:
        input: Features, shape ``(N, C, H, W)``.
        rois: Index of the image, and the box in the image's pixels, shape ``(K, 5)``.
        offset: Shift (x, y) of each bin in sizes of its region, ``(K, 2, pooled_height, pooled_width)``, or empty.
        output: Receives the pooled features, shape ``(K, C, pooled_height, pooled_width)``.
        pooled_height: Bins in a column.
        pooled_width: Bins in a row.
        spatial_scale: Size of a pixel of the image in pixels of the features.
        sampling_ratio: Samples in each row and column of a bin; 0 for as many as the bin has pixels.
        gamma: Factor of the shifts.
    """
    features, rois, offset = at_least_single(input, rois, offset)
    output.zero_()
    for part, y, x in _sample_points(
        rois,
        (pooled_height, pooled_width),
        spatial_scale,
        sampling_ratio,
        features.shape[1],
        offset=offset,
        gamma=gamma,
    ):
        output[part] = _average(features, rois[part, 0], y, x).to(output.dtype)


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,  # noqa: A002
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Compute the gradients of ``deform_roi_pool_forward``, into ``grad_input`` and ``grad_offset``."""
    grad, features, rois, offset = at_least_single(grad_output, input, rois, offset)
    features, offset = features.detach().requires_grad_(), offset.detach().requires_grad_()
    with torch.enable_grad():
        for part, y, x in _sample_points(
            rois,
            (pooled_height, pooled_width),
            spatial_scale,
            sampling_ratio,
            features.shape[1],
            offset=offset,
            gamma=gamma,
        ):
            pooled = _average(features, rois[part, 0], y, x)
            gradients = torch.autograd.grad(pooled, (features, offset), grad[part], allow_unused=True)
            grad_input += gradients[0]
            # Without offsets they are empty.
            if gradients[1] is not None:
                grad_offset += gradients[1]


def _sample_points(
    rois: Tensor,
    bins: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    channels: int,
    aligned: bool = True,
    offset: Tensor | None = None,
    gamma: float = 0.0,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Spread samples evenly over each bin.

    Yields:
        The indices of some regions, and y and x of their samples in pixels of the features, each of shape ``(regions,
        bins_y, bins_x, samples)``. Regions come together whose bins have the same numbers of samples.
    """
    boxes = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    start, size = boxes[:, [1, 0]], boxes[:, [3, 2]] - boxes[:, [1, 0]]
    if not aligned:
        size = size.clamp(min=1)
    bin_size = size / size.new_tensor(bins)
    grids = bin_size.ceil().long() if sampling_ratio <= 0 else torch.full_like(size, sampling_ratio, dtype=torch.long)
    for grid in sorted(set(map(tuple, grids.tolist()))):
        if min(grid) <= 0:
            continue
        same = (grids == grids.new_tensor(grid)).all(dim=1).nonzero().squeeze(1)
        length = max(1, NUMBERS_PER_PART // (math.prod(grid) * math.prod(bins) * channels))
        for begin in range(0, len(same), length):
            part = same[begin : begin + length]
            starts, steps = start[part, :, None, None], bin_size[part, :, None, None]
            if offset is not None and offset.numel():
                starts = starts + gamma * size[part, :, None, None] * offset[part].flip(1)
            y = _spread(starts[:, 0], steps[:, 0], torch.arange(bins[0], device=rois.device)[:, None], grid[0])
            x = _spread(starts[:, 1], steps[:, 1], torch.arange(bins[1], device=rois.device), grid[1])
            shape = (len(part), *bins, *grid)
            yield part, y.unsqueeze(4).expand(shape).flatten(3), x.unsqueeze(3).expand(shape).flatten(3)


def _spread(start: Tensor, step: Tensor, bin_index: Tensor, samples: int) -> Tensor:
    """Spread samples along one axis of each bin."""
    inside = torch.arange(samples, device=start.device) + 0.5
    return (start + bin_index * step).unsqueeze(3) + inside * step.unsqueeze(3) / samples


def _bilinear(features: Tensor, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Sample features at the points of each region; shape ``(regions, bins_y, bins_x, samples, C)``."""
    height, width = features.shape[2:]
    by_pixel = features.permute(0, 2, 3, 1).flatten(0, 2)
    pixel, weight = _corners(y, x, height, width)
    pixel = pixel + (image.long() * (height * width)).view(-1, 1, 1, 1, 1)
    samples = weight[..., 0, None] * by_pixel[pixel[..., 0]]
    for corner in range(1, 4):
        samples = samples + weight[..., corner, None] * by_pixel[pixel[..., corner]]
    return samples


def _average(features: Tensor, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Average the samples of each bin; shape ``(regions, C, bins_y, bins_x)``."""
    return _bilinear(features, image, y, x).mean(dim=3).permute(0, 3, 1, 2)


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the four pixels around each point, and their weights, both with a last dimension of 4.

    Up to one pixel outside counts as the border, what lies beyond as zero.
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y_low, y_high, y_part = _neighbors(y, height)
    x_low, x_high, x_part = _neighbors(x, width)
    rows = torch.stack((y_low, y_low, y_high, y_high), dim=-1)
    columns = torch.stack((x_low, x_high, x_low, x_high), dim=-1)
    weight = torch.stack((1 - y_part, 1 - y_part, y_part, y_part), dim=-1)
    weight = weight * torch.stack((1 - x_part, x_part, 1 - x_part, x_part), dim=-1)
    return rows * width + columns, weight * inside.unsqueeze(-1)


def _neighbors(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels on both sides of a position, and how far it lies towards the second.

    At the border the second is the first, and the gradient of the position is that of the unclamped one, as in mmcv.
    """
    clamped = position.detach().clamp(0, size - 1)
    low = clamped.long()
    part = clamped - low
    if position.requires_grad:
        part = part + (position - position.detach())
    return low, (low + 1).clamp(max=size - 1), part
