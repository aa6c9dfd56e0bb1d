"""MultiScaleResNet1d: shapes, the public reference's arithmetic and names, errors, export, folding, deployment."""

import copy
import pickle
import re

import pytest
import torch
from helpers import assert_same_bits, gradients, loss_of, shake
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_backbone import MultiScaleResNet1d, ResNet, build_backbone, load_pretrained
from resnet_backbone.errors import ArgumentError
from resnet_backbone.multi_scale import CroppingBlock
from resnet_backbone.weights.errors import MismatchError
from resnet_backbone.weights.names import SCHEMES, canonical_names, module_names

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
def test_features_are_as_described(
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
    with pytest.raises(ArgumentError, match=f"at least {backbone.minimum_length} samples, got"):
        backbone(signals(backbone.minimum_length - 1, count, leads))


def test_defaults_are_the_references_layers():
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


def test_default_keeps_every_sample_in_the_first_stage():
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
def test_logits_are_of_averages_of_fused_branches(fusion):
    classifier = shake(small(num_classes=3, fusion=fusion)).eval()
    features = small(fusion=fusion).eval()
    features.load_state_dict({key: value for key, value in classifier.state_dict().items() if "fc." not in key})
    x = signals(77)
    last = features(x)[-1]
    torch.testing.assert_close(classifier(x), classifier.fc(last.mean(dim=2)))
    assert classifier(signals(40, count=1)).shape == (1, 3)  # a batch of one stays a batch


def test_a_branch_is_the_resnet_of_its_kernel_size():
    """With one kernel of 3 nothing is left of the scales: it is ResNet."""
    scales = shake(small(18, num_stages=4, strides=(1, 2, 2, 2), kernel_sizes=(3,), stem_stride=4)).eval()
    resnet = ResNet(18, in_channels=2, base_channels=4, conv_cfg=dict(type="Conv1d"), norm_cfg=dict(type="BN1d")).eval()
    resnet.load_state_dict({key.replace("branches.0.", ""): value for key, value in scales.state_dict().items()})
    assert_same_bits(scales(signals()), resnet(signals()))


def test_sum_adds_what_concat_sets_side_by_side():
    concat, added = shake(small()).eval(), small(fusion="sum").eval()
    added.load_state_dict(concat.state_dict())
    for level, total in zip(concat(signals()), added(signals())):
        torch.testing.assert_close(sum(level.chunk(3, dim=1)), total)


def reference_state(classes=6, leads=2, blocks=(1, 1, 1), seed=0):
    """A state dict in the public reference's names, with any numbers."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def conv(name, out, inside, size):
        state[f"{name}.weight"] = torch.randn(out, inside, size, generator=generator) * (2 / (inside * size)) ** 0.5

    def norm(name, width):
        state[f"{name}.weight"] = torch.rand(width, generator=generator) + 0.5
        state[f"{name}.bias"] = torch.randn(width, generator=generator) * 0.2
        state[f"{name}.running_mean"] = torch.randn(width, generator=generator) * 0.2
        state[f"{name}.running_var"] = torch.rand(width, generator=generator) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    conv("conv1", 64, leads, 7)
    norm("bn1", 64)
    for size in (3, 5, 7):
        inside = 64
        for stage, width in enumerate((64, 128, 256), 1):
            for block in range(blocks[stage - 1]):
                name = f"layer{size}x{size}_{stage}.{block}"
                conv(f"{name}.conv1", width, inside, size)
                norm(f"{name}.bn1", width)
                conv(f"{name}.conv2", width, width, size)
                norm(f"{name}.bn2", width)
                if block == 0:
                    conv(f"{name}.downsample.0", width, inside, 1)
                    norm(f"{name}.downsample.1", width)
                inside = width
    state["fc.weight"] = torch.randn(classes, 768, generator=generator) / 768**0.5
    state["fc.bias"] = torch.randn(classes, generator=generator)
    return state


def reference_logits(state, x, blocks=(1, 1, 1), windows=(16, 11, 6), training=False):
    """The public reference's operations, one after the other, on its own parameters."""

    def norm(name, features):
        statistics = [state[f"{name}.running_mean"].clone(), state[f"{name}.running_var"].clone()]
        return F.batch_norm(
            features, *statistics, state[f"{name}.weight"], state[f"{name}.bias"], training=training
        )  # fmt: skip

    def conv(name, features, stride, padding):
        return F.conv1d(features, state[f"{name}.weight"], stride=stride, padding=padding)

    stem = F.max_pool1d(norm("bn1", conv("conv1", x, 2, 3)).relu(), kernel_size=3, stride=2, padding=1)
    pooled = []
    for size, window in zip((3, 5, 7), windows):
        features = stem
        for stage in (1, 2, 3):
            for block in range(blocks[stage - 1]):
                name = f"layer{size}x{size}_{stage}.{block}"
                stride = 2 if block == 0 else 1
                residual = norm(f"{name}.bn1", conv(f"{name}.conv1", features, stride, 1)).relu()
                residual = norm(f"{name}.bn2", conv(f"{name}.conv2", residual, 1, 1))
                shortcut = features
                if block == 0:
                    shortcut = norm(f"{name}.downsample.1", conv(f"{name}.downsample.0", features, 2, 0))
                features = (residual + shortcut[:, :, : residual.shape[2]]).relu()
        pooled.append(F.avg_pool1d(features, kernel_size=window, stride=1))
    joined = torch.cat(pooled, dim=1)
    assert joined.shape[1:] == (768, 1)  # on its own length each window spans all that is left
    return F.linear(joined.squeeze(2), state["fc.weight"], state["fc.bias"])


def loaded(state, tmp_path, **arguments):
    path = str(tmp_path / "reference.pth")
    torch.save(state, path)
    model = MultiScaleResNet1d(in_channels=2, **dict(REFERENCE, **arguments))
    return model, load_pretrained(model, path)


@pytest.mark.parametrize("training", [False, True])
def test_computes_what_the_reference_does(training, tmp_path):
    state = reference_state()
    model, report = loaded(state, tmp_path)
    assert report.format == "Multi-Scale-1D-ResNet"
    assert len(report.loaded) == len(state)
    x = signals(512, count=3)
    with torch.no_grad():
        ours, theirs = model.train(training)(x), reference_logits(state, x, training=training)
    assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()


def test_computes_what_the_reference_does_with_more_blocks(tmp_path):
    """Blocks without a projection shorten their features too: the windows are those of what is left of 512 samples."""
    blocks, windows = (1, 2, 1), (16, 9, 2)
    state = reference_state(blocks=blocks)
    model, _ = loaded(state, tmp_path, depth=blocks)
    with torch.no_grad():
        ours, theirs = model.eval()(signals(512)), reference_logits(state, signals(512), blocks, windows)
    assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()


def test_gradients_are_the_references(tmp_path):
    state = {key: value.double() if value.is_floating_point() else value for key, value in reference_state().items()}
    model, report = loaded(state, tmp_path)
    model.double().train()
    for name, _ in model.named_parameters():
        state[report.renamed.get(name, name)].requires_grad_()
    x = signals(512, count=2).double()
    model(x).square().sum().backward()
    reference_logits(state, x, training=True).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, state[report.renamed.get(name, name)].grad)


def test_key_table():
    (scheme,) = (scheme for scheme in SCHEMES if scheme.name == "Multi-Scale-1D-ResNet")
    table = {key: scheme.rename(key) for key in reference_state()}
    assert table["layer3x3_1.0.conv1.weight"] == "layer1.branches.0.0.conv1.weight"
    assert table["layer5x5_2.0.bn2.running_var"] == "layer2.branches.1.0.norm2.running_var"
    assert table["layer7x7_3.0.downsample.1.bias"] == "layer3.branches.2.0.downsample.1.bias"
    assert table["conv1.weight"] == "stem.conv1.weight"
    ours = MultiScaleResNet1d(in_channels=2, **REFERENCE).state_dict()
    names, _ = module_names({name: tuple(value.shape) for name, value in ours.items()})
    theirs = canonical_names({table[key]: tuple(value.shape) for key, value in reference_state().items()})
    assert sorted(theirs.values()) == sorted(names.values())


@pytest.mark.parametrize("depth", [(1, 1, 1), (2, 1, 2), (1,)])
@pytest.mark.parametrize("deep_stem", [False, True])
def test_minimum_length_of_reference_padding_is_the_shortest_that_works(depth, deep_stem):
    model = small(depth, deep_stem=deep_stem, **REFERENCE).eval()
    shortest = model.minimum_length
    assert model(signals(shortest)).shape == (2, 6)
    with pytest.raises(ArgumentError, match=f"signals of at least {shortest} samples, got {shortest - 1}"):
        model(signals(shortest - 1))
    model.minimum_length = 0
    with pytest.raises(RuntimeError):
        model(signals(shortest - 1))


def test_same_padding_keeps_branches_aligned():
    """A click in the middle of a signal is seen in the middle by every branch."""
    backbone = small(kernel_sizes=(3, 5, 7), fusion="concat", strides=(1, 1, 1)).eval()
    for module in backbone.modules():
        if isinstance(module, nn.Conv1d):
            nn.init.constant_(module.weight, 1)
    silence, click = torch.zeros(1, 2, 256), torch.zeros(1, 2, 256)
    click[..., 128] = 1
    with torch.no_grad():
        (response,) = (b - a for a, b in zip(backbone(silence)[-1:], backbone(click)[-1:]))
    reach = [torch.nonzero(branch.abs().sum((0, 1)))[:, 0] for branch in response.chunk(3, dim=1)]
    centres = [(int(seen.min()) + int(seen.max())) / 2 for seen in reach]
    assert len(set(centres)) == 1
    widths = [int(seen.max()) - int(seen.min()) for seen in reach]
    assert widths == sorted(set(widths))


WRONG = {
    "depth": [
        (dict(depth=7), "invalid depth 7 for MultiScaleResNet1d"),
        (dict(depth="18"), "invalid depth '18'"),
        (dict(depth=()), "depth must list a number of blocks"),
        (dict(depth=(1, 0)), r"depth must list .* got \(1, 0\)"),
        (dict(depth=50, **REFERENCE), "padding='reference' needs BasicBlocks.* got 50"),
    ],
    "branches": [
        (dict(kernel_sizes=(3, 4)), r"kernel_sizes must be odd integers of at least 1, got \(3, 4\)"),
        (dict(kernel_sizes=()), "kernel_sizes must be odd"),
        (dict(kernel_sizes=(3, 3)), "kernel_sizes must be distinct"),
        (dict(kernel_sizes=5), "kernel_sizes must be a sequence"),
        (dict(kernel_sizes=(1, 3), **REFERENCE), "kernel_sizes must be odd integers of at least 3"),
        (dict(fusion="mean"), "fusion must be 'concat' or 'sum', got 'mean'"),
        (dict(padding="valid"), "padding must be 'same' or 'reference', got 'valid'"),
        (dict(stem_stride=3), "stem_stride must be 1, 2 or 4, got 3"),
    ],
    "outputs": [
        (dict(padding="reference"), "num_classes must be given with padding='reference'"),
        (dict(num_classes=0), "num_classes must be an integer of at least 1, got 0"),
        (dict(num_classes=2, out_indices=(0,)), "out_indices must be None where num_classes is given"),
        (dict(out_indices=(3,)), "out_indices must be distinct stage indices from 0 to 2"),
        (dict(num_stages=4), "num_stages must be an integer from 1 to 3, got 4"),
        (dict(num_stages="3"), "num_stages must be an integer from 1 to 3, got '3'"),
        (dict(strides=(2, 2)), "strides must have one entry per stage"),
    ],
    "layers": [
        (dict(conv_cfg=None), "conv_cfg must be of one dimension.*got None"),
        (dict(conv_cfg=dict(type="Conv2d")), "conv_cfg must be of one dimension"),
        (dict(norm_cfg=dict(type="BN")), re.escape("Write norm_cfg=dict(type='BN1d')")),
        (dict(channels_last=True), "channels_last must be False for signals"),
        (dict(kernal_sizes=(3,)), "MultiScaleResNet1d has no argument 'kernal_sizes'. Did you mean 'kernel_sizes'"),
    ],
}


@pytest.mark.parametrize(
    ("arguments", "message"), [case for cases in WRONG.values() for case in cases], ids=lambda value: str(value)[:40]
)
def test_wrong_argument_is_refused_by_name(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        small(**arguments)


@pytest.mark.parametrize("shape", [(2, 200), (2, 3, 200), (2, 2, 14, 14)])
def test_input_of_another_shape_is_refused(shape):
    with pytest.raises(ArgumentError, match=rf"x must have shape \(N, 2, L\), got {re.escape(str(shape))}"):
        small()(torch.rand(shape))


def test_no_config_that_was_passed_in_is_changed():
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


def test_own_checkpoint_goes_round(tmp_path):
    path = str(tmp_path / "weights.pth")
    source = shake(small(num_classes=3, kernel_sizes=(9, 39)))
    torch.save(dict(state_dict=source.state_dict()), path)
    model = small(num_classes=3, kernel_sizes=(9, 39), init_cfg=dict(type="Pretrained", checkpoint=path))
    model.init_weights()
    assert_same_bits(model.state_dict().values(), source.state_dict().values())
    with pytest.raises(MismatchError, match=r"shapes differ: layer1\.branches\.1\.0\.conv1\.weight"):
        load_pretrained(small(num_classes=3, kernel_sizes=(9, 19)), path)


@pytest.mark.parametrize("arguments", [{}, dict(num_classes=3), dict(REFERENCE)], ids=str)
def test_pickles_and_copies(arguments):
    model = shake(small(**arguments)).eval()
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert_same_bits(outputs(twin), outputs(model))


def outputs(model, length=400, count=2):
    with torch.no_grad():
        out = model(signals(length, count))
    return [out] if isinstance(out, torch.Tensor) else list(out)


def test_checkpointing_changes_rounding_alone():
    """The stem's gradient is the sum of the branches', which a checkpoint adds up in another order."""
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
def test_folding_and_deployment_change_rounding_alone(arguments):
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


def test_compiles_without_graph_breaks():
    torch.compiler.reset()
    model = shake(small((1, 1), num_classes=3, kernel_sizes=(3, 5))).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    state = copy.deepcopy(model.state_dict())
    results = []
    for run in (compiled, model):
        model.load_state_dict(state)
        model.zero_grad()
        run(signals()).square().sum().backward()
        results.append(gradients(model))
    torch.testing.assert_close(results[0], results[1])


def test_cropping_block_with_a_kernel_of_3_is_a_basic_block():
    arguments = dict(conv_cfg=dict(type="Conv1d"), norm_cfg=dict(type="BN1d"))
    block = shake(CroppingBlock(4, 4, **arguments)).eval()
    expected = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(signals(20, leads=4))))))
    assert_same_bits([block(signals(20, leads=4))], [torch.relu(expected + signals(20, leads=4))])


UNEQUAL = {
    "default": {},
    "strided": dict(stem_stride=4, strides=(2, 2, 2), num_classes=3),
    "odd strides, long kernels": dict(strides=(1, 3, 2), kernel_sizes=(3, 9, 39), num_classes=3, fusion="sum"),
    "bottlenecks, D": dict(depth=50, deep_stem=True, avg_down=True, stem_stride=2, strides=(1, 2, 3)),
    "dilated": dict(depth=(2, 1), strides=(1, 2), dilations=(1, 2)),
    "reference": dict(REFERENCE),
}


def unequal(model, count=4, seed=0):
    """A batch of signals of unequal length, the shortest that is allowed among them, with NaN behind their ends."""
    shortest = model.minimum_length
    lengths = torch.tensor([shortest, shortest + 31, shortest + 46, shortest + 17][:count])
    x = torch.randn(count, 2, shortest + 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.masked_fill(torch.arange(x.shape[-1]) >= lengths[:, None, None], torch.nan), lengths


def levels_of(out):
    return [out] if isinstance(out, torch.Tensor) else list(out)


@pytest.mark.parametrize("state", ["plain", "folded", "deployed"])
@pytest.mark.parametrize("arguments", UNEQUAL.values(), ids=UNEQUAL)
@torch.no_grad()
def test_signals_of_unequal_length_are_computed_as_each_alone(arguments, state):
    model = shake(small(**arguments, fold_norm=state == "folded")).double().eval()
    if state == "deployed":
        model.switch_to_deploy()
    x, lengths = unequal(model)
    together = levels_of(model(x, lengths))
    for index, length in enumerate(lengths.tolist()):
        alone = levels_of(model(x[index : index + 1, :, :length]))
        for ours, theirs in zip(together, alone, strict=True):
            assert theirs.abs().max() > 1e-3
            torch.testing.assert_close(ours[index : index + 1, ..., : theirs.shape[-1]], theirs)
            if ours.dim() == 3:
                assert not ours[index, :, theirs.shape[-1] :].any()
    assert_same_bits(levels_of(model(x, lengths.tolist())), together)


@pytest.mark.parametrize("with_cp", [False, True])
def test_gradients_of_unequal_length_are_those_of_each_alone(with_cp):
    model = shake(small(num_classes=3, norm_eval=True, with_cp=with_cp)).double().train()
    x, lengths = unequal(model)
    model(x, lengths).square().sum().backward()
    together = [gradient.clone() for gradient in gradients(model)]
    model.zero_grad()
    for index, length in enumerate(lengths.tolist()):
        model(x[index : index + 1, :, :length]).square().sum().backward()
    assert all(gradient.abs().max() > 0 for gradient in together)
    torch.testing.assert_close(together, gradients(model))


def test_batch_statistics_leave_the_padding_out():
    """More padding changes neither logits nor running statistics; lengths that fill the batch change nothing at all."""
    model = shake(small(num_classes=3)).double().train()
    x, lengths = unequal(model)
    results = []
    for padding in (0, 40):
        twin = copy.deepcopy(model)
        results.append([twin(F.pad(x, (0, padding)), lengths), *twin.buffers()])
    torch.testing.assert_close(results[0], results[1])
    whole = torch.randn(3, 2, 40, dtype=torch.float64)
    results = []
    for of_whole in (None, [40, 40, 40]):
        twin = copy.deepcopy(model)
        results.append([twin(whole, of_whole), *twin.buffers()])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([10, 20, 30], "one integer for each of the 2 signals"),
        ([10.0, 20.0], "of torch.float32"),
        ([3, 20], r"from 4 to the 30 samples of x, got \[3, 20\]"),
        ([20, 31], r"got \[20, 31\]"),
    ],
)
def test_wrong_lengths_are_refused(lengths, message):
    with pytest.raises(ArgumentError, match=message):
        small(num_classes=2)(signals(30), lengths)


def test_lengths_need_batch_norms_and_no_plugins():
    plugins = [dict(cfg=dict(type="SELayer", conv_cfg=dict(type="Conv1d"), ratio=2), position="after_conv2")]
    for arguments in (dict(norm_cfg=dict(type="GN", num_groups=2)), dict(plugins=plugins)):
        with pytest.raises(ArgumentError, match="lengths must be None"):
            small(**arguments)(signals(30), [20, 30])


@pytest.mark.skipif(TORCH < (2, 8), reason="the exporter of torch 2.8 and newer")
def test_unequal_lengths_export():
    model = shake(small((1, 1), kernel_sizes=(3, 5), strides=(2, 2), num_classes=3)).double().eval()
    x, lengths = unequal(model)
    batch, samples = torch.export.Dim("batch", min=2, max=8), torch.export.Dim("samples", min=13, max=128)
    example = (F.pad(x, (0, 2)), lengths)
    program = torch.export.export(model, example, dynamic_shapes=({0: batch, 2: 4 * samples}, {0: batch}))
    with torch.no_grad():
        others, lengths = unequal(model, count=3, seed=1)
        others = F.pad(others, (0, 10))
        torch.testing.assert_close(program.module()(others, lengths), model(others, lengths))
