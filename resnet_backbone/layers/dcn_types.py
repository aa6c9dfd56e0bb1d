"""Registration of the types 'DCN', 'DCNv2' and 'SAC': compiled mmcv's classes or this package's."""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec

from mmengine.logging import print_log
from mmengine.registry import MODELS as ROOT
from torch import nn

from .deform import DeformConv2dPack, ModulatedDeformConv2dPack
from .sac import SAConv2d

__all__ = ["OWN_TYPES", "has_compiled_mmcv", "register_deform_convs"]

OWN_TYPES: dict[str, type[nn.Module]] = {
    "DCN": DeformConv2dPack,
    "DCNv2": ModulatedDeformConv2dPack,
    "SAC": SAConv2d,
}


def has_compiled_mmcv() -> bool:
    """Whether mmcv is installed with its compiled operators, without importing it."""
    return find_spec("mmcv._ext") is not None


def register_deform_convs() -> None:
    """Register the types of ``OWN_TYPES``: mmcv's classes, or this package's where mmcv's cannot be imported."""
    if all(name in ROOT.module_dict and not _is_stale(name) for name in OWN_TYPES):
        return
    if has_compiled_mmcv():
        try:
            import_module("mmcv.ops")
        except Exception as error:  # noqa: BLE001 - a binary built for another torch fails in its own ways
            print_log(
                f"resnet_backbone: mmcv.ops cannot be imported ({type(error).__name__}: {error}): "
                "'DCN', 'DCNv2' and 'SAC' run on torchvision's operator",
                logger="current",
                level=logging.WARNING,
            )
    for name, cls in OWN_TYPES.items():
        if name not in ROOT.module_dict or _is_stale(name):
            ROOT.register_module(name=name, module=cls, force=True)


def _is_stale(name: str) -> bool:
    """Whether a type is registered to a class of this package from before a reload, as in notebooks."""
    known: type[nn.Module] = ROOT.module_dict[name]
    return known.__module__ == OWN_TYPES[name].__module__ and known is not OWN_TYPES[name]
