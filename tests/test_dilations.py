"""``contract_dilation`` and ``multi_grid``: the dilated ResNets of segmentation."""

import pytest
import torch
from helpers import raises
from torchvision.models import get_model
from torchvision.models.feature_extraction import create_feature_extractor

from resnet_backbone import BasicBlock, ResLayer, ResNet, ResNetV1c
from resnet_backbone.errors import ArgumentError, ArgumentTypeError
from resnet_backbone.tools.info import describe

# Output stride: torchvision's argument, and mmsegmentation's.
DILATED = {
    16: ([False, False, True], dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))),
    8: ([False, True, True], dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))),
}


@pytest.mark.parametrize("stride", DILATED)
def test_contract_dilation_matches_torchvision(stride):
    replace, arguments = DILATED[stride]
    model = get_model("resnet50", weights=None, replace_stride_with_dilation=replace)
    theirs = create_feature_extractor(model, {f"layer{number}": str(number) for number in range(1, 5)}).train()
    ours = ResNet(50, norm_eval=False, contract_dilation=True, **arguments)
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if not name.startswith("fc.")})
    x = torch.randn(2, 3, 64, 96)
    levels, expected = ours.train()(x), list(theirs(x).values())
    assert ours.out_strides == (4, 8, *[min(s, stride) for s in (16, 32)])
    assert levels[-1].shape == (2, 2048, 64 // stride, 96 // stride)
    for level, other in zip(levels, expected):
        assert torch.equal(level, other)
    for outputs in (levels, expected):
        sum(level.square().sum() for level in outputs).backward()
    others = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter.grad, others[name].grad), name


def dilations(stage):
    """The dilation of each block's dilated 3x3, whose padding keeps the size."""
    convs = [block.conv1 if isinstance(block, BasicBlock) else block.conv2 for block in stage]
    assert all(conv.padding == conv.dilation for conv in convs)
    return [conv.dilation[0] for conv in convs]


@pytest.mark.parametrize("depth", [18, 50])
def test_multi_grid_applies_to_the_last_stage(depth):
    arguments = dict(base_channels=4, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
    # As mmsegmentation's ResNet-18 configs have it, with an entry more than there are blocks.
    backbone = ResNet(depth, contract_dilation=True, multi_grid=(1, 2, 4), **arguments)
    blocks = backbone.stage_blocks
    assert dilations(backbone.layer2) == [1] * blocks[1]
    assert dilations(backbone.layer3) == [1] + [2] * (blocks[2] - 1)
    assert dilations(backbone.layer4) == [1, 2, 4][: blocks[3]]
    plain = ResNet(depth, **arguments)
    assert dilations(plain.layer4) == [4] * blocks[3]
    assert list(plain.state_dict()) == list(backbone.state_dict())
    described = str(describe(backbone, (64, 64)))
    assert f"dilation {' '.join(map(str, [1, 2, 4][: blocks[3]]))}" in described


def test_mmsegmentation_config_builds():
    backbone = ResNetV1c(
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations=(1, 1, 2, 4),
        strides=(1, 2, 1, 1),
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        norm_eval=False,
        style="pytorch",
        contract_dilation=True,
    ).eval()
    assert backbone(torch.rand(1, 3, 64, 64))[-1].shape == (1, 2048, 8, 8)


def test_folded_equals_exact():
    arguments = dict(base_channels=4, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), multi_grid=(1, 2, 4))
    backbone = ResNet(50, contract_dilation=True, **arguments).double().eval()
    x = torch.randn(1, 3, 64, 64).double()
    exact = backbone(x)
    for level, expected in zip(backbone.switch_to_deploy()(x), exact):
        torch.testing.assert_close(level, expected, rtol=1e-10, atol=1e-12)


def test_subclasses_get_no_dilation_arguments_by_default():
    told = []

    class Own(ResNet):
        def make_res_layer(self, **kwargs):
            told.append({"multi_grid", "contract_dilation"} & set(kwargs))
            return ResLayer(**kwargs)

    Own(18, base_channels=4)
    assert told == [set()] * 4
    told.clear()
    Own(18, base_channels=4, contract_dilation=True, multi_grid=(1, 2))
    assert told == [{"contract_dilation"}] * 3 + [{"contract_dilation", "multi_grid"}]


@pytest.mark.parametrize(
    ("multi_grid", "error", "words"),
    [
        (2, ArgumentTypeError, ["2", "3"]),
        ((1, 2), ArgumentError, ["(1, 2)", "3"]),
        ((2, 2, 0), ArgumentError, ["(2, 2, 0)", "1"]),
        ((2, 2, 4.0), ArgumentError, ["(2, 2, 4.0)", "1"]),
    ],
)
def test_rejects(multi_grid, error, words):
    with raises(error, "multi_grid", *words):
        ResNet(50, multi_grid=multi_grid)
    with raises(error, "multi_grid", *words):
        ResLayer(BasicBlock, 8, 8, 3, multi_grid=multi_grid)
