"""Comparison with mmdet's classes: every distinct ResNet dict in its configs, and further argument combinations."""

from __future__ import annotations

import copy
import functools
import inspect

import mmdet.models.backbones.resnet as reference
import pytest
import torch
from backbone_dicts import configs_by_backbone, distinct_backbones, users_of_backbones
from equality import assert_bit_exact, seeded
from mmengine.model import revert_sync_batchnorm

import resnet_backbone

DICTS = distinct_backbones()


def build_pair(cfg: dict, init: bool = True):
    kwargs = copy.deepcopy(cfg)
    name = kwargs.pop("type", "ResNet")
    theirs = copy.deepcopy(kwargs)
    return (
        seeded(lambda: getattr(resnet_backbone, name)(**kwargs)),
        seeded(lambda: getattr(reference, name)(**theirs)),
    )


def batch(channels: int = 3, size: int = 64) -> torch.Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(3)) * 4 - 2


def without_sync(module):
    """Replace SyncBN, which cannot be trained on a CPU, by BN."""
    return revert_sync_batchnorm(module)


@pytest.mark.parametrize("name", DICTS)
def test_backbone_of_a_shipped_config(name, bit_exact):
    ours, theirs = build_pair(DICTS[name])
    assert [type(m).__name__ for m in ours.modules()] == [type(m).__name__ for m in theirs.modules()]
    # mmcv's DCN takes no feature map smaller than its kernel: stage 4 has to be 3x3.
    size = 65 if "dcn" in DICTS[name] else 33
    assert_bit_exact(without_sync(ours), without_sync(theirs), batch(size=size))
    bit_exact("distinct ResNet dicts of mmdet's configs", name)


FAMILY = dict(ResNet=461, ResNeXt=97, RegNet=26, ResNeSt=8, Res2Net=7, DetectoRS_ResNet=7, TridentResNet=3)


def test_number_of_distinct_dicts():
    assert len(DICTS) == 58
    # The configs whose detector has one of our backbones, counted apart from the dicts: mmdet 3.3.0's.
    configs = configs_by_backbone()
    counts = {name: len(configs[name]) for name in FAMILY}
    assert counts == FAMILY
    compared = {user for users in users_of_backbones(tuple(resnet_backbone.__all__)).values() for user in users}
    assert compared == {config for name in FAMILY for config in configs[name]}
    assert len(compared) == 609


BN = dict(type="BN", requires_grad=True)
CONTEXT = dict(cfg=dict(type="ContextBlock", ratio=1 / 4), position="after_conv1")
COMBINATIONS = {
    **{f"V1d-{depth}": dict(type="ResNetV1d", depth=depth) for depth in (18, 34, 50, 101, 152)},
    "V1d-50 frozen, caffe": dict(type="ResNetV1d", depth=50, frozen_stages=2, style="caffe"),
    "152": dict(depth=152),
    "18 train norms": dict(depth=18, norm_eval=False),
    "50 train norms": dict(depth=50, norm_eval=False),
    "50 caffe": dict(depth=50, style="caffe", norm_eval=False),
    "18 checkpointed": dict(depth=18, with_cp=True),
    "50 checkpointed": dict(depth=50, with_cp=True, frozen_stages=1),
    "50 checkpointed, train norms": dict(depth=50, with_cp=True, norm_eval=False),
    "18 checkpointed, train norms, frozen": dict(depth=18, with_cp=True, norm_eval=False, frozen_stages=0),
    "50 checkpointed V1d, train norms": dict(type="ResNetV1d", depth=50, with_cp=True, norm_eval=False),
    "50 deep stem": dict(depth=50, deep_stem=True),
    "34 avg_down": dict(depth=34, avg_down=True),
    "50 deep stem frozen": dict(depth=50, deep_stem=True, avg_down=True, frozen_stages=4, norm_eval=False),
    "50 dilated, output stride 8": dict(depth=50, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
    "18 dilated": dict(depth=18, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
    "50 channels": dict(depth=50, in_channels=5, stem_channels=32, base_channels=16),
    "18 channels": dict(depth=18, in_channels=1, base_channels=8),
    "50 two stages": dict(depth=50, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,)),
    "18 one stage": dict(depth=18, num_stages=1, strides=(2,), dilations=(1,), out_indices=(0,)),
    "50 some outputs": dict(depth=50, out_indices=(3, 1)),
    "18 GN": dict(depth=18, norm_cfg=dict(type="GN", num_groups=8), norm_eval=False),
    "18 IN": dict(depth=18, norm_cfg=dict(type="IN", affine=True)),
    "18 eps, momentum": dict(depth=18, norm_cfg=dict(type="BN", eps=1e-3, momentum=0.2), norm_eval=False),
    "50 no zero init": dict(depth=50, zero_init_residual=False),
    "18 ConvWS": dict(depth=18, conv_cfg=dict(type="ConvWS")),
    "18 stride in stage 1": dict(depth=18, strides=(2, 2, 2, 2)),
    "50 own init": dict(depth=50, init_cfg=dict(type="Xavier", layer="Conv2d")),
    "18 own init list": dict(depth=18, init_cfg=[dict(type="Normal", layer="Conv2d", std=0.01)]),
    "50 plugins chained": dict(
        depth=50,
        plugins=[
            dict(cfg=dict(type="ContextBlock", ratio=1 / 8, postfix="1"), position="after_conv2"),
            dict(cfg=dict(type="ContextBlock", ratio=1 / 4, postfix="2"), position="after_conv2"),
            dict(cfg=dict(type="NonLocal2d"), stages=(False, False, True, False), position="after_conv3"),
            dict(
                cfg=dict(type="ConvModule", kernel_size=1, out_channels=64), stages=(1, 0, 0, 0), position="after_conv1"
            ),
        ],
    ),
    "50 checkpointed plugins and DCN": dict(
        depth=50, with_cp=True, plugins=[CONTEXT], dcn=dict(type="DCNv2"), stage_with_dcn=(False, False, True, True)
    ),
}


@pytest.mark.parametrize("name", COMBINATIONS)
def test_argument_combinations_without_a_config(name, bit_exact):
    cfg = COMBINATIONS[name]
    assert_bit_exact(*build_pair(cfg), batch(cfg.get("in_channels", 3)))
    bit_exact("further argument combinations", name)


@pytest.mark.parametrize("name", ["BasicBlock", "Bottleneck", "ResNet"])
def test_signature_matches_mmdet(name):
    theirs = [
        (parameter.name, parameter.default)
        for parameter in inspect.signature(getattr(reference, name)).parameters.values()
    ]
    ours = inspect.signature(getattr(resnet_backbone, name)).parameters.values()
    assert [(parameter.name, parameter.default) for parameter in ours][: len(theirs)] == theirs


def test_res_layer_matches_mmdet():
    from mmdet.models.layers import ResLayer

    theirs = [(p.name, p.default) for p in inspect.signature(ResLayer).parameters.values()]
    parameters = inspect.signature(resnet_backbone.ResLayer).parameters.values()
    assert [(p.name, p.default) for p in parameters if p.kind is not p.KEYWORD_ONLY] == theirs
    # mmsegmentation's and our own, which change nothing by default.
    assert [p.name for p in parameters if p.kind is p.KEYWORD_ONLY] == [
        "multi_grid",
        "contract_dilation",
        "projection_shortcut",
        "first_block",
    ]
    for first in (True, False):
        shape = dict(inplanes=16, planes=32, num_blocks=3, stride=2, downsample_first=first)
        ours = seeded(functools.partial(resnet_backbone.ResLayer, resnet_backbone.BasicBlock, **shape))
        theirs = seeded(functools.partial(ResLayer, reference.BasicBlock, **shape))
        assert list(ours.state_dict()) == list(theirs.state_dict())
        x = batch(16, 16)
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("depth", [18, 50])
def test_attributes_that_subclasses_rely_on(depth):
    ours, theirs = resnet_backbone.ResNet(depth), reference.ResNet(depth)
    names = [name for name in vars(theirs) if not name.startswith("_") and name != "block"]
    assert not [name for name in names if getattr(ours, name) != getattr(theirs, name)]
    block, their_block = ours.layer1[0], theirs.layer1[0]
    names = [name for name in vars(their_block) if not name.startswith("_")]
    assert not [name for name in names if getattr(block, name) != getattr(their_block, name)]
    hooks = {
        name for cls in (reference.ResNet, reference.Bottleneck) for name in vars(cls) if not name.startswith("__")
    }
    assert not [
        name
        for name in hooks
        if not hasattr(resnet_backbone.ResNet, name) and not hasattr(resnet_backbone.Bottleneck, name)
    ]
