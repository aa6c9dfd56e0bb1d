"""Results are bit-identical to torchvision's: the operations are the same, in the same order."""

import pytest
import torch
from helpers import assert_same_bits, gradients, loss_of, shake

from resnet_backbone import ResNet

torchvision = pytest.importorskip("torchvision", reason="the peer of these tests")

DEPTHS = (18, 34, 50, 101, 152)


def pair(depth):
    theirs = shake(getattr(torchvision.models, f"resnet{depth}")(weights=None), seed=depth)
    ours = ResNet(depth, norm_eval=False)
    keys = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert keys.missing_keys == []
    assert keys.unexpected_keys == ["fc.weight", "fc.bias"]
    return ours, theirs


def levels_of(theirs, x):
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    levels = []
    for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        x = stage(x)
        levels.append(x)
    return levels


@pytest.mark.parametrize("depth", DEPTHS)
def test_state_dict_keys_match_torchvision(depth):
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    with torch.device("meta"):
        ours = ResNet(depth)
    expected = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
    assert list(ours.state_dict()) == list(expected)


@pytest.mark.parametrize("depth", DEPTHS)
def test_features_are_bit_identical(depth):
    ours, theirs = pair(depth)
    x = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        features, expected = ours.eval()(x), levels_of(theirs.eval(), x)
    assert all(level.abs().max() > 0 for level in expected)
    assert_same_bits(features, expected)


@pytest.mark.parametrize("depth", [18, 50])
def test_training_is_bit_identical(depth):
    ours, theirs = pair(depth)
    x = torch.randn(2, 3, 32, 64)
    loss_of(ours.train()(x)).backward()
    loss_of(levels_of(theirs.train(), x)).backward()
    assert_same_bits(gradients(ours), gradients(theirs)[:-2])
    assert_same_bits(ours.buffers(), theirs.buffers())


@pytest.mark.network
@pytest.mark.parametrize("depth", DEPTHS)
def test_pretrained_features_match_torchvision(depth):
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights="IMAGENET1K_V1").eval()
    ours = ResNet(depth, init_cfg=dict(type="Pretrained", checkpoint=f"torchvision://resnet{depth}"))
    ours.init_weights()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_same_bits(ours.eval()(x), levels_of(theirs, x))
