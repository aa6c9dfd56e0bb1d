"""mmcv's deformable convolutions on torchvision's operator."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ....layers.deform import is_on_border
from .precision import at_least_single

__all__ = [
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "deform_conv_forward",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
]


class _Geometry(NamedTuple):
    """How the kernel moves over the input, in the order of torchvision's arguments."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    offset_groups: int

    @property
    def arguments(self) -> tuple[int, ...]:
        return (*self.stride, *self.padding, *self.dilation, self.groups, self.offset_groups)


def deform_conv_forward(
    input: Tensor,  # noqa: A002 - mmcv passes it by this name
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **geometry: int,
) -> None:
    """Convolve at shifted positions (Dai et al., 2017, section 2.1).

    Args:
        input: Features, shape ``(N, C, H, W)``.
        weight: Weight, shape ``(C_out, C / group, kH, kW)``.
        offset: Shifts (y and x in turn) of the kernel's points, ``(N, deformable_group * 2 * kH * kW, H_out, W_out)``.
        output: Receives the result, shape ``(N, C_out, H_out, W_out)``.
        columns: mmcv's scratch space, not used.
        ones: mmcv's scratch space, not used.
        geometry: ``dH``, ``dW`` (strides), ``padH``, ``padW``, ``dilationH``, ``dilationW``, ``group`` and
            ``deformable_group``; ``kH``, ``kW`` and ``im2col_step`` are not used.
    """
    output.copy_(_convolve(input, weight, offset, None, None, _unmodulated(geometry)))


def deform_conv_backward_input(
    input: Tensor,  # noqa: A002
    offset: Tensor,
    gradOutput: Tensor,  # noqa: N803
    gradInput: Tensor,  # noqa: N803
    gradOffset: Tensor,  # noqa: N803
    weight: Tensor,
    columns: Tensor,
    **geometry: int,
) -> None:
    """Compute the gradients of the features and the offsets, into ``gradInput`` and ``gradOffset``."""
    grads = _backward(gradOutput, input, weight, offset, None, _unmodulated(geometry))
    gradInput.copy_(grads.input)
    gradOffset.copy_(grads.offset)


def deform_conv_backward_parameters(
    input: Tensor,  # noqa: A002
    offset: Tensor,
    gradOutput: Tensor,  # noqa: N803
    gradWeight: Tensor,  # noqa: N803
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **geometry: int,
) -> None:
    """Add ``scale`` times the gradient of the weight to ``gradWeight``."""
    # torchvision computes all gradients at once, from a weight whose values this one does not depend on.
    grads = _backward(gradOutput, input, gradWeight, offset, None, _unmodulated(geometry))
    gradWeight.add_(grads.weight.to(gradWeight.dtype), alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Convolve at shifted positions, with a weight for each sample (Zhu et al., 2018, section 3.2).

    Args:
        input: Features, shape ``(N, C, H, W)``.
        weight: Weight, shape ``(C_out, C / group, kernel_h, kernel_w)``.
        bias: Bias, shape ``(C_out,)``.
        ones: mmcv's scratch space, not used.
        offset: Shifts (y and x in turn) of the kernel's points,
            ``(N, deformable_group * 2 * kernel_h * kernel_w, H_out, W_out)``. Larger maps are allowed, as in mmcv:
            see ``_at_size``.
        mask: Weights of the samples, ``(N, deformable_group * kernel_h * kernel_w, H_out, W_out)``, or larger.
        output: Receives the result, shape ``(N, C_out, H_out, W_out)``.
        columns: mmcv's scratch space, not used.
        with_bias: Whether ``bias`` is added.
        geometry: ``stride_h``, ``stride_w``, ``pad_h``, ``pad_w``, ``dilation_h``, ``dilation_w``, ``group`` and
            ``deformable_group``; ``kernel_h`` and ``kernel_w`` are not used.

    Raises:
        ValueError: If ``offset`` or ``mask`` has fewer elements than the output needs.
    """
    offset, mask = _at_size("offset", offset, output.shape[2:]), _at_size("mask", mask, output.shape[2:])
    output.copy_(_convolve(input, weight, offset, mask, bias if with_bias else None, _modulated(geometry)))


def modulated_deform_conv_backward(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Compute all gradients of ``modulated_deform_conv_forward``, into the ``grad_`` tensors."""
    size = grad_output.shape[2:]
    offset, mask = _at_size("offset", offset, size), _at_size("mask", mask, size)
    grads = _backward(grad_output, input, weight, offset, mask, _modulated(geometry))
    grad_input.copy_(grads.input)
    grad_weight.copy_(grads.weight)
    for grad, target in ((grads.offset, grad_offset), (grads.mask, grad_mask)):
        unread = target.flatten(1).shape[1] - grad.flatten(1).shape[1]
        target.copy_(F.pad(grad.flatten(1), (0, unread)).view_as(target))
    if with_bias:
        grad_bias.copy_(grad_output.sum(dim=(0, 2, 3)))


def _at_size(name: str, maps: Tensor, size: torch.Size) -> Tensor:
    """Return ``maps`` with the output's height and width.

    mmcv does not check the size of the maps. It reads the memory of each image as if they had the output's size, and
    ignores what follows. DyHead and GLIP's head rely on this: they pass the maps of one level of the pyramid along
    with the features of the next, which are half as large.
    """
    if maps.shape[2:] == size:
        return maps
    values, needed = maps.flatten(1), maps.shape[1] * size.numel()
    if values.shape[1] < needed:
        raise ValueError(
            f"{name} has height and width {tuple(maps.shape[2:])}; the output's are {tuple(size)}, and smaller maps "
            "are not allowed"
        )
    return values[:, :needed].view(*maps.shape[:2], *size)


class _Gradients(NamedTuple):
    """What torchvision's backward pass returns."""

    input: Tensor
    weight: Tensor
    offset: Tensor
    mask: Tensor
    bias: Tensor


def _unmodulated(given: dict[str, int]) -> _Geometry:
    return _Geometry(
        (given["dH"], given["dW"]),
        (given["padH"], given["padW"]),
        (given["dilationH"], given["dilationW"]),
        given["group"],
        given["deformable_group"],
    )


def _modulated(given: dict[str, int]) -> _Geometry:
    return _Geometry(
        (given["stride_h"], given["stride_w"]),
        (given["pad_h"], given["pad_w"]),
        (given["dilation_h"], given["dilation_w"]),
        given["group"],
        given["deformable_group"],
    )


def _convolve(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: _Geometry,
) -> Tensor:
    x, weight, offset, modulation, shift = at_least_single(
        input,
        weight,
        offset,
        input.new_zeros(len(input), 1) if mask is None else mask,
        input.new_zeros(len(weight)) if bias is None else bias,
    )
    result: Tensor = torch.ops.torchvision.deform_conv2d(
        x, weight, offset, modulation, shift, *geometry.arguments, mask is not None
    )
    return result


def _backward(
    grad: Tensor,
    input: Tensor,  # noqa: A002
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    geometry: _Geometry,
) -> _Gradients:
    grad, x, weight, offset, modulation, bias = at_least_single(
        grad,
        input,
        weight,
        offset,
        input.new_zeros(len(input), 1) if mask is None else mask,
        input.new_zeros(len(weight)),
    )
    computed = torch.ops.torchvision._deform_conv2d_backward(
        grad, x, weight, offset, modulation, bias, *geometry.arguments, mask is not None
    )
    grads = _Gradients(*computed)
    kernel_size = (weight.shape[2], weight.shape[3])
    border = is_on_border(offset, kernel_size, geometry.stride, geometry.padding, geometry.dilation)
    return grads._replace(offset=grads.offset.masked_fill(border, 0))
