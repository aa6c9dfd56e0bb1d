"""Whole detectors with the operators that need no compiler, compared with mmcv's compiled ones."""

from __future__ import annotations

import copy
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from backbone_dicts import CONFIGS
from helpers import shake
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from torch import Tensor, nn

if find_spec("mmcv._ext") is None:
    pytest.skip("mmcv was not compiled", allow_module_level=True)

from mmcv import _ext as compiled

from resnet_backbone.integrations.mmdet.extension import OPERATORS, make_extension

# The operators that each calls on a CPU, and how far results may differ, in parts of the largest number of a tensor:
# deformable convolutions sum their gradients in another order.
NMS, ROI_ALIGN = {"nms"}, {"roi_align_forward", "roi_align_backward"}
DCN_V1 = {"deform_conv_forward", "deform_conv_backward_input", "deform_conv_backward_parameters"}
DCN_V2 = {"modulated_deform_conv_forward", "modulated_deform_conv_backward"}
DETECTORS: dict[str, tuple[set[str], float]] = {
    "retinanet/retinanet_r18_fpn_1x_coco.py": (NMS, 0.0),
    "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py": (NMS, 0.0),
    "faster_rcnn/faster-rcnn_r50_fpn_soft-nms_1x_coco.py": (NMS | ROI_ALIGN | {"softnms"}, 0.0),
    "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py": (NMS | ROI_ALIGN, 0.0),
    "detr/detr_r50_8xb2-150e_coco.py": (set(), 0.0),
    "dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py": (NMS | ROI_ALIGN | DCN_V2, 1e-5),
    "reppoints/reppoints-moment_r50_fpn_1x_coco.py": (NMS | DCN_V1, 1e-5),
}
CLASSES = 4
# Widths and numbers of classes of mmdet's configs, and what they become: the operators are what is compared.
NARROW = {256: 32, 128: 16, 1024: 64, 2048: 64, 80: CLASSES}
# Untrained scores are low, and many boxes take long.
TESTING = dict(score_thr=0.0, nms_pre=100, max_per_img=20)


def narrow(node: Any) -> Any:
    """Copy a part of a config with fewer channels and boxes."""
    if isinstance(node, dict):
        return {key: TESTING[key] if key in TESTING else narrow(value) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(map(narrow, node))
    return NARROW.get(node, node) if isinstance(node, int) else node


def build(path: str) -> nn.Module:
    """Build a narrow detector of an mmdet config, with every parameter changed from its initial value."""
    model = ConfigDict(narrow(Config.fromfile(str(CONFIGS / path)).model.to_dict()))
    model.backbone.update(
        depth=18, base_channels=8, norm_cfg=dict(requires_grad=True), norm_eval=False, frozen_stages=-1, init_cfg=None
    )
    model.neck.in_channels = [8, 16, 32, 64][-len(model.neck.in_channels) :]
    torch.manual_seed(0)
    detector = MODELS.build(model)
    detector.init_weights()
    return shake(detector)


class Called:
    """An extension module that records which of its operators are called."""

    def __init__(self, extension: Any) -> None:
        self.extension, self.names = extension, set()

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.names.add(name)
            return getattr(self.extension, name)(*args, **kwargs)

        return call


def compute(detector: nn.Module, extension: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Losses, gradients and predictions of a copy of the detector."""
    for name, module in list(sys.modules.items()):
        if name.startswith("mmcv.ops.") and hasattr(module, "ext_module"):
            monkeypatch.setattr(module, "ext_module", extension)
    detector = copy.deepcopy(detector)
    inputs = demo_mm_inputs(
        2, [(3, 96, 96)] * 2, num_items=[2, 3], num_classes=CLASSES, with_mask=True, use_box_type=False
    )
    torch.manual_seed(1)
    data = detector.data_preprocessor(copy.deepcopy(inputs), True)
    total, losses = detector.parse_losses(detector(**data, mode="loss"))
    total.backward()
    found = {f"loss {name}": torch.as_tensor(loss).detach() for name, loss in losses.items()}
    for name, parameter in detector.named_parameters():
        if parameter.grad is not None:
            found[f"gradient {name}"] = parameter.grad
    detector.eval()
    with torch.no_grad():
        samples = detector(**detector.data_preprocessor(copy.deepcopy(inputs), False), mode="predict")
    for index, sample in enumerate(samples):
        for name, value in sample.pred_instances.items():
            found[f"prediction {index} {name}"] = torch.as_tensor(value).float()
    return found


@pytest.mark.parametrize("path", DETECTORS)
def test_same_losses_gradients_and_predictions(path, bit_exact, monkeypatch):
    register_all_modules()
    operators, tolerance = DETECTORS[path]
    detector = build(path)
    mine, theirs = Called(make_extension()), Called(compiled)
    ours, expected = compute(detector, mine, monkeypatch), compute(detector, theirs, monkeypatch)
    assert mine.names & set(OPERATORS) == theirs.names & set(OPERATORS) == operators
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert value.isfinite().all(), name
        if tolerance:
            assert (ours[name] - value).abs().max() <= tolerance * value.abs().max(), name
        else:
            assert torch.equal(ours[name], value), name
    nonzero = [name for name, value in expected.items() if name.startswith("gradient") and value.any()]
    assert len(nonzero) > 0.95 * len(list(detector.parameters()))
    predictions = [value for name, value in expected.items() if name.startswith("prediction")]
    assert predictions
    assert all(len(value) for value in predictions)
    bit_exact("detectors without a compiler" if not tolerance else "detectors with DCN (within 1e-5)", path)
