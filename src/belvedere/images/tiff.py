"""TIFF beyond Pillow, through `tifffile`: many bands, 16-bit colour, floats of several channels; whole or in part.

Pillow stays the reader of what it reads without loss, so ordinary images need nothing more. Of several pages, and of
the levels of a pyramid, the first is read, which is a slide's full resolution; only microscopes' files (OME, ImageJ),
which keep every channel on a page of its own, are put together.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from belvedere.images.held import Held
from belvedere.images.part import Header, Opened

if TYPE_CHECKING:
    from tifffile import TiffPage

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
BITS, PHOTOMETRIC, DESCRIPTION, ORIENTATION, SAMPLES, EXTRA, NODATA = 258, 262, 270, 274, 277, 338, 42113
"""Tags of TIFF 6.0, and GDAL's for the value that means "nothing here"."""
COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
"""Photometric interpretation -> samples of a pixel without extra ones: 0 and 1 gray, 2 RGB, 3 palette, 5 CMYK, ..."""
ALPHA = (1, 2)
"""Kinds of extra samples that are transparency: colours multiplied by it, or not."""
JPEG = (6, 7, 34892, 33007)


def is_tiff(data: Path | bytes) -> bool:
    """Whether an image file, or its bytes, begins as a TIFF or BigTIFF does."""
    if isinstance(data, bytes):
        return data.startswith(MAGICS)
    with data.open("rb") as file:
        return file.read(4) in MAGICS


def readers() -> str:
    """Versions of what decides which TIFFs are read; empty where nothing is installed."""
    found = []
    for name in ("tifffile", "imagecodecs"):
        with suppress(PackageNotFoundError):
            found.append(version(name))
    return " ".join(found)


def reads_fully(image: Image.Image) -> bool:
    """Whether Pillow, which opened this TIFF, reads all its samples, and all their bits."""
    tags: Any = getattr(image, "tag_v2", {})
    samples, bits = int(tags.get(SAMPLES, 1)), max(tags.get(BITS, (1,)))
    alpha = sum(kind in ALPHA for kind in tags.get(EXTRA, ()))
    if samples == 1:
        inverted = tags.get(PHOTOMETRIC) == 0 and image.mode.startswith("I;16")  # white is 0, which Pillow forgets
        return not inverted and _channel_pages(str(tags.get(DESCRIPTION, ""))) is None
    # Pillow opens gray with multiplied alpha as "La", which it converts into nothing else.
    return bits <= 8 and image.mode != "La" and samples - alpha <= COLOURS.get(tags.get(PHOTOMETRIC), 1)


def without_nodata(values: NDArray[Any], nodata: str | None) -> NDArray[Any]:
    """Values deeper than 8 bits with GDAL's value for "nothing here" as NaN, or as 0 among whole numbers."""
    if nodata is None or values.dtype.itemsize == 1:
        return values
    try:
        empty = values == float(nodata.strip("\0 "))
    except ValueError:
        return values
    return np.where(empty, values.dtype.type(np.nan if values.dtype.kind == "f" else 0), values)


def refuse_too_large(size: tuple[int, int], samples: int) -> None:
    """Refuse to read a picture of (h, w) px whole that is too large for it.

    Raises:
        ValueError: saying what cuts it.
    """
    if _are_too_many(size, samples):
        raise ValueError(f"{size[1]} x {size[0]} px are too many for one image; images.tile=512 cuts it into tiles")


@dataclass(frozen=True)
class Tiff:
    """A TIFF whose head was read; the file is closed, and opened again for what is read of it.

    Attributes:
        pages: the one page, or one a channel.
        mapped: whether its values lie in the file as they are, in one piece.
        orientation: 1..8, as EXIF's; all sizes but `header`'s are those of the picture as it is stored.
        header: of the upright picture.
    """

    data: Path | bytes
    pages: list[TiffPage]
    mapped: bool
    orientation: int
    header: Header

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) as stored, px."""
        return self.pages[0].imagelength, self.pages[0].imagewidth

    @property
    def nbytes(self) -> int:
        """About the memory that it takes: for its tables of offsets, two Python numbers a segment."""
        tables = 2**14 + sum(80 * len(page.dataoffsets) for page in self.pages)
        return tables + (len(self.data) if isinstance(self.data, bytes) else 0)

    def read(self) -> Opened:
        """The whole picture as it is stored.

        Raises:
            ValueError: it has too many pixels, a codec is missing, or the file is damaged.
        """
        _refuse_unreadable(self.pages[0])
        refuse_too_large(self.size, self.header.channels)
        return self.region((0, 0), self.size, Held(0))

    def region(self, corner: tuple[int, int], size: tuple[int, int], held: Held) -> Opened:
        """The rectangle of `size` (h, w) at `corner` (y, x), as it is stored; only what it meets is read of the file.

        Raises:
            ValueError: a codec is missing, or the file is damaged.
        """
        _refuse_unreadable(self.pages[0])
        if self.mapped:
            values = self._from_map(corner, size)
        else:
            parts = [self._from_segments(number, corner, size, held) for number in range(len(self.pages))]
            values = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
        return _picture(values, self.pages[0])

    def _from_map(self, corner: tuple[int, int], size: tuple[int, int]) -> NDArray[Any]:
        page = self.pages[0]
        assert isinstance(self.data, Path)
        assert page.dtype is not None
        kind = page.dtype.newbyteorder(page.parent.byteorder)
        stored = np.memmap(self.data, kind, "r", page.dataoffsets[0], page.shaped)
        (y, x), (h, w) = corner, size
        cut = np.moveaxis(stored[:, 0, y : y + h, x : x + w], 0, 2).reshape(h, w, -1)
        return cut.astype(page.dtype)  # a copy: the file is let go of

    def _from_segments(self, number: int, corner: tuple[int, int], size: tuple[int, int], held: Held) -> NDArray[Any]:
        """Paste together what the strips or tiles of page `number` have of the rectangle; [h,w,samples]."""
        page = self.pages[number]
        apart = page.planarconfig == 2
        values: NDArray[Any] = np.zeros((*size, page.samplesperpixel), page.dtype)
        for index in _segments(page, corner, size):
            key = (self.data, number, index)
            pixels, (sample, _, top, left, _) = held.get(key, partial(self._segment, page, index))
            y, x = top - corner[0], left - corner[1]
            if pixels is None:  # a sparse file leaves out what is empty
                height, width = _segment_size(page)
                pixels = np.full((min(height, size[0] - y), min(width, size[1] - x), 1), page.nodata)
            planes = slice(sample, sample + 1) if apart else slice(None)
            target = values[max(0, y) : y + len(pixels), max(0, x) : x + pixels.shape[1], planes]
            source = pixels[max(0, -y) :, max(0, -x) :]
            target[:] = source[: target.shape[0], : target.shape[1]]
        return values

    def _segment(self, page: TiffPage, index: int) -> tuple[Any, int]:
        """Decode one strip or tile: its values [h,w,samples] and its place, and its size in bytes."""
        height, width = _segment_size(page)
        if _are_too_many((height, width), page.samplesperpixel):
            raise ValueError(f"strips or tiles of {width} x {height} px are too large; save it with tiles of 512 px")
        if index >= min(len(page.dataoffsets), len(page.databytecounts)):
            raise ValueError(f"a damaged TIFF (no segment {index})")
        count = page.databytecounts[index]
        if count > 2 * _segment_bytes(page) + 2**16:
            raise ValueError(f"a damaged TIFF (segment {index} claims {count} bytes, more than its pixels can need)")
        with self._open() as file:
            file.seek(page.dataoffsets[index])
            packed = file.read(count) if count else None
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression in JPEG else {}
        # Every codec has exceptions of its own.
        try:
            decoded, place, _ = page.decode(packed, index, **tables)
        except Exception as error:
            raise ValueError(f"a damaged TIFF (segment {index}: {error})") from error
        pixels = None if decoded is None else decoded[0]
        return (pixels, place), 0 if pixels is None else pixels.nbytes

    def _open(self) -> BinaryIO:
        return io.BytesIO(self.data) if isinstance(self.data, bytes) else self.data.open("rb")


def open_tiff(data: Path | bytes) -> Tiff:
    """Read the head of a TIFF.

    Raises:
        ValueError: `tifffile` is not installed, or the file is damaged or of a kind that is not read.
    """
    try:
        import tifffile
    except ImportError:
        raise ValueError('a TIFF that Pillow does not read whole: pip install "belvedere[tiff]"') from None
    try:
        with tifffile.TiffFile(io.BytesIO(data) if isinstance(data, bytes) else data) as file:
            first = file.pages.first
            wanted = _channel_pages(first.description) if first.samplesperpixel == 1 else None
            pages = [first] if wanted is None else [file.pages[i].aspage() for i in wanted]
            for page in pages:  # look now for what tifffile would later seek in the closed file
                _ = page.decode, page.jpegtables, page.jpegheader, page.dataoffsets, page.databytecounts
            mapped = isinstance(data, Path) and len(pages) == 1 and first.is_memmappable
    except OSError:
        raise
    except Exception as error:  # what tifffile trips over in damaged tables
        raise ValueError(f"a damaged TIFF ({error or type(error).__name__})") from error
    alike = len({(page.shaped, page.dtype) for page in pages}) == 1
    if not alike or first.imagedepth > 1 or first.dtype is None or 0 in (*first.shape, *_segment_size(first)):
        raise ValueError(f"a TIFF of a kind that is not read: {first.bitspersample} bits, shape {first.shape}")
    tag = first.tags.valueof(ORIENTATION)
    orientation = int(tag) if tag in range(1, 9) else 1
    size = first.imagelength, first.imagewidth
    deep = first.dtype.name not in ("uint8", "bool")
    channels = len(pages) if len(pages) > 1 else _channels(first)
    header = Header("TIFF", first.dtype.name, channels, size[::-1] if orientation >= 5 else size, deep)
    return Tiff(data, pages, mapped, orientation, header)


def unreadable(page: TiffPage) -> str | None:
    """Why the pixels of a page cannot be read, or None if they can."""
    from tifffile import TIFF

    colour, bits = int(page.photometric), page.bitspersample
    for number, known in ((page.compression, TIFF.DECOMPRESSORS), (page.predictor, TIFF.UNPREDICTORS)):
        try:
            _ = number == 1 or known[number]
        except KeyError:
            return f"compressed as {getattr(number, 'name', number)}, which needs: pip install imagecodecs"
    if colour == 6 and page.compression in JPEG:
        return None
    if colour not in (0, 1, 2, 3, 5) or page.is_subsampled or (bits < 8 and bits != 1) or (colour == 5 and bits != 8):
        return f"a TIFF of a kind that is not read: {getattr(page.photometric, 'name', colour)} of {bits} bits"
    return None


def _are_too_many(size: tuple[int, int], samples: int) -> bool:
    """Whether (h, w) pixels have more samples than the RGB pictures that Pillow refuses as decompression bombs."""
    pixels = Image.MAX_IMAGE_PIXELS
    return pixels is not None and size[0] * size[1] * max(3, samples) > 3 * 2 * pixels


def _refuse_unreadable(page: TiffPage) -> None:
    why = unreadable(page)
    if why is not None:
        raise ValueError(why)


def stored_box(
    corner: tuple[int, int], size: tuple[int, int], orientation: int, stored: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where a rectangle (corner, size) of the upright picture lies in the stored one of (h, w) px."""
    (y, x), (h, w) = (corner, size) if orientation < 5 else (corner[::-1], size[::-1])
    if orientation in (3, 4, 6, 7):
        y = stored[0] - y - h
    if orientation in (2, 3, 7, 8):
        x = stored[1] - x - w
    return (y, x), (h, w)


def _segments(page: TiffPage, corner: tuple[int, int], size: tuple[int, int]) -> Iterator[int]:
    """Indices of the strips or tiles that meet a rectangle, of all planes."""
    height, width = _segment_size(page)
    down, across = -(-page.imagelength // height), -(-page.imagewidth // width)
    rows = range(corner[0] // height, (corner[0] + size[0] - 1) // height + 1)
    columns = range(corner[1] // width, (corner[1] + size[1] - 1) // width + 1)
    planes = range(page.samplesperpixel if page.planarconfig == 2 else 1)
    for plane, row, column in product(planes, rows, columns):
        yield (plane * down + row) * across + column


def _segment_size(page: TiffPage) -> tuple[int, int]:
    """(h, w) of a tile, or of a strip that is not the last."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


def _segment_bytes(page: TiffPage) -> int:
    height, width = _segment_size(page)
    samples = 1 if page.planarconfig == 2 else page.samplesperpixel
    return -(-height * width * samples * page.bitspersample // 8)


def _channel_pages(description: str) -> range | None:
    """Pages that hold the channels of the first picture of a microscope's file; None if one page holds all."""
    counts = {"C": 1, "Z": 1, "T": 1}
    order = "XYCZT"
    if description.startswith("ImageJ="):
        counts["C"] = int(dict(re.findall(r"^(\w+)=(\d+)\s*$", description, re.M)).get("channels", 1))
    elif pixels := re.search(r"<Pixels\b[^>]*>", description):
        found = dict(re.findall(r'\b(\w+)="(\w+)"', pixels.group()))
        order = found.get("DimensionOrder", order)
        counts = {axis: int(found.get(f"Size{axis}", 1)) for axis in counts}
    if counts["C"] < 2:
        return None
    faster = order[2 : max(2, order.find("C"))]
    step = int(np.prod([counts.get(axis, 1) for axis in faster], dtype=np.int64))
    return range(0, counts["C"] * step, step)


def _channels(page: TiffPage) -> int:
    """Channels of the picture of one page: bands without transparency; palettes, CMYK and YCbCr become RGB."""
    if int(page.photometric) in (3, 5, 6):
        return 3
    return page.samplesperpixel - len(_alphas(page))


def _alphas(page: TiffPage) -> list[int]:
    """Which samples are transparency."""
    first = page.samplesperpixel - len(page.extrasamples)
    return [first + i for i, kind in enumerate(page.extrasamples) if int(kind) in ALPHA]


def _picture(values: NDArray[Any], page: TiffPage) -> Opened:
    """Samples [h,w,samples] as gray, RGB or bands; 8-bit transparency and CMYK as the Pillow image that Pillow reads.

    In deeper pictures what is wholly transparent becomes 0, as which value is white is known of the whole set only.
    """
    colour, alphas = int(page.photometric), _alphas(page)
    if colour == 3 and page.colormap is not None:
        palette = (page.colormap >> 8).astype(np.uint8).T
        coloured: NDArray[np.uint8] = palette[values[..., 0]]
        return coloured
    if colour == 5:
        return Image.frombuffer("CMYK", values.shape[1::-1], np.ascontiguousarray(values[..., :4]).tobytes())
    if colour == 0 and values.dtype.kind in "bu":
        np.invert(values[..., :1], out=values[..., :1])
    if not alphas:
        return without_nodata(values, page.tags.valueof(NODATA))
    bands, alpha = np.delete(values, alphas, axis=2), values[..., alphas[:1]]
    if values.dtype == np.uint8 and bands.shape[2] in (1, 3):
        mode = "RGBA" if 2 in page.extrasamples else "RGBa"
        pixels = np.concatenate([np.repeat(bands, 3 // bands.shape[2], axis=2), alpha], axis=2)
        return Image.frombuffer(mode, values.shape[1::-1], pixels.tobytes())
    return without_nodata(np.where(alpha > 0, bands, bands.dtype.type(0)), page.tags.valueof(NODATA))
