"""mmcv's multi-scale deformable attention on PyTorch's ``grid_sample``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["ms_deform_attn_backward", "ms_deform_attn_forward"]


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Weight samples of several feature maps (Zhu et al., 2021, https://arxiv.org/abs/2010.04159, section 4.1).

    Args:
        value: Features of all levels one after another, shape ``(N, pixels, heads, C)``.
        value_spatial_shapes: Height and width of each level, shape ``(levels, 2)``.
        value_level_start_index: First pixel of each level; not used, the shapes tell.
        sampling_locations: Where to sample, (x, y) from 0 to 1, shape ``(N, queries, heads, levels, points, 2)``.
        attention_weights: Weights of the samples, shape ``(N, queries, heads, levels, points)``.
        im2col_step: Images that mmcv handles at a time; not used.

    Returns:
        Attended features, shape ``(N, queries, heads * C)``.
    """
    count, queries, heads, _, _, _ = sampling_locations.shape
    sizes = value_spatial_shapes.tolist()
    grids = (2 * sampling_locations - 1).transpose(1, 2).flatten(0, 1)
    levels: tuple[Tensor, ...] = value.split([h * w for h, w in sizes], dim=1)  # type: ignore[no-untyped-call]
    samples = []
    for level, ((height, width), features) in enumerate(zip(sizes, levels)):
        plane = features.permute(0, 2, 3, 1).reshape(count * heads, -1, height, width)
        samples.append(F.grid_sample(plane, grids[:, :, level], align_corners=False))
    weights = attention_weights.transpose(1, 2).reshape(count * heads, 1, queries, -1)
    attended = (torch.stack(samples, dim=-2).flatten(-2) * weights).sum(-1)
    return attended.view(count, -1, queries).transpose(1, 2).contiguous()


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Compute the gradients of ``ms_deform_attn_forward``, into the ``grad_`` tensors."""
    inputs = [tensor.detach().requires_grad_() for tensor in (value, sampling_locations, attention_weights)]
    with torch.enable_grad():
        output = ms_deform_attn_forward(
            inputs[0], value_spatial_shapes, value_level_start_index, inputs[1], inputs[2], im2col_step
        )
    gradients = torch.autograd.grad(output, inputs, grad_output)
    for target, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), gradients):
        target.copy_(gradient)
