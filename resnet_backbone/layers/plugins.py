"""Build a plugin, and check by a dry run that it returns features of the shape of its input."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, ArgumentTypeError
from .build import build_plugin_layer
from .dimensions import layout

__all__ = ["build_plugin"]

SIZE = 8
"""Size, along each axis, of the features of the dry run."""


def build_plugin(cfg: dict[str, Any], in_channels: int, dims: int = 2) -> tuple[str, nn.Module]:
    """Build a plugin; return its name in a block, and the plugin.

    Args:
        cfg: ``dict(type=...)`` and further arguments of that type; ``postfix`` is appended to the name.
        in_channels: Number of channels of its input and output.
        dims: Number of spatial dimensions of the features: 1, 2 or 3.

    Raises:
        ArgumentError: The plugin cannot be built, cannot be given a name, or fails the dry run.
    """
    cfg = cfg.copy()
    postfix = cfg.pop("postfix", "")
    if not isinstance(postfix, (int, str)) or "." in str(postfix):
        raise ArgumentError(f"a plugin's postfix must be a number or a string without dots, got {postfix!r}")
    name, layer = build_plugin_layer(cfg, in_channels=in_channels, postfix=postfix)
    if not name or "." in name:
        raise ArgumentError(f"plugins: the _abbr_ of {cfg['type']!r} must be a name without dots, got {name!r}")
    _dry_run(layer, f"{name} (type={cfg['type']!r})", in_channels, dims)
    return name, layer


def _dry_run(layer: nn.Module, name: str, in_channels: int, dims: int = 2) -> None:
    """Run a copy of a plugin on zeros and check the shape of its output.

    The copy runs in eval mode and does not affect the random number generators. A plugin that fails at this size or on
    this device is accepted.

    Args:
        layer: The plugin.
        name: Its name, for messages.
        in_channels: Number of channels of its input and output.
        dims: Number of spatial dimensions of the features: 1, 2 or 3.

    Raises:
        ArgumentError: It has no ``forward`` with one argument, expects another number of dimensions, or does not return
            a tensor of the shape of its input.
    """
    if type(layer).forward is nn.Module.forward:
        raise ArgumentTypeError(f"plugins: {name} must have a forward, got a {type(layer).__name__} without one")
    try:
        inspect.signature(layer.forward).bind(None)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"plugins: forward of {name} must take one argument, the features: {error}") from error
    try:
        out = _run_copy(layer, in_channels, dims)
    except Exception as error:
        for other in {1, 2, 3} - {dims}:
            if _runs(layer, in_channels, other):
                raise ArgumentError(
                    f"plugins: {name} expects features {layout(other)}, and conv_cfg makes {layout(dims)}"
                ) from error
        return
    _check_output(out, name, (1, in_channels, *[SIZE] * dims))


def _runs(layer: nn.Module, in_channels: int, dims: int) -> bool:
    try:
        return isinstance(_run_copy(layer, in_channels, dims), Tensor)
    except Exception:  # noqa: BLE001 - the plugin may raise anything
        return False


def _run_copy(layer: nn.Module, in_channels: int, dims: int) -> Any:
    layer = copy.deepcopy(layer).eval()
    like = next(layer.parameters(), torch.empty(0))
    devices = [like.device] if like.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        return layer(torch.zeros(1, in_channels, *[SIZE] * dims, dtype=like.dtype, device=like.device))


def _check_output(out: Any, name: str, shape: tuple[int, ...]) -> None:
    if not isinstance(out, Tensor):
        raise ArgumentTypeError(f"plugins: {name} must return a tensor, got a {type(out).__name__}")
    if out.shape != shape:
        raise ArgumentError(f"plugins: {name} must return the shape of its input, {shape}, got {tuple(out.shape)}")
