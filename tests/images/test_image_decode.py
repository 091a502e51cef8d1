"""Decoding modes, depths and channels, and the size of canvases."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from belvedere.errors import UserError
from belvedere.images.decode import UPRIGHT, Scale, canvas_size, decode, decode_canvas, reason, to_canvas
from belvedere.images.source import find_images
from belvedere.images.survey import sample_sides, survey

Picture = NDArray[np.uint8]


def _bytes(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@given(height=st.integers(1, 3000), width=st.integers(1, 3000), side=st.integers(1, 512))
def test_canvas_size_keeps_its_promises(height: int, width: int, side: int) -> None:
    h, w = canvas_size(height, width, side)
    assert 1 <= min(h, w) <= side
    assert max(h, w) <= 2 * side
    assert h <= height
    assert w <= width
    # One factor for both sides, up to rounding, and as large as the limits allow.
    factor = min(1, side / min(height, width), 2 * side / max(height, width))
    assert abs(h - height * factor) <= 0.5 or h == 1
    assert abs(w - width * factor) <= 0.5 or w == 1
    assert canvas_size(width, height, side) == (w, h)


@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    channels=st.integers(1, 5),
    side=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_to_canvas_invariants(height: int, width: int, channels: int, side: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    canvas = to_canvas(pixels, side)
    assert canvas.dtype == np.uint8
    assert canvas.shape == (*canvas_size(height, width, side), channels)
    if min(height, width) <= side and max(height, width) <= 2 * side:
        assert np.array_equal(canvas, pixels)
    flat = np.full_like(pixels, seed)
    assert np.array_equal(to_canvas(flat, side), np.full_like(canvas, seed))


def test_to_canvas_is_antialiased_and_treats_channels_alike(picture: Picture) -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (512, 256))[..., None]
    assert np.abs(to_canvas(stripes, 64).astype(float) - 127.5).max() <= 8  # without a filter: all 0 or all 255
    five = np.concatenate([picture, picture[..., :2]], axis=-1)
    assert np.array_equal(to_canvas(five, 100)[..., :3], to_canvas(picture, 100))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_pillow_mode_becomes_the_picture(picture: Picture, mode: str, channels: int) -> None:
    image = Image.fromarray(picture[:128, 128:256])
    pixels = decode(_convert(image, mode), channels)
    gray = channels == 1 or mode in ("1", "L", "LA")
    expected = np.asarray(image.convert("L" if gray else "RGB"), float).reshape(128, 128, -1)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (128, 128, channels))
    if mode == "1":  # dithered, so only the mean is kept
        assert pixels.mean() == pytest.approx(expected.mean(), abs=3)
    else:
        assert np.abs(pixels - expected).mean() < 6


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if mode in ("P", "PA"):
        return image.convert("P", palette=Image.Palette.ADAPTIVE).convert(mode)
    return image.convert("RGBA").convert(mode) if mode == "RGBa" else image.convert(mode)


def test_gray_and_alpha_of_one_channel_composites_on_white(gray: Picture) -> None:
    alpha = np.linspace(0, 255, 256).round().astype(np.uint8)[None].repeat(256, 0)
    image = Image.merge("LA", (Image.fromarray(gray), Image.fromarray(alpha)))
    opacity = alpha / 255
    assert np.abs(decode(image, 1)[..., 0] - (gray * opacity + 255 * (1 - opacity))).max() <= 1.5


def test_transparent_colour_without_alpha_channel(picture: Picture) -> None:
    pixels = picture[:32, :32].copy()
    pixels[:8] = (1, 2, 3)
    decoded = decode(_bytes(Image.fromarray(pixels), "PNG", transparency=(1, 2, 3)), 3)
    assert (decoded[:8] == 255).all()
    assert np.array_equal(decoded[8:], pixels[8:])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation(picture: Picture, orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = _bytes(Image.fromarray(picture[:96, :160]), format, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(decode(data, 3), expected)
    canvas, original = decode_canvas(data, 3, Scale(), 32)
    assert original == expected.shape[:2]
    assert canvas.shape == (*canvas_size(*original, 32), 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_lose_the_picture(picture: Picture) -> None:
    data = _bytes(Image.fromarray(picture[:64, :64]), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\x01")
    assert decode(data, 3).shape == (64, 64, 3)
    assert set(UPRIGHT) == set(range(2, 9))


def test_damaged_pixels_of_a_png_are_never_taken_for_black(picture: Picture) -> None:
    data = bytearray(_bytes(Image.fromarray(picture[:64, :64]), "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises((OSError, SyntaxError)) as caught:
        decode(bytes(data), 3)
    assert reason(caught.value)


def test_programs_are_not_run_for_a_renamed_eps(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(UnidentifiedImageError) as caught:
        decode(tmp_path / "a.jpg", 3)
    assert reason(caught.value) == "not an image in a known format"


def test_arrays_of_any_channel_count(picture: Picture) -> None:
    five = np.concatenate([picture, picture[..., :2]], axis=-1)
    assert np.array_equal(decode(five, 5), five)
    assert np.array_equal(decode(five[..., 0], 3), five[..., [0, 0, 0]])
    assert np.array_equal(decode(picture, 1)[..., 0], np.asarray(Image.fromarray(picture).convert("L")))
    with pytest.raises(ValueError, match="5 channels where the data set has 3"):
        decode(five, 3)
    with pytest.raises(ValueError, match=r"not \[H,W\] or \[H,W,C\]"):
        decode(five[None], 5)


def test_bands_of_npy_files_in_a_folder(tmp_path: Path, picture: Picture) -> None:
    bands = np.concatenate([picture, picture[..., :1]], axis=-1).astype(np.uint16) * 257
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", bands[i * 32 : i * 32 + 64])
    source = find_images(tmp_path)
    found = survey(source, "auto", 1, False)
    assert (found.channels, found.scale.integer) == (4, (0, 65535))
    assert np.array_equal(decode(source.read(1), 4, found.scale)[..., :3], picture[32:96])


@pytest.mark.parametrize(("factor", "high"), [(257, 65535), (16, 4095), (4, 1023), (1, 255), (16 * 16, 65535)], ids=str)
def test_depth_follows_the_bits_in_use(gray: Picture, factor: int, high: int) -> None:
    deep = np.stack([gray, gray // 2]).astype(np.uint16) * factor
    source = find_images(deep)
    scale = survey(source, "auto", 1, False).scale
    assert scale.integer == (0, high)
    assert np.abs(decode(source.read(0), 1, scale)[..., 0].astype(int) - gray).max() <= 1
    # One scale for the whole set: a darker image stays darker.
    assert np.abs(decode(source.read(1), 1, scale)[..., 0].astype(int) - gray // 2).max() <= 1


def test_twelve_bit_microscopy_in_a_16_bit_tiff_is_not_black(tmp_path: Path, gray: Picture) -> None:
    for i in range(2):
        Image.fromarray((gray.astype(np.uint16) * 16) >> i).save(tmp_path / f"{i}.tif")
    source = find_images(tmp_path)
    scale = survey(source, "auto", 1, False).scale
    assert decode(source.read(0), 1, scale).mean() == pytest.approx(gray.mean(), abs=1)
    assert decode(source.read(1), 1, scale).mean() == pytest.approx(gray.mean() / 2, abs=1)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, (0, 1)), (0, 0.4, (0, 1)), (0, 255, (0, 255)), (-3, 5, (-3, 5)), (0, 5, (0, 5)), (-1, 1, (-1, 1))],
)
def test_float_ranges(gray: Picture, low: float, high: float, expected: tuple[float, float]) -> None:
    unit = (gray.astype(np.float32) - gray.min()) / (int(gray.max()) - gray.min())
    images = np.stack([unit, unit.T]) * (high - low) + low
    images[1, 0, 0] = np.nan
    source = find_images(images)
    scale = survey(source, "auto", 1, False).scale
    assert scale.floating == pytest.approx(expected)
    shown = decode(source.read(0), 1, scale)
    assert shown.max() == round(255 * (high - expected[0]) / (expected[1] - expected[0]))
    assert shown.min() == 0
    assert decode(source.read(1), 1, scale)[0, 0, 0] == 0


def test_signed_values_keep_their_range(gray: Picture) -> None:
    source = find_images(np.stack([gray, gray]).astype(np.int16) * 10 - 1000)
    bounds = (int(gray.min()) * 10 - 1000, int(gray.max()) * 10 - 1000)
    assert survey(source, "auto", 1, False).scale.integer == bounds


def test_channels_of_a_set(tmp_path: Path, picture: Picture, gray: Picture) -> None:
    Image.fromarray(gray).save(tmp_path / "a.png")
    Image.fromarray(gray).convert("LA").save(tmp_path / "b.png")
    assert survey(find_images(tmp_path), "auto", 1, False).channels == 1
    assert survey(find_images(tmp_path), 3, 1, False).channels == 3
    Image.fromarray(picture).save(tmp_path / "c.png")
    assert survey(find_images(tmp_path), "auto", 1, False).channels == 3
    assert survey(find_images(tmp_path), 1, 1, False).channels == 1
    with pytest.raises(UserError, match="channels=4, but its images have 1 and 3"):
        survey(find_images(tmp_path), 4, 1, False)
    np.save(tmp_path / "d.npy", np.zeros((16, 16, 5), np.uint8))
    with pytest.raises(UserError, match="1 and 3 and 5"):
        survey(find_images(tmp_path), "auto", 1, False)


def test_dark_16_bit_colour_is_warned_of(tmp_path: Path, gray: Picture, caplog: pytest.LogCaptureFixture) -> None:
    """A hand-made PNG: Pillow itself writes no 16-bit colour."""
    values = (np.repeat(gray[:16, :16, None], 3, axis=2).astype(np.uint16) * 16).astype(">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in values)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    packed = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + packed)
    assert survey(find_images(tmp_path), "auto", 1, False).modes == {"RGB;16": 2}
    assert "come out nearly black" in caplog.text


def test_sampled_sides(tmp_path: Path, picture: Picture) -> None:
    for i, (height, width) in enumerate([(40, 90), (60, 20), (50, 50), (30, 31)]):
        Image.fromarray(picture[:height, :width]).save(tmp_path / f"{i}.png")
    (tmp_path / "4.png").write_bytes(b"")
    assert sample_sides(find_images(tmp_path)) == 35
    assert sample_sides(find_images(tmp_path / "*[034].png"), limit=2) == 40
    with pytest.raises(UserError, match=r"none of 1 sampled images can be read; 4.png: empty file"):
        sample_sides(find_images(tmp_path / "4*"))


def test_large_jpeg_is_decoded_at_a_fraction(picture: Picture) -> None:
    data = _bytes(Image.fromarray(picture).resize((2048, 2048)), "JPEG", quality=95)
    canvas, original = decode_canvas(data, 3, Scale(), 128)
    exact = to_canvas(decode(data, 3), 128)
    assert (canvas.shape, original) == ((128, 128, 3), (2048, 2048))
    assert not np.array_equal(canvas, exact)  # else draft mode was not used
    assert np.abs(canvas.astype(int) - exact).mean() < 1.5


def test_given_images_are_left_as_they_were(picture: Picture) -> None:
    image = Image.open(io.BytesIO(_bytes(Image.fromarray(picture), "JPEG")))
    decode_canvas(image, 3, Scale(), 32)
    assert image.size == (512, 512)
    assert np.asarray(image).shape == (512, 512, 3)


def test_reasons_are_single_lines() -> None:
    assert reason(PermissionError(13, os.strerror(13))) == "Permission denied"
    assert reason(ValueError("first\nsecond")) == "first"
    assert reason(KeyError("x")) == "KeyError: 'x'"
    assert reason(MemoryError()) == "MemoryError"
