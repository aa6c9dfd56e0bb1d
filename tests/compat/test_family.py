"""Comparison of the other networks with mmdet's: every distinct dict in its configs, and further combinations."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from typing import Any

import mmdet.models.backbones as reference
import pytest
import torch
from backbone_dicts import distinct_backbones, users_of_backbones
from equality import assert_bit_exact, assert_same_state, seeded
from helpers import shake as shaken
from mmdet.models.necks import RFP
from mmengine.model import BaseModule, Sequential, revert_sync_batchnorm
from torch import nn

import resnet_backbone

TYPES = ("ResNeXt", "RegNet", "Res2Net", "ResNeSt", "DetectoRS_ResNet", "DetectoRS_ResNeXt", "TridentResNet")
DICTS = distinct_backbones(TYPES)
USERS = users_of_backbones(TYPES)
WITH_OPERATOR = [name for name, cfg in DICTS.items() if "dcn" in cfg or "sac" in cfg]


@pytest.fixture(autouse=True)
def _no_report_of_each_parameter(monkeypatch):
    """Disable mmengine's report, which takes longer than the initialization."""
    monkeypatch.setattr(BaseModule, "_dump_init_info", lambda self: None)


def build(cls: type, cfg: dict[str, Any]) -> nn.Module:
    cfg = copy.deepcopy(cfg)
    # It names a checkpoint; both draw random weights here.
    cfg.pop("pretrained", None)
    backbone = cls(**{key: value for key, value in cfg.items() if key != "type"})
    for module in backbone.modules():
        if type(module).__name__ == "TridentConv":
            # mmdet's class does not initialize its weights.
            nn.init.normal_(module.weight, std=0.01)
        elif hasattr(module, "weight_gamma"):
            # Without a checkpoint, features overflow with standardized weights.
            module.weight_gamma.fill_(0.05)
    return backbone


def pair(cfg: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    classes = getattr(resnet_backbone, cfg["type"]), getattr(reference, cfg["type"])
    assert classes[0] is not classes[1]
    ours, theirs = (seeded(functools.partial(build, cls, cfg)) for cls in classes)
    return ours, theirs


def batch(cfg: dict[str, Any]) -> torch.Tensor:
    # The last stage has to be three pixels wide for the operators: mmcv's DCN, and the reflection in SAC.
    size = 65 if "dcn" in cfg or "sac" in cfg else 33
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(3)) * 4 - 2


def attributes(backbone: nn.Module, names: Iterable[str]) -> dict[str, Any]:
    found = {name: getattr(backbone, name) for name in names if not name.startswith("_") and name != "drawn_after"}
    if "block" in found:
        found["block"] = found["block"].__name__
    if found.get("dcn"):
        # mmdet takes it out of the config that it is given.
        found["dcn"] = {key: value for key, value in found["dcn"].items() if key != "fallback_on_stride"}
    return found


@pytest.mark.parametrize("name", DICTS)
def test_backbone_of_a_shipped_config(name, bit_exact):
    cfg = DICTS[name]
    ours, theirs = pair(cfg)
    assert [type(m).__name__ for m in ours.modules()] == [type(m).__name__ for m in theirs.modules()]
    assert attributes(ours, vars(theirs)) == attributes(theirs, vars(theirs))
    # SyncBN cannot be trained on a CPU.
    assert_bit_exact(revert_sync_batchnorm(ours), revert_sync_batchnorm(theirs), batch(cfg))
    bit_exact("distinct dicts of ResNet's relatives in mmdet's configs", name)
    for user in USERS[name]:
        bit_exact("of mmdet's configs with one of ResNet's relatives", user)


def test_number_of_distinct_dicts():
    # mmdet 3.3.0's.
    assert len(DICTS) == 39
    assert len({user for users in USERS.values() for user in users}) == 148


NARROW = dict(depth=50, base_channels=8, frozen_stages=1, conv_cfg=dict(type="ConvAWS"))
SWITCHABLE = dict(sac=dict(type="SAC", use_deform=True), stage_with_sac=(False, True, True, True))


def looks_twice(name: str, **arguments: Any) -> Callable[[Any], nn.Module]:
    """The backbone and the recursive neck of a detector, with the classes of this package or of mmdet."""

    def build_both(module: Any) -> nn.Module:
        cls = getattr(module, name)
        backbone = cls(**NARROW, **arguments, output_img=True)
        rfp_backbone = dict(type=cls, **NARROW, **arguments, rfp_inplanes=16)
        neck = RFP(2, rfp_backbone, 4, in_channels=[32, 64, 128, 256], out_channels=16, num_outs=5)
        for layer in (backbone, neck):
            for part in layer.modules():
                if hasattr(part, "weight_gamma"):
                    part.weight_gamma.fill_(0.05)
        return Sequential(backbone, neck)

    return build_both


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("DetectoRS_ResNet", {}),
        ("DetectoRS_ResNet", dict(**SWITCHABLE, norm_eval=False)),
        ("DetectoRS_ResNet", dict(with_cp=True)),
        ("DetectoRS_ResNeXt", dict(**SWITCHABLE, groups=4, base_width=4)),
    ],
)
def test_recursive_feature_pyramid(name, arguments):
    build_both = looks_twice(name, **arguments)
    pair = (seeded(functools.partial(build_both, module)) for module in (resnet_backbone, reference))
    assert_bit_exact(*pair, batch(SWITCHABLE))


@pytest.mark.parametrize("arguments", [{}, dict(**SWITCHABLE, rfp_inplanes=16)])
def test_checkpoint_of_an_ordinary_resnet(arguments, tmp_path):
    ordinary = shaken(resnet_backbone.ResNet(50, base_channels=8))
    file = str(tmp_path / "resnet50.pth")
    torch.save({**ordinary.state_dict(), "fc.weight": torch.ones(2, 256), "fc.bias": torch.ones(2)}, file)
    init_cfg = dict(type="Pretrained", checkpoint=file)
    ours, theirs = (
        seeded(lambda cls=module.DetectoRS_ResNet: cls(**NARROW, **arguments, init_cfg=init_cfg))
        for module in (resnet_backbone, reference)
    )
    assert_same_state(ours, theirs)
    assert torch.equal(ours.layer2[0].conv2.weight, ordinary.layer2[0].conv2.weight)
