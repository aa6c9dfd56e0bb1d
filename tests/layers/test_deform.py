import copy
import pickle
import sys

import pytest
import torch
from helpers import raises
from mmcv.cnn import build_conv_layer as mmcv_build_conv_layer
from mmengine.registry import MODELS
from mmengine.runner import load_state_dict
from torch import nn

from resnet_backbone import ResNet, build_backbone, build_conv_layer, load_pretrained
from resnet_backbone.errors import ArgumentError
from resnet_backbone.layers import dcn_types
from resnet_backbone.layers.deform import (
    DeformConv2dPack,
    ModulatedDeformConv2dPack,
    deform_conv2d,
    is_on_border,
)

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
OWN = [DeformConv2dPack, ModulatedDeformConv2dPack]
# The type that is our class in every environment.
OWN_TYPES = ["resnet_backbone.DCN", "resnet_backbone.DCNv2"]
LAST_STAGES = (False, True, True, True)


def make(cls, *args, **kwargs):
    """A layer with offsets and sample weights that differ from the initial ones."""
    torch.manual_seed(0)
    layer = cls(*args, **{"bias": False, **kwargs})
    nn.init.normal_(layer.conv_offset.weight, std=0.2)
    nn.init.normal_(layer.conv_offset.bias, std=0.2)
    return layer


def by_hand(layer, x):
    """Deformable convolution as defined in the papers: a sum over bilinearly sampled points."""
    out = layer.conv_offset(x)
    (n, _, height, width), (kh, kw) = out.shape, layer.kernel_size
    points, groups = kh * kw, layer.deform_groups
    modulated = isinstance(layer, ModulatedDeformConv2dPack)
    mask = out[:, 2 * groups * points :].sigmoid() if modulated else torch.ones(n, groups * points, height, width)
    offset = out[:, : 2 * groups * points].reshape(n, groups, points, 2, height, width)
    mask = mask.reshape(n, groups, points, 1, height, width).to(x)
    columns = torch.zeros(n, groups, x.shape[1] // groups, points, height, width).to(x)
    for point in range(points):
        dy, dx = divmod(point, kw)
        y = torch.arange(height)[:, None] * layer.stride[0] - layer.padding[0] + dy * layer.dilation[0]
        z = torch.arange(width) * layer.stride[1] - layer.padding[1] + dx * layer.dilation[1]
        for group, features in enumerate(x.chunk(groups, dim=1)):
            at_y, at_x = y + offset[:, group, point, 0], z + offset[:, group, point, 1]
            size = torch.tensor(x.shape[2:]).to(x)
            grid = torch.stack([(2 * at_x + 1) / size[1] - 1, (2 * at_y + 1) / size[0] - 1], dim=-1)
            sampled = nn.functional.grid_sample(features, grid, align_corners=False)
            columns[:, group, :, point] = sampled * mask[:, group, point]
    columns = columns.reshape(n, layer.groups, -1, height, width)
    weight = layer.weight.reshape(layer.groups, layer.out_channels // layer.groups, -1)
    result = torch.einsum("gok,ngkhw->ngohw", weight, columns).reshape(n, layer.out_channels, height, width)
    return result if layer.bias is None else result + layer.bias[:, None, None]


@pytest.mark.parametrize("cls", OWN)
@pytest.mark.parametrize(
    "arguments",
    [
        dict(),
        dict(stride=2, padding=1),
        dict(padding=2, dilation=2, deform_groups=2),
        dict(groups=4, deform_groups=2, stride=(1, 2), padding=(1, 0)),
        dict(kernel_size=(1, 3), padding=(0, 1)),
    ],
)
def test_matches_the_papers(cls, arguments):
    layer = make(cls, 8, 12, **{"kernel_size": 3, **arguments}).double()
    x = torch.randn(2, 8, 9, 11, dtype=torch.float64)
    torch.testing.assert_close(layer(x), by_hand(layer, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cls", OWN)
def test_gradients(cls):
    layer = make(cls, 4, 4, 3, padding=1, deform_groups=2).double()
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    names = list(dict(layer.named_parameters()))

    def run(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters)), x)

    assert torch.autograd.gradcheck(run, (x, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize("cls", OWN)
def test_starts_as_an_ordinary_convolution(cls):
    layer = cls(4, 6, 3, padding=1, bias=False)
    ordinary = nn.functional.conv2d(x := torch.randn(2, 4, 7, 7), layer.weight, padding=1)
    # Zero offsets; and sample weights of sigmoid(0).
    scale = 0.5 if cls is ModulatedDeformConv2dPack else 1
    torch.testing.assert_close(layer(x), scale * ordinary)


@pytest.mark.parametrize("modulated", [False, True])
def test_points_on_the_border_give_no_offset_gradient(modulated):
    """With zero offsets and a padding of 1, outer points lie on the border, where mmcv gives offsets no gradient."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 4, 5, 6), torch.randn(4, 4, 3, 3)
    offset = torch.zeros(1, 18, 5, 6, requires_grad=True)
    mask = torch.rand(1, 9, 5, 6) if modulated else None
    deform_conv2d(x, offset, weight, None, (1, 1), (1, 1), (1, 1), mask).square().sum().backward()
    border = is_on_border(offset, (3, 3), (1, 1), (1, 1), (1, 1)).view(3, 3, 2, 5, 6)
    expected = torch.zeros(3, 3, 2, 5, 6, dtype=torch.bool)
    expected[0, :, 0, 0] = expected[:, 0, 1, :, 0] = True
    assert torch.equal(border, expected)
    gradient = offset.grad.view(3, 3, 2, 5, 6)
    assert not gradient[border].any()
    assert gradient[1, 1].all()


def test_bias():
    layer = make(ModulatedDeformConv2dPack, 4, 6, 3, bias=True)
    assert torch.equal(layer.bias, torch.zeros(6))
    x = torch.randn(2, 4, 7, 7)
    without = layer(x)
    nn.init.constant_(layer.bias, 2)
    torch.testing.assert_close(layer(x), without + 2)
    assert ModulatedDeformConv2dPack(4, 6, 3).bias is not None
    with raises(ArgumentError, "bias", "False", "True", "'DCN'"):
        DeformConv2dPack(4, 6, 3, bias=True)


@pytest.mark.parametrize("cls", OWN)
def test_old_name_of_deform_groups(cls):
    with pytest.warns(DeprecationWarning, match=r"\bdeform_groups"):
        layer = cls(8, 8, 3, bias=False, deformable_groups=4)
    assert layer.deform_groups == 4
    with raises(ArgumentError, "deform_groups=2", "deformable_groups=4"):
        cls(8, 8, 3, bias=False, deform_groups=2, deformable_groups=4)


@pytest.mark.parametrize("cls", OWN)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(groups=3), ["groups", "3", "in_channels=8"]),
        (dict(out_channels=6, groups=4), ["groups", "4", "out_channels=6"]),
        (dict(deform_groups=3), ["deform_groups", "3", "in_channels=8"]),
        (dict(deform_groups=0), ["deform_groups", "0", "1"]),
        (dict(in_channels=0), ["in_channels", "0", "1"]),
    ],
)
def test_rejects(cls, arguments, words):
    with raises(ArgumentError, *words):
        cls(**{"in_channels": 8, "out_channels": 8, "kernel_size": 3, "bias": False, **arguments})


def test_missing_torchvision_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    with raises(ImportError, "pip install torchvision"):
        DeformConv2dPack(8, 8, 3)


@pytest.mark.parametrize("name", ["DCN", "DCNv2"])
def test_registered_under_mmcv_names(name):
    for build in (build_conv_layer, mmcv_build_conv_layer):
        layer = build(dict(type=name, deform_groups=2), 8, 8, kernel_size=3, padding=1, bias=False)
        assert layer(torch.randn(1, 8, 6, 6)).shape == (1, 8, 6, 6)
    if dcn_types.has_compiled_mmcv():
        import mmcv.ops

        expected = {"DCN": mmcv.ops.DeformConv2dPack, "DCNv2": mmcv.ops.ModulatedDeformConv2dPack}
    else:
        expected = {"DCN": DeformConv2dPack, "DCNv2": ModulatedDeformConv2dPack}
    assert type(layer) is expected[name]
    assert type(build_conv_layer(dict(type=f"resnet_backbone.{name}"), 8, 8, 3)) is dcn_types.OWN_TYPES[name]


def test_broken_compiled_mmcv_is_replaced(monkeypatch):
    monkeypatch.setattr(dcn_types, "has_compiled_mmcv", lambda: True)
    monkeypatch.setitem(sys.modules, "mmcv.ops", None)
    for name in dcn_types.OWN_TYPES:
        monkeypatch.delitem(MODELS.module_dict, name, raising=False)
    dcn_types.register_deform_convs()
    assert {name: MODELS.module_dict[name] for name in dcn_types.OWN_TYPES} == dcn_types.OWN_TYPES


@pytest.mark.parametrize("dcn", OWN_TYPES)
@pytest.mark.parametrize("depth", [18, 50])
def test_offsets_stay_zero_through_init_weights(dcn, depth):
    backbone = ResNet(depth, base_channels=8, dcn=dict(type=dcn), stage_with_dcn=LAST_STAGES)
    backbone.init_weights()
    layers = [module for module in backbone.modules() if hasattr(module, "conv_offset")]
    assert len(layers) == sum(backbone.stage_blocks[1:])
    for layer in layers:
        assert not layer.conv_offset.weight.any()
        assert not layer.conv_offset.bias.any()
        assert layer.weight.std() > 0


@pytest.mark.parametrize("dcn", [*OWN_TYPES, "DCN", "DCNv2"])
def test_loads_state_dicts_with_old_offset_names(dcn):
    backbone, other = (ResNet(18, base_channels=8, dcn=dict(type=dcn), stage_with_dcn=LAST_STAGES) for _ in range(2))
    for parameter in backbone.parameters():
        nn.init.normal_(parameter)
    old = {name.replace("conv2.conv_offset", "conv2_offset"): value for name, value in backbone.state_dict().items()}
    assert any(".conv2_offset.weight" in name for name in old)
    # mmengine's loader, and torch's, which is strict.
    for load in (load_state_dict, nn.Module.load_state_dict):
        for parameter in other.parameters():
            nn.init.zeros_(parameter)
        load(other, old)
        for name, value in backbone.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name
    # Current checkpoints have version 2, and their names are not translated.
    new = backbone.state_dict()
    assert new._metadata["layer2.0.conv2"] == {"version": 2}
    other.load_state_dict(new, strict=True)


@pytest.mark.parametrize("prefix", ["", "backbone."])
@pytest.mark.parametrize(("dcn", "depth"), [("DCN", 18), ("DCNv2", 50)])
def test_pretrained_files_with_old_offset_names(dcn, depth, prefix, tmp_path):
    source, other = (ResNet(depth, base_channels=8, dcn=dict(type=dcn), stage_with_dcn=LAST_STAGES) for _ in range(2))
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    state = source.state_dict()
    path = tmp_path / "old.pth"
    old = {prefix + name.replace("conv2.conv_offset", "conv2_offset"): value for name, value in state.items()}
    torch.save(dict(state_dict=old), path)
    report = load_pretrained(other, path)
    assert not report.added
    assert report.renamed["layer2.0.conv2.conv_offset.bias"] == f"{prefix}layer2.0.conv2_offset.bias"
    for name, value in state.items():
        assert torch.equal(other.state_dict()[name], value), name


@pytest.mark.parametrize("dcn", OWN_TYPES)
@pytest.mark.parametrize(("depth", "with_cp"), [(18, False), (18, True), (50, False)])
def test_trains(dcn, depth, with_cp):
    torch.manual_seed(0)
    backbone = build_backbone(
        dict(
            type="ResNet",
            depth=depth,
            base_channels=8,
            dcn=dict(type=dcn, deform_groups=2),
            stage_with_dcn=(False, False, True, True),
            with_cp=with_cp,
        )
    ).train()
    for name, _ in backbone.layer2.named_modules():
        assert "conv_offset" not in name
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.01)
    x = torch.randn(2, 3, 64, 64)
    losses = []
    for _ in range(3):
        loss = sum(level.square().mean() for level in backbone(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0]
    assert all(block.conv2.conv_offset.weight.any() for block in backbone.layer4)


@pytest.mark.parametrize("cls", OWN)
def test_pickle_and_deepcopy(cls):
    layer, x = make(cls, 4, 4, 3), torch.randn(1, 4, 6, 6)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("cls", OWN)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(cls, dtype):
    if dtype is torch.float16 and TORCH < (2, 2):
        pytest.skip("autocast to float16 on a CPU came after torch 2.1")
    layer, x = make(cls, 8, 8, 3, padding=1), torch.randn(2, 8, 16, 16, requires_grad=True)
    with torch.autocast("cpu", dtype):
        offsets = layer.conv_offset(x)
        out = layer(x)
    assert out.dtype == dtype
    assert offsets.dtype == dtype
    out.float().sum().backward()
    assert x.grad.dtype == torch.float32
    # Only conv_offset and the result are rounded: the sampling itself runs in single precision.
    layer.conv_offset.forward = lambda _: offsets.float()
    torch.testing.assert_close(out, layer(x).to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize("cls", OWN)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_whole_model_in_half_precision(cls, dtype):
    layer, x = make(cls, 8, 8, 3, padding=1), torch.randn(2, 8, 16, 16)
    if dtype is torch.float16 and TORCH < (2, 2):
        pytest.skip("no float16 convolution on a CPU in torch 2.1")
    out = copy.deepcopy(layer).to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    assert (out.float() - layer(x)).norm() < 10 * torch.finfo(dtype).eps * out.float().norm()


@pytest.mark.parametrize("cls", OWN)
def test_channels_last(cls):
    layer, x = make(cls, 8, 8, 3, padding=1).double(), torch.randn(2, 8, 9, 9, dtype=torch.float64)
    expected = layer(x)
    layer = layer.to(memory_format=torch.channels_last)
    out = layer(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    out.sum().backward()
    assert layer.conv_offset.weight.grad.any()


@pytest.mark.skipif(TORCH < (2, 2), reason="torchvision describes its operator to torch.compile since 0.17 (torch 2.2)")
@pytest.mark.parametrize("dcn", OWN_TYPES)
@pytest.mark.parametrize("train", [False, True])
def test_compiles_without_graph_breaks(dcn, train):
    torch.manual_seed(0)
    backbone = ResNet(
        18,
        base_channels=8,
        num_stages=1,
        strides=(1,),
        dilations=(1,),
        out_indices=(0,),
        dcn=dict(type=dcn),
        stage_with_dcn=(True,),
    )
    backbone = backbone.double().train(train)
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for out, expected in zip(compiled(x), backbone(x)):
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    if train:
        compiled(x)[-1].sum().backward()
        assert backbone.layer1[0].conv2.conv_offset.weight.grad is not None
    torch._dynamo.reset()


@pytest.mark.skipif(TORCH < (2, 8), reason="onnxscript knows the operator in the exporter of torch 2.8 and newer")
@pytest.mark.parametrize(("depth", "count"), [(18, 2), (50, 4)])
@pytest.mark.parametrize("dcn", OWN_TYPES)
def test_exports_to_onnx(dcn, depth, count, tmp_path):
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    stages = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1), stage_with_dcn=(False, True))
    backbone = ResNet(depth, base_channels=8, dcn=dict(type=dcn, deform_groups=2), **stages).eval()
    for module in backbone.modules():
        if hasattr(module, "conv_offset"):
            nn.init.normal_(module.conv_offset.weight, std=0.05)
    x, file = torch.randn(1, 3, 64, 96), str(tmp_path / "backbone.onnx")
    torch.onnx.export(backbone, (x,), file, dynamo=True, opset_version=19)
    model = onnx.load(file)
    assert [opset.version for opset in model.opset_import if opset.domain == ""] == [19]
    assert [node.op_type for node in model.graph.node].count("DeformConv") == count
    session = onnxruntime.InferenceSession(file)
    levels = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        for level, expected in zip(levels, backbone(x)):
            assert (torch.from_numpy(level) - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("cls", OWN)
def test_keeps_channels_last(cls):
    layer, x = make(cls, 8, 8, 3, padding=1), torch.randn(2, 8, 9, 9)
    out = layer(x.to(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous()
    torch.testing.assert_close(out, layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dcn", OWN_TYPES)
@pytest.mark.parametrize("depth", [18, 50])
def test_levels_keep_channels_last(depth, dcn):
    backbone = ResNet(depth, base_channels=8, dcn=dict(type=dcn), stage_with_dcn=LAST_STAGES, channels_last=True)
    levels = backbone(torch.randn(2, 3, 64, 64))
    assert all(level.is_contiguous(memory_format=torch.channels_last) for level in levels)


@pytest.mark.parametrize("step", [0, -1, 1.5, None, "32"])
def test_im2col_step_must_be_a_positive_integer(step):
    with raises(ArgumentError, "im2col_step", repr(step), "1"):
        DeformConv2dPack(8, 8, 3, im2col_step=step)
    with raises(ArgumentError, "dcn", "im2col_step", repr(step), "1"):
        ResNet(18, base_channels=8, dcn=dict(type="resnet_backbone.DCN", im2col_step=step), stage_with_dcn=LAST_STAGES)
