"""Everything this package changes outside itself: registries and loaders of mmengine and mmdet, and ``sys.modules``."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS, WEIGHT_INITIALIZERS
from mmengine.registry import MODELS as ROOT

from ...errors import explain_missing_torchvision
from ...layers.dcn_types import OWN_TYPES, has_compiled_mmcv, register_deform_convs
from ...layers.se import SELayer
from .hooks import FreezeHook
from .optim import DefaultOptimWrapperConstructor, LayerDecayOptimWrapperConstructor
from .pretrained import PretrainedInit
from .registry import forget_failed_import, log, may_register, override_layer_decay, override_mmdet
from .runner_files import read_runner_files

__all__ = ["install", "install_operators"]


def install() -> None:
    """Make the changes that ``import resnet_backbone`` makes. Calling it again changes nothing."""
    # mmengine resolves _base_ = 'resnet_backbone::...' only for packages in this table.
    MODULE2PACKAGE.setdefault("resnet_backbone", "resnet_backbone")
    # Without this, mmengine's Runner cannot resume or test on torch >= 2.6.
    read_runner_files()
    WEIGHT_INITIALIZERS.register_module(name="Pretrained", module=PretrainedInit, force=True)
    OPTIM_WRAPPER_CONSTRUCTORS.register_module(module=DefaultOptimWrapperConstructor, force=True)
    OPTIM_WRAPPER_CONSTRUCTORS.register_module(module=LayerDecayOptimWrapperConstructor, force=True)
    HOOKS.register_module(module=FreezeHook, force=True)
    # Layers are registered in mmengine's root, as mmcv's are, where every scope finds them. Compiled mmcv's deformable
    # convolutions are registered when the first one is built, because importing its operators takes a while.
    if may_register("SELayer", ROOT):
        ROOT.register_module(module=SELayer, force=True)
    if not has_compiled_mmcv():
        register_deform_convs()
    # type='ResNet' and its family in mmdet's scope; without mmdet, sys.modules['mmdet.registry'] becomes a stand-in.
    override_mmdet()
    override_layer_decay()


def install_operators() -> None:
    """Supply the operators of mmcv where it was not compiled, so that mmdet works. Calling it again changes nothing.

    Raises:
        ImportError: torchvision is missing.
    """
    if find_spec("mmcv._ext") is not None:
        # Either mmcv was compiled, working or not, or this function has run before.
        return
    with explain_missing_torchvision("mmcv without compiled operators"):
        from .extension import make_extension
    sys.modules["mmcv._ext"] = make_extension()
    # mmcv.ops registers its own types under these names when it is imported.
    for name, layer in OWN_TYPES.items():
        if ROOT.module_dict.get(name) is layer:
            del ROOT.module_dict[name]
    # mmdet's models may have failed to import before.
    forget_failed_import()
    log("mmcv was not compiled; its operators run on PyTorch's and torchvision's")
