import numpy as np
import pytest
import torch
from helpers import raises
from mmengine.registry import MODELS

from resnet_backbone import ResNet, build_plugin_layer
from resnet_backbone.errors import ArgumentError
from resnet_backbone.layers.se import SELayer


def test_matches_the_formula():
    torch.manual_seed(0)
    layer, x = SELayer(16, ratio=4), torch.randn(2, 16, 5, 7)
    squeezed = x.mean((2, 3))
    hidden = (squeezed @ layer.conv1.conv.weight[:, :, 0, 0].T + layer.conv1.conv.bias).relu()
    weights = (hidden @ layer.conv2.conv.weight[:, :, 0, 0].T + layer.conv2.conv.bias).sigmoid()
    torch.testing.assert_close(layer(x), x * weights[:, :, None, None])


def test_parameter_names_match_mmdet():
    shapes = {name: tuple(value.shape) for name, value in SELayer(64).state_dict().items()}
    assert shapes == {
        "conv1.conv.weight": (4, 64, 1, 1),
        "conv1.conv.bias": (4,),
        "conv2.conv.weight": (64, 4, 1, 1),
        "conv2.conv.bias": (64,),
    }


def test_registered_as_a_plugin():
    assert MODELS.get("SELayer") is SELayer
    name, layer = build_plugin_layer(dict(type="SELayer", ratio=2), postfix="_1", in_channels=8)
    assert name == "se_layer_1"
    assert layer.conv1.out_channels == 4


@pytest.mark.parametrize(("depth", "position"), [(18, "after_conv2"), (50, "after_conv3")])
def test_se_resnet_builds_from_a_config(depth, position):
    backbone = ResNet(
        depth, base_channels=8, plugins=[dict(cfg=dict(type="SELayer", ratio=4), position=position)]
    ).train()
    backbone.init_weights()
    for blocks in (backbone.layer1, backbone.layer4):
        for block in blocks:
            assert isinstance(block.se_layer, SELayer)
            assert block.se_layer.conv2.out_channels == block.planes * block.expansion
    sum(level.sum() for level in backbone(torch.randn(2, 3, 32, 32))).backward()


def test_ratio_can_be_a_numpy_scalar():
    assert SELayer(8, ratio=np.int64(2)).conv1.out_channels == 4


def test_one_activation_config_is_used_twice():
    layer = SELayer(8, ratio=2, act_cfg=dict(type="Sigmoid"), conv_cfg=dict(type="Conv2d"))
    assert [type(conv.activate).__name__ for conv in (layer.conv1, layer.conv2)] == ["Sigmoid", "Sigmoid"]


def test_activation_configs_can_be_a_list_as_in_json():
    layer = SELayer(8, ratio=2, act_cfg=[dict(type="ReLU"), dict(type="Tanh")])
    assert [type(conv.activate).__name__ for conv in (layer.conv1, layer.conv2)] == ["ReLU", "Tanh"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(), ["SELayer", "channels=None", "in_channels=None"]),
        (dict(channels=8, in_channels=8), ["SELayer", "channels=8", "in_channels=8"]),
        (dict(channels=0), ["channels", "0", "1"]),
        (dict(channels=8, ratio=16), ["ratio", "16", "0", "8"]),
        (dict(channels=8, ratio=0), ["ratio", "0", "8"]),
        (dict(channels=8, ratio="4"), ["ratio", "'4'", "0", "8"]),
        (dict(channels=8, ratio=2, act_cfg=(dict(type="ReLU"),)), ["act_cfg", "({'type': 'ReLU'},)", "two"]),
        (dict(channels=8, ratio=2, act_cfg=7), ["act_cfg", "7", "two"]),
    ],
)
def test_rejects(arguments, words):
    with raises(ArgumentError, *words):
        SELayer(**arguments)
