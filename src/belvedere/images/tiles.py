"""Large images as an index of tiles (`images.tile=512`): sizes come from headers, pixels are cut when they are wanted.

Tiles lie on a grid from the top left corner of the upright picture, side by side or overlapping as one asks for. Those
of the last row and column are shifted inwards, so that all are full size and every pixel is in one; an image that is no
larger than a tile stays as it is.
Nothing but the ordinary canvases of the tiles is written to disk.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from belvedere.errors import UserError
from belvedere.images.binarize import Binarized
from belvedere.images.cutting import Cutting
from belvedere.images.decode import reason, turned, upright
from belvedere.images.held import Held
from belvedere.images.items import Data, Items, Skipped, Source
from belvedere.images.parallel import map_images
from belvedere.images.part import Header, Opened, Part
from belvedere.images.survey import header_of
from belvedere.images.tiff import Tiff, is_tiff, open_tiff, stored_box, unreadable

Pair = tuple[int, int]
MOST = 1_000_000
"""Tiles of one image: 512,000 x 512,000 px at 512 px a tile."""
MOST_TOGETHER = 20_000_000
"""Tiles of all images: their names and places take about 2 GB."""
TILE = re.compile(r"#y\d+x\d+$")
"""End of a tile's name: the corner that it begins at."""


@dataclass(frozen=True)
class Tiles:
    """The tiles of `whole`'s images.

    Attributes:
        rows: int64 [N], the image of each tile.
        corners: int64 [N,2], (y, x) of its top left corner in the upright picture, px.
        headers: of every image; None where it could not be read.
    """

    whole: Items
    cutting: Cutting
    rows: NDArray[np.int64]
    corners: NDArray[np.int64]
    headers: list[Header | None]
    held: Held = field(default_factory=Held, compare=False)

    def read(self, i: int) -> Data:
        """Tile i as a `Part` that is read later, or its whole image where that is one tile."""
        row = int(self.rows[i])
        header = self.headers[row]
        assert header is not None
        size = min(self.cutting.tile, header.size[0]), min(self.cutting.tile, header.size[1])
        if size == header.size:
            return self.whole.read(row)
        y, x = self.corners[i].tolist()
        return Part(replace(header, size=size), partial(self._load, row, (y, x), size))

    def digest(self) -> str:
        """Hash of the images and of where they are cut."""
        digest = hashlib.blake2b(f"{self.cutting.tile} {self.whole.digest()}".encode(), digest_size=16)
        digest.update(self.rows.tobytes() + self.corners.tobytes())
        return digest.hexdigest()

    def _load(self, row: int, corner: Pair, size: Pair) -> Opened:
        opened = self.held.get(row, lambda: _open(self.whole.read(row)))
        if isinstance(opened, str):
            raise ValueError(opened)
        if isinstance(opened, Tiff):
            stored_corner, stored_size = stored_box(corner, size, opened.orientation, opened.size)
            return turned(opened.region(stored_corner, stored_size, self.held), opened.orientation)
        if isinstance(opened, Path):
            opened = np.load(opened, mmap_mode="r", allow_pickle=False)
        found = opened.size[::-1] if isinstance(opened, Image.Image) else opened.shape[:2]
        header = self.headers[row]
        if header is None or found != header.size:
            raise ValueError(f"its pixels are {found[1]} x {found[0]}, its header says otherwise")
        return _cut(opened, corner, size)


def cut(source: Source, cutting: Cutting, workers: int | None = None, progress: bool = True) -> Source:
    """The tiles of all images, in the order of the images and row by row; whole images where the tile's side is 0.

    A tile of `slide.tif` is called `slide.tif#y1024x512` after its upper left corner. It has its image's label, split
    and group; where there are no groups, the image is one, so that no split separates its tiles. An image that is no
    larger than a tile keeps its name. Images whose headers cannot be read are skipped. What was cut is not cut again.

    Args:
        cutting: how; a side of an image that is shorter than a tile is not cut.
        workers: threads to read headers with, by default one a core.

    Raises:
        UserError: not one header can be read, or they claim more tiles than memory should hold.
    """
    if cutting == source.cutting:
        return source
    if cutting.binarize != "none":
        source = replace(source, items=Binarized(source.items))
    source = replace(source, cutting=cutting)
    if not cutting.tile:
        return source
    found = list(map_images(header_of, source, range(len(source)), workers, "measuring images", progress))
    found = [_refuse_too_many(item, cutting) if isinstance(item, Header) else item for item in found]
    headers = [item if isinstance(item, Header) else None for item in found]
    skipped = [Skipped(source.names[i], item) for i, item in enumerate(found) if isinstance(item, str)]
    counts = np.array([count_tiles(header.size, cutting) if header else 0 for header in headers], np.int64)
    if not counts.any():
        raise UserError(f"{source.described}: none of {len(source)} images can be read; {source.names[0]}: {found[0]}")
    _refuse_too_many_together(source, headers, counts)
    rows = np.repeat(np.arange(len(headers)), counts)
    places = np.concatenate([_places(header.size, cutting) for header in headers if header])
    groups = source.groups or (source.names if len(set(rows.tolist())) < len(rows) else None)

    def spread(texts: list[str] | None) -> list[str] | None:
        return None if texts is None else [texts[row] for row in rows]

    def name(row: int, y: int, x: int) -> str:
        header = headers[row]
        return source.names[row] if header and max(header.size) <= cutting.tile else f"{source.names[row]}#y{y}x{x}"

    return replace(
        source,
        names=[name(*numbers) for numbers in zip(rows, *places.T, strict=True)],
        labels=None if source.labels is None else source.labels[rows],
        splits=spread(source.splits),
        groups=spread(groups),
        skipped=source.skipped + skipped,
        items=Tiles(source.items, cutting, rows, places, headers),
    )


def file_of(name: str) -> str:
    """The image that a tile is of, by the tile's name; other names are their own."""
    return TILE.sub("", name)


def corners(size: Pair, cutting: Cutting) -> Iterator[Pair]:
    """Top left corners (y, x) of the tiles of an image of (h, w) px, row by row."""
    return product(_starts(size[0], cutting), _starts(size[1], cutting))


def _places(size: Pair, cutting: Cutting) -> NDArray[np.int64]:
    """`corners` as an array [n,2]: of tuples, many images would take five times the memory."""
    return np.fromiter(chain.from_iterable(corners(size, cutting)), np.int64).reshape(-1, 2)


def count_tiles(size: Pair, cutting: Cutting) -> int:
    """Number of tiles of an image of (h, w) px."""
    return _along(size[0], cutting) * _along(size[1], cutting)


def _along(length: int, cutting: Cutting) -> int:
    """Number of tiles along one side."""
    return 1 + -(-max(0, length - cutting.tile) // cutting.step)


def _starts(length: int, cutting: Cutting) -> list[int]:
    """Where tiles begin along one side; the last one ends with the image."""
    last = max(0, length - cutting.tile)
    return [min(n * cutting.step, last) for n in range(_along(length, cutting))]


def _refuse_too_many(header: Header, cutting: Cutting) -> Header | str:
    """The header, or why it is not believed: what a damaged one claims must not fill the memory with tiles."""
    height, width = header.size
    if count_tiles(header.size, cutting) > MOST:
        return f"its header claims {width} x {height} px, more than {MOST} tiles"
    return header


def _refuse_too_many_together(source: Source, headers: list[Header | None], counts: NDArray[np.int64]) -> None:
    """Refuse more tiles than memory should hold: no single header need claim too much for it.

    Raises:
        UserError: naming the image with the most tiles.
    """
    total, most = int(counts.sum()), int(counts.argmax())
    header = headers[most]
    if total > MOST_TOGETHER and header is not None:
        height, width = header.size
        raise UserError(
            f"{source.described}: {total:,} tiles, more than the {MOST_TOGETHER:,} that a run may have; most are of "
            f"{source.names[most]} ({width} x {height} px by its header): leave out what is damaged, or make "
            "images.tile larger"
        )


def _open(data: Data) -> tuple[Opened | Tiff | Path | str, int]:
    """What the tiles of an image are cut from and its size in bytes, or why there is none, which all of them share.

    Of a `.npy` file, its path; of a TIFF, its tables; all pixels of other images, and of a TIFF that Pillow reads and
    `tifffile` cannot.
    """
    if isinstance(data, Path) and data.suffix.lower() == ".npy":
        return data, 0
    with suppress(ValueError):  # it is Pillow's turn, and if that cannot read it either, it says why
        if isinstance(data, Path | bytes) and is_tiff(data):
            tiff = open_tiff(data)
            if unreadable(tiff.pages[0]) is None:
                return tiff, tiff.nbytes
    # Broken files raise whatever their decoder likes.
    try:
        opened = upright(data)
    except Exception as error:
        return reason(error), 0
    if isinstance(opened, np.ndarray):
        return opened, opened.nbytes
    return opened, opened.width * opened.height * len(opened.getbands()) * (4 if opened.mode in ("I", "F") else 1)


def _cut(picture: Opened, corner: Pair, size: Pair) -> Opened:
    (y, x), (h, w) = corner, size
    if not isinstance(picture, Image.Image):
        return np.array(picture[y : y + h, x : x + w])  # a copy, so that a mapped file is let go of
    tile = picture.crop((x, y, x + w, y + h))
    # An upright picture may still say how it was turned.
    tile.info = {key: value for key, value in tile.info.items() if key == "transparency"}
    return tile
