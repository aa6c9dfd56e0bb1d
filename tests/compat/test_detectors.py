"""Losses of mmdet's detectors over several training steps are bitwise equal with both backbone classes."""

from __future__ import annotations

import copy
import math

import mmdet.models.backbones.resnet as reference
import pytest
import torch
from backbone_dicts import CONFIGS
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config

import resnet_backbone

STEPS = 3
DETECTORS = {
    "two-stage": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "two-stage, C4, mmdet's shared head": "faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco.py",
    "cascade": "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py",
    "mask, caffe style": "mask_rcnn/mask-rcnn_r50-caffe_fpn_1x_coco.py",
    "one-stage": "retinanet/retinanet_r18_fpn_1x_coco.py",
    "one-stage, anchor-free": "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "one-stage, ATSS": "atss/atss_r50_fpn_1x_coco.py",
    "one-stage, one level, dilated": "yolof/yolof_r50-c5_8xb8-1x_coco.py",
    "heatmap, ResNet-18 with DCN in the neck": "centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco.py",
    "DETR": "detr/detr_r50_8xb2-150e_coco.py",
    "deformable DETR": "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
    "query-based": "sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py",
    "DCN": "dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py",
    "DCNv2": "dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py",
    "GCNet plugins": "gcnet/mask-rcnn_r50-gcb-r4-c3-c5_fpn_1x_coco.py",
    "GN and weight standardization": "gn+ws/mask-rcnn_r50_fpn_gn-ws-all_2x_coco.py",
    "instance segmentation, SOLOv2": "solov2/solov2_r50_fpn_1x_coco.py",
}


def model_config(path: str, backbone: type | str) -> Config:
    """The model of a shipped config, from random weights, with the given backbone class."""
    model = Config.fromfile(str(CONFIGS / path)).model
    model.backbone.type = backbone
    make_light(model)
    return model


def make_light(node: object) -> None:
    """Remove all pretrained checkpoints (including that of C4's shared head), and most sampled boxes."""
    if isinstance(node, (list, tuple)):
        for part in node:
            make_light(part)
    if not isinstance(node, dict):
        return
    if isinstance(node.get("sampler"), dict) and "num" in node["sampler"]:
        node["sampler"]["num"] = 32
    if isinstance(node.get("init_cfg"), dict) and node["init_cfg"]["type"] == "Pretrained":
        del node["init_cfg"]
    for part in node.values():
        make_light(part)


def train(path: str, backbone: type | str) -> list[dict[str, torch.Tensor]]:
    """Losses of a few SGD steps, and the class of the backbone."""
    torch.manual_seed(0)
    detector = MODELS.build(model_config(path, backbone))
    expected = resnet_backbone.ResNet if isinstance(backbone, str) else backbone
    assert type(detector.backbone) is expected
    detector.init_weights()
    detector.train()
    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9, weight_decay=1e-4)
    history = []
    for step in range(STEPS):
        torch.manual_seed(step)
        inputs = demo_mm_inputs(
            2, [(3, 96, 96), (3, 96, 80)], num_items=[2, 3], num_classes=4, with_mask=True, use_box_type=False
        )
        data = detector.data_preprocessor(inputs, True)
        total, losses = detector.parse_losses(detector(**data, mode="loss"))
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 10)
        optimizer.step()
        history.append({name: torch.as_tensor(loss).detach().clone() for name, loss in losses.items()})
    history.append(copy.deepcopy(detector.state_dict()))
    return history


@pytest.mark.parametrize("kind", DETECTORS)
def test_losses_are_bitwise_equal(kind, bit_exact):
    register_all_modules()
    ours, theirs = train(DETECTORS[kind], "ResNet"), train(DETECTORS[kind], reference.ResNet)
    for step, (losses, expected) in enumerate(zip(ours, theirs)):
        assert losses.keys() == expected.keys()
        unequal = {
            name: (losses[name], expected[name]) for name in expected if not torch.equal(losses[name], expected[name])
        }
        assert not unequal, f"step {step}"
    assert all(math.isfinite(loss) for losses in ours[:STEPS] for loss in losses.values())
    bit_exact("whole detectors", kind)
