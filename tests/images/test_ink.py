"""Pages as ink on black: Sauvola's threshold, what it is applied to, tiles with little ink, and who cuts alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from skimage.filters import threshold_sauvola

from belvedere.config import parse_overrides, resolve
from belvedere.errors import UserError
from belvedere.images.binarize import sauvola
from belvedere.images.canvases import open_canvases
from belvedere.images.cutting import WHOLE, Cutting
from belvedere.images.limits import LITTLE_INK
from belvedere.images.source import find_images
from belvedere.images.survey import survey
from belvedere.images.tiles import corners, cut

INK = Cutting(binarize="sauvola")


@pytest.fixture
def page() -> NDArray[np.uint8]:
    """A scanned page of print, with a shadow over a part of it."""
    found: NDArray[np.uint8] = skimage.data.page()
    return found


def test_the_threshold_is_scikit_images(page: NDArray[np.uint8]) -> None:
    for window in (25, 51):
        ink = sauvola(page, window)
        assert set(np.unique(ink)) == {0, 255}
        assert np.mean((ink == 255) != (page <= threshold_sauvola(page, window, k=0.2))) < 1e-4


def test_a_shadow_is_no_ink_and_bare_paper_has_none(page: NDArray[np.uint8]) -> None:
    shadow = np.linspace(0.45, 1, page.shape[1])
    shaded = (page * shadow).astype(np.uint8)
    ink, in_shadow = sauvola(page) == 255, sauvola(shaded) == 255
    assert 0.05 < ink.mean() < 0.25
    assert (ink != in_shadow).mean() < 0.05
    assert ((shaded < 128) != ink).mean() > 0.2  # one threshold for all takes the shadow for ink
    for level in (1, 40, 255):
        assert not sauvola(np.full((60, 60), level, np.uint8)).any()
    assert sauvola(np.zeros((60, 60), np.uint8)).all()  # the middle of a blot is ink


def test_pages_are_gray_upright_and_of_any_depth(tmp_path: Path, page: NDArray[np.uint8]) -> None:
    Image.fromarray(page).save(tmp_path / "a.png")
    Image.fromarray(np.stack([page] * 3, 2)).save(tmp_path / "b.png")
    Image.fromarray(page.astype(np.uint16) * 13 + 900).save(tmp_path / "c.png")
    turned = Image.fromarray(np.rot90(page).copy())
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "d.png", exif=exif)
    source = cut(find_images(tmp_path), INK, progress=False)
    assert survey(source, "auto", 1, progress=False).channels == 1
    canvases = open_canvases(source, 400, cache_dir=tmp_path / "cache", workers=1, progress=False)
    assert canvases.channels == 1
    expected = sauvola(page)
    for i, close in enumerate((0.0, 0.0, 0.02, 0.0)):  # 16 bits use their own range, so the threshold is a little off
        assert canvases.pixels(i).shape == (*page.shape, 1)
        assert (canvases.pixels(i)[..., 0] != expected).mean() <= close


def test_tiles_are_cut_from_the_whole_page_of_ink(tmp_path: Path, page: NDArray[np.uint8]) -> None:
    Image.fromarray(page).save(tmp_path / "page.png")
    Image.fromarray(np.full_like(page, 220)).save(tmp_path / "bare.png")
    cutting = Cutting(64, 0.5, "sauvola")
    source = cut(find_images(tmp_path), cutting, progress=False)
    canvases = open_canvases(source, 64, cache_dir=tmp_path / "cache", workers=2, progress=False)
    ink, places = sauvola(page), list(corners(page.shape, cutting))
    assert len(places) == 5 * 11  # every 32 px of 191 x 384
    expected = {f"page.png#y{y}x{x}": ink[y : y + 64, x : x + 64] for y, x in places}
    assert set(canvases.names) == {name for name, tile in expected.items() if tile.any()}
    for i, name in enumerate(canvases.names):
        assert np.array_equal(canvases.pixels(i)[..., 0], expected[name])


def test_tiles_with_little_ink_are_set_aside_and_are_another_set(tmp_path: Path, page: NDArray[np.uint8]) -> None:
    Image.fromarray(page).save(tmp_path / "page.png")
    ink = sauvola(page)
    shares = [
        (ink[y : y + 48, x : x + 48] == 255).mean() for y, x in corners(page.shape, Cutting(48, binarize="sauvola"))
    ]
    limit = float(np.median(shares))
    digests = set()
    for least in (0.0, limit):
        source = cut(find_images(tmp_path), Cutting(48, 0.0, "sauvola", least), progress=False)
        digests.add(source.digest())
        canvases = open_canvases(source, 48, cache_dir=tmp_path / "cache", workers=1, progress=False)
        assert len(canvases) == sum(share >= least and share > 0 for share in shares)
        assert [item.reason for item in canvases.skipped].count(LITTLE_INK) == sum(
            0 < share < least for share in shares
        )
    digests |= {cut(find_images(tmp_path), one, progress=False).digest() for one in (WHOLE, INK, Cutting(48))}
    assert len(digests) == 5


def test_settings_read_naturally_and_wrong_ones_are_refused() -> None:
    given = {"images.binarize": "sauvola", "images.tile": 256, "images.tile_overlap": 0.5, "images.min_ink": 0.02}
    assert resolve("ibot", given).config.images.cutting == Cutting(256, 0.5, "sauvola", 0.02)
    assert resolve("ibot", {}).config.images.cutting == WHOLE
    off = parse_overrides(["images.binarize=none", "images.tile=0", "images.tile_overlap=0"])
    assert resolve("writer", off).config.images.cutting == WHOLE
    for key, value, said in (
        ("images.binarize", "otsu", "images.binarize"),
        ("images.tile_overlap", 1.0, "images.tile_overlap"),
        ("images.min_ink", 0.1, "set images.binarize=sauvola too"),
    ):
        with pytest.raises(UserError, match=said):
            resolve("ibot", {key: value})
    assert Cutting.read({"tile": 64}) == Cutting(64)
