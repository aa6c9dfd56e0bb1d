"""ResNets for signals and volumes."""

import copy

import pytest
import torch
from helpers import assert_same_bits, gradients, loss_of, raises, shake
from hypothesis import given
from hypothesis import strategies as st
from mmcv.cnn.bricks import wrappers
from mmcv.cnn.bricks.non_local import NonLocal1d
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_backbone import BasicBlock, Bottleneck, ResLayer, ResNet, ResNetV1c, ResNetV1d, load_pretrained
from resnet_backbone.errors import ArgumentError
from resnet_backbone.layers.dimensions import check_dims, layout, spatial_dims_of
from resnet_backbone.weights import MismatchError

SIGNALS = dict(conv_cfg=dict(type="Conv1d"), norm_cfg=dict(type="BN1d"))
VOLUMES = dict(conv_cfg=dict(type="Conv3d"), norm_cfg=dict(type="BN3d"))
KINDS = {1: SIGNALS, 3: VOLUMES}
LAYERS = {
    1: (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d),
    2: (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d),
    3: (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d, nn.AvgPool3d),
}


def small(cls=ResNet, depth=18, dims=1, **arguments):
    return cls(depth, **dict(dict(in_channels=2, base_channels=4, **KINDS[dims]), **arguments))


def batch(dims, side=None, channels=2):
    side = side or {1: 40, 2: 36, 3: 18}[dims]
    return torch.rand(2, channels, *[side] * dims, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("conv_cfg", "dims"),
    [
        (None, 2),
        (dict(type="Conv2d"), 2),
        (dict(type="Conv"), 2),
        (dict(type="ConvWS"), 2),
        (dict(type="Conv1d"), 1),
        (dict(type=nn.Conv1d), 1),
        (dict(type="Conv3d"), 3),
        (dict(type=wrappers.Conv3d), 3),
    ],
)
def test_conv_cfg_sets_the_dimensions(conv_cfg, dims):
    assert spatial_dims_of(conv_cfg) == dims
    assert layout(dims, 7).count(",") == 1 + dims


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("cls", [ResNet, ResNetV1c, ResNetV1d])
@pytest.mark.parametrize("depth", [18, 50])
def test_every_layer_has_the_same_dimensions(dims, cls, depth):
    backbone = cls(depth, base_channels=4, **KINDS.get(dims, {}))
    conv, norm, max_pool, avg_pool = LAYERS[dims]
    assert backbone.spatial_dims == dims
    assert isinstance(backbone.maxpool, max_pool)
    assert isinstance(backbone.layer2[0].downsample[0], avg_pool if cls is ResNetV1d else conv)
    for module in backbone.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            assert isinstance(module, conv)
        if isinstance(module, _BatchNorm):
            assert isinstance(module, norm)
    assert backbone.init_cfg[0] == dict(type="Kaiming", layer=f"Conv{dims}d")


@given(
    dims=st.sampled_from([1, 1, 3]),
    depth=st.sampled_from([18, 50]),
    cls=st.sampled_from([ResNet, ResNetV1c, ResNetV1d]),
    side=st.integers(17, 22),
    strides=st.tuples(st.just(1), *[st.integers(1, 2)] * 2),
    dilations=st.tuples(*[st.integers(1, 2)] * 3),
    leads=st.integers(1, 12),
    fold_norm=st.booleans(),
)
def test_outputs_match_feature_info(dims, depth, cls, side, strides, dilations, leads, fold_norm):
    backbone = small(
        cls, depth, dims, in_channels=leads, num_stages=3, strides=strides, dilations=dilations, out_indices=(0, 2),
        fold_norm=fold_norm,
    ).eval()  # fmt: skip
    with torch.no_grad():
        levels = backbone(batch(dims, side, leads))
    for level, info in zip(levels, backbone.feature_info, strict=True):
        assert level.shape == (2, info.channels, *[-(-side // info.reduction)] * dims)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_signal_equals_an_image_of_one_row(block):
    """The 1D block equals the 2D block whose kernels have only a middle row."""
    signal = shake(ResLayer(block, 4, 4, 2, stride=2, avg_down=True, **SIGNALS)).eval()
    image = ResLayer(block, 4, 4, 2, stride=2, avg_down=True).eval()
    state = image.state_dict()
    for name, value in signal.state_dict().items():
        if value.dim() == 3:
            state[name].zero_()[:, :, state[name].shape[2] // 2] = value
        else:
            state[name] = value
    image.load_state_dict(state)
    x = torch.rand(2, 4, 30)
    torch.testing.assert_close(signal(x), image(x[:, :, None])[:, :, 0])


def test_kaiming_initialization():
    torch.manual_seed(0)
    backbone = small(base_channels=64, num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,))
    backbone.init_weights()
    weight = backbone.layer1[0].conv1.weight
    # Kaiming, fan-out, normal: mmengine's default.
    assert weight.std().item() == pytest.approx((2 / (64 * 3)) ** 0.5, rel=0.05)
    assert backbone.layer1[0].norm2.weight.eq(0).all()
    assert backbone.layer1[0].norm1.weight.eq(1).all()


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("depth", [18, 50])
def test_freezing_norm_eval_and_checkpointing(dims, depth):
    plain = shake(small(depth=depth, dims=dims, frozen_stages=1)).train()
    checkpointed = small(depth=depth, dims=dims, frozen_stages=1, with_cp=True).train()
    checkpointed.load_state_dict(plain.state_dict())
    assert not any(module.training for module in plain.modules() if isinstance(module, _BatchNorm))
    assert {name.split(".")[0] for name, p in plain.named_parameters() if not p.requires_grad} == {
        "conv1",
        "bn1",
        "layer1",
    }
    x = batch(dims)
    outs = plain(x), checkpointed(x)
    assert_same_bits(outs[1], outs[0])
    for levels in outs:
        levels[-1].square().mean().backward()
    assert_same_bits(gradients(checkpointed), gradients(plain))


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize(("cls", "depth"), [(ResNet, 18), (ResNetV1d, 50)])
def test_folding_differs_only_by_rounding(dims, cls, depth, monkeypatch):
    exact = shake(small(cls, depth, dims)).double().train()
    folded = small(cls, depth, dims, fold_norm=True).double().train()
    folded.load_state_dict(exact.state_dict())
    batch_norm, ran = F.batch_norm, []
    monkeypatch.setattr(F, "batch_norm", lambda *args: ran.append(args) or batch_norm(*args))
    x = batch(dims).double()
    results = []
    for backbone in (exact, folded):
        ran.clear()
        levels = backbone(x)
        loss_of(levels).backward()
        results.append([*levels, *gradients(backbone)])
    assert not ran  # every norm layer is part of a convolution
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize(("cls", "depth"), [(ResNet, 18), (ResNetV1d, 50)])
def test_deployed_backbone_is_close(dims, cls, depth):
    backbone = shake(small(cls, depth, dims)).double().eval()
    with torch.no_grad():
        expected = backbone(batch(dims).double())
        torch.testing.assert_close(backbone.switch_to_deploy()(batch(dims).double()), expected)
    assert not any(isinstance(module, _BatchNorm) for module in backbone.modules())


def test_channels_last():
    exact = shake(small(dims=3)).eval()
    backbone = small(dims=3, channels_last=True).eval()
    backbone.load_state_dict(exact.state_dict())
    assert backbone.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        torch.testing.assert_close(backbone(batch(3)), exact(batch(3)))
    with raises(ArgumentError, "channels_last", "False", "True", "(N, C, L)"):
        small(channels_last=True)


@pytest.mark.parametrize(
    ("conv_cfg", "norm_cfg", "write"),
    [
        (dict(type="Conv1d"), dict(type="BN"), "norm_cfg=dict(type='BN1d')"),
        (dict(type="Conv1d"), dict(type="BN3d", eps=1e-3), "norm_cfg=dict(type='BN1d')"),
        (dict(type="Conv3d"), dict(type="BN"), "norm_cfg=dict(type='BN3d')"),
        (dict(type="Conv3d"), dict(type="IN"), "norm_cfg=dict(type='IN3d')"),
        (dict(type="ConvWS"), dict(type="BN1d"), "norm_cfg=dict(type='BN')"),
        (None, dict(type="BN1d"), "norm_cfg=dict(type='BN')"),
    ],
)
def test_norms_of_other_dimensions_are_rejected_by_name(conv_cfg, norm_cfg, write):
    conv = "conv_cfg=dict(type='Conv1d')" if conv_cfg is None else repr(conv_cfg["type"])
    for build in (
        lambda: ResNet(18, conv_cfg=conv_cfg, norm_cfg=norm_cfg),
        lambda: BasicBlock(4, 4, conv_cfg=conv_cfg, norm_cfg=norm_cfg),
        lambda: ResLayer(Bottleneck, 16, 4, 1, conv_cfg=conv_cfg, norm_cfg=norm_cfg),
    ):
        with raises(ArgumentError, f"norm_cfg={norm_cfg!r}", write, conv):
            build()


@pytest.mark.parametrize("norm_cfg", [dict(type="GN", num_groups=2), dict(type="SyncBN"), dict(type="IN1d")])
def test_norms_of_any_dimension(norm_cfg):
    check_dims(dict(type="Conv1d"), norm_cfg)
    levels = small(norm_cfg=norm_cfg).eval()(batch(1))
    assert [level.shape[2:] for level in levels] == [(10,), (5,), (3,), (2,)]


@pytest.mark.parametrize(
    ("dims", "shape", "expected"),
    [(1, (1, 2, 40, 40), "(N, 2, L)"), (1, (1, 3, 40), "(N, 2, L)"), (3, (1, 2, 40), "(N, 2, T, H, W)")],
)
def test_input_of_another_shape_is_rejected(dims, shape, expected):
    with raises(ArgumentError, "x", expected, str(shape)):
        small(dims=dims)(torch.rand(shape))


def test_plugins_for_signals():
    plugins = [
        dict(cfg=dict(type="SELayer", ratio=2, conv_cfg=dict(type="Conv1d")), position="after_conv2"),
        dict(
            cfg=dict(type=NonLocal1d, reduction=1, conv_cfg=dict(type="Conv1d"), norm_cfg=dict(type="BN1d")),
            position="after_conv1",
            stages=(False, False, False, True),
        ),
    ]
    before = copy.deepcopy(plugins)
    backbone = small(plugins=plugins)
    assert plugins == before
    levels = backbone(batch(1))
    assert [level.shape[1:] for level in levels] == [(4, 10), (8, 5), (16, 3), (32, 2)]
    loss_of(levels).backward()
    widening = dict(type="ConvModule", kernel_size=1, out_channels=9, conv_cfg=dict(type="Conv1d"))
    with raises(ArgumentError, "conv_block", "(1, 4, 8)", "(1, 9, 8)"):
        BasicBlock(4, 4, plugins=[dict(cfg=widening, position="after_conv1")], **SIGNALS)


@pytest.mark.parametrize("dims", [1, 3])
def test_state_dict_round_trip_and_2d_checkpoints_are_rejected(dims, tmp_path):
    source = shake(small(dims=dims, in_channels=3))
    path = str(tmp_path / "weights.pth")
    torch.save(source.state_dict(), path)
    backbone = small(dims=dims, in_channels=3)
    report = load_pretrained(backbone, path)
    assert_same_bits(backbone.state_dict().values(), source.state_dict().values())
    assert report.preprocessing is None  # ImageNet's normalization does not apply to signals
    for other in (ResNet(18, base_channels=4), small(dims=dims, in_channels=1)):
        with raises(MismatchError, "conv1.weight", *(str(tuple(m.conv1.weight.shape)) for m in (source, other))):
            load_pretrained(other, path)


@pytest.mark.parametrize(("block", "wide"), [(BasicBlock, ["conv1", "conv2"]), (Bottleneck, ["conv2"])])
@pytest.mark.parametrize("kernel_size", [1, 5, 9])
@pytest.mark.parametrize("arguments", [SIGNALS, {}])
def test_kernel_size_of_a_block(block, wide, kernel_size, arguments):
    layer = ResLayer(block, 4, 4, 2, stride=2, dilation=2, kernel_size=kernel_size, **arguments)
    dims = 1 if arguments else 2
    for module in layer:
        for name in wide:
            assert getattr(module, name).kernel_size == (kernel_size,) * dims
    assert layer(batch(dims, 21, 4)).shape == (2, 4 * block.expansion, *[11] * dims)
    for wrong in (2, 0, -3, "3", 3.0):
        with raises(ArgumentError, "kernel_size", repr(wrong), "odd", "1"):
            block(4, 4, kernel_size=wrong)
