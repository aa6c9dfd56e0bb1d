"""Whole detectors of mmdet with its backbone and with ours: ``python -m benchmarks.detectors --json FILE``.

Each detector is built from mmdet's own config, with random weights, and computes the same in every row: the features of
its backbone are compared before anything is timed. Needs mmdet 3.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .bench.measure import milliseconds, peak_bytes
from .bench.report import machine
from .bench.settings import DTYPES

__all__ = ["DETECTORS", "ROWS", "main"]

DETECTORS = {
    "Faster R-CNN R50-FPN": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "RetinaNet R18-FPN": "retinanet/retinanet_r18_fpn_1x_coco.py",
    "DETR R50": "detr/detr_r50_8xb2-150e_coco.py",
    "Mask R-CNN X101-64x4d-FPN": "mask_rcnn/mask-rcnn_x101-64x4d_fpn_1x_coco.py",
}
# Each a backbone's arguments in the config, and whether it is compiled inside the eager detector.
ROWS: dict[str, tuple[dict[str, bool], bool]] = {
    "mmdet": ({}, False),
    "exact": ({}, False),
    "folded": (dict(fold_norm=True), False),
    "folded, channels_last": (dict(fold_norm=True, channels_last=True), False),
    "folded, channels_last, compiled": (dict(fold_norm=True, channels_last=True), True),
}
BASELINE = "mmdet"
# Of the features. Losses are not compared: rounding can change the order of the proposals, and so which are sampled.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
COLORS = dict(zip(ROWS, ("#8d99ae", "#c9cfd8", "#e8a0a9", "#d1495b", "#8f2d3a")))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each detector, print a table, and write the requested files after each.

    Args:
        argv: The arguments after the program's name; ``None`` means those of the process.

    Returns:
        The exit status, 0.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detectors", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(DETECTORS), default=list(DETECTORS), metavar="DETECTOR")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=list(TOLERANCE), default="fp32", help="half precision means autocast")
    parser.add_argument("--batch", type=int, default=1, metavar="N")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 480), metavar=("H", "W"))
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timings of each row (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write all measurements")
    parser.add_argument("--plot", metavar="FILE", help="draw a picture")
    arguments = parser.parse_args(argv)

    conditions = {name: getattr(arguments, name) for name in ("device", "dtype", "batch", "size", "repeats")}
    tables: list[dict[str, Any]] = []
    for detector in arguments.only:
        for task, results in _measure(detector, [BASELINE, *arguments.rows], arguments):
            tables.append({"detector": detector, "task": task, "results": results})
            _print(tables[-1])
            if arguments.json:
                written = {"machine": machine(), "conditions": conditions, "tables": tables}
                Path(arguments.json).write_text(json.dumps(written, indent=1) + "\n")
            if arguments.plot:
                _plot(tables, conditions, arguments.plot)
    return 0


def _measure(detector: str, rows: Sequence[str], conditions: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Yield the two tasks of a detector, each with the rows' milliseconds, peak memory and largest difference."""
    models = _build(detector, list(dict.fromkeys(rows)), conditions.device)
    errors = _compare(detector, models, conditions)
    for task, make_step in (("training step", _training_step), ("inference", _inference)):
        steps = {row: make_step(model, conditions) for row, model in models.items()}
        results: dict[str, dict[str, Any]] = {}
        for row, step in steps.items():
            step()
            peak = peak_bytes(step, conditions.device)
            results[row] = {"milliseconds": [], "peak_bytes": peak, "error": errors[row]}
        for _ in range(conditions.repeats):
            for row, step in steps.items():
                results[row]["milliseconds"].append(milliseconds(step, conditions.device))
        yield task, results


def _compare(detector: str, models: dict[str, nn.Module], conditions: argparse.Namespace) -> dict[str, float]:
    """Return how far the features of each row are from the baseline's, relative to their norm."""
    errors: dict[str, float] = {}
    expected: Sequence[torch.Tensor] = ()
    model: Any
    for row, model in models.items():
        images, _ = _inputs(model, conditions, training=True)
        with torch.no_grad(), _autocast(conditions):
            levels = model.train().backbone(images)
        expected = levels if row == BASELINE else expected
        errors[row] = max(float((level - of).norm() / of.norm()) for level, of in zip(levels, expected, strict=True))
        if not errors[row] <= TOLERANCE[conditions.dtype]:
            raise RuntimeError(f"{detector}, {row}: the features differ from {BASELINE}'s by {errors[row]:.1e}")
    return errors


def _autocast(conditions: argparse.Namespace) -> torch.autocast:
    return torch.autocast(conditions.device, DTYPES[conditions.dtype], enabled=conditions.dtype != "fp32")


def _build(detector: str, rows: Sequence[str], device: str) -> dict[str, nn.Module]:
    """Build the detector for each row, with the same weights."""
    from mmdet.models import backbones as mmdet
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.hub import get_config
    from mmengine.logging import MMLogger

    import resnet_backbone

    register_all_modules()
    MMLogger.get_current_instance().setLevel("WARNING")
    models: dict[str, nn.Module] = {}
    for row in rows:
        config = get_config(f"mmdet::{DETECTORS[detector]}").model
        config.backbone.pop("init_cfg", None)
        library = mmdet if row == BASELINE else resnet_backbone
        arguments, compiled = ROWS[row]
        config.backbone.update(arguments, type=getattr(library, config.backbone.type))
        torch.manual_seed(0)
        model = MODELS.build(config)
        if row == BASELINE:
            model.init_weights()
        else:
            model.load_state_dict(models[BASELINE].state_dict())
        if compiled:
            model.backbone.compile()
        models[row] = model.to(device)
    return models


def _inputs(model: Any, conditions: argparse.Namespace, training: bool) -> Any:
    from mmdet.testing import demo_mm_inputs

    torch.manual_seed(0)
    shape = (3, *conditions.size)
    data = demo_mm_inputs(
        conditions.batch, [shape] * conditions.batch, num_items=[8] * conditions.batch, num_classes=80, with_mask=True
    )
    prepared = model.data_preprocessor(data, training)
    return prepared["inputs"], prepared["data_samples"]


def _training_step(model: Any, conditions: argparse.Namespace) -> Callable[[], None]:
    """Return a function that computes losses and gradients."""
    data = _inputs(model, conditions, training=True)

    def step() -> None:
        model.train()
        # What the detector samples, and drops, is drawn from the same numbers in every row.
        torch.manual_seed(0)
        with _autocast(conditions):
            losses = model.loss(*data)
        terms = [term.sum() for value in losses.values() for term in (value if isinstance(value, list) else [value])]
        torch.autograd.backward(torch.stack([term for term in terms if term.requires_grad]).float().sum())
        model.zero_grad(set_to_none=True)

    return step


def _inference(model: Any, conditions: argparse.Namespace) -> Callable[[], Any]:
    data = _inputs(model, conditions, training=False)

    def step() -> Any:
        model.eval()
        with torch.no_grad(), _autocast(conditions):
            return model.predict(*data)

    return step


def _print(table: dict[str, Any]) -> None:
    print(f"\n{table['detector']}, {table['task']}: milliseconds, speed-up, peak megabytes, relative to mmdet's")
    baseline = table["results"][BASELINE]
    for row, result in table["results"].items():
        median = statistics.median(result["milliseconds"])
        print(
            f"{row:32} {median:9.1f} {statistics.median(baseline['milliseconds']) / median:6.2f}"
            f" {result['peak_bytes'] / 1e6:9.1f} {result['peak_bytes'] / baseline['peak_bytes']:6.2f}",
            flush=True,
        )


def _plot(tables: Sequence[dict[str, Any]], conditions: dict[str, Any], file: str) -> None:
    """Draw time and peak memory of every row, relative to mmdet's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 0.9 * len(tables) + 1.4), dpi=150, layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, quantity in zip(axes, ("milliseconds", "peak_bytes")):
        for place, table in enumerate(reversed(tables)):
            results = table["results"]
            values = {
                row: statistics.median(result[quantity]) if quantity == "milliseconds" else result[quantity]
                for row, result in results.items()
            }
            height = 0.8 / len(values)
            for index, (row, value) in enumerate(values.items()):
                y = place + 0.4 - (index + 0.5) * height
                ax.barh(y, value / values[BASELINE], height=height, color=COLORS[row], label=row if not place else None)
                text = f" {value:.0f} ms" if quantity == "milliseconds" else f" {value / 1e6:.0f} MB"
                ax.text(value / values[BASELINE], y, text, va="center", fontsize=6.5)
        ax.set_yticks(range(len(tables)), [f"{table['detector']}\n{table['task']}" for table in reversed(tables)])
        ax.tick_params(labelsize=8)
        ax.set_title(f"{'time' if quantity == 'milliseconds' else 'peak memory'} relative to mmdet", fontsize=9)
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    size = "x".join(map(str, (conditions["batch"], 3, *conditions["size"])))
    described = machine()
    where = described.get("gpu", described["processor"]) if conditions["device"] == "cuda" else described["processor"]
    figure.suptitle(f"{size}, {conditions['dtype']}, {where}, torch {described['torch']}", fontsize=9)
    figure.savefig(file)


if __name__ == "__main__":
    raise SystemExit(main())
