"""Attention masks against true objects: on images whose objects are known, and where there is nothing to compare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from belvedere.backbones.build import build_backbone
from belvedere.evaluate.protocols.attention import jaccard, object_masks, scores
from belvedere.evaluate.suite import Given, evaluate_encoder
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.masks import IGNORE, Masks, find_masks
from belvedere.images.source import find_images
from belvedere.measure.attention import attention_masks
from belvedere.measure.encoder import Encoder


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Canvases, Masks]:
    """Four pictures of 40 x 60 px, each with a rectangle of class 1 or 2 and a void border; the last has none."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(4):
        Image.fromarray(skimage.data.astronaut()[60 * i : 60 * i + 40, 150:210]).save(tmp_path / "images" / f"{i}.png")
        mask = np.zeros((40, 60), np.uint8)
        if i < 3:
            mask[8:30, 10 * i : 10 * i + 25] = IGNORE
            mask[10:28, 10 * i + 2 : 10 * i + 23] = 1 + i % 2
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
    canvases = open_canvases(find_images(tmp_path / "images"), 64, cache_dir=tmp_path, workers=1, progress=False)
    return canvases, find_masks(tmp_path, canvases.names, canvases.original)


def test_numbers_and_what_is_left_out(photos: tuple[Canvases, Masks], encoder: Encoder) -> None:
    canvases, masks = photos
    given_ = Given(canvases, canvases, train_masks=masks, test_masks=masks)
    (result,) = evaluate_encoder(encoder, given_, ["attention"])
    assert "error" not in result.settings
    assert set(result.metrics) == {"run", "untrained"}
    for name, metrics in result.metrics.items():
        assert set(metrics) == {"best_head", "mean_head", "best_ipvit"}
        for metric, number in metrics.items():
            assert 0 <= number.low <= number.value <= number.high <= 100
            assert 100 * result.items[name][metric].mean() == pytest.approx(number.value)
        # Void counted as background only widens the union.
        assert metrics["best_ipvit"].value <= metrics["best_head"].value
    assert result.settings["without_attention"] == ["pixels"]
    assert (result.settings["images"], result.settings["without_object"]) == (3, 1)
    assert result.settings["query"]["run"] == "class token"
    assert result.draws["run"]["rows"] == [0, 1, 2]


def test_a_named_first_class_is_an_object(photos: tuple[Canvases, Masks], encoder: Encoder) -> None:
    canvases, masks = photos
    for names, background in ((["sky", "cat", "dog"], None), (["Background", "cat", "dog"], "Background")):
        named = Masks(masks.files, names)
        given_ = Given(canvases, canvases, train_masks=named, test_masks=named, floors=())
        (result,) = evaluate_encoder(encoder, given_, ["attention"])
        assert result.settings["background"] == background
        assert result.settings["without_object"] == (0 if background is None else 1)


def test_networks_and_images_that_have_nothing_to_compare(photos: tuple[Canvases, Masks], encoder: Encoder) -> None:
    canvases, masks = photos
    nothing = canvases.subset([3]), masks.subset([3])
    given_ = Given(canvases, nothing[0], train_masks=masks, test_masks=nothing[1])
    (result,) = evaluate_encoder(encoder, given_, ["attention"])
    assert result.settings["error"] == "attention: no test image has a labelled object"
    backbone = build_backbone("resnet18", size=(32, 32), channels=3, seed=0)
    resnet = Encoder(backbone, (32, 32), [0.5] * 3, [0.2] * 3)
    (result,) = evaluate_encoder(resnet, Given(canvases, canvases, masks, masks), ["attention"])
    assert result.settings["error"].startswith("attention: resnet18 has no attention")


def test_the_mean_patch_asks_where_there_is_no_class_token(photos: tuple[Canvases, Masks]) -> None:
    canvases, masks = photos
    backbone = build_backbone(
        "vit_tiny", size=(32, 32), channels=3, patch=8, width=32, depth=1, heads=2, class_token=False, seed=3
    )
    mean = Encoder(backbone, (32, 32), [0.5] * 3, [0.25] * 3)
    given_ = Given(canvases, canvases, train_masks=masks, test_masks=masks, floors=())
    (result,) = evaluate_encoder(mean, given_, ["attention"])
    assert result.settings["query"] == {"run": "mean patch"}


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), mass=st.floats(0.05, 0.95))
def test_masks_hold_the_mass_in_as_few_cells_as_can_be(seed: int, mass: float) -> None:
    maps = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(seed)).double()
    masks = attention_masks(maps, mass)
    share = (maps * masks).sum((1, 2)) / maps.sum((1, 2))
    assert (share >= mass - 1e-9).all()
    least = torch.where(masks, maps, torch.inf).amin((1, 2)) / maps.sum((1, 2))
    assert (share - least <= mass + 1e-9).all()
    assert (torch.where(masks, 0, maps).amax((1, 2)) <= torch.where(masks, maps, torch.inf).amin((1, 2))).all()


def test_perfect_attention_is_100_percent_whatever_the_void() -> None:
    mask = torch.zeros(8, 8, dtype=torch.uint8)
    mask[2:6, 2:6], mask[0] = 1, IGNORE
    objects = object_masks(mask, 0)
    maps = torch.full((2, 8, 8), 1e-6)
    maps[1, 2:6, 2:6] = 1.0
    values = scores(maps, objects, mask == IGNORE)
    # 60 % of the mass lie on 10 of the 16 cells of the object.
    assert values["best_head"] == values["best_ipvit"] == pytest.approx(10 / 16)
    assert jaccard(objects, objects).tolist() == [[1.0]]
