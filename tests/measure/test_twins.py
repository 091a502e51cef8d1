"""Near-duplicates: planted copies are found, look-alikes are not, against all pairs by hand."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from belvedere.images.canvases import Canvases
from belvedere.measure.features import pixels_features
from belvedere.measure.twins import groups_of, perceptual_hashes, twins_between, twins_within

Make = Callable[..., Canvases]


def saved_again(image: np.ndarray, quality: int = 95) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def test_copies_are_found_and_other_cuts_of_the_photograph_are_not(photos: np.ndarray, make_canvases: Make) -> None:
    brighter = np.clip(photos[:5].astype(int) + 4, 0, 255).astype(np.uint8)
    images = np.concatenate([photos, photos[10:20], brighter])
    canvases = make_canvases(images)
    found = twins_within(pixels_features(canvases), perceptual_hashes(canvases))
    assert {(60 + i, 10 + i) for i in range(10)} <= set(map(tuple, found.pairs.tolist()))
    of_brighter = [pair for pair in found.pairs.tolist() if pair[0] >= 70]
    assert all(70 + j == i for i, j in of_brighter)
    assert len(of_brighter) >= 3
    assert (found.cosines > 0.98).all()
    cosine = F.normalize(pixels_features(canvases), dim=1)
    for i, j in found.pairs.tolist():
        assert j < i
        assert float(cosine[i] @ cosine[j]) > 0.98
    assert len(found.pairs) <= 15 + 3  # flat cuts of a sky may look alike


def test_a_twin_saved_again_is_found_across_sets(photos: np.ndarray, make_canvases: Make) -> None:
    train, test = make_canvases(photos), make_canvases(np.stack([saved_again(x) for x in photos[20:40]]), "test")
    features = pixels_features(test), pixels_features(train)
    found = twins_between(features[0], perceptual_hashes(test), features[1], perceptual_hashes(train))
    right = sum(j == 20 + i for i, j in found.pairs.tolist())
    assert right >= 11  # a flipped bit of the hash, near the mean brightness, hides the others
    assert len(found.pairs) <= right + 1


def test_a_hash_reads_brightness_of_cells_and_nothing_of_a_flat_image(make_canvases: Make) -> None:
    half = np.zeros((16, 16, 1), np.uint8)
    half[:8] = 200
    images = np.stack([half, 255 - half, np.full_like(half, 77), np.zeros_like(half)])
    hashes = perceptual_hashes(make_canvases(images))
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1)
    assert bits[0].reshape(8, 8)[:4].all()
    assert not bits[0].reshape(8, 8)[4:].any()
    assert np.array_equal(bits[1], 1 - bits[0])
    assert not bits[2:].any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), images=st.integers(0, 40), kinds=st.integers(1, 6))
def test_twins_are_those_of_all_pairs(seed: int, images: int, kinds: int) -> None:
    rng = np.random.default_rng(seed)
    centre = rng.integers(kinds, size=images)
    x = torch.from_numpy(np.eye(kinds)[centre] + 0.15 * rng.standard_normal((images, kinds))).float()
    hashes = rng.integers(3, size=images).astype(np.uint64)
    cosine = F.normalize(x, dim=1) @ F.normalize(x, dim=1).T
    equal = (hashes[:, None] == hashes[None]) & (cosine.numpy() > 0.98)
    found = twins_within(x, hashes)
    has = {i for i in range(images) if equal[i, :i].any()}
    assert {i for i, _ in found.pairs.tolist()} == has
    for (i, j), value in zip(found.pairs.tolist(), found.cosines, strict=True):
        allowed = np.where(equal[i, :i], cosine[i, :i].numpy(), -2)
        assert equal[i, j]
        assert value == pytest.approx(allowed.max(), abs=1e-5)
    groups = groups_of(found.pairs, images)
    assert all(group == sorted(group) and len(group) > 1 for group in groups)
    flat = [i for group in groups for i in group]
    assert len(flat) == len(set(flat))
    assert set(flat) == {i for pair in found.pairs.tolist() for i in pair}
    half = images // 2
    across = twins_between(x[:half], hashes[:half], x[half:], hashes[half:])
    assert {i for i, _ in across.pairs.tolist()} == {i for i in range(half) if equal[i, half:].any()}


def test_many_equal_images_are_one_group_and_one_link_each() -> None:
    found = twins_within(torch.ones(3000, 4), np.zeros(3000, np.uint64))
    assert len(found.pairs) == 2999
    assert groups_of(found.pairs, 3000) == [list(range(3000))]
