"""The frame of dense protocols: sizes in whole patches, masks and patches in one place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from belvedere.backbones.build import build_backbone
from belvedere.images.canvases import open_canvases
from belvedere.images.masks import IGNORE
from belvedere.images.source import find_images
from belvedere.measure.dense import PatchReader, class_shares, classes_at_mask_size, dense_size
from belvedere.measure.encoder import Encoder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """A tiny vision transformer of 8 px patches for images of 32 px."""
    backbone = build_backbone("vit_tiny", size=(32, 32), channels=3, patch=8, width=32, depth=2, heads=2, seed=3)
    return Encoder(backbone, (32, 32), [0.5] * 3, [0.25] * 3)


@given(height=st.integers(1, 2000), width=st.integers(1, 2000))
def test_sizes_keep_the_aspect_within_whole_patches(encoder: Encoder, height: int, width: int) -> None:
    h, w = dense_size(encoder, (height, width))
    assert h % 8 == w % 8 == 0
    assert 8 <= min(h, w) <= 64
    assert max(h, w) <= 128
    if max(height, width) <= 2 * min(height, width):
        assert min(h, w) == 64
        assert abs(max(h, w) - 64 * max(height, width) / min(height, width)) <= 4


@settings(max_examples=50)
@given(seed=st.integers(0, 1000), h=st.integers(1, 5), w=st.integers(1, 5), by=st.integers(1, 4))
def test_shares_count_every_pixel_once(seed: int, h: int, w: int, by: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.choice(np.array([0, 1, 2, IGNORE], np.uint8), (h * by, w * by))
    shares = class_shares(mask, (h, w), 3)
    assert shares.shape == (h * w, 3)
    for k in range(3):
        pooled = F.avg_pool2d(torch.from_numpy(mask == k)[None].float(), by).flatten()
        assert torch.allclose(shares[:, k], pooled)
    odd = class_shares(mask[:, : w * by - by // 2], (h, w), 3)  # sides that the grid does not divide
    assert (odd.sum(1) <= 1 + 1e-6).all()


def test_a_mask_coarser_than_the_grid_leaves_cells_without_class() -> None:
    shares = class_shares(np.array([[1]], np.uint8), (3, 3), 2)
    assert shares.sum().item() == 1
    assert shares[4].tolist() == [0, 1]


def test_scores_return_to_the_pixels_they_came_from() -> None:
    """Cells that are all of one class give the mask back; its borders stay where they were."""
    cells = np.repeat(np.repeat(np.array([[0, 1], [2, 0]], np.uint8), 12, 0), 10, 1)
    shares = class_shares(cells, (4, 4), 3)
    found = classes_at_mask_size(shares.T.reshape(3, 4, 4), (24, 20))
    assert (found == cells).mean() > 0.97  # all but the two pixels where three classes meet
    assert np.array_equal(found[:, [0, -1]], cells[:, [0, -1]])


def test_classes_are_those_of_all_scores_at_once_however_few_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randint(0, 4, (7, 3, 5), generator=torch.Generator().manual_seed(0)).float()  # with ties
    expected = F.interpolate(scores[None], (9, 20), mode="bilinear")[0].argmax(0).numpy()
    assert np.array_equal(classes_at_mask_size(scores, (9, 20)), expected)
    monkeypatch.setattr("belvedere.measure.dense.PIXELS_AT_ONCE", 9 * 20 * 2)
    assert np.array_equal(classes_at_mask_size(scores, (9, 20)), expected)


def test_tokens_and_raw_patches_lie_where_their_pixels_do(encoder: Encoder, tmp_path: Path) -> None:
    images = np.zeros((2, 48, 96, 3), np.uint8)
    images[0] = skimage.data.astronaut()[:48, :96]
    images[1, :24, 48:] = np.arange(24)[:, None, None] * 10  # the upper right quarter is not flat
    np.save(tmp_path / "x.npy", images)
    canvases = open_canvases(find_images(tmp_path / "x.npy"), 64, cache_dir=tmp_path, workers=1, progress=False)
    tokens = PatchReader(encoder).read(canvases, 0)
    assert tokens.shape == (32, 8, 16)
    pixels = PatchReader(encoder).pixels(canvases, 0)
    assert pixels.shape == (1, 3, 64, 128)
    assert torch.allclose(tokens, encoder.patches(pixels)[0])
    raw = PatchReader(encoder, raw=True).read(canvases, 1)
    assert raw.shape == (3 * 8 * 8, 8, 16)
    assert torch.allclose(raw.mean(0), torch.zeros(8, 16), atol=1e-5)
    busy = raw.std(0) > 1e-3
    assert busy[:3, 9:].all()
    assert not busy[5:].any()
    assert not busy[:, :7].any()
