"""The other networks: building, training, folding, deployment and export."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import TORCH, assert_same_bits, gradients, loss_of, raises, shake

import resnet_backbone
from resnet_backbone import build_backbone, with_fpn
from resnet_backbone.errors import ArgumentError, ArgumentTypeError, UnknownNameError
from resnet_backbone.layers.deform import ModulatedDeformConv2dPack
from resnet_backbone.tools.info import describe
from resnet_backbone.tools.saved_tensors import SavedTensorBytes

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
        type="DetectoRS_ResNet", depth=50, base_channels=8, base_width=16, conv_cfg=dict(type="ConvAWS"), **SAC
    ),
    "DetectoRS_ResNeXt": dict(type="DetectoRS_ResNeXt", depth=50, base_channels=8, groups=4, base_width=4),
}


@pytest.fixture(autouse=True)
def _few_blocks(monkeypatch):
    """Use at most two blocks per stage: further ones are like the second."""
    for cls in vars(resnet_backbone).values():
        if isinstance(cls, type) and 50 in getattr(cls, "arch_settings", {}):
            block, _ = cls.arch_settings[50]
            monkeypatch.setattr(cls, "arch_settings", {**cls.arch_settings, 50: (block, (2, 1, 2, 1))})


def backbone_of(name, **arguments):
    torch.manual_seed(0)
    backbone = shake(build_backbone({**copy.deepcopy(FAMILY[name]), **arguments}))
    for module in backbone.modules():
        if hasattr(module, "weight_gamma"):
            # Standardized weights are large without a checkpoint: features would overflow.
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
def test_feature_info_describes_the_outputs(name):
    backbone = backbone_of(name)
    x = images(name)
    levels = backbone(x)
    assert tuple(level.shape[1] for level in levels) == backbone.out_channels
    assert tuple(x.shape[2] // level.shape[2] for level in levels) == backbone.out_strides


@pytest.mark.parametrize("name", FAMILY)
def test_folded_step_equals_the_exact_one(name):
    # In single precision, rounding can switch a ReLU and change gradients by more than rounding.
    backbone, x = backbone_of(name).double().train(), images(name).double()
    expected = step(backbone, x)
    for parameter_name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name
    backbone._set_fold_norm(True)
    assert_close(step(backbone, x), expected, tolerance=1e-9)


@pytest.mark.parametrize("name", FAMILY)
def test_checkpointed_step_equals_the_exact_one(name):
    backbone, x = backbone_of(name).double().train(), images(name).double()
    expected = step(backbone, x)
    exact = saved_bytes(backbone, x)
    stages = tuple(index != 1 for index in range(backbone.num_stages))
    checkpointed = backbone_of(name, with_cp=stages).double().train()
    # Gradients are summed in another order.
    assert_close(step(checkpointed, x), expected, tolerance=1e-9)
    assert saved_bytes(checkpointed, x) < 0.8 * exact


def saved_bytes(backbone, x):
    with SavedTensorBytes(backbone) as counter:
        levels = backbone(x)
        assert levels
        return counter.bytes()


@pytest.mark.parametrize("name", FAMILY)
def test_channels_last_step_equals_the_exact_one(name):
    expected = step(backbone_of(name).double().train(), images(name).double())
    backbone = backbone_of(name, channels_last=True).double().train()
    results = step(backbone, images(name).double())
    assert_close(results, expected, tolerance=1e-9)
    for level, info in zip(results, backbone.feature_info):
        assert info.module == "image" or level.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", FAMILY)
def test_plugins_and_dcn_are_folded_and_deployed(name):
    plugins = [
        dict(cfg=dict(type="ContextBlock", ratio=0.25, postfix=index), position=f"after_conv{index}")
        for index in (1, 2, 3)
    ]
    arguments = dict(dcn=dict(type=ModulatedDeformConv2dPack), plugins=plugins)
    if "conv_cfg" in FAMILY[name]:
        arguments["conv_cfg"] = None
    arguments["stage_with_dcn"] = (False, True, False, False)[: backbone_of(name).num_stages]
    backbone, x = backbone_of(name, **arguments).double().train(), images(name).double()
    parameters = dict(backbone.named_parameters())
    for key in parameters:
        if "context_block" in key or "conv_offset" in key:
            torch.nn.init.normal_(parameters[key], std=0.1)  # They start at zero.
    expected = step(backbone, x)
    assert not [key for key in parameters if not parameters[key].grad.abs().max() > 0 and "context_block" not in key]
    backbone._set_fold_norm(True)
    assert_close(step(backbone, x), expected, tolerance=1e-9)
    with torch.no_grad():
        expected = backbone.eval()(x)
        assert_close(backbone.switch_to_deploy()(x), expected, tolerance=1e-9)


@pytest.mark.parametrize("name", FAMILY)
def test_freezing_and_thawing(name):
    backbone, x = backbone_of(name, frozen_stages=1).train(), images(name)
    for stages in (1, 2, 0):
        step(backbone.freeze(stages), x)
        trained = {key.split(".")[0] for key, parameter in backbone.named_parameters() if parameter.grad is not None}
        assert trained == set(backbone.res_layers[stages:])


@pytest.mark.parametrize("name", FAMILY)
def test_pickle_fpn_and_info(name):
    backbone, x = backbone_of(name).eval(), images(name)
    with torch.no_grad():
        levels = backbone(x)
        assert_same_bits(pickle.loads(pickle.dumps(backbone))(x), levels)
        pyramid = with_fpn(backbone, 8)(x)
    assert [level.shape[2:] for level in list(pyramid.values())[:-1]] == [level.shape[2:] for level in levels]
    described = describe(backbone, x.shape[2:])
    assert [part.name for part in described.parts] == ["stem", *backbone.res_layers]
    assert described.total.params == sum(parameter.numel() for parameter in backbone.parameters())


@pytest.mark.parametrize("name", FAMILY)
def test_deployed_equals_the_exact_path(name):
    backbone = backbone_of(name).eval()
    with torch.no_grad():
        expected = backbone(images(name))
        assert_close(backbone.switch_to_deploy()(images(name)), expected)
    left = [layer for layer in backbone.modules() if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm)]
    assert not left


@pytest.mark.parametrize("name", ["ResNeXt", "Res2Net", "SE-ResNeXt"])
@pytest.mark.parametrize("dims", [1, 3])
def test_signals_and_volumes(name, dims):
    arguments = dict(conv_cfg=dict(type=f"Conv{dims}d"), norm_cfg=dict(type=f"BN{dims}d"))
    if "plugins" in FAMILY[name]:
        plugin = dict(type="SELayer", ratio=4, conv_cfg=arguments["conv_cfg"])
        arguments["plugins"] = [dict(cfg=plugin, position="after_conv3")]
    backbone = backbone_of(name, **arguments).eval()
    with torch.no_grad():
        levels = backbone(torch.rand(1, 3, *[48] * dims))
    assert tuple(level.shape[1] for level in levels) == backbone.out_channels
    assert [level.dim() for level in levels] == [2 + dims] * 4


@pytest.mark.parametrize("name", FAMILY)
def test_symbolic_trace_is_equal(name):
    backbone, x = backbone_of(name).eval(), images(name)
    with torch.no_grad():
        assert_same_bits(torch.fx.symbolic_trace(backbone)(x), backbone(x))


# One of each kind of block.
BLOCKS = ["ResNeXt", "Res2Net", "ResNeSt", "TridentResNet", "DetectoRS_ResNet with SAC"]


@pytest.mark.parametrize("name", BLOCKS)
def test_compiles_without_graph_breaks(name):
    if "SAC" in name and TORCH < (2, 2):
        pytest.skip("torchvision describes its operator to torch.compile since 0.17 (torch 2.2)")
    torch.compiler.reset()
    backbone, x = backbone_of(name, fold_norm=True, frozen_stages=1).double().train(), images(name).double()
    expected = step(backbone, x)
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    backbone.zero_grad()
    levels = compiled(x)
    loss_of(levels).backward()
    assert_close([*levels, *gradients(backbone)], expected, tolerance=1e-9)


@pytest.mark.skipif(TORCH < (2, 5), reason=f"torch {torch.__version__} exports by its compiler alone")
@pytest.mark.parametrize("name", BLOCKS)
def test_exports(name):
    backbone, x = backbone_of(name).eval().switch_to_deploy(), images(name)
    with torch.no_grad():
        exported = torch.export.export(backbone, (x,), strict=False).module()
        assert_close(exported(x), backbone(x))


def test_rfp_forward_uses_the_pyramid():
    backbone = backbone_of("DetectoRS_ResNet", rfp_inplanes=8, output_img=False)
    x = images("DetectoRS_ResNet")
    pyramid = [torch.rand(2, 8, 64 // stride, 64 // stride) for stride in (4, 8, 16, 32)]
    first = backbone(x)
    second = backbone.rfp_forward(x, pyramid)
    assert torch.equal(second[0], first[0])
    assert all(not torch.equal(level, before) for level, before in zip(second[1:], first[1:], strict=True))
    for block in (backbone.layer2[0], backbone.layer3[0], backbone.layer4[0]):
        torch.nn.init.zeros_(block.rfp_conv.weight)
        torch.nn.init.zeros_(block.rfp_conv.bias)
    assert all(torch.equal(a, b) for a, b in zip(backbone.rfp_forward(x, pyramid), first, strict=True))


@pytest.mark.parametrize(
    ("name", "arguments", "exception", "words"),
    [
        ("ResNeXt", dict(groups=0), ArgumentError, ["groups", "0", "1"]),
        ("ResNeXt", dict(depth=18), UnknownNameError, ["depth", "18", "50, 101, 152"]),
        (
            "ResNeXt",
            dict(plugins=[dict(cfg=dict(type="SELayer"), position="after_conv4")]),
            ArgumentError,
            ["position", "'after_conv4'", "'after_conv3'"],
        ),
        (
            "RegNet",
            dict(arch="regnetx_3.2fg"),
            UnknownNameError,
            ["arch", "'regnetx_3.2fg'", "'regnetx_3.2gf'", "regnetx_400mf"],
        ),
        ("RegNet", dict(arch=dict(REGNET, w0=17)), ArgumentError, ["w0", "17", "8"]),
        ("RegNet", dict(deep_stem=True), ArgumentError, ["deep_stem", "True", "False"]),
        ("RegNet", dict(stem_stride=4), ArgumentError, ["stem_stride", "4", "1", "2"]),
        ("RegNet", dict(num_stages=2), ArgumentTypeError, ["RegNet", "num_stages=2", "arch"]),
        ("RegNet", dict(depth=50), ArgumentTypeError, ["RegNet", "depth=50", "arch"]),
        ("Res2Net", dict(scales=1), ArgumentError, ["scales", "1", "2"]),
        ("Res2Net", dict(style="caffe"), ArgumentError, ["style", "'caffe'", "'pytorch'"]),
        (
            "Res2Net",
            dict(plugins=[dict(cfg=dict(type="SELayer"), position="after")]),
            ArgumentError,
            ["position", "'after'", "'after_conv3'"],
        ),
        ("ResNeSt", dict(radix=0), ArgumentError, ["radix", "0", "1"]),
        ("Wide ResNet", dict(base_width="128"), ArgumentError, ["base_width", "'128'", "1"]),
        ("Wide ResNet", dict(depth=18), ArgumentError, ["base_width", "16", "18", "None"]),
        ("TridentResNet", dict(num_stages=4), ArgumentError, ["num_stages", "4", "3"]),
        (
            "TridentResNet",
            dict(trident_dilations=(1, 2)),
            ArgumentError,
            ["trident_dilations", "(1, 2)", "num_branch=3"],
        ),
        ("TridentResNet", dict(test_branch_idx=3), ArgumentError, ["test_branch_idx", "3", "-1", "2"]),
        ("DetectoRS_ResNet", dict(sac="SAC"), ArgumentTypeError, ["sac", "'SAC'", "dict"]),
        (
            "DetectoRS_ResNet",
            dict(init_cfg=dict(type="Kaiming")),
            ArgumentTypeError,
            ["init_cfg", "'Kaiming'", "'Pretrained'"],
        ),
        (
            "DetectoRS_ResNet",
            dict(stage_with_sac=(True,), sac=SAC["sac"]),
            ArgumentError,
            ["stage_with_sac", "(True,)", "num_stages=4"],
        ),
    ],
)
def test_wrong_argument_is_named(name, arguments, exception, words):
    with raises(exception, *words):
        backbone_of(name, **arguments)
