"""The relatives of ResNet: each built, trained, folded, deployed and exported as ResNet itself is."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import gradients, loss_of, shake

from resnet_backbone import build_backbone

REGNET = dict(w0=16, wa=6.0, wm=1.8, group_w=8, depth=6, bot_mul=1.0)
THREE = dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1))
SAC = dict(sac=dict(type="SAC", use_deform=True), stage_with_sac=(False, True, True, True))
FAMILY = {
    "ResNeXt": dict(type="ResNeXt", depth=50, groups=4, base_width=4, base_channels=8),
    "RegNet": dict(
        type="RegNet", arch=REGNET, stem_channels=8, strides=(2, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2)
    ),
    "Res2Net": dict(type="Res2Net", depth=50, base_width=6, base_channels=16),
    "Res2Net, as in the paper": dict(
        type="Res2Net", depth=50, base_width=6, base_channels=16, deep_stem=False, avg_down=False
    ),
    "ResNeSt": dict(type="ResNeSt", depth=50, base_channels=8),
    "ResNeSt, one split, two groups": dict(
        type="ResNeSt", depth=50, base_channels=8, radix=1, groups=2, avg_down_stride=False
    ),
    "Wide ResNet": dict(type="ResNet", depth=50, base_channels=8, base_width=16),
    "SE-ResNeXt": dict(
        type="ResNeXt",
        depth=50,
        groups=4,
        base_width=4,
        base_channels=8,
        plugins=[dict(cfg=dict(type="SELayer", ratio=4), position="after_conv3")],
    ),
    "TridentResNet": dict(
        type="TridentResNet",
        depth=50,
        base_channels=8,
        num_branch=3,
        test_branch_idx=1,
        trident_dilations=(1, 2, 3),
        out_indices=(1, 2),
        **THREE,
    ),
    "DetectoRS_ResNet": dict(type="DetectoRS_ResNet", depth=50, base_channels=8, output_img=True),
    "DetectoRS_ResNet with SAC": dict(
        type="DetectoRS_ResNet", depth=50, base_channels=8, conv_cfg=dict(type="ConvAWS"), **SAC
    ),
    "DetectoRS_ResNeXt": dict(type="DetectoRS_ResNeXt", depth=50, base_channels=8, groups=4, base_width=4),
}


def backbone_of(name, **arguments):
    torch.manual_seed(0)
    backbone = shake(build_backbone({**copy.deepcopy(FAMILY[name]), **arguments}))
    for module in backbone.modules():
        if hasattr(module, "weight_gamma"):
            # Standardised weights are large until a checkpoint says how large: features would overflow.
            module.weight_gamma.fill_(0.05)
    return backbone


# SAC pads by reflection, which needs 3 pixels in the last stage.
SIZES = {"DetectoRS_ResNet with SAC": 96}


def images(name):
    size = SIZES.get(name, 64)
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def assert_close(results, expected, tolerance=1e-4):
    for result, reference in zip(results, expected, strict=True):
        assert (result is None) == (reference is None)
        if reference is not None:
            assert (result - reference).norm() <= tolerance * reference.norm() + 1e-12


def step(backbone, x):
    backbone.zero_grad()
    levels = backbone(x)
    loss_of(levels).backward()
    return [*levels, *gradients(backbone)]


@pytest.mark.parametrize("name", FAMILY)
def test_feature_info_says_what_forward_returns(name):
    backbone = backbone_of(name)
    x = images(name)
    levels = backbone(x)
    assert tuple(level.shape[1] for level in levels) == backbone.out_channels
    assert tuple(x.shape[2] // level.shape[2] for level in levels) == backbone.out_strides


@pytest.mark.parametrize("name", FAMILY)
def test_folded_step_equals_the_exact_one(name):
    # In double precision: in single, a ReLU that rounding switches moves gradients by more than rounding.
    backbone, x = backbone_of(name).double().train(), images(name).double()
    expected = step(backbone, x)
    for parameter_name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name
    backbone._set_fold_norm(True)
    assert_close(step(backbone, x), expected, tolerance=1e-9)


@pytest.mark.parametrize("name", FAMILY)
def test_checkpointed_step_equals_the_exact_one(name):
    expected = step(backbone_of(name).train(), images(name))
    checkpointed = backbone_of(name, with_cp=True).train()
    # Gradients are summed in another order.
    assert_close(step(checkpointed, images(name)), expected, tolerance=1e-5)


@pytest.mark.parametrize("name", FAMILY)
def test_deployed_equals_the_exact_path(name):
    backbone = backbone_of(name).eval()
    with torch.no_grad():
        expected = backbone(images(name))
        assert_close(backbone.switch_to_deploy()(images(name)), expected)
    left = [layer for layer in backbone.modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
    assert not left
