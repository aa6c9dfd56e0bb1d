"""Which registry is mmdet's here, and how our classes get into it.

mmengine finds a class by scope and name. Inside mmdet, ``type='ResNet'`` is looked up in ``mmdet.registry.MODELS``,
which imports ``mmdet.models`` at its first look-up; a ``ResNet`` that was registered before that would make that import
fail. So this package puts itself between the two: the registry is told to import ``.models`` of this folder instead,
which imports ``mmdet.models`` and then registers our classes over mmdet's. Where mmdet is missing or broken, a registry
of ours with mmdet's scope takes its place, so that the same config builds.
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
from ...layers import SELayer
from ...layers.dcn_types import OWN_TYPES
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

# What an mmdet config asks for by these names, it now gets from here.
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
# Registered where the name is free: mmdet's own 'ResLayer', for one, is the shared head of its C4 detectors.
ADDITIONS: tuple[type[nn.Module], ...] = (ResNetV1c, MultiScaleResNet1d, BasicBlock, Bottleneck, ResLayer)


def mmdet_registry() -> Registry:
    """Return mmdet's model registry, or this package's own in mmdet's scope if mmdet cannot be imported."""
    try:
        return cast(Registry, import_module("mmdet.registry").MODELS)
    except Exception as error:  # noqa: BLE001 - mmdet asserts versions, and its dependencies fail in their own ways
        log(f"mmdet cannot be used here ({explain(error)}): type='ResNet' builds from this package's own registry")
        return _stand_in_registry()


def _stand_in_registry() -> Registry:
    registry = cast("Registry | None", ROOT.children.get("mmdet"))
    # Without a location mmengine would look for mmdet.utils, and warn that there is none.
    return registry or Registry("model", parent=ROOT, scope="mmdet", locations=[__name__])


def register(registry: Registry) -> None:
    """Register our classes: over mmdet's where they replace them, beside them where the name is free."""
    for cls in OVERRIDES:
        registry.register_module(module=cls, force=True)
    for cls in ADDITIONS:
        if may_register(cls.__name__, registry):
            registry.register_module(module=cls, force=True)


def may_register(name: str, registry: Registry) -> bool:
    """Whether a name is free, or has a class of this package from an earlier import, as notebooks reload it."""
    known = registry.module_dict.get(name)
    return known is None or known.__module__.startswith("resnet_backbone.")


def override_mmdet() -> None:
    """Register our classes in mmdet's registry or, where mmdet's own are yet to come, arrange that it happens after."""
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
    """Let mmdet's constructor of layer-wise learning rates know our backbones, as soon as its registry is asked."""
    registry = getattr(sys.modules["mmdet.registry"], "OPTIM_WRAPPER_CONSTRUCTORS", None)
    if registry is None:
        return
    registry._locations = [_LAYER_DECAY]
    if registry._imported:
        import_module(_LAYER_DECAY)


def forget_failed_import() -> None:
    """Let mmdet's models be imported again at the next look-up, if that failed at the first."""
    if _DEFERRED not in sys.modules or all(location in sys.modules for location in MMDET_LOCATIONS):
        return
    # mmdet's own could not be registered beside them.
    for cls in (*OVERRIDES, *ADDITIONS):
        if BACKBONES.module_dict.get(cls.__name__) is cls:
            del BACKBONES.module_dict[cls.__name__]
    del sys.modules[_DEFERRED]
    BACKBONES._imported = False


def build_backbone(cfg: dict[str, Any]) -> nn.Module:
    """Build a backbone from its config, whatever mmengine's default scope is at the moment.

    Args:
        cfg: ``dict(type='ResNet', depth=50, ...)``; ``type`` is a name in mmdet's scope, or a class.

    Returns:
        The backbone.

    Raises:
        ArgumentTypeError: ``cfg`` is no dict.
        UnknownNameError: ``cfg`` has no ``type``, or one that is not registered.
        ArgumentError: The backbone refuses an argument.
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
    message = f"no backbone is registered as {name!r} in scope {registry.scope!r}."
    message += (
        f"{did_you_mean(name, registry.module_dict)} This package has {', '.join(cls.__name__ for cls in backbones)}"
    )
    if getattr(sys.modules["mmdet.registry"], "__file__", None) is None:
        message += "; mmdet, which cannot be used here, has others: resnet-backbone-doctor says what it takes"
    return message


def explain(error: Exception) -> str:
    """Put an exception into one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def log(message: str) -> None:
    """Write one line to mmengine's current logger."""
    print_log(f"resnet_backbone: {message}", logger="current", level=logging.INFO)


# 'resnet_backbone.ResNet' from any scope: mmengine imports this module and finds the scope below its root.
# A notebook may import the package a second time; the registry is there then, and gets the new classes.
MODELS = ROOT.children.get("resnet_backbone") or Registry(
    "model", parent=ROOT, scope="resnet_backbone", locations=[__name__]
)
for _cls in (*OVERRIDES, *ADDITIONS):
    MODELS.register_module(module=_cls, force=True)
MODELS.register_module(module=SELayer, force=True)
for _name, _layer in OWN_TYPES.items():
    MODELS.register_module(name=_name, module=_layer, force=True)

BACKBONES: Registry = mmdet_registry()
# What mmdet's registry imports at its first look-up; ``.models`` of this folder imports it instead. A second import of
# this package finds itself there.
MMDET_LOCATIONS = ("mmdet.models",) if _DEFERRED in BACKBONES._locations else tuple(BACKBONES._locations)
