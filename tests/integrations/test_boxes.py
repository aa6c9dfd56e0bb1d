"""Operators on boxes that run without compiled mmcv, compared with their definitions."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("torchvision")

from resnet_backbone.integrations.mmdet.extension import make_extension

ext = make_extension()


def random_boxes(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 20
    sizes = 4 + torch.rand(count, 2, generator=generator) * 12
    return torch.cat((corners, corners + sizes), dim=1), torch.rand(count, generator=generator)


def iou(one: list[float], other: list[float], offset: int = 0) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]) + offset)
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]) + offset)
    areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def groups(boxes: torch.Tensor, scores: torch.Tensor, threshold: float, offset: int = 0) -> list[list[int]]:
    """Each box that is kept, with the boxes that it suppresses."""
    found: list[list[int]] = []
    for index in scores.argsort(descending=True).tolist():
        for group in found:
            if iou(boxes[group[0]].tolist(), boxes[index].tolist(), offset) > threshold:
                group.append(index)
                break
        else:
            found.append([index])
    return found


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_nms(offset, threshold):
    boxes, scores = random_boxes(60)
    expected = [group[0] for group in groups(boxes, scores, threshold, offset)]
    assert 1 < len(expected) < 60
    assert ext.nms(boxes, scores, iou_threshold=threshold, offset=offset).tolist() == expected
    assert ext.nms(boxes[:0], scores[:0], iou_threshold=threshold, offset=offset).tolist() == []


def test_nms_match():
    boxes, scores = random_boxes(60)
    expected = groups(boxes, scores, 0.3)
    assert any(len(group) > 2 for group in expected)
    assert ext.nms_match(torch.cat((boxes, scores[:, None]), dim=1), iou_threshold=0.3) == expected


@pytest.mark.parametrize("method", [0, 1, 2])
@pytest.mark.parametrize("offset", [0, 1])
def test_soft_nms(method, offset):
    boxes, scores = random_boxes(30)
    left, expected = dict(enumerate(scores.tolist())), []
    while left:
        best = max(left, key=lambda index: left[index])
        expected.append((best, left.pop(best)))
        for index in left:
            overlap = iou(boxes[best].tolist(), boxes[index].tolist(), offset)
            if method == 2:
                left[index] *= math.exp(-(overlap**2) / 0.5)
            elif overlap >= 0.3:
                left[index] *= 1 - overlap if method == 1 else 0
        left = {index: score for index, score in left.items() if score >= 0.05}
    assert 1 < len(expected) < 30
    dets = boxes.new_empty(30, 5)
    kept = ext.softnms(boxes, scores, dets, iou_threshold=0.3, sigma=0.5, min_score=0.05, method=method, offset=offset)
    assert kept.tolist() == [index for index, _ in expected]
    torch.testing.assert_close(dets[: len(kept), :4], boxes[kept])
    torch.testing.assert_close(dets[: len(kept), 4], torch.tensor([score for _, score in expected]))


@pytest.mark.parametrize("offset", [0, 1])
def test_overlaps(offset):
    first, second = random_boxes(7, seed=1)[0], random_boxes(7, seed=2)[0]
    expected = torch.tensor([[iou(one, other, offset) for other in second.tolist()] for one in first.tolist()])
    assert 0 < expected.count_nonzero() < expected.numel()
    ious = torch.empty(7, 7)
    ext.bbox_overlaps(first, second, ious, mode=0, aligned=False, offset=offset)
    torch.testing.assert_close(ious, expected)
    aligned = torch.empty(7)
    ext.bbox_overlaps(first, second, aligned, mode=0, aligned=True, offset=offset)
    torch.testing.assert_close(aligned, expected.diagonal())
    areas = [((box[:, 2:] - box[:, :2]) + offset).prod(dim=1) for box in (first, second)]
    of_first = torch.empty(7, 7)
    ext.bbox_overlaps(first, second, of_first, mode=1, aligned=False, offset=offset)
    union = (areas[0][:, None] + areas[1]) / (1 + expected)
    torch.testing.assert_close(of_first, expected * union / areas[0][:, None])
