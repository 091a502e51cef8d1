"""Boxes and tents on a dark ground, in COCO's form: something that a detector learns in a minute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

HEIGHT, WIDTH = 64, 80
CATEGORIES = [{"id": 7, "name": "tent"}, {"id": 3, "name": "box"}]


def draw_shapes(root: Path, train: int = 24, val: int = 8, outlines: bool = True) -> Path:
    """`images/train`, `images/val`, `annotations/instances_train.json` and `..._val.json` below `root`."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        (root / "images" / split).mkdir(parents=True)
        content: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": CATEGORIES}
        for i in range(count):
            picture = Image.new("RGB", (WIDTH, HEIGHT), (40, 40, 40))
            for _ in range(int(rng.integers(1, 3))):
                content["annotations"].append(_shape(picture, rng, i, len(content["annotations"]) + 1, outlines))
            picture.save(root / "images" / split / f"{i:03}.png")
            content["images"].append({"id": i, "file_name": f"{i:03}.png", "width": WIDTH, "height": HEIGHT})
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def _shape(picture: Image.Image, rng: np.random.Generator, image: int, number: int, outlines: bool) -> dict[str, Any]:
    draw = ImageDraw.Draw(picture)
    w, h = (int(side) for side in rng.integers(16, 30, 2))
    x, y = int(rng.integers(0, WIDTH - w)), int(rng.integers(0, HEIGHT - h))
    if rng.integers(2):
        draw.rectangle((x, y, x + w - 1, y + h - 1), fill=(220, 60, 60))
        category, outline = 3, [x, y, x + w, y, x + w, y + h, x, y + h]
    else:
        draw.polygon([(x, y + h - 1), (x + w // 2, y), (x + w - 1, y + h - 1)], fill=(60, 60, 230))
        category, outline = 7, [x, y + h, x + w / 2, y, x + w, y + h]
    found = {"id": number, "image_id": image, "category_id": category, "bbox": [x, y, w, h], "iscrowd": 0}
    return found | ({"segmentation": [outline]} if outlines else {})
