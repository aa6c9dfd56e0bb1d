"""Checks of the arguments that blocks and backbones share: a wrong one is named before anything is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, cast

import numpy as np

from .errors import ArgumentError, ArgumentTypeError, check_channels, is_int
from .layers.build import check_dcn_type

__all__ = [
    "check_dcn",
    "check_flags",
    "check_frozen_stages",
    "check_init_cfg",
    "check_multi_grid",
    "check_num_stages",
    "check_out_indices",
    "check_per_stage",
    "check_plugins",
    "check_stage_mask",
    "check_stem_stride",
    "check_style",
]

STYLES = ("pytorch", "caffe")
# What a deformable convolution takes over from the convolution that it replaces.
GIVEN_BY_BLOCK = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "bias")


def check_style(style: Any) -> None:
    """Refuse a style other than ``'pytorch'`` and ``'caffe'``."""
    if not isinstance(style, str) or style not in STYLES:
        raise ArgumentError(f"style must be 'pytorch' or 'caffe', got {style!r}")


def check_flags(**flags: Any) -> None:
    """Refuse what is no truth value: Python's and numpy's, 0 and 1, and ``None``, mmdet's too, are.

    ``'False'`` would count as true.
    """
    for name, value in flags.items():
        if value is not None and not isinstance(value, (bool, np.bool_)) and not (is_int(value) and value in (0, 1)):
            raise ArgumentTypeError(f"{name} must be True or False, got {value!r}")


def check_init_cfg(init_cfg: Any) -> None:
    """Refuse what mmengine could not initialise from: anything but configs with a type, and their options."""
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


def check_num_stages(num_stages: Any, most: int) -> None:
    """Refuse a stage count outside ``[1, most]``."""
    if not is_int(num_stages) or not 1 <= num_stages <= most:
        raise ArgumentError(f"num_stages must be an integer from 1 to {most}, got {num_stages!r}")


def check_stem_stride(stem_stride: Any) -> None:
    """Refuse a stride that no stem has."""
    if not is_int(stem_stride) or stem_stride not in (1, 2, 4):
        raise ArgumentError(f"stem_stride must be 1, 2 or 4, got {stem_stride!r}")


def check_per_stage(name: str, values: Any, num_stages: int) -> None:
    """Refuse strides or dilations that are not one positive integer per stage."""
    if not _is_sequence(values):
        raise ArgumentTypeError(f"{name} must be a sequence of {num_stages} integers, got {values!r}")
    if len(values) != num_stages:
        raise ArgumentError(
            f"{name} must have one entry per stage: num_stages={num_stages}, got {len(values)} in {values!r}"
        )
    if not all(is_int(value) and value >= 1 for value in values):
        raise ArgumentError(f"{name} must be integers of at least 1, got {values!r}")


def check_multi_grid(multi_grid: Any, num_blocks: int) -> None:
    """Refuse dilations that are not one positive integer per block of a stage, or more of them."""
    if not _is_sequence(multi_grid):
        raise ArgumentTypeError(f"multi_grid must be a sequence of {num_blocks} integers, got {multi_grid!r}")
    if len(multi_grid) < num_blocks:
        raise ArgumentError(
            f"multi_grid must have one entry per block of the last stage, {num_blocks}, "
            f"got {len(multi_grid)} in {multi_grid!r}"
        )
    if not all(is_int(value) and value >= 1 for value in multi_grid):
        raise ArgumentError(f"multi_grid must be integers of at least 1, got {multi_grid!r}")


def check_out_indices(out_indices: Any, num_stages: int) -> None:
    """Refuse output stages that are missing, repeated, or none of the network's."""
    allowed = f"distinct stage indices from 0 to {num_stages - 1}"
    if not _is_sequence(out_indices):
        raise ArgumentTypeError(f"out_indices must be a sequence of {allowed}, got {out_indices!r}")
    if not out_indices:
        raise ArgumentError(f"out_indices must not be empty: give {allowed}, got {out_indices!r}")
    if not all(is_int(index) and 0 <= index < num_stages for index in out_indices):
        raise ArgumentError(f"out_indices must be {allowed} (num_stages={num_stages}), got {out_indices!r}")
    if len(set(out_indices)) != len(out_indices):
        raise ArgumentError(f"out_indices must be {allowed}, got duplicates in {out_indices!r}")


def check_frozen_stages(frozen_stages: Any, num_stages: int) -> None:
    """Refuse a number of frozen stages outside ``[-1, num_stages]``."""
    if not is_int(frozen_stages) or not -1 <= frozen_stages <= num_stages:
        raise ArgumentError(
            f"frozen_stages must be an integer from -1 (nothing frozen) to num_stages={num_stages} (0: stem alone), "
            f"got {frozen_stages!r}"
        )


def check_stage_mask(name: str, mask: Any, num_stages: int) -> None:
    """Refuse a mask that is not one truth value per stage."""
    if not _is_sequence(mask) or len(mask) != num_stages or any(value not in (True, False) for value in mask):
        raise ArgumentError(f"{name} must have one True or False per stage (num_stages={num_stages}), got {mask!r}")


def check_dcn(dcn: Any, conv_cfg: Any, channels: int | None = None) -> None:
    """Refuse a ``dcn`` that is no config of a deformable convolution, or that contradicts ``conv_cfg``.

    Args:
        dcn: ``None``, or ``dict(type='DCNv2', deform_groups=1, fallback_on_stride=False)``.
        conv_cfg: Config of the ordinary convolutions.
        channels: Number of channels of the convolution that ``dcn`` replaces, where it is known.
    """
    if dcn is None:
        return
    if not isinstance(dcn, Mapping):
        raise ArgumentTypeError(f"dcn must be a dict such as dict(type='DCNv2', deform_groups=1), got {dcn!r}")
    if conv_cfg is not None:
        raise ArgumentError(
            f"conv_cfg must be None where dcn is given, because dcn takes the 3x3 convolution's place: "
            f"got conv_cfg={conv_cfg!r} and dcn={dcn!r}"
        )
    check_dcn_type(cast("dict[str, Any]", dcn))
    given_by_block = [name for name in GIVEN_BY_BLOCK if name in dcn]
    if given_by_block:
        raise ArgumentTypeError(f"dcn must not have {given_by_block[0]!r}, which the block decides, got {dcn!r}")
    if not isinstance(dcn.get("fallback_on_stride", False), bool):
        raise ArgumentTypeError(f"dcn's fallback_on_stride must be True or False, got {dcn['fallback_on_stride']!r}")
    names = [name for name in ("groups", "deform_groups", "deformable_groups") if name in dcn]
    if {"deform_groups", "deformable_groups"} <= dcn.keys():
        raise ArgumentError(f"dcn must have one of deform_groups and deformable_groups, its old name, got {dcn!r}")
    if "im2col_step" in dcn:
        check_channels("dcn's im2col_step", dcn["im2col_step"])
    for name in names:
        check_channels(f"dcn's {name}", dcn[name])
        if channels is not None and channels % dcn[name]:
            raise ArgumentError(
                f"dcn's {name} must divide the channels of the convolution that it replaces ({channels}), "
                f"got {dcn[name]!r}"
            )


def check_plugins(plugins: Any, positions: Sequence[str], num_stages: int | None = None) -> None:
    """Refuse a list of plugins that could not be built.

    Args:
        plugins: ``None``, or a list of ``dict(cfg=dict(type=...), position=..., stages=...)``.
        positions: The positions that the block has.
        num_stages: Number of stages, where ``stages`` masks are allowed and to be checked.
    """
    if plugins is None:
        return
    if not isinstance(plugins, list):
        raise ArgumentTypeError(
            f"plugins must be a list of dict(cfg=dict(type=...), position=...), "
            f"got a {type(plugins).__name__}: {plugins!r}"
        )
    for plugin in plugins:
        if not isinstance(plugin, Mapping) or not isinstance(plugin.get("cfg"), Mapping):
            raise ArgumentError(f"each of plugins must be a dict with a 'cfg' dict, got {plugin!r}")
        if plugin.get("position") not in positions:
            raise ArgumentError(
                f"a plugin's position must be one of {', '.join(map(repr, positions))}, "
                f"got {plugin.get('position')!r} in {plugin!r}"
            )
        unknown = plugin.keys() - {"cfg", "position", "stages"}
        if unknown:
            raise ArgumentTypeError(
                f"a plugin has a cfg, a position and stages, got {', '.join(map(repr, sorted(unknown)))} in {plugin!r}"
            )
        if num_stages is not None and plugin.get("stages") is not None:
            check_stage_mask("a plugin's stages", plugin["stages"], num_stages)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
