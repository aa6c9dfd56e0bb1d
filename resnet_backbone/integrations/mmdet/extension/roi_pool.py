"""Fast R-CNN's pooling of regions of interest, with mmcv's rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import at_least_single

__all__ = ["roi_pool_backward", "roi_pool_forward"]

# Regions are pooled in parts of about this many numbers, to bound the memory.
NUMBERS_PER_PART = 2**23


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
        maximum, first = values.max(dim=3)
        filled = valid.any(dim=3, keepdim=True)
        output[part] = maximum.where(filled, values.new_tensor(0)).permute(0, 3, 1, 2).to(output.dtype)
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
