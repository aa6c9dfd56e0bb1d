"""Every distinct dict of ResNet's relatives in mmdet's configs, and combinations that they miss, against mmdet's."""

from __future__ import annotations

import copy
import functools
from typing import Any

import mmdet.models.backbones as reference
import pytest
import torch
from backbone_dicts import distinct_backbones, users_of_backbones
from equality import assert_bit_exact, seeded
from mmengine.model import BaseModule, revert_sync_batchnorm
from torch import nn

import resnet_backbone

TYPES = ("ResNeXt", "RegNet", "Res2Net", "ResNeSt", "DetectoRS_ResNet", "DetectoRS_ResNeXt", "TridentResNet")
DICTS = distinct_backbones(TYPES)
USERS = users_of_backbones(TYPES)
WITH_OPERATOR = [name for name, cfg in DICTS.items() if "dcn" in cfg or "sac" in cfg]


@pytest.fixture(autouse=True)
def _no_report_of_each_parameter(monkeypatch):
    """mmengine's, which takes longer than the initialisation itself."""
    monkeypatch.setattr(BaseModule, "_dump_init_info", lambda self: None)


def build(cls: type, cfg: dict[str, Any]) -> nn.Module:
    cfg = copy.deepcopy(cfg)
    # It names a checkpoint; both draw random weights here.
    cfg.pop("pretrained", None)
    backbone = cls(**{key: value for key, value in cfg.items() if key != "type"})
    for module in backbone.modules():
        if type(module).__name__ == "TridentConv":
            # mmdet's starts from whatever the memory holds.
            nn.init.normal_(module.weight, std=0.01)
        elif hasattr(module, "weight_gamma"):
            # Without a checkpoint, standardised weights let features overflow.
            module.weight_gamma.fill_(0.05)
    return backbone


def pair(cfg: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    classes = getattr(resnet_backbone, cfg["type"]), getattr(reference, cfg["type"])
    assert classes[0] is not classes[1]
    ours, theirs = (seeded(functools.partial(build, cls, cfg)) for cls in classes)
    return ours, theirs


def batch(cfg: dict[str, Any]) -> torch.Tensor:
    # The last stage has to be three pixels wide for the operators: mmcv's DCN, and the reflection in SAC.
    size = 96 if "dcn" in cfg or "sac" in cfg else 64
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(3)) * 4 - 2


@pytest.mark.parametrize("name", DICTS)
def test_backbone_of_a_shipped_config(name, bit_exact):
    cfg = DICTS[name]
    ours, theirs = pair(cfg)
    assert [type(m).__name__ for m in ours.modules()] == [type(m).__name__ for m in theirs.modules()]
    names = [
        key for key in vars(theirs) if not key.startswith("_") and key not in ("block", "dcn", "drawn_after")
    ]  # dcn: mmdet pops from it
    assert [key for key in names if getattr(ours, key) != getattr(theirs, key)] == []
    # SyncBN refuses to train on a CPU: there mmdet's users turn it into BN.
    assert_bit_exact(revert_sync_batchnorm(ours), revert_sync_batchnorm(theirs), batch(cfg))
    bit_exact("distinct dicts of ResNet's relatives in mmdet's configs", name)
    for user in USERS[name]:
        bit_exact("of mmdet's configs with one of ResNet's relatives", user)


def test_dicts_are_all_of_them():
    # mmdet 3.3.0's.
    assert len(DICTS) >= 39
    assert len({user for users in USERS.values() for user in users}) >= 148
