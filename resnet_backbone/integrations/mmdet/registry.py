"""Registration of the backbones in mmdet's model registry, or in a stand-in where mmdet cannot be imported.

``type='ResNet'`` in an mmdet config is looked up in ``mmdet.registry.MODELS``. At its first look-up that registry
imports ``mmdet.models``, which fails if there is a ``ResNet`` already. So the registry is told to import ``.models`` of
this folder instead, which imports ``mmdet.models`` and then replaces mmdet's classes. Without mmdet, a registry of
mmdet's scope in this package takes its place, so that the same config builds.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, cast

from mmengine.logging import print_log
from mmengine.registry import MODELS as ROOT
from mmengine.registry import Registry
from torch import nn

from ...blocks import BasicBlock, Bottleneck
from ...detectors import DetectoRS_ResNet, DetectoRS_ResNeXt
from ...errors import ArgumentTypeError, UnknownNameError, did_you_mean
from ...layers.dcn_types import OWN_TYPES
from ...layers.se import SELayer
from ...multi_scale import MultiScaleResNet1d
from ...regnet import RegNet
from ...res2net import Res2Net
from ...res_layer import ResLayer
from ...resnest import ResNeSt
from ...resnet import ResNet, ResNetV1c, ResNetV1d
from ...resnext import ResNeXt
from ...trident import TridentResNet

__all__ = ["BACKBONES", "MODELS", "build_backbone"]

_DEFERRED = "resnet_backbone.integrations.mmdet.models"
_LAYER_DECAY = "resnet_backbone.integrations.mmdet.layer_decay"

# These replace mmdet's classes of the same names.
OVERRIDES: tuple[type[nn.Module], ...] = (
    ResNet,
    ResNetV1d,
    ResNeXt,
    RegNet,
    Res2Net,
    ResNeSt,
    DetectoRS_ResNet,
    DetectoRS_ResNeXt,
    TridentResNet,
)
# These replace nothing: mmdet's 'ResLayer', for example, is the shared head of its C4 detectors.
ADDITIONS: tuple[type[nn.Module], ...] = (ResNetV1c, MultiScaleResNet1d, BasicBlock, Bottleneck, ResLayer)


def mmdet_registry() -> Registry:
    """Return mmdet's model registry or, if mmdet cannot be imported, one of this package with mmdet's scope."""
    try:
        return cast(Registry, import_module("mmdet.registry").MODELS)
    except Exception as error:  # noqa: BLE001 - mmdet asserts versions, and its dependencies fail in their own ways
        log(f"mmdet cannot be used here ({explain(error)}): type='ResNet' builds from this package's own registry")
        # Without a location mmengine would look for mmdet.utils, and warn that there is none.
        return ROOT.children.get("mmdet") or Registry("model", parent=ROOT, scope="mmdet", locations=[__name__])


def register(registry: Registry) -> None:
    """Register ``OVERRIDES`` in place of mmdet's classes, and ``ADDITIONS`` whose names are free.

    A class that the user registered under one of these names stays.
    """
    for cls in OVERRIDES:
        if may_register(cls.__name__, registry, replacing="mmdet."):
            registry.register_module(module=cls, force=True)
        else:
            log(f"type={cls.__name__!r} stays {registry.module_dict[cls.__name__]}, which other code has registered")
    for cls in ADDITIONS:
        if may_register(cls.__name__, registry):
            registry.register_module(module=cls, force=True)


def may_register(name: str, registry: Registry, replacing: str = "resnet_backbone.") -> bool:
    """Whether a name is free, taken by this package before a reload, as in notebooks, or by modules to be replaced."""
    known = registry.module_dict.get(name)
    return known is None or known.__module__.startswith(("resnet_backbone.", replacing))


def override_mmdet() -> None:
    """Register the classes in mmdet's registry, now or, where mmdet's own are not there yet, after them."""
    if "mmdet.registry" not in sys.modules:
        register(BACKBONES)
        # mmengine imports mmdet.registry each time it meets the scope, and would warn, or fail, each time.
        stand_in: Any = ModuleType("mmdet.registry", "Stands in for mmdet's, which cannot be imported here.")
        stand_in.MODELS = BACKBONES
        sys.modules["mmdet.registry"] = stand_in
    elif BACKBONES._imported or "ResNet" in BACKBONES.module_dict:
        register(BACKBONES)
    if not BACKBONES._imported:
        BACKBONES._locations = [_DEFERRED]


def override_layer_decay() -> None:
    """Make mmdet's layer-wise learning rates work with the backbones, from its registry's first look-up on."""
    registry = getattr(sys.modules["mmdet.registry"], "OPTIM_WRAPPER_CONSTRUCTORS", None)
    if registry is None:
        return
    registry._locations = [_LAYER_DECAY]
    if registry._imported:
        import_module(_LAYER_DECAY)


def forget_failed_import() -> None:
    """Have mmdet's models imported again at the next look-up, if that failed before."""
    if _DEFERRED not in sys.modules or all(location in sys.modules for location in MMDET_LOCATIONS):
        return
    # mmdet's classes of these names could not be registered.
    for cls in (*OVERRIDES, *ADDITIONS):
        if BACKBONES.module_dict.get(cls.__name__) is cls:
            del BACKBONES.module_dict[cls.__name__]
    del sys.modules[_DEFERRED]
    BACKBONES._imported = False


def build_backbone(cfg: dict[str, Any]) -> nn.Module:
    """Build a backbone from its config, independently of mmengine's current default scope.

    Args:
        cfg: ``dict(type='ResNet', depth=50, ...)``; ``type`` is a name in mmdet's scope, or a class.

    Returns:
        The backbone.

    Raises:
        ArgumentTypeError: ``cfg`` is not a dict.
        UnknownNameError: ``cfg`` has no ``type``, or its ``type`` is not registered.
        ArgumentError: An argument of the backbone is invalid.
    """
    if not isinstance(cfg, Mapping):
        raise ArgumentTypeError(f"a backbone's config must be a dict with a 'type', got {cfg!r}")
    cfg = {"_scope_": BACKBONES.scope, **cfg}
    name = cfg.get("type")
    if not name:
        raise UnknownNameError(f"a backbone's config must have a 'type', such as 'ResNet', got {cfg!r}")
    if isinstance(name, str):
        with BACKBONES.switch_scope_and_registry(cfg["_scope_"]) as registry:
            if registry.get(name) is None:
                raise UnknownNameError(_unknown_backbone(name, registry))
    return cast(nn.Module, BACKBONES.build(cfg))


def _unknown_backbone(name: str, registry: Registry) -> str:
    backbones = [cls for cls in (*OVERRIDES, *ADDITIONS) if issubclass(cls, ResNet)]
    message = (
        f"no backbone is registered as {name!r} in scope {registry.scope!r}.{did_you_mean(name, registry.module_dict)} "
        f"This package has {', '.join(cls.__name__ for cls in backbones)}"
    )
    if getattr(sys.modules["mmdet.registry"], "__file__", None) is None:
        message += "; mmdet, which cannot be used here, has others: resnet-backbone-doctor says why"
    return message


def explain(error: Exception) -> str:
    """Return an exception as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def log(message: str) -> None:
    """Write one line to mmengine's current logger."""
    print_log(f"resnet_backbone: {message}", logger="current", level=logging.INFO)


# For 'resnet_backbone.ResNet' in any scope. In a notebook that reloads the package, the registry already exists.
MODELS = ROOT.children.get("resnet_backbone") or Registry(
    "model", parent=ROOT, scope="resnet_backbone", locations=[__name__]
)
for _cls in (*OVERRIDES, *ADDITIONS):
    MODELS.register_module(module=_cls, force=True)
MODELS.register_module(module=SELayer, force=True)
for _name, _layer in OWN_TYPES.items():
    MODELS.register_module(name=_name, module=_layer, force=True)

BACKBONES: Registry = mmdet_registry()
# What mmdet's registry imports at its first look-up, and ``.models`` imports in its place. After a reload, the registry
# has ``.models`` there already.
MMDET_LOCATIONS = ("mmdet.models",) if _DEFERRED in BACKBONES._locations else tuple(BACKBONES._locations)
