"""``switch_to_deploy``: equality with the exact path, errors in training, and export of plain and deployed models."""

import copy
import pickle
from typing import ClassVar

import pytest
import torch
from helpers import TORCH, raises, shake
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_backbone import ResNet, ResNetV1c, ResNetV1d
from resnet_backbone.deploy import ChannelAffine
from resnet_backbone.errors import DeployedError
from resnet_backbone.layers.deform import DeformConv2dPack, ModulatedDeformConv2dPack

SMALL = dict(base_channels=8)
TWO_STAGES = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))
CONV_MODULE = dict(type="ConvModule", kernel_size=1, out_channels=8, norm_cfg=dict(type="BN"))


def shaken(cls=ResNet, depth=18, **arguments):
    backbone = shake(cls(depth, **SMALL, **arguments)).eval()
    for module in backbone.modules():
        if hasattr(module, "conv_offset"):
            nn.init.normal_(module.conv_offset.weight, std=0.05)
    return backbone


def outputs(backbone, size=64, batch=1):
    with torch.no_grad():
        return backbone(torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)))


def assert_close(levels, expected, tolerance=1e-5):
    for level, reference in zip(levels, expected, strict=True):
        assert (level - reference).norm() <= tolerance * reference.norm()


FAMILY = {
    **{f"depth {depth}": dict(depth=depth) for depth in (18, 34, 50, 101, 152)},
    "C": dict(cls=ResNetV1c, depth=18),
    "D": dict(cls=ResNetV1d, depth=50, frozen_stages=1),
    "caffe, dilated": dict(depth=50, style="caffe", strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
    "SyncBN, other eps": dict(norm_cfg=dict(type="SyncBN", eps=1e-3)),
    "no affine": dict(norm_cfg=dict(type="BN", affine=False)),
    "DCNv2": dict(depth=50, dcn=dict(type=ModulatedDeformConv2dPack), stage_with_dcn=(False, False, True, True)),
    "DCN": dict(depth=18, dcn=dict(type=DeformConv2dPack), stage_with_dcn=(False, False, True, True)),
    "DCN by name": dict(depth=18, dcn=dict(type="DCNv2", deform_groups=2), stage_with_dcn=(False, False, False, True)),
    "plugins": dict(
        depth=50,
        plugins=[
            dict(cfg=dict(type="ContextBlock", ratio=0.25), position="after_conv2"),
            dict(cfg=CONV_MODULE, position="after_conv1", stages=(True, False, False, False)),
            dict(cfg=dict(type="NonLocal2d", reduction=2), position="after_conv3", stages=(False, False, False, True)),
        ],
    ),
    "ConvWS": dict(conv_cfg=dict(type="ConvWS")),
    "fold_norm, channels_last, checkpointed": dict(depth=50, fold_norm=True, channels_last=True, with_cp=True),
}


@pytest.mark.parametrize("arguments", FAMILY.values(), ids=FAMILY)
def test_matches_the_exact_path(arguments):
    backbone = shaken(**arguments)
    expected = outputs(backbone, batch=2)
    numbers = sum(tensor.numel() for tensor in backbone.state_dict().values())
    assert backbone.switch_to_deploy() is backbone
    assert_close(outputs(backbone, batch=2), expected)
    assert not [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert sum(tensor.numel() for tensor in backbone.state_dict().values()) < numbers


def test_channel_affine_only_after_convolutions_without_bias():
    kinds = {
        name: {type(module) for module in shaken(**FAMILY[name]).switch_to_deploy().modules()}
        for name in ("depth 18", "DCNv2", "DCN", "ConvWS", "plugins")
    }
    assert {name for name, types in kinds.items() if ChannelAffine in types} == {"DCN", "ConvWS"}


def test_group_norm_is_not_folded():
    backbone = shaken(norm_cfg=dict(type="GN", num_groups=4))
    expected = outputs(backbone)
    for level, reference in zip(outputs(backbone.switch_to_deploy()), expected):
        assert torch.equal(level, reference)
    assert any(isinstance(module, nn.GroupNorm) for module in backbone.modules())


def test_second_call_changes_nothing():
    backbone = shaken().switch_to_deploy()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert backbone.switch_to_deploy() is backbone
    assert backbone.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_training_is_rejected():
    backbone = shaken(norm_eval=False, plugins=[dict(cfg=dict(type="ContextBlock", ratio=0.5), position="after_conv2")])
    backbone.switch_to_deploy()
    with raises(DeployedError, "train"):
        backbone.requires_grad_()
    with raises(DeployedError, "init_weights", "switch_to_deploy"):
        backbone.init_weights()
    backbone.layer1.requires_grad_(True)
    backbone.train()
    with raises(DeployedError, "train"):
        backbone(torch.rand(1, 3, 32, 32))
    with torch.no_grad():
        backbone(torch.rand(1, 3, 32, 32))


def test_deployed_backbone_in_a_network_that_trains():
    backbone = shaken(frozen_stages=4, plugins=[dict(cfg=CONV_MODULE, position="after_conv1", stages=(1, 0, 0, 0))])
    expected = outputs(backbone)
    backbone.switch_to_deploy()
    network = nn.ModuleList([backbone, nn.Conv2d(64, 4, 1)]).train()
    assert backbone.training
    assert not any(module.training for module in backbone.modules() if module is not backbone)
    assert_close(outputs(backbone), expected)
    network[1](backbone(torch.rand(2, 3, 32, 32))[-1]).sum().backward()
    assert network[1].weight.grad.any()
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_feature_extractor_of_torchvision():
    from torchvision.models.feature_extraction import create_feature_extractor

    backbone = shaken().switch_to_deploy()
    extractor = create_feature_extractor(backbone, {"layer2": "fine", "layer4": "coarse"}).eval()
    x = torch.rand(1, 3, 64, 64)
    fine, coarse = extractor(x).values()
    assert torch.equal(fine, backbone.eval()(x)[1])
    assert torch.equal(coarse, backbone(x)[3])


def test_only_deployed_checkpoints_load():
    exact = shaken()
    deployed = ResNet(18, **SMALL).switch_to_deploy()
    for strict in (True, False):
        with raises(DeployedError, "batch norms", "switch_to_deploy"):
            nn.Sequential(deployed).load_state_dict(nn.Sequential(exact).state_dict(), strict=strict)
    expected = outputs(exact)
    deployed.load_state_dict(exact.switch_to_deploy().state_dict())
    assert_close(outputs(deployed), expected)


def test_blocks_that_override_forward_are_not_fused():
    class Doubled(ResNet.arch_settings[18][0]):
        def forward(self, x):
            return super().forward(x) * 2

    class Own(ResNet):
        arch_settings: ClassVar = {18: (Doubled, (2, 2, 2, 2))}

    backbone = shaken(Own)
    expected = outputs(backbone)
    assert_close(outputs(backbone.switch_to_deploy()), expected)
    assert isinstance(backbone.layer1[0].norm1, nn.BatchNorm2d)
    assert isinstance(backbone.norm1, nn.Identity)


def test_pickle_and_deepcopy():
    backbone = shaken(depth=50).switch_to_deploy()
    expected = outputs(backbone)
    for other in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert all(torch.equal(a, b) for a, b in zip(outputs(other), expected))
        assert type(other) is type(backbone)
        with pytest.raises(DeployedError):
            other.init_weights()


DEPLOYED = pytest.mark.parametrize("deployed", [False, True], ids=["plain", "deployed"])


def prepared(deployed, **arguments):
    backbone = shaken(**arguments)
    return backbone.switch_to_deploy() if deployed else backbone


@DEPLOYED
def test_compiles_without_graph_breaks(deployed):
    torch.compiler.reset()
    backbone = prepared(deployed, **TWO_STAGES)
    compiled = torch.compile(backbone, fullgraph=True)
    assert_close(outputs(compiled), outputs(backbone))


def operators(backbone):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        outputs(backbone)
    return {event.name for event in profile.events()}


def test_compile_in_place_with_constant_weights():
    torch.compiler.reset()
    backbone = shaken(num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    expected = outputs(backbone)
    backbone.switch_to_deploy().compile(fullgraph=True)
    assert_close(outputs(backbone), expected)
    # Weights that are constants lie in the order of the kernels, and activations are part of these.
    assert "mkldnn::_convolution_pointwise" in (called := operators(backbone))
    assert not called & {"aten::convolution", "aten::relu", "aten::relu_"}
    with raises(DeployedError, "constants", "compile()"):
        backbone.load_state_dict(backbone.state_dict())
    assert_close(outputs(copy.deepcopy(backbone)), expected)
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    backbone(x)[0].sum().backward()
    assert x.grad.any()


def test_compile_in_place_and_train():
    torch.compiler.reset()
    exact = shaken(**TWO_STAGES).train()
    compiled = copy.deepcopy(exact)
    compiled.compile(backend="aot_eager")
    x = torch.rand(1, 3, 64, 64)
    for backbone in (exact, compiled):
        sum(level.sum() for level in backbone(x)).backward()
    assert_close([p.grad for p in compiled.parameters()], [p.grad for p in exact.parameters()], 1e-4)
    compiled.load_state_dict(exact.state_dict())


@pytest.mark.skipif(TORCH < (2, 6), reason="dynamic sizes of whole networks in torch.export: tested from torch 2.6")
@DEPLOYED
def test_torch_export_with_dynamic_batch_and_size(deployed):
    backbone = prepared(deployed, cls=ResNetV1d, **TWO_STAGES)
    batch, height, width = (torch.export.Dim(name, min=1, max=8) for name in ("batch", "height", "width"))
    shapes = ({0: batch, 2: 32 * height, 3: 32 * width},)
    program = torch.export.export(backbone, (torch.randn(2, 3, 64, 96),), dynamic_shapes=shapes)
    for size, count in ((64, 1), (96, 3)):
        assert_close(outputs(program.module(), size, count), outputs(backbone, size, count))


@pytest.mark.skipif(TORCH < (2, 8), reason="the exporter of torch 2.8 and newer")
@pytest.mark.parametrize("opset", [17, 18])
@DEPLOYED
def test_onnx_with_dynamic_batch_and_size(deployed, opset, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    backbone, file = prepared(deployed, cls=ResNetV1d, **TWO_STAGES), str(tmp_path / "backbone.onnx")
    if opset == 17:
        names = dict(dynamic_axes={"image": {0: "batch", 2: "height", 3: "width"}}, dynamo=False)
    else:
        batch, height, width = (torch.export.Dim(name, min=1, max=8) for name in ("batch", "height", "width"))
        names = dict(dynamic_shapes=({0: batch, 2: 32 * height, 3: 32 * width},), dynamo=True)
    torch.onnx.export(backbone, (torch.randn(2, 3, 64, 96),), file, input_names=["image"], opset_version=opset, **names)
    session = onnxruntime.InferenceSession(file)
    for size, count in ((64, 1), (96, 3)):
        x = torch.randn(count, 3, size, size)
        with torch.no_grad():
            assert_close(map(torch.from_numpy, session.run(None, {"image": x.numpy()})), backbone(x))
