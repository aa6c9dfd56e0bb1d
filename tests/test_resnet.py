import copy
import pickle
import warnings

import children
import pytest
import torch
from helpers import assert_mentions, assert_same_bits, gradients, raises, shake
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from resnet_backbone import BasicBlock, Bottleneck, ResLayer, ResNet, ResNetV1c, ResNetV1d
from resnet_backbone.errors import ArgumentError

CONTEXT = dict(cfg=dict(type="ContextBlock", ratio=0.5), position="after_conv2")


def small(depth=18, **arguments):
    return ResNet(depth, **dict(dict(base_channels=4), **arguments))


@st.composite
def backbones(draw):
    """Any allowed combination of arguments of a small backbone."""
    num_stages = draw(st.integers(1, 4))
    per_stage = dict(min_size=num_stages, max_size=num_stages)
    depth = draw(st.sampled_from([18, 50]))
    plugins = draw(st.lists(st.just(CONTEXT), max_size=1))
    return dict(
        depth=depth,
        in_channels=draw(st.integers(1, 4)),
        base_channels=draw(st.sampled_from([2, 4])),
        stem_channels=draw(st.sampled_from([None, 2, 6])),
        num_stages=num_stages,
        strides=tuple(draw(st.lists(st.integers(1, 2), **per_stage))),
        dilations=tuple(draw(st.lists(st.integers(1, 2), **per_stage))),
        out_indices=tuple(draw(st.lists(st.integers(0, num_stages - 1), min_size=1, unique=True))),
        style=draw(st.sampled_from(["pytorch", "caffe"])),
        deep_stem=draw(st.booleans()),
        stem_stride=draw(st.sampled_from([1, 2, 4])),
        avg_down=draw(st.booleans()),
        frozen_stages=draw(st.integers(-1, num_stages)),
        norm_eval=draw(st.booleans()),
        norm_cfg=draw(
            st.sampled_from([dict(type="BN"), dict(type="BN", requires_grad=False), dict(type="GN", num_groups=1)])
        ),
        conv_cfg=draw(st.sampled_from([None, dict(type="ConvWS")])),
        with_cp=draw(st.booleans()),
        zero_init_residual=draw(st.booleans()),
        plugins=[dict(p, stages=tuple(draw(st.lists(st.booleans(), **per_stage)))) for p in plugins] or None,
    )


@given(arguments=backbones(), size=st.tuples(st.integers(33, 48), st.integers(33, 48)))
def test_outputs_match_feature_info(arguments, size):
    before = copy.deepcopy(arguments)
    backbone = ResNet(**arguments)
    levels = backbone.eval()(torch.rand(1, arguments["in_channels"], *size))
    assert arguments == before
    assert len(levels) == len(backbone.feature_info) == len(arguments["out_indices"])
    for level, info, channels, stride in zip(
        levels, backbone.feature_info, backbone.out_channels, backbone.out_strides
    ):
        assert level.shape[1] == channels == info.channels
        # Each strided layer rounds up, which equals rounding up once.
        assert level.shape[2:] == tuple(-(-side // stride) for side in size)
        assert stride == info.reduction
        assert isinstance(backbone.get_submodule(info.module), ResLayer)
    expected = [f"layer{index + 1}" for index in sorted(arguments["out_indices"])]
    assert [info.module for info in backbone.feature_info] == expected
    assert (
        backbone.feat_dim == arguments["base_channels"] * 2 ** (arguments["num_stages"] - 1) * backbone.block.expansion
    )


@pytest.mark.parametrize(("stem_stride", "conv_stride", "pool"), [(1, 1, False), (2, 2, False), (4, 2, True)])
def test_stem_stride(stem_stride, conv_stride, pool):
    backbone = shake(small(stem_stride=stem_stride)).eval()
    assert list(backbone.state_dict()) == list(small().state_dict())
    seen = []
    backbone.layer1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.rand(1, 3, 33, 33)
    backbone(x)
    expected = F.conv2d(x, backbone.conv1.weight, stride=conv_stride, padding=3)
    expected = backbone.bn1(expected).relu()
    expected = F.max_pool2d(expected, 3, stride=2, padding=1) if pool else expected
    assert_same_bits(seen, [expected])
    deep = small(deep_stem=True, stem_stride=stem_stride)
    assert [layer.stride[0] for layer in deep.stem[::3]] == [conv_stride, 1, 1]
    assert isinstance(deep.maxpool, nn.MaxPool2d) == pool


@given(arguments=backbones())
def test_freezing_and_norm_eval_in_every_mode(arguments):
    backbone = ResNet(**arguments)
    frozen = {f"layer{number}" for number in range(1, arguments["frozen_stages"] + 1)}
    if arguments["frozen_stages"] >= 0:
        frozen |= {"stem", "conv1", "bn1", "gn1"}
    trains_norms = arguments["norm_cfg"].get("requires_grad", True)
    for mode in (True, False, True):
        assert backbone.train(mode) is backbone
        for name, module in backbone.named_modules():
            is_frozen = name.split(".")[0] in frozen
            keeps_statistics = isinstance(module, _BatchNorm) and arguments["norm_eval"]
            if isinstance(module, (_BatchNorm, nn.GroupNorm)):
                assert module.training == (mode and not is_frozen and not keeps_statistics), name
        for name, parameter in backbone.named_parameters():
            owner = backbone.get_submodule(name.rpartition(".")[0])
            is_norm = isinstance(owner, (_BatchNorm, nn.GroupNorm))
            assert parameter.requires_grad == (name.split(".")[0] not in frozen and (trains_norms or not is_norm)), name
    assert backbone.eval() is backbone


@given(arguments=backbones())
def test_state_dict_round_trip(arguments):
    # In double precision, because ConvWS with initial statistics overflows fp32.
    backbone = shake(ResNet(**arguments)).double().eval()
    twin = ResNet(**arguments).double().eval()
    twin.load_state_dict(backbone.state_dict())
    x = torch.rand(1, arguments["in_channels"], 32, 32).double()
    with torch.no_grad():
        assert_same_bits(twin(x), backbone(x))


@pytest.mark.parametrize(
    ("depth", "block", "blocks"),
    [
        (18, BasicBlock, (2, 2, 2, 2)),
        (34, BasicBlock, (3, 4, 6, 3)),
        (50, Bottleneck, (3, 4, 6, 3)),
        (101, Bottleneck, (3, 4, 23, 3)),
        (152, Bottleneck, (3, 8, 36, 3)),
    ],
)
def test_depths_of_the_paper(depth, block, blocks):
    backbone = small(depth)
    assert backbone.block is block
    assert backbone.stage_blocks == blocks
    assert tuple(len(getattr(backbone, name)) for name in backbone.res_layers) == blocks
    # Convolutions along the longest path, and the classifier that is not here.
    per_block = 2 if block is BasicBlock else 3
    assert 1 + per_block * sum(blocks) + 1 == depth


def test_full_width():
    backbone = ResNet(50).eval()
    assert backbone.out_channels == (256, 512, 1024, 2048)
    assert backbone.out_strides == (4, 8, 16, 32)
    with torch.no_grad():
        levels = backbone(torch.rand(1, 3, 64, 64))
    assert [tuple(level.shape[1:]) for level in levels] == [(256, 16, 16), (512, 8, 8), (1024, 4, 4), (2048, 2, 2)]


def test_variants():
    assert small(50).deep_stem is False
    c, d = ResNetV1c(50, base_channels=4), ResNetV1d(50, base_channels=4)
    for backbone in (c, d):
        assert [type(layer) for layer in backbone.stem] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 3
        assert [layer.out_channels for layer in backbone.stem[::3]] == [2, 2, 4]
        assert not hasattr(backbone, "conv1")
    assert (c.avg_down, d.avg_down) == (False, True)
    assert isinstance(d.layer2[0].downsample[0], nn.AvgPool2d)
    assert isinstance(c.layer2[0].downsample[0], nn.Conv2d)


def test_nothing_is_computed_after_the_last_level():
    backbone = small(out_indices=(0, 1))
    ran = []
    for name in backbone.res_layers:
        getattr(backbone, name).register_forward_hook(lambda *_, name=name: ran.append(name))
    backbone(torch.rand(1, 3, 32, 32))
    assert ran == ["layer1", "layer2"]


def test_levels_are_in_ascending_order():
    backbone = small(out_indices=(3, 1)).eval()
    x = torch.rand(1, 3, 32, 32)
    assert backbone.out_channels == (8, 32)
    assert [level.shape[1] for level in backbone(x)] == [8, 32]


@pytest.mark.parametrize("deep_stem", [False, True])
def test_first_convolution_may_be_replaced(deep_stem):
    backbone = small(deep_stem=deep_stem).eval()
    stem, name = (backbone.stem, "0") if deep_stem else (backbone, "conv1")
    old = getattr(stem, name)
    new = nn.Conv2d(5, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False)
    setattr(stem, name, new)
    assert len(backbone(torch.rand(1, 5, 32, 32))) == 4
    with raises(ArgumentError, "x", "(N, 5, H, W)", "(1, 4, 32, 32)"):
        backbone(torch.rand(1, 4, 32, 32))


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("zero", [True, False])
def test_zero_init_residual(depth, zero):
    backbone = small(depth, zero_init_residual=zero)
    backbone.init_weights()
    last = "norm2" if depth == 18 else "norm3"
    for name in backbone.res_layers:
        for block in getattr(backbone, name):
            assert getattr(block, last).weight.eq(0 if zero else 1).all()
            assert block.norm1.weight.eq(1).all()


def test_initialization_depends_only_on_the_seed():
    def initialized():
        torch.manual_seed(7)
        backbone = small()
        backbone.init_weights()
        return backbone.state_dict().values()

    assert_same_bits(initialized(), initialized())


ROADS = {
    "init_cfg": lambda path: dict(init_cfg=dict(type="Pretrained", checkpoint=path)),
    "pretrained": lambda path: dict(pretrained=path),
}


@pytest.mark.parametrize("road", [*ROADS, "init_weights"])
def test_checkpoint_is_loaded(road, tmp_path):
    source = shake(small())
    path = str(tmp_path / "weights.pth")
    torch.save(source.state_dict(), path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        backbone = small(**ROADS[road](path)) if road in ROADS else small()
    if road == "init_weights":
        # It applies even if the weights were initialized before.
        backbone.init_weights()
        backbone.init_weights(pretrained=path)
    else:
        backbone.init_weights()
    assert_same_bits(backbone.state_dict().values(), source.state_dict().values())


def test_pretrained_is_deprecated_in_favour_of_init_cfg():
    with pytest.warns(DeprecationWarning, match="pretrained") as caught:
        small(pretrained="a.pth")
    assert_mentions(str(caught[0].message), "init_cfg=dict(type='Pretrained', checkpoint='a.pth')")
    assert caught[0].filename == __file__


def test_configs_are_not_modified():
    arguments = dict(
        norm_cfg=dict(type="GN", num_groups=2, requires_grad=False),
        conv_cfg=dict(type="ConvWS"),
        plugins=[
            dict(cfg=dict(CONTEXT["cfg"], postfix="_x"), position="after_conv1", stages=(True, False, True, True))
        ],
        init_cfg=[dict(type="Kaiming", layer="Conv2d"), dict(type="Constant", val=0.5, layer="GroupNorm")],
        strides=[1, 2, 2, 1],
        out_indices=[1, 3],
    )
    before = copy.deepcopy(arguments)
    backbone = small(50, **arguments)
    backbone.init_weights()
    backbone.train()
    backbone(torch.rand(1, 3, 32, 32))
    assert arguments == before


@pytest.mark.parametrize("depth", [18, 50])
def test_pickle_and_deepcopy(depth):
    backbone = shake(small(depth)).eval()
    x = torch.rand(1, 3, 32, 32)
    for twin in (pickle.loads(pickle.dumps(backbone)), copy.deepcopy(backbone)):
        assert_same_bits(twin(x), backbone(x))
        assert twin.feature_info == backbone.feature_info
        assert twin.train().training


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("frozen_stages", [-1, 1])
@pytest.mark.parametrize("norm_eval", [True, False])
def test_checkpointing_is_bit_identical(depth, frozen_stages, norm_eval):
    plain = shake(small(depth, norm_eval=norm_eval, frozen_stages=frozen_stages)).train()
    checkpointed = small(depth, norm_eval=norm_eval, frozen_stages=frozen_stages, with_cp=True).train()
    checkpointed.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 32, 32)  # without grad, as images are
    outs = plain(x), checkpointed(x)
    assert_same_bits(outs[1], outs[0])
    for levels in outs:
        # The last level alone: where a level has a second consumer, a checkpoint adds up the gradients in another
        # order than a plain block. It is mmdet's order, which tests/compat holds to the bit.
        levels[-1].square().mean().backward()
    assert_same_bits(gradients(checkpointed), gradients(plain))
    assert any(gradient is not None for gradient in gradients(plain))
    if norm_eval:
        assert_same_bits(checkpointed.buffers(), plain.buffers())


def test_checkpointing_under_autocast_is_bit_identical():
    plain = shake(small(50)).train()
    checkpointed = copy.deepcopy(plain)
    for module in checkpointed.modules():
        if isinstance(module, Bottleneck):
            module.with_cp = True
    x = torch.rand(2, 3, 32, 32)
    outs = []
    for backbone in (plain, checkpointed):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            levels = backbone(x)
        levels[-1].float().square().mean().backward()
        outs.append(levels)
    assert all(level.dtype == torch.bfloat16 for level in outs[0])
    assert_same_bits(outs[1], outs[0])
    assert_same_bits(gradients(checkpointed), gradients(plain))


def train_in_a_group(rank, folder):
    """Train in one of two processes; the first saves the gradients."""
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    found = {}
    for with_cp in (False, True):
        torch.manual_seed(0)
        # The last stages are not in out_indices, so their parameters get no gradient.
        backbone = small(out_indices=(0, 1), with_cp=with_cp).train()
        model = nn.parallel.DistributedDataParallel(backbone, find_unused_parameters=True)
        for _ in range(2):  # the second step fails where the first has left a parameter unaccounted for
            model.zero_grad()
            model(images[rank : rank + 1])[-1].square().mean().backward()
        found[with_cp] = gradients(backbone)
    if rank == 0:
        torch.save(found, folder / "gradients.pt")


def test_distributed_training_with_unused_parameters(tmp_path):
    children.run_two(train_in_a_group, tmp_path)
    found = torch.load(tmp_path / "gradients.pt")
    assert_same_bits(found[True], found[False])

    torch.manual_seed(0)
    backbone = small(out_indices=(0, 1)).train()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    for image in images:
        (backbone(image[None])[-1].square().mean() / 2).backward()
    for (name, parameter), gradient in zip(backbone.named_parameters(), found[False]):
        if name.startswith(("layer3", "layer4")):
            assert parameter.grad is None
            assert gradient is None or not gradient.any()
        else:
            # The two processes' halves are summed in another order than here.
            torch.testing.assert_close(gradient, parameter.grad)
