"""Segmentation by the whole network: it learns where things are, leaves void pixels out, and says what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from belvedere.backbones.build import build_backbone
from belvedere.evaluate.contract import Result
from belvedere.evaluate.protocols._training import pyramid_on
from belvedere.evaluate.protocols.seg_fpn import Masked, Options, SegFpn, loss_of
from belvedere.evaluate.suite import Given, Prepared, prepare
from belvedere.images.canvases import open_canvases
from belvedere.images.masks import IGNORE, find_masks
from belvedere.images.source import find_images
from belvedere.measure.encoder import Encoder
from belvedere.report.protocols import draw_results

pytest.importorskip("torchvision")
FAST = {"epochs": 1, "width": 16, "lr": 1e-3}


def scenes(root: Path, count: int, void: bool = False) -> Path:
    """A bright disc somewhere on noise; the disc is class 1, its rim left out."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    rows, columns = np.mgrid[:48, :64]
    for i in range(count):
        distance = np.hypot(rows - rng.integers(14, 34), columns - rng.integers(14, 50))
        noise = rng.integers(0, 90, (48, 64, 3))
        picture = np.where(distance[..., None] < 12, noise + 120, noise).astype(np.uint8)
        Image.fromarray(picture).save(root / "images" / f"{i:02}.png")
        mask = np.where(np.abs(distance - 12) < 1, IGNORE, distance < 12).astype(np.uint8)
        Image.fromarray(np.full_like(mask, IGNORE) if void else mask).save(root / "masks" / f"{i:02}.png")
    return root


def prepared(root: Path, floors: tuple[str, ...] = (), pos_embed: bool = True, **options: Any) -> Prepared:
    canvases = open_canvases(find_images(root / "images", labels="none"), 64, channels=3, progress=False)
    masks = find_masks(root, canvases.names, canvases.original)
    test = np.arange(0, len(canvases), 4)
    train = np.setdiff1d(np.arange(len(canvases)), test)
    shape: dict[str, Any] = {"patch": 8, "width": 32, "depth": 4, "heads": 2, "pos_embed": pos_embed}
    backbone = build_backbone("vit_tiny", size=(32, 32), channels=3, seed=0, **shape)
    given = Given(
        train=canvases.subset(train),
        test=canvases.subset(test),
        train_masks=masks.subset(train),
        test_masks=masks.subset(test),
        options={"seg_fpn": FAST | options},
        floors=floors,
    )
    return prepare(Encoder(backbone, (32, 32), [0.5] * 3, [0.25] * 3), given, ["seg_fpn"], "cpu", None)


def result_of(ready: Prepared) -> Result:
    (result,) = ready.run()
    assert "error" not in result.settings, result.settings["error"]
    return result


def test_it_learns_where_things_are(tmp_path: Path) -> None:
    ready = prepared(scenes(tmp_path, 16), epochs=6)
    first = result_of(ready)
    assert first.metrics["run"]["miou"].value > 75 > 50 > first.metrics["majority"]["miou"].value
    assert first.settings["loss"]["run"][-1] < first.settings["loss"]["run"][0]
    assert result_of(ready).metrics == first.metrics
    draw_results(tmp_path / "out", [first], ready.data)
    assert (tmp_path / "out" / "seg_fpn.webp").stat().st_size > 2000


def test_void_pixels_teach_nothing(tmp_path: Path) -> None:
    data = prepared(scenes(tmp_path, 4, void=True)).data
    assert data.train_masks is not None
    images = Masked(data.train, data.encoders["run"], 2.0, "cpu", data.train_masks)
    assert loss_of(torch.nn.Identity(), images, 0, np.random.default_rng(0)) is None
    (result,) = prepared(tmp_path).run()
    assert "nothing is labelled" in result.settings["error"]


def test_frozen_trains_the_head_alone(tmp_path: Path) -> None:
    data = prepared(scenes(tmp_path, 4)).data
    assert data.train_masks is not None
    images = Masked(data.train, data.encoders["run"], 2.0, "cpu", data.train_masks)
    before = data.encoders["run"].backbone.state_dict()
    for frozen in (True, False):
        network, _ = SegFpn(Options(**FAST, frozen=frozen)).train(images, 2, 0)
        after = network.pyramid.backbone.state_dict()
        assert all(torch.equal(x, after[name]) for name, x in before.items()) == frozen


@pytest.mark.parametrize("frozen", [False, True])
def test_a_network_without_positions_gets_some_unless_it_is_frozen(tmp_path: Path, frozen: bool) -> None:
    ready = prepared(scenes(tmp_path, 8), pos_embed=False, frozen=frozen)
    result = result_of(ready)
    assert "error" not in result.settings
    assert ("positions" in result.settings) is not frozen
    images = Masked(ready.data.train, ready.data.encoders["run"], 1.0, "cpu", ready.data.train_masks)
    pyramid = pyramid_on(images, [0.25, 0.5, 0.75, 1.0], Options(**FAST, frozen=frozen), 0)
    assert pyramid.backbone.has_positions is not frozen
