"""What mmcv's masked convolution of guided anchoring is made of; mmcv has none for the CPU."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["masked_col2im_forward", "masked_im2col_forward"]


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Gather the pixels under the kernel at some positions.

    Args:
        im: Features of one image, shape ``(1, C, H, W)``.
        mask_h_idx: Rows of the positions, shape ``(K,)``.
        mask_w_idx: Columns of the positions, shape ``(K,)``.
        col: Receives the pixels, shape ``(C * kernel_h * kernel_w, K)``.
        kernel_h: Height of the kernel.
        kernel_w: Width of the kernel.
        pad_h: Zeros above and below.
        pad_w: Zeros on the left and right.
    """
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    windows = padded.unfold(1, kernel_h, 1).unfold(2, kernel_w, 1)
    col.copy_(windows[:, mask_h_idx, mask_w_idx].permute(0, 2, 3, 1).reshape(col.shape))


def masked_col2im_forward(
    col: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    im: Tensor,
    height: int,
    width: int,
    channels: int,
) -> None:
    """Put values ``col``, shape ``(channels, K)``, to some positions of ``im``, ``(1, channels, height, width)``."""
    im[0, :, mask_h_idx, mask_w_idx] = col
