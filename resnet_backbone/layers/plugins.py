"""What a plugin must be, checked where its name is still known: in the block's constructor, and in its forward pass."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, ArgumentTypeError
from .dimensions import layout

__all__ = ["check_output", "try_out"]


def try_out(layer: nn.Module, name: str, in_channels: int, dims: int = 2) -> None:
    """Refuse a plugin that does not return what it must for an image of 8 by 8 pixels, or a signal of 8 samples.

    A copy is run, in eval mode and with random numbers of its own: neither the plugin nor the seed notices.

    Args:
        layer: The plugin.
        name: What it is called in the message.
        in_channels: Number of channels that it receives and must return.
        dims: Number of dimensions of the features: 1, 2 or 3.

    Raises:
        ArgumentError: It has no ``forward`` of one argument, takes features of another number of dimensions, returns no
            tensor, or one of another shape.
    """
    _check_forward(layer, name)
    try:
        out = _run_copy(layer, in_channels, dims)
    except Exception as error:
        # It may need larger images or another device: forward looks at its output again.
        for other in {1, 2, 3} - {dims}:
            if _runs(layer, in_channels, other):
                raise ArgumentError(
                    f"plugins: {name} takes features {layout(other)}, and conv_cfg makes {layout(dims)}"
                ) from error
        return
    check_output(out, name, (1, in_channels, *[8] * dims))


def _check_forward(layer: nn.Module, name: str) -> None:
    if type(layer).forward is nn.Module.forward:
        raise ArgumentTypeError(f"plugins: {name} must have a forward, got a {type(layer).__name__} without one")
    try:
        inspect.signature(layer.forward).bind(None)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"plugins: forward of {name} must take the features alone: {error}") from error


def _runs(layer: nn.Module, in_channels: int, dims: int) -> bool:
    try:
        return isinstance(_run_copy(layer, in_channels, dims), Tensor)
    except Exception:  # noqa: BLE001 - any of them says no
        return False


def _run_copy(layer: nn.Module, in_channels: int, dims: int) -> Any:
    layer = copy.deepcopy(layer).eval()
    like = next(layer.parameters(), torch.empty(0))
    devices = [like.device] if like.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        return layer(torch.zeros(1, in_channels, *[8] * dims, dtype=like.dtype, device=like.device))


def check_output(out: Any, name: str, shape: Sequence[int]) -> None:
    """Refuse a plugin's output that the block could not go on with.

    Args:
        out: What the plugin returned.
        name: What it is called in the message.
        shape: Shape of what it received, ``(N, C, H, W)`` or of other features' axes.

    Raises:
        ArgumentError: ``out`` is no tensor of that shape.
    """
    channels, axes = shape[1], layout(len(shape) - 2, shape[1])
    if not isinstance(out, Tensor):
        raise ArgumentTypeError(f"plugins: {name} must return a tensor of shape {axes}, got a {type(out).__name__}")
    if out.shape == tuple(shape):
        return
    if out.dim() != len(shape) or out.shape[1] != channels:
        raise ArgumentError(
            f"plugins: {name} must return the {channels} channels that it received, as {axes}, "
            f"got shape {tuple(out.shape)}"
        )
    raise ArgumentError(
        f"plugins: {name} must return the shape that it received, {tuple(shape)}, got {tuple(out.shape)}"
    )
