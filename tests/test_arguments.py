"""Wrong arguments raise an error that names the argument, the value and what is allowed."""

import numpy as np
import pytest
import torch
from helpers import raises

from resnet_backbone import BasicBlock, Bottleneck, ResNet, ResNetV1c, ResNetV1d, build_backbone
from resnet_backbone.errors import ArgumentError, ArgumentTypeError, UnknownNameError

CONTEXT = dict(type="ContextBlock", ratio=0.5)
DCN = dict(type="DCNv2", deform_groups=1)


def plugin(**changes):
    return dict(cfg=CONTEXT, position="after_conv2", **changes)


WRONG = [
    # depth
    (dict(depth=99), UnknownNameError, ["depth", "99", "18, 34, 50, 101, 152"]),
    (dict(depth="50"), UnknownNameError, ["depth", "'50'", "18, 34, 50, 101, 152"]),
    (dict(depth=None), UnknownNameError, ["depth", "None", "18, 34, 50, 101, 152"]),
    (dict(depth=[50]), UnknownNameError, ["depth", "[50]", "18, 34, 50, 101, 152"]),
    (dict(depth=dict(type="ResNet")), UnknownNameError, ["depth", "18, 34, 50, 101, 152"]),
    (dict(depth=True), UnknownNameError, ["depth", "True", "18, 34, 50, 101, 152"]),
    # stages
    (dict(num_stages=0), ArgumentError, ["num_stages", "0", "1", "4"]),
    (dict(num_stages=5), ArgumentError, ["num_stages", "5", "1", "4"]),
    (dict(num_stages=2.0), ArgumentError, ["num_stages", "2.0", "1", "4"]),
    (dict(strides=(1, 2)), ArgumentError, ["strides", "(1, 2)", "num_stages=4"]),
    (dict(strides=(2, 2, 2, 0)), ArgumentError, ["strides", "(2, 2, 2, 0)", "1"]),
    (dict(strides=2), ArgumentTypeError, ["strides", "2", "4"]),
    (dict(num_stages=3), ArgumentError, ["strides", "num_stages=3"]),
    (dict(dilations=(1, 1, 1)), ArgumentError, ["dilations", "(1, 1, 1)", "num_stages=4"]),
    (dict(dilations=(2, 2, 2, -3)), ArgumentError, ["dilations", "-3", "1"]),
    (dict(dilations=(2, 2, 2, 2.5)), ArgumentError, ["dilations", "2.5", "1"]),
    (dict(strides=b"\1\2\2\2"), ArgumentTypeError, ["strides", "4"]),
    (dict(strides=np.array([1, 2, 2, 2])), ArgumentTypeError, ["strides", "4"]),
    # outputs
    (dict(out_indices=()), ArgumentError, ["out_indices", "()", "0", "3"]),
    (dict(out_indices=(1, 1)), ArgumentError, ["out_indices", "(1, 1)", "distinct", "0", "3"]),
    (dict(out_indices=(-1,)), ArgumentError, ["out_indices", "(-1,)", "0", "3"]),
    (dict(out_indices=(4,)), ArgumentError, ["out_indices", "(4,)", "0", "3"]),
    (dict(out_indices=(True,)), ArgumentError, ["out_indices", "(True,)", "0", "3"]),
    (dict(out_indices=3), ArgumentTypeError, ["out_indices", "3", "0", "3"]),
    (
        dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(2,)),
        ArgumentError,
        ["out_indices", "(2,)", "0", "1", "num_stages=2"],
    ),
    # style
    (dict(depth=18, style="tf"), ArgumentError, ["style", "'tf'", "'pytorch'", "'caffe'"]),
    (dict(depth=50, style="tf"), ArgumentError, ["style", "'tf'", "'pytorch'", "'caffe'"]),
    (dict(style=None), ArgumentError, ["style", "None", "'pytorch'", "'caffe'"]),
    (dict(style=np.array(["pytorch", "caffe"])), ArgumentError, ["style", "'pytorch'", "'caffe'"]),
    # booleans: any non-empty string would be true
    (dict(deep_stem="False"), ArgumentTypeError, ["deep_stem", "'False'", "True", "False"]),
    (dict(deep_stem=np.ones(2)), ArgumentTypeError, ["deep_stem", "True", "False"]),
    (dict(avg_down="no"), ArgumentTypeError, ["avg_down", "no", "True", "False"]),
    (dict(norm_eval="no"), ArgumentTypeError, ["norm_eval", "'no'", "True", "False"]),
    (dict(norm_eval=2), ArgumentTypeError, ["norm_eval", "2", "True", "False"]),
    (dict(zero_init_residual=torch.zeros(2)), ArgumentTypeError, ["zero_init_residual", "True", "False"]),
    (dict(with_cp="False"), ArgumentTypeError, ["with_cp", "'False'", "True", "False"]),
    (dict(with_cp={0, 1}), ArgumentTypeError, ["with_cp", "{0, 1}", "True", "False"]),
    (dict(with_cp=[True]), ArgumentError, ["with_cp", "[True]", "num_stages=4"]),
    (dict(fold_norm="yes"), ArgumentTypeError, ["fold_norm", "'yes'", "True", "False"]),
    (dict(channels_last="yes"), ArgumentTypeError, ["channels_last", "'yes'", "True", "False"]),
    (dict(projection_shortcut="no"), ArgumentTypeError, ["projection_shortcut", "'no'", "True", "False"]),
    (dict(contract_dilation=0.5), ArgumentTypeError, ["contract_dilation", "0.5", "True", "False"]),
    # freezing
    (dict(frozen_stages=-2), ArgumentError, ["frozen_stages", "-2", "-1", "4"]),
    (dict(frozen_stages=5), ArgumentError, ["frozen_stages", "5", "-1", "num_stages=4"]),
    (dict(frozen_stages=None), ArgumentError, ["frozen_stages", "None", "-1"]),
    # channels
    (dict(in_channels=0), ArgumentError, ["in_channels", "0", "1"]),
    (dict(base_channels=0), ArgumentError, ["base_channels", "0", "1"]),
    (dict(base_channels=-8), ArgumentError, ["base_channels", "-8", "1"]),
    (dict(base_channels=4.5), ArgumentError, ["base_channels", "4.5", "integer"]),
    (dict(stem_channels=0), ArgumentError, ["stem_channels", "0", "1"]),
    (dict(stem_channels=1, deep_stem=True), ArgumentError, ["stem_channels", "1", "2"]),
    (dict(stem_stride=3), ArgumentError, ["stem_stride", "3", "1", "2", "4"]),
    (dict(stem_stride=True), ArgumentError, ["stem_stride", "True", "1", "2", "4"]),
    (dict(stem_stride=(1, 1)), ArgumentError, ["stem_stride", "(1, 1)", "1", "2", "4"]),
    # dcn
    (dict(depth=50, dcn=DCN, stage_with_dcn=(True,)), ArgumentError, ["stage_with_dcn", "(True,)", "num_stages=4"]),
    (dict(depth=50, dcn=DCN, stage_with_dcn=True), ArgumentError, ["stage_with_dcn", "True", "num_stages=4"]),
    (dict(depth=50, dcn="DCNv2"), ArgumentTypeError, ["dcn", "'DCNv2'", "dict"]),
    (dict(depth=50, dcn=DCN, conv_cfg=dict(type="ConvWS")), ArgumentError, ["conv_cfg", "ConvWS", "dcn", "DCNv2"]),
    # plugins
    (dict(plugins=plugin()), ArgumentTypeError, ["plugins", "list", "ContextBlock"]),
    (dict(plugins=(plugin(),)), ArgumentTypeError, ["plugins", "list", "tuple"]),
    (dict(plugins=[plugin(stages=(True, False))]), ArgumentError, ["stages", "(True, False)", "num_stages=4"]),
    (dict(plugins=[plugin(stages=1)]), ArgumentError, ["stages", "1", "num_stages=4"]),
    (
        dict(plugins=[dict(cfg=CONTEXT, position="before_conv1")]),
        ArgumentError,
        ["position", "'before_conv1'", "after_conv1"],
    ),
    (
        dict(depth=18, plugins=[dict(cfg=CONTEXT, position="after_conv3")]),
        ArgumentError,
        ["position", "'after_conv3'", "after_conv2"],
    ),
    (dict(plugins=[dict(cfg=CONTEXT)]), ArgumentError, ["position", "None", "after_conv1"]),
    (dict(plugins=[dict(position="after_conv2")]), ArgumentError, ["plugins", "'cfg'", "after_conv2"]),
    (dict(plugins=["ContextBlock"]), ArgumentError, ["plugins", "'cfg'", "'ContextBlock'"]),
    (dict(plugins=[plugin(), plugin()]), ArgumentError, ["plugins", "'context_block'", "postfix"]),
    (
        dict(plugins=[dict(cfg=dict(type="Kontext"), position="after_conv2")]),
        UnknownNameError,
        ["plugin", "'Kontext'", "ContextBlock"],
    ),
    # layers
    (dict(norm_cfg=dict(type="NB")), UnknownNameError, ["norm_cfg", "'NB'", "BN", "GN", "SyncBN"]),
    (dict(norm_cfg=dict(requires_grad=True)), UnknownNameError, ["norm_cfg", "'type'", "requires_grad"]),
    (dict(norm_cfg=None), ArgumentTypeError, ["norm_cfg", "None", "dict"]),
    (dict(norm_cfg="BN"), ArgumentTypeError, ["norm_cfg", "'BN'", "dict"]),
    (dict(conv_cfg=dict(type="Cnov2d")), UnknownNameError, ["conv_cfg", "'Cnov2d'", "'Conv2d'"]),
    (dict(conv_cfg="Conv2d"), ArgumentTypeError, ["conv_cfg", "'Conv2d'", "dict"]),
    (dict(conv_cfg=dict(type="BN")), ArgumentTypeError, ["conv_cfg", "{'type': 'BN'}", "kernel_size"]),
    (dict(conv_cfg=dict(type=int)), ArgumentTypeError, ["conv_cfg", "'int'", "nn.Module"]),
    (dict(conv_cfg=dict(type="Conv2d", foo=1)), ArgumentTypeError, ["conv_cfg", "'foo'"]),
    (dict(conv_cfg=dict(type="Conv2d", groups=3)), ArgumentError, ["conv_cfg", "'groups': 3", "divisible"]),
    (dict(norm_cfg=dict(type="Conv2d")), ArgumentTypeError, ["norm_cfg", "'Conv2d'", "eps"]),
    (dict(norm_cfg=dict(type=int)), ArgumentTypeError, ["norm_cfg", "'int'", "nn.Module"]),
    (dict(norm_cfg=dict(type="BN", foo=1)), ArgumentTypeError, ["norm_cfg", "'foo'"]),
    (dict(norm_cfg=dict(type="BN", eps="1e-5")), ArgumentTypeError, ["norm_cfg", "eps", "'1e-5'", "number"]),
    (dict(norm_cfg=dict(type="BN", momentum="0.1")), ArgumentTypeError, ["norm_cfg", "momentum", "'0.1'", "number"]),
    (dict(norm_cfg=dict(type="BN", requires_grad="no")), ArgumentError, ["norm_cfg", "'no'", "bool"]),
    (dict(norm_cfg=dict(type="GN", num_groups=3)), ArgumentError, ["norm_cfg", "4", "'num_groups': 3"]),
    (dict(norm_cfg=dict(type="GN", num_groups=0)), ArgumentError, ["norm_cfg", "'num_groups': 0"]),
    (dict(norm_cfg=dict(type="GN", num_groups="2")), ArgumentTypeError, ["norm_cfg", "'num_groups': '2'"]),
    (
        dict(norm_cfg=dict(type="LN")),
        ArgumentError,
        ["norm_cfg", "{'type': 'LN'}", "LayerNorm", "dict(type='GN', num_groups=1)"],
    ),
    # initialization
    (dict(init_cfg=True), ArgumentTypeError, ["init_cfg", "True", "dict"]),
    (dict(init_cfg="torchvision://resnet50"), ArgumentTypeError, ["init_cfg", "'torchvision://resnet50'", "dict"]),
    (dict(init_cfg=dict(checkpoint="a.pth")), ArgumentTypeError, ["init_cfg", "a.pth", "'type'"]),
    (dict(init_cfg=["Kaiming"]), ArgumentTypeError, ["init_cfg", "['Kaiming']", "dict"]),
    (dict(init_cfg=dict(type="Pretrained")), ArgumentTypeError, ["init_cfg", "'Pretrained'", "checkpoint"]),
    (dict(init_cfg=dict(type="Pretrained", checkpoint=3)), ArgumentTypeError, ["init_cfg", "3", "path"]),
    (dict(pretrained=3), ArgumentTypeError, ["pretrained", "3", "string"]),
    (
        dict(pretrained="a.pth", init_cfg=dict(type="Pretrained", checkpoint="b.pth")),
        ArgumentError,
        ["pretrained", "'a.pth'", "init_cfg", "b.pth"],
    ),
    # device and dtype
    (dict(device="gpu"), ArgumentError, ["device", "'gpu'", "'cpu'"]),
    (dict(device=[0]), ArgumentError, ["device", "[0]"]),
    (dict(dtype=torch.int8), ArgumentTypeError, ["dtype", "torch.int8", "floating-point"]),
    (dict(dtype="float16"), ArgumentTypeError, ["dtype", "'float16'", "floating-point"]),
    (dict(out_stem="yes"), ArgumentTypeError, ["out_stem", "'yes'", "True", "False"]),
    # unknown
    (dict(out_indexes=(0,)), ArgumentTypeError, ["'out_indexes'", "'out_indices'"]),
    (dict(frozen_stage=1), ArgumentTypeError, ["'frozen_stage'", "'frozen_stages'"]),
    (dict(qwertz=1), ArgumentTypeError, ["ResNet", "'qwertz'"]),
]


@pytest.mark.parametrize(("arguments", "exception", "words"), WRONG, ids=lambda value: str(value)[:60])
def test_backbone_rejects(arguments, exception, words):
    arguments = dict(dict(depth=50, base_channels=4), **arguments)
    with raises(exception, *words):
        ResNet(**arguments)


@pytest.mark.parametrize("name", ["unknown", "kwargs"])
def test_unrelated_argument_has_no_suggestion(name):
    with raises(ArgumentTypeError, "ResNetV1d", f"'{name}'") as caught:
        ResNetV1d(50, **{name: 1})
    assert str(caught.value).count("'") == 2  # no other name is quoted


def test_config_is_rejected_with_the_same_exception():
    with raises(ArgumentTypeError, "'num_stage'", "'num_stages'"):
        build_backbone(dict(type="ResNet", depth=50, num_stage=4))


def test_exceptions_are_those_of_mmdet_and_of_python():
    for exception, bases in [
        (ArgumentError, (ValueError, AssertionError)),
        (ArgumentTypeError, (ArgumentError, TypeError)),
        (UnknownNameError, (ArgumentError, KeyError)),
    ]:
        assert all(issubclass(exception, base) for base in bases)


@pytest.mark.parametrize(
    ("cls", "argument"), [(ResNetV1c, "deep_stem"), (ResNetV1d, "deep_stem"), (ResNetV1d, "avg_down")]
)
def test_variant_rejects_arguments_of_other_variants(cls, argument):
    with raises(ArgumentError, argument, "True", cls.__name__, "False"):
        cls(depth=50, **{argument: False})


def test_variant_suggests_the_closest_argument():
    with raises(ArgumentTypeError, "ResNetV1d", "'base_chanels'", "'base_channels'"):
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
        (torch.rand(3, 32, 32), ArgumentError, ["(N, 3, H, W)", "(3, 32, 32)"]),
        (torch.rand(1, 3, 2, 32, 32), ArgumentError, ["(N, 3, H, W)", "(1, 3, 2, 32, 32)"]),
        (torch.rand(1, 4, 32, 32), ArgumentError, ["(N, 3, H, W)", "(1, 4, 32, 32)"]),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ArgumentTypeError, ["floating-point", "uint8", "normalize"]),
        (torch.zeros(1, 3, 32, 32, dtype=torch.int64), ArgumentTypeError, ["floating-point", "int64"]),
        ([torch.rand(1, 3, 32, 32)], ArgumentTypeError, ["(N, 3, H, W)", "list"]),
        (np.zeros((1, 3, 32, 32), np.float32), ArgumentTypeError, ["(N, 3, H, W)", "ndarray"]),
    ],
    ids=["3 dimensions", "5 dimensions", "4", "uint8", "int64", "list", "numpy"],
)
def test_input_is_rejected(x, exception, words):
    with raises(exception, "x", *words):
        ResNet(18, base_channels=4)(x)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize(
    ("arguments", "exception", "words"),
    [
        (dict(inplanes=0), ArgumentError, ["inplanes", "0", "1"]),
        (dict(planes=-1), ArgumentError, ["planes", "-1", "1"]),
        (dict(style="tf"), ArgumentError, ["style", "'tf'", "'pytorch'"]),
        (dict(plugins=plugin()), ArgumentTypeError, ["plugins", "list"]),
        (dict(plugins=[plugin(), plugin()]), ArgumentError, ["'context_block'", "postfix"]),
        (dict(norm_cfg=dict(type="NB")), UnknownNameError, ["norm_cfg", "'NB'"]),
        (dict(dcn=DCN, conv_cfg=dict(type="ConvWS")), ArgumentError, ["conv_cfg", "dcn"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_block_rejects(block, arguments, exception, words):
    with raises(exception, *words):
        block(**dict(dict(inplanes=8, planes=4), **arguments))


def test_init_weights_requires_a_string():
    with raises(ArgumentTypeError, "pretrained", "string", "3"):
        ResNet(18, base_channels=4).init_weights(pretrained=3)
