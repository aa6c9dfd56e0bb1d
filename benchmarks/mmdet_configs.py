"""Build every config that mmdet ships, and run one of each detector class: ``python -m benchmarks.mmdet_configs``.

Runs with mmcv's operators as they are here, compiled or ``resnet_backbone``'s, and prints what does not work, and why.
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

import resnet_backbone.integrations.mmdet.operators  # noqa: F401 - before mmdet
from resnet_backbone.integrations.mmdet import extension

CALLED: set[str] = set()


def watch_operators() -> None:
    """Record the operators that are called."""
    stand_in = sys.modules.get("mmcv._ext")
    if stand_in is None or stand_in.__spec__ is None or stand_in.__spec__.loader is not None:
        return

    def watched(name: str, operator: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            CALLED.add(name)
            return operator(*args, **kwargs)

        return call

    for name, operator in extension.OPERATORS.items():
        setattr(stand_in, name, watched(name, operator))


def read_models(folder: Path, only: list[str] | None) -> dict[str, Any]:
    """Return the ``model`` of every config (of some folders), without downloads."""
    models = {}
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        if "_base_" in name or (only and name.partition("/")[0] not in only):
            continue
        try:
            config = Config.fromfile(str(path), import_custom_modules=False)
        except Exception as error:  # noqa: BLE001 - a config is code
            print(f"not a config here: {name}: {explain(error)}")
            continue
        model = config.get("model")
        # Fragments, such as schedules in mmengine's new style, have none.
        if isinstance(model, dict) and "type" in model:
            models[name] = strip(model)
    return models


def strip(node: Any) -> Any:
    """Remove pretrained checkpoints."""
    if isinstance(node, dict):
        for key in [key for key, value in node.items() if is_download(key, value)]:
            node[key] = False if node[key] is True else None
        for value in node.values():
            strip(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            strip(value)
    return node


def is_download(key: str, value: Any) -> bool:
    """Whether a config's entry names a checkpoint."""
    if key == "init_cfg":
        return isinstance(value, dict) and value.get("type") == "Pretrained"
    return key in ("pretrained", "teacher_ckpt") and bool(value)


def build(model: Any, device: str) -> nn.Module:
    """Build a model; on 'meta' its weights take neither memory nor time."""
    from mmdet.registry import MODELS

    with torch.device(device):
        return MODELS.build(copy.deepcopy(model))  # type: ignore[no-any-return]


def build_all(models: dict[str, Any]) -> dict[str, str]:
    """Build each model; return the reasons of those that cannot be built."""
    reasons: dict[str, str] = {}
    known: dict[str, str] = {}
    for number, (name, model) in enumerate(models.items(), start=1):
        key = json.dumps(model, sort_keys=True, default=str)
        if key not in known:
            known[key] = ""
            try:
                build(model, "meta")
            except Exception:  # noqa: BLE001 - some compute while they are built, which 'meta' cannot
                try:
                    build(model, "cpu")
                except Exception as error:  # noqa: BLE001
                    known[key] = explain(error)
        if known[key]:
            reasons[name] = known[key]
        if number % 50 == 0:
            print(f"... {number} tried, {len(reasons)} failed", flush=True)
    return reasons


def predict_some(node: Any) -> Any:
    """Copy a part of a config with thresholds for which an untrained detector predicts a few boxes."""
    testing = {"score_thr": 0.0, "nms_pre": 100, "max_per_img": 20}
    if isinstance(node, dict):
        return type(node)({key: testing[key] if key in testing else predict_some(value) for key, value in node.items()})
    if isinstance(node, (list, tuple)):
        return type(node)(map(predict_some, node))
    return node


def run(model: Any, name: str) -> None:
    """Compute losses, all gradients and predictions of a model for small images."""
    from mmdet.testing import demo_mm_inputs, demo_track_inputs

    torch.manual_seed(0)
    detector = build(predict_some(model), "cpu")
    detector.init_weights()
    panoptic = "panoptic" in name or "maskformer" in name or "mask2former" in name
    if detector.__class__.__module__.startswith(("mmdet.models.mot", "mmdet.models.vis")):
        inputs = demo_track_inputs(1, 2, 1, image_shapes=[(3, 128, 128)], num_classes=1, with_mask=True)
    else:
        inputs = demo_mm_inputs(
            2, [(3, 128, 128)] * 2, num_items=[3, 2], num_classes=4, with_mask=True, with_semantic=True,
            use_box_type=True,
        )  # fmt: skip
        for sample in inputs["data_samples"]:
            if panoptic:
                sample.gt_sem_seg.sem_seg %= 133
            elif hasattr(sample, "gt_sem_seg"):
                sample.gt_sem_seg.sem_seg %= 80
    detector.train()
    data = detector.data_preprocessor(copy.deepcopy(inputs), True)
    loss, _ = detector.parse_losses(detector(**data, mode="loss"))
    assert torch.isfinite(loss), f"the loss is {loss}"
    loss.backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in detector.parameters())
    detector.eval()
    with torch.no_grad():
        data = detector.data_preprocessor(copy.deepcopy(inputs), False)
        assert len(detector(**data, mode="predict"))


def run_each_class(models: dict[str, Any], folders: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Run one config of each detector class (or folder); return which ran, and why others did not."""
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for name, model in models.items():
        groups[name.partition("/")[0] if folders else str(model["type"])].append(name)
    ran, reasons = {}, {}
    for group, names in sorted(groups.items()):
        # Small backbones first.
        names.sort(
            key=lambda name: (not any(small in name for small in ("r18", "tiny", "_s_", "-s_")), "r50" not in name)
        )
        for name in names[:3]:
            started = time.monotonic()
            CALLED.clear()
            try:
                run(models[name], name)
            except Exception as error:  # noqa: BLE001
                where = traceback.extract_tb(error.__traceback__)[-1]
                reasons[group] = f"{name}: {explain(error)} ({Path(where.filename).name}:{where.lineno})"
                continue
            ran[group] = name
            reasons.pop(group, None)
            operators = ", ".join(sorted(CALLED)) or "no operator"
            print(f"runs: {group} ({name}, {time.monotonic() - started:.0f} s): {operators}", flush=True)
            break
        else:
            print(f"DOES NOT RUN: {group}: {reasons[group]}", flush=True)
    return ran, reasons


def explain(error: Exception) -> str:
    """Describe an exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def main() -> None:
    """Print which configs build and which classes run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--skip-build", action="store_true", help="only run the classes")
    parser.add_argument("--skip-run", action="store_true", help="only build")
    parser.add_argument("--folders", action="store_true", help="run one config of each folder, not of each class")
    parser.add_argument("--only", nargs="*", help="only these folders")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    import mmdet
    from mmdet.utils import register_all_modules

    register_all_modules()
    watch_operators()
    folder = Path(mmdet.__file__).parent / ".mim"
    # Some configs name another, as seen from a checkout of mmdet; some synchronize batch norms.
    os.chdir(folder)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    models = read_models(folder / "configs", arguments.only)
    print(f"{len(models)} configs with a model", flush=True)
    if not arguments.skip_build:
        reasons = build_all(models)
        print(f"{len(models) - len(reasons)} of {len(models)} build")
        for reason, count in collections.Counter(reasons.values()).most_common():
            folders = sorted({name.partition("/")[0] for name, why in reasons.items() if why == reason})
            print(f"  {count} do not, in {', '.join(folders)}: {reason}")
    if not arguments.skip_run:
        ran, failed = run_each_class(models, arguments.folders)
        print(f"{len(ran)} of {len(ran) + len(failed)} run loss, backward and predict")
        for group, reason in failed.items():
            print(f"  {group} does not: {reason}")


if __name__ == "__main__":
    main()
