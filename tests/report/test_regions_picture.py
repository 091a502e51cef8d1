"""The picture of matched regions: a picture, and a table that says what the task matched."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from belvedere.backbones.build import build_backbone
from belvedere.measure.encoder import Encoder
from belvedere.report.drawing import LARGEST
from belvedere.report.pictures import draw_pictures
from belvedere.report.tasks.regions import _spread, draw
from tiny import tiny_canvases, tiny_trainer


def test_the_table_is_what_the_task_shows(tmp_path: Path, make_encoder: Callable[..., Encoder]) -> None:
    trainer, feed = tiny_trainer("dino", tasks=["regions"], views__size=[32, 48])
    shown = {name: x.float() for name, x in trainer.show(next(feed.stream(0, 1))[0])["regions"].items()}
    (picture,) = draw(tmp_path, shown, make_encoder())
    file = tmp_path / picture.file
    assert file.stat().st_size <= LARGEST
    assert np.ptp(np.asarray(Image.open(file).convert("RGB"))) > 100
    assert len(picture.caption) > 40
    assert "4 x 6" in picture.alt
    with (tmp_path / picture.table).open() as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 8 * 4 * 6
    for row in rows:
        n, region = int(row["image"]), int(row["region"])
        assert 6 * int(row["row"]) + int(row["column"]) == region
        assert 6 * int(row["row_of_match"]) + int(row["column_of_match"]) == int(shown["match"][n, region])
        assert abs(float(row["cosine"]) - float(shown["cosine"][n, region])) < 1e-5


def test_lines_are_spread_over_large_grids_and_all_drawn_on_small_ones() -> None:
    assert _spread((2, 3)) == list(range(6))
    large = _spread((14, 7))
    assert len(large) == 16
    assert {region // 7 for region in large} == {1, 5, 8, 12}


def test_equal_views_are_matched_in_place(tmp_path: Path, make_encoder: Callable[..., Encoder]) -> None:
    """One image alone, and cosines that are all the same, still make a picture."""
    pixels = torch.zeros(1, 3, 32, 32)
    grid = torch.tensor([2.0, 2.0])
    shown = {"source": pixels, "target": pixels, "source_grid": grid, "target_grid": grid}
    shown |= {"match": torch.arange(4.0)[None], "cosine": torch.ones(1, 4)}
    (picture,) = draw(tmp_path, shown, make_encoder())
    assert "100% of a view's regions" in picture.caption
    assert (tmp_path / picture.file).stat().st_size > 1000


def test_a_swin_has_no_attention_picture_and_says_so(tmp_path: Path) -> None:
    canvases = tiny_canvases()
    backbone = build_backbone("swin_tiny", size=(32, 32), channels=3, patch=2, width=16, depth=7, seed=0)
    draw_pictures(tmp_path, Encoder(backbone, (32, 32), [0.5] * 3, [0.25] * 3), canvases)
    drawn = json.loads((tmp_path / "pictures" / "pictures.json").read_text())["pictures"]
    skipped = {picture["name"]: picture["skipped"] for picture in drawn}
    assert "swin_tiny_patch4_window7_224" in skipped["attention"]
    assert "attention" in skipped["attention"]
    assert not skipped["pca"]
