"""What every evaluation protocol owes, found by its name: the sets that users have, and the same numbers again."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from belvedere import plugins
from belvedere.backbones.build import build_backbone
from belvedere.evaluate.contract import Result
from belvedere.evaluate.protocols import detection
from belvedere.evaluate.records import write_results
from belvedere.evaluate.suite import Given, evaluate_encoder
from belvedere.images.annotations import Annotations, Instance
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.masks import Masks
from belvedere.images.source import find_images
from belvedere.measure.encoder import Encoder
from tiny import tiles

NAMES = [
    pytest.param(name, marks=() if plugins.load("protocol", name).quick else pytest.mark.slow)
    for name in plugins.names("protocol")
]
# Labels of training and of test images; four photographs are cut into tiles, in turn.
SETS: dict[str, tuple[list[int], list[int]]] = {
    "two_classes": ([0, 1] * 12, [0, 1] * 5),
    "three_test_images": ([0, 1] * 12, [0, 1, 0]),
    "one_image_a_class": ([0, 1, 2, 3], [0, 1, 2, 3]),
    "a_class_missing_in_test": ([0, 1, 2, 3] * 6, [0, 1, 3] * 4),
    "a_class_missing_in_training": ([0, 1, 3] * 8, [0, 1, 2, 3] * 3),
    "one_class": ([2] * 12, [2] * 4),
}
# How little training will do, where all that is asked is what comes of a set.
LITTLE = {
    "detection": {"epochs": 1, "width": 8},
    "seg_fpn": {"epochs": 1, "width": 8},
    "finetune": {"epochs": 2},
    "linear": {"epochs": 4},
}
CLASSES = ["astronaut", "coffee", "cat", "rocket"]


def labelled(labels: list[int], first: int = 0) -> Canvases:
    """Tiles of the photograph that each label names."""
    every = tiles(first + 4 * len(labels))
    images = np.stack([every[first + 4 * i + label] for i, label in enumerate(labels)])
    canvases = open_canvases(find_images(images), 40, workers=1, progress=False)
    return replace(canvases, labels=np.array(labels), classes=CLASSES)


def masks(canvases: Canvases, folder: Path) -> Masks:
    """Light and dark pixels of each tile as two classes, and a void border."""
    folder.mkdir()
    for i in range(len(canvases)):
        mask = (canvases.pixels(i).mean(-1) > 100).astype(np.uint8)
        mask[0] = 255
        Image.fromarray(mask).save(folder / f"{i}.png")
    return Masks([folder / f"{i}.png" for i in range(len(canvases))], ["dark", "light"])


def objects(canvases: Canvases) -> Annotations:
    """The light part of each tile's left half as one object, with its outline; every third tile has none."""
    found: list[list[Instance]] = []
    for i in range(len(canvases)):
        height, width = canvases.sizes[i].tolist()
        half = width // 2
        ring = [2.0, 2.0, half, 2.0, half, height - 2.0, 2.0, height - 2.0]
        box = (2.0, 2.0, half - 2.0, height - 4.0)
        found.append([] if i % 3 == 2 else [Instance(i % 2, box, False, box[2] * box[3], [ring])])
    return Annotations(found, [tuple(size) for size in canvases.sizes.tolist()], ["even", "odd"])


def evaluate(name: str, kind: str, place: Path, seed: int = 0, again: str = "") -> Result:
    """The result of one protocol on one of the sets, with masks and images from elsewhere beside it."""
    train_labels, test_labels = SETS[kind]
    train, test = labelled(train_labels), labelled(test_labels, first=100)
    place = place / f"{kind}{again}"
    place.mkdir()
    given = Given(
        train,
        test,
        train_masks=masks(train, place / "train"),
        test_masks=masks(test, place / "test"),
        train_objects=objects(train),
        test_objects=objects(test),
        options={name: LITTLE[name]} if name in LITTLE else {},
        other=labelled([3, 3, 2, 2, 3, 2], first=200),
        seed=seed,
    )
    backbone = build_backbone("vit_tiny", size=(32, 32), channels=3, patch=8, width=32, depth=2, heads=2, seed=3)
    encoder = Encoder(backbone, (32, 32), [0.5] * 3, [0.25] * 3)
    (result,) = evaluate_encoder(encoder, given, [name], cache_dir=place / "features")
    return result


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """COCO's precision of a hundred draws takes most of a minute."""
    monkeypatch.setattr(detection, "DRAWS", 10)


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("name", NAMES)
def test_a_small_set_gives_a_result_or_one_sentence(name: str, kind: str, tmp_path: Path) -> None:
    result = evaluate(name, kind, tmp_path)
    error = result.settings.get("error")
    if error is not None:
        assert kind != "two_classes", error
        assert not re.match(r"\w+(Error|Exception|Warning)\b", error), error
        assert len(error.splitlines()) == 1
        return
    assert "run" in result.metrics
    for metrics in result.metrics.values():
        assert metrics
        for number in metrics.values():
            assert np.isfinite([number.value, number.low, number.high]).all()
            assert number.low <= number.high


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_file(name: str, tmp_path: Path) -> None:
    texts: list[dict[str, Any]] = []
    items: list[dict[str, np.ndarray]] = []
    for again in ("a", "b"):
        result = evaluate(name, "a_class_missing_in_test", tmp_path, again=again)
        write_results([result], tmp_path / f"{again}.json")
        text = json.loads((tmp_path / f"{again}.json").read_text())
        assert set(text.pop("seconds")) == {name}
        texts.append(text)
        with np.load(tmp_path / f"{again}.npz") as file:
            items.append(dict(file))
    assert texts[0] == texts[1]
    assert items[0].keys() == items[1].keys()
    assert all(np.array_equal(items[0][key], items[1][key]) for key in items[0])
