"""Build layers from configs by mmcv's registry, with errors that name the argument and its config."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from numbers import Real
from typing import Any

import mmcv.cnn
from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from ..errors import ArgumentError, ArgumentTypeError, UnknownNameError, did_you_mean

__all__ = ["build_conv_layer", "build_norm_layer", "build_plugin_layer", "is_norm", "layer_type"]

Cfg = dict[str, Any]


def build_conv_layer(cfg: Cfg | None, *args: Any, **kwargs: Any) -> nn.Module:
    """Build a convolution.

    Args:
        cfg: ``dict(type=...)`` and further arguments of that type; ``None`` means ``dict(type='Conv2d')``.
        *args: Arguments of the convolution: ``in_channels``, ``out_channels``, ``kernel_size``.
        **kwargs: Further arguments of the convolution.

    Raises:
        ArgumentError: ``cfg`` is not a dict with a registered type, or the layer refuses its arguments.
    """
    layer_type("conv_cfg", cfg)
    with _named("conv_cfg", cfg):
        return mmcv.cnn.build_conv_layer(cfg, *args, **kwargs)


def build_norm_layer(cfg: Cfg, num_features: int, postfix: int | str = "") -> tuple[str, nn.Module]:
    """Build a norm layer; return its name in a block, such as ``'bn1'`` for the postfix 1, and the layer.

    Args:
        cfg: ``dict(type=...)`` and further arguments; ``requires_grad=False`` freezes the affine parameters.
        num_features: Number of channels.
        postfix: Appended to the layer's abbreviation.

    Raises:
        ArgumentError: ``cfg`` is not a dict with a registered type, or the layer refuses its arguments.
    """
    if layer_type("norm_cfg", cfg) is nn.GroupNorm and "num_groups" not in cfg:
        raise ArgumentError(f"norm_cfg of type 'GN' needs num_groups, got {dict(cfg)!r}; 32 is usual")
    for name in ("eps", "momentum"):  # PyTorch would fail in forward. YAML reads 1e-5 as a string.
        if cfg.get(name) is not None and (isinstance(cfg[name], bool) or not isinstance(cfg[name], Real)):
            raise ArgumentTypeError(f"norm_cfg's {name} must be a number, got {cfg[name]!r} in {dict(cfg)!r}")
    with _named("norm_cfg", cfg, f" for {num_features} channels"):
        return mmcv.cnn.build_norm_layer(cfg, num_features, postfix=postfix)


def build_plugin_layer(cfg: Cfg, postfix: int | str = "", **kwargs: Any) -> tuple[str, nn.Module]:
    """Build a plugin; return its name in a block, such as ``'context_block1'`` for the postfix 1, and the plugin.

    Args:
        cfg: ``dict(type=...)`` and further arguments of that type.
        postfix: Appended to the plugin's abbreviation.
        **kwargs: Arguments set by the block (``in_channels``).

    Raises:
        ArgumentError: ``cfg`` is not a dict with a registered type, or the plugin refuses its arguments.
    """
    layer_type("plugin cfg", cfg)
    with _named("plugin cfg", cfg, "".join(f" with {name}={value!r}" for name, value in kwargs.items())):
        return mmcv.cnn.build_plugin_layer(cfg, postfix=postfix, **kwargs)


def is_norm(layer: type) -> bool:
    """Whether a class is one of PyTorch's norm layers or a subclass."""
    return issubclass(layer, (nn.modules.batchnorm._BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm))


_IS_SUITABLE: dict[str, Callable[[type], bool]] = {
    "conv_cfg": lambda layer: "Conv" in layer.__name__ and not layer.__name__.startswith("ConvTranspose"),
    "dcn": lambda layer: "DeformConv" in layer.__name__,
    "norm_cfg": is_norm,
    "plugin cfg": lambda layer: hasattr(layer, "_abbr_"),
}


def layer_type(argument: str, cfg: Any) -> type[nn.Module]:
    """Return the class of the config of an argument: ``'conv_cfg'``, ``'dcn'``, ``'norm_cfg'`` or ``'plugin cfg'``.

    Raises:
        ArgumentError: ``cfg`` is not a dict with a registered type, or the type is not an ``nn.Module``.
    """
    if cfg is None and argument == "conv_cfg":
        return nn.Conv2d
    if not isinstance(cfg, Mapping):
        raise ArgumentTypeError(f"{argument} must be a dict with a 'type', got {cfg!r}")
    if "type" not in cfg:
        raise UnknownNameError(f"{argument} must have a 'type', got {dict(cfg)!r}")
    found = cfg["type"] if inspect.isclass(cfg["type"]) else _look_up(argument, cfg["type"])
    if not (inspect.isclass(found) and issubclass(found, nn.Module)):
        raise ArgumentTypeError(f"{argument}'s type must be a subclass of nn.Module, got {found!r} for {dict(cfg)!r}")
    return found


def _look_up(argument: str, name: Any) -> Any:
    if argument == "dcn" or str(name).rpartition(".")[2] in ("DCN", "DCNv2", "SAC"):
        from .dcn_types import register_deform_convs

        register_deform_convs()
    with MODELS.switch_scope_and_registry(None) as registry, suppress(TypeError, RuntimeError):
        if (found := registry.get(name)) is not None:  # get raises for a malformed name
            return found
    layers = (*MODELS.module_dict.items(), *registry.module_dict.items())
    known = sorted({known for known, layer in layers if inspect.isclass(layer) and _IS_SUITABLE[argument](layer)})
    raise UnknownNameError(
        f"{argument} has type {name!r}, which is not registered in scope {registry.scope!r}."
        f"{did_you_mean(str(name), known)} Known types: {', '.join(known)}"
    )


@contextmanager
def _named(argument: str, cfg: Cfg | None, context: str = "") -> Iterator[None]:
    """Add the argument and its config to errors that a layer's constructor raises."""
    try:
        yield
    except (TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError, KeyError) as error:
        kinds = ((KeyError, UnknownNameError), (TypeError, ArgumentTypeError), (Exception, ArgumentError))
        kind = next(ours for theirs, ours in kinds if isinstance(error, theirs))
        raise kind(f"{argument}: {cfg!r} cannot be built{context}: {type(error).__name__}: {error}") from error
