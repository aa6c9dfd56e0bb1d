import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers import TORCH, raises
from mmengine import Config

from resnet_backbone import RegNet, ResNet, build_backbone
from resnet_backbone.errors import ArgumentError
from resnet_backbone.integrations.mmdet.configs import CONFIGS, config_path
from resnet_backbone.version import __version__
from resnet_backbone.weights.zoo import by_name

FRAGMENTS = sorted((CONFIGS / "_base_" / "backbones").glob("*.py"))
PACKAGE = CONFIGS.parents[1]


# The type that each file's name stands for, longest first.
TYPES = dict(
    wide_resnet="ResNet",
    resnetv1d="ResNetV1d",
    resnext="ResNeXt",
    regnetx_="RegNet",
    res2net="Res2Net",
    resnest="ResNeSt",
    detectors_resnet="DetectoRS_ResNet",
    trident_resnet="TridentResNet",
    resnet="ResNet",
)


def test_fragments_cover_every_depth():
    names = {file.stem for file in FRAGMENTS}
    assert names >= {f"{name}{depth}" for name in ("resnet", "resnetv1d") for depth in ResNet.arch_settings}
    assert names >= set(RegNet.arch_settings)


@pytest.mark.parametrize("file", FRAGMENTS, ids=lambda file: file.stem)
def test_fragment_builds_the_named_backbone(file):
    cfg = Config.fromfile(str(file))
    assert cfg.custom_imports == dict(imports=["resnet_backbone"], allow_failed_imports=False)
    name = next(name for name in TYPES if file.stem.startswith(name))
    # Old versions of torchvision have no meta kernel for deformable convolutions.
    device = "cpu" if TORCH < (2, 5) and name.startswith("detectors") else "meta"
    backbone = build_backbone(dict(cfg.model.backbone, device=device))
    assert type(backbone).__name__ == TYPES[name]
    if name == "regnetx_":
        assert cfg.model.backbone.arch == file.stem
    else:
        assert backbone.depth == int(re.match(r"\d+", file.stem.removeprefix(name))[0])
    channels = re.search(r"level\w* of ([\d, and]+) channels", " ".join(file.read_text().split("\n# ")))[1]
    levels = backbone.eval()(torch.zeros(1, 3, 96, 96, device=device))
    assert [level.shape[1] for level in levels] == list(map(int, re.findall(r"\d+", channels)))
    assert tuple(96 // level.shape[2] for level in levels) == backbone.out_strides
    weights = cfg.model.backbone.get("init_cfg", {}).get("checkpoint", "")
    scheme, _, source = weights.partition("://")
    if scheme == "torchvision":
        assert source == file.stem.removeprefix("detectors_")
    elif scheme:
        assert scheme == "timm" or by_name(source).relation == "SAME"


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.py")), ids=lambda file: file.stem)
def test_config_begins_with_a_description(file):
    assert file.read_text().startswith(("# ", '"""'))


def test_config_path_suggests_the_closest_name():
    assert Path(config_path("_base_/backbones/resnet18.py")).is_file()
    with raises(ArgumentError, "'_base_/backbones/resnet-18.py'", "'_base_/backbones/resnet18.py'"):
        config_path("_base_/backbones/resnet-18.py")


def test_installed_configs_resolve_by_package(tmp_path, run_python):
    """As in an installed wheel, which contains files instead of the source tree's links."""
    site = tmp_path / "site"
    shutil.copytree(PACKAGE, site / "resnet_backbone", ignore=shutil.ignore_patterns("__pycache__"))
    metadata = site / f"resnet_backbone-{__version__}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: resnet_backbone\nVersion: {__version__}\n")
    (tmp_path / "mine.py").write_text(
        '_base_ = "resnet_backbone::_base_/backbones/resnet18.py"\nmodel = dict(backbone=dict(base_channels=4))\n'
    )
    printed = run_python(
        """
import resnet_backbone
from mmengine import Config
cfg = Config.fromfile("mine.py").model.backbone
print(resnet_backbone.__file__)
print(type(resnet_backbone.build_backbone(cfg)).__module__, cfg.depth, cfg.base_channels, cfg.init_cfg.checkpoint)
# Configs can import modules in the same folder.
from resnet_backbone.integrations.mmdet.configs import config_path
Config.fromfile(config_path("signals/multi-scale-resnet1d_gunpoint.py"))
print(__import__("ucr_signals").__file__)
""",
        ours=site,
    ).splitlines()
    assert printed[-3:] == [
        str(site / "resnet_backbone" / "__init__.py"),
        "resnet_backbone.resnet 18 4 torchvision://resnet18",
        str(site / "resnet_backbone/.mim/configs/signals/ucr_signals.py"),
    ]
