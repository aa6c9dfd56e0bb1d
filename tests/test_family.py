"""The relatives of ResNet: each built, trained, folded, deployed and exported as ResNet itself is."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import gradients, loss_of, shake

from resnet_backbone import build_backbone

REGNET = dict(w0=16, wa=6.0, wm=1.8, group_w=8, depth=6, bot_mul=1.0)
FAMILY = {
    "ResNeXt": dict(type="ResNeXt", depth=50, groups=4, base_width=4, base_channels=8),
    "RegNet": dict(
        type="RegNet", arch=REGNET, stem_channels=8, strides=(2, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2)
    ),
    "Wide ResNet": dict(type="ResNet", depth=50, base_channels=8, base_width=16),
}


def backbone_of(name, **arguments):
    torch.manual_seed(0)
    return shake(build_backbone({**copy.deepcopy(FAMILY[name]), **arguments}))


def images(size=64):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def assert_close(results, expected, tolerance=1e-4):
    for result, reference in zip(results, expected, strict=True):
        assert (result is None) == (reference is None)
        if reference is not None:
            assert (result - reference).norm() <= tolerance * reference.norm() + 1e-12


def step(backbone):
    backbone.zero_grad()
    levels = backbone(images())
    loss_of(levels).backward()
    return [*levels, *gradients(backbone)]


@pytest.mark.parametrize("name", FAMILY)
def test_feature_info_says_what_forward_returns(name):
    backbone = backbone_of(name)
    levels = backbone(images())
    assert tuple(level.shape[1] for level in levels) == backbone.out_channels
    assert tuple(64 // level.shape[2] for level in levels) == backbone.out_strides


@pytest.mark.parametrize("name", FAMILY)
def test_folded_step_equals_the_exact_one(name):
    backbone = backbone_of(name).train()
    expected = step(backbone)
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients(backbone))
    backbone._set_fold_norm(True)
    assert_close(step(backbone), expected)


@pytest.mark.parametrize("name", FAMILY)
def test_checkpointed_step_equals_the_exact_one(name):
    expected = step(backbone_of(name).train())
    checkpointed = backbone_of(name, with_cp=True).train()
    # Gradients are summed in another order.
    assert_close(step(checkpointed), expected, tolerance=1e-5)


@pytest.mark.parametrize("name", FAMILY)
def test_deployed_equals_the_exact_path(name):
    backbone = backbone_of(name).eval()
    with torch.no_grad():
        expected = backbone(images())
        assert_close(backbone.switch_to_deploy()(images()), expected)
    left = [layer for layer in backbone.modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
    assert not left
