"""Patches found again in another view: the geometry, chance, and what users' runs give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from belvedere.backbones.build import build_backbone
from belvedere.evaluate.protocols.correspondence import FROM, TO, Match, match, true_places, two_views, view_size
from belvedere.evaluate.suite import Given, evaluate_encoder
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import find_images
from belvedere.measure.dense import PatchReader
from belvedere.measure.encoder import Encoder
from belvedere.views.render import render_views
from belvedere.views.sample import sample_views
from belvedere.views.slots import ViewSettings, build_slots

Make = Callable[..., Canvases]


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), h=st.integers(2, 9), w=st.integers(2, 9))
def test_true_places_show_the_same_point_of_the_image(seed: int, h: int, w: int) -> None:
    """An image whose colours are its coordinates, seen twice, flips included: equal colours are equal places."""
    y, x = np.mgrid[0:96, 0:96].astype(np.uint8)
    image = torch.from_numpy(np.stack([2 * y, 2 * x, y], 2))[None]
    plain = ViewSettings(size=(8 * h, 8 * w), global_scale=(0.4, 1.0), jitter_p=0, gray_p=0, blur_p=(0, 0, 0))
    plain = ViewSettings(**{**plain.__dict__, "solarize_p": (0.0, 0.0, 0.0)})
    params = sample_views(build_slots(plain, 3), [7], [(96, 96)], epoch=0, seed=seed)
    views = render_views(image, params, mean=[0.0] * 3, std=[1 / 255] * 3)
    place = true_places(params, (h, w))[0]
    seen = {name: views[name][0, :2].reshape(2, h, 8, w, 8)[:, :, 3:5, :, 3:5].mean((2, 4)) for name in (FROM, TO)}
    for cell in range(h * w):
        row, column = (place[cell] - 0.5).tolist()  # in centres of cells
        if 0 <= row <= h - 1 and 0 <= column <= w - 1:
            up, left = min(int(row), h - 2), min(int(column), w - 2)
            down, right = row - up, column - left
            corners = seen[TO][:, up : up + 2, left : left + 2]
            there = (corners * torch.tensor([1 - down, down])[:, None] * torch.tensor([1 - right, right])).sum((1, 2))
            assert torch.allclose(there, seen[FROM].flatten(1)[:, cell], atol=1.5)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), h=st.integers(4, 10), w=st.integers(4, 10))
def test_the_true_cells_are_right_and_chance_is_that_of_any_cell(seed: int, h: int, w: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    place = (torch.rand(h * w, 2, generator=generator) * 1.4 - 0.2) * torch.tensor([h, w])
    inside = ((place >= 0) & (place < torch.tensor([h, w]))).all(1)
    cells = place.floor().clamp(min=0)
    true = (cells[:, 0].clamp(max=h - 1) * w + cells[:, 1].clamp(max=w - 1)).long()
    nothing = torch.empty(0)
    assert Match((nothing, nothing), (h, w), place, inside, true).share() == 1
    every = [Match((nothing, nothing), (h, w), place, inside, torch.full((h * w,), k)).share() for k in range(h * w)]
    chance = Match((nothing, nothing), (h, w), place, inside, true).chance()
    assert np.mean(every) == pytest.approx(chance, abs=1e-6)
    assert chance <= 9 / h / w + 1e-6


def test_shares_floors_and_the_same_views_for_all(make_folder: Make, encoder: Encoder) -> None:
    test = make_folder({"coffee": 7, "retina": 7}, "test")
    (result,) = evaluate_encoder(encoder, Given(make_folder({"rocket": 4}), test), ["correspondence"])
    assert set(result.metrics) == {"run", "untrained", "pixels"}
    for name, metrics in result.metrics.items():
        number = metrics["within1"]
        assert 0 <= number.low <= number.value <= number.high <= 100
        assert 100 * result.items[name]["within1"].mean() == pytest.approx(number.value)
    assert result.settings["grid"]["run"] == [8, 8]  # the 4 x 4 of 32 px is coarse: views are seen at 64 px
    assert 8 < result.settings["chance_percent"]["run"] < 100 * 9 / 64
    views = {name: draw["matches"][0].views for name, draw in result.draws.items()}
    assert all(torch.equal(views["run"][side], views["pixels"][side]) for side in (0, 1))
    (again,) = evaluate_encoder(encoder, Given(make_folder({"rocket": 4}, "again"), test), ["correspondence"])
    assert again.metrics == result.metrics


def test_pixels_of_whole_photographs_tell_places_better_than_chance(encoder: Encoder, tmp_path: Path) -> None:
    for name in ("astronaut", "coffee", "chelsea", "rocket", "immunohistochemistry", "retina"):
        Image.fromarray(getattr(skimage.data, name)()).resize((96, 80)).save(tmp_path / f"{name}.png")
    canvases = open_canvases(find_images(tmp_path), 64, cache_dir=tmp_path / "c", workers=1, progress=False)
    asked = Given(canvases.subset(np.arange(6).repeat(8)), floors=("pixels",))
    found = [
        evaluate_encoder(encoder, replace(asked, test=asked.train, seed=seed), ["correspondence"])[0] for seed in (0, 1)
    ]
    assert all(one.metrics["pixels"]["within1"].low > one.settings["chance_percent"]["pixels"] for one in found)
    assert found[0].metrics != found[1].metrics


def test_no_labels_are_needed(encoder: Encoder, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (3, 24, 60, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    canvases = open_canvases(find_images(tmp_path / "x.npy"), 64, cache_dir=tmp_path, workers=1, progress=False)
    few = {"correspondence": {"images": 2}}
    (result,) = evaluate_encoder(encoder, Given(canvases, canvases, options=few), ["correspondence"])
    assert result.settings["images"] + result.settings["without_overlap"] == 2


def test_pixels_find_themselves_where_nothing_changes(make_folder: Make, encoder: Encoder) -> None:
    """Two views that happen to be one: every raw patch finds its own place."""
    canvases = make_folder({"coffee": 2})
    reader = PatchReader(encoder, raw=True)
    views = two_views(encoder, canvases, 0, 0)
    rows = reader.patches(torch.cat([views[FROM], views[FROM]])).flatten(2)
    source, target = torch.nn.functional.normalize(rows, dim=1)
    assert torch.equal((source.T @ target).argmax(1), torch.arange(64))
    found = match(reader, canvases, 0, 0)
    assert found.inside.any()
    assert found.right().sum() <= found.inside.sum()


def test_networks_that_see_too_few_cells(make_folder: Make) -> None:
    backbone = build_backbone("resnet18", size=(32, 32), channels=3, seed=0)
    coarse = Encoder(backbone, (32, 32), [0.5] * 3, [0.2] * 3)
    assert view_size(coarse) == (64, 64)
    (result,) = evaluate_encoder(coarse, Given(make_folder({"coffee": 9})), ["correspondence"])
    assert result.settings["error"].startswith("correspondence: the network sees a view as 2 x 2 cells")


def test_a_coarse_baseline_is_left_out_and_said(make_folder: Make, encoder: Encoder) -> None:
    backbone = build_backbone("resnet18", size=(32, 32), channels=3, seed=0)
    coarse = Encoder(backbone, (32, 32), [0.5] * 3, [0.2] * 3)
    given_ = Given(make_folder({"coffee": 9}), baselines={"resnet": coarse}, floors=())
    (result,) = evaluate_encoder(encoder, given_, ["correspondence"])
    assert set(result.metrics) == {"run"}
    assert result.settings["too_coarse"] == {"resnet": [2, 2]}
