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
    if has_compiled_mmcv() and not OWN_TYPES.keys() <= ROOT.module_dict.keys():
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
        known = ROOT.module_dict.get(name)
        # In a notebook that reloads the package, its earlier class.
        if known is None or known.__module__ == cls.__module__:
            ROOT.register_module(name=name, module=cls, force=True)
