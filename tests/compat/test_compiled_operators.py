"""Comparison of the operators that need no compiler with mmcv's compiled ones."""

from __future__ import annotations

import itertools
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from resnet_backbone.integrations.mmdet.extension import OPERATORS, make_extension

if find_spec("mmcv._ext") is None:
    pytest.skip("mmcv was not compiled", allow_module_level=True)

import mmcv
from mmcv import _ext as compiled

ours = make_extension()


def test_compiled_mmcv_is_used():
    assert compiled.__file__.endswith((".so", ".pyd"))


def boxes_and_scores(seed: int) -> tuple[Tensor, Tensor]:
    """Boxes that overlap, every other time with ties in the scores, every third time on whole pixels."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(0, 300, (), generator=generator))
    corner = torch.rand(count, 2, generator=generator) * 80
    boxes = torch.cat((corner, corner + torch.rand(count, 2, generator=generator) * 30), dim=1)
    scores = torch.rand(count, generator=generator)
    return boxes.round() if seed % 3 == 0 else boxes, (scores * 10).round() if seed % 2 else scores


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_keeps_the_same_boxes_in_the_same_order(offset, bit_exact):
    dropped = 0
    for seed, threshold in itertools.product(range(40), (0.3, 1 / 3, 0.7)):
        boxes, scores = boxes_and_scores(seed)
        kept = ours.nms(boxes, scores, iou_threshold=threshold, offset=offset)
        assert torch.equal(kept, compiled.nms(boxes, scores, iou_threshold=threshold, offset=offset))
        dropped += len(boxes) - len(kept)
    assert dropped > 1000
    bit_exact("operators", "nms")


def test_nms_match_groups_the_same_boxes(bit_exact):
    for seed in range(20):
        boxes, scores = boxes_and_scores(seed)
        dets = torch.cat((boxes, scores[:, None]), dim=1)
        groups = ours.nms_match(dets, iou_threshold=0.5)
        assert groups == compiled.nms_match(dets, iou_threshold=0.5)
    assert any(len(group) > 1 for group in groups)
    bit_exact("operators", "nms_match")


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", [0, 1, 2])
def test_soft_nms_keeps_the_same_boxes(method, offset, bit_exact):
    for seed in range(20):
        boxes, scores = boxes_and_scores(seed)
        scores = scores.sqrt()
        kept, rows = [], []
        for extension in (ours, compiled):
            dets = torch.zeros(len(boxes), 5)
            kept.append(
                extension.softnms(
                    boxes, scores, dets, iou_threshold=0.3, sigma=0.5, min_score=0.05, method=method, offset=offset
                )
            )
            rows.append(dets[: len(kept[-1])])
        assert torch.equal(*kept)
        if method == 2:
            # The exponential is the C library's in mmcv: its last bit may differ.
            torch.testing.assert_close(*rows, rtol=1e-6, atol=0, equal_nan=True)
        else:
            assert torch.equal(*(row.nan_to_num(-1) for row in rows))
            bit_exact("operators", "soft_nms")


@pytest.mark.parametrize(("mode", "aligned", "offset"), [*itertools.product((0, 1), (False, True), (0, 1))])
def test_bbox_overlaps(mode, aligned, offset, bit_exact):
    first, second = boxes_and_scores(1)[0], boxes_and_scores(2)[0]
    count = min(len(first), len(second))
    first, second = first[:count], second[:count] if aligned else second
    results = [torch.zeros(count) if aligned else torch.zeros(count, len(second)) for _ in range(2)]
    for extension, ious in zip((ours, compiled), results):
        extension.bbox_overlaps(first, second, ious, mode=mode, aligned=aligned, offset=offset)
    assert torch.equal(*results)
    assert results[0].any()
    bit_exact("operators", "bbox_overlaps")


@pytest.mark.parametrize(
    ("pool_mode", "aligned", "sampling_ratio"), [*itertools.product((0, 1), (False, True), (0, 2))], ids=str
)
def test_roi_align(pool_mode, aligned, sampling_ratio, bit_exact):
    features = torch.randn(2, 6, 20, 24)
    boxes, _ = boxes_and_scores(4)
    # Some lie partly outside, some have no area.
    boxes[:5] -= 20
    boxes[5, 2:] = boxes[5, :2]
    rois = torch.cat((torch.randint(0, 2, (len(boxes), 1)).float(), boxes), dim=1)
    bins = dict(aligned_height=3, aligned_width=5)
    options = dict(**bins, spatial_scale=0.3, sampling_ratio=sampling_ratio, pool_mode=pool_mode, aligned=aligned)
    grad = torch.randn(len(rois), 6, 3, 5)
    results = []
    for extension in (ours, compiled):
        output, row, column = (torch.zeros(len(rois), 6, 3, 5) for _ in range(3))
        grad_input = torch.zeros_like(features)
        extension.roi_align_forward(features, rois, output, row, column, **options)
        extension.roi_align_backward(grad, rois, row, column, grad_input, **options)
        results.append((output, row, column, grad_input))
    for name, mine, theirs in zip(("output", "argmax_y", "argmax_x", "grad_input"), *results):
        assert torch.equal(mine, theirs), name
    assert results[0][3].any()
    bit_exact("operators", "roi_align")


DEFORMABLE = [
    dict(stride=1, padding=1, dilation=1, groups=1, offset_groups=1),
    dict(stride=2, padding=1, dilation=1, groups=2, offset_groups=1),
    dict(stride=1, padding=2, dilation=2, groups=1, offset_groups=2),
]
# At zero every point of the padding lies exactly on the border, at whole pixels many do.
OFFSETS = {"zero": lambda offset: offset * 0, "whole pixels": torch.round, "any": lambda offset: offset}


@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("geometry", DEFORMABLE, ids=str)
def test_deformable_convolution(geometry, version, offsets):
    stride, padding, dilation = (geometry[name] for name in ("stride", "padding", "dilation"))
    features, weight = torch.randn(3, 8, 11, 13), torch.randn(12, 8 // geometry["groups"], 3, 3)
    height, width = ((size + 2 * padding - 2 * dilation - 1) // stride + 1 for size in features.shape[2:])
    offset = OFFSETS[offsets](torch.randn(3, geometry["offset_groups"] * 18, height, width) * 3)
    mask, bias = torch.rand(3, geometry["offset_groups"] * 9, height, width), torch.randn(12)
    layer = mmcv.ops.modulated_deform_conv2d if version == 2 else mmcv.ops.deform_conv2d
    module = sys.modules[layer.__self__.__module__]
    results = []
    for extension in (ours, compiled):
        inputs = [features, offset, weight] if version == 1 else [features, offset, mask, weight, bias]
        inputs = [tensor.clone().requires_grad_() for tensor in inputs]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "ext_module", extension)
            output = layer(*inputs, stride, padding, dilation, geometry["groups"], geometry["offset_groups"])
            grad = torch.sin(torch.arange(output.numel(), dtype=torch.float32)).view_as(output)
            results.append((output, *torch.autograd.grad(output, inputs, grad)))
    for mine, theirs in zip(*results):
        assert theirs.any()
        assert (mine - theirs).abs().max() <= 1e-6 * theirs.abs().max()


@pytest.mark.parametrize("stride", [1, 2])
def test_modulated_convolution_with_larger_maps(stride):
    """DyHead and GLIP pass the offsets of one level of the pyramid along with the features of the next."""
    features, weight = torch.randn(2, 4, 11, 13), torch.randn(6, 2, 3, 3)
    both = torch.randn(2, 54, 23, 25) * 2
    offset, mask = both[:, :36], both[:, 36:].sigmoid()
    module = sys.modules[mmcv.ops.modulated_deform_conv2d.__self__.__module__]
    results = []
    for extension in (ours, compiled):
        inputs = [tensor.clone().requires_grad_() for tensor in (features, offset, mask, weight)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "ext_module", extension)
            output = mmcv.ops.modulated_deform_conv2d(*inputs, None, stride, 1, 1, 2, 2)
            results.append((output, *torch.autograd.grad(torch.sin(output).sum(), inputs)))
    for mine, theirs in zip(*results):
        assert theirs.any()
        assert (mine - theirs).abs().max() <= 1e-6 * theirs.abs().max()


def test_operator_names_match_mmcv():
    assert set(OPERATORS) <= set(vars(compiled))
