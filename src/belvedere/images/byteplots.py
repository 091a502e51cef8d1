"""Any file as a picture of its bytes: `bytes:FOLDER` in the place of a folder of images.

As MalNet pictures Android programs (Freitas et al., 2021), which SHERLOCK learns from (IEEE Access 2022; spec
patch_and_pretext 9): a byte a pixel, in rows whose width goes by the file's size, squeezed into a square. A DEX file's
sections have a colour each; any other file is gray.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from belvedere.errors import UserError
from belvedere.images.blobs import is_url
from belvedere.images.files import Files, glob, read_list, walk
from belvedere.images.items import Source, choose_labels, make_source
from belvedere.images.labels import from_folders
from belvedere.images.part import Header, Part

PREFIX = "bytes:"
SIDE = 256
"""Height and width of every picture, px."""
WIDTHS = ((10, 32), (30, 64), (60, 128), (100, 256), (200, 384), (500, 512), (1000, 768))
"""(kilobytes that a file has fewer of, px of its rows); larger files have rows of `WIDEST`."""
WIDEST = 1024
DEX = b"dex\n"
HEADER_SIZE, DATA_SIZE, DATA_OFFSET = 0x24, 0x68, 0x6C
"""Where a DEX header holds its own length, and the length and place of the data section; 4 bytes each."""
HEADER_END = 0x70


def row_width(size: int) -> int:
    """Pixels of a row of a file of `size` bytes."""
    return next((width for limit, width in WIDTHS if size // 1000 < limit), WIDEST)


def byte_plot(raw: NDArray[np.uint8], header: int = 0, data: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """The picture of a file before it is squeezed.

    Args:
        raw: (n,) its bytes. What does not fill the last row is dropped.
        header: of a file with sections, the bytes of its header, which become red.
        data: (start, length) of its data section, which becomes green, the rest blue; None = a file without sections.

    Returns:
        uint8 [h,w,3], or [h,w] of a file without sections.

    Raises:
        ValueError: the file does not fill a row.
    """
    width = row_width(len(raw))
    rows = len(raw) // width
    if not rows:
        raise ValueError(f"only {len(raw)} bytes, which do not fill a row of {width}")
    if data is None:
        return raw[: rows * width].reshape(rows, width)
    section = np.full(len(raw), 2, np.uint8)
    section[data[0] : data[0] + data[1]] = 1
    section[:header] = 0
    pixels = np.where(section[:, None] == np.arange(3, dtype=np.uint8), raw[:, None], np.uint8(0))
    return pixels[: rows * width].reshape(rows, width, 3)


def squeezed(plot: NDArray[np.uint8], side: int = SIDE) -> Image.Image:
    """A picture of `side` x `side` px, by Lanczos' filter."""
    return Image.fromarray(plot).resize((side, side), Image.Resampling.LANCZOS)


def sections(head: bytes) -> tuple[int, tuple[int, int]] | None:
    """(length of the header, (start, length) of the data section) of a DEX file by its first bytes, None of others."""
    if not head.startswith(DEX) or len(head) < HEADER_END:
        return None
    header, length, start = (
        int.from_bytes(head[place : place + 4], "little") for place in (HEADER_SIZE, DATA_SIZE, DATA_OFFSET)
    )
    return header, (start, length)


@dataclass(frozen=True)
class BytePlots:
    """Files as pictures of their bytes."""

    files: Files

    def read(self, i: int) -> Part:
        """The picture of file i, which is drawn when it is asked for."""
        path = self.files.read(i)
        with path.open("rb") as file:
            coloured = sections(file.read(HEADER_END)) is not None
        header = Header("bytes", "RGB" if coloured else "L", 3 if coloured else 1, (SIDE, SIDE), deep=False)
        return Part(header, partial(_draw, path))

    def digest(self) -> str:
        """Hash of the files, and of how they are read."""
        return f"{PREFIX}{SIDE} {self.files.digest()}"


def from_bytes(described: str, choice: str) -> Source:
    """The files of a folder, a `.txt` list or a glob, whatever their names end with.

    Args:
        described: these words of the user's, with their prefix.
        choice: as `labels` in `find_images`; folders name classes.

    Raises:
        UserError: there are none, or they lie on another machine.
    """
    place = described.removeprefix(PREFIX)
    path = Path(place).expanduser()
    if path.is_dir():
        root, (names, skipped) = path, walk(path, every=True)
    elif path.is_file() and path.suffix.lower() == ".txt":
        root, (names, skipped) = path.parent, read_list(path)
    elif any(mark in place for mark in "*?[") and not is_url(place):
        root, names, skipped = glob(path, every=True)
    else:
        raise UserError(f"{described}: give a folder, a .txt list or a glob of files on this machine")
    if not names:
        raise UserError(f"{described}: no files found")
    found = choose_labels(choice, names, described, lambda: from_folders(names, described, required=False))
    return make_source(names, found, skipped, root, described, BytePlots(Files(root, names)))


def _draw(path: Path) -> Image.Image:
    if not path.stat().st_size:
        raise ValueError("empty file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        if len(mapped) > 2 * (Image.MAX_IMAGE_PIXELS or len(mapped)):
            raise Image.DecompressionBombError
        raw, found = np.frombuffer(mapped, np.uint8).copy(), sections(mapped[:HEADER_END])
    return squeezed(byte_plot(raw, *found) if found else byte_plot(raw))
