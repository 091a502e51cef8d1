"""Decode once: a set of images as uint8 canvases in one memory-mapped file, keyed by what it was made from."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from belvedere.cachefolder import cache_folder
from belvedere.errors import UserError
from belvedere.images.cachefile import (
    Canvas,
    Damaged,
    Index,
    one_at_a_time,
    read_index,
    replacing,
    write_index,
    write_pixels,
)
from belvedere.images.cutting import WHOLE, Cutting
from belvedere.images.decode import Pixels, Scale
from belvedere.images.items import Skipped, Source, evenly_spaced
from belvedere.images.limits import MIN_SIDE, refuse_mostly_broken
from belvedere.images.making import Making
from belvedere.images.parallel import map_images
from belvedere.images.survey import Moments, mean_and_std, spread, survey
from belvedere.images.tiff import readers

FORMAT_VERSION = 2

Rows = Sequence[int] | NDArray[np.integer[Any]] | Tensor

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Canvases:
    """N decoded images on disk, read as they are asked for; can be pickled, and shares pages between processes.

    Attributes:
        names, labels, classes, label_origin, splits, groups: as in `Source`, for the images that could be read.
        skipped: the images that were set aside, and why.
        channels: C of every canvas.
        side: canvases have a short side <= `side` and a long side <= 2 `side`.
        sizes: int32 [N,2], h and w of each canvas.
        original: int32 [N,2], h and w of each image before scaling, upright.
        scale: the ranges that were mapped to 0..255, for images deeper than 8 bits.
        fingerprint: hash of names and pixels; the same on every machine that decodes the same.
        path, offsets: the cache file, and the first byte of each canvas in it.
        cutting: what was made of the files, tiles of larger images for one.
    """

    names: list[str]
    labels: NDArray[np.int64] | None
    classes: list[str]
    label_origin: str
    splits: list[str] | None
    groups: list[str] | None
    skipped: list[Skipped]
    channels: int
    side: int
    sizes: NDArray[np.int32]
    original: NDArray[np.int32]
    scale: Scale
    fingerprint: str
    path: Path
    offsets: NDArray[np.int64]
    cutting: Cutting = WHOLE

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be pickled with all its pixels; the copy opens the file anew.
        return {key: value for key, value in self.__dict__.items() if key != "_bytes"}

    @cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        return np.memmap(self.path, np.uint8, mode="r")

    def pixels(self, i: int) -> Pixels:
        """Canvas i as a read-only view [h,w,C] of the cache file."""
        height, width = self.sizes[i].tolist()
        start = int(self.offsets[i])
        return self._bytes[start : start + height * width * self.channels].reshape(height, width, self.channels)

    def batch(self, index: Rows) -> Tensor | list[Tensor]:
        """Copies of the canvases `index`: uint8 [n,h,w,C] if all have one size, else a list of [h,w,C]."""
        return as_batch([self.pixels(i) for i in _positions(index)])

    def statistics(self, limit: int = 2000) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel in [0,1], over at most `limit` evenly spaced canvases."""
        return mean_and_std([Moments.of(self.pixels(i)) for i in spread(len(self), limit).tolist()])

    def subset(self, index: Rows) -> Canvases:
        """The canvases `index`, in that order, with a fingerprint of their own; no pixels are read."""
        rows = np.array(_positions(index), np.int64)
        digest = hashlib.blake2b(self.fingerprint.encode() + rows.tobytes(), digest_size=16)

        def picked(texts: list[str] | None) -> list[str] | None:
            return None if texts is None else [texts[i] for i in rows]

        chosen = replace(
            self,
            names=[self.names[i] for i in rows],
            labels=None if self.labels is None else self.labels[rows],
            splits=picked(self.splits),
            groups=picked(self.groups),
            sizes=self.sizes[rows],
            original=self.original[rows],
            offsets=self.offsets[rows],
            fingerprint=digest.hexdigest(),
        )
        # One open file for all, so that a cache which is deleted while it is used stays readable.
        chosen.__dict__["_bytes"] = self._bytes
        return chosen

    def write_skipped(self, path: str | Path) -> None:
        """Write `skipped` as CSV."""
        write_skipped(self.skipped, Path(path))


def as_batch(pixels: Sequence[Pixels]) -> Tensor | list[Tensor]:
    """Copies of canvases: uint8 [n,h,w,C] if all have one size, else a list of [h,w,C]."""
    if len({item.shape for item in pixels}) == 1:
        return torch.from_numpy(np.stack(pixels))
    return [torch.from_numpy(item.copy()) for item in pixels]


def write_skipped(skipped: Sequence[Skipped], path: Path) -> None:
    """Write CSV with the header path,reason; an empty list too, so that silence means something."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "reason"))
        writer.writerows((item.name, item.reason) for item in skipped)


def open_canvases(
    source: Source,
    side: int,
    channels: int | str = "auto",
    cache_dir: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
    min_side: int = MIN_SIDE,
    fewest: int = 2,
    most: int | None = None,
) -> Canvases:
    """Open the decoded canvases of `source`, decoding it first unless that was done before.

    The cache is found by the names, sizes and times of the files (or the values of arrays), `side`, `channels` and
    `min_side`. Broken images, those with a side below `min_side` before or after scaling, and tiles of one colour are
    set aside, and so are tiles with too little ink where that was asked for.

    Args:
        side: S: the short side of a canvas is at most S pixels, the long side at most 2S; nothing is enlarged.
        channels: 1, 3 (converted into each other), the images' own count, or "auto" (1 if all are gray).
        cache_dir: where the cache lies; by default $BELVEDERE_CACHE, or `~/.cache/belvedere`.
        workers: decoding threads, or processes for many small files; by default one a core. It changes no result.
        fewest: usable images that there have to be.
        most: of a larger source that is not decoded yet, so many evenly spaced images and a cache of these.

    Raises:
        UserError: fewer than `fewest` usable images, more than half unusable, or a full or read-only disk.
    """
    if side < min_side:
        raise UserError(f"the canvas side is {side} px, below the smallest usable image side of {min_side} px")
    path = _cache_path(source, side, channels, min_side, cache_dir)
    index = _read(path)
    if index is None and channels != "auto":
        # A run's own settings name the channels that were found when it began.
        found = _cache_path(source, side, "auto", min_side, cache_dir)
        index = _read(found)
        if index is not None and index.facts["channels"] == channels:
            path = found
        else:
            index = None
    if index is None and most is not None and len(source) > most:
        some = evenly_spaced(source, most)
        return open_canvases(some, side, channels, cache_dir, workers, progress, min_side, fewest)
    if index is None:
        with one_at_a_time(path):
            index = _read(path, told=True) or _build(path, source, side, channels, min_side, workers, progress)
    canvases = _canvases(path, source, side, index)
    # Asked of a cached set as well: what cannot be opened at all may have changed since.
    refuse_mostly_broken(source, canvases.skipped, fewest)
    return canvases


def _read(path: Path, told: bool = False) -> Index | None:
    """The index of a cache file; None where there is none, or a damaged one, which is said unless it was `told`."""
    try:
        return read_index(path)
    except OSError:  # none yet; where the folder cannot be used at all, building says so
        return None
    except Damaged as error:
        if not told:
            _log.warning("canvas cache is damaged and is built again (%s)", error)
        return None


def _cache_path(source: Source, side: int, channels: int | str, min_side: int, cache_dir: str | Path | None) -> Path:
    # The versions of the readers decide which formats can be read at all.
    asked = f"{FORMAT_VERSION} {PIL.__version__} {readers()} {side} {channels} {min_side} {source.digest()}"
    key = hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()
    return cache_folder(cache_dir) / "canvases" / f"{key}.bin"


def _build(
    path: Path,
    source: Source,
    side: int,
    channels: int | str,
    min_side: int,
    workers: int | None,
    progress: bool,
) -> Index:
    found = survey(source, channels, workers, progress)
    skipped: list[Skipped] = []
    every = range(len(source))

    def usable() -> Iterator[Canvas]:
        for item in decoded(source, every, side, found.channels, found.scale, min_side, workers, progress):
            if isinstance(item, Canvas):
                yield item
            else:
                skipped.append(item)

    facts = {"channels": found.channels, "integer": found.scale.integer, "floating": found.scale.floating}
    with replacing(path) as file:
        index = write_pixels(file, usable(), facts)
        index.facts["skipped"] = [(item.name, item.reason) for item in skipped]
        write_index(file, index)
    return index


def decoded(
    source: Source,
    rows: range,
    side: int,
    channels: int,
    scale: Scale,
    min_side: int,
    workers: int | None,
    progress: bool,
) -> Iterator[Canvas | Skipped]:
    """The canvases of the images `rows`, in their order, decoded a little ahead; arguments as in `open_canvases`."""
    making = Making(side, channels, scale, min_side, source.cutting)
    return map_images(making, source, rows, workers, "decoding images", progress)


def _canvases(path: Path, source: Source, side: int, index: Index) -> Canvases:
    def picked(texts: list[str] | None) -> list[str] | None:
        return None if texts is None else [texts[i] for i in index.rows]

    facts = index.facts
    names = [source.names[i] for i in index.rows]
    digest = hashlib.blake2b(f"{side} {facts['channels']} {facts['pixels']}".encode(), digest_size=16)
    digest.update(index.sizes.tobytes())
    for name in names:
        digest.update(os.fsencode(name) + b"\n")
    return Canvases(
        names=names,
        labels=None if source.labels is None else source.labels[index.rows],
        classes=source.classes,
        label_origin=source.label_origin,
        splits=picked(source.splits),
        groups=picked(source.groups),
        skipped=source.skipped + [Skipped(name, why) for name, why in facts["skipped"]],
        channels=facts["channels"],
        side=side,
        sizes=index.sizes,
        original=index.original,
        scale=Scale(tuple(facts["integer"]), tuple(facts["floating"])),
        fingerprint=digest.hexdigest(),
        path=path,
        offsets=index.offsets(),
        cutting=source.cutting,
    )


def _positions(index: Rows) -> list[int]:
    positions: list[int] = np.asarray(index, np.int64).ravel().tolist()
    return positions
