"""Argument checks of backbones and blocks."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, TypeVar, cast

import numpy as np
import torch
from mmengine.model import BaseModule
from torch import nn

from .errors import ArgumentError, ArgumentTypeError, check_channels, did_you_mean, is_int
from .layers.build import layer_type
from .layers.dimensions import check_dims

__all__ = [
    "check_arguments",
    "check_block_arguments",
    "check_block_plugins",
    "check_flag",
    "check_frozen_stages",
    "check_multi_grid",
    "check_per_stage",
    "check_stage_indices",
    "check_stage_mask",
    "names_misspelt",
    "unknown_argument",
]

Init = TypeVar("Init", bound=Callable[..., None])

_FLAGS = (
    *("deep_stem", "avg_down", "norm_eval", "zero_init_residual", "fold_norm", "channels_last", "contract_dilation"),
    *("projection_shortcut", "out_stem"),
)
# Set by the block, as for the convolution that dcn replaces.
_SET_BY_BLOCK = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "bias")


def names_misspelt(init: Init) -> Init:
    """Decorate an ``__init__`` so that the error for a misspelt required argument names it, not the missing one.

    Args:
        init: The ``__init__`` of a backbone.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            signature.bind(self, *args, **kwargs)
        except TypeError:
            known = _known_arguments(type(self))
            for name in kwargs:
                if name not in known:
                    raise unknown_argument(type(self), name) from None
        init(self, *args, **kwargs)

    return cast(Init, checked)


def unknown_argument(cls: type, name: str) -> ArgumentTypeError:
    """Return the error for an unknown argument, with the nearest known one."""
    return ArgumentTypeError(f"{cls.__name__} has no argument {name!r}.{did_you_mean(name, _known_arguments(cls))}")


def _known_arguments(cls: type) -> set[str]:
    inits = [
        vars(base)["__init__"] for base in cls.__mro__ if "__init__" in vars(base) and issubclass(base, BaseModule)
    ]
    parameters = [parameter for init in inits for parameter in inspect.signature(init).parameters.values()]
    return {parameter.name for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_KEYWORD}


def check_arguments(backbone: Any, device: Any, dtype: Any) -> None:
    """Check the arguments of a ResNet, except those that its blocks check.

    Args:
        backbone: The ResNet, with its other arguments as attributes, and ``stage_blocks`` for all stages of its depth.
        device: Its argument ``device``.
        dtype: Its argument ``dtype``.

    Raises:
        ArgumentError: An argument has a value that is not allowed.
    """
    num_stages = backbone.num_stages
    most_stages = len(backbone.stage_blocks)
    if not is_int(num_stages) or not 1 <= num_stages <= most_stages:
        raise ArgumentError(f"num_stages must be an integer from 1 to {most_stages}, got {num_stages!r}")
    for name in _FLAGS:
        check_flag(name, getattr(backbone, name))
    check_channels("in_channels", backbone.in_channels)
    check_channels("base_channels", backbone.base_channels)
    # The first two convolutions of a deep stem have half as many channels.
    check_channels("stem_channels", backbone.stem_channels, minimum=2 if backbone.deep_stem else 1)
    check_per_stage("strides", backbone.strides, num_stages)
    check_per_stage("dilations", backbone.dilations, num_stages)
    check_stage_indices("out_indices", backbone.out_indices, num_stages)
    if not is_int(backbone.stem_stride) or backbone.stem_stride not in (1, 2, 4):
        raise ArgumentError(f"stem_stride must be 1, 2 or 4, got {backbone.stem_stride!r}")
    _check_base_width(backbone._base_width, backbone)
    check_frozen_stages(backbone.frozen_stages, num_stages)
    if _is_sequence(backbone.with_cp):
        check_stage_mask("with_cp", backbone.with_cp, num_stages)
    else:
        check_flag("with_cp", backbone.with_cp)
    if backbone.dcn is not None:
        check_stage_mask("stage_with_dcn", backbone.stage_with_dcn, num_stages)
        if not any(backbone.stage_with_dcn):  # no block checks it
            _check_dcn(backbone.dcn, backbone.conv_cfg)
    _check_stage_plugins(backbone.plugins, num_stages)
    _check_init_cfg(backbone.init_cfg)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ArgumentTypeError(f"dtype must be a floating-point dtype such as torch.float16, got {dtype!r}")
    try:
        torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(f"device must be a device such as 'cpu', 'cuda:0' or 'meta', got {device!r}") from error


def check_block_arguments(block: Any, dcn: Any) -> None:
    """Check the arguments of a residual block, except its plugins.

    Args:
        block: The block, with its other arguments as attributes.
        dcn: Its argument ``dcn``.

    Raises:
        ArgumentError: An argument has a value that is not allowed.
    """
    check_channels("inplanes", block.inplanes)
    check_channels("planes", block.planes)
    if not isinstance(block.style, str) or block.style not in ("pytorch", "caffe"):
        raise ArgumentError(f"style must be 'pytorch' or 'caffe', got {block.style!r}")
    if not is_int(block.kernel_size) or block.kernel_size < 1 or block.kernel_size % 2 == 0:
        raise ArgumentError(f"kernel_size must be an odd integer of at least 1, got {block.kernel_size!r}")
    check_dims(block.conv_cfg, block.norm_cfg)
    if dcn is not None:
        _check_dcn(dcn, block.conv_cfg, channels=block.planes)


def check_multi_grid(multi_grid: Any, num_blocks: int) -> None:
    """Check for a dilation, a positive integer, for each block of a stage."""
    if not _is_sequence(multi_grid):
        raise ArgumentTypeError(f"multi_grid must be a sequence of {num_blocks} integers, got {multi_grid!r}")
    if len(multi_grid) < num_blocks:
        raise ArgumentError(
            f"multi_grid must have one entry per block of the last stage, {num_blocks}, "
            f"got {len(multi_grid)} in {multi_grid!r}"
        )
    if not all(is_int(value) and value >= 1 for value in multi_grid):
        raise ArgumentError(f"multi_grid must be integers of at least 1, got {multi_grid!r}")


def check_flag(name: str, value: Any) -> None:
    """Check for a boolean, 0, 1 or ``None``, which mmdet accepts too. The string ``'False'`` would be true."""
    if value is not None and not isinstance(value, (bool, np.bool_)) and not (is_int(value) and value in (0, 1)):
        raise ArgumentTypeError(f"{name} must be True or False, got {value!r}")


def check_per_stage(name: str, values: Any, count: int, argument: str = "num_stages") -> None:
    """Check for one positive integer per stage, or per whatever ``argument`` counts."""
    if not _is_sequence(values):
        raise ArgumentTypeError(f"{name} must be a sequence of {count} integers, got {values!r}")
    if len(values) != count:
        raise ArgumentError(f"{name} must have {argument}={count} entries, got {len(values)} in {values!r}")
    if not all(is_int(value) and value >= 1 for value in values):
        raise ArgumentError(f"{name} must be integers of at least 1, got {values!r}")


def _check_base_width(base_width: Any, backbone: Any) -> None:
    if base_width is None:
        return
    check_channels("base_width", base_width)
    if backbone.block.expansion == 1:
        raise ArgumentError(
            f"base_width must be None for depth {backbone.depth}, whose blocks have no width, got {base_width!r}"
        )


def check_stage_mask(name: str, mask: Any, num_stages: int) -> None:
    """Check for one boolean per stage."""
    if not _is_sequence(mask) or len(mask) != num_stages or any(value not in (True, False) for value in mask):
        raise ArgumentError(f"{name} must have one True or False per stage (num_stages={num_stages}), got {mask!r}")


def check_stage_indices(name: str, indices: Any, num_stages: int) -> None:
    """Check for distinct indices of stages, at least one."""
    allowed = f"distinct stage indices from 0 to {num_stages - 1}"
    if not _is_sequence(indices):
        raise ArgumentTypeError(f"{name} must be a sequence of {allowed}, got {indices!r}")
    if not indices:
        raise ArgumentError(f"{name} must not be empty: give {allowed}, got {indices!r}")
    if not all(is_int(index) and 0 <= index < num_stages for index in indices):
        raise ArgumentError(f"{name} must be {allowed} (num_stages={num_stages}), got {indices!r}")
    if len(set(indices)) != len(indices):
        raise ArgumentError(f"{name} must be {allowed}, got duplicates in {indices!r}")


def check_frozen_stages(frozen_stages: Any, num_stages: int) -> None:
    """Check for an integer from -1 to ``num_stages``."""
    if not is_int(frozen_stages) or not -1 <= frozen_stages <= num_stages:
        raise ArgumentError(
            f"frozen_stages must be an integer from -1 (nothing frozen) to num_stages={num_stages} (0: the stem only), "
            f"got {frozen_stages!r}"
        )


def _check_init_cfg(init_cfg: Any) -> None:
    if init_cfg is None:
        return
    if not isinstance(init_cfg, (Mapping, list, tuple)):
        raise ArgumentTypeError(f"init_cfg must be a dict with a 'type', or a list of them, got {init_cfg!r}")
    for cfg in [init_cfg] if isinstance(init_cfg, Mapping) else init_cfg:
        if not isinstance(cfg, Mapping) or (cfg and "type" not in cfg):
            raise ArgumentTypeError(f"init_cfg must be a dict with a 'type', or a list of them, got {init_cfg!r}")
        if cfg.get("type") == "Pretrained" and not isinstance(cfg.get("checkpoint"), (str, PathLike)):
            raise ArgumentTypeError(
                f"init_cfg of type 'Pretrained' must have a checkpoint: a path, a URL, torchvision://..., "
                f"got {init_cfg!r}"
            )


def _check_dcn(dcn: Any, conv_cfg: Any, channels: int | None = None) -> None:
    """Check the config of a deformable convolution.

    Args:
        dcn: ``dict(type='DCNv2', deform_groups=1, fallback_on_stride=False)``, for example.
        conv_cfg: Config of the ordinary convolutions.
        channels: Number of channels of the convolution that ``dcn`` replaces, where it is known.
    """
    if not isinstance(dcn, Mapping):
        raise ArgumentTypeError(f"dcn must be a dict such as dict(type='DCNv2', deform_groups=1), got {dcn!r}")
    if conv_cfg is not None:
        raise ArgumentError(
            f"conv_cfg must be None where dcn is given, because dcn replaces the 3x3 convolution: "
            f"got conv_cfg={conv_cfg!r} and dcn={dcn!r}"
        )
    if issubclass(layer_type("dcn", dcn), (nn.Conv1d, nn.Conv3d)):
        raise ArgumentError(f"dcn must be a convolution of images (N, C, H, W), got {dcn!r}")
    for name in _SET_BY_BLOCK:
        if name in dcn:
            raise ArgumentTypeError(f"dcn must not have {name!r}, which the block sets, got {dcn!r}")
    if not isinstance(dcn.get("fallback_on_stride", False), bool):
        raise ArgumentTypeError(f"dcn's fallback_on_stride must be True or False, got {dcn['fallback_on_stride']!r}")
    _check_dcn_groups(dcn, channels)


def _check_dcn_groups(dcn: Mapping[str, Any], channels: int | None) -> None:
    if {"deform_groups", "deformable_groups"} <= dcn.keys():
        raise ArgumentError(f"dcn must have one of deform_groups and deformable_groups, its old name, got {dcn!r}")
    for name in ("im2col_step", "groups", "deform_groups", "deformable_groups"):
        if name in dcn:
            check_channels(f"dcn's {name}", dcn[name])
        if channels is not None and name != "im2col_step" and channels % dcn.get(name, 1):
            raise ArgumentError(
                f"dcn's {name} must divide the number of channels of the convolution that it replaces ({channels}), "
                f"got {dcn[name]!r}"
            )


def _check_stage_plugins(plugins: Any, num_stages: int) -> None:
    """Check the keys and ``stages`` of plugins; the blocks check the rest."""
    for plugin in _listed(plugins):
        unknown = plugin.keys() - {"cfg", "position", "stages"}
        if unknown:
            raise ArgumentTypeError(
                f"a plugin has a cfg, a position and stages, got {', '.join(map(repr, sorted(unknown)))} in {plugin!r}"
            )
        if plugin.get("stages") is not None:
            check_stage_mask("a plugin's stages", plugin["stages"], num_stages)


def check_block_plugins(plugins: Any, positions: Sequence[str]) -> None:
    """Check the plugins of a block with the given positions."""
    for plugin in _listed(plugins):
        if not isinstance(plugin.get("cfg"), Mapping):
            raise ArgumentError(f"each of plugins must be a dict with a 'cfg' dict, got {plugin!r}")
        if plugin.get("position") not in positions:
            raise ArgumentError(
                f"a plugin's position must be one of {', '.join(map(repr, positions))}, "
                f"got {plugin.get('position')!r} in {plugin!r}"
            )


def _listed(plugins: Any) -> list[Mapping[str, Any]]:
    """Return ``plugins`` as a list of dicts; ``None`` is an empty one."""
    if plugins is None:
        return []
    if not isinstance(plugins, list):
        raise ArgumentTypeError(
            f"plugins must be a list of dict(cfg=dict(type=...), position=...), "
            f"got a {type(plugins).__name__}: {plugins!r}"
        )
    for plugin in plugins:
        if not isinstance(plugin, Mapping):
            raise ArgumentError(f"each of plugins must be a dict with a 'cfg' dict, got {plugin!r}")
    return plugins


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
