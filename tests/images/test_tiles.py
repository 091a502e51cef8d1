"""Large images cut into tiles: where they lie, what they show, what it costs, and that every command cuts alike."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import large_images
from belvedere.errors import UserError
from belvedere.evaluate.splits import hold_out
from belvedere.images.canvases import open_canvases
from belvedere.images.check import check
from belvedere.images.cutting import Cutting
from belvedere.images.decode import Scale, decode, read_header, turned, upright
from belvedere.images.held import LIMIT, Held
from belvedere.images.limits import EMPTY
from belvedere.images.part import Opened
from belvedere.images.source import Data, Skipped, find_images
from belvedere.images.survey import sample_sides, survey
from belvedere.images.tiff import stored_box
from belvedere.images.tiles import corners, count_tiles, cut
from large_images import huge
from tiny import png_of

Picture = NDArray[np.uint8]
TILE = 64


@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    tile=st.integers(5, 150),
    overlap=st.sampled_from([0.0, 0.5, 0.9]),
)
def test_tiles_cover_every_pixel_and_are_full_size(height: int, width: int, tile: int, overlap: float) -> None:
    covered = np.zeros((height, width), bool)
    cutting = Cutting(tile, overlap)
    places = list(corners((height, width), cutting))
    for y, x in places:
        assert 0 <= y <= max(0, height - tile)
        assert 0 <= x <= max(0, width - tile)
        covered[y : y + tile, x : x + tile] = True
    assert covered.all()
    assert places == sorted(places)
    assert len(set(places)) == len(places) == count_tiles((height, width), cutting)
    if overlap:
        rows = sorted({y for y, _ in places})
        assert all(0 < below - above <= cutting.step for above, below in pairwise(rows))
    else:
        assert len(places) == -(-height // tile) * -(-width // tile)  # as few as can be


@given(
    size=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    orientation=st.integers(1, 8),
    share=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
)
def test_a_box_of_the_upright_picture_is_found_in_the_stored_one(
    size: tuple[int, int], orientation: int, share: tuple[float, float, float, float]
) -> None:
    stored = np.arange(size[0] * size[1]).reshape(size)
    seen: Any = turned(stored, orientation)
    h, w = (1 + int(part * (side - 1)) for part, side in zip(share[:2], seen.shape, strict=True))
    y, x = (int(part * (side - used)) for part, side, used in zip(share[2:], seen.shape, (h, w), strict=True))
    (top, left), (height, width) = stored_box((y, x), (h, w), orientation, size)
    assert top >= 0
    assert left >= 0
    found = turned(stored[top : top + height, left : left + width], orientation)
    assert np.array_equal(found, seen[y : y + h, x : x + w])


def _pillow(mode: str, kind: str, **options: Any) -> Callable[[Path, Picture], None]:
    def write(path: Path, picture: Picture) -> None:
        image = Image.fromarray(picture)
        if mode == "P":
            image = image.convert("P", palette=Image.Palette.ADAPTIVE)
        elif mode == "RGBA":
            image = Image.merge("RGBA", (*image.split(), image.convert("L")))
        elif mode == "I;16":
            image = Image.fromarray(picture[..., 0].astype(np.uint16) * 200)
        else:
            image = image.convert("L").convert("F") if mode == "F" else image.convert(mode)
        image.save(path, kind, **options)

    return write


def _bands(count: int, dtype: str, **options: Any) -> Callable[[Path, Picture], None]:
    def write(path: Path, picture: Picture) -> None:
        array = np.concatenate([picture, picture[::-1], picture[:, ::-1]], axis=2)[..., :count].astype(dtype)
        array = array * 200 if dtype == "uint16" else array
        if path.suffix == ".npy":
            np.save(path, array)
            return
        planes = np.moveaxis(array, -1, 0) if options.get("planarconfig") == "separate" else array.squeeze()
        given = {"photometric": "minisblack", "planarconfig": "contig", "metadata": None} | options
        tifffile.imwrite(path, planes, **given)

    return write


FORMATS: dict[str, tuple[int, Callable[[Path, Picture], None]]] = {
    "rgb.jpg": (3, _pillow("RGB", "JPEG", quality=95)),
    "gray.jpg": (1, _pillow("L", "JPEG")),
    "cmyk.jpg": (3, _pillow("CMYK", "JPEG")),
    "rgb.png": (3, _pillow("RGB", "PNG")),
    "alpha.png": (3, _pillow("RGBA", "PNG")),
    "palette.png": (3, _pillow("P", "PNG", transparency=0)),
    "deep.png": (1, _pillow("I;16", "PNG")),
    "bits.png": (1, _pillow("1", "PNG")),
    "rgb.webp": (3, _pillow("RGB", "WEBP", quality=80)),
    "rgb.bmp": (3, _pillow("RGB", "BMP")),
    "rgb.tif": (3, _pillow("RGB", "TIFF")),
    "lzw.tif": (3, _pillow("RGB", "TIFF", compression="tiff_lzw")),
    "jpeg.tif": (3, _pillow("RGB", "TIFF", compression="jpeg")),
    "deflate.tif": (3, _pillow("RGB", "TIFF", compression="tiff_adobe_deflate")),
    "alpha.tif": (3, _pillow("RGBA", "TIFF", compression="tiff_adobe_deflate")),
    "palette.tif": (3, _pillow("P", "TIFF")),
    "cmyk.tif": (3, _pillow("CMYK", "TIFF")),
    "lab.tif": (3, _pillow("LAB", "TIFF")),
    "bits.tif": (1, _pillow("1", "TIFF")),
    "deep.tif": (1, _pillow("I;16", "TIFF")),
    "float.tif": (1, _pillow("F", "TIFF")),
    "white_is_zero.tif": (1, _bands(1, "uint8", photometric="miniswhite", planarconfig=None)),
    "bands.tif": (8, _bands(8, "uint16")),
    "bands_tiled.tif": (8, _bands(8, "uint16", tile=(32, 48), compression="zlib", predictor=True)),
    "bands_strips.tif": (8, _bands(8, "uint16", rowsperstrip=13, compression="zlib")),
    "planes.tif": (5, _bands(5, "float32", planarconfig="separate")),
    "planes_tiled.btf": (5, _bands(5, "float32", planarconfig="separate", tile=(32, 32), bigtiff=True, byteorder=">")),
    "colour16.tif": (3, _bands(3, "uint16", photometric="rgb", tile=(32, 32))),
    "rgb.npy": (3, _bands(3, "uint8")),
    "bands.npy": (9, _bands(9, "uint16")),
}


def _ways(name: str) -> range:
    """EXIF orientations that a format has."""
    return range(1, 9) if name in ("rgb.jpg", "rgb.png", "rgb.webp", "rgb.tif") or "bands_" in name else range(1, 2)


@pytest.mark.parametrize(
    ("name", "orientation"), [(name, orientation) for name in FORMATS for orientation in _ways(name)]
)
def test_a_tile_is_the_crop_of_the_whole_picture(tmp_path: Path, picture: Picture, name: str, orientation: int) -> None:
    channels, write = FORMATS[name]
    path = tmp_path / name
    write(path, np.ascontiguousarray(picture[:150, 60:250]))
    if orientation > 1:
        _orient(path, orientation)
    size = (150, 190) if orientation < 5 else (190, 150)
    scale = Scale(integer=(0, 51_000), floating=(0, 255))
    whole = decode(path, channels, scale)
    assert read_header(path).size == whole.shape[:2] == size
    tiles = cut(find_images(tmp_path), Cutting(TILE), workers=1, progress=False)
    assert len(tiles) == 9
    for i, (y, x) in enumerate(corners(size, Cutting(TILE))):
        assert tiles.names[i] == f"{name}#y{y}x{x}"
        data = tiles.read(i)
        assert read_header(data).size == (TILE, TILE)
        assert read_header(data).channels == read_header(path).channels
        assert np.array_equal(decode(data, channels, scale), whole[y : y + TILE, x : x + TILE]), (name, y, x)


def _orient(path: Path, orientation: int) -> None:
    if path.suffix == ".tif" and path.name != "rgb.tif":
        with tifffile.TiffFile(path) as file:
            array, page = file.asarray(), file.pages.first
            options: dict[str, Any] = {"tile": (32, 48)} if page.is_tiled else {"rowsperstrip": 13}
        tags = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(
            path, array, photometric="minisblack", planarconfig="contig", compression="zlib", extratags=tags, **options
        )
        return
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.load()
        image.save(path, exif=exif, **({"lossless": True} if path.suffix == ".webp" else {}))


def _folder(tmp_path: Path, picture: Picture) -> Path:
    """Two photographs of 200 x 130 px in class folders, and one of 50 x 40."""
    root = tmp_path / "photos"
    for name, (top, height, width) in {
        "a/large.png": (0, 130, 200),
        "a/small.png": (40, 50, 40),
        "b/large.png": (200, 130, 200),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[top : top + height, :width]).save(root / name)
    return root


def test_names_labels_groups_and_order(tmp_path: Path, picture: Picture) -> None:
    root = _folder(tmp_path, picture)
    whole = find_images(root)
    assert cut(whole, Cutting(0)) is whole
    tiles = cut(whole, Cutting(100), workers=1, progress=False)
    assert tiles.names == [
        *("a/large.png#y0x0", "a/large.png#y0x100", "a/large.png#y30x0", "a/large.png#y30x100"),
        "a/small.png",
        *("b/large.png#y0x0", "b/large.png#y0x100", "b/large.png#y30x0", "b/large.png#y30x100"),
    ]
    assert tiles.labels is not None
    assert tiles.labels.tolist() == [0] * 5 + [1] * 4
    assert tiles.groups == ["a/large.png"] * 4 + ["a/small.png"] + ["b/large.png"] * 4
    assert tiles.read(4) == root / "a/small.png"
    assert tiles.cutting.tile == 100
    again = cut(find_images(root), Cutting(100), workers=3, progress=False)
    assert (again.names, again.digest()) == (tiles.names, tiles.digest())
    assert len({tiles.digest(), whole.digest(), cut(whole, Cutting(64), progress=False).digest()}) == 3
    (tmp_path / "labels.csv").write_text("path,label,group\na/large.png,x,p1\nb/large.png,y,p1\na/small.png,x,p2\n")
    named = cut(find_images(root, tmp_path / "labels.csv"), Cutting(100), progress=False)
    assert named.groups == ["p1"] * 4 + ["p2"] + ["p1"] * 4


def test_no_split_separates_tiles_of_one_image(tmp_path: Path, picture: Picture) -> None:
    for i in range(6):
        Image.fromarray(picture[40 * i : 40 * i + 200, :200]).save(tmp_path / f"{i}.png")
    tiles = cut(find_images(tmp_path), Cutting(64), progress=False)
    for seed in range(5):
        fit, held = hold_out(np.arange(len(tiles)) % 2, seed, groups=tiles.groups)
        assert not {tiles.names[i].split("#")[0] for i in fit} & {tiles.names[i].split("#")[0] for i in held}


def test_images_no_larger_than_a_tile_are_as_they_were(photos: Path) -> None:
    whole, tiles = find_images(photos), cut(find_images(photos), Cutting(128), progress=False)
    assert (tiles.names, tiles.groups) == (whole.names, None)
    assert [tiles.read(i) for i in range(6)] == [whole.read(i) for i in range(6)]


class _Pictures:
    """A map-style data set of Pillow images."""

    def __init__(self, stack: Picture) -> None:
        self.stack = stack

    def __len__(self) -> int:
        return len(self.stack)

    def __getitem__(self, i: int) -> Image.Image:
        return Image.fromarray(self.stack[i])


def test_arrays_and_data_sets_are_cut(picture: Picture) -> None:
    stack = np.stack([picture[:150, :190], picture[150:300, :190]])
    tiles = cut(find_images(stack), Cutting(100), progress=False)
    assert tiles.names[:2] == ["0000000#y0x0", "0000000#y0x90"]
    assert np.array_equal(decode(tiles.read(5), 3), picture[150:250, 90:190])
    images = cut(find_images(_Pictures(stack)), Cutting(100), progress=False)
    assert images.names == tiles.names
    assert np.array_equal(decode(images.read(5), 3), picture[150:250, 90:190])


def test_canvases_of_tiles(tmp_path: Path, picture: Picture) -> None:
    root = _folder(tmp_path, picture)
    tiles = cut(find_images(root), Cutting(100), progress=False)
    assert sample_sides(tiles) == 100
    assert survey(tiles, "auto", 1, False).channels == 3
    canvases = open_canvases(tiles, 50, cache_dir=tmp_path / "cache", progress=False)
    assert len(canvases) == 9
    assert canvases.cutting.tile == 100
    assert canvases.original.tolist()[3:5] == [[100, 100], [50, 40]]
    other = open_canvases(
        cut(find_images(root), Cutting(64), progress=False), 50, cache_dir=tmp_path / "cache", progress=False
    )
    assert other.original.max() == 64
    assert len(list((tmp_path / "cache/canvases").iterdir())) == 2


def test_headers_only_for_the_index(tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (_, write) in FORMATS.items():
        write(tmp_path / name, np.ascontiguousarray(picture[:150, :190]))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pixels are decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    monkeypatch.setattr("belvedere.images.tiff.Tiff.region", refuse)
    tiles = cut(find_images(tmp_path), Cutting(100), progress=False)
    assert len(tiles) == 4 * len(FORMATS)
    assert not tiles.skipped


def test_a_broken_header_is_skipped_and_broken_pixels_once_decoded(
    tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = _folder(tmp_path, picture)
    (root / "b/broken.png").write_bytes(b"nothing")
    path = root / "b/large.png"
    path.write_bytes(path.read_bytes()[:9000])
    tiles = cut(find_images(root), Cutting(64), progress=False)
    assert [(item.name, item.reason) for item in tiles.skipped] == [("b/broken.png", "not an image in a known format")]
    decoded = []

    def count(data: Data) -> Opened:
        decoded.append(data)
        return upright(data)

    monkeypatch.setattr("belvedere.images.tiles.upright", count)
    canvases = open_canvases(tiles, 32, cache_dir=tmp_path / "cache", progress=False)
    broken = [item for item in canvases.skipped if item.name.startswith("b/large.png#")]
    assert len(broken) == count_tiles((130, 200), Cutting(64))
    assert len({item.reason for item in broken}) == 1
    assert set(decoded) == {root / "a/large.png", path}
    assert len(decoded) == 2


def test_a_png_that_says_behind_its_pixels_how_to_turn_it_is_set_aside(tmp_path: Path, picture: Picture) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(picture[:100, :150]).save(buffer, "PNG", exif=exif)
    png = buffer.getvalue()
    start = png.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(png[start : start + 4], "big")
    (tmp_path / "a.png").write_bytes(png[:start] + png[end:-12] + png[start:end] + png[-12:])
    tiles = cut(find_images(tmp_path), Cutting(64), progress=False)
    with pytest.raises(ValueError, match="its pixels are 100 x 150, its header says otherwise"):
        decode(tiles.read(0), 3)


def test_images_in_memory_are_fetched_once(tmp_path: Path, picture: Picture) -> None:
    for name in ("bands_tiled.tif", "rgb.npy", "rgb.jpg"):
        FORMATS[name][1](tmp_path / name, np.ascontiguousarray(picture[:150, :190]))
    source, asked = find_images(tmp_path), list[int]()

    class Shard:
        def read(self, i: int) -> bytes:
            asked.append(i)
            return (tmp_path / source.names[i]).read_bytes()

        def digest(self) -> str:
            return ""

    files = cut(source, Cutting(64), progress=False)
    shard = cut(replace(source, items=Shard()), Cutting(64), progress=False)
    asked.clear()
    assert shard.names == files.names
    for i in range(len(files)):
        channels = read_header(files.read(i)).channels
        assert np.array_equal(decode(shard.read(i), channels), decode(files.read(i), channels))
    assert sorted(set(asked)) == asked


def test_headers_that_claim_the_earth_together_are_refused(
    tmp_path: Path, picture: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these is believed alone; not one tile of them is made."""
    Image.fromarray(picture).save(tmp_path / "good.png")
    for number in range(30):
        (tmp_path / f"{number:02}.png").write_bytes(png_of(500_000 - number, 500_000))
    monkeypatch.setattr("belvedere.images.tiles._places", None)
    told = r"photos: 28,6\d\d,\d+ tiles, more than the 20,000,000 .* most are of 00\.png \(500000 x "
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(UserError, match=told.replace("photos", str(tmp_path))):
        cut(find_images(tmp_path), Cutting(512), workers=1, progress=False)


def test_a_header_that_claims_the_earth_is_not_believed(tmp_path: Path, picture: Picture) -> None:
    root = _folder(tmp_path, picture)
    huge(tmp_path / "photos", "tiled", 600_000)
    tiles = cut(find_images(root), Cutting(512), progress=False)
    assert tiles.names == ["a/large.png", "a/small.png", "b/large.png"]
    assert tiles.skipped == [
        Skipped("slide.tif", "its header claims 600000 x 600000 px, more than 1000000 tiles"),
    ]


def test_no_readable_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of 1 images can be read; a\.png: empty file"):
        cut(find_images(tmp_path), Cutting(64), progress=False)


def test_empty_tiles_are_set_aside_and_refuse_nothing(tmp_path: Path, picture: Picture) -> None:
    slide = np.full((256, 512, 3), 243, np.uint8)
    slide[:64, :192] = picture[:64, :192]
    buffer = io.BytesIO()
    Image.fromarray(slide).save(buffer, "JPEG", quality=70)
    (tmp_path / "slide.jpg").write_bytes(buffer.getvalue())
    tiles = cut(find_images(tmp_path), Cutting(TILE), progress=False)
    assert len(tiles) == 32
    canvases = open_canvases(tiles, 32, cache_dir=tmp_path / "cache", progress=False)
    assert canvases.names == [f"slide.jpg#y0x{x}" for x in (0, 64, 128)]
    assert {item.reason for item in canvases.skipped} == {EMPTY}
    found = check(tmp_path, progress=False, tile=TILE)
    assert (found.count, len(found.skipped), found.refused) == (3, 29, None)
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(3):  # a whole image of one colour is the user's own choice
        Image.new("RGB", (40, 40), (i, 9, 9)).save(flat / f"{i}.png")
    assert len(open_canvases(cut(find_images(flat), Cutting(64), progress=False), 32, progress=False)) == 3


def test_check_of_images_too_large_to_be_read_says_how_to_cut_them(tmp_path: Path) -> None:
    huge(tmp_path, "tiled")
    with pytest.raises(UserError, match=r"20000 x 20000 px are too many for one image; images\.tile=512 cuts it"):
        check(tmp_path, progress=False)


def test_check_suggests_tiles_for_large_images_only(tmp_path: Path, photos: Path) -> None:
    (tmp_path / "large").mkdir()
    for i in range(2):
        Image.new("L", (2600, 2100), 40 * i).save(tmp_path / f"large/{i}.png")
    (line,) = (line for line in check(tmp_path / "large", progress=False).lines() if "images.tile" in line)
    assert line == (
        "large images: views show them 8 times smaller than they are; "
        "if they are slides, maps or scans, images.tile=512 cuts them into 60 tiles"
    )
    assert not any("images.tile" in line for line in check(photos, progress=False).lines())
    assert f"{photos}: 24 usable tiles of 64 px, 0 set aside" in check(photos, progress=False, tile=64).lines()


def test_held_makes_a_value_once_for_all_threads_and_keeps_within_its_limit() -> None:
    held, made, together = Held(limit=100), [], Barrier(4)

    def make(key: int) -> tuple[str, int]:
        made.append(key)
        return f"value {key}", 40

    def ask(_: int) -> list[str]:
        together.wait()
        return [held.get(key, lambda key=key: make(key)) for key in range(2)]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == [["value 0", "value 1"]] * 4
    assert sorted(made) == [0, 1]
    for key in (2, 3, 2):
        held.get(key, lambda key=key: make(key))
    assert made[2:] == [2, 3]
    held.get(0, lambda: make(0))
    assert made[4:] == [0]  # let go of when 2 came

    def fail() -> tuple[str, int]:
        raise ValueError("broken")

    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            held.get("bad", fail)


@pytest.mark.parametrize("kind", ["npy", "plain", "tiled", "strips"])
def test_a_slide_of_400_megapixels_is_cut_without_being_held(tmp_path: Path, kind: str) -> None:
    """20,000 x 20,000 RGB pixels are 1.2 GB; the first rows of tiles and the last are cut."""
    huge(tmp_path, kind)
    command = [sys.executable, large_images.__file__, "--measure", str(tmp_path)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["tiles"] == 1600
    assert 0 < found["peak_mib"] < LIMIT / 2**20 + 100
