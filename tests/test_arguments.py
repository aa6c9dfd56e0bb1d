"""Every wrong input is refused by the constructor, in words that name argument, value and what is allowed."""

import pytest
import torch

from resnet_backbone import BasicBlock, Bottleneck, ResNet, ResNetV1c, ResNetV1d, build_backbone

CONTEXT = dict(type="ContextBlock", ratio=0.5)
DCN = dict(type="DCNv2", deform_groups=1)


def plugin(**changes):
    return dict(cfg=CONTEXT, position="after_conv2", **changes)


WRONG = [
    # depth
    (dict(depth=99), KeyError, ["invalid depth", "99", "18, 34, 50, 101, 152"]),
    (dict(depth="50"), KeyError, ["depth", "'50'", "18, 34, 50, 101, 152"]),
    (dict(depth=None), KeyError, ["depth", "None", "18, 34, 50, 101, 152"]),
    # stages
    (dict(num_stages=0), ValueError, ["num_stages", "0", "1 to 4"]),
    (dict(num_stages=5), ValueError, ["num_stages", "5", "1 to 4"]),
    (dict(num_stages=2.0), ValueError, ["num_stages", "2.0", "1 to 4"]),
    (dict(strides=(1, 2)), ValueError, ["strides", "(1, 2)", "num_stages=4"]),
    (dict(strides=(1, 2, 2, 0)), ValueError, ["strides", "(1, 2, 2, 0)", "at least 1"]),
    (dict(strides=2), TypeError, ["strides", "2", "sequence of 4"]),
    (dict(num_stages=3), ValueError, ["strides", "num_stages=3"]),
    (dict(dilations=(1, 1, 1)), ValueError, ["dilations", "(1, 1, 1)", "num_stages=4"]),
    (dict(dilations=(1, 1, 1, -1)), ValueError, ["dilations", "-1", "at least 1"]),
    (dict(dilations=(1, 1, 1, 1.5)), ValueError, ["dilations", "1.5", "at least 1"]),
    # outputs
    (dict(out_indices=()), ValueError, ["out_indices", "()", "0 to 3"]),
    (dict(out_indices=(1, 1)), ValueError, ["out_indices", "(1, 1)", "duplicate", "0 to 3"]),
    (dict(out_indices=(-1,)), ValueError, ["out_indices", "(-1,)", "0 to 3"]),
    (dict(out_indices=(4,)), ValueError, ["out_indices", "(4,)", "0 to 3"]),
    (dict(out_indices=(True,)), ValueError, ["out_indices", "(True,)", "0 to 3"]),
    (dict(out_indices=3), TypeError, ["out_indices", "3", "0 to 3"]),
    (
        dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(2,)),
        ValueError,
        ["out_indices", "(2,)", "0 to 1", "num_stages=2"],
    ),
    # style
    (dict(depth=18, style="tf"), ValueError, ["style", "'tf'", "'pytorch'", "'caffe'"]),
    (dict(depth=50, style="tf"), ValueError, ["style", "'tf'", "'pytorch'", "'caffe'"]),
    (dict(style=None), ValueError, ["style", "None", "'pytorch'", "'caffe'"]),
    # freezing
    (dict(frozen_stages=-2), ValueError, ["frozen_stages", "-2", "-1", "4"]),
    (dict(frozen_stages=5), ValueError, ["frozen_stages", "5", "-1", "num_stages=4"]),
    (dict(frozen_stages=None), ValueError, ["frozen_stages", "None", "-1"]),
    # channels
    (dict(in_channels=0), ValueError, ["in_channels", "0", "at least 1"]),
    (dict(base_channels=0), ValueError, ["base_channels", "0", "at least 1"]),
    (dict(base_channels=-8), ValueError, ["base_channels", "-8", "at least 1"]),
    (dict(base_channels=4.5), ValueError, ["base_channels", "4.5", "integer"]),
    (dict(stem_channels=0), ValueError, ["stem_channels", "0", "at least 1"]),
    (dict(stem_channels=1, deep_stem=True), ValueError, ["stem_channels", "1", "at least 2"]),
    # dcn
    (dict(depth=50, dcn=DCN, stage_with_dcn=(True,)), ValueError, ["stage_with_dcn", "(True,)", "num_stages=4"]),
    (dict(depth=50, dcn=DCN, stage_with_dcn=True), ValueError, ["stage_with_dcn", "True", "per stage"]),
    (dict(depth=50, dcn="DCNv2"), TypeError, ["dcn", "'DCNv2'", "dict"]),
    (dict(depth=50, dcn=DCN, conv_cfg=dict(type="ConvWS")), ValueError, ["conv_cfg", "ConvWS", "dcn", "DCNv2"]),
    # plugins
    (dict(plugins=plugin()), TypeError, ["plugins", "list", "ContextBlock"]),
    (dict(plugins=(plugin(),)), TypeError, ["plugins", "list", "tuple"]),
    (dict(plugins=[plugin(stages=(True, False))]), ValueError, ["stages", "(True, False)", "num_stages=4"]),
    (dict(plugins=[plugin(stages=1)]), ValueError, ["stages", "1", "per stage"]),
    (
        dict(plugins=[dict(cfg=CONTEXT, position="before_conv1")]),
        ValueError,
        ["position", "'before_conv1'", "after_conv1"],
    ),
    (
        dict(depth=18, plugins=[dict(cfg=CONTEXT, position="after_conv3")]),
        ValueError,
        ["position", "'after_conv3'", "after_conv2"],
    ),
    (dict(plugins=[dict(cfg=CONTEXT)]), ValueError, ["position", "None", "after_conv1"]),
    (dict(plugins=[dict(position="after_conv2")]), ValueError, ["plugins", "'cfg'", "after_conv2"]),
    (dict(plugins=["ContextBlock"]), ValueError, ["plugins", "'cfg'", "'ContextBlock'"]),
    (dict(plugins=[plugin(), plugin()]), ValueError, ["plugins", "'context_block'", "postfix"]),
    (
        dict(plugins=[dict(cfg=dict(type="Kontext"), position="after_conv2")]),
        KeyError,
        ["plugin", "'Kontext'", "ContextBlock"],
    ),
    # layers
    (dict(norm_cfg=dict(type="NB")), KeyError, ["norm_cfg", "'NB'", "BN", "GN", "SyncBN"]),
    (dict(norm_cfg=dict(requires_grad=True)), KeyError, ["norm_cfg", "'type'", "requires_grad"]),
    (dict(norm_cfg=None), TypeError, ["norm_cfg", "None", "dict"]),
    (dict(norm_cfg="BN"), TypeError, ["norm_cfg", "'BN'", "dict"]),
    (dict(conv_cfg=dict(type="Cnov2d")), KeyError, ["conv_cfg", "'Cnov2d'", "Did you mean 'Conv2d'?"]),
    (dict(conv_cfg="Conv2d"), TypeError, ["conv_cfg", "'Conv2d'", "dict"]),
    # initialisation
    (dict(pretrained=3), TypeError, ["pretrained", "3", "string"]),
    (
        dict(pretrained="a.pth", init_cfg=dict(type="Pretrained", checkpoint="b.pth")),
        ValueError,
        ["pretrained", "'a.pth'", "init_cfg", "b.pth"],
    ),
    # unknown
    (dict(out_indexes=(0,)), TypeError, ["'out_indexes'", "Did you mean 'out_indices'?"]),
    (dict(frozen_stage=1), TypeError, ["'frozen_stage'", "Did you mean 'frozen_stages'?"]),
    (dict(qwertz=1), TypeError, ["ResNet", "'qwertz'"]),
]


@pytest.mark.parametrize(("arguments", "exception", "words"), WRONG, ids=lambda value: str(value)[:60])
def test_backbone_refuses(arguments, exception, words):
    arguments = dict(dict(depth=50, base_channels=4), **arguments)
    with pytest.raises(exception) as caught:
        ResNet(**arguments)
    # What mmdet signals with an assert, or with KeyError or TypeError, can still be caught as that.
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, AssertionError)
    for word in words:
        assert word in str(caught.value)


def test_config_is_refused_with_the_same_exception():
    with pytest.raises(TypeError, match="Did you mean 'num_stages'") as caught:
        build_backbone(dict(type="ResNet", depth=50, num_stage=4))
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, AssertionError)


@pytest.mark.parametrize(
    ("cls", "argument"), [(ResNetV1c, "deep_stem"), (ResNetV1d, "deep_stem"), (ResNetV1d, "avg_down")]
)
def test_variant_refuses_to_be_another(cls, argument):
    with pytest.raises(ValueError, match=rf"{argument} must be True for {cls.__name__}, got False") as caught:
        cls(depth=50, **{argument: False})
    assert isinstance(caught.value, AssertionError)


def test_variant_names_the_nearest_of_all_arguments():
    with pytest.raises(TypeError, match=r"ResNetV1d has no argument 'base_chanels'\. Did you mean 'base_channels'"):
        ResNetV1d(depth=50, base_chanels=4)


@pytest.mark.parametrize(
    ("x", "exception", "words"),
    [
        (torch.rand(3, 32, 32), ValueError, ["(N, 3, H, W)", "(3, 32, 32)"]),
        (torch.rand(1, 3, 2, 32, 32), ValueError, ["(N, 3, H, W)", "(1, 3, 2, 32, 32)"]),
        (torch.rand(1, 4, 32, 32), ValueError, ["(N, 3, H, W)", "(1, 4, 32, 32)"]),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), TypeError, ["floating-point", "uint8", "normalise"]),
        (torch.zeros(1, 3, 32, 32, dtype=torch.int64), TypeError, ["floating-point", "int64"]),
    ],
    ids=["3 dimensions", "5 dimensions", "4 channels", "uint8", "int64"],
)
def test_input_is_refused(x, exception, words):
    with pytest.raises(exception) as caught:
        ResNet(18, base_channels=4)(x)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, AssertionError)
    for word in ["x must", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize(
    ("arguments", "exception", "words"),
    [
        (dict(inplanes=0), ValueError, ["inplanes", "0", "at least 1"]),
        (dict(planes=-1), ValueError, ["planes", "-1", "at least 1"]),
        (dict(style="tf"), ValueError, ["style", "'tf'", "'pytorch'"]),
        (dict(plugins=plugin()), TypeError, ["plugins", "list"]),
        (dict(plugins=[plugin(), plugin()]), ValueError, ["'context_block'", "postfix"]),
        (dict(norm_cfg=dict(type="NB")), KeyError, ["norm_cfg", "'NB'"]),
        (dict(dcn=DCN, conv_cfg=dict(type="ConvWS")), ValueError, ["conv_cfg", "dcn"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_block_refuses(block, arguments, exception, words):
    with pytest.raises(exception) as caught:
        block(**dict(dict(inplanes=8, planes=4), **arguments))
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, AssertionError)
    for word in words:
        assert word in str(caught.value)


def test_init_weights_refuses_what_is_no_string():
    with pytest.raises(TypeError, match="pretrained must be a string"):
        ResNet(18, base_channels=4).init_weights(pretrained=3)
