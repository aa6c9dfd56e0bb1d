"""mmcv's operators on boxes: non-maximum suppression in its variants, and overlaps.

The kept boxes and their order are those of compiled mmcv, ties included: scores are sorted by the same call, and
overlaps are computed and compared in single precision, in mmcv's order of operations.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .precision import at_least_single

__all__ = ["bbox_overlaps", "nms", "nms_match", "softnms"]

# About this many overlaps are computed at a time, to bound the memory.
OVERLAPS_PER_PART = 2**19


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Keep the boxes that no box with a higher score overlaps.

    Args:
        boxes: Boxes ``(x1, y1, x2, y2)``, shape ``(N, 4)``.
        scores: Scores, shape ``(N,)``.
        iou_threshold: A box goes if its intersection over union with a kept box is greater.
        offset: A box is ``x2 - x1 + offset`` wide.

    Returns:
        Indices of the kept boxes, by descending score.
    """
    order = scores.sort(0, descending=True)[1]
    if boxes.numel() == 0:
        return order
    boxes, scores = at_least_single(boxes[order], scores[order])
    if offset:
        # torchvision has no such offset, and adding it to x2 beforehand rounds differently.
        kept = [position for position, _ in _suppress(boxes, iou_threshold, offset, inclusive=False)]
        return order[torch.tensor(kept, device=order.device)]
    # torchvision sorts again, but stably. It compares in double precision; mmcv does not.
    return order[torch.ops.torchvision.nms(boxes, scores, float(np.float32(iou_threshold)))]


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Group boxes with the kept box that suppresses them.

    Args:
        dets: Boxes with scores ``(x1, y1, x2, y2, score)``, shape ``(N, 5)``.
        iou_threshold: A box goes if its intersection over union with a kept box is this or greater.

    Returns:
        For each kept box, by descending score, its index and the indices of those it suppressed.
    """
    order = dets[:, 4].sort(0, descending=True)[1]
    groups = _suppress(dets[order, :4], iou_threshold, offset=0, inclusive=True)
    ranks: list[int] = order.tolist()
    return [[ranks[kept], *(ranks[index] for index in suppressed)] for kept, suppressed in groups]


def _suppress(boxes: Tensor, iou_threshold: float, offset: int, inclusive: bool) -> Iterator[tuple[int, list[int]]]:
    """Walk boxes that are sorted by score; yield the position of each kept one, and of those it suppresses."""
    boxes = boxes.cpu()
    threshold = float(np.float32(iou_threshold))
    alive = np.ones(len(boxes), dtype=np.bool_)
    # Overlaps of many boxes with all that come later are computed at a time: NumPy then only has to mark.
    part = max(1, OVERLAPS_PER_PART // max(1, len(boxes)))
    start = 0
    while len(positions := start + np.flatnonzero(alive[start:])[:part]):
        start = int(positions[0])
        overlaps = _overlaps(boxes[torch.from_numpy(positions), None], boxes[start:], offset)
        suppressed = (overlaps >= threshold if inclusive else overlaps > threshold).numpy()
        for position, gone in zip(positions.tolist(), suppressed):
            if not alive[position]:
                continue
            gone &= alive[start:]
            gone[: position - start + 1] = False
            alive[start:][gone] = False
            yield position, (start + np.flatnonzero(gone)).tolist()
        start = int(positions[-1]) + 1


def _overlaps(first: Tensor, second: Tensor, offset: int) -> Tensor:
    """Intersection over union of boxes, broadcast."""
    intersection = _intersections(first, second, offset)
    return intersection / (_areas(first, offset) + _areas(second, offset) - intersection)


def _intersections(first: Tensor, second: Tensor, offset: int) -> Tensor:
    size = torch.min(first[..., 2:], second[..., 2:]) - torch.max(first[..., :2], second[..., :2]) + offset
    size = size.clamp(min=0)
    return size[..., 0] * size[..., 1]


def _areas(boxes: Tensor, offset: int) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0] + offset) * (boxes[..., 3] - boxes[..., 1] + offset)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the scores of boxes that overlap one with a higher score (Bodla et al., 2017), on the CPU.

    Args:
        boxes: Boxes, shape ``(N, 4)``, float32.
        scores: Scores, shape ``(N,)``.
        dets: Receives the kept boxes and their new scores, shape ``(N, 5)``.
        iou_threshold: Overlap from which methods 0 and 1 act.
        sigma: Width of method 2.
        min_score: Boxes whose score falls below it are dropped.
        method: 0 drops (scores become 0), 1 multiplies by ``1 - iou``, 2 by ``exp(-iou^2 / sigma)``.
        offset: A box is ``x2 - x1 + offset`` wide.

    Returns:
        Indices of the kept boxes, in the order of ``dets``.
    """
    if boxes.numel() == 0:
        return torch.empty(0, dtype=torch.int64)
    # Thousands of steps on small arrays: NumPy starts an operation several times as fast as PyTorch.
    x1, y1, x2, y2 = np.ascontiguousarray(boxes.numpy().T, dtype=np.float32)
    areas = (x2 - x1 + offset) * (y2 - y1 + offset)
    rows = np.stack((x1, y1, x2, y2, scores.numpy().astype(np.float32), areas))
    indices = np.arange(len(boxes))
    count, step = len(boxes), 0
    with np.errstate(divide="ignore", invalid="ignore"):
        while step < count:
            best = step + _first_maximum(rows[4, step:count])
            rows[:, [step, best]] = rows[:, [best, step]]
            indices[[step, best]] = indices[[best, step]]
            others = rows[:, step + 1 : count]
            others[4] *= _weights(rows[:, step], others, iou_threshold, sigma, method, offset)
            step += 1
            dropped = others[4] < np.float32(min_score)
            if dropped.any():
                alive = _compact(~dropped)
                others[:, : len(alive)] = others[:, alive]
                indices[step : step + len(alive)] = indices[step + alive]
                count = step + len(alive)
    dets[:count] = torch.from_numpy(rows[:5, :count].T)
    return torch.from_numpy(indices[:count])


Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Indices = np.ndarray[tuple[int, ...], np.dtype[np.intp]]


def _weights(box: Array, others: Array, iou_threshold: float, sigma: float, method: int, offset: int) -> Array:
    """What the scores of the other boxes are multiplied by. Rows are x1, y1, x2, y2, score and area."""
    width = np.maximum(np.float32(0), np.minimum(box[2], others[2]) - np.maximum(box[0], others[0]) + offset)
    height = np.maximum(np.float32(0), np.minimum(box[3], others[3]) - np.maximum(box[1], others[1]) + offset)
    intersection = width * height
    overlap = intersection / (box[5] + others[5] - intersection)
    if method == 2:
        # Nearest to the C library's, which rounds all but a few in a thousand correctly.
        decay: Array = np.exp((-(overlap * overlap) / np.float32(sigma)).astype(np.float64)).astype(np.float32)
        return decay
    lowered = np.float32(0) if method == 0 else np.float32(1) - overlap
    factor: Array = np.where(overlap >= np.float32(iou_threshold), lowered, np.float32(1))
    return factor


def _first_maximum(scores: Array) -> int:
    """Index of the highest score. NaN, the score of boxes of no area once it was lowered, counts only in front."""
    best = int(scores.argmax())
    if np.isnan(scores[best]):
        best = 0 if np.isnan(scores[0]) else int(np.nanargmax(scores))
    return best


def _compact(alive: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Indices:
    """Return the order in which mmcv leaves its boxes: the last box replaces each one that is dropped."""
    count = int(np.count_nonzero(alive))
    order = np.arange(count)
    order[~alive[:count]] = count + np.flatnonzero(alive[count:])[::-1]
    return order


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Compute the overlaps of two sets of boxes.

    Args:
        bboxes1: Boxes, shape ``(M, 4)``.
        bboxes2: Boxes, shape ``(N, 4)``.
        ious: Receives the overlaps: shape ``(M, N)``, or ``(M,)`` if ``aligned``.
        mode: 0 for intersection over union, 1 for intersection over the first box.
        aligned: Whether box i meets box i alone.
        offset: A box is ``x2 - x1 + offset`` wide.
    """
    first = bboxes1 if aligned else bboxes1[:, None]
    if mode == 1:
        ious.copy_(_intersections(first, bboxes2, offset) / _areas(first, offset))
    else:
        ious.copy_(_overlaps(first, bboxes2, offset))
