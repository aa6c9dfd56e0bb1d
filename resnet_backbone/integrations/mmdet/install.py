"""All that this package changes outside itself: mmengine's and mmdet's registries and loaders, and ``sys.modules``."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import print_log
from mmengine.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS, WEIGHT_INITIALIZERS
from mmengine.registry import MODELS as ROOT

from ...errors import explain_missing_torchvision
from ...layers import SELayer
from ...layers.dcn_types import OWN_TYPES, has_compiled_mmcv, register_deform_convs
from .fine_tuning import FreezeHook, LayerDecayOptimWrapperConstructor
from .optim import DefaultOptimWrapperConstructor
from .pretrained import PretrainedInit
from .registry import forget_failed_import, may_register, override_layer_decay, override_mmdet
from .runner_files import read_runner_files

__all__ = ["install", "install_operators"]


def install() -> None:
    """Make the changes that ``import resnet_backbone`` makes. Calling it again changes nothing."""
    # _base_ = 'resnet_backbone::...': mmengine resolves it for the packages in this table alone.
    MODULE2PACKAGE.setdefault("resnet_backbone", "resnet_backbone")
    # A config that names this package resumes and tests on any torch.
    read_runner_files()
    WEIGHT_INITIALIZERS.register_module(name="Pretrained", module=PretrainedInit, force=True)
    OPTIM_WRAPPER_CONSTRUCTORS.register_module(module=DefaultOptimWrapperConstructor, force=True)
    OPTIM_WRAPPER_CONSTRUCTORS.register_module(module=LayerDecayOptimWrapperConstructor, force=True)
    HOOKS.register_module(module=FreezeHook, force=True)
    # Layers are found from any scope in mmengine's root, where mmcv's are. mmcv's own deformable convolutions come in
    # when the first is built, since importing its operators takes a while.
    if may_register("SELayer", ROOT):
        ROOT.register_module(module=SELayer, force=True)
    if not has_compiled_mmcv():
        register_deform_convs()
    # type='ResNet' and its family in mmdet's scope. Where mmdet is missing, sys.modules['mmdet.registry'] is ours.
    override_mmdet()
    override_layer_decay()


def install_operators() -> None:
    """Let ``mmcv.ops`` be imported where mmcv was not compiled, which mmdet needs. Calling it again changes nothing.

    Raises:
        ImportError: torchvision is missing.
    """
    if find_spec("mmcv._ext") is not None:
        # mmcv's own, whether it can be imported or not, or what follows here, before.
        return
    with explain_missing_torchvision("mmcv without compiled operators"):
        from .extension import make_extension
    sys.modules["mmcv._ext"] = make_extension()
    # mmcv registers its own types of these names as soon as mmcv.ops is imported.
    for name, layer in OWN_TYPES.items():
        if ROOT.module_dict.get(name) is layer:
            del ROOT.module_dict[name]
    # A look-up that came too early is made again.
    forget_failed_import()
    print_log(
        "resnet_backbone: mmcv was not compiled; its operators run on PyTorch's and torchvision's",
        logger="current",
        level=logging.INFO,
    )
