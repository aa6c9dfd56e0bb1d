"""The operators that need no compiler beside mmcv's compiled ones: ``python -m benchmarks.operators [--device cuda]``.

For each operator: milliseconds of a forward and, where there is one, a backward pass, and the largest difference of any
result in parts of the largest number in it. Needs compiled mmcv.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from mmcv import _ext as compiled
from mmcv import ops
from torch import Tensor

from resnet_backbone.integrations.mmdet.extension import make_extension


class Case(NamedTuple):
    """A call of one of mmcv's operators: the function and its arguments."""

    function: Callable[..., Any]
    inputs: tuple[Any, ...]


def make_boxes(count: int) -> Tensor:
    """Overlapping boxes, like a detector's proposals."""
    corner = torch.rand(count, 2) * 600
    return torch.cat((corner, corner + torch.rand(count, 2) * 200 + 1), dim=1)


def make_cases() -> dict[str, Case]:
    """Each operator with the sizes of a detector."""
    rois = torch.cat((torch.randint(0, 2, (512, 1)).float(), make_boxes(512)), dim=1)
    features, wide = torch.randn(2, 256, 50, 76), torch.randn(2, 128, 50, 76)
    shapes = torch.tensor([[50, 76], [25, 38], [13, 19]])
    starts = torch.tensor([0, 3800, 4750])
    offset, mask = torch.randn(2, 18, 50, 76), torch.rand(2, 9, 50, 76)
    weight, bias = torch.randn(128, 128, 3, 3) / 30, torch.randn(128)
    scores = torch.rand(2000)
    classes = torch.randint(0, 80, (2000,))
    dets = torch.cat((make_boxes(300), scores[:300, None]), dim=1)
    value, locations = torch.randn(2, 4997, 8, 32), torch.rand(2, 900, 8, 3, 4, 2)
    attention = torch.rand(2, 900, 8, 3, 4)
    logits, target = torch.randn(20000, 80), torch.randint(0, 81, (20000,))
    kernels = torch.rand(2, 25, 100, 152)
    nms = dict(type="nms", iou_threshold=0.5)
    return {
        "nms": Case(ops.nms, (make_boxes(2000), scores, 0.7)),
        "nms, offset 1": Case(ops.nms, (make_boxes(2000), scores, 0.7, 1)),
        "batched_nms": Case(ops.batched_nms, (make_boxes(2000), scores, classes, nms)),
        "soft_nms": Case(ops.soft_nms, (make_boxes(1000), scores[:1000])),
        "nms_match": Case(ops.nms_match, (dets, 0.5)),
        "bbox_overlaps": Case(ops.bbox_overlaps, (make_boxes(100), make_boxes(20000))),
        "roi_align": Case(ops.roi_align, (features, rois, 7, 1 / 16, 0)),
        "roi_align, maximum": Case(ops.roi_align, (features, rois, 7, 1 / 16, 2, "max")),
        "roi_pool": Case(ops.roi_pool, (features, rois, 7, 1 / 16)),
        "deform_roi_pool": Case(ops.deform_roi_pool, (features, rois, torch.randn(512, 2, 7, 7), (7, 7), 1 / 16, 2)),
        "deform_conv2d": Case(ops.deform_conv2d, (wide, offset, weight, 1, 1)),
        "modulated_deform_conv2d": Case(ops.modulated_deform_conv2d, (wide, offset, mask, weight, bias, 1, 1)),
        "deformable attention": Case(
            sys.modules["mmcv.ops.multi_scale_deform_attn"].MultiScaleDeformableAttnFunction.apply,
            (value, shapes, starts, locations, attention, 64),
        ),
        "sigmoid_focal_loss": Case(ops.sigmoid_focal_loss, (logits, target)),
        "softmax_focal_loss": Case(ops.softmax_focal_loss, (logits, target % 80)),
        "carafe": Case(ops.carafe, (wide, kernels, 5, 1, 2)),
        "masked_conv2d": Case(ops.masked_conv2d, (wide[:1], torch.rand(1, 50, 76) > 0.7, weight, bias, 1)),
    }


def run(case: Case, extension: Any, device: str, modules: list[Any]) -> list[Tensor]:
    """Call the operator with one of the extensions; return results and gradients."""
    for module in modules:
        module.ext_module = extension
    inputs = [value.to(device) if isinstance(value, Tensor) else value for value in case.inputs]
    leaves = [value.requires_grad_() for value in inputs if isinstance(value, Tensor) and value.is_floating_point()]
    found = case.function(*inputs)
    results = list(found) if isinstance(found, (tuple, list)) else [found]
    differentiable = [value for value in results if value.requires_grad and value.grad_fn is not None]
    if not differentiable or case.function in (
        ops.nms,
        ops.batched_nms,
        ops.soft_nms,
        ops.nms_match,
        ops.bbox_overlaps,
    ):
        return results
    output = differentiable[0]
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(output.shape, generator=generator).to(output)
    gradients = torch.autograd.grad(output, leaves, grad, allow_unused=True)
    return [output, *(gradient for gradient in gradients if gradient is not None)]


def measure(case: Case, extension: Any, device: str, modules: list[Any], repeats: int) -> float:
    """Median milliseconds of a call."""
    times = []
    for _ in range(repeats):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        run(case, extension, device, modules)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Largest difference relative to the largest number."""
    if len(ours) != len(theirs) or any(a.shape != b.shape for a, b in zip(ours, theirs)):
        return float("inf")
    parts = [
        ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-12)).item()
        for a, b in zip(ours, theirs)
        if a.numel()
    ]
    return max(parts, default=0.0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    modules = [module for name, module in sys.modules.items() if name.startswith("mmcv.ops.")]
    modules = [module for module in modules if hasattr(module, "ext_module")]
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {arguments.threads} thread(s)"
    print(f"torch {torch.__version__}, {device}; milliseconds, median of {arguments.repeats}\n")
    print("| operator | ours | mmcv | difference |\n| --- | --- | --- | --- |")
    extensions = (make_extension(), compiled)
    for name, case in make_cases().items():
        cells, results = [], []
        for extension in extensions:
            try:
                results.append(run(case, extension, arguments.device, modules))
                cells.append(f"{measure(case, extension, arguments.device, modules, arguments.repeats):.2f}")
            except RuntimeError as error:
                # mmcv implements many operators only for GPUs.
                cells.append("none" if "implementation for device" in str(error) else type(error).__name__)
        last = f"{difference(*results):.1e}" if len(results) == 2 else ""
        print(f"| {name} | {' | '.join(cells)} | {last} |", flush=True)


if __name__ == "__main__":
    main()
