"""Gradients of our deformable convolutions against compiled mmcv's, at the start of a training and away from it."""

import pytest
import torch
from helpers import shake
from torch import nn

try:
    import mmcv.ops
except Exception as error:  # noqa: BLE001 - a binary built for another torch fails in its own ways
    pytest.skip(f"mmcv.ops cannot be imported: {type(error).__name__}: {error}", allow_module_level=True)

from resnet_backbone.layers.deform import DeformConv2dPack, ModulatedDeformConv2dPack

PAIRS = {
    "DCN": (DeformConv2dPack, mmcv.ops.DeformConv2dPack),
    "DCNv2": (ModulatedDeformConv2dPack, mmcv.ops.ModulatedDeformConv2dPack),
}


def relative(one, other):
    return float((one - other).detach().norm() / other.detach().norm())


@pytest.mark.parametrize("start", ["zero offsets", "shaken", "whole offsets"])
@pytest.mark.parametrize(
    "geometry",
    [
        dict(kernel_size=3, padding=1),
        dict(kernel_size=3, padding=1, stride=2),
        dict(kernel_size=3, padding=2, dilation=2, deform_groups=2),
        dict(kernel_size=(3, 5), padding=(1, 2), stride=(2, 1), groups=2, deform_groups=4),
        dict(kernel_size=1),
        dict(kernel_size=3, padding=3),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", PAIRS)
def test_gradients_are_those_of_compiled_mmcv(name, geometry, start):
    torch.manual_seed(0)
    ours, theirs = (cls(8, 12, bias=False, **geometry) for cls in PAIRS[name])
    if start == "shaken":
        nn.init.normal_(ours.conv_offset.weight, std=0.2)
        nn.init.normal_(ours.conv_offset.bias, std=0.2)
        shake(ours)
    elif start == "whole offsets":  # points on every border, and beyond
        ours.conv_offset.bias.data.copy_(torch.randint(-3, 4, ours.conv_offset.bias.shape))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 8, 9, 11)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outs = [layer(one) for layer, one in zip((ours, theirs), inputs)]
    assert relative(*outs) <= 1e-6
    weights = torch.randn_like(outs[0])
    for out in outs:
        (out * weights).sum().backward()
    assert relative(inputs[0].grad, inputs[1].grad) <= 1e-6
    for (parameter, one), other in zip(ours.named_parameters(), theirs.parameters()):
        assert other.grad.abs().max() > 1e-3, f"{parameter}: nothing to compare"
        assert relative(one.grad, other.grad) <= 1e-6, parameter
