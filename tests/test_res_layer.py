import pytest
import torch
from torch import nn

from resnet_backbone import BasicBlock, Bottleneck, ResLayer, ResNet


def test_first_block_changes_resolution_and_width():
    layer = ResLayer(Bottleneck, inplanes=16, planes=8, num_blocks=3, stride=2)
    assert [(block.inplanes, block.stride, block.downsample is None) for block in layer] == [
        (16, 2, False),
        (32, 1, True),
        (32, 1, True),
    ]
    assert layer(torch.rand(1, 16, 9, 12)).shape == (1, 32, 5, 6)


def test_downsample_first_false():
    layer = ResLayer(BasicBlock, inplanes=8, planes=16, num_blocks=3, stride=2, downsample_first=False)
    assert [(block.inplanes, block.planes, block.stride, block.downsample is None) for block in layer] == [
        (8, 8, 1, True),
        (8, 8, 1, True),
        (8, 16, 2, False),
    ]
    assert layer(torch.rand(1, 8, 8, 8)).shape == (1, 16, 4, 4)


def test_no_projection_where_shapes_agree():
    assert ResLayer(BasicBlock, 8, 8, 2)[0].downsample is None


@pytest.mark.parametrize("size", [7, 8])
def test_averaging_shortcut_has_the_size_of_the_strided_one(size):
    layer = ResLayer(BasicBlock, 4, 8, 1, stride=2, avg_down=True)
    pool, conv, norm = layer[0].downsample
    assert isinstance(pool, nn.AvgPool2d)
    assert (conv.kernel_size, conv.stride) == ((1, 1), (1, 1))
    assert isinstance(norm, nn.BatchNorm2d)
    assert layer(torch.rand(1, 4, size, size)).shape == (1, 8, 4, 4)


def test_averaging_shortcut_excludes_padding():
    pool = ResLayer(BasicBlock, 1, 2, 1, stride=2, avg_down=True)[0].downsample[0]
    assert torch.equal(pool(torch.ones(1, 1, 3, 3)), torch.ones(1, 1, 2, 2))


def test_arguments_reach_every_block():
    layer = ResLayer(
        Bottleneck,
        8,
        4,
        2,
        conv_cfg=dict(type="ConvWS"),
        norm_cfg=dict(type="GN", num_groups=2),
        dilation=2,
        with_cp=True,
    )
    for block in layer:
        assert block.with_cp
        assert (block.dilation, block.norm1_name, type(block.conv1).__name__) == (2, "gn1", "ConvWS2d")
        assert block.conv2.dilation == (2, 2)
    assert layer.block is Bottleneck


@pytest.mark.parametrize("avg_down", [False, True])
def test_projection_where_shapes_agree(avg_down):
    plain = ResLayer(BasicBlock, 8, 8, 2, avg_down=avg_down)
    layer = ResLayer(BasicBlock, 8, 8, 2, avg_down=avg_down, projection_shortcut=True).eval()
    assert plain[0].downsample is None
    assert layer[1].downsample is None
    x = torch.rand(1, 8, 6, 6)
    conv, norm = list(layer[0].downsample)[-2:]
    residual = layer[0].norm2(layer[0].conv2(layer[0].norm1(layer[0].conv1(x)).relu()))
    torch.testing.assert_close(layer[0](x), (residual + norm(conv(x))).relu())


def test_projection_in_every_stage():
    backbone = ResNet(18, base_channels=8, projection_shortcut=True)
    assert all(getattr(backbone, name)[0].downsample is not None for name in backbone.res_layers)
    # Where the shapes differ anyway, nothing changes.
    assert ResNet(50, base_channels=8, projection_shortcut=True).state_dict().keys() == (
        ResNet(50, base_channels=8).state_dict().keys()
    )
