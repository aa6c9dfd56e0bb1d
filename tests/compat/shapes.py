"""A small COCO data set: colored shapes drawn on crops of a photograph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib import cbook
from PIL import Image, ImageDraw

CLASSES = ("circle", "square", "triangle")
COLORS = ((220, 40, 40), (40, 200, 60), (50, 80, 230))
SIDE = 128


def draw_data_set(root: Path, split: str, count: int, seed: int) -> Path:
    """Write images to ``root/split`` and their boxes to ``root/split.json``; return the latter."""
    generator = np.random.default_rng(seed)
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        photo = Image.open(file).convert("RGB")
    (root / split).mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        left, top = (int(generator.integers(0, side - SIDE)) for side in photo.size)
        image = photo.crop((left, top, left + SIDE, top + SIDE))
        for box, kind in _shapes(generator):
            _draw(ImageDraw.Draw(image), box, kind)
            size = box[2] - box[0]
            annotations.append(dict(
                id=len(annotations), image_id=number, category_id=kind, bbox=[box[0], box[1], size, size],
                area=size * size, iscrowd=0,
            ))  # fmt: skip
        image.save(root / split / f"{number}.png")
        images.append(dict(id=number, file_name=f"{number}.png", width=SIDE, height=SIDE))
    categories = [dict(id=kind, name=name) for kind, name in enumerate(CLASSES)]
    file = root / f"{split}.json"
    file.write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    return file


def _shapes(generator: np.random.Generator) -> list[tuple[tuple[int, int, int, int], int]]:
    """One shape on the left, one on the right, so that none hides the other."""
    found = []
    for half in (0, 64):
        size = int(generator.integers(28, 56))
        x, y = half + int(generator.integers(0, 64 - size)), int(generator.integers(0, SIDE - size))
        found.append(((x, y, x + size, y + size), int(generator.integers(len(CLASSES)))))
    return found


def _draw(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], kind: int) -> None:
    x1, y1, x2, y2 = box
    if CLASSES[kind] == "circle":
        draw.ellipse(box, fill=COLORS[kind])
    elif CLASSES[kind] == "square":
        draw.rectangle(box, fill=COLORS[kind])
    else:
        draw.polygon([(x1, y2), (x2, y2), ((x1 + x2) // 2, y1)], fill=COLORS[kind])
