"""Which of mmdet's detector classes run here: ``python -m benchmarks.mmdet_classes``.

One config of each class computes losses, gradients and predictions of small random images, in a process of its own.
What is printed ends with the operators of mmcv's that were called, compiled ones or ``resnet_backbone``'s.
"""

from __future__ import annotations

import argparse
import collections
import copy
import logging
import multiprocessing
import sys
import time
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from torch import nn

from .mmdet_configs import OPERATORS, build, explain, operators_of, read_models

IMAGE = (3, 320, 320)


def watch_operators() -> set[str]:
    """Return a set that the names of the operators called from now on are added to."""
    called: set[str] = set()

    def watched(name: str, operator: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            called.add(name)
            return operator(*args, **kwargs)

        return call

    extension = sys.modules["mmcv._ext"]
    for name in OPERATORS:
        setattr(extension, name, watched(name, getattr(extension, name)))
    return called


def reduce(node: Any) -> Any:
    """Copy a part of a config, changed so that images are not padded and an untrained detector predicts a few boxes."""
    changes = {"score_thr": 0.0, "nms_pre": 100, "batch_augments": None}
    if isinstance(node, dict):
        return type(node)({key: changes.get(key, reduce(value)) for key, value in node.items()})
    if isinstance(node, (list, tuple)):
        return type(node)([reduce(value) for value in node])
    return node


def make_images(count: int, with_mask: bool) -> dict[str, Any]:
    """Return images with boxes, semantics, text, and masks for a detector that has them."""
    from mmdet.testing import demo_mm_inputs

    images = demo_mm_inputs(
        count, IMAGE, num_classes=2, with_mask=with_mask, with_semantic=True, use_box_type=True,
        texts=["person . bicycle"] * count, custom_entities=True,
    )  # fmt: skip
    for sample in images["data_samples"]:
        # The one class that every detector knows.
        sample.gt_instances.labels.zero_()
        sample.set_metainfo({"homography_matrix": torch.eye(3).numpy()})
    return images


def make_videos() -> dict[str, Any]:
    """Return a video of two frames."""
    from mmdet.testing import demo_track_inputs

    return demo_track_inputs(1, 2, [0], IMAGE, num_items=[4], num_classes=1, with_mask=True)  # type: ignore[no-any-return]


def make_people() -> dict[str, Any]:
    """Return images of two people, two of each."""
    from mmdet.structures import ReIDDataSample

    samples = [ReIDDataSample().set_gt_label(person) for person in (0, 0, 1, 1)]
    return {"inputs": [torch.randint(0, 255, (3, 256, 128)) for _ in samples], "data_samples": samples}


def make_inputs(detector: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a detector is trained on, and what it predicts from."""
    from mmdet.models import BaseMOTModel, BaseReID, FastRCNN, SemiBaseDetector
    from mmdet.testing import demo_mm_proposals

    if isinstance(detector, BaseReID):
        return make_people(), make_people()
    if isinstance(detector, BaseMOTModel):
        on_images = detector.data_preprocessor.use_det_processor
        return make_images(2, with_mask=False) if on_images else make_videos(), make_videos()
    with_mask = any("mask" in name or "panoptic" in name for name, _ in detector.named_modules())
    to_train, to_predict = make_images(2, with_mask), make_images(1, with_mask)
    if isinstance(detector, FastRCNN):
        for sample in (*to_train["data_samples"], *to_predict["data_samples"]):
            (sample.proposals,) = demo_mm_proposals([IMAGE], 100)
    if isinstance(detector, SemiBaseDetector):
        branches = ("sup", "unsup_teacher", "unsup_student")
        to_train = {key: {branch: copy.deepcopy(value) for branch in branches} for key, value in to_train.items()}
    return to_train, to_predict


def run(config: Any) -> str:
    """Compute losses, all gradients and predictions of a config's model; return what ran, and the operators called."""
    from mmdet.models import DeepSORT

    called = watch_operators()
    torch.manual_seed(0)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    detector = revert_sync_batchnorm(build(reduce(config)))
    detector.init_weights()
    for name, parameter in detector.named_parameters():
        # On a CPU, QueryInst cannot paste the masks of boxes that lie outside the image.
        if name.endswith("fc_reg.weight"):
            parameter.data *= 0.01
    # As set by the Runner: some losses depend on it.
    for key, value in {"iter": 0, "epoch": 0}.items():
        MessageHub.get_current_instance().update_info(key, value)
    to_train, to_predict = make_inputs(detector)
    # DeepSORT and similar trackers have no loss: their detectors and ReID networks are trained separately.
    steps = ["predict"] if isinstance(detector, DeepSORT) else ["loss", "backward", "predict"]
    if "loss" in steps:
        detector.train()
        loss, _ = detector.parse_losses(detector(**detector.data_preprocessor(to_train, True), mode="loss"))
        assert torch.isfinite(loss), f"the loss is {loss}"
        loss.backward()
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in detector.parameters())
    detector.eval()
    with torch.no_grad():
        assert detector(**detector.data_preprocessor(to_predict, False), mode="predict")
    foreseen = operators_of(detector, config)
    assert called <= foreseen, f"benchmarks.mmdet_configs does not foresee {called - foreseen}"
    return f"{', '.join(steps)}: {', '.join(sorted(called)) or 'no operator'}"


def send_result(sender: Connection, config: Any) -> None:
    """Send whether a config's model runs, and what ``run`` says, or why it does not."""
    try:
        sender.send((True, run(config)))
    except BaseException as error:  # noqa: BLE001
        where = traceback.extract_tb(error.__traceback__)[-1]
        sender.send((False, f"{explain(error)} ({Path(where.filename).name}:{where.lineno})"))


def run_apart(config: Any, seconds: float) -> tuple[bool, str]:
    """Run a config's model in another process, and end it after some time."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_result, args=(sender, config))
    process.start()
    sender.close()
    try:
        return receiver.recv() if receiver.poll(seconds) else (False, f"not done after {seconds:g} seconds")
    except EOFError:
        return False, "the process crashed"
    finally:
        process.kill()
        process.join()


def plainest(names: list[str]) -> str:
    """Return the config whose name promises the smallest backbone and the fewest extras."""
    small = ("r18", "tiny", "_s_", "swin-t_")
    # GLIP's configs for pretraining name no losses.
    return min(
        names,
        key=lambda name: ("pretrain" in name, not any(word in name for word in small), "r50" not in name, len(name)),
    )


def main() -> None:
    """Run a config of each class, or of those that are named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "names", nargs="*", help="classes, or configs such as carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py"
    )
    parser.add_argument("--seconds", type=float, default=300, help="time limit of each")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    models = read_models()
    classes = collections.defaultdict(list)
    for name, config in models.items():
        classes[str(config["type"])].append(name)
    count = 0
    for name in arguments.names or sorted(classes):
        path = name if name in models else plainest(classes[name])
        started = time.monotonic()
        ran, report = run_apart(models[path], arguments.seconds)
        count += ran
        label = "runs" if ran else "DOES NOT RUN"
        print(f"{label}: {models[path]['type']} ({path}, {time.monotonic() - started:.0f} s): {report}", flush=True)
    print(f"{count} of {len(arguments.names or classes)} run")


if __name__ == "__main__":
    main()
