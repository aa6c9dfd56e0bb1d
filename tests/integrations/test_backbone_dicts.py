"""Every distinct backbone dict in mmdet's configs builds and trains one step without a compiler."""

from __future__ import annotations

import copy
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.model import revert_sync_batchnorm

import resnet_backbone

_spec = find_spec("mmcv._ext")
if find_spec("mmdet") is None or (_spec is not None and _spec.loader is not None):
    pytest.skip("needs mmdet and mmcv-lite 2.1.0: pip install '.[mmdet]'", allow_module_level=True)

sys.path.append(str(Path(__file__).parents[1] / "compat"))
from backbone_dicts import distinct_backbones  # noqa: E402 - it needs mmdet

DICTS = distinct_backbones(tuple(resnet_backbone.__all__))


def test_number_of_distinct_dicts():
    # mmdet 3.3.0's; tests/compat compares each of them where mmcv is compiled.
    assert len(DICTS) == 97


@pytest.mark.parametrize("kind", sorted({cfg["type"] for cfg in DICTS.values()}))
def test_builds_and_trains(kind):
    for cfg in (cfg for cfg in DICTS.values() if cfg["type"] == kind):
        # Skip random initialization, which takes longer than the step.
        cfg = {**copy.deepcopy(cfg), "device": "meta"}
        cfg.pop("pretrained", None)
        backbone = revert_sync_batchnorm(resnet_backbone.build_backbone(cfg)).to_empty(device="cpu").train()
        for key, value in backbone.state_dict().items():
            if key.endswith(("weight_gamma", "weight_beta")):
                value.fill_(5e-4)  # ConvAWS: with standardized weights of one, features would overflow.
            elif value.dim() > 1:
                value.fill_(1 / value[0].numel()).view(-1)[::2].mul_(0.5)
            else:
                value.fill_(1)
        # The reflection in SAC needs a last stage of three pixels.
        levels = backbone(torch.rand(2, 3, *[65 if "sac" in cfg else 33] * 2))
        assert tuple(level.shape[1] for level in levels) == backbone.out_channels
        assert all(level.isfinite().all() for level in levels)
        torch.stack([level.mean() for level in levels if level.requires_grad]).sum().backward()
        gradients = {name: p.grad for name, p in backbone.named_parameters() if p.requires_grad}
        # Only DetectoRS's second pass uses these.
        without = {name for name, grad in gradients.items() if grad is None and "rfp_conv" not in name}
        assert not without
        assert all(grad.isfinite().all() for grad in gradients.values() if grad is not None)
