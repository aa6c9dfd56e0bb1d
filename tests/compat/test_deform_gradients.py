"""Gradients of deformable convolutions, compared with compiled mmcv's, with zero and other offsets."""

import pytest
import torch
from helpers import shake
from torch import nn

try:
    import mmcv.ops
except Exception as error:  # noqa: BLE001 - a binary built for another torch fails in its own ways
    pytest.skip(f"mmcv.ops cannot be imported: {type(error).__name__}: {error}", allow_module_level=True)

from resnet_backbone.layers.deform import DeformConv2dPack, ModulatedDeformConv2dPack
from resnet_backbone.layers.sac import SAConv2d

PAIRS = {
    "DCN": (DeformConv2dPack, mmcv.ops.DeformConv2dPack),
    "DCNv2": (ModulatedDeformConv2dPack, mmcv.ops.ModulatedDeformConv2dPack),
}

SAC = (SAConv2d, mmcv.ops.SAConv2d)


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
def test_gradients_match_compiled_mmcv(name, geometry, start):
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


@pytest.mark.parametrize("use_deform", [False, True])
@pytest.mark.parametrize(
    "geometry",
    [dict(padding=1), dict(padding=1, stride=2), dict(padding=2, dilation=2), dict(padding=1, groups=2)],
    ids=str,
)
def test_switchable_atrous_convolution_matches_compiled_mmcv(geometry, use_deform):
    torch.manual_seed(0)
    ours, theirs = (cls(8, 12, 3, bias=False, use_deform=use_deform, **geometry) for cls in SAC)
    assert ours.__class__ is not theirs.__class__
    for layer in (ours, theirs):
        layer.weight_gamma.uniform_(0.5, 1)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(2, 8, 9, 11)
    for start in ("as it starts", "shaken"):
        if start == "shaken":
            for parameter in ours.parameters():
                nn.init.normal_(parameter, std=0.2)
        theirs.load_state_dict(ours.state_dict())
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outs = [layer(one) for layer, one in zip((ours, theirs), inputs)]
        assert relative(*outs) <= 1e-6
        for layer, out in zip((ours, theirs), outs):
            layer.zero_grad()
            (out * torch.arange(out.numel()).view_as(out).sin()).sum().backward()
        assert relative(inputs[0].grad, inputs[1].grad) <= 1e-6
        for (name, one), other in zip(ours.named_parameters(), theirs.parameters()):
            if start == "shaken":
                assert other.grad.abs().max() > 1e-3, f"{name}: nothing to compare"
            assert (one.grad - other.grad).norm() <= 1e-6 * other.grad.norm() + 1e-6, name
