"""Freezing, learning rates by depth, checkpointing after construction, ``device``, ``dtype`` and ``out_stem``."""

import copy
import pickle

import pytest
import torch
from helpers import assert_same_bits, gradients, loss_of, raises, shake
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from resnet_backbone import MultiScaleResNet1d, ResNet, ResNetV1d, with_fpn
from resnet_backbone.errors import ArgumentError, ArgumentTypeError, DeployedError


def small(depth=18, cls=ResNet, **arguments):
    return cls(depth, **dict(dict(base_channels=8), **arguments))


def trainable(backbone):
    return [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("cls", [ResNet, ResNetV1d])
@pytest.mark.parametrize("norm_eval", [True, False])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_freeze_matches_construction(cls, norm_eval, requires_grad):
    arguments = dict(cls=cls, norm_eval=norm_eval, norm_cfg=dict(type="BN", requires_grad=requires_grad))
    backbone = small(**arguments).train()
    for stages in (2, 4, 0, -1, 3, 1, -1):
        expected = small(**arguments, frozen_stages=stages).train()
        assert backbone.freeze(stages) is backbone
        for twin in (backbone, copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
            assert trainable(twin) == trainable(expected)
            assert [m.training for m in twin.modules()] == [m.training for m in expected.modules()]
    built_frozen = small(**arguments, frozen_stages=4)
    assert trainable(built_frozen.freeze(-1)) == trainable(backbone)
    assert not backbone.eval().freeze(2).layer3.training


def test_unfreezing_keeps_parameters_frozen_by_hand():
    backbone = small()
    backbone.layer4[0].conv1.weight.requires_grad = False
    backbone.freeze(4).freeze(1)
    assert not backbone.layer4[0].conv1.weight.requires_grad
    assert backbone.layer4[0].conv2.weight.requires_grad


@pytest.mark.parametrize("make", [torch.optim.AdamW, lambda params, lr: torch.optim.SGD(params, lr, 0.9, 0, 0.1)])
def test_optimizer_skips_frozen_parameters_and_keeps_their_state(make):
    backbone = shake(small()).train()
    optimizer = make(backbone.parameters(), lr=1e-2)
    x = torch.rand(2, 3, 32, 32)

    def step():
        loss_of(backbone(x)).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    loss_of(backbone(x)).backward()  # gradients that a step would use
    backbone.freeze(2)
    frozen = list(backbone.layer1.parameters())
    before, state = copy.deepcopy(frozen), copy.deepcopy([optimizer.state[parameter] for parameter in frozen])
    step()
    step()
    assert_same_bits(frozen, before)
    assert str([optimizer.state[parameter] for parameter in frozen]) == str(state)
    backbone.freeze(-1)
    step()
    assert not any(torch.equal(now, then) for now, then in zip(frozen, before))


@pytest.mark.parametrize("stages", [-2, 5, None, True, (1,)])
def test_freeze_rejects(stages):
    with raises(ArgumentError, "frozen_stages", repr(stages), "-1", "4"):
        small().freeze(stages)


def test_deployed_backbone_cannot_be_unfrozen():
    with pytest.raises(DeployedError):
        small().switch_to_deploy().freeze(1)


def test_layer_depth_matches_mmpretrain():
    backbone = small(34)
    depths = {
        name: backbone.get_layer_depth(f"backbone.{name}", "backbone.") for name, _ in backbone.named_parameters()
    }
    # A stem, 16 blocks, and what comes after.
    assert {layers for _, layers in depths.values()} == {18}
    assert {depth for depth, _ in depths.values()} == set(range(17))
    assert depths["conv1.weight"] == depths["bn1.bias"] == (0, 18)
    assert depths["layer1.0.conv1.weight"][0] == 1
    assert depths["layer2.0.downsample.0.weight"][0] == 4
    assert depths["layer4.2.bn2.weight"][0] == 16
    assert backbone.get_layer_depth("bbox_head.conv.weight", "backbone.") == (17, 18)
    assert small(cls=ResNetV1d).get_layer_depth("stem.3.weight") == (0, 10)
    signals = MultiScaleResNet1d(base_channels=4, num_classes=2)
    assert signals.get_layer_depth("layer2.branches.1.0.conv1.weight") == (2, 5)
    assert signals.get_layer_depth("fc.weight") == (4, 5)


def test_param_groups_contain_every_parameter_once():
    backbone = small(cls=ResNetV1d, frozen_stages=1)
    groups = backbone.param_groups(lr=0.08, decay=0.5)
    assert [group["name"] for group in groups] == ["stem", "layer1", "layer2", "layer3", "layer4"]
    assert [group["lr"] for group in groups] == [0.005, 0.01, 0.02, 0.04, 0.08]
    assert [id(p) for group in groups for p in group["params"]] == [id(p) for p in backbone.parameters()]
    torch.optim.SGD(groups, lr=1)
    for arguments, words in [
        (dict(lr=0, decay=0.5), ("lr", "0")),
        (dict(lr=0.1, decay="1"), ("decay", "'1'")),
        (dict(lr=0.1, decay=-1), ("decay", "-1")),
    ]:
        with raises(ArgumentError, *words):
            backbone.param_groups(**arguments)


@pytest.mark.parametrize("depth", [18, 50])
def test_checkpointing_after_construction(depth):
    backbone, x = shake(small(depth)).double().train(), torch.rand(2, 3, 32, 32).double()
    loss_of(backbone(x)).backward()
    expected = [gradient.clone() for gradient in gradients(backbone)]
    checkpoints = [[False] * 4, [True] * 4, [True, False, False, True], [False, False, False, True]]
    for (enable, stages), now in zip([(False, None), (True, None), (False, (1, 2)), (False, [0])], checkpoints):
        backbone.set_grad_checkpointing(enable, stages)
        assert [{block.with_cp for block in getattr(backbone, name)} for name in backbone.res_layers] == [
            {with_cp} for with_cp in now
        ]
        assert list(backbone.with_cp) == now
        backbone.zero_grad()
        loss_of(backbone(x)).backward()
        for gradient, other in zip(gradients(backbone), expected):
            torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-12)
    for arguments, error, *words in [
        ((1.5,), ArgumentTypeError, "enable", "1.5"),
        ((True, 2), ArgumentTypeError, "stages", "2"),
        ((True, [4]), ArgumentError, "stages", "[4]", "3"),
        ((True, []), ArgumentError, "stages", "[]", "3"),
    ]:
        with raises(error, *words):
            backbone.set_grad_checkpointing(*arguments)


def test_device_and_dtype():
    def built(**arguments):
        torch.manual_seed(3)
        plugins = [dict(cfg=dict(type="ContextBlock", ratio=0.5), position="after_conv2")]
        return small(plugins=plugins, dcn=dict(type="DCN"), stage_with_dcn=(0, 0, 0, 1), **arguments)

    plain = built()
    assert_same_bits(built(device="cpu").state_dict().values(), plain.state_dict().values())
    half = built(dtype=torch.bfloat16, device=torch.device("cpu"))
    assert_same_bits(half.state_dict().values(), plain.to(torch.bfloat16).state_dict().values())
    assert half.bn1.num_batches_tracked.dtype == torch.int64
    meta = built(device="meta", frozen_stages=1)
    assert all(tensor.is_meta for tensor in meta.state_dict().values())
    meta.to_empty(device="cpu").load_state_dict(plain.state_dict())
    assert_same_bits(meta.eval()(torch.ones(1, 3, 64, 64)), plain.float().eval()(torch.ones(1, 3, 64, 64)))
    assert torch.empty(0).device.type == "cpu"


@pytest.mark.parametrize("cls", [ResNet, ResNetV1d])
@pytest.mark.parametrize("fold_norm", [True, False])
def test_out_stem(cls, fold_norm):
    backbone = shake(small(cls=cls, out_stem=True, out_indices=(1, 3), fold_norm=fold_norm)).eval()
    x = torch.rand(1, 3, 64, 96)
    levels = backbone(x)
    assert [tuple(level.shape[1:]) for level in levels] == [(8, 32, 48), (16, 8, 12), (64, 2, 3)]
    assert backbone.out_channels == (8, 16, 64)
    assert backbone.out_strides == (2, 8, 32)
    extractor = create_feature_extractor(backbone, {backbone.feature_info[0].module: "stem"})
    if not fold_norm:
        assert_same_bits(extractor(x).values(), levels[:1])
    plain = small(cls=cls, out_indices=(1, 3), fold_norm=fold_norm).eval()
    plain.load_state_dict(backbone.state_dict())
    assert_same_bits(levels[1:], plain(x))
    loss_of(backbone(x)).backward()
    assert all(gradient is not None and gradient.any() for gradient in gradients(backbone))
    pyramid = with_fpn(backbone, 16).eval()(x)
    assert [tuple(level.shape[1:]) for level in pyramid.values()][:2] == [(16, 32, 48), (16, 8, 12)]
    before = backbone(x)
    for level, expected in zip(backbone.switch_to_deploy()(x), before):
        torch.testing.assert_close(level, expected, rtol=1e-4, atol=1e-4)


class Adapter(nn.Module):
    """A wrapper such as LoRA's, without the attributes of the wrapped layer."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer

    def forward(self, x):
        return self.base_layer(x)


@pytest.mark.parametrize("cls", [ResNet, ResNetV1d])
@pytest.mark.parametrize("depth", [18, 50])
def test_wrapped_convolutions_keep_feature_info(depth, cls):
    backbone = small(depth, cls, out_stem=True)
    infos = backbone.feature_info
    for module in list(backbone.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(module, name, Adapter(child))
    assert backbone.feature_info == infos
    assert [level.shape[1] for level in backbone(torch.rand(1, 3, 64, 64))] == list(backbone.out_channels)
    with_fpn(backbone, 8)


def test_pruned_channels():
    backbone = small()
    first, second = backbone.layer2
    for block, name in ((first, "conv2"), (first.downsample, "0"), (second, "conv2")):
        conv = block.get_submodule(name)
        kept = nn.Conv2d(conv.in_channels, 4, conv.kernel_size, conv.stride, conv.padding, bias=False)
        setattr(block, name, kept)
    first.bn2, first.downsample[1], second.bn2 = (nn.BatchNorm2d(4) for _ in range(3))
    second.conv1 = nn.Conv2d(4, 16, 3, padding=1, bias=False)
    backbone.layer3[0].conv1 = nn.Conv2d(4, 32, 3, 2, 1, bias=False)
    backbone.layer3[0].downsample[0] = nn.Conv2d(4, 32, 1, 2, bias=False)
    x = torch.rand(2, 3, 64, 64)
    assert backbone.out_channels == (8, 4, 32, 64) == tuple(level.shape[1] for level in backbone(x))
    assert with_fpn(backbone, 8)(x)["1"].shape == (2, 8, 8, 8)


def test_replaced_stem_is_used():
    backbone = small()
    backbone.conv1, backbone.maxpool = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Identity()
    assert backbone.out_strides == (1, 2, 4, 8)
    assert [level.shape[2] for level in backbone(torch.rand(1, 3, 32, 32))] == [32, 16, 8, 4]


def test_out_stem_is_rejected_with_branches():
    with raises(ArgumentError, "out_stem", "True", "False", "MultiScaleResNet1d"):
        MultiScaleResNet1d(out_stem=True)
