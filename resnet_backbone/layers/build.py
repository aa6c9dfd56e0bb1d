"""Build convolution, norm and plugin layers from config dicts.

Thin over ``mmcv.cnn``: the layer types, their registries and their defaults are mmcv's own. What is added is that a
wrong config is refused with a sentence that says what to write instead.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import mmcv.cnn
from mmengine.registry import MODELS, Registry
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm

from ..errors import ArgumentError, ArgumentTypeError, UnknownNameError, did_you_mean

__all__ = [
    "build_conv_layer",
    "build_norm_layer",
    "build_plugin_layer",
    "check_dcn_type",
    "conv_type",
    "is_norm",
    "norm_type",
]

LayerCfg = dict[str, Any]

# What constructors of layers raise for arguments that they do not take.
_REFUSALS = (TypeError, ValueError, AssertionError, RuntimeError, ArithmeticError)
_NORMS = (nn.modules.batchnorm._BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm)


def build_conv_layer(cfg: LayerCfg | None, *args: Any, **kwargs: Any) -> nn.Module:
    """Build a convolution.

    Args:
        cfg: ``dict(type=...)`` with any further arguments of that type; ``None`` means ``dict(type='Conv2d')``.
        *args: Positional arguments of the convolution (``in_channels``, ``out_channels``, ``kernel_size``, ...).
        **kwargs: Keyword arguments of the convolution.

    Returns:
        The convolution.

    Raises:
        ArgumentTypeError: ``cfg`` is no dict, its type makes no ``nn.Module``, or does not take the arguments given.
        UnknownNameError: ``cfg`` has no ``type``, or one that is not registered.
        ArgumentError: The convolution refuses the value of an argument.
    """
    layer_type = conv_type(cfg)
    if cfg is None:
        return mmcv.cnn.build_conv_layer(cfg, *args, **kwargs)
    _check_module("conv_cfg", cfg, layer_type)
    try:
        return mmcv.cnn.build_conv_layer(cfg, *args, **kwargs)
    except _REFUSALS as error:
        raise _refusal(f"conv_cfg: no convolution can be built from {dict(cfg)!r}", error) from error


def conv_type(cfg: LayerCfg | None) -> Any:
    """Return the class that a convolution's config stands for; ``None`` stands for ``nn.Conv2d``.

    Raises:
        ArgumentTypeError: ``cfg`` is no dict.
        UnknownNameError: ``cfg`` has no ``type``, or one that is not registered.
    """
    return nn.Conv2d if cfg is None else _check_cfg("conv_cfg", cfg, _is_conv)


def norm_type(cfg: LayerCfg) -> Any:
    """Return the class that a norm layer's config stands for.

    Raises:
        ArgumentTypeError: ``cfg`` is no dict.
        UnknownNameError: ``cfg`` has no ``type``, or one that is not registered.
    """
    return _check_cfg("norm_cfg", cfg, is_norm)


def check_dcn_type(dcn: LayerCfg) -> None:
    """Refuse a deformable convolution's config whose type is missing or unknown.

    Args:
        dcn: ``dict(type='DCN')`` or ``dict(type='DCNv2')``, or another registered convolution's.

    Raises:
        UnknownNameError: ``dcn`` has no ``type``, or one that is not registered.
        ArgumentError: It is a convolution of signals or volumes.
    """
    found = _check_cfg("dcn", dcn, _is_deform_conv)
    if inspect.isclass(found) and issubclass(found, (nn.Conv1d, nn.Conv3d)):
        raise ArgumentError(f"dcn must be a convolution of images (N, C, H, W), got {dict(dcn)!r}")


def build_norm_layer(cfg: LayerCfg, num_features: int, postfix: int | str = "") -> tuple[str, nn.Module]:
    """Build a norm layer and the name it goes by in a block.

    Args:
        cfg: ``dict(type=...)`` with any further arguments of that type; ``requires_grad=False`` freezes its affine
            parameters, ``eps`` defaults to 1e-5.
        num_features: Number of channels.
        postfix: What follows the abbreviation in the name: ``1`` makes ``bn1``, ``gn1``, ...

    Returns:
        The name and the layer.

    Raises:
        ArgumentTypeError: ``cfg`` is no dict, its type makes no ``nn.Module``, or does not take the arguments given.
        UnknownNameError: ``cfg`` has no ``type``, or one that is not registered.
        ArgumentError: ``cfg`` is a GroupNorm without ``num_groups``, or with one that does not divide the channels;
            or the norm layer refuses the value of another argument.
    """
    layer_type = norm_type(cfg)
    _check_module("norm_cfg", cfg, layer_type)
    if layer_type is nn.GroupNorm and "num_groups" not in cfg:
        raise ArgumentError(f"norm_cfg of type 'GN' needs num_groups, got {dict(cfg)!r}; 32 is usual")
    for name in ("eps", "momentum"):
        # PyTorch looks at them in the forward pass. YAML reads 1e-5 as a string.
        if cfg.get(name) is not None and (isinstance(cfg[name], bool) or not isinstance(cfg[name], Real)):
            raise ArgumentTypeError(f"norm_cfg's {name} must be a number, got {cfg[name]!r} in {dict(cfg)!r}")
    try:
        return mmcv.cnn.build_norm_layer(cfg, num_features, postfix=postfix)
    except _REFUSALS as error:
        message = f"norm_cfg: no norm layer for {num_features} channels can be built from {dict(cfg)!r}"
        raise _refusal(message, error) from error


def build_plugin_layer(cfg: LayerCfg, postfix: int | str = "", **kwargs: Any) -> tuple[str, nn.Module]:
    """Build a plugin layer and the name it goes by in a block.

    Args:
        cfg: ``dict(type=...)`` with any further arguments of that type.
        postfix: What follows the abbreviation in the name: ``'1'`` makes ``context_block1``.
        **kwargs: Arguments that the block supplies (``in_channels``).

    Returns:
        The name and the layer.

    Raises:
        ArgumentTypeError: ``cfg`` is no dict, or its type does not take the arguments given, or makes no
            ``nn.Module``.
        UnknownNameError: ``cfg`` has no ``type``, or one that is not registered.
        ArgumentError: The plugin refuses the value of an argument.
    """
    plugin_type = _check_cfg("plugin cfg", cfg, _is_plugin)
    if not (inspect.isclass(plugin_type) and issubclass(plugin_type, nn.Module)):
        raise ArgumentTypeError(f"a plugin must be a subclass of nn.Module, got {plugin_type!r} for {dict(cfg)!r}")
    try:
        return mmcv.cnn.build_plugin_layer(cfg, postfix=postfix, **kwargs)
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in kwargs.items())
        kind = ArgumentError
        if isinstance(error, (TypeError, KeyError)):
            kind = ArgumentTypeError if isinstance(error, TypeError) else UnknownNameError
        raise kind(
            f"no plugin can be built from {dict(cfg)!r} with {given}, which the block supplies: "
            f"{type(error).__name__}: {error}"
        ) from error


def _check_cfg(argument: str, cfg: Any, belongs: Callable[[type], bool]) -> Any:
    """Return the class that ``cfg['type']`` stands for, or say what is wrong with ``cfg``.

    Args:
        argument: The name of the argument, for the message.
        cfg: The config to look at.
        belongs: Tells the classes worth listing when the type is unknown.
    """
    if not isinstance(cfg, Mapping):
        raise ArgumentTypeError(f"{argument} must be a dict with a 'type', got {cfg!r}")
    if "type" not in cfg:
        raise UnknownNameError(f"{argument} must have a 'type', got {dict(cfg)!r}")
    layer_type = cfg["type"]
    if inspect.isclass(layer_type):
        return layer_type
    if argument == "dcn" or _names_deform_conv(layer_type):
        # Imported here: layers are built with this module.
        from .dcn_types import register_deform_convs

        register_deform_convs()
    # The same look-up that mmcv makes: the default scope's registry first, then its parents.
    with MODELS.switch_scope_and_registry(None) as registry:
        found = _look_up(registry, layer_type)
        if found is None:
            known = sorted(_known_names(registry, belongs))
            raise UnknownNameError(
                f"{argument} has type {layer_type!r}, which is not registered in scope {registry.scope!r}."
                f"{did_you_mean(str(layer_type), known)} Known types: {', '.join(known)}"
            )
    return found


def _check_module(argument: str, cfg: LayerCfg, layer_type: Any) -> None:
    if not (inspect.isclass(layer_type) and issubclass(layer_type, nn.Module)):
        raise ArgumentTypeError(f"{argument}'s type must be a subclass of nn.Module, got {dict(cfg)!r}")


def _refusal(message: str, error: Exception) -> ArgumentError:
    """Say what could not be built, and why the layer's own constructor refused."""
    kind = ArgumentTypeError if isinstance(error, TypeError) else ArgumentError
    return kind(f"{message}: {error}")


def _names_deform_conv(name: Any) -> bool:
    """Whether a type, with or without a scope before it, is one that compiled mmcv registers when it is imported."""
    return isinstance(name, str) and name.rpartition(".")[2] in ("DCN", "DCNv2")


def _look_up(registry: Registry, name: Any) -> Any:
    try:
        return registry.get(name)
    except (TypeError, RuntimeError):
        # mmengine raises these for a key that is no string, and for a dotted path that leads nowhere.
        return None


def _known_names(registry: Registry | None, belongs: Callable[[type], bool]) -> set[str]:
    names: set[str] = set()
    while registry is not None:
        names |= {name for name, item in registry.module_dict.items() if inspect.isclass(item) and belongs(item)}
        registry = registry.parent
    return names


def _is_conv(layer_type: type) -> bool:
    name = layer_type.__name__
    return issubclass(layer_type, nn.Module) and "Conv" in name and not name.startswith("ConvTranspose")


def _is_deform_conv(layer_type: type) -> bool:
    return issubclass(layer_type, nn.Module) and "DeformConv" in layer_type.__name__


def is_norm(layer_type: type) -> bool:
    """Whether a class is a norm layer of PyTorch's, or derived from one."""
    return issubclass(layer_type, _NORMS)


def _is_plugin(layer_type: type) -> bool:
    """Whether a class can be told to be a plugin: mmcv's own bricks, and whatever names its abbreviation."""
    return issubclass(layer_type, nn.Module) and hasattr(layer_type, "_abbr_")
