"""Weights of the other networks with the names of every framework give the same features."""

from __future__ import annotations

import copy
import re
from functools import partial

import pytest
import torch
import torchvision
from helpers import assert_same_bits, raises, shake
from test_weights_formats import caffe2_name, conv_module_stem, detectron2_name, renamed
from timm.layers import SEModule
from timm.models import regnet as timm_regnet
from timm.models.res2net import Bottle2neck
from timm.models.resnest import ResNestBottleneck
from timm.models.resnet import Bottleneck, ResNet
from torchvision.models.regnet import BlockParams, RegNet

from resnet_backbone import build_backbone, load_pretrained
from resnet_backbone.errors import MismatchError

BLOCKS = [3, 4, 6, 3]
DESIGN = dict(depth=8, w_0=16, w_a=12.0, w_m=1.8, group_width=8)
REGNET = dict(type="RegNet", arch=dict(w0=16, wa=12.0, wm=1.8, group_w=8, depth=8, bot_mul=1.0))
# torchvision rounds the last stage's 392 channels to 400, pycls, timm and mmdet to 384.
TORCHVISION_400MF = dict(w0=24, wa=24.6, wm=2.546, group_w=16, depth=22, bot_mul=1.0)
# timm's stem has 64 channels, whatever the stages have.
RESNEXT = dict(type="ResNeXt", depth=50, groups=4, base_width=4, base_channels=8, stem_channels=64)
# timm makes it a multiple of 8 channels: a fourth of 32, 64, 128 and 256 is.
SE = [dict(cfg=dict(type="SELayer", ratio=4), position="after_conv3")]
RES2NET = dict(type="Res2Net", depth=50, base_width=14, scales=4, base_channels=16)


def timm_resnet(block=Bottleneck, base=8, **arguments):
    channels = [base * 2**stage for stage in range(4)]
    return ResNet(
        block, BLOCKS, channels=channels, stem_width=arguments.pop("stem_width", base), num_classes=3, **arguments
    )


def timm_levels(model, x):
    x = model.maxpool(model.act1(model.bn1(model.conv1(x))))
    levels = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = stage(x)
        levels.append(x)
    return levels


def torchvision_regnet_levels(model, x):
    x, levels = model.stem(x), []
    for stage in model.trunk_output:
        x = stage(x)
        levels.append(x)
    return levels


def timm_regnet_levels(model, x):
    x, levels = model.stem(x), []
    for name in ("s1", "s2", "s3", "s4"):
        x = getattr(model, name)(x)
        levels.append(x)
    return levels


SPLIT = dict(radix=2, avd=True, avd_first=False)
PAIRS = {
    "torchvision RegNetX": (
        lambda: RegNet(BlockParams.from_init_params(se_ratio=None, **DESIGN)),
        torchvision_regnet_levels,
        REGNET,
    ),
    "timm RegNetX": (
        lambda: timm_regnet.RegNet(timm_regnet.RegNetCfg(depth=8, w0=16, wa=12.0, wm=1.8, group_size=8)),
        timm_regnet_levels,
        REGNET,
    ),
    "timm ResNeXt": (lambda: timm_resnet(cardinality=4, base_width=32), timm_levels, RESNEXT),
    "timm SE-ResNeXt": (
        lambda: timm_resnet(
            cardinality=4, base_width=32, block_args=dict(attn_layer=partial(SEModule, rd_ratio=1 / 4))
        ),
        timm_levels,
        dict(RESNEXT, plugins=SE),
    ),
    "timm Wide ResNet": (
        lambda: timm_resnet(base_width=128),
        timm_levels,
        dict(type="ResNet", depth=50, base_channels=8, stem_channels=64, base_width=16),
    ),
    "timm Res2Net": (
        lambda: timm_resnet(Bottle2neck, base_width=112, block_args=dict(scale=4)),
        timm_levels,
        dict(RES2NET, base_channels=8, stem_channels=64, deep_stem=False, avg_down=False, pool_unstrided=True),
    ),
    "timm Res2Net-D": (
        lambda: timm_resnet(
            Bottle2neck, base=16, base_width=56, block_args=dict(scale=4), stem_type="deep", stem_width=8, avg_down=True
        ),
        timm_levels,
        dict(RES2NET, pool_unstrided=True),
    ),
    "timm ResNeSt": (
        lambda: timm_resnet(ResNestBottleneck, base=8, block_args=SPLIT, stem_type="deep", stem_width=4, avg_down=True),
        timm_levels,
        dict(type="ResNeSt", depth=50, base_channels=8),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_weights_give_the_same_features(name):
    build, levels_of, cfg = PAIRS[name]
    model = shake(build()).eval()
    backbone = build_backbone(dict(cfg)).eval()
    report = load_pretrained(backbone, model.state_dict())
    assert set(report.loaded) >= {key for key, _ in backbone.named_parameters()}
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected, levels = levels_of(model, x), backbone(x)
    for level, reference in zip(levels, expected, strict=True):
        assert (level - reference).norm() <= 1e-5 * reference.norm()


def pycls_name(name):
    if match := re.fullmatch(r"(conv|bn)1\.(\w+)", name):
        return f"stem.{match[1]}.{match[2]}"
    stage, block, layer, leaf = re.fullmatch(r"layer(\d)\.(\d+)\.([a-z]+\.?\d)\.(\w+)", name).groups()
    kind, number = layer[:-1], int(layer[-1])
    if kind == "downsample.":
        return f"s{stage}.b{int(block) + 1}.{('proj', 'bn')[number]}.{leaf}"
    return f"s{stage}.b{int(block) + 1}.f.{'abc'[number - 1]}{'_bn' if kind == 'bn' else ''}.{leaf}"


def resnest_detectron2_name(name):
    if match := re.fullmatch(r"stem\.(\d)\.(\w+)", name):
        index = int(match[1])
        return f"stem.conv1_{index // 3 + 1}.{'norm.' if index % 3 else ''}{match[2]}"
    if match := re.fullmatch(r"layer(\d)\.(\d+\.conv2\..+)", name):
        return f"res{int(match[1]) + 1}.{match[2]}"
    # A shortcut's first layer is the pooling, which the names of detectron2 do not count.
    return detectron2_name(re.sub(r"downsample\.([12])", lambda match: f"downsample.{int(match[1]) - 1}", name))


def mmpretrain_name(name):
    return f"backbone.{conv_module_stem(name)}"


X = dict(type="ResNeXt", depth=50, groups=4, base_width=4, base_channels=8)
STATISTICS = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
MMPRETRAIN = dict(
    ResNeXt=X,
    SEResNet=dict(type="ResNet", depth=50, base_channels=8, plugins=SE),
    SEResNeXt=dict(X, plugins=SE),
    RegNet=REGNET,
    Res2Net=dict(RES2NET, pool_unstrided=True),
    ResNeSt=dict(type="ResNeSt", depth=50, base_channels=8),
)
# The framework, the network, the name of each tensor, and the other contents of the file.
RENAMED = {
    "detectron2": ("detectron2", X, detectron2_name, lambda state: {"model": state, "__author__": "detectron2"}),
    "detectron2, by Caffe2": (
        "Caffe2",
        X,
        partial(caffe2_name, norm="bn", leaves=STATISTICS),
        lambda state: {"blobs": state},
    ),
    "detectron2, by ResNeSt's authors": (
        "detectron2",
        MMPRETRAIN["ResNeSt"],
        resnest_detectron2_name,
        lambda state: state,
    ),
    "pycls": ("pycls", REGNET, pycls_name, lambda state: {"epoch": 99, "model_state": state, "optimizer_state": {}}),
    **{
        f"mmpretrain {name}": ("mmdet, mmpretrain or mmseg", cfg, mmpretrain_name, lambda state: {"state_dict": state})
        for name, cfg in MMPRETRAIN.items()
    },
}


@pytest.mark.parametrize("name", RENAMED)
def test_other_names_give_the_same_features(name):
    label, cfg, rename, pack = RENAMED[name]
    source, backbone = (build_backbone(copy.deepcopy(cfg)).eval() for _ in range(2))
    state = renamed(shake(source), rename)
    report = load_pretrained(backbone, pack(state))
    assert report.format == label
    assert len(report.loaded) == len(state)
    assert not report.unexpected
    if "ResNeSt's authors" in name:
        assert report.preprocessing.mean == (123.68, 116.779, 103.939)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert_same_bits(backbone(x), source(x))


@pytest.mark.parametrize(
    ("name", "cfg"),
    [
        ("resnext50_32x4d", dict(type="ResNeXt", depth=50, groups=32, base_width=4)),
        ("resnext101_32x8d", dict(type="ResNeXt", depth=101, groups=32, base_width=8)),
        ("resnext101_64x4d", dict(type="ResNeXt", depth=101, groups=64, base_width=4)),
        ("wide_resnet50_2", dict(type="ResNet", depth=50, base_width=128)),
        ("wide_resnet101_2", dict(type="ResNet", depth=101, base_width=128)),
        ("regnet_x_400mf", dict(type="RegNet", arch=TORCHVISION_400MF)),
        ("regnet_x_3_2gf", dict(type="RegNet", arch="regnetx_3.2gf")),
    ],
)
def test_shapes_match_torchvision(name, cfg):
    # torchvision computes the widths of a RegNet with tensors, which need values.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        model = torchvision.models.get_model(name)
        backbone = build_backbone(cfg)
    theirs = sum(value.numel() for key, value in model.state_dict().items() if not key.startswith("fc."))
    assert sum(value.numel() for value in backbone.state_dict().values()) == theirs


@pytest.mark.parametrize("other", ["Res2Net", "ResNeSt"])
def test_file_of_another_family_is_named(other):
    cfgs = dict(
        ResNet=dict(type="ResNetV1d", depth=50, base_channels=4),
        ResNeSt=dict(type="ResNeSt", depth=50, base_channels=4),
    )
    cfgs["Res2Net"] = {**RES2NET, "base_channels": 4}
    for file, backbone in ((other, "ResNet"), ("ResNet", other)):
        with raises(MismatchError, f"is a {file}-50", f"is a {backbone}-50"):
            load_pretrained(build_backbone(cfgs[backbone]), build_backbone(cfgs[file]).state_dict())
