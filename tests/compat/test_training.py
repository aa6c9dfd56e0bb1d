"""A detector of configs/ trains, resumes and detects with mmengine's Runner, bit-identical to mmdet's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mmdet
import mmdet.models.backbones.resnet as reference
import pytest
import torch
from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from shapes import CLASSES, SIDE, draw_data_set

import resnet_backbone
from resnet_backbone.integrations.mmdet.configs import config_path

CONFIG = "retinanet/retinanet_r18_fpn_1x_coco.py"
ITERATIONS, SHORT = 240, 12


class Losses(Hook):
    """Keeps the loss of each iteration."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs["loss"].item())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    draw_data_set(root, "train", 96, seed=0)
    draw_data_set(root, "val", 24, seed=1)
    return root


def config(data: Path, work_dir: Path, iterations: int, backbone: str = "ResNet") -> Config:
    """The config on generated images, without pretrained weights."""
    cfg = Config.fromfile(config_path(CONFIG))
    cfg.model.backbone.update(type=backbone, init_cfg=None, frozen_stages=-1, norm_eval=False)
    cfg.model.neck.update(out_channels=64)
    cfg.model.bbox_head.update(num_classes=len(CLASSES), in_channels=64, feat_channels=64, stacked_convs=1)
    for split, loader in (("train", cfg.train_dataloader), ("val", cfg.val_dataloader), ("val", cfg.test_dataloader)):
        loader.update(num_workers=0, persistent_workers=False, batch_size=4)
        loader.dataset.update(
            data_root=f"{data}/",
            ann_file=f"{split}.json",
            data_prefix=dict(img=f"{split}/"),
            metainfo=dict(classes=CLASSES),
        )
        # Checkpoints do not hold the state of NumPy's generator, and onedl-mmengine does not load the images a resumed
        # run skips: random flips would then differ from the uninterrupted run's.
        loader.dataset.pipeline = [step for step in loader.dataset.pipeline if step.type != "RandomFlip"]
        for transform in loader.dataset.pipeline:
            if transform.type == "Resize":
                transform.scale = (SIDE, SIDE)
    cfg.train_dataloader.sampler = dict(type="InfiniteSampler", shuffle=True)
    cfg.train_dataloader.batch_sampler = None
    cfg.test_dataloader.dataset.test_mode = True
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = str(data / "val.json")
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=iterations, val_interval=iterations)
    cfg.optim_wrapper = dict(optimizer=dict(type="AdamW", lr=1e-3, weight_decay=1e-4), clip_grad=dict(max_norm=10))
    cfg.param_scheduler = [dict(type="CosineAnnealingLR", T_max=ITERATIONS, by_epoch=False)]
    cfg.default_hooks.checkpoint = dict(type="CheckpointHook", by_epoch=False, interval=iterations // 2)
    cfg.default_hooks.logger.interval = 50
    cfg.randomness = dict(seed=3)
    cfg.env_cfg.mp_cfg.opencv_num_threads = 1
    cfg.vis_backends = []
    cfg.visualizer = dict(type="DetLocalVisualizer", vis_backends=[], name=f"visualizer_{work_dir.name}")
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = work_dir.name
    return cfg


def run(cfg: Config) -> tuple[Runner, list[float]]:
    """Train; return the runner and the loss of each iteration."""
    runner = Runner.from_cfg(cfg)
    hook = Losses()
    runner.register_hook(hook)
    runner.train()
    return runner, hook.losses


def checkpoint(work_dir: Path, iteration: int) -> dict:
    return torch.load(work_dir / f"iter_{iteration}.pth", map_location="cpu", weights_only=False)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    cfg = config(data, tmp_path_factory.mktemp("trained"), ITERATIONS)
    untrained = Runner.from_cfg(cfg).test()["coco/bbox_mAP_50"]
    cfg.experiment_name += "_"
    runner, losses = run(cfg)
    assert type(runner.model.backbone) is resnet_backbone.ResNet
    return cfg, runner, losses, untrained


def test_loss_decreases(trained):
    _, runner, losses, untrained = trained
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    found = runner.test()["coco/bbox_mAP_50"]
    assert untrained < 0.05
    assert found > 0.5


def test_inferencer_detects_the_shapes(trained, data, tmp_path):
    cfg, _, _, _ = trained
    cfg.dump(str(tmp_path / "config.py"))
    inferencer = DetInferencer(
        str(tmp_path / "config.py"),
        str(Path(cfg.work_dir) / f"iter_{ITERATIONS}.pth"),
        device="cpu",
        show_progress=False,
    )
    assert type(inferencer.model.backbone) is resnet_backbone.ResNet
    truth = json.loads((data / "val.json").read_text())
    right = 0
    for annotation in truth["annotations"]:
        image = data / "val" / truth["images"][annotation["image_id"]]["file_name"]
        (prediction,) = inferencer(str(image))["predictions"]
        x, y, width, height = annotation["bbox"]
        right += any(
            label == annotation["category_id"] and score > 0.3 and _iou(box, (x, y, x + width, y + height)) > 0.5
            for label, score, box in zip(prediction["labels"], prediction["scores"], prediction["bboxes"])
        )
    assert right > 0.5 * len(truth["annotations"])


def _iou(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    cfg = config(data, tmp_path_factory.mktemp("uninterrupted"), SHORT)
    _, losses = run(cfg)
    return Path(cfg.work_dir), losses


def test_losses_match_mmdet(data, tmp_path, uninterrupted):
    work_dir, losses = uninterrupted
    # A name that means mmdet's class, whatever is registered as ResNet.
    resnet_backbone.BACKBONES.register_module(name="TheirResNet", module=reference.ResNet, force=True)
    runner, theirs = run(config(data, tmp_path / "theirs", SHORT, backbone="TheirResNet"))
    assert type(runner.model.backbone) is reference.ResNet
    assert not issubclass(reference.ResNet, resnet_backbone.ResNet)
    assert len(losses) == SHORT
    assert losses == theirs
    _assert_same(checkpoint(work_dir, SHORT), checkpoint(tmp_path / "theirs", SHORT))


def test_resumed_run_matches_an_uninterrupted_one(data, tmp_path, uninterrupted):
    work_dir, losses = uninterrupted
    cfg = config(data, tmp_path / "resumed", SHORT)
    cfg.resume, cfg.load_from = True, str(work_dir / f"iter_{SHORT // 2}.pth")
    _, rest = run(cfg)
    assert rest == losses[SHORT // 2 :]
    _assert_same(checkpoint(work_dir, SHORT), checkpoint(tmp_path / "resumed", SHORT))


def _assert_same(one: dict, other: dict) -> None:
    """Both checkpoints hold the same weights, statistics and optimizer state, to the last bit."""
    assert list(one["state_dict"]) == list(other["state_dict"])
    for name, value in one["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name]), name
    states = [part["optimizer"]["state"] for part in (one, other)]
    assert states[0].keys() == states[1].keys()
    for index, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][index][name])), (index, name)


def test_train_tool_runs_our_config(data, tmp_path):
    tool = Path(mmdet.__file__).parent / ".mim" / "tools" / "train.py"
    options = ["model.backbone.init_cfg=None", "train_cfg.max_epochs=1"]
    for split, loader in (("val", "train_dataloader"), ("val", "val_dataloader")):
        options += [
            f"{loader}.num_workers=0",
            f"{loader}.persistent_workers=False",
            f"{loader}.dataset.data_root={data}/",
            f"{loader}.dataset.ann_file={split}.json",
            f"{loader}.dataset.data_prefix.img={split}/",
            f"{loader}.dataset.metainfo.classes=('circle','square','triangle')",
        ]
    options += ["train_dataloader.batch_size=8", f"train_dataloader.dataset.pipeline.2.scale=({SIDE},{SIDE})"]
    options += [f"val_dataloader.dataset.pipeline.1.scale=({SIDE},{SIDE})"]
    options += [f"val_evaluator.ann_file={data}/val.json"]
    command = [sys.executable, str(tool), config_path(CONFIG), "--work-dir", str(tmp_path), "--cfg-options", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    saved = torch.load(tmp_path / "epoch_1.pth", map_location="cpu", weights_only=False)
    assert saved["meta"]["iter"] == 3  # 24 images, 8 a step
    assert "backbone.layer4.1.conv2.weight" in saved["state_dict"]
