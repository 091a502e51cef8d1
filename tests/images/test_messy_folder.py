"""A user's untidy folder, every entry against its manifest."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.decode import Scale, decode
from belvedere.images.source import Source, find_images


@pytest.fixture(scope="module")
def source(messy: Path) -> Source:
    return find_images(messy)


@pytest.fixture(scope="module")
def canvases(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Canvases:
    return open_canvases(source, 192, cache_dir=tmp_path_factory.mktemp("cache"), progress=False)


def _pixels(canvases: Canvases, name: str) -> np.ndarray:
    return canvases.pixels(canvases.names.index(name)).astype(float)


def test_every_entry_is_treated_as_the_manifest_says(
    canvases: Canvases, source: Source, messy: Path, manifest: list[dict[str, Any]]
) -> None:
    loaded = dict(zip(canvases.names, canvases.original.tolist(), strict=True))
    skipped = {item.name: item.reason for item in canvases.skipped}
    seen = set()
    for entry in manifest:
        name, expect, size = entry["path"], entry["expect"], entry["size"]
        seen.add(name)
        if expect in ("ignore", "load-if-sniffed"):  # web/no_extension goes by its extension, which it lacks
            assert name not in loaded, name
            assert (name in skipped) == (messy / name).is_symlink(), name  # a link to a folder is told
        elif expect == "skip":
            assert name not in loaded, name
            assert skipped[name], name
        elif expect == "load":
            assert loaded[name] == [size[1], size[0]], name
        else:  # load-small, load-or-skip, load-if-supported: one of the two, never silence
            assert (name in loaded) != (name in skipped), name
            assert name in skipped or loaded[name] == [size[1], size[0]], name
        if expect == "load-small":
            assert (name in skipped) == (min(size) < 8), name
    assert set(loaded) | set(skipped) <= seen
    assert source.names == sorted(source.names)
    assert (messy / "links/loop").is_dir()  # the endless walk was really on offer


def test_reasons_are_told_in_words(canvases: Canvases) -> None:
    reasons = {item.name: item.reason for item in canvases.skipped}
    assert reasons["broken/empty.jpg"] == "empty file"
    assert reasons["broken/error_page.jpg"] == "not an image in a known format"
    assert "truncated" in reasons["broken/truncated_half.jpg"]
    assert reasons["links/dangling.jpg"] == "dangling link"
    assert reasons["links/loop"] == "a link to a folder, not followed"
    assert reasons["sizes/1x1.png"] == "smaller than 8 px"
    assert "decompression bomb" in reasons["sizes/bomb_20000x20000.png"]


def test_skipped_csv_names_every_file(canvases: Canvases, tmp_path: Path) -> None:
    canvases.write_skipped(tmp_path / "skipped.csv")
    with (tmp_path / "skipped.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "reason"]
    assert rows[1:] == [[item.name, item.reason] for item in canvases.skipped]


def test_sixteen_bits_and_floats_show_the_same_picture_as_eight(canvases: Canvases, messy: Path) -> None:
    eight = _pixels(canvases, "scans/gray8.png")
    for name in ("scans/gray16.png", "scans/gray16.tif"):
        assert np.abs(_pixels(canvases, name) - eight).max() <= 1
    assert np.abs(_pixels(canvases, "scans/float32.tif") - decode(messy / "scans/gray8.png", 3)[:64, :64]).max() <= 1
    assert decode(messy / "scans/gray16.png", 3, canvases.scale).mean() == pytest.approx(80.6, abs=0.1)


def test_transparency_shows_white_not_hidden_colours(messy: Path) -> None:
    for name in ("scans/rgba.png", "web/alpha.webp", "scans/palette_transparent.png", "scans/gray_alpha.png"):
        with Image.open(messy / name) as image:
            rgba = np.asarray(image.convert("RGBA")).astype(float)
        alpha = rgba[..., 3:] / 255
        expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
        assert (alpha < 1).any(), name
        assert np.abs(decode(messy / name, 3) - expected).max() <= 1.5, name


def test_upright_pictures_match_pillows_own_turning(messy: Path) -> None:
    for i, orientation in ((3, 6), (4, 3), (5, 8), (6, 2), (7, 5)):
        path = messy / f"photos/2019 Sommer/IMG_000{i}.JPG"
        with Image.open(path) as image:
            assert image.getexif()[0x0112] == orientation
            expected = np.asarray(ImageOps.exif_transpose(image))
        assert np.array_equal(decode(path, 3), expected)


def test_first_frame_and_cmyk(messy: Path) -> None:
    for name in ("web/anim.gif", "web/anim.webp", "web/anim_apng.png", "scans/multipage.tif", "scans/cmyk.jpg"):
        with Image.open(messy / name) as image:
            image.seek(0)
            assert np.array_equal(decode(messy / name, 3, Scale()), np.asarray(image.convert("RGB"))), name


def test_one_bit_drawing_keeps_its_ink(canvases: Canvases) -> None:
    assert set(np.unique(_pixels(canvases, "scans/bilevel.png"))) == {0.0, 255.0}


def test_large_jpeg_by_draft_looks_like_the_slow_way(canvases: Canvases, messy: Path) -> None:
    with Image.open(messy / "sizes/big_4000x3000.jpg") as image:
        slow = np.asarray(image.convert("RGB").resize((256, 192), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(_pixels(canvases, "sizes/big_4000x3000.jpg") - slow).mean() < 1.5
