"""mmdet's subclasses of ResNet (ResNeXt, RegNet, Res2Net, ResNeSt, ...) with our classes as their bases."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import mmdet.models.backbones as backbones
import mmdet.models.backbones.resnet as reference
import mmdet.models.layers as layers
import pytest
import torch
from equality import assert_bit_exact, seeded
from mmdet.registry import MODELS

import resnet_backbone

# In the order of their imports.
MODULES = ("resnext", "regnet", "res2net", "resnest", "detectors_resnet", "trident_resnet", "hrnet", "hourglass")
OURS = {name: getattr(resnet_backbone, name) for name in ("BasicBlock", "Bottleneck", "ResNet", "ResNetV1d")}

# None of these may be a base of a subclass of ours.
REFERENCE_CLASSES = (reference.BasicBlock, reference.Bottleneck, reference.ResNet)

REGNETX_400MF = dict(w0=24, wa=24.48, wm=2.54, group_w=16, depth=22, bot_mul=1.0)
SUBCLASSES = {
    "ResNeXt-50 32x4d": ("resnext", "ResNeXt", dict(depth=50, groups=32, base_width=4)),
    "ResNeXt-50 with DCN and plugins": (
        "resnext",
        "ResNeXt",
        dict(
            depth=50,
            groups=32,
            base_width=4,
            dcn=dict(type="DCNv2", deform_groups=1, fallback_on_stride=False),
            stage_with_dcn=(False, True, True, True),
            plugins=[dict(cfg=dict(type="ContextBlock", ratio=1 / 4), position="after_conv2")],
        ),
    ),
    "RegNetX-400MF": ("regnet", "RegNet", dict(arch=REGNETX_400MF, out_indices=(0, 1, 2, 3))),
    "Res2Net-50": ("res2net", "Res2Net", dict(depth=50, scales=4, base_width=26, deep_stem=True, avg_down=True)),
    "ResNeSt-50": ("resnest", "ResNeSt", dict(depth=50, stem_channels=64, radix=2, reduction_factor=4)),
    "DetectoRS_ResNet-50": (
        "detectors_resnet",
        "DetectoRS_ResNet",
        dict(
            depth=50, conv_cfg=dict(type="ConvAWS"), sac=dict(type="SAC", use_deform=True), stage_with_sac=(0, 1, 1, 1)
        ),
    ),
    "TridentResNet-50": (
        "trident_resnet",
        "TridentResNet",
        dict(
            depth=50,
            num_branch=3,
            test_branch_idx=1,
            trident_dilations=(1, 2, 3),
            num_stages=3,
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            out_indices=(2,),
        ),
    ),
    "HRNet": (
        "hrnet",
        "HRNet",
        dict(
            extra=dict(
                stage1=dict(num_modules=1, num_branches=1, block="BOTTLENECK", num_blocks=(1,), num_channels=(8,)),
                stage2=dict(num_modules=1, num_branches=2, block="BASIC", num_blocks=(1, 1), num_channels=(8, 16)),
                stage3=dict(
                    num_modules=1, num_branches=3, block="BASIC", num_blocks=(1,) * 3, num_channels=(8, 16, 32)
                ),
                stage4=dict(
                    num_modules=1, num_branches=4, block="BASIC", num_blocks=(1,) * 4, num_channels=(8, 16, 32, 64)
                ),
            )
        ),
    ),
    "Hourglass": (
        "hourglass",
        "HourglassNet",
        dict(
            downsample_times=3,
            num_stacks=1,
            stage_channels=(16, 16, 24, 32),
            stage_blocks=(2, 2, 2, 4),
            feat_channel=16,
        ),
    ),
}


@pytest.fixture(scope="module")
def on_our_classes() -> dict[str, ModuleType]:
    """mmdet's backbone modules, loaded again with our classes in place of those that they import."""
    registered = dict(MODELS.module_dict)
    kept_names = {f"mmdet.models.backbones.{name}": getattr(backbones, name) for name in MODULES}
    kept_classes = {name: getattr(reference, name) for name in OURS}
    kept_layer = layers.ResLayer
    loaded = {}
    try:
        layers.ResLayer = resnet_backbone.ResLayer
        for name, cls in OURS.items():
            setattr(reference, name, cls)
        for full_name, original in kept_names.items():
            name = full_name.rpartition(".")[2]
            MODELS.module_dict.clear()
            spec = importlib.util.spec_from_file_location(full_name, original.__file__)
            loaded[name] = importlib.util.module_from_spec(spec)
            sys.modules[full_name] = loaded[name]
            spec.loader.exec_module(loaded[name])
        return loaded
    finally:
        MODELS.module_dict.clear()
        MODELS.module_dict.update(registered)
        sys.modules.update(kept_names)
        for name, cls in kept_classes.items():
            setattr(reference, name, cls)
        layers.ResLayer = kept_layer


@pytest.mark.parametrize("name", SUBCLASSES)
def test_subclass_is_bit_exact_on_our_base(name, on_our_classes, bit_exact):
    module, class_name, kwargs = SUBCLASSES[name]
    ours_class = getattr(on_our_classes[module], class_name)
    their_class = getattr(backbones, class_name)
    assert ours_class is not their_class
    ours, theirs = seeded(lambda: build(ours_class, kwargs)), seeded(lambda: build(their_class, kwargs))
    blocks = [m for m in ours.modules() if isinstance(m, (resnet_backbone.BasicBlock, resnet_backbone.Bottleneck))]
    assert blocks
    assert not [m for m in ours.modules() if isinstance(m, REFERENCE_CLASSES)]
    size = 128 if class_name == "HourglassNet" else 96
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(3)) * 4 - 2
    assert_bit_exact(ours, theirs, x)
    bit_exact("of mmdet's subclasses on our base classes", name)


def build(cls: type, kwargs: dict) -> torch.nn.Module:
    backbone = cls(**kwargs)
    for module in backbone.modules():
        # mmdet's TridentConv does not initialize its weights, so that they differ between models.
        if type(module).__name__ == "TridentConv":
            torch.nn.init.normal_(module.weight, std=0.01)
    return backbone


@pytest.mark.parametrize("name", ["ResNeXt-50 32x4d", "RegNetX-400MF", "Res2Net-50", "ResNeSt-50"])
def test_feature_info_of_subclasses(name, on_our_classes):
    module, class_name, kwargs = SUBCLASSES[name]
    backbone = getattr(on_our_classes[module], class_name)(**kwargs).eval()
    outputs = backbone(torch.rand(1, 3, 64, 64))
    assert tuple(output.shape[1] for output in outputs) == backbone.out_channels
    assert tuple(64 // output.shape[2] for output in outputs) == backbone.out_strides
