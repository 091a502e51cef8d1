"""A look at a set of images before anything is trained: what is there, what is broken, and what decoding will cost."""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from belvedere.errors import UserError, printable
from belvedere.images.cutting import Cutting
from belvedere.images.items import Data, Items, Skipped, Source
from belvedere.images.limits import MIN_SIDE, refuse_mostly_broken
from belvedere.images.making import Making, or_skipped
from belvedere.images.parallel import count_workers, map_images
from belvedere.images.part import Part
from belvedere.images.source import find_images
from belvedere.images.survey import Moments, mean_and_std, survey
from belvedere.images.tiles import count_tiles, cut

SHOWN = 10
"""Names listed before "and n more"."""
TILE = 512
"""Side of tiles to suggest, px: twice that of canvases, so no more than half of the resolution is scaled away."""
LARGE = 8
"""So many canvases fit into the short side of images that tiles are suggested for."""


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest of a measured quantity."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Spread of at least one value."""
        return cls(min(values), float(np.median(values)), max(values))


@dataclass(frozen=True)
class Check:
    """What a set of images is like.

    Attributes:
        count: usable images; `skipped` holds the others, with reasons.
        short_side, long_side: of the original images, px; `aspect` is width / height.
        formats, modes: images by file format, and by Pillow mode or array type.
        channels: what a run would use; `integer_range`, `float_range`: mapped to 0..255 in images deeper than 8 bits.
        duplicates: names of images with exactly the same content, in groups.
        mean, std: per channel in [0,1], over all canvases.
        classes: images per class; `unlabelled` have none. `label_origin` says where they come from.
        side: the canvas side that this was measured at; `canvas_bytes`: all canvases together.
        seconds: decoding everything once, with so many `workers` on this machine.
        refused: why a run on these images would stop at once, or None.
        tile: side of the tiles that these images are, px; 0 = they are whole.
        tiles: as many of 512 px they would be cut into.
    """

    described: str
    count: int
    skipped: list[Skipped]
    short_side: Spread
    long_side: Spread
    aspect: Spread
    formats: dict[str, int]
    modes: dict[str, int]
    channels: int
    integer_range: tuple[float, float]
    float_range: tuple[float, float]
    duplicates: list[list[str]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: dict[str, int]
    unlabelled: int
    label_origin: str
    side: int
    canvas_bytes: int
    seconds: float
    workers: int
    refused: str | None
    tile: int
    tiles: int

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values for JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report as lines of plain text."""
        return [printable(line) for line in (*self._overview(), *self._classes(), *self._problems())]

    def _overview(self) -> Iterator[str]:
        short, long, aspect = self.short_side, self.long_side, self.aspect
        what = f"tiles of {self.tile} px" if self.tile else "images"
        yield f"{self.described}: {self.count} usable {what}, {len(self.skipped)} set aside"
        yield f"short side {short.low:.0f} to {short.high:.0f} px, median {short.median:.0f}"
        yield f"long side {long.low:.0f} to {long.high:.0f} px, median {long.median:.0f}"
        yield f"width / height {aspect.low:.2f} to {aspect.high:.2f}, median {aspect.median:.2f}"
        yield f"formats: {_counts(self.formats)}"
        yield f"modes: {_counts(self.modes)}; used as {self.channels} channel{'s' * (self.channels > 1)}"
        if any(mode.startswith(("I", "int", "uint16", "uint32")) for mode in self.modes):
            yield f"whole numbers above 8 bits: {_range(self.integer_range)} becomes 0 to 255, in all images alike"
        if any(mode.startswith(("F", "float")) for mode in self.modes):
            yield f"floats: {_range(self.float_range)} becomes 0 to 255, in all images alike"
        yield f"mean {_numbers(self.mean)}, std {_numbers(self.std)}"
        yield (
            f"canvases of side {self.side}: {self.canvas_bytes / 2**20:.1f} MiB on disk, "
            f"decoded in {self.seconds:.1f} s by {self.workers} worker{'s' * (self.workers > 1)}"
        )

    def _classes(self) -> Iterator[str]:
        if self.label_origin == "none":
            yield "no labels found; none are needed to pretrain"
            return
        yield f"{len(self.classes)} classes from the {self.label_origin}, {self.unlabelled} images unlabelled"
        yield f"classes: {_counts(self.classes)}"

    def _problems(self) -> Iterator[str]:
        if not self.tile and self.short_side.median >= LARGE * self.side:
            yield (
                f"large images: views show them {self.short_side.median / self.side:.0f} times smaller than they are; "
                f"if they are slides, maps or scans, images.tile={TILE} cuts them into {self.tiles} tiles"
            )
        if self.duplicates:
            copies = sum(len(group) - 1 for group in self.duplicates)
            yield f"exact duplicates: {copies} images repeat another"
            yield from (f"  {line}" for line in _listed([" = ".join(group) for group in self.duplicates]))
        if self.skipped:
            yield f"set aside: {len(self.skipped)} images"
            yield from (f"  {item.name}: {item.reason}" for item in self.skipped)
        if self.refused:
            yield f"a run would stop: {self.refused}"


@dataclass(frozen=True)
class _Seen:
    row: int
    digest: bytes
    original: tuple[int, int]
    canvas_bytes: int
    moments: Moments


@dataclass(frozen=True)
class _Looking:
    making: Making

    def __call__(self, items: Items, i: int, name: str, row: int) -> _Seen | Skipped:
        return or_skipped(name, lambda: self._look(items.read(i), name, row))

    def _look(self, data: Data, name: str, row: int) -> _Seen | Skipped:
        found = self.making.of(data, name, row)
        if isinstance(found, Skipped):
            return found
        return _Seen(row, content_hash(data), found.original, found.pixels.nbytes, Moments.of(found.pixels))


def check(
    images: Any,
    labels: str | Path = "auto",
    side: int = 256,
    channels: int | str = "auto",
    workers: int | None = None,
    progress: bool = True,
    min_side: int = MIN_SIDE,
    tile: int = 0,
) -> Check:
    """Decode every image once, keeping nothing, and report.

    Args:
        images, labels: as in `find_images`.
        tile: side of the tiles that larger images are cut into first, px; 0 = whole images.
        side, channels, workers, progress, min_side: as in `open_canvases`.

    Raises:
        UserError: not a single image can be used.
    """
    start = time.perf_counter()
    source = cut(find_images(images, labels), Cutting(tile), workers, progress)
    found = survey(source, channels, workers, progress)
    looking = _Looking(Making(side, found.channels, found.scale, min_side, source.cutting))
    results = list(map_images(looking, source, range(len(source)), workers, "checking images", progress))
    seconds = time.perf_counter() - start
    seen = [item for item in results if isinstance(item, _Seen)]
    skipped = source.skipped + [item for item in results if isinstance(item, Skipped)]
    refused = _refusal(source, skipped)
    if not seen:
        raise UserError(str(refused))
    mean, std = mean_and_std([item.moments for item in seen])
    rows = [item.row for item in seen]
    numbers = np.full(len(rows), -1) if source.labels is None else source.labels[rows]
    return Check(
        described=source.described,
        count=len(seen),
        skipped=skipped,
        short_side=Spread.of([min(item.original) for item in seen]),
        long_side=Spread.of([max(item.original) for item in seen]),
        aspect=Spread.of([item.original[1] / item.original[0] for item in seen]),
        formats=dict(found.formats.most_common()),
        modes=dict(found.modes.most_common()),
        channels=found.channels,
        integer_range=found.scale.integer,
        float_range=found.scale.floating,
        duplicates=_duplicates(source, seen),
        mean=mean,
        std=std,
        classes={name: int((numbers == i).sum()) for i, name in enumerate(source.classes)},
        unlabelled=int((numbers < 0).sum()),
        label_origin=source.label_origin,
        side=side,
        canvas_bytes=sum(item.canvas_bytes for item in seen),
        seconds=seconds,
        workers=count_workers(workers),
        refused=refused,
        tile=tile,
        tiles=sum(count_tiles(item.original, Cutting(TILE)) for item in seen),
    )


def content_hash(data: Data) -> bytes:
    """Hash of what an image is: its file's bytes, or its values with their shape, as always of a part."""
    if isinstance(data, Part):
        data = data.load()
    if isinstance(data, Path):
        with data.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    if isinstance(data, bytes):
        return hashlib.blake2b(data, digest_size=16).digest()
    array = np.asarray(data)
    head = f"{array.shape} {array.dtype} {getattr(data, 'mode', '')}".encode()
    return hashlib.blake2b(head + array.tobytes(), digest_size=16).digest()


def _duplicates(source: Source, seen: list[_Seen]) -> list[list[str]]:
    groups: defaultdict[bytes, list[str]] = defaultdict(list)
    for item in seen:
        groups[item.digest].append(source.names[item.row])
    return [names for names in groups.values() if len(names) > 1]


def _refusal(source: Source, skipped: list[Skipped]) -> str | None:
    try:
        refuse_mostly_broken(source, skipped)
    except UserError as error:
        return str(error)
    return None


def _counts(counts: Counter[str] | dict[str, int]) -> str:
    return ", ".join(_listed([f"{name} {count}" for name, count in counts.items()]))


def _listed(items: list[str]) -> list[str]:
    more = len(items) - SHOWN
    return [*items[:SHOWN], f"and {more} more"] if more > 0 else items


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.3f}" for value in values)


def _range(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:g} to {bounds[1]:g}"
