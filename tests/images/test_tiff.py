"""TIFF of many bands and depths: what is read, how, and what is refused."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from belvedere.errors import UserError
from belvedere.images.check import check
from belvedere.images.cutting import Cutting
from belvedere.images.decode import UPRIGHT, Scale, decode, decode_canvas, raw_values, read_header, reason
from belvedere.images.part import Part
from belvedere.images.source import find_images
from belvedere.images.survey import survey
from belvedere.images.tiff import open_tiff
from belvedere.images.tiles import cut

LAYOUTS: list[dict[str, Any]] = [
    {},
    {"tile": (32, 48)},
    {"compression": "zlib", "predictor": True, "rowsperstrip": 7},
    {"compression": "zlib", "tile": (16, 64)},
    {"planarconfig": "separate", "tile": (32, 32)},
    {"planarconfig": "separate", "compression": "lzma", "rowsperstrip": 5},
    {"bigtiff": True, "byteorder": ">"},
    {"bigtiff": True, "byteorder": ">", "tile": (64, 32), "compression": "zlib"},
]
DTYPES = ("uint8", "uint16", "int16", "uint32", "float32", "float64")


def bands(channels: int, dtype: str, size: tuple[int, int] = (70, 101)) -> NDArray[Any]:
    """Smooth gradients, every band another one, over most of the range of whole numbers, or 0 to 1."""
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    planes = np.stack([np.sin(3 * (c + 1) * x + c) * np.cos(2 * y + c) for c in range(channels)], -1)
    unit = (planes + 1) / 2
    return (unit * (np.iinfo(dtype).max if dtype[0] in "ui" else 1)).astype(dtype)


def written(array: NDArray[Any], **options: Any) -> bytes:
    """A TIFF's bytes; channels are bands, unless `photometric` says otherwise."""
    buffer = io.BytesIO()
    options.setdefault("photometric", "minisblack")
    options.setdefault("planarconfig", "contig" if array.ndim == 3 else None)
    if options["planarconfig"] == "separate" and array.ndim == 3:
        array = np.moveaxis(array, -1, 0)
    tifffile.imwrite(buffer, array, metadata=None, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [2, 4, 13])
def test_bands_of_every_layout_and_depth(channels: int, dtype: str, layout: dict[str, Any]) -> None:
    if layout.get("predictor") and dtype[0] == "f":
        layout = {key: value for key, value in layout.items() if key != "predictor"}
    array = bands(channels, dtype)
    data = written(array, **layout)
    header = read_header(data)
    assert (header.channels, header.size, header.mode) == (channels, (70, 101), dtype)
    assert header.deep == (dtype != "uint8")
    values = raw_values(data)
    assert values.dtype == dtype
    assert np.array_equal(values, array)
    high = float(array.max())
    assert np.array_equal(decode(data, channels, Scale((0, high), (0, 1))), Scale((0, high), (0, 1)).to_uint8(array))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_16_bit_colour_keeps_its_lower_bits(picture: NDArray[np.uint8], layout: dict[str, Any]) -> None:
    array = (picture[:70, :101].astype(np.uint16) << 2) + 3  # a 10-bit camera
    data = written(array, photometric="rgb", **layout)
    assert np.array_equal(raw_values(data), array)
    found = np.abs(decode(data, 3, Scale(integer=(0, 1023))).astype(int) - picture[:70, :101])
    assert found.max() <= 1


def test_a_set_of_16_bit_tiffs_has_one_depth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i, high in enumerate((900, 4000)):
        (tmp_path / f"{i}.tif").write_bytes(written((bands(4, "float64") * high).astype(np.uint16)))
    source = find_images(tmp_path)
    with caplog.at_level(logging.WARNING):
        found = survey(source, "auto", 1, False)
    assert (found.channels, found.scale.integer) == (4, (0, 4095))
    assert not caplog.records
    lines = "\n".join(check(tmp_path, progress=False).lines())
    assert "modes: uint16 2; used as 4 channels" in lines
    assert "whole numbers above 8 bits: 0 to 4095 becomes 0 to 255" in lines


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_where_white_is_zero(dtype: str) -> None:
    array = bands(1, dtype)
    expected = array if dtype == "float32" else np.iinfo(dtype).max - array  # of floats no value is white
    data = written(array[..., 0], photometric="miniswhite")
    assert np.array_equal(decode(data, 1), Scale().to_uint8(expected))
    two = written(bands(2, dtype), photometric="miniswhite")
    assert np.array_equal(decode(two, 2), Scale().to_uint8(np.concatenate([expected, bands(2, dtype)[..., 1:]], 2)))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_bands(dtype: str, orientation: int) -> None:
    array = bands(5, dtype)
    data = written(array, extratags=[(274, "H", 1, orientation, True)])
    expected = UPRIGHT[orientation](array) if orientation > 1 else array
    assert read_header(data).size == expected.shape[:2]
    assert np.array_equal(decode(data, 5), Scale().to_uint8(expected))
    canvas, original = decode_canvas(data, 5, Scale(), 20)
    assert original == expected.shape[:2]
    assert (canvas.shape[0] > canvas.shape[1]) == (expected.shape[0] > expected.shape[1])


def test_what_pillow_reads_whole_stays_with_pillow(picture: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I", "F"):
        image = Image.fromarray(picture[:64, :96])
        image = image.convert("L").convert(mode) if mode in ("I;16", "I", "F") else image.convert(mode)
        buffer = io.BytesIO()
        image.save(buffer, "TIFF", compression="tiff_lzw" if mode == "RGB" else None)
        assert read_header(buffer.getvalue()).format == "TIFF"
        assert decode(buffer.getvalue(), 3).shape == (64, 96, 3)


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_no_band(picture: NDArray[np.uint8], channels: int, kind: str) -> None:
    colours = picture[:64, :96, :channels]
    alpha = np.full((64, 96, 1), 255, np.uint8)
    alpha[:32] = 0
    array = np.concatenate([colours * (alpha > 0), alpha], axis=2)
    data = written(array, photometric="minisblack" if channels == 1 else "rgb", extrasamples=[kind])
    assert read_header(data).channels == channels
    pixels = decode(data, channels)
    assert (pixels[:32] == 255).all()
    assert np.array_equal(pixels[32:], colours[32:])
    deep = written(array.astype(np.uint16), photometric="minisblack" if channels == 1 else "rgb", extrasamples=[kind])
    assert read_header(deep).channels == channels
    assert np.array_equal(raw_values(deep), colours * (alpha > 0))


def test_a_fourth_band_of_no_kind_is_a_band(picture: NDArray[np.uint8]) -> None:
    array = np.concatenate([picture[:64, :96], picture[64:128, :96, :1]], axis=2)
    data = written(array, photometric="rgb", extrasamples=["unspecified"])
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGB"  # Pillow leaves it out
    assert np.array_equal(decode(data, 4), array)


def test_what_gdal_marks_as_nothing() -> None:
    nothing = [(42113, "s", 0, "-9999", True)]
    heights = bands(1, "float32")[..., 0]
    heights[:10] = -9999
    for data in (written(heights, extratags=nothing), written(np.stack([heights] * 2, -1), extratags=nothing)):
        values = raw_values(data)
        assert np.isnan(values[:10]).all()
        assert np.array_equal(values[10:].reshape(60, 101, -1)[..., 0], heights[10:])
        assert (decode(data, 1 if values.ndim == 2 else 2)[:10] == 0).all()
    whole = bands(2, "int16")
    whole[:10] = -9999
    assert (raw_values(written(whole, extratags=nothing))[:10] == 0).all()


def test_segments_that_a_sparse_file_leaves_out_are_nothing(tmp_path: Path) -> None:
    tile = bands(2, "float32", (32, 32))
    path = tmp_path / "sparse.tif"
    nothing = [(42113, "s", 0, "-9999", True)]
    options: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig", "extratags": nothing}
    segments = iter([tile, None, None, tile])
    tifffile.imwrite(
        path, segments, shape=(64, 64, 2), dtype="float32", tile=(32, 32), compression="zlib", metadata=None, **options
    )
    values = raw_values(path)
    assert np.array_equal(values[:32, :32], tile)
    assert np.array_equal(values[32:, 32:], tile)
    assert np.isnan(values[:32, 32:]).all()
    assert np.isnan(values[32:, :32]).all()


def test_the_first_page_is_the_picture(tmp_path: Path) -> None:
    large, small = bands(5, "uint16", (128, 96)), bands(5, "uint16", (64, 48))
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(large, photometric="minisblack", planarconfig="contig", subifds=1, tile=(32, 32))
        writer.write(small, photometric="minisblack", planarconfig="contig", subfiletype=1)
        writer.write(small, photometric="minisblack", planarconfig="contig")
    assert np.array_equal(raw_values(path), large)


@pytest.mark.parametrize(
    ("kind", "axes"),
    [("ome", "CYX"), ("ome", "ZCYX"), ("ome", "CZYX"), ("ome", "TCYX"), ("imagej", "CYX"), ("imagej", "ZCYX")],
)
def test_microscopes_keep_channels_on_pages(tmp_path: Path, kind: str, axes: str) -> None:
    channels = np.moveaxis(bands(3, "uint16"), -1, 0)
    stack = channels if axes == "CYX" else np.stack([channels, channels[:, ::-1]], axes.index("C") ^ 1)
    path = tmp_path / f"cells.{kind}.tif"
    tifffile.imwrite(path, stack, metadata={"axes": axes}, photometric="minisblack", **{kind: True})
    assert read_header(path).channels == 3
    assert np.array_equal(raw_values(path), bands(3, "uint16"))


def test_without_tifffile_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        (tmp_path / f"{i}.tif").write_bytes(written(bands(4, "uint16")))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UserError, match=r'pip install "belvedere\[tiff\]"') as caught:
        check(tmp_path, progress=False)
    assert "\n" not in str(caught.value)


def test_a_codec_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(bands(4, "uint16"), compression="zlib")
    monkeypatch.setitem(vars(tifffile.TIFF), "DECOMPRESSORS", {})
    with pytest.raises(ValueError, match="compressed as ADOBE_DEFLATE, which needs: pip install imagecodecs"):
        decode(data, 4)


def test_a_huge_tiff_is_refused_whole_and_told_how_to_cut(tmp_path: Path) -> None:
    path = tmp_path / "huge.tif"
    tifffile.memmap(path, shape=(20_000, 20_000, 4), dtype=np.uint8, photometric="minisblack", planarconfig="contig")
    gray = tmp_path / "gray.tif"
    tifffile.memmap(gray, shape=(30_000, 30_000), dtype=np.uint8, photometric="minisblack")
    for file, side in ((path, 20_000), (gray, 30_000)):
        assert read_header(file).size == (side, side)
        with pytest.raises(ValueError, match=r"images\.tile=512") as caught:
            decode(file, 4)
        assert reason(caught.value).startswith(f"{side} x {side} px are too many for one image")


def test_a_segment_that_claims_too_much_is_refused() -> None:
    data = bytearray(written(bands(4, "uint16"), compression="zlib", rowsperstrip=70))
    tag = data.index((279).to_bytes(2, "little") + (4).to_bytes(2, "little"))
    data[tag + 8 : tag + 12] = (2**31).to_bytes(4, "little")
    with pytest.raises(ValueError, match="claims 2147483648 bytes"):
        decode(bytes(data), 4)


def test_tiles_that_claim_to_be_huge_are_refused() -> None:
    data = bytearray(written(bands(4, "uint16"), tile=(32, 48)))
    tag = data.index((322).to_bytes(2, "little") + (4).to_bytes(2, "little"))
    data[tag + 8 : tag + 12] = (2**26).to_bytes(4, "little")
    with pytest.raises(ValueError, match=r"strips or tiles of 67108864 x 32 px are too large"):
        decode(bytes(data), 4)


@settings(max_examples=150)
@given(data=st.data(), layout=st.sampled_from(LAYOUTS))
def test_damage_raises_and_never_ends_the_run(data: st.DataObject, layout: dict[str, Any]) -> None:
    whole = bytearray(written(bands(4, "uint16"), **layout))
    for _ in range(data.draw(st.integers(1, 4))):
        # Heads and tables lie at the beginning or, in some layouts, at the end.
        place = data.draw(st.one_of(st.integers(0, 400), st.integers(len(whole) - 300, len(whole) - 1)))
        whole[min(place, len(whole) - 1)] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.integers(len(whole) // 2, len(whole)))])
    told = ""
    try:
        decode_canvas(damaged, 4, Scale(), 32)
    except Exception as error:
        told = reason(error)
    assert "MemoryError" not in told


def test_offsets_beyond_the_file_are_an_error(tmp_path: Path) -> None:
    whole = written(bands(4, "uint16"), compression="zlib", rowsperstrip=7)
    path = tmp_path / "cut.tif"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a damaged TIFF \(segment \d: "):
        open_tiff(path).read()


def test_a_slide_is_read_at_its_full_resolution(tmp_path: Path, picture: NDArray[np.uint8]) -> None:
    path = tmp_path / "slide.svs"
    with tifffile.TiffWriter(path) as writer:  # as scanners do: JPEG tiles, a thumbnail, then smaller levels
        jpeg = {"compression": "jpeg", "photometric": "rgb"}
        writer.write(picture, tile=(240, 240), description="Aperio Image Library v12.0", **jpeg)
        writer.write(picture[::8, ::8], photometric="rgb")
        writer.write(picture[::4, ::4], tile=(240, 240), **jpeg)
    with Image.open(path) as image:
        whole = np.asarray(image)
    tiles = cut(find_images(tmp_path), Cutting(256), progress=False)
    assert tiles.names == [f"slide.svs#y{y}x{x}" for y in (0, 256) for x in (0, 256)]
    for i, (y, x) in zip(range(4), ((0, 0), (0, 256), (256, 0), (256, 256)), strict=True):
        data = tiles.read(i)
        assert isinstance(data, Part)
        assert np.array_equal(data.load(), whole[y : y + 256, x : x + 256])
