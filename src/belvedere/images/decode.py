"""One image to uint8 pixels, whatever its format, depth or number of channels.

The first frame of the file, upright by its EXIF orientation. Transparency (alpha, palette or tRNS) is composited on
white, so hidden colours do not show. Depth above 8 bits is mapped by a `Scale` that holds for the whole data set:
Pillow's own conversion would clip a 16-bit scan to white and a float one to black. A TIFF that Pillow would read with
a loss - many bands, 16-bit colour - is read by `tiff`; 16-bit colour PNGs lose their lower 8 bits in Pillow: save them
as TIFF or `.npy` if those matter.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from belvedere.images.items import Data
from belvedere.images.npy import check_claim
from belvedere.images.part import Header, Opened, Part
from belvedere.images.tiff import NODATA, Tiff, is_tiff, open_tiff, reads_fully, without_nodata

FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "AVIF", "JPEG2000", "PPM", "PCX", "PSD"),
    *("QOI", "SGI", "TGA", "ICO"),
)
"""Formats by content, whatever a file is named (MPO is found as JPEG); EPS is left out, as it runs a program."""

GRAY_MODES = ("1", "L", "LA", "La")
NPY_MAGIC = b"\x93NUMPY"
ORIENTATION = 0x0112

Pixels = NDArray[np.uint8]

UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}
"""EXIF orientation -> what turns the stored picture upright; from 5 on, height and width change places."""

TURNS = dict(
    zip(
        range(2, 9),
        (
            *(Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM),
            *(Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE),
            Image.Transpose.ROTATE_90,
        ),
        strict=True,
    )
)
"""The same for Pillow images."""


@dataclass(frozen=True)
class Scale:
    """Ranges (low, high) of the data set that are mapped to 0..255: of whole numbers deeper than 8 bits, of floats."""

    integer: tuple[float, float] = (0.0, 65535.0)
    floating: tuple[float, float] = (0.0, 1.0)

    def to_uint8(self, values: NDArray[Any]) -> Pixels:
        """Map any numeric array to uint8: uint8 as it is, booleans to 0 and 255, NaN to 0, the rest by its range."""
        if values.dtype == np.uint8:
            return values
        if values.dtype.kind == "b":
            return values.astype(np.uint8) * np.uint8(255)
        low, high = self.floating if values.dtype.kind == "f" else self.integer
        scaled = (values.astype(np.float64) - low) * (255.0 / max(high - low, np.finfo(np.float64).tiny))
        return np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255)).astype(np.uint8)


def read_header(data: Data) -> Header:
    """Read the header of one image; pixels of files stay undecoded.

    Raises:
        Exception: whatever the decoder of a broken file raises; `reason` puts it into words.
    """
    if isinstance(data, Part):
        return data.header
    opened = _open(data)
    if isinstance(opened, Tiff):
        return opened.header
    if isinstance(opened, np.ndarray):
        kind, (height, width, channels) = opened.dtype.name, _as_hwc(opened).shape
        return Header("array", kind, channels, (height, width), deep=kind not in ("uint8", "bool"))
    try:
        deep = _is_deep(opened)
        gray = deep or opened.mode in GRAY_MODES
        colour16 = any(mark in str(getattr(opened, "tile", "")) for mark in ("RGB;16", "RGBA;16"))
        mode = opened.mode + (";16" if colour16 else "")
        return Header(opened.format or "image", mode, 1 if gray else 3, _upright_size(opened), deep)
    finally:
        _close(opened, data)


def decode(data: Data, channels: int, scale: Scale | None = None) -> Pixels:
    """Decode one image at its full size.

    Args:
        data: an image file, its bytes, a Pillow image, an array [H,W] or [H,W,C], or a part of one of these.
        channels: C of the result. 1 and 3 are converted into each other; any other count is taken as it is.
        scale: the data set's depth; by default 16 bits for whole numbers and 0..1 for floats.

    Returns:
        uint8 [h,w,C], upright.

    Raises:
        Exception: whatever the decoder of a broken file raises; `reason` puts it into words.
    """
    return _decode(data, channels, scale or Scale(), None)[0]


def decode_canvas(data: Data, channels: int, scale: Scale, side: int) -> tuple[Pixels, tuple[int, int]]:
    """Decode one image to its canvas (`to_canvas`) and return it with the original (h, w).

    Large JPEGs are decoded at a fraction of their size, still at least twice the canvas, which is several times faster.
    """
    pixels, original = _decode(data, channels, scale, side)
    return to_canvas(pixels, side, original), original


def raw_values(data: Data) -> NDArray[Any]:
    """Decode the raw values of one image, without any scaling; [H,W] or [H,W,C]."""
    opened, _ = _read(data)
    if isinstance(opened, np.ndarray):
        return opened
    try:
        return _deep_values(opened) if _is_deep(opened) else np.asarray(opened)
    finally:
        _close(opened, data)


def upright(data: Data) -> Opened:
    """Decode one image whole, as it is to be seen.

    Raises:
        Exception: whatever the decoder of a broken file raises; `reason` puts it into words.
    """
    opened, orientation = _read(data)
    if isinstance(opened, np.ndarray):
        return turned(_as_hwc(opened), orientation)
    opened.load()
    return turned(opened, max(orientation, _orientation(opened)))


def turned(picture: Opened, orientation: int) -> Opened:
    """A picture as it is to be seen, of one that is stored in an EXIF orientation."""
    if isinstance(picture, np.ndarray):
        return UPRIGHT[orientation](picture) if orientation in UPRIGHT else picture
    return picture.transpose(TURNS[orientation]) if orientation in TURNS else picture


def canvas_size(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width of a canvas: short side <= `side`, long side <= 2 `side`, aspect kept, never enlarged."""
    factor = min(1.0, side / min(height, width), 2 * side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def to_canvas(pixels: Pixels, side: int, original: tuple[int, int] | None = None) -> Pixels:
    """Scale [h,w,C] to its canvas with an antialiased bicubic filter; returned as it is where it already fits.

    `original` (h, w) fixes the canvas size where `pixels` were decoded at a fraction of it.
    """
    full_height, full_width = original or pixels.shape[:2]
    height, width = canvas_size(full_height, full_width, side)
    if pixels.shape[:2] == (height, width):
        return pixels

    def resize(plane: Pixels) -> Pixels:
        return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC))

    if pixels.shape[2] == 3:
        return resize(pixels)
    return np.stack([resize(np.ascontiguousarray(pixels[..., c])) for c in range(pixels.shape[2])], axis=-1)


def reason(error: BaseException) -> str:
    """Say in one short line why an image could not be read."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a known format"
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels (decompression bomb)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, OSError | ValueError | SyntaxError) and text:
        return text
    return f"{type(error).__name__}: {text}".rstrip(": ")


def _decode(data: Data, channels: int, scale: Scale, side: int | None) -> tuple[Pixels, tuple[int, int]]:
    """Upright pixels [h,w,C], at a fraction of the size where `side` allows it, and the original (h, w)."""
    opened, orientation = _read(data)
    if isinstance(opened, np.ndarray):
        array = _as_hwc(opened)
        pixels = _with_channels(scale.to_uint8(array), channels)
        width, height = array.shape[1], array.shape[0]
    else:
        try:
            width, height = opened.size
            if side is not None and opened is not data:
                wanted = canvas_size(height, width, side)
                opened.draft(opened.mode, (2 * wanted[1], 2 * wanted[0]))
            # A PNG's EXIF block may follow its pixels; loading first keeps their errors apart from those of the block.
            opened.load()
            orientation = max(orientation, _orientation(opened))
            pixels = _with_channels(_image_pixels(opened, channels, scale), channels)
        finally:
            _close(opened, data)
    if orientation in UPRIGHT:
        pixels = np.ascontiguousarray(UPRIGHT[orientation](pixels))
    return pixels, (width, height) if orientation >= 5 else (height, width)


def _read(data: Data) -> tuple[Opened, int]:
    """What `_open` gives, the pixels of a `Tiff` read, and the orientation of those."""
    opened = _open(data)
    return (opened.read(), opened.orientation) if isinstance(opened, Tiff) else (opened, 1)


def _open(data: Data) -> Opened | Tiff:
    """Open one image; only of a `Tiff` and of an image that Pillow opened the pixels are still to be read."""
    if isinstance(data, Part):
        return data.load()
    if isinstance(data, Image.Image | np.ndarray):
        return data
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    if data.startswith(NPY_MAGIC) if isinstance(data, bytes) else data.suffix.lower() == ".npy":
        # Mapped, a header that claims more than the file holds is refused before memory is asked for.
        mapped: Literal["r"] | None = None if isinstance(data, bytes) else "r"
        if isinstance(data, bytes):
            check_claim(io.BytesIO(data), len(data))
        array: NDArray[Any] = np.load(file, mmap_mode=mapped, allow_pickle=False)
        if array.dtype.kind not in "buif":
            raise ValueError(f"its values are {array.dtype}, not numbers")
        return array
    try:
        image = Image.open(file, formats=FORMATS)
    except (UnidentifiedImageError, Image.DecompressionBombError):
        if not (data if isinstance(data, bytes) else data.stat().st_size):
            raise ValueError("empty file") from None
        if is_tiff(data):
            return open_tiff(data)
        raise
    if image.format == "TIFF" and not reads_fully(image):
        image.close()
        return open_tiff(data)
    return image


def _close(opened: Image.Image, data: Data) -> None:
    """Close what `_open` opened; an image that was given stays open."""
    if opened is not data:
        opened.close()


def _as_hwc(array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3 or not array.size:
        raise ValueError(f"an array of shape {array.shape}, not [H,W] or [H,W,C]")
    return array


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; a damaged EXIF block must not lose the picture, so it counts as 1."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, struct.error):
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(h, w) as it is to be seen; no pixels are decoded, which Pillow would do to look for a PNG's EXIF behind them."""
    width, height = image.size
    # Pillow gives a TIFF's size upright.
    asked = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
    return (width, height) if asked and _orientation(image) >= 5 else (height, width)


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _deep_values(image: Image.Image) -> NDArray[Any]:
    """Values [h,w] of an image deeper than 8 bits, without those that GDAL marked as nothing."""
    nodata = getattr(image, "tag_v2", {}).get(NODATA)
    return without_nodata(np.asarray(image), nodata)


def _image_pixels(image: Image.Image, channels: int, scale: Scale) -> Pixels:
    """Gray or RGB pixels [h,w,1 or 3] of a Pillow image as it is stored, transparency on white."""
    if _is_deep(image):
        return scale.to_uint8(_deep_values(image))[..., None]
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _with_channels(pixels: Pixels, channels: int) -> Pixels:
    found = pixels.shape[2]
    if found == channels:
        return pixels
    if (found, channels) == (1, 3):
        return np.repeat(pixels, 3, axis=2)
    if (found, channels) == (3, 1):
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[..., None]
    raise ValueError(f"{found} channels where the data set has {channels}")
