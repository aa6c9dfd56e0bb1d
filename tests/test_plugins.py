import json
import os

import numpy as np
import pytest
import torch
from fixtures.dcn_plugins import FILE, NARROW, fill, image, measure
from helpers import raises
from mmengine.registry import MODELS, Registry
from torch import nn

from resnet_backbone import BasicBlock, Bottleneck, ResNet, build_backbone
from resnet_backbone.errors import ArgumentError, ArgumentTypeError, UnknownNameError

BLOCKS = {BasicBlock: ("after_conv1", "after_conv2"), Bottleneck: ("after_conv1", "after_conv2", "after_conv3")}
EVERY_POSITION = [(block, position) for block, positions in BLOCKS.items() for position in positions]
PLUGINS = {
    "ContextBlock": (dict(type="ContextBlock", ratio=0.25), "context_block"),
    "GeneralizedAttention": (
        dict(type="GeneralizedAttention", spatial_range=-1, num_heads=2, attention_type="1111", kv_stride=2),
        "gen_attention_block",
    ),
    "NonLocal2d": (dict(type="NonLocal2d", reduction=2, zeros_init=False), "nonlocal_block"),
    "ConvModule": (dict(type="ConvModule", kernel_size=3, padding=1, norm_cfg=dict(type="BN")), "conv_block"),
    "SELayer": (dict(type="SELayer", ratio=4), "se_layer"),
}


class Scale(nn.Module):
    """A user's plugin that records the order of execution."""

    order: list = []  # noqa: RUF012

    def __init__(self, in_channels, by=2.0, label=""):
        super().__init__()
        self.in_channels, self.by, self.label = in_channels, by, label

    def forward(self, x):
        if self.training:
            self.order.append(self.label)
        return self.by * x


class Reshapes(nn.Module):
    def __init__(self, in_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, in_channels + 1, 1)

    def forward(self, x):
        return self.conv(x)


class ReturnsTuple(Scale):
    def forward(self, x):
        return x, x


class HasNoForward(nn.Module):
    def __init__(self, in_channels):
        super().__init__()


class Shrinks(Scale):
    def forward(self, x):
        return nn.functional.avg_pool2d(x, 2)


class TakesTwo(Scale):
    def forward(self, x, y):
        return x + y


class Refuses(nn.Module):
    def __init__(self, in_channels):
        super().__init__()
        assert in_channels > 10**6


class TakesNoChannels(nn.Module):
    def forward(self, x):
        return x


class NoModule:
    def __init__(self, in_channels):
        pass


def make_block(block, plugins, **kwargs):
    channels = 8 * block.expansion
    return block(channels, 8, plugins=plugins, **kwargs)


def cfg_for(name, block, position):
    cfg, abbreviation = PLUGINS[name]
    channels = 8 * (block.expansion if position == "after_conv3" else 1)
    return {**cfg, **(dict(out_channels=channels) if name == "ConvModule" else {})}, abbreviation


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.parametrize(("block", "position"), EVERY_POSITION)
def test_every_plugin_at_every_position(name, block, position):
    torch.manual_seed(0)
    cfg, abbreviation = cfg_for(name, block, position)
    layer = make_block(block, [dict(cfg=cfg, position=position)])
    assert type(getattr(layer, abbreviation)) is MODELS.get(name)
    assert getattr(layer, f"{position}_plugin_names") == [abbreviation]
    for other in set(BLOCKS[block]) - {position}:
        assert getattr(layer, f"{other}_plugin_names") == []

    seen = []
    getattr(layer, abbreviation).register_forward_hook(lambda _, args, out: seen.append((args[0].shape, out.shape)))
    x = torch.randn(2, layer.inplanes, 12, 12)
    out = layer(x)
    out.sum().backward()
    channels = layer.planes * (block.expansion if position == "after_conv3" else 1)
    assert seen == [((2, channels, 12, 12), (2, channels, 12, 12))]
    assert out.shape == x.shape
    assert any(parameter.grad is not None for parameter in getattr(layer, abbreviation).parameters())


@pytest.mark.parametrize("block", BLOCKS)
def test_position_of_plugins(block):
    """Plugins run after the norm layer, or after its ReLU unless the sum follows."""
    for position in BLOCKS[block]:
        layer = make_block(block, [dict(cfg=dict(type=Scale, by=3.0), position=position)]).eval()
        plain = make_block(block, None).eval()
        layer.load_state_dict(plain.state_dict())
        x = torch.randn(1, layer.inplanes, 6, 6)
        last = BLOCKS[block][-1]
        if position == last:
            # Three times the residual branch, before the shortcut is added.
            with torch.no_grad():
                getattr(plain, f"norm{last[-1]}").weight.mul_(3)
            torch.testing.assert_close(layer(x), plain(x))
        else:
            inputs = {}
            for name, model in (("plain", plain), ("scaled", layer)):
                following = getattr(model, f"conv{int(position[-1]) + 1}")
                following.register_forward_pre_hook(
                    lambda _, args, name=name, inputs=inputs: inputs.__setitem__(name, args[0])
                )
                model(x)
            assert inputs["plain"].min() == 0
            assert torch.equal(inputs["scaled"], 3 * inputs["plain"])


@pytest.mark.parametrize(("block", "position"), EVERY_POSITION)
def test_plugins_run_in_the_order_of_the_list(block, position):
    labels = ["a", "b", "c"]
    plugins = [dict(cfg=dict(type=Scale, label=label, postfix=f"_{label}"), position=position) for label in labels]
    layer = make_block(block, plugins).train()
    Scale.order.clear()
    layer(torch.randn(2, layer.inplanes, 6, 6))
    assert Scale.order == labels
    assert getattr(layer, f"{position}_plugin_names") == ["scale_a", "scale_b", "scale_c"]


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_stage_masks(depth):
    last = BLOCKS[ResNet.arch_settings[depth][0]][-1]
    plugins = [
        dict(cfg=dict(type="ContextBlock", ratio=0.25), stages=(False, True, False, True), position=last),
        dict(cfg=dict(type="ContextBlock", ratio=0.25, postfix=2), stages=(False, False, True, True), position=last),
        dict(cfg=dict(type="SELayer", ratio=4), position="after_conv1"),
    ]
    backbone = ResNet(depth, base_channels=8, plugins=plugins).train()
    names = [[name for name, _ in backbone.get_submodule(f"layer{stage}.0").named_children()] for stage in (1, 2, 3, 4)]
    assert ["context_block" in stage for stage in names] == [False, True, False, True]
    assert ["context_block2" in stage for stage in names] == [False, False, True, True]
    assert ["se_layer" in stage for stage in names] == [True] * 4
    assert plugins[0]["stages"] == (False, True, False, True)
    backbone.init_weights()
    sum(level.sum() for level in backbone(torch.randn(2, 3, 32, 32))).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@pytest.mark.parametrize("depth", [18, 50])
def test_dcn_and_plugins_with_checkpointing_and_a_checkpoint(depth, tmp_path):
    def build(with_cp):
        return ResNet(
            depth,
            base_channels=8,
            dcn=dict(type="DCNv2", deform_groups=2),
            num_stages=1,
            strides=(1,),
            dilations=(1,),
            out_indices=(0,),
            stage_with_dcn=(True,),
            plugins=[dict(cfg=dict(type="ContextBlock", ratio=0.25), position="after_conv2")],
            with_cp=with_cp,
        ).train()

    plain, checkpointed = build(False), build(True)
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    checkpointed.load_state_dict(torch.load(tmp_path / "plain.pth"), strict=True)
    x = torch.randn(2, 3, 48, 48)
    for backbone in (plain, checkpointed):
        sum(level.sum() for level in backbone(x)).backward()
    for one, other in zip(plain.parameters(), checkpointed.parameters()):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("depth", [18, 50])
def test_compiles_without_graph_breaks(depth):
    last = BLOCKS[ResNet.arch_settings[depth][0]][-1]
    cfgs = [dict(type="ContextBlock", ratio=0.25), dict(type="SELayer", ratio=4), dict(type="NonLocal2d", reduction=2)]
    plugins = [dict(cfg=cfg, position=last) for cfg in cfgs]
    backbone = ResNet(
        depth, base_channels=8, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,), plugins=plugins
    )
    backbone = backbone.double().eval()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    for out, expected in zip(compiled(x), backbone(x)):
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    torch._dynamo.reset()


def test_plugin_registered_by_the_user():
    registry = Registry("model", parent=MODELS, scope="users_project")
    registry.register_module(module=Scale)
    backbone = build_backbone(
        dict(
            type="ResNet",
            depth=18,
            base_channels=8,
            plugins=[dict(cfg=dict(type="users_project.Scale", by=0.0), position="after_conv2")],
        )
    )
    assert isinstance(backbone.layer3[1].scale, Scale)


def test_dry_run_of_a_plugin_has_no_side_effects():
    class Noisy(nn.Module):
        def __init__(self, in_channels):
            super().__init__()
            self.norm = nn.BatchNorm2d(in_channels)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.norm(x + torch.randn_like(x))

    torch.manual_seed(0)
    make_block(BasicBlock, None)
    expected = torch.rand(1)
    torch.manual_seed(0)
    layer = make_block(BasicBlock, [dict(cfg=dict(type=Noisy), position="after_conv1")])
    assert torch.equal(torch.rand(1), expected)
    assert layer.noisy.calls == 0
    assert layer.noisy.training


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(
    ("plugin", "error", "words"),
    [
        (dict(type="NoSuchBlock"), UnknownNameError, ["plugin", "'NoSuchBlock'", "ContextBlock", "SELayer"]),
        (dict(), UnknownNameError, ["plugin", "'type'"]),
        (dict(type=NoModule), ArgumentTypeError, ["plugin", "nn.Module", "NoModule"]),
        (dict(type=TakesNoChannels), ArgumentTypeError, ["TakesNoChannels", "in_channels=8"]),
        (dict(type=Refuses), ArgumentError, ["Refuses", "in_channels=8", "AssertionError"]),
        (dict(type=Scale, bye=1), ArgumentTypeError, ["Scale", "'bye'"]),
        (dict(type=Reshapes), ArgumentError, ["reshapes", "(1, 8, 8, 8)", "(1, 9, 8, 8)"]),
        (
            dict(type="ConvModule", out_channels=4, kernel_size=1),
            ArgumentError,
            ["conv_block", "(1, 8, 8, 8)", "(1, 4, 8, 8)"],
        ),
        (dict(type=HasNoForward), ArgumentTypeError, ["has_no_forward", "forward", "HasNoForward"]),
        (dict(type=Shrinks), ArgumentError, ["shrinks", "(1, 8, 8, 8)", "(1, 8, 4, 4)"]),
        (dict(type=TakesTwo), ArgumentTypeError, ["takes_two", "'y'"]),
        (dict(type="SELayer", ratio=2, act_cfg=dict(type="NoAct")), UnknownNameError, ["SELayer", "NoAct"]),
        (
            dict(type="SELayer", ratio=2, conv_cfg=dict(type="Conv1d")),
            ArgumentError,
            ["se_layer", "(N, C, L)", "(N, C, H, W)"],
        ),
        (dict(type="SELayer", ratio=2, postfix=".x"), ArgumentError, ["postfix", "'.x'"]),
        (dict(type="SELayer", ratio=2, postfix=None), ArgumentError, ["postfix", "None"]),
        (dict(type=ReturnsTuple), ArgumentTypeError, ["returns_tuple", "tuple"]),
    ],
)
def test_bad_plugin_is_rejected_by_the_constructor(block, plugin, error, words):
    with raises(error, *words):
        make_block(block, [dict(cfg=plugin, position="after_conv1")])


@pytest.mark.parametrize(
    ("plugin", "error", "words"),
    [
        (dict(stages=(1, 2, 3, 4)), ArgumentError, ["stages", "num_stages=4", "(1, 2, 3, 4)"]),
        (dict(stage=(True, False, False, False)), ArgumentTypeError, ["plugin", "'stage'", "stages"]),
    ],
)
def test_plugin_for_no_known_stages_is_rejected(plugin, error, words):
    cfg = dict(type="SELayer", ratio=4)
    with raises(error, *words):
        ResNet(18, base_channels=8, plugins=[dict(cfg=cfg, position="after_conv1", **plugin)])


@pytest.mark.parametrize(
    ("abbr", "words"),
    [
        ("conv1", ["plugins", "'conv1'", "postfix"]),
        ("a.b", ["_abbr_", "Scale", "'a.b'"]),
        ("", ["_abbr_", "''"]),
    ],
)
def test_plugin_with_an_invalid_name(abbr, words, monkeypatch):
    monkeypatch.setattr(Scale, "_abbr_", abbr, raising=False)
    with raises(ArgumentError, *words):
        make_block(BasicBlock, [dict(cfg=dict(type=Scale), position="after_conv1")])


def test_generalized_attention_compiles_with_graph_breaks():
    # mmcv's forward branches on numpy.sum, which torch.compile takes for a tensor's value.
    cfg = dict(type="GeneralizedAttention", num_heads=2, attention_type="1111")
    stage = dict(num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    backbone = ResNet(18, base_channels=8, **stage, plugins=[dict(cfg=cfg, position="after_conv2")]).double().eval()
    for block in backbone.layer1:
        torch.nn.init.ones_(block.gen_attention_block.gamma)  # it starts as the identity
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    for out, expected in zip(torch.compile(backbone, backend="aot_eager")(x), backbone(x)):
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    torch._dynamo.reset()


def test_two_plugins_with_the_same_name():
    with raises(ArgumentError, "plugins", "'scale'", "postfix"):
        make_block(BasicBlock, [dict(cfg=dict(type=Scale), position="after_conv1")] * 2)


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(dcn="DCN"), ArgumentTypeError, ["dcn", "'DCN'", "dict"]),
        (dict(dcn=dict()), UnknownNameError, ["dcn", "'type'"]),
        (dict(dcn=dict(type="DCNv3")), UnknownNameError, ["'DCNv3'", "DCN, DCNv2"]),
        (dict(dcn=dict(type="DCN"), conv_cfg=dict(type="ConvWS")), ArgumentError, ["conv_cfg", "ConvWS", "dcn"]),
        (dict(dcn=dict(type="DCN", deform_groups=3)), ArgumentError, ["deform_groups", "64", "3"]),
        (dict(dcn=dict(type="DCNv2", groups=3)), ArgumentError, ["groups", "64", "3"]),
        (dict(dcn=dict(type="DCN", deform_groups=-1)), ArgumentError, ["deform_groups", "-1", "1"]),
        (
            dict(dcn=dict(type="DCN", deform_groups=2, deformable_groups=2)),
            ArgumentError,
            ["dcn", "deform_groups", "deformable_groups"],
        ),
        (dict(dcn=dict(type="DCNv2", stride=2)), ArgumentTypeError, ["dcn", "'stride'", "'DCNv2'"]),
        (dict(dcn=dict(type="DCNv2", deform_group=2)), ArgumentTypeError, ["'DCNv2'", "'deform_group'"]),
        (
            dict(dcn=dict(type="DCN", fallback_on_stride="no")),
            ArgumentTypeError,
            ["fallback_on_stride", "'no'", "True", "False"],
        ),
        (dict(dcn=dict(type="Conv1d")), ArgumentError, ["dcn", "'Conv1d'"]),
        (
            dict(dcn=dict(type="DCN"), stage_with_dcn=(1, 2, 3, 4)),
            ArgumentError,
            ["stage_with_dcn", "(1, 2, 3, 4)", "True", "False"],
        ),
        (
            dict(dcn=dict(type="DCN"), stage_with_dcn=(True,)),
            ArgumentError,
            ["stage_with_dcn", "(True,)", "num_stages=4"],
        ),
    ],
)
def test_invalid_dcn(depth, arguments, error, words):
    with raises(error, *words):
        ResNet(depth, base_channels=8, **{"stage_with_dcn": (False, False, False, True), **arguments})


def test_dcn_in_no_stage():
    backbone = ResNet(18, base_channels=8, dcn=dict(type="DCN"))
    assert not any("offset" in name for name in backbone.state_dict())


def test_position_of_dcn():
    small = ResNet(18, base_channels=8, dcn=dict(type="DCNv2"), stage_with_dcn=(False, False, True, False))
    assert {name for name in small.state_dict() if name.endswith("conv_offset.bias")} == {
        "layer3.0.conv2.conv_offset.bias",
        "layer3.1.conv2.conv_offset.bias",
    }
    dcn = dict(type="DCNv2", fallback_on_stride=True)
    large = ResNet(50, base_channels=8, dcn=dcn, stage_with_dcn=(True, True, False, False))
    assert dcn == dict(type="DCNv2", fallback_on_stride=True)
    # Every block that strides keeps an ordinary convolution.
    assert [hasattr(block.conv2, "conv_offset") for block in large.layer1] == [True, True, True]
    assert [hasattr(block.conv2, "conv_offset") for block in large.layer2] == [False, True, True, True]


ROWS = json.loads(FILE.read_text())


@pytest.mark.parametrize("row", ROWS, ids=[os.path.basename(row["config"]) for row in ROWS])
def test_matches_recorded_results_of_mmdet(row):
    backbone = fill(build_backbone({**row["backbone"], **NARROW}).double()).eval()
    expected = np.array(row["levels"])
    with torch.no_grad():
        found = np.array(measure(backbone(image())))
    # Relative to each level's norm. In float64 versions of torch differ by rounding alone: 3e-15 at most was seen.
    assert (abs(found - expected) < 1e-12 * expected[:, :1]).all()


def test_all_mmdet_configs_are_recorded():
    assert len(ROWS) == 21
    assert sum(row["configs"] for row in ROWS) == 35
