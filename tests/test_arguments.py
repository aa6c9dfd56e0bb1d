"""Wrong arguments raise an error that names the argument, the value and what is allowed."""

import numpy as np
import pytest
import torch
from helpers import refused

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
    (dict(depth=[50]), KeyError, ["depth", "[50]", "18, 34, 50, 101, 152"]),
    (dict(depth=dict(type="ResNet")), KeyError, ["depth", "18, 34, 50, 101, 152"]),
    (dict(depth=True), KeyError, ["depth", "True", "18, 34, 50, 101, 152"]),
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
    (dict(strides=b"\1\2\2\2"), TypeError, ["strides", "sequence of 4"]),
    (dict(strides=np.array([1, 2, 2, 2])), TypeError, ["strides", "sequence of 4"]),
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
    (dict(style=np.array(["pytorch", "caffe"])), ValueError, ["style", "'pytorch' or 'caffe'"]),
    # booleans: any non-empty string would be true
    (dict(deep_stem="False"), TypeError, ["deep_stem", "'False'", "True or False"]),
    (dict(deep_stem=np.ones(2)), TypeError, ["deep_stem", "True or False"]),
    (dict(avg_down="no"), TypeError, ["avg_down", "no", "True or False"]),
    (dict(norm_eval="no"), TypeError, ["norm_eval", "'no'", "True or False"]),
    (dict(norm_eval=2), TypeError, ["norm_eval", "2", "True or False"]),
    (dict(zero_init_residual=torch.zeros(2)), TypeError, ["zero_init_residual", "True or False"]),
    (dict(with_cp="False"), TypeError, ["with_cp", "'False'", "True or False"]),
    (dict(with_cp={0, 1}), TypeError, ["with_cp", "{0, 1}", "True or False"]),
    (dict(with_cp=[True]), ValueError, ["with_cp", "[True]", "num_stages=4"]),
    (dict(fold_norm="yes"), TypeError, ["fold_norm", "'yes'", "True or False"]),
    (dict(channels_last="yes"), TypeError, ["channels_last", "'yes'", "True or False"]),
    (dict(projection_shortcut="no"), TypeError, ["projection_shortcut", "'no'", "True or False"]),
    (dict(contract_dilation=0.5), TypeError, ["contract_dilation", "0.5", "True or False"]),
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
    (dict(stem_stride=3), ValueError, ["stem_stride", "3", "1, 2 or 4"]),
    (dict(stem_stride=True), ValueError, ["stem_stride", "True", "1, 2 or 4"]),
    (dict(stem_stride=(1, 1)), ValueError, ["stem_stride", "(1, 1)", "1, 2 or 4"]),
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
    (dict(conv_cfg=dict(type="BN")), TypeError, ["conv_cfg", "{'type': 'BN'}", "kernel_size"]),
    (dict(conv_cfg=dict(type=int)), TypeError, ["conv_cfg", "'int'", "nn.Module"]),
    (dict(conv_cfg=dict(type="Conv2d", foo=1)), TypeError, ["conv_cfg", "'foo'"]),
    (dict(conv_cfg=dict(type="Conv2d", groups=3)), ValueError, ["conv_cfg", "'groups': 3", "divisible"]),
    (dict(norm_cfg=dict(type="Conv2d")), TypeError, ["norm_cfg", "'Conv2d'", "eps"]),
    (dict(norm_cfg=dict(type=int)), TypeError, ["norm_cfg", "'int'", "nn.Module"]),
    (dict(norm_cfg=dict(type="BN", foo=1)), TypeError, ["norm_cfg", "'foo'"]),
    (dict(norm_cfg=dict(type="BN", eps="1e-5")), TypeError, ["norm_cfg's eps", "'1e-5'", "number"]),
    (dict(norm_cfg=dict(type="BN", momentum="0.1")), TypeError, ["norm_cfg's momentum", "'0.1'", "number"]),
    (dict(norm_cfg=dict(type="BN", requires_grad="no")), ValueError, ["norm_cfg", "'no'", "bool"]),
    (dict(norm_cfg=dict(type="GN", num_groups=3)), ValueError, ["norm_cfg", "4 channels", "'num_groups': 3"]),
    (dict(norm_cfg=dict(type="GN", num_groups=0)), ValueError, ["norm_cfg", "'num_groups': 0"]),
    (dict(norm_cfg=dict(type="GN", num_groups="2")), TypeError, ["norm_cfg", "'num_groups': '2'"]),
    (dict(norm_cfg=dict(type="LN")), ValueError, ["norm_cfg", "LayerNorm", "last axis", "'GN'"]),
    # initialization
    (dict(init_cfg=True), TypeError, ["init_cfg", "True", "dict"]),
    (dict(init_cfg="torchvision://resnet50"), TypeError, ["init_cfg", "'torchvision://resnet50'", "dict"]),
    (dict(init_cfg=dict(checkpoint="a.pth")), TypeError, ["init_cfg", "a.pth", "'type'"]),
    (dict(init_cfg=["Kaiming"]), TypeError, ["init_cfg", "['Kaiming']", "dict"]),
    (dict(init_cfg=dict(type="Pretrained")), TypeError, ["init_cfg", "'Pretrained'", "checkpoint"]),
    (dict(init_cfg=dict(type="Pretrained", checkpoint=3)), TypeError, ["init_cfg", "3", "path"]),
    (dict(pretrained=3), TypeError, ["pretrained", "3", "string"]),
    (
        dict(pretrained="a.pth", init_cfg=dict(type="Pretrained", checkpoint="b.pth")),
        ValueError,
        ["pretrained", "'a.pth'", "init_cfg", "b.pth"],
    ),
    # device and dtype
    (dict(device="gpu"), ValueError, ["device", "'gpu'", "'cpu'"]),
    (dict(device=[0]), ValueError, ["device", "[0]"]),
    (dict(dtype=torch.int8), TypeError, ["dtype", "torch.int8", "floating-point"]),
    (dict(dtype="float16"), TypeError, ["dtype", "'float16'", "floating-point"]),
    (dict(out_stem="yes"), TypeError, ["out_stem", "'yes'", "True or False"]),
    # unknown
    (dict(out_indexes=(0,)), TypeError, ["'out_indexes'", "Did you mean 'out_indices'?"]),
    (dict(frozen_stage=1), TypeError, ["'frozen_stage'", "Did you mean 'frozen_stages'?"]),
    (dict(qwertz=1), TypeError, ["ResNet", "'qwertz'"]),
]


@pytest.mark.parametrize(("arguments", "exception", "words"), WRONG, ids=lambda value: str(value)[:60])
def test_backbone_rejects(arguments, exception, words):
    arguments = dict(dict(depth=50, base_channels=4), **arguments)
    with refused(exception, words):
        ResNet(**arguments)


@pytest.mark.parametrize("name", ["unknown", "kwargs"])
def test_unrelated_argument_has_no_suggestion(name):
    with pytest.raises(TypeError, match=f"ResNetV1d has no argument '{name}'\\.$"):
        ResNetV1d(50, **{name: 1})


def test_config_is_rejected_with_the_same_exception():
    with pytest.raises(TypeError, match="Did you mean 'num_stages'") as caught:
        build_backbone(dict(type="ResNet", depth=50, num_stage=4))
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, AssertionError)


@pytest.mark.parametrize(
    ("cls", "argument"), [(ResNetV1c, "deep_stem"), (ResNetV1d, "deep_stem"), (ResNetV1d, "avg_down")]
)
def test_variant_rejects_arguments_of_other_variants(cls, argument):
    with pytest.raises(ValueError, match=rf"{argument} must be True for {cls.__name__}, got False") as caught:
        cls(depth=50, **{argument: False})
    assert isinstance(caught.value, AssertionError)


def test_variant_suggests_the_closest_argument():
    with pytest.raises(TypeError, match=r"ResNetV1d has no argument 'base_chanels'\. Did you mean 'base_channels'"):
        ResNetV1d(depth=50, base_chanels=4)


def test_numpy_scalars_are_accepted():
    backbone = ResNet(
        np.int64(18),
        base_channels=np.int64(4),
        strides=tuple(np.array([1, 2, 2, 2])),
        out_indices=list(np.array([0, 3])),
        frozen_stages=np.int64(1),
        norm_eval=np.bool_(False),
        with_cp=np.bool_(True),
        deep_stem=1,
    )
    assert [level.shape[1:] for level in backbone(torch.rand(2, 3, 32, 32))] == [(4, 8, 8), (32, 1, 1)]
    assert backbone.out_strides == (4, 32)


@pytest.mark.parametrize(
    ("x", "exception", "words"),
    [
        (torch.rand(3, 32, 32), ValueError, ["(N, 3, H, W)", "(3, 32, 32)"]),
        (torch.rand(1, 3, 2, 32, 32), ValueError, ["(N, 3, H, W)", "(1, 3, 2, 32, 32)"]),
        (torch.rand(1, 4, 32, 32), ValueError, ["(N, 3, H, W)", "(1, 4, 32, 32)"]),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), TypeError, ["floating-point", "uint8", "normalize"]),
        (torch.zeros(1, 3, 32, 32, dtype=torch.int64), TypeError, ["floating-point", "int64"]),
        ([torch.rand(1, 3, 32, 32)], TypeError, ["(N, 3, H, W)", "list"]),
        (np.zeros((1, 3, 32, 32), np.float32), TypeError, ["(N, 3, H, W)", "ndarray"]),
    ],
    ids=["3 dimensions", "5 dimensions", "4 channels", "uint8", "int64", "list", "numpy"],
)
def test_input_is_rejected(x, exception, words):
    with refused(exception, ["x must", *words]):
        ResNet(18, base_channels=4)(x)


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
def test_block_rejects(block, arguments, exception, words):
    with refused(exception, words):
        block(**dict(dict(inplanes=8, planes=4), **arguments))


def test_init_weights_requires_a_string():
    with pytest.raises(TypeError, match="pretrained must be a string"):
        ResNet(18, base_channels=4).init_weights(pretrained=3)
