import pytest
from helpers import raises
from mmcv.cnn.bricks import ConvAWS2d, ConvWS2d
from torch import nn

from resnet_backbone import build_conv_layer, build_norm_layer, build_plugin_layer
from resnet_backbone.errors import ArgumentError, ArgumentTypeError, UnknownNameError


def test_conv_without_config_is_plain():
    conv = build_conv_layer(None, 3, 8, kernel_size=3, stride=2, bias=False)
    assert type(conv) is nn.Conv2d
    assert (conv.in_channels, conv.out_channels, conv.stride, conv.bias) == (3, 8, (2, 2), None)


@pytest.mark.parametrize(("layer", "cls"), [("Conv2d", nn.Conv2d), ("ConvWS", ConvWS2d), (ConvAWS2d, ConvAWS2d)])
def test_conv_of_a_type(layer, cls):
    assert type(build_conv_layer(dict(type=layer), 4, 8, 3)) is cls


@pytest.mark.parametrize(
    ("cfg", "name", "cls"),
    [
        (dict(type="BN"), "bn1", nn.BatchNorm2d),
        (dict(type="SyncBN"), "bn1", nn.SyncBatchNorm),
        (dict(type="GN", num_groups=2), "gn1", nn.GroupNorm),
        (dict(type="IN"), "in1", nn.InstanceNorm2d),
        (dict(type=nn.BatchNorm2d), "bn1", nn.BatchNorm2d),
    ],
)
def test_norm_of_a_type(cfg, name, cls):
    before = dict(cfg)
    built_name, norm = build_norm_layer(cfg, 8, postfix=1)
    assert built_name == name
    assert isinstance(norm, cls)
    assert norm.eps == 1e-5
    assert cfg == before


def test_norm_arguments_reach_the_layer():
    _, norm = build_norm_layer(dict(type="BN", requires_grad=False, eps=1e-3, momentum=0.01), 8)
    assert (norm.eps, norm.momentum) == (1e-3, 0.01)
    assert not any(parameter.requires_grad for parameter in norm.parameters())


def test_plugin_is_named_by_type_and_postfix():
    cfg = dict(type="ContextBlock", ratio=0.5)
    name, plugin = build_plugin_layer(cfg, postfix="_a", in_channels=8)
    assert name == "context_block_a"
    assert plugin.in_channels == 8
    assert cfg == dict(type="ContextBlock", ratio=0.5)


def build_conv(cfg):
    return build_conv_layer(cfg, 3, 8, 3)


def build_norm(cfg):
    return build_norm_layer(cfg, 8)


@pytest.mark.parametrize(
    ("build", "cfg", "exception", "words"),
    [
        (build_conv, dict(type="Cnov2d"), UnknownNameError, ["conv_cfg", "'Cnov2d'", "Conv2d"]),
        (build_conv, dict(bias=True), UnknownNameError, ["conv_cfg", "'type'", "bias"]),
        (build_conv, "Conv2d", ArgumentTypeError, ["conv_cfg", "dict", "'Conv2d'"]),
        (build_norm, dict(type="NB"), UnknownNameError, ["norm_cfg", "'NB'", "BN", "SyncBN", "GN"]),
        (build_norm, dict(), UnknownNameError, ["norm_cfg", "'type'"]),
        (build_norm, None, ArgumentTypeError, ["norm_cfg", "dict", "None"]),
        (build_norm, dict(type=3), UnknownNameError, ["norm_cfg", "3"]),
        (build_norm, dict(type="GN"), ArgumentError, ["norm_cfg", "num_groups"]),
        (build_plugin_layer, dict(type="Kontext"), UnknownNameError, ["'Kontext'", "ContextBlock"]),
    ],
)
def test_wrong_config_is_rejected_by_name(build, cfg, exception, words):
    with raises(exception, *words):
        build(cfg)
