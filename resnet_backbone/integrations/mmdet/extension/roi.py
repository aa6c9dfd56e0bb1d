"""mmcv's pooling of regions of interest.

Averages are torchvision's operator. What torchvision does not have, maxima of samples, shifted bins, and Fast R-CNN's
pooling with mmcv's rounding, is sampled here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .precision import at_least_single

__all__ = [
    "deform_roi_pool_backward",
    "deform_roi_pool_forward",
    "roi_align_backward",
    "roi_align_forward",
    "roi_pool_backward",
    "roi_pool_forward",
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
        aligned: Whether pixel centres lie at half integers.
    """
    features, rois = at_least_single(input, rois)
    bins = (aligned_height, aligned_width)
    if pool_mode == 1:
        pooled = torch.ops.torchvision.roi_align(features, rois, spatial_scale, *bins, sampling_ratio, aligned)
        output.copy_(pooled)
        return
    output.fill_(LOWEST)
    argmax_y.fill_(-1)
    argmax_x.fill_(-1)
    boxes = _scale(rois, spatial_scale, aligned)
    for part, grid in _parts(boxes, bins, sampling_ratio, features.shape[1]):
        points = _sample_points(boxes.part(part), bins, grid)
        samples = _bilinear(features, points)
        first = samples.argmax(dim=3)
        maximum = samples.gather(3, first.unsqueeze(3)).squeeze(3)
        found = maximum > LOWEST
        for target, value in (
            (output, maximum),
            (argmax_y, points.y.gather(3, first)),
            (argmax_x, points.x.gather(3, first)),
        ):
            value = torch.where(found, value, target.flatten()[0].to(value.dtype))
            target[part] = value.permute(0, 3, 1, 2).to(target.dtype)


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
    corners = _corners(argmax_y.to(grad.dtype), argmax_x.to(grad.dtype), height, width)
    plane = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=grad.device)
    index = plane[:, :, None, None, None] * (height * width) + corners.pixel
    # No sample lies at the row of a maximum of nothing, -1, but one may lie on it.
    weight = corners.weight * (argmax_y != -1).unsqueeze(-1)
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
    bins = (pooled_height, pooled_width)
    boxes = _scale(rois, spatial_scale, aligned=True)
    output.zero_()
    for part, grid in _parts(boxes, bins, sampling_ratio, features.shape[1]):
        shifts = offset[part] if offset.numel() else None
        output[part] = _average_shifted(features, boxes.part(part), bins, grid, shifts, gamma).to(output.dtype)


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
    bins = (pooled_height, pooled_width)
    boxes = _scale(rois, spatial_scale, aligned=True)
    features = features.detach().requires_grad_()
    for part, grid in _parts(boxes, bins, sampling_ratio, features.shape[1]):
        shifts = offset[part].detach().requires_grad_() if offset.numel() else None
        with torch.enable_grad():
            pooled = _average_shifted(features, boxes.part(part), bins, grid, shifts, gamma)
        inputs = (features,) if shifts is None else (features, shifts)
        gradients = torch.autograd.grad(pooled, inputs, grad[part])
        grad_input += gradients[0].to(grad_input.dtype)
        if shifts is not None:
            grad_offset[part] = gradients[1].to(grad_offset.dtype)


def roi_pool_forward(
    input: Tensor,  # noqa: A002
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Take the maximum of the pixels in each bin of each region (Girshick, 2015, section 2.1).

    Args:
        input: Features, shape ``(N, C, H, W)``.
        rois: Index of the image, and the box in the image's pixels, shape ``(K, 5)``.
        output: Receives the maxima, shape ``(K, C, pooled_height, pooled_width)``; of a bin without a pixel it is 0.
        argmax: Receives the pixel that each comes from, counted row by row, or -1.
        pooled_height: Bins in a column.
        pooled_width: Bins in a row.
        spatial_scale: Size of a pixel of the image in pixels of the features.
    """
    features, rois = at_least_single(input, rois)
    height, width = features.shape[2:]
    by_pixel = features.permute(0, 2, 3, 1).flatten(0, 2)
    # Boxes include their last pixel.
    ends = (rois[:, 3:] + 1) * spatial_scale
    x_first, x_last = _pixel_bins(rois[:, 1] * spatial_scale, ends[:, 0], pooled_width, width)
    y_first, y_last = _pixel_bins(rois[:, 2] * spatial_scale, ends[:, 1], pooled_height, height)
    largest = int((y_last - y_first).max() * (x_last - x_first).max()) if len(rois) else 0
    step = max(1, NUMBERS_PER_PART // max(1, largest * features.shape[1] * pooled_height * pooled_width))
    output.zero_()
    argmax.fill_(-1)
    for first_row in range(0, len(rois), step):
        part = torch.arange(first_row, min(first_row + step, len(rois)), device=rois.device)
        row, row_valid = _pixels(y_first[part], y_last[part])
        column, column_valid = _pixels(x_first[part], x_last[part])
        pixel = (row[:, :, None, :, None] * width + column[:, None, :, None, :]).flatten(3)
        valid = (row_valid[:, :, None, :, None] & column_valid[:, None, :, None, :]).flatten(3)
        if not pixel.shape[3]:
            continue
        image = rois[part, 0].long()[:, None, None, None]
        values = by_pixel[image * (height * width) + pixel.where(valid, pixel.new_tensor(0))]
        values = values.where(valid.unsqueeze(4), values.new_tensor(-torch.inf))
        first = values.argmax(dim=3)
        filled = valid.any(dim=3, keepdim=True)
        maximum = values.gather(3, first.unsqueeze(3)).squeeze(3).where(filled, values.new_tensor(0))
        output[part] = maximum.permute(0, 3, 1, 2).to(output.dtype)
        argmax[part] = pixel.gather(3, first).where(filled, pixel.new_tensor(-1)).permute(0, 3, 1, 2).to(argmax.dtype)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Compute the gradient of ``roi_pool_forward`` with regard to the features, into ``grad_input``."""
    channels, height, width = grad_input.shape[1:]
    plane = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
    index = plane[:, :, None, None] * (height * width) + argmax.long().clamp(min=0)
    flat = torch.zeros_like(grad_input).flatten()
    flat.index_add_(0, index.flatten(), (grad_output * (argmax >= 0)).flatten())
    grad_input.copy_(flat.view_as(grad_input))


class _Boxes(NamedTuple):
    """Regions in pixels of the features, each of shape ``(K,)``."""

    image: Tensor
    y: Tensor
    x: Tensor
    height: Tensor
    width: Tensor

    def part(self, rows: Tensor) -> _Boxes:
        """Select regions."""
        return _Boxes(self.image[rows], self.y[rows], self.x[rows], self.height[rows], self.width[rows])


class _Points(NamedTuple):
    """Where the samples of each bin lie: the image, shape ``(K,)``, and y and x, ``(K, bins_y, bins_x, samples)``."""

    image: Tensor
    y: Tensor
    x: Tensor


class _Corners(NamedTuple):
    """The four pixels around each sample, and their weights: both of the samples' shape, and one dimension of 4."""

    pixel: Tensor
    weight: Tensor


def _scale(rois: Tensor, spatial_scale: float, aligned: bool) -> _Boxes:
    x1, y1, x2, y2 = (rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)).unbind(1)
    height, width = y2 - y1, x2 - x1
    if not aligned:
        height, width = height.clamp(min=1), width.clamp(min=1)
    return _Boxes(rois[:, 0].long(), y1, x1, height, width)


def _parts(
    boxes: _Boxes, bins: tuple[int, int], sampling_ratio: int, channels: int
) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Yield the indices of regions whose bins have the same numbers of samples, and these numbers."""
    if sampling_ratio > 0:
        grids = torch.full((len(boxes.image), 2), sampling_ratio)
    else:
        grids = torch.stack(((boxes.height / bins[0]).ceil(), (boxes.width / bins[1]).ceil()), dim=1).long().cpu()
    for rows, columns in sorted(set(map(tuple, grids.tolist()))):
        if rows <= 0 or columns <= 0:
            continue
        same = (grids == torch.tensor((rows, columns))).all(dim=1).nonzero().squeeze(1).to(boxes.image.device)
        step = max(1, NUMBERS_PER_PART // (rows * columns * bins[0] * bins[1] * channels))
        for first in range(0, len(same), step):
            yield same[first : first + step], (rows, columns)


def _sample_points(
    boxes: _Boxes, bins: tuple[int, int], grid: tuple[int, int], shift: tuple[Tensor, Tensor] | None = None
) -> _Points:
    """Spread samples evenly over each bin; a shift (y, x) has the shape ``(K, bins_y, bins_x)``."""
    y, x = boxes.y[:, None, None], boxes.x[:, None, None]
    if shift is not None:
        y, x = y + shift[0], x + shift[1]

    def spread(start: Tensor, size: Tensor, count: int, samples: int, dim: int) -> Tensor:
        bin_size = (size / count)[:, None, None, None]
        bin_index = torch.arange(count, dtype=start.dtype, device=start.device)
        bin_index = bin_index.view(1, -1, 1, 1) if dim == 1 else bin_index.view(1, 1, -1, 1)
        inside = torch.arange(samples, dtype=start.dtype, device=start.device) + 0.5
        return start.unsqueeze(3) + bin_index * bin_size + inside * bin_size / samples

    rows, columns = (spread(y, boxes.height, bins[0], grid[0], 1), spread(x, boxes.width, bins[1], grid[1], 2))
    shape = (len(boxes.image), *bins, *grid)
    return _Points(
        boxes.image,
        rows.unsqueeze(4).expand(shape).flatten(3),
        columns.unsqueeze(3).expand(shape).flatten(3),
    )


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> _Corners:
    """Interpolate bilinearly. Up to one pixel outside counts as the border, what lies beyond as zero."""
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y_low, y_high, y_part = _neighbours(y, height)
    x_low, x_high, x_part = _neighbours(x, width)
    pixel = torch.stack(
        (y_low * width + x_low, y_low * width + x_high, y_high * width + x_low, y_high * width + x_high), dim=-1
    )
    weight = torch.stack(
        ((1 - y_part) * (1 - x_part), (1 - y_part) * x_part, y_part * (1 - x_part), y_part * x_part), dim=-1
    )
    return _Corners(pixel, weight * inside.unsqueeze(-1))


def _neighbours(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels on both sides of a position, and how far it lies towards the second.

    At the border the second is the first, and the gradient of the position is that of the unclamped one, as in mmcv.
    """
    clamped = position.detach().clamp(0, size - 1)
    low = clamped.long()
    part = clamped - low
    if position.requires_grad:
        part = part + (position - position.detach())
    return low, (low + 1).clamp(max=size - 1), part


def _bilinear(features: Tensor, points: _Points) -> Tensor:
    """Sample features at points; shape ``(K, bins_y, bins_x, samples, C)``."""
    height, width = features.shape[2:]
    by_pixel = features.permute(0, 2, 3, 1).flatten(0, 2)
    corners = _corners(points.y, points.x, height, width)
    index = corners.pixel + (points.image * (height * width)).view(-1, 1, 1, 1, 1)
    samples = torch.zeros((), dtype=features.dtype, device=features.device)
    for corner in range(4):
        samples = samples + corners.weight[..., corner, None] * by_pixel[index[..., corner]]
    return samples


def _average_shifted(
    features: Tensor, boxes: _Boxes, bins: tuple[int, int], grid: tuple[int, int], shifts: Tensor | None, gamma: float
) -> Tensor:
    """Average the samples of shifted bins; shape ``(K, C, bins_y, bins_x)``."""
    shift = None
    if shifts is not None:
        height, width = boxes.height[:, None, None], boxes.width[:, None, None]
        shift = (gamma * height * shifts[:, 1], gamma * width * shifts[:, 0])
    return _bilinear(features, _sample_points(boxes, bins, grid, shift)).mean(dim=3).permute(0, 3, 1, 2)


def _pixel_bins(start: Tensor, end: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
    """First pixel of each bin, and the one after its last, both of shape ``(K, count)``."""
    bin_size = ((end - start) / count)[:, None]
    edges = torch.arange(count + 1, dtype=start.dtype, device=start.device) * bin_size + start[:, None]
    first = edges[:, :-1].floor().clamp(0, size).long()
    last = edges[:, 1:].ceil().clamp(0, size).long()
    # A region of no size has no pixels.
    return first, torch.where((end > start)[:, None], last, first)


def _pixels(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels of each bin, ``(K, count, longest)``, and which of them are in it."""
    longest = int((last - first).clamp(min=0).max()) if len(first) else 0
    pixels = first.unsqueeze(2) + torch.arange(longest, device=first.device)
    return pixels, pixels < last.unsqueeze(2)
