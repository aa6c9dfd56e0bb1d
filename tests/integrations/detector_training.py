"""Script of test_detector: train, resume and apply mmdet's detectors on rectangles and discs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image, ImageDraw

import resnet_backbone.integrations.mmdet.operators  # noqa: F401 - before mmdet

SIZE = 64
CLASSES = ("rectangle", "disc")
STEPS = 60
DETECTORS = {
    "RetinaNet": "retinanet/retinanet_r18_fpn_1x_coco.py",
    "Mask R-CNN": "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
}


def make_images(folder: Path, count: int, seed: int) -> None:
    """Write images with one or two shapes each, and their annotations in COCO's format."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    images, annotations = [], []
    for index in range(count):
        image = Image.fromarray(rng.integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8))
        draw = ImageDraw.Draw(image)
        for left in (2, SIZE // 2 + 2)[: rng.integers(1, 3)]:
            width, height = rng.integers(20, 28, 2)
            if category := int(rng.integers(0, 2)):
                height = width
            x, y = left + int(rng.integers(0, 2)), int(rng.integers(2, SIZE - height - 2))
            box = [x, y, x + int(width), y + int(height)]
            shape, color = (draw.ellipse, (40, 220, 90)) if category else (draw.rectangle, (230, 60, 60))
            shape(box, fill=color)
            polygon = [box[0], box[1], box[2], box[1], box[2], box[3], box[0], box[3]]
            size = [int(width), int(height)]
            annotations.append(
                dict(id=len(annotations) + 1, image_id=index, category_id=category, bbox=[x, y, *size], iscrowd=0,
                     area=size[0] * size[1], segmentation=[polygon])
            )  # fmt: skip
        image.save(folder / f"{index}.png")
        images.append(dict(id=index, file_name=f"{index}.png", width=SIZE, height=SIZE))
    categories = [dict(id=index, name=name) for index, name in enumerate(CLASSES)]
    (folder / "coco.json").write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))


def configure(name: str, folder: Path) -> Config:
    """mmdet's config, with narrow networks, for the shapes."""
    import mmdet

    config = Config.fromfile(str(Path(mmdet.__file__).parent / ".mim" / "configs" / DETECTORS[name]))
    model = config.model
    model.backbone.update(
        depth=18, base_channels=8, frozen_stages=-1, norm_eval=False, init_cfg=None, zero_init_residual=False
    )
    model.neck.update(in_channels=[8, 16, 32, 64], out_channels=16)
    for key in ("bbox_head", "rpn_head"):
        if key in model:
            model[key].update(in_channels=16, feat_channels=16)
    if "bbox_head" in model:
        model.bbox_head.update(num_classes=2, stacked_convs=1)
    if "roi_head" in model:
        head = model.roi_head
        head.bbox_roi_extractor.out_channels = head.mask_roi_extractor.out_channels = 16
        head.bbox_head.update(in_channels=16, fc_out_channels=32, num_classes=2)
        head.mask_head.update(in_channels=16, conv_out_channels=16, num_classes=2)
        model.train_cfg.rcnn.sampler.num = 32
        model.train_cfg.rpn_proposal.nms_pre = model.train_cfg.rpn_proposal.max_per_img = 50
    resize = dict(type="Resize", scale=(SIZE, SIZE), keep_ratio=True)
    for split in ("train", "val", "test"):
        loader = config[f"{split}_dataloader"]
        dataset = loader.dataset
        dataset.update(
            data_root=str(folder / ("train" if split == "train" else "val")), ann_file="coco.json",
            data_prefix=dict(img=""), metainfo=dict(classes=CLASSES),
        )  # fmt: skip
        dataset.pipeline = [resize if step["type"] == "Resize" else step for step in dataset.pipeline]
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
        if split != "train":
            config[f"{split}_evaluator"].ann_file = str(folder / "val" / "coco.json")
    config.merge_from_dict(
        dict(
            custom_imports=dict(imports=["resnet_backbone", "resnet_backbone.integrations.mmdet.operators"]),
            work_dir=str(folder / name),
            train_cfg=dict(_delete_=True, type="IterBasedTrainLoop", max_iters=STEPS, val_interval=STEPS),
            optim_wrapper=dict(_delete_=True, type="OptimWrapper", optimizer=dict(type="AdamW", lr=4e-3),
                               clip_grad=dict(max_norm=5)),
            param_scheduler=[dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=10)],
            default_hooks=dict(checkpoint=dict(by_epoch=False, interval=STEPS // 2), logger=dict(interval=20)),
            log_level="WARNING",
            randomness=dict(seed=0),
            visualizer=dict(vis_backends=[]),
        )
    )  # fmt: skip
    return config


def run(name: str, folder: Path) -> dict[str, float]:
    """Train, repeat the second half from the checkpoint between, and detect."""
    from mmdet.apis import DetInferencer

    torch.manual_seed(0)
    config = configure(name, folder)
    runner = Runner.from_cfg(config.copy())
    assert type(runner.model.backbone).__module__ == "resnet_backbone.resnet"
    runner.train()
    first = runner.message_hub.get_scalar("val/coco/bbox_mAP_50").current()
    masks = runner.message_hub.log_scalars.get("val/coco/segm_mAP_50")

    resumed_config = config.copy()
    resumed_config.update(load_from=str(folder / name / f"iter_{STEPS // 2}.pth"), resume=True)
    resumed_config.work_dir = str(folder / f"{name}, resumed")
    resumed = Runner.from_cfg(resumed_config)
    resumed.train()
    assert resumed.iter == STEPS
    second = resumed.message_hub.get_scalar("val/coco/bbox_mAP_50").current()

    config.dump(str(folder / "config.py"))
    inferencer = DetInferencer(
        str(folder / "config.py"), str(folder / name / f"iter_{STEPS}.pth"), device="cpu", show_progress=False
    )
    image = str(folder / "val" / "0.png")
    result = inferencer(image, out_dir=str(folder / "drawn"), pred_score_thr=0.3)["predictions"][0]
    assert (folder / "drawn" / "vis" / "0.png").stat().st_size
    return dict(
        bbox=float(first),
        segm=float(masks.current()) if masks else -1.0,
        resumed=float(second),
        best_score=max(result["scores"]),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    make_images(out / "train", 64, seed=0)
    make_images(out / "val", 12, seed=1)
    for detector in DETECTORS:
        print(json.dumps({"detector": detector, **run(detector, out)}), flush=True)
