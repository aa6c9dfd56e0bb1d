"""DCN and plugins, compared with mmdet's ResNet and compiled mmcv's operators."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

try:
    import mmcv.ops
    from mmdet.models.backbones.resnet import ResNet as MmdetResNet
    from mmdet.models.layers import SELayer as MmdetSELayer
except Exception as error:  # noqa: BLE001 - mmdet asserts versions, and its dependencies fail in their own ways
    pytest.skip(f"mmdet cannot be imported: {type(error).__name__}: {error}", allow_module_level=True)

from fixtures.dcn_plugins import FILE, NARROW, fill

from resnet_backbone import BasicBlock, Bottleneck, ResNet
from resnet_backbone.layers.deform import DeformConv2dPack, ModulatedDeformConv2dPack
from resnet_backbone.layers.se import SELayer

ROWS = json.loads(FILE.read_text())
PAIRS = [(DeformConv2dPack, mmcv.ops.DeformConv2dPack), (ModulatedDeformConv2dPack, mmcv.ops.ModulatedDeformConv2dPack)]


def assert_same_state(one, other):
    assert list(one.state_dict()) == list(other.state_dict())
    for (name, ours), theirs in zip(one.state_dict().items(), other.state_dict().values()):
        assert torch.equal(ours, theirs), name


def assert_same_computation(one, other, x):
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for ours, theirs in zip(one(inputs[0]), other(inputs[1])):
        assert torch.equal(ours, theirs)
        weights = torch.randn_like(ours)
        (ours * weights).sum().backward(retain_graph=True)
        (theirs * weights).sum().backward(retain_graph=True)
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    for (name, ours), theirs in zip(one.named_parameters(), other.parameters()):
        assert (ours.grad is None) == (theirs.grad is None), name
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad), name


@pytest.mark.parametrize("row", ROWS, ids=[os.path.basename(row["config"]) for row in ROWS])
def test_configs_are_bit_exact(row):
    kwargs = {key: value for key, value in row["backbone"].items() if key != "type"} | NARROW
    backbones = []
    for cls in (ResNet, MmdetResNet):
        torch.manual_seed(0)
        backbone = cls(**kwargs)
        backbone.init_weights()
        backbones.append((backbone, torch.rand(1)))
    (ours, after_ours), (theirs, after_theirs) = backbones
    assert torch.equal(after_ours, after_theirs)
    assert_same_state(ours, theirs)
    for backbone in (ours, theirs):
        fill(backbone)
        backbone.train("SyncBN" not in str(kwargs))  # SyncBN trains on GPUs alone
    # mmcv's DCN refuses images smaller than its kernel, and stride 32 leaves three pixels of this one.
    assert_same_computation(ours, theirs, torch.randn(2, 3, 96, 96))
    assert_same_state(ours, theirs)


@pytest.mark.parametrize("dcn", ["DCN", "DCNv2"])
@pytest.mark.parametrize("depth", [18, 50])
def test_compiled_mmcv_classes_are_used(dcn, depth):
    backbone = ResNet(depth, base_channels=8, dcn=dict(type=dcn), stage_with_dcn=(False, False, False, True))
    cls = mmcv.ops.DeformConv2dPack if dcn == "DCN" else mmcv.ops.ModulatedDeformConv2dPack
    assert all(isinstance(block.conv2, cls) for block in backbone.layer4)


def test_first_dcn_imports_the_operators():
    program = (
        "import sys, resnet_backbone as rb\n"
        "assert 'mmcv.ops' not in sys.modules and 'mmdet.models' not in sys.modules\n"
        "block = rb.BasicBlock(8, 8, dcn=dict(type='DCNv2'))\n"
        "import mmcv.ops\n"
        "assert isinstance(block.conv2, mmcv.ops.ModulatedDeformConv2dPack)\n"
        "assert 'mmdet.models' not in sys.modules\n"
        "import mmdet.models\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(("own", "mmcvs"), PAIRS)
@pytest.mark.parametrize("arguments", [dict(), dict(groups=2, deform_groups=4, stride=2, dilation=2, padding=2)])
def test_own_layer_matches_mmcv(own, mmcvs, arguments):
    layers = []
    for cls in (own, mmcvs):
        torch.manual_seed(0)
        layers.append((cls(16, 16, 3, **arguments), torch.rand(1)))
    (ours, after_ours), (theirs, after_theirs) = layers
    assert torch.equal(after_ours, after_theirs)
    assert_same_state(ours, theirs)
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata
    for name in ("in_channels", "stride", "padding", "dilation", "groups", "deform_groups", "output_padding"):
        assert getattr(ours, name) == getattr(theirs, name)

    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.2)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    inputs = [torch.randn(3, 16, 33, 33).requires_grad_()]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    outs = [ours(inputs[0]), theirs(inputs[1])]
    assert torch.equal(*outs)
    weights = torch.randn_like(outs[0])
    for out in outs:
        (out * weights).sum().backward()
    gradients = zip(
        [inputs[0].grad, *(p.grad for p in ours.parameters())], [inputs[1].grad, *(p.grad for p in theirs.parameters())]
    )
    # mmcv and torchvision sum gradients in different orders. The largest difference seen is 6e-7 of a tensor's norm.
    for one, other in gradients:
        assert (one - other).norm() <= 1e-6 * other.norm()


@pytest.mark.parametrize(("own", "mmcvs"), PAIRS)
def test_init_weights_draws_the_same_random_numbers(own, mmcvs):
    backbones = []
    for cls in (own, mmcvs):
        torch.manual_seed(0)
        backbone = ResNet(18, base_channels=8, dcn=dict(type=cls), stage_with_dcn=(False, True, False, True))
        backbone.init_weights()
        backbones.append((backbone, torch.rand(1)))
    (ours, after_ours), (theirs, after_theirs) = backbones
    assert torch.equal(after_ours, after_theirs)
    for (name, one), other in zip(ours.state_dict().items(), theirs.state_dict().values()):
        if own is DeformConv2dPack and name.endswith("conv_offset.weight"):
            # mmcv's layer has no init_weights: the backbone's Kaiming initialization reaches its offsets.
            assert not one.any()
            assert other.any()
        else:
            assert torch.equal(one, other), name


def test_se_layer_matches_mmdet():
    torch.manual_seed(0)
    theirs = MmdetSELayer(32, ratio=8)
    torch.manual_seed(0)
    ours = SELayer(32, ratio=8)
    assert_same_state(ours, theirs)
    for layer in (ours, theirs):
        torch.manual_seed(1)
        layer.init_weights()
    assert_same_state(ours, theirs)
    x = torch.randn(2, 32, 7, 7)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_mmdet_scope_finds_the_plugin(block):
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope("mmdet"):
        layer = block(16 * block.expansion, 16, plugins=[dict(cfg=dict(type="SELayer"), position="after_conv2")])
    assert isinstance(layer.se_layer, SELayer)
