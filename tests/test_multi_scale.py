"""MultiScaleResNet1d: shapes, exactness, errors, export, folding, deployment."""

import copy
import pickle

import pytest
import torch
from helpers import assert_same_bits, gradients, loss_of, raises, shake
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_backbone import MultiScaleResNet1d, ResNet, build_backbone, load_pretrained
from resnet_backbone.errors import ArgumentError, ArgumentTypeError, MismatchError, UnknownNameError
from resnet_backbone.multi_scale import CroppingBlock

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
REFERENCE = dict(padding="reference", num_classes=6)


def small(depth=(1, 1, 1), **arguments):
    return MultiScaleResNet1d(depth, **dict(dict(in_channels=2, base_channels=4), **arguments))


def signals(length=200, count=2, leads=2):
    return torch.randn(count, leads, length, generator=torch.Generator().manual_seed(5))


@given(
    depth=st.sampled_from([(1, 1, 1), (2, 1), (1,), (1, 1, 1, 1), 18, 50]),
    kernel_sizes=st.lists(st.sampled_from([1, 3, 5, 7, 9, 39]), min_size=1, max_size=3, unique=True),
    fusion=st.sampled_from(["concat", "sum"]),
    stride=st.integers(1, 2),
    leads=st.integers(1, 12),
    count=st.integers(1, 3),
    more=st.integers(0, 70),
    deep_stem=st.booleans(),
    avg_down=st.booleans(),
    stem_stride=st.sampled_from([1, 2, 4]),
)
def test_features_match_feature_info(
    depth, kernel_sizes, fusion, stride, leads, count, more, deep_stem, avg_down, stem_stride
):
    stages = len(depth) if isinstance(depth, tuple) else 3
    backbone = small(
        depth, in_channels=leads, kernel_sizes=kernel_sizes, fusion=fusion, strides=(stride,) * stages,
        deep_stem=deep_stem, avg_down=avg_down, stem_stride=stem_stride,
    ).eval()  # fmt: skip
    assert backbone.minimum_length == stem_stride * stride**stages
    length = backbone.minimum_length + more
    levels = backbone(signals(length, count, leads))
    assert isinstance(levels, tuple)
    expansion = 4 if depth == 50 else 1
    for index, (level, info) in enumerate(zip(levels, backbone.feature_info, strict=True)):
        channels = 4 * 2**index * expansion * (len(kernel_sizes) if fusion == "concat" else 1)
        assert info == (f"layer{index + 1}", channels, stem_stride * stride ** (index + 1))
        assert level.shape == (count, channels, -(-length // info.reduction))
    assert backbone.feat_dim == channels
    too_short = (count, leads, backbone.minimum_length - 1)
    with raises(ArgumentError, "x", str(backbone.minimum_length), str(too_short)):
        backbone(signals(backbone.minimum_length - 1, count, leads))


def test_default_layers_match_the_reference():
    backbone = MultiScaleResNet1d(num_classes=6, padding="reference")
    assert (backbone.conv1.kernel_size, backbone.conv1.stride, backbone.conv1.padding) == ((7,), (2,), (3,))
    assert backbone.out_strides == (32,)
    assert backbone.fc.in_features == 768
    for index, size in enumerate((3, 5, 7)):
        for number, width in enumerate((64, 128, 256), 1):
            (block,) = getattr(backbone, f"layer{number}").branches[index]
            assert block.conv1.weight.shape[::2] == block.conv2.weight.shape[::2] == (width, size)
            assert (block.conv1.stride, block.conv2.stride) == ((2,), (1,))
    assert MultiScaleResNet1d().out_channels == (192, 384, 768)
    assert not MultiScaleResNet1d().norm_eval


def test_default_keeps_the_resolution_in_the_first_stage():
    assert MultiScaleResNet1d(base_channels=2).out_strides == (1, 2, 4)
    assert small((1, 1, 1, 1), strides=(1, 1, 1, 1)).minimum_length == 1
    assert small(num_classes=2)(signals(4)).shape == (2, 2)


@pytest.mark.parametrize("stem_stride", [1, 2])
def test_stem_stride_of_any_1d_resnet(stem_stride):
    arguments = dict(in_channels=2, base_channels=4, conv_cfg=dict(type="Conv1d"), norm_cfg=dict(type="BN1d"))
    resnet = shake(ResNet(18, stem_stride=stem_stride, **arguments)).eval()
    assert resnet.out_strides == tuple(stem_stride * stride for stride in (1, 2, 4, 8))
    with torch.no_grad():
        expected = resnet.bn1(F.conv1d(signals(), resnet.conv1.weight, stride=stem_stride, padding=3)).relu()
        assert_same_bits([resnet.layer1(expected)], resnet(signals())[:1])


@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_logits_are_computed_from_averaged_features(fusion):
    classifier = shake(small(num_classes=3, fusion=fusion)).eval()
    features = small(fusion=fusion).eval()
    features.load_state_dict({key: value for key, value in classifier.state_dict().items() if "fc." not in key})
    x = signals(77)
    last = features(x)[-1]
    torch.testing.assert_close(classifier(x), classifier.fc(last.mean(dim=2)))
    assert classifier(signals(40, count=1)).shape == (1, 3)  # the batch dimension is kept


def test_branch_equals_a_resnet_with_its_kernel_size():
    """With a single kernel size of 3, the network is a ResNet."""
    scales = shake(small(18, num_stages=4, strides=(1, 2, 2, 2), kernel_sizes=(3,), stem_stride=4)).eval()
    resnet = ResNet(18, in_channels=2, base_channels=4, conv_cfg=dict(type="Conv1d"), norm_cfg=dict(type="BN1d")).eval()
    resnet.load_state_dict({key.replace("branches.0.", ""): value for key, value in scales.state_dict().items()})
    assert_same_bits(scales(signals()), resnet(signals()))


def test_sum_fusion_adds_the_branches():
    concat, added = shake(small()).eval(), small(fusion="sum").eval()
    added.load_state_dict(concat.state_dict())
    for level, total in zip(concat(signals()), added(signals())):
        torch.testing.assert_close(sum(level.chunk(3, dim=1)), total)


@pytest.mark.parametrize("depth", [(1, 1, 1), (2, 1, 2), (1,)])
@pytest.mark.parametrize("deep_stem", [False, True])
def test_minimum_length_with_reference_padding(depth, deep_stem):
    model = small(depth, deep_stem=deep_stem, **REFERENCE).eval()
    shortest = model.minimum_length
    assert model(signals(shortest)).shape == (2, 6)
    with raises(ArgumentError, "x", str(shortest), f"(2, 2, {shortest - 1})"):
        model(signals(shortest - 1))
    model.minimum_length = 0
    with pytest.raises(RuntimeError):
        model(signals(shortest - 1))


def test_same_padding_keeps_branches_aligned():
    """An impulse in the middle of a signal is in the middle of every branch's features."""
    backbone = small(kernel_sizes=(3, 5, 7), fusion="concat", strides=(1, 1, 1)).eval()
    for module in backbone.modules():
        if isinstance(module, nn.Conv1d):
            nn.init.constant_(module.weight, 1)
    silence, click = torch.zeros(1, 2, 256), torch.zeros(1, 2, 256)
    click[..., 128] = 1
    with torch.no_grad():
        (response,) = (b - a for a, b in zip(backbone(silence)[-1:], backbone(click)[-1:]))
    reach = [torch.nonzero(branch.abs().sum((0, 1)))[:, 0] for branch in response.chunk(3, dim=1)]
    centers = [(int(seen.min()) + int(seen.max())) / 2 for seen in reach]
    assert len(set(centers)) == 1
    widths = [int(seen.max()) - int(seen.min()) for seen in reach]
    assert widths == sorted(set(widths))


WRONG = {
    "depth": [
        (dict(depth=7), UnknownNameError, ["depth", "7", "MultiScaleResNet1d", "18"]),
        (dict(depth="18"), UnknownNameError, ["depth", "'18'", "MultiScaleResNet1d", "18, 34"]),
        (dict(depth=()), ArgumentError, ["depth", "()", "1"]),
        (dict(depth=(3, 0)), ArgumentError, ["depth", "(3, 0)", "1"]),
        (dict(depth=50, **REFERENCE), ArgumentError, ["depth", "50", "18", "34", "padding='reference'"]),
    ],
    "branches": [
        (dict(kernel_sizes=(3, 4)), ArgumentError, ["kernel_sizes", "(3, 4)", "odd", "1"]),
        (dict(kernel_sizes=()), ArgumentError, ["kernel_sizes", "()", "odd", "1"]),
        (dict(kernel_sizes=(3, 3)), ArgumentError, ["kernel_sizes", "(3, 3)", "distinct"]),
        (dict(kernel_sizes=5), ArgumentTypeError, ["kernel_sizes", "5", "sequence"]),
        (dict(kernel_sizes=(1, 5), **REFERENCE), ArgumentError, ["kernel_sizes", "(1, 5)", "odd", "3"]),
        (dict(fusion="mean"), ArgumentError, ["fusion", "'mean'", "'concat'", "'sum'"]),
        (dict(padding="valid"), ArgumentError, ["padding", "'valid'", "'same'", "'reference'"]),
        (dict(stem_stride=3), ArgumentError, ["stem_stride", "3", "1", "2", "4"]),
    ],
    "outputs": [
        (dict(padding="reference"), ArgumentError, ["num_classes", "None", "padding='reference'"]),
        (dict(num_classes=0), ArgumentError, ["num_classes", "0", "1"]),
        (dict(num_classes=2, out_indices=(0,)), ArgumentError, ["out_indices", "None", "(0,)", "num_classes=2"]),
        (dict(out_indices=(3,)), ArgumentError, ["out_indices", "(3,)", "0", "2"]),
        (dict(num_stages=4), ArgumentError, ["num_stages", "4", "1", "3"]),
        (dict(num_stages="3"), ArgumentError, ["num_stages", "'3'", "1", "3"]),
        (dict(strides=(2, 2)), ArgumentError, ["strides", "(2, 2)", "num_stages=3"]),
    ],
    "layers": [
        (dict(conv_cfg=None), ArgumentError, ["conv_cfg", "None", "dict(type='Conv1d')"]),
        (dict(conv_cfg=dict(type="Conv2d")), ArgumentError, ["conv_cfg", "{'type': 'Conv2d'}", "dict(type='Conv1d')"]),
        (dict(norm_cfg=dict(type="BN")), ArgumentError, ["norm_cfg={'type': 'BN'}", "norm_cfg=dict(type='BN1d')"]),
        (dict(channels_last=True), ArgumentError, ["channels_last", "False", "signals"]),
        (dict(kernal_sizes=(3,)), ArgumentTypeError, ["MultiScaleResNet1d", "'kernal_sizes'", "'kernel_sizes'"]),
    ],
}


@pytest.mark.parametrize(
    ("arguments", "exception", "words"),
    [case for cases in WRONG.values() for case in cases],
    ids=lambda value: str(value)[:40],
)
def test_wrong_argument_is_rejected_by_name(arguments, exception, words):
    with raises(exception, *words):
        small(**arguments)


@pytest.mark.parametrize("shape", [(2, 200), (2, 3, 200), (2, 2, 14, 14)])
def test_input_of_another_shape_is_rejected(shape):
    with raises(ArgumentError, "x", "(N, 2, L)", str(shape)):
        small()(torch.rand(shape))


def test_configs_are_not_modified():
    arguments = dict(depth=[1, 2], kernel_sizes=[5, 3], strides=[2, 1], conv_cfg=dict(type="Conv1d"))
    before = copy.deepcopy(arguments)
    assert small(**arguments).kernel_sizes == (5, 3)
    assert arguments == before


@pytest.mark.parametrize("kind", ["MultiScaleResNet1d", "resnet_backbone.MultiScaleResNet1d"])
def test_builds_from_a_config(kind):
    backbone = build_backbone(dict(type=kind, in_channels=2, base_channels=4, frozen_stages=1, norm_eval=True))
    assert type(backbone) is MultiScaleResNet1d
    frozen = {name.split(".")[0] for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}
    assert not any(module.training for module in backbone.train().modules() if isinstance(module, _BatchNorm))


def test_state_dict_round_trip(tmp_path):
    path = str(tmp_path / "weights.pth")
    source = shake(small(num_classes=3, kernel_sizes=(9, 39)))
    torch.save(dict(state_dict=source.state_dict()), path)
    model = small(num_classes=3, kernel_sizes=(9, 39), init_cfg=dict(type="Pretrained", checkpoint=path))
    model.init_weights()
    assert_same_bits(model.state_dict().values(), source.state_dict().values())
    with raises(MismatchError, "layer1.branches.1.0.conv1.weight", "(4, 4, 39)", "(4, 4, 19)"):
        load_pretrained(small(num_classes=3, kernel_sizes=(9, 19)), path)


@pytest.mark.parametrize("arguments", [{}, dict(num_classes=3), dict(REFERENCE)], ids=str)
def test_pickle_and_deepcopy(arguments):
    model = shake(small(**arguments)).eval()
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert_same_bits(outputs(twin), outputs(model))


def outputs(model, length=400, count=2):
    with torch.no_grad():
        out = model(signals(length, count))
    return [out] if isinstance(out, torch.Tensor) else list(out)


def test_checkpointing_differs_only_by_rounding():
    """The stem's gradient is the sum over branches, and checkpointing changes the order of summation."""
    plain = shake(small(norm_eval=True)).double().train()
    checkpointed = small(norm_eval=True, with_cp=True).double().train()
    checkpointed.load_state_dict(plain.state_dict())
    for model in (plain, checkpointed):
        model(signals().double())[-1].square().mean().backward()
    torch.testing.assert_close(gradients(checkpointed), gradients(plain))
    blocks = [name for name, _ in plain.named_parameters() if name.startswith("layer2.")]
    assert_same_bits(
        *([dict(model.named_parameters())[name].grad for name in blocks] for model in (checkpointed, plain))
    )


VARIANTS = {
    "features": {},
    "features of the reference's strides": dict(stem_stride=4, strides=(2, 2, 2)),
    "logits": dict(num_classes=3),
    "reference": dict(REFERENCE),
    "sum, bottlenecks, D": dict(depth=50, fusion="sum", deep_stem=True, avg_down=True),
}


@pytest.mark.parametrize("arguments", VARIANTS.values(), ids=VARIANTS)
def test_folding_and_deployment_differ_only_by_rounding(arguments):
    exact = shake(small(**arguments, norm_eval=True)).double().train()
    folded = small(**arguments, norm_eval=True, fold_norm=True).double().train()
    folded.load_state_dict(exact.state_dict())
    results = []
    for model in (exact, folded):
        out = model(signals(400).double())
        loss_of([out] if isinstance(out, torch.Tensor) else out).backward()
        results.append([*([out] if isinstance(out, torch.Tensor) else out), *gradients(model)])
    torch.testing.assert_close(results[1], results[0])
    with torch.no_grad():
        expected = exact.eval()(signals(400).double())
        torch.testing.assert_close(exact.switch_to_deploy()(signals(400).double()), expected)
    assert not any(isinstance(module, _BatchNorm) for module in exact.modules())


@pytest.mark.parametrize(
    ("arguments", "deployed"),
    [
        ({}, False),
        (dict(stem_stride=4, strides=(2, 2)), True),
        (dict(REFERENCE), False),
        (dict(REFERENCE), True),
    ],
    ids=["features", "strided, deployed", "reference", "reference, deployed"],
)
@pytest.mark.skipif(TORCH < (2, 8), reason="the exporter of torch 2.8 and newer")
def test_exports_with_dynamic_batch_and_length(arguments, deployed, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, file = shake(small((1, 1), kernel_sizes=(3, 5), **arguments)).eval(), str(tmp_path / "model.onnx")
    if deployed:
        model.switch_to_deploy()
    batch, length = torch.export.Dim("batch", min=1, max=8), torch.export.Dim("length", min=13, max=64)
    shapes = ({0: batch, 2: 32 * length},)
    program = torch.export.export(model, (signals(512),), dynamic_shapes=shapes)
    torch.onnx.export(
        model, (signals(512),), file, dynamo=True, dynamic_shapes=shapes, input_names=["signals"], opset_version=18
    )
    session = onnxruntime.InferenceSession(file)
    for size, count in ((416, 1), (1024, 3)):
        expected = outputs(model, size, count)
        torch.testing.assert_close(outputs(program.module(), size, count), expected)
        ran = session.run(None, {"signals": signals(size, count).numpy()})
        torch.testing.assert_close([torch.from_numpy(array) for array in ran], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [None, torch.tensor([150, 200])], ids=["", "unequal lengths"])
def test_compiles_without_graph_breaks(lengths):
    torch.compiler.reset()
    model = shake(small((1,), num_classes=3, kernel_sizes=(3, 5))).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    state = copy.deepcopy(model.state_dict())
    results = []
    for run in (compiled, model):
        model.load_state_dict(state)
        model.zero_grad()
        run(signals(), lengths).square().sum().backward()
        results.append([*gradients(model), *model.buffers()])
    torch.testing.assert_close(results[0], results[1])


def test_cropping_block_with_a_kernel_of_3_is_a_basic_block():
    arguments = dict(conv_cfg=dict(type="Conv1d"), norm_cfg=dict(type="BN1d"))
    block = shake(CroppingBlock(4, 4, **arguments)).eval()
    expected = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(signals(20, leads=4))))))
    assert_same_bits([block(signals(20, leads=4))], [torch.relu(expected + signals(20, leads=4))])
