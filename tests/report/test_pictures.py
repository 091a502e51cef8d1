"""The pictures and what they are computed from."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from belvedere.errors import UserError
from belvedere.images.canvases import Canvases
from belvedere.measure.attention import MASS, attention_maps
from belvedere.measure.encoder import Encoder
from belvedere.report.attention import mass_level
from belvedere.report.drawing import LARGEST, printable
from belvedere.report.neighbours import choose_queries, find_neighbours
from belvedere.report.pca import colour_patches
from belvedere.report.pictures import draw_pictures
from belvedere.report.spectrum import fit_spectrum

NAMES = ["neighbours", "attention", "pca", "spectrum"]


def read(folder: Path) -> dict[str, dict[str, str]]:
    drawn = json.loads((folder / "pictures" / "pictures.json").read_text())["pictures"]
    return {picture["name"]: picture for picture in drawn}


@pytest.mark.parametrize(("labels", "channels"), [(True, 3), (False, 1)])
def test_every_picture_has_its_numbers_and_its_words(
    tmp_path: Path,
    make_canvases: Callable[..., Canvases],
    make_encoder: Callable[..., Encoder],
    labels: bool,
    channels: int,
) -> None:
    draw_pictures(tmp_path, make_encoder(channels=channels), make_canvases(labels, channels))
    pictures = read(tmp_path)
    assert list(pictures) == NAMES
    for picture in pictures.values():
        assert not picture["skipped"]
        assert len(picture["alt"]) > 20
        assert len(picture["caption"]) > 40
        file = tmp_path / "pictures" / picture["file"]
        assert file.stat().st_size <= LARGEST
        assert np.ptp(np.asarray(Image.open(file).convert("RGB"))) > 100
        rows = list(csv.reader((tmp_path / "pictures" / picture["table"]).open()))
        assert len(rows) > 5
        assert {len(row) for row in rows} == {len(rows[0])}


def test_pictures_are_the_same_again(
    tmp_path: Path, make_canvases: Callable[..., Canvases], make_encoder: Callable[..., Encoder]
) -> None:
    canvases = make_canvases()
    before = torch.get_rng_state()
    for name in ("a", "b"):
        draw_pictures(tmp_path / name, make_encoder(), canvases, seed=3)
    files = [sorted((tmp_path / name / "pictures").iterdir()) for name in ("a", "b")]
    assert len(files[0]) == 9
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]
    assert torch.equal(before, torch.get_rng_state())


def test_a_convolutional_network_has_no_attention_and_says_so(
    tmp_path: Path, make_canvases: Callable[..., Canvases], make_encoder: Callable[..., Encoder]
) -> None:
    draw_pictures(tmp_path, make_encoder("resnet18"), make_canvases())
    pictures = read(tmp_path)
    assert "resnet18 has no attention" in pictures["attention"]["skipped"]
    assert not (tmp_path / "pictures" / "attention.webp").exists()
    assert not pictures["neighbours"]["skipped"]


@pytest.mark.parametrize("name", ["vit_tiny", "vit_little_patch16_reg1_gap_256"])
def test_attention_over_the_patches_sums_to_one_at_twice_the_size(
    make_encoder: Callable[..., Encoder], name: str
) -> None:
    encoder = make_encoder(name)
    maps = attention_maps(encoder, torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert maps.shape == (2, 8, 8)
    assert torch.allclose(maps.sum((1, 2)), torch.ones(2), atol=1e-5)
    assert (maps >= 0).all()


@given(arrays(np.float32, (5, 6), elements=st.floats(0, 1, width=32)).filter(lambda x: x.sum() > 0))
def test_the_outline_holds_its_share_of_the_mass_and_no_more_than_it_needs(weights: np.ndarray) -> None:
    level, total = mass_level(weights), weights.sum(dtype=np.float64)
    assert weights[weights >= level].sum(dtype=np.float64) >= MASS * total * (1 - 1e-6)
    assert weights[weights > level].sum(dtype=np.float64) < MASS * total * (1 + 1e-6)


def patches_with_object(seed: int = 0) -> np.ndarray:
    """(3, 8, 8, 16): a square in the middle has other tokens than the border."""
    rng = np.random.default_rng(seed)
    patches = rng.normal(0, 0.3, (3, 8, 8, 16))
    patches[:, 2:6, 2:6] += 3 * rng.normal(size=16)
    return patches.astype(np.float32)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_object_is_foreground_whatever_the_sign(sign: int) -> None:
    found = colour_patches(sign * patches_with_object())
    inside = np.zeros((8, 8), bool)
    inside[2:6, 2:6] = True
    assert (found.foreground == inside).all()
    assert found.components[..., 0][found.foreground].min() > 0
    assert found.rgb.min() >= 0
    assert found.rgb.max() <= 1
    # Quantiles of the foreground fill the whole range of each colour.
    assert (found.rgb[found.foreground].max(0) == 1).all()
    assert (found.rgb[found.foreground].min(0) == 0).all()
    assert (np.diff(found.explained) <= 0).all()


def test_colours_are_of_all_images_together() -> None:
    patches = patches_with_object()
    together = colour_patches(patches)
    swapped = colour_patches(patches[::-1])
    assert np.allclose(np.abs(swapped.components[::-1]), np.abs(together.components), atol=1e-3)


def test_a_grid_too_coarse_is_refused() -> None:
    with pytest.raises(UserError, match="1 x 1"):
        colour_patches(np.ones((8, 1, 1, 16), np.float32))


def test_constant_patches_are_refused() -> None:
    with pytest.raises(UserError, match="constant"):
        colour_patches(np.ones((2, 4, 4, 8), np.float32))


def test_neighbours_leave_the_image_itself_out_and_order_by_agreement() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 4 * torch.eye(3, 8).repeat_interleave(12, 0)
    features = centres + torch.randn(36, 8, generator=generator)
    labels = np.arange(36) // 12
    labels[0] = 2  # an image among others of another class
    labels[1] = -1
    found = find_neighbours(features, labels)
    assert not (found.index == torch.arange(36)[:, None]).any()
    assert (found.cosines.diff(dim=1) <= 0).all()
    assert found.margin[1].isnan()
    known = torch.arange(36) != 1
    assert found.margin[known].argmin() == 0
    queries = choose_queries(found)
    every = [i for chosen in queries.values() for i in chosen]
    assert len(every) == len(set(every))
    assert 1 not in every
    least = queries["Least clear queries"]
    assert 0 in least or 0 in queries["Random queries"]


def test_without_labels_the_clearest_query_stands_out() -> None:
    features = torch.randn(40, 64, generator=torch.Generator().manual_seed(1))
    features[:10] = 9 * torch.eye(64)[0] + 0.1 * features[:10]
    found = find_neighbours(features, None)
    assert set(found.margin.topk(10).indices.tolist()) == set(range(10))


def test_two_images_have_one_neighbour_each() -> None:
    found = find_neighbours(torch.eye(2), np.array([0, 1]))
    assert found.index.tolist() == [[1], [0]]


def test_the_line_lies_on_a_power_law() -> None:
    # Orthogonal columns scaled so that eigenvalue i is i^-1.5.
    q, _ = torch.linalg.qr(torch.randn(200, 41, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    q = torch.linalg.qr(q - q.mean(0))[0][:, :40]
    q = q - q.mean(0)
    features = q * torch.arange(1, 41, dtype=torch.float64).pow(-0.75)
    found = fit_spectrum(features)
    assert found.alpha == pytest.approx(1.5, abs=0.02)
    on = np.isfinite(found.line)
    assert on.sum() == 17
    assert np.allclose(found.line[on], found.eigenvalues[on], rtol=0.05)


def test_one_two_and_many_channels_can_be_shown(make_encoder: Callable[..., Encoder]) -> None:
    for channels, shape in ((1, (4, 4)), (2, (4, 4)), (3, (4, 4, 3)), (5, (4, 4, 3))):
        image = printable(make_encoder(channels=channels), torch.zeros(channels, 4, 4))
        assert image.shape == shape
        assert np.allclose(image, 0.5)
