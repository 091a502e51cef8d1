"""Pictures of the dense protocols: drawn from a real result, with captions, alternative texts and their numbers."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from belvedere.backbones.build import build_backbone
from belvedere.evaluate.suite import Given, prepare
from belvedere.images.canvases import open_canvases
from belvedere.images.masks import IGNORE, find_masks
from belvedere.images.source import find_images
from belvedere.measure.encoder import Encoder
from belvedere.report.protocols import draw_results
from belvedere.report.protocols._segmentation import class_colours, paint

PROTOCOLS = ["seg_knn", "seg_linear", "correspondence", "attention"]


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8") as text:
        return list(csv.DictReader(text))


@pytest.mark.parametrize(("count", "channels"), [(7, 3), (2, 1)])
def test_pictures_of_dense_protocols(tmp_path: Path, count: int, channels: int) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(count):
        height, width = (40, 60) if i % 2 else (52, 40)  # pictures of two shapes
        photo = skimage.data.astronaut()[60 * i : 60 * i + height, 150 : 150 + width]
        Image.fromarray(photo if channels == 3 else photo[..., 0]).save(tmp_path / "images" / f"{i}.png")
        mask = (photo[..., 0] > 120).astype(np.uint8)
        mask[:3] = IGNORE
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
    (tmp_path / "classes.txt").write_text("dark\n$light$\n", encoding="utf-8")
    canvases = open_canvases(find_images(tmp_path / "images"), 64, cache_dir=tmp_path, workers=1, progress=False)
    masks = find_masks(tmp_path, canvases.names, canvases.original)
    backbone = build_backbone("vit_tiny", size=(32, 32), channels=channels, patch=8, width=32, depth=1, heads=2, seed=3)
    encoder = Encoder(backbone, (32, 32), [0.5] * channels, [0.25] * channels)
    given = Given(canvases, canvases, train_masks=masks, test_masks=masks, floors=("untrained",))
    prepared = prepare(encoder, given, PROTOCOLS, "cpu", None)
    results = prepared.run()
    assert [one.settings.get("error") for one in results] == [None] * 4
    out = tmp_path / "out"
    draw_results(out, results, prepared.data)
    text = (out / "pictures.json").read_text(encoding="utf-8")
    for result in results:
        name = result.protocol
        assert f'"{name}.webp"' in text
        with Image.open(out / f"{name}.webp") as picture:
            shown = np.asarray(picture.convert("RGBA"))
        assert shown.shape[1] > 400
        assert (shown[..., 3] > 0).mean() > 0.4  # images and maps, not an empty page
    shares = rows_of(out / "seg_linear.csv")
    assert [(row["subject"], row["class"]) for row in shares][:2] == [("run", "dark"), ("run", "$light$")]
    linear = next(one for one in results if one.protocol == "seg_linear")
    assert np.mean([float(row["iou"]) for row in shares[:2]]) == pytest.approx(
        linear.metrics["run"]["miou"].value, abs=1e-3
    )
    lines = rows_of(out / "correspondence.csv")
    by_image: dict[str, list[int]] = {}
    for row in lines:
        by_image.setdefault(row["image"], []).append(int(row["within_one_cell"]))
    found = next(one for one in results if one.protocol == "correspondence").items["run"]["within1"]
    assert np.mean([np.mean(found) for found in by_image.values()]) == pytest.approx(found[:6].mean())
    heads = rows_of(out / "attention.csv")
    assert [row["head"] for row in heads[:3]] == ["mean", "1", "2"]


def test_colours_differ_and_what_is_left_out_is_white() -> None:
    for count in (2, 11, 20, 150):
        colours = class_colours(count)
        assert colours.shape == (count, 3)
        assert len(np.unique(colours.round(4), axis=0)) > 0.9 * count
    assert paint(np.array([[0, IGNORE]], np.uint8), class_colours(2))[0, 1].tolist() == [1, 1, 1]
