"""Twins: planted copies are found, look-alikes are not, against all pairs by hand; exact and near are told apart."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import find_images
from belvedere.measure.features import pixels_features
from belvedere.measure.twins import (
    Copies,
    Looks,
    Twins,
    copies_between,
    copies_within,
    groups_of,
    looks_of,
    twins_between,
    twins_within,
)
from tiny import tiles

Make = Callable[..., Canvases]


def hashed(hashes: NDArray[np.uint64]) -> Looks:
    """Looks of which only the average hash says something."""
    count = len(hashes)
    return Looks(np.arange(count).astype("S8"), hashes, torch.zeros(count, 64), torch.zeros(count, 256))


def by_features(canvases: Canvases) -> Twins:
    """Twins by features and equal average hashes alone."""
    return twins_within(pixels_features(canvases), looks_of(canvases), {})


def saved_again(image: np.ndarray, quality: int = 95) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def test_copies_are_found_and_other_cuts_of_the_photograph_are_not(photos: np.ndarray, make_canvases: Make) -> None:
    brighter = np.clip(photos[:5].astype(int) + 4, 0, 255).astype(np.uint8)
    images = np.concatenate([photos, photos[10:20], brighter])
    canvases = make_canvases(images)
    found = by_features(canvases)
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
    found = twins_between(features[0], looks_of(test), features[1], looks_of(train), {})
    right = sum(j == 20 + i for i, j in found.pairs.tolist())
    assert right >= 11  # a flipped bit of the hash, near the mean brightness, hides the others
    assert len(found.pairs) <= right + 1
    copies = copies_between(looks_of(test), looks_of(train))
    assert all(copies[i] == (20 + i, False) for i in copies)
    assert len(copies) >= 18  # by their pixels almost all are found


def test_a_hash_reads_brightness_of_cells_and_nothing_of_a_flat_image(make_canvases: Make) -> None:
    half = np.zeros((16, 16, 1), np.uint8)
    half[:8] = 200
    images = np.stack([half, 255 - half, np.full_like(half, 77), np.zeros_like(half)])
    hashes = looks_of(make_canvases(images)).average
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1)
    assert bits[0].reshape(8, 8)[:4].all()
    assert not bits[0].reshape(8, 8)[4:].any()
    assert np.array_equal(bits[1], 1 - bits[0])
    assert not bits[2:].any()


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), images=st.integers(0, 40), kinds=st.integers(1, 6))
def test_twins_are_those_of_all_pairs(seed: int, images: int, kinds: int) -> None:
    rng = np.random.default_rng(seed)
    centre = rng.integers(kinds, size=images)
    x = torch.from_numpy(np.eye(kinds)[centre] + 0.15 * rng.standard_normal((images, kinds))).float()
    hashes = rng.integers(3, size=images).astype(np.uint64)
    cosine = F.normalize(x, dim=1) @ F.normalize(x, dim=1).T
    equal = (hashes[:, None] == hashes[None]) & (cosine.numpy() > 0.98)
    found = twins_within(x, hashed(hashes), {})
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
    across = twins_between(x[:half], hashed(hashes[:half]), x[half:], hashed(hashes[half:]), {})
    assert {i for i, _ in across.pairs.tolist()} == {i for i in range(half) if equal[i, half:].any()}


def test_many_equal_images_are_one_group_and_one_link_each() -> None:
    found = twins_within(torch.ones(3000, 4), hashed(np.zeros(3000, np.uint64)), {})
    assert len(found.pairs) == 2999
    assert groups_of(found.pairs, 3000) == [list(range(3000))]


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "saved again": lambda image: Image.fromarray(saved_again(np.asarray(image), 50)),
    "halved and enlarged": lambda image: image.resize((20, 20), Image.Resampling.BICUBIC).resize(image.size),
    "darker": lambda image: image.point(lambda level: 0.7 * level),
    "gray": lambda image: image.convert("L").convert("RGB"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_near_twins(change: str, make_canvases: Make) -> None:
    images = np.stack([image for image in tiles(120, (40, 40)) if image.std() > 25])
    copies = np.stack([np.asarray(CHANGES[change](Image.fromarray(image))) for image in images])
    original, changed = looks_of(make_canvases(images)), looks_of(make_canvases(copies, "copies"))
    found = copies_between(changed, original)
    assert len(found) >= 0.9 * len(images) > 30
    assert all(found[i] == (i, False) for i in found)
    # In one set each copy has its original, and no original a copy before it.
    assert copies_within(original + changed) == {len(images) + i: partner for i, partner in found.items()}


def test_exact_twins_are_told_apart_and_name_the_first(make_canvases: Make) -> None:
    images = tiles(12, (40, 40))
    twice = np.concatenate([images, images[3:5], images[3:4]])
    doubled = looks_of(make_canvases(twice))
    assert copies_within(doubled) == {12: (3, True), 13: (4, True), 14: (3, True)}
    assert copies_between(looks_of(make_canvases(images[7:9], "two")), doubled) == {0: (7, True), 1: (8, True)}
    twins = twins_within(torch.from_numpy(twice).flatten(1).float(), doubled, copies_within(doubled))
    assert twins.pairs.tolist() == [[12, 3], [13, 4], [14, 3]]
    assert twins.exact.all()
    assert twins.cosines == pytest.approx(1.0)
    assert twins.told().startswith("3 exact (all pixels equal) and 0 near")


def test_exact_twins_come_first() -> None:
    copies: Copies = {2: (0, False), 3: (1, True), 4: (0, False)}
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.3], [1.0, 1.0], [1.0, 0.1]])
    twins = twins_within(features, hashed(np.arange(5).astype(np.uint64)), copies)
    assert twins.pairs[twins.order()].tolist() == [[3, 1], [4, 0], [2, 0]]


def test_flat_images_are_twins_only_if_equal(make_canvases: Make) -> None:
    grays = np.stack([np.full((40, 40, 3), level, np.uint8) for level in (90, 91, 90, 200)])
    assert copies_within(looks_of(make_canvases(grays))) == {2: (0, True)}


def test_images_of_any_size_in_chunks_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, image in enumerate(tiles(30, (40, 40))):
        cut = Image.fromarray(image[: 40 - i % 7])
        cut.save(tmp_path / f"{i:02}.png")
        cut.point(lambda level: 0.8 * level).save(tmp_path / f"{i:02}dark.png")
    mixed = open_canvases(find_images(tmp_path), 40, cache_dir=tmp_path / "cache", workers=1, progress=False)
    whole = copies_within(looks_of(mixed))
    assert len(whole) >= 24
    for name, size in (("_IMAGES", 7), ("_QUERIES", 5), ("_GALLERY", 3), ("_PAIRS", 2)):
        monkeypatch.setattr(f"belvedere.measure.twins.{name}", size)
    assert copies_within(looks_of(mixed)) == whole
