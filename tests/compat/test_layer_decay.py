"""``constructor='LearningRateDecayOptimizerConstructor'`` of mmdet's configs works with our backbones."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers import raises
from mmdet.engine.optimizers import LearningRateDecayOptimizerConstructor as MMDetConstructor
from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from resnet_backbone import ResNet, TridentResNet
from resnet_backbone.errors import ArgumentError


class Detector(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Conv2d(3, 3, 1)


def detector(**arguments):
    return Detector(ResNet(18, base_channels=4, frozen_stages=1, **arguments))


def build(model, **paramwise):
    with DefaultScope.overwrite_default_scope("mmdet"):
        return build_optim_wrapper(
            model,
            dict(
                constructor="LearningRateDecayOptimizerConstructor",
                optimizer=dict(type="AdamW", lr=0.5, weight_decay=0.05),
                paramwise_cfg=paramwise,
            ),
        )


@pytest.mark.parametrize(
    ("paramwise", "powers"),
    [
        (dict(decay_type="layer_wise", num_layers=8), {"layer2.0": 6, "layer2.1": 5, "layer4.0": 2, "layer4.1": 1}),
        (dict(), {"layer2.0": 6, "layer2.1": 5, "layer4.0": 2, "layer4.1": 1}),
        (dict(decay_type="stage_wise", num_layers=4), {"layer2.0": 3, "layer2.1": 3, "layer4.0": 1, "layer4.1": 1}),
    ],
    ids=str,
)
def test_learning_rates(paramwise, powers):
    model = detector()
    groups = build(model, decay_rate=0.5, **paramwise).optimizer.param_groups
    found = {name: group for group in groups for name in group["param_names"]}
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert sum(len(group["params"]) for group in groups) == len(found)
    assert found["head.weight"]["lr"] == 0.5
    for block, power in powers.items():
        assert found[f"backbone.{block}.conv1.weight"]["lr"] == 0.5 * 0.5**power
        assert found[f"backbone.{block}.conv1.weight"]["weight_decay"] == 0.05
        assert found[f"backbone.{block}.bn1.weight"]["weight_decay"] == 0


def test_stem():
    shape = dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(2,), base_channels=8)
    model = Detector(TridentResNet(50, trident_dilations=(1, 2, 3), num_branch=3, test_branch_idx=1, **shape))
    for paramwise, layers in [(dict(), 13), (dict(decay_type="stage_wise"), 3)]:
        groups = build(model, decay_rate=0.5, **paramwise).optimizer.param_groups
        (stem,) = [group for group in groups if "backbone.conv1.weight" in group["param_names"]]
        assert stem["lr"] == 0.5 * 0.5 ** (layers + 1)
        assert len({group["lr"] for group in groups}) == layers + 2


@pytest.mark.parametrize(
    "paramwise",
    [
        dict(decay_rate="0.5"),
        dict(decay_type="stages"),
        dict(num_layers=6),
        dict(decay_type="stage_wise", num_layers=8),
    ],
    ids=str,
)
def test_wrong_options(paramwise):
    name, value = list(paramwise.items())[-1]
    with raises(ArgumentError, name, repr(value)):
        build(detector(), **dict(decay_rate=0.5) | paramwise)


def test_other_backbones_use_mmdet_rates():
    class ConvNeXt(nn.Module):
        def __init__(self):
            super().__init__()
            self.stages = nn.ModuleList(nn.ModuleList([nn.Conv2d(2, 2, 1)]) for _ in range(4))

    ours = OPTIM_WRAPPER_CONSTRUCTORS.get("LearningRateDecayOptimizerConstructor")
    assert issubclass(ours, MMDetConstructor)
    assert ours is not MMDetConstructor
    config = dict(optimizer=dict(type="SGD", lr=0.5)), dict(decay_rate=0.5, decay_type="layer_wise", num_layers=6)
    found, expected = [], []
    ours(*config).add_params(found, Detector(ConvNeXt()))
    MMDetConstructor(*config).add_params(expected, Detector(ConvNeXt()))
    assert [group["lr"] for group in found] == [group["lr"] for group in expected]
    assert len(found) > 4
    with pytest.raises(NotImplementedError):
        ours(*config).add_params([], Detector(nn.Conv2d(2, 2, 1)))


@pytest.mark.parametrize(
    "first",
    [
        "import resnet_backbone, mmdet.engine",
        "from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS as R; R.get('SGD'); import resnet_backbone",
        "from mmdet.utils import register_all_modules; register_all_modules(); import resnet_backbone",
    ],
)
def test_every_import_order(first):
    code = f"""
{first}
from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS
found = OPTIM_WRAPPER_CONSTRUCTORS.get("LearningRateDecayOptimizerConstructor")
assert found.__module__.startswith("resnet_backbone."), found
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
