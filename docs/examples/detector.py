"""Train mmdet's Mask R-CNN to detect coins, on any PyTorch and without a compiler.

``pip install ".[mmdet]" scikit-image && python docs/examples/detector.py`` takes some minutes on two cores. The
data are one photograph of 24 coins that scikit-image ships. The detector trains on the 12 in its upper half; what it
finds in the lower half it has never seen.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import skimage
from mmengine.config import Config
from mmengine.runner import Runner

import resnet_backbone.integrations.mmdet.operators  # noqa: F401 - before mmdet

MIDDLE = 150  # between the second and the third row of coins
SCORE = 0.7  # of the detections that are drawn


def find_coins(photo: np.ndarray) -> list[np.ndarray]:
    """Segment the coins as in scikit-image's documentation, and return their masks."""
    seeds = np.zeros_like(photo, dtype=int)
    seeds[photo < 30], seeds[photo > 150] = 1, 2
    coins = skimage.segmentation.watershed(skimage.filters.sobel(photo), seeds) == 2
    coins = skimage.morphology.opening(coins, skimage.morphology.disk(5))
    regions = skimage.measure.label(coins)
    masks = [regions == number for number in range(1, regions.max() + 1)]
    return [mask for mask in masks if 500 < mask.sum() < 5000]


def write_dataset(folder: Path, name: str, photo: np.ndarray, coins: list[np.ndarray]) -> None:
    """Write a photograph and its coins in COCO's format."""
    skimage.io.imsave(folder / f"{name}.png", np.stack([photo] * 3, axis=-1))
    annotations = []
    for number, mask in enumerate(coins, start=1):
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        outline = max(skimage.measure.find_contours(np.pad(mask, 1), 0.5), key=len)[::2, ::-1] - 1
        annotations.append(
            dict(
                id=number, image_id=0, category_id=0, iscrowd=0, area=int(mask.sum()),
                bbox=[int(side) for side in box], segmentation=[outline.ravel().tolist()],
            )
        )  # fmt: skip
    image = dict(id=0, file_name=f"{name}.png", height=photo.shape[0], width=photo.shape[1])
    contents = dict(images=[image], annotations=annotations, categories=[dict(id=0, name="coin")])
    (folder / f"{name}.json").write_text(json.dumps(contents))


def configure(folder: Path, steps: int) -> Config:
    """Return mmdet's Mask R-CNN config, changed for a small data set and a CPU."""
    import mmdet

    config = Config.fromfile(Path(mmdet.__file__).parent / ".mim/configs/mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py")
    model = config.model
    # A ResNet-18 with a quarter of the width and random weights, so no stage is frozen.
    model.backbone.update(
        depth=18, base_channels=16, frozen_stages=-1, norm_eval=False, zero_init_residual=False, init_cfg=None
    )
    model.neck.update(in_channels=[16, 32, 64, 128], out_channels=32)
    model.rpn_head.update(in_channels=32, feat_channels=32)
    head = model.roi_head
    head.bbox_roi_extractor.out_channels = head.mask_roi_extractor.out_channels = 32
    head.bbox_head.update(in_channels=32, fc_out_channels=128, num_classes=1)
    head.mask_head.update(in_channels=32, conv_out_channels=32, num_classes=1)
    model.train_cfg.rcnn.sampler.num = 64
    augmentation = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
        dict(type="RandomResize", scale=[(270, 110), (540, 220)], keep_ratio=True),
        dict(type="RandomFlip", prob=0.75, direction=["horizontal", "vertical", "diagonal"]),
        dict(type="PhotoMetricDistortion"),
        dict(type="PackDetInputs"),
    ]
    dataset: dict[str, Any] = dict(
        data_root=str(folder), data_prefix=dict(img=""), metainfo=dict(classes=("coin",), palette=[(255, 176, 0)])
    )
    config.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
    config.train_dataloader.sampler = dict(type="InfiniteSampler")
    config.train_dataloader.dataset.update(dataset, ann_file="upper.json", pipeline=augmentation)
    for loader in (config.val_dataloader, config.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.update(dataset, ann_file="lower.json")
        loader.dataset.pipeline[1] = dict(type="Resize", scale=(384, 384), keep_ratio=True)
    config.val_evaluator.ann_file = config.test_evaluator.ann_file = str(folder / "lower.json")
    config.merge_from_dict(
        dict(
            custom_imports=dict(imports=["resnet_backbone", "resnet_backbone.integrations.mmdet.operators"]),
            work_dir=str(folder / "work"),
            train_cfg=dict(_delete_=True, type="IterBasedTrainLoop", max_iters=steps, val_interval=steps),
            optim_wrapper=dict(
                _delete_=True, type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3), clip_grad=dict(max_norm=5)
            ),
            param_scheduler=[
                dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=20),
                dict(type="CosineAnnealingLR", by_epoch=False, begin=20, end=steps),
            ],
            default_hooks=dict(checkpoint=dict(by_epoch=False, interval=steps), logger=dict(interval=10)),
            log_processor=dict(by_epoch=False),
            randomness=dict(seed=0),
        )
    )
    return config


def draw(photo: np.ndarray, found: dict[str, Any], out: Path) -> None:
    """Draw masks, boxes and scores on the photograph."""
    from pycocotools import mask as coco_mask

    figure, axes = plt.subplots(figsize=(9.6, 7.6), dpi=110)
    axes.imshow(photo, cmap="gray")
    colors = plt.get_cmap("turbo")
    kept = [index for index, score in enumerate(found["scores"]) if score > SCORE]
    for place, index in enumerate(sorted(kept, key=lambda index: found["bboxes"][index][0])):
        color = colors(0.08 + 0.84 * place / max(1, len(kept) - 1))
        x1, y1, x2, y2 = found["bboxes"][index]
        mask = coco_mask.decode(found["masks"][index])
        axes.imshow(np.where(mask[..., None] > 0, (*color[:3], 0.45), 0.0))
        axes.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=color, linewidth=1.6))
        label = f"coin {found['scores'][index]:.2f}"
        axes.text(
            x1, y1 - 1.5, label, color="black", fontsize=7.5, va="bottom",
            bbox=dict(facecolor=color, edgecolor="none", pad=1.2, alpha=0.9),
        )  # fmt: skip
    axes.axhline(MIDDLE, color="white", linewidth=1.2, linestyle=(0, (6, 4)))
    for text, y, alignment in (("trained on", MIDDLE - 3, "bottom"), ("never seen", MIDDLE + 3, "top")):
        axes.text(3, y, text, color="white", fontsize=9, va=alignment)
    axes.set_axis_off()
    figure.subplots_adjust(0, 0, 1, 1)
    figure.savefig(out)


def main() -> None:
    """Train, measure on the lower half, and draw the detections on the whole photograph."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("detections.png"))
    arguments = parser.parse_args()
    photo = skimage.data.coins()
    coins = find_coins(photo)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for half, rows in (("upper", slice(0, MIDDLE)), ("lower", slice(MIDDLE, None)), ("all", slice(None))):
            write_dataset(folder, half, photo[rows], [coin[rows] for coin in coins if coin[rows].sum() > 250])
        config = configure(folder, arguments.steps)
        Runner.from_cfg(config).train()

        from mmdet.apis import DetInferencer

        config.dump(folder / "config.py")
        detector = DetInferencer(
            str(folder / "config.py"), str(folder / "work" / f"iter_{arguments.steps}.pth"), device="cpu"
        )
        found = detector(str(folder / "all.png"), no_save_vis=True, return_datasamples=False)["predictions"][0]
        draw(photo, found, arguments.out)
    print(f"{sum(score > SCORE for score in found['scores'])} coins found: {arguments.out}")


if __name__ == "__main__":
    main()
