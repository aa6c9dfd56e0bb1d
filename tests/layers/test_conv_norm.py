"""``fold_norm``: convolution and norm as one operation, equal to the exact path up to rounding."""

import copy
import pickle

import pytest
import torch
from helpers import gradients, loss_of, shake
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jvp, vmap

from benchmarks.bench.measure import saved_bytes
from resnet_backbone import BasicBlock, ResNet, ResNetV1d, build_backbone
from resnet_backbone.layers.conv_norm import _ScaledConv, conv_norm, conv_norm_sequence, fold_weights, is_foldable

SMALL = dict(base_channels=8)
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


def pair(cls=ResNet, depth=50, *, dtype=torch.float32, train=True, **arguments):
    """An exact and a folded backbone with the same weights."""
    exact = shake(cls(depth, **SMALL, **arguments)).to(dtype).train(train)
    folded = cls(depth, **SMALL, **arguments, fold_norm=True).to(dtype).train(train)
    folded.load_state_dict(exact.state_dict())
    return exact, folded


def relative(one, other):
    one, other = one.detach().double(), other.detach().double()
    return float((one - other).norm() / other.norm().clamp_min(1e-30))


def run(backbone, x):
    backbone.zero_grad()
    levels = backbone(x)
    loss_of(levels).backward()
    return levels


def assert_close_computation(exact, folded, x, tolerance):
    for ours, theirs in zip(run(folded, x), run(exact, x)):
        assert relative(ours, theirs) < tolerance
    for (name, parameter), ours, theirs in zip(exact.named_parameters(), gradients(folded), gradients(exact)):
        assert (ours is None) == (theirs is None), name
        if theirs is not None:
            assert ours.dtype == parameter.dtype
            assert relative(ours, theirs) < tolerance, name


@pytest.mark.parametrize(
    "arguments",
    [
        dict(depth=18),
        dict(depth=50, frozen_stages=1),
        dict(cls=ResNetV1d, depth=50, frozen_stages=0),
        dict(cls=ResNetV1d, depth=18, style="caffe"),
        dict(depth=50, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
        dict(depth=18, with_cp=(False, True, False, True)),
        dict(depth=50, norm_cfg=dict(type="BN", requires_grad=False)),
        dict(depth=18, norm_cfg=dict(type="BN", affine=False)),
        dict(depth=50, channels_last=True),
        dict(depth=18, norm_cfg=dict(type="SyncBN")),
    ],
    ids=str,
)
def test_outputs_and_gradients(arguments):
    torch.manual_seed(0)
    exact, folded = pair(dtype=torch.float64, **arguments)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    assert_close_computation(exact, folded, x, 1e-10)


@pytest.mark.parametrize(
    "arguments",
    [
        dict(norm_eval=False),
        dict(norm_cfg=dict(type="GN", num_groups=4)),
        dict(conv_cfg=dict(type="ConvWS")),
    ],
    ids=str,
)
def test_unfoldable_layers_are_bit_identical(arguments):
    exact, folded = pair(depth=18, **arguments)
    x = torch.randn(2, 3, 64, 64)
    for ours, theirs in zip(run(folded, x), run(exact, x)):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(gradients(folded), gradients(exact)):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "arguments",
    [
        dict(dcn=dict(type="DCNv2"), stage_with_dcn=(False, False, True, True)),
        dict(plugins=[dict(cfg=dict(type="ContextBlock", ratio=0.25), position="after_conv2")]),
        dict(plugins=[dict(cfg=dict(type="ConvModule", norm_cfg=dict(type="BN"), out_channels=8, kernel_size=1),
                           position="after_conv1", stages=(True, False, False, False))]),
    ],
    ids=lambda arguments: next(iter(arguments)),
)  # fmt: skip
def test_dcn_and_plugins_between_folded_layers(arguments):
    exact, folded = pair(depth=50, dtype=torch.float64, **arguments)
    assert_close_computation(exact, folded, torch.randn(2, 3, 64, 64, dtype=torch.float64), 1e-10)


def test_parameters_and_state_dict_are_unchanged():
    exact, folded = pair(depth=18, frozen_stages=1)
    folded(torch.rand(1, 3, 64, 64))
    assert list(folded.state_dict()) == list(exact.state_dict())
    assert [(name, p.requires_grad) for name, p in folded.named_parameters()] == [
        (name, p.requires_grad) for name, p in exact.named_parameters()
    ]
    for other in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
        assert other.fold_norm
        assert all(torch.equal(a, b) for a, b in zip(other(torch.ones(1, 3, 64, 64)), folded(torch.ones(1, 3, 64, 64))))
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(folded).train()  # torch 2.1 converts to train mode
    with torch.no_grad():
        for ours, theirs in zip(synced(torch.ones(1, 3, 64, 64)), exact(torch.ones(1, 3, 64, 64))):
            assert relative(ours, theirs) < 1e-5


def test_builds_from_a_config():
    backbone = build_backbone(dict(type="ResNet", depth=18, fold_norm=True, channels_last=True, with_cp=[1, 0, 0, 0]))
    assert all(block.fold_norm for stage in backbone.res_layers for block in getattr(backbone, stage))
    assert [getattr(backbone, stage)[0].with_cp for stage in backbone.res_layers] == [1, 0, 0, 0]


def test_half_the_bytes_are_saved():
    exact, folded = pair(depth=50, frozen_stages=1)
    x = torch.rand(1, 3, 128, 128)
    assert saved_bytes(folded, lambda: folded(x)) <= 0.52 * saved_bytes(exact, lambda: exact(x))


def test_frozen_stages_save_nothing():
    _, folded = pair(depth=18, frozen_stages=4)
    assert saved_bytes(folded, lambda: folded(torch.rand(1, 3, 64, 64))) == 0


def test_autocast():
    torch.manual_seed(0)
    exact, folded = pair(depth=18)
    reference, _ = pair(depth=18)
    reference.load_state_dict(exact.state_dict())
    x = torch.randn(2, 3, 64, 64)
    run(reference, x)
    errors = []
    for backbone in (folded, exact):
        backbone.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            levels = backbone(x)
        assert all(level.dtype == torch.bfloat16 for level in levels)
        loss_of(level.float() for level in levels).backward()
        errors.append([relative(a, b) for a, b in zip(gradients(backbone), gradients(reference)) if b is not None])
        assert all(parameter.grad.dtype == torch.float32 for parameter in backbone.parameters())
    # Both differ from single precision by rounding to bfloat16, folded not more than exact.
    assert max(errors[0]) < 1.5 * max(errors[1])


def conv_and_norm(dimensions=2, *, bias=False, groups=1, affine=True, **arguments):
    conv = getattr(nn, f"Conv{dimensions}d")(4, 6, 3, padding=1, bias=bias, groups=groups, **arguments)
    norm = getattr(nn, f"BatchNorm{dimensions}d")(6, affine=affine)
    return shake(nn.Sequential(conv, norm)).double().eval()


class Folded(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.conv, self.norm = layers

    def forward(self, x):
        return conv_norm(self.conv, self.norm, x, fold=True)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize(
    "arguments", [dict(stride=2, dilation=2), dict(bias=True, groups=2), dict(affine=False)], ids=str
)
def test_gradcheck_and_gradgradcheck(dimensions, arguments):
    layers = conv_and_norm(dimensions, **arguments)
    folded = Folded(layers)
    names = list(dict(folded.named_parameters()))
    x = torch.randn(2, 4, *[3] * dimensions, dtype=torch.float64, requires_grad=True)

    def compute(x, *parameters):
        return torch.func.functional_call(folded, dict(zip(names, parameters)), x)

    inputs = (x, *folded.parameters())
    out = compute(*inputs)
    assert "ScaledConv" in type(out.grad_fn).__name__
    torch.testing.assert_close(out, layers(x))
    assert gradcheck(compute, inputs, fast_mode=True, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(compute, inputs, fast_mode=True, check_fwd_over_rev=True)


def test_composes_with_function_transforms():
    conv = conv_and_norm(groups=2)[0].requires_grad_(False)
    x, scale, shift = (torch.randn(*shape, dtype=torch.float64) for shape in ((3, 2, 4, 5, 5), (6,), (6,)))

    def folded(x, scale):
        return _ScaledConv.apply(x, conv.weight, scale, shift, conv)

    def plain(x, scale):
        return nn.functional.conv2d(x, conv.weight * scale.view(-1, 1, 1, 1), shift, padding=1, groups=2)

    def transformed(function):
        def loss(x, scale):
            return function(x, scale).pow(3).sum()

        yield vmap(function, (0, None))(x, scale)
        yield vmap(grad(loss, argnums=1), (0, None))(x, scale)
        yield from jvp(function, (x[0], scale), (x[1], shift))
        yield hessian(loss, argnums=1)(x[0], scale)

    for found, expected in zip(transformed(folded), transformed(plain)):
        torch.testing.assert_close(found, expected)
        assert expected.any()


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("index", [0, 1], ids=["projection", "identity"])
def test_checkpoint_does_not_recompute_the_last_convolution(depth, index, monkeypatch):
    exact, folded = (backbone.layer2[index] for backbone in pair(depth=depth, with_cp=True))
    conv2d, runs, counts = nn.functional.conv2d, [], []

    def counted(*args):
        out = conv2d(*args)  # stopped early if the checkpoint has all it needs
        runs.append(args)
        return out

    monkeypatch.setattr(nn.functional, "conv2d", counted)
    for block in (exact, folded):
        out = block(torch.randn(1, block.inplanes, 8, 8, requires_grad=True))
        convs = len(runs)
        out.sum().backward()
        counts.append((convs, len(runs) - convs))
        runs.clear()
    # The exact path's last norm layer needs its input.
    assert counts[0][0] == counts[0][1]
    assert counts[1] == (counts[0][0], counts[0][1] - 1)


def test_folded_weights_match_the_affine_function():
    layers = conv_and_norm(bias=True)
    weight, bias = fold_weights(layers[0], layers[1])
    x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(nn.functional.conv2d(x, weight, bias, padding=1), layers(x))


def test_sequential_folds_pairs_of_convolution_and_norm():
    layers = nn.Sequential(nn.AvgPool2d(2), *conv_and_norm(), nn.ReLU(), nn.Conv2d(6, 2, 1).double())
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(conv_norm_sequence(layers, x, fold=True), layers(x))
    assert torch.equal(conv_norm_sequence(layers, x, fold=False), layers(x))


def test_hooks_are_called():
    seen = []
    for index in (0, 1):
        layers = conv_and_norm()
        assert is_foldable(*layers)
        layers[index].register_forward_hook(lambda module, *_: seen.append(type(module).__name__))
        assert not is_foldable(*layers)
        conv_norm(*layers, torch.randn(1, 4, 5, 5, dtype=torch.float64), fold=True)
    assert seen == ["Conv2d", "BatchNorm2d"]


def test_other_computations_are_not_folded():
    conv, norm = conv_and_norm()
    assert not is_foldable(nn.utils.parametrizations.weight_norm(copy.deepcopy(conv)), norm)
    assert not is_foldable(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), norm)
    assert not is_foldable(conv, nn.BatchNorm2d(6, track_running_stats=False).eval())
    assert not is_foldable(conv, copy.deepcopy(norm).train())


def replace_data(backbone):
    conv = backbone.layer1[0].conv1
    conv.weight.data = conv.weight.data * 2


def transpose_data(backbone):
    weight = backbone.layer1[0].conv2.weight
    weight.data = weight.data.transpose(2, 3)


def swap_two_weights_through_data(backbone):
    weight = backbone.layer1[0].conv1.weight.data
    weight[:, :2] = weight[:, :2].flip(1)


def load(backbone):
    backbone.load_state_dict({name: value * 1.5 for name, value in backbone.state_dict().items()})


def edit(path, operation):
    def change(backbone):
        with torch.no_grad():
            operation(backbone.get_submodule(path.rpartition(".")[0]).__getattr__(path.rpartition(".")[2]))

    return change


CHANGES = {
    "load_state_dict": load,
    "in place": edit("layer1.0.conv1.weight", lambda weight: weight.mul_(2)),
    "in place, norm weight": edit("layer1.0.bn1.weight", lambda weight: weight.add_(1)),
    "in place, running variance": edit("layer1.1.bn2.running_var", lambda var: var.mul_(2)),
    "in place, running mean of the stem": edit("bn1.running_mean", lambda mean: mean.add_(1)),
    "through .data": edit("layer1.0.conv1.weight", lambda weight: weight.data.mul_(2)),
    "through .data, a shortcut's norm": edit("layer1.0.downsample.1.bias", lambda bias: bias.data.add_(1)),
    "through .data, two weights swapped": swap_two_weights_through_data,
    "new .data": replace_data,
    "transposed .data": transpose_data,
    "to channels_last": lambda backbone: backbone.to(memory_format=torch.channels_last),
    "init_weights": lambda backbone: backbone.init_weights(),
    "eps": lambda backbone: setattr(backbone.layer1[0].bn1, "eps", 0.1),
    "new parameter": lambda backbone: setattr(
        backbone.layer1[0].conv1, "weight", nn.Parameter(torch.ones_like(backbone.layer1[0].conv1.weight), False)
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_weights_take_effect(change):
    torch.manual_seed(0)
    _, folded = pair(depth=50, frozen_stages=1, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    exact = copy.deepcopy(folded)
    exact._set_fold_norm(False)
    x = torch.rand(1, 3, 64, 64)
    before = folded(x)[0].clone()
    for backbone in (folded, exact):
        torch.manual_seed(1)
        change(backbone)
    after, expected = folded(x)[0], exact(x)[0]
    assert relative(after, expected) < 1e-5
    if change is not CHANGES["to channels_last"]:
        assert not torch.equal(before, after)


def test_change_of_dtype_and_back():
    _, folded = pair(depth=18, frozen_stages=4)
    x = torch.rand(1, 3, 64, 64)
    before = folded(x)
    assert folded.double()(x.double())[0].dtype == torch.float64
    assert all(torch.equal(a, b) for a, b in zip(folded.float()(x), before))


def test_unfreezing():
    exact, folded = pair(depth=18, frozen_stages=1)
    x = torch.rand(2, 3, 64, 64)
    run(folded, x)
    for backbone in (exact, folded):
        backbone.frozen_stages = -1
        backbone.train()
        backbone.requires_grad_(True)
    assert_close_computation(exact, folded, x, 1e-4)
    with torch.no_grad():
        for backbone in (exact, folded):
            backbone.conv1.weight -= backbone.conv1.weight.grad
    assert_close_computation(exact, folded, x, 1e-4)


def test_training_works_after_inference_mode():
    _, folded = pair(depth=18, frozen_stages=1)
    with torch.inference_mode():
        folded(torch.rand(1, 3, 64, 64))
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    run(folded, x)
    assert x.grad.any()


@pytest.mark.parametrize("frozen_stages", [-1, 1])
def test_compiles_without_graph_breaks(frozen_stages):
    stages = dict(num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(0, 1))
    exact, folded = pair(depth=18, dtype=torch.float64, frozen_stages=frozen_stages, **stages)
    torch.compiler.reset()
    compiled = torch.compile(folded, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for ours, theirs in zip(run(compiled, x), run(exact, x)):
        assert relative(ours, theirs) < 1e-10
    for ours, theirs in zip(gradients(folded), gradients(exact)):
        assert theirs is None or relative(ours, theirs) < 1e-10


@pytest.mark.parametrize(
    "autocast",
    [False, pytest.param(True, marks=pytest.mark.skipif(TORCH < (2, 4), reason="torch.get_autocast_dtype: torch 2.4"))],
)
def test_compiled_step_saves_no_scaled_weights(autocast, monkeypatch):
    monkeypatch.setattr(ResNet, "arch_settings", {18: (BasicBlock, (1, 1, 1, 1))})
    exact, folded = pair(depth=18, frozen_stages=1)
    x = torch.rand(1, 3, 64, 64)
    torch.compiler.reset()
    # The partitioner that inductor uses, without inductor's time to generate code.
    compiled = torch.compile(folded, fullgraph=True, backend="aot_eager_decomp_partition")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        compiled(x)
        # In eager mode, too, only activations are saved.
        assert saved_bytes(folded, lambda: compiled(x)) <= 1.04 * saved_bytes(folded, lambda: folded(x))
        if not autocast:
            assert saved_bytes(folded, lambda: compiled(x)) <= 0.52 * saved_bytes(exact, lambda: exact(x))
