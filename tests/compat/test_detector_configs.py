"""The whole detectors in configs/ are mmdet's, with our backbone."""

import importlib
from pathlib import Path

import pytest
from mmengine import Config

import resnet_backbone
from resnet_backbone.integrations.mmdet.configs import CONFIGS

try:
    mmdet = importlib.import_module("mmdet")
    importlib.import_module("mmdet.models")
    MODELS = importlib.import_module("mmdet.registry").MODELS
except Exception as error:  # noqa: BLE001 - mmdet asserts versions, and its dependencies fail in their own ways
    pytest.skip(f"needs mmdet: {type(error).__name__}: {error}", allow_module_level=True)

# Fragments, and classifiers of signals.
NOT_DETECTORS = {"_base_", "signals"}
DETECTORS = sorted(file for file in CONFIGS.rglob("*.py") if not NOT_DETECTORS & {*file.relative_to(CONFIGS).parts})


def test_every_kind_of_config_is_tested():
    assert {file.parent.name for file in DETECTORS} == {"faster_rcnn", "retinanet", "mask_rcnn", "dcn"}


@pytest.mark.parametrize("file", DETECTORS, ids=lambda file: file.stem)
def test_detector_builds_with_our_backbone(file):
    cfg = Config.fromfile(str(file))
    assert cfg.custom_imports["imports"] == ["resnet_backbone"]
    assert cfg.default_scope == "mmdet"
    # All that training needs.
    for part in ("train_dataloader", "val_dataloader", "optim_wrapper", "train_cfg", "val_evaluator", "default_hooks"):
        assert part in cfg
    detector = MODELS.build(cfg.model)
    assert type(detector.backbone) is resnet_backbone.ResNet
    assert tuple(detector.neck.in_channels[-len(detector.backbone.out_channels) :]) == detector.backbone.out_channels
    with_dcn = [name for name, layer in detector.backbone.named_modules() if "DeformConv" in type(layer).__name__]
    assert {name.split(".")[0] for name in with_dcn} == (
        {"layer2", "layer3", "layer4"} if file.parent.name == "dcn" else set()
    )


def test_preprocessing_of_caffe_weights():
    name = "mask_rcnn/mask-rcnn_r50-caffe_fpn_1x_coco.py"
    ours = Config.fromfile(str(CONFIGS / name)).model
    theirs = Config.fromfile(str(Path(mmdet.__file__).parent / ".mim" / "configs" / name)).model
    for cfg in (ours, theirs):
        cfg.pop("_scope_", None)
    assert ours.data_preprocessor == theirs.data_preprocessor
    assert ours.backbone == theirs.backbone
